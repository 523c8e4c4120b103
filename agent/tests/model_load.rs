//! A manifest's text to pods or errors: each wrong manifest with the exact lines that it gets.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use nodeagent::model::{Defaults, Loaded, load};
use rstest::rstest;

fn loaded(text: impl AsRef<[u8]>) -> Loaded {
    load(Path::new("web.yaml"), text.as_ref(), &Defaults { node_name: "node1".into() })
}

fn errors(text: impl AsRef<[u8]>) -> Vec<String> {
    loaded(text).errors.iter().map(ToString::to_string).collect()
}

/// A pod with this spec, indented by two below `spec:` on line 5. The one container begins on line 7.
fn pod(more: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  containers:\n  - name: app\n    image: nginx\n{more}")
}

#[test]
fn a_plain_pod_gets_its_defaults() {
    let loaded = loaded(pod(""));
    assert_eq!(loaded.errors, []);
    let pod = &loaded.pods[0];
    assert_eq!(pod.to_string(), "default/web");
    assert_eq!(pod.spec().termination_grace_period_seconds, Some(30));
    assert_eq!(pod.spec().containers[0].image_pull_policy.as_deref(), Some("Always"));
}

#[rstest]
#[case::unknown_field("    imagee: x\n", "web.yaml:9:5: spec.containers[0].imagee: unknown field, did you mean \"image\"?")]
#[case::wrong_case(
    "    volumemounts: []\n",
    "web.yaml:9:5: spec.containers[0].volumemounts: unknown field, did you mean \"volumeMounts\"?"
)]
#[case::far_off("    frobnicate: 1\n", "web.yaml:9:5: spec.containers[0].frobnicate: unknown field")]
#[case::number_for_string(
    "    env:\n    - name: PORT\n      value: 8080\n",
    "web.yaml:11:14: spec.containers[0].env[0].value: Invalid value: 8080: must be a string, not an integer: put it in quotes"
)]
#[case::string_for_number(
    "    ports:\n    - containerPort: \"80\"\n",
    "web.yaml:10:22: spec.containers[0].ports[0].containerPort: Invalid value: \"80\": must be an integer, not a string: write it without quotes"
)]
#[case::too_large(
    "    ports:\n    - containerPort: 5000000000\n",
    "web.yaml:10:22: spec.containers[0].ports[0].containerPort: Invalid value: 5000000000: must be between -2147483648 and 2147483647"
)]
#[case::map_for_list(
    "    command: sh\n",
    "web.yaml:9:14: spec.containers[0].command: Invalid value: \"sh\": must be a list, not a string: begin each element with \"- \""
)]
#[case::duplicate_key("    image: redis\n", "web.yaml:9:5: duplicate key \"image\": it is on line 8, column 5 already")]
#[case::tab("\tcommand: [sh]\n", "web.yaml:9:1: a tab can't indent in YAML: use spaces")]
fn a_wrong_container(#[case] more: &str, #[case] expected: &str) {
    assert_eq!(errors(pod(more)), [expected]);
}

fn object(kind: &str, rest: &str) -> String {
    format!("apiVersion: v1\nkind: {kind}\nmetadata: {{name: app}}\n{rest}")
}

#[test]
fn objects_get_their_defaults_and_a_secrets_text_becomes_data() {
    let text = [
        object("ConfigMap", "data: {a: '1'}\nbinaryData: {b: /w==}\n"),
        object("Secret", "stringData: {user: admin, both: new}\ndata:\n  both: b2xk\n  long: |\n    YWJj\n    ZGVm\n"),
        object("Service", "spec: {clusterIP: 10.0.0.1, ports: [{port: 80}]}\n"),
        object("PersistentVolumeClaim", "spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}\n"),
    ]
    .join("---\n");
    let loaded = loaded(text);
    assert_eq!(loaded.errors, []);
    let kinds: Vec<&str> = loaded.objects.iter().map(|o| o.key().kind.as_str()).collect();
    assert_eq!(kinds, ["ConfigMap", "Secret", "Service", "PersistentVolumeClaim"]);
    let uids: std::collections::HashSet<_> = loaded.objects.iter().map(|o| o.body().metadata().uid.clone()).collect();
    assert_eq!(uids.len(), 4, "objects of one name are not one");
    let nodeagent::model::Body::Secret(secret) = loaded.objects[1].body() else { panic!("a Secret") };
    let data = secret.data.as_ref().unwrap();
    assert_eq!(secret.type_.as_deref(), Some("Opaque"));
    assert_eq!(data["user"].0, b"admin");
    assert_eq!(data["both"].0, b"new");
    assert_eq!(data["long"].0, b"abcdef");
    assert!(secret.string_data.is_none());
    assert!(!format!("{loaded:?}").contains("admin") && !format!("{:?}", loaded.objects).contains("97, 100"));
}

#[rstest]
#[case::number(
    "ConfigMap",
    "data: {port: 80}\n",
    "4:14: data[port]: Invalid value: 80: must be a string, not an integer: put it in quotes"
)]
#[case::key("ConfigMap", "data: {'a/b': x}\n", "4:8: data[a/b]: Invalid value: \"a/b\": ")]
#[case::both(
    "ConfigMap",
    "data: {a: x}\nbinaryData: {a: eA==}\n",
    "4:8: data[a]: Invalid value: \"a\": duplicate of key present in binaryData"
)]
#[case::unknown("ConfigMap", "dat: {}\n", "4:1: dat: unknown field, did you mean \"data\"?")]
#[case::secret_number(
    "Secret",
    "stringData: {pin: 12345}\n",
    "4:19: stringData[pin]: Invalid value: <secret contents redacted>: must be a string, not an integer: put it in quotes"
)]
#[case::secret_text(
    "Secret",
    "data: {password: hunter2!}\n",
    "4:18: data[password]: Invalid value: <secret contents redacted>: must be base64: put plain text into stringData"
)]
#[case::secret_map(
    "Secret",
    "data: hunter2\n",
    "4:7: data: Invalid value: <secret contents redacted>: must be a map, not a string"
)]
#[case::tls("Secret", "type: kubernetes.io/tls\nstringData: {tls.crt: x}\n", "data[tls.key]: Required value")]
#[case::docker(
    "Secret",
    "type: kubernetes.io/dockerconfigjson\nstringData: {.dockerconfigjson: hunter2}\n",
    "data[.dockerconfigjson]: Invalid value: <secret contents redacted>: must be a JSON object"
)]
#[case::claim_mode(
    "PersistentVolumeClaim",
    "spec: {accessModes: [Often], resources: {requests: {storage: 1Gi}}}\n",
    "spec.accessModes[0]: Unsupported value: \"Often\""
)]
#[case::claim_size(
    "PersistentVolumeClaim",
    "spec: {accessModes: [ReadWriteOnce]}\n",
    "spec.resources.requests[storage]: Required value"
)]
#[case::claim_block(
    "PersistentVolumeClaim",
    "spec: {volumeMode: Block, accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}\n",
    "spec.volumeMode: Forbidden"
)]
#[case::service_port(
    "Service",
    "spec: {ports: [{port: 70000}]}\n",
    "spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive"
)]
#[case::service_names("Service", "spec: {ports: [{port: 1}, {port: 2, name: x}]}\n", "spec.ports[0].name: Required value")]
#[case::kind("Configmap", "data: {}\n", "did you mean \"ConfigMap\"?")]
fn a_wrong_object(#[case] kind: &str, #[case] rest: &str, #[case] expected: &str) {
    let told = errors(object(kind, rest));
    assert!(told.iter().any(|e| e.contains(expected)), "{told:#?}");
    assert!(!told.iter().any(|e| e.contains("hunter2") || e.contains("12345")), "{told:#?}");
}

/// As `kubectl get pod -o yaml` shows a pod of a cluster: what the cluster added is left out, and that is said.
#[test]
fn a_pod_of_a_cluster_runs_without_its_token() {
    let token = "projected: {sources: [{serviceAccountToken: {path: token}}, {configMap: {name: kube-root-ca.crt}}]}";
    let pod = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec:\n  containers:\n  - name: main\n    image: x\n    \
             volumeMounts: [{{name: {name}, mountPath: /token}}, {{name: own, mountPath: /own}}]\n  \
             volumes: [{{name: {name}, {token}}}, {{name: own, emptyDir: {{}}}}]\n"
        )
    };
    let added = loaded(pod("kube-api-access-x7k2p"));
    assert_eq!(added.errors, []);
    assert!(added.warnings[0].to_string().contains("9:13: spec.volumes[0]: a cluster added it"), "{:?}", added.warnings);
    let spec = added.pods[0].spec();
    assert_eq!(spec.volumes.as_ref().unwrap().len(), 1);
    assert_eq!(spec.containers[0].volume_mounts.as_ref().unwrap()[0].mount_path, "/own");
    // One that the author asks for is refused.
    let asked = loaded(pod("token"));
    assert!(asked.errors[0].to_string().contains("serviceAccountToken: Forbidden"), "{:?}", asked.errors);
}

/// CVE-2023-2728 and its like: what is checked of a container must be checked of every list of containers.
#[rstest]
#[case::env("env: [{name: 'a=b', value: x}]", "env[0].name")]
#[case::env_source(
    "env: [{name: A, valueFrom: {secretKeyRef: {name: 'Not/Valid', key: k}}}]",
    "env[0].valueFrom.secretKeyRef.name"
)]
#[case::env_from("envFrom: [{secretRef: {name: 'Not/Valid'}}]", "envFrom[0].secretRef.name")]
#[case::unknown_volume("volumeMounts: [{name: none, mountPath: /x}]", "volumeMounts[0].name: Not found")]
#[case::mount_path("volumeMounts: [{name: v, mountPath: '/x:y'}]", "volumeMounts[0].mountPath")]
#[case::propagation(
    "volumeMounts: [{name: v, mountPath: /x, mountPropagation: Bidirectional}]",
    "volumeMounts[0].mountPropagation: Forbidden"
)]
#[case::sub_path("volumeMounts: [{name: v, mountPath: /x, subPath: ../y}]", "volumeMounts[0].subPath")]
#[case::device("volumeDevices: [{name: v, devicePath: /dev/x}]", "volumeDevices: Forbidden")]
#[case::escalation("securityContext: {privileged: true, allowPrivilegeEscalation: false}", "securityContext")]
#[case::seccomp(
    "securityContext: {seccompProfile: {type: Localhost, localhostProfile: ../x}}",
    "seccompProfile.localhostProfile"
)]
#[case::proc_mount("securityContext: {procMount: Everything}", "securityContext.procMount")]
#[case::image("imagePullPolicy: Sometimes", "imagePullPolicy")]
fn every_list_of_containers_is_checked(#[case] fields: &str, #[case] expected: &str) {
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        let others = if list == "containers" { "" } else { "  containers: [{name: main, image: x}]\n" };
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec:\n  volumes: [{{name: v, emptyDir: {{}}}}]\n{others}  \
             {list}:\n  - name: other\n    image: x\n    {fields}\n"
        );
        let loaded = loaded(text);
        let errors: Vec<String> = loaded.errors.iter().map(ToString::to_string).collect();
        let place = format!("spec.{list}[0].");
        assert!(errors.iter().any(|e| e.contains(&place) && e.contains(expected)), "{list}: {errors:?}");
        assert!(loaded.pods.is_empty());
    }
}

#[rstest]
#[case("system-node-critical", Some(2_000_001_000))]
#[case("system-cluster-critical", Some(2_000_000_000))]
fn the_two_classes_that_every_cluster_has_are_known(#[case] class: &str, #[case] priority: Option<i32>) {
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec: {{priorityClassName: {class}, containers: [{{name: web, image: web}}]}}\n"
    );
    let loaded = loaded(text);
    assert_eq!(loaded.errors, []);
    assert_eq!(loaded.pods[0].spec().priority, priority);
}

/// <https://kubernetes.io/docs/reference/kubernetes-api/config-and-storage-resources/volume/>: a driver's name is a DNS subdomain in any case.
#[rstest]
#[case::right("driver: Disk.example.com, nodePublishSecretRef: {name: key}", None)]
#[case::none("fsType: ext4", Some("driver: Required value"))]
#[case::characters("driver: a_b", Some("driver: Invalid value: \"a_b\": a lowercase RFC 1123 subdomain"))]
#[case::long(&format!("driver: {}", "a".repeat(64)), Some("driver: Too long: may not be more than 63 bytes"))]
#[case::secret("driver: d, nodePublishSecretRef: {name: ''}", Some("nodePublishSecretRef.name: Required value"))]
fn csi_volumes(#[case] source: &str, #[case] wrong: Option<&str>) {
    let errors = errors(pod(&format!("  volumes:\n  - name: v\n    csi: {{{source}}}\n")));
    let told = |wrong: &str| errors.iter().any(|error| error.contains(&format!("spec.volumes[0].csi.{wrong}")));
    assert!(wrong.map_or(errors.is_empty(), told), "{errors:?}");
}
