//! What pods get of the cluster besides ConfigMaps and Secrets: volumes, runtime classes, the names and addresses of Services.

use e2e::{ControlPlane, eventually, is_true};

use super::{node, runs};

const STATEFUL: &str = "
apiVersion: v1
kind: PersistentVolume
metadata: {name: shelf}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  storageClassName: shelf
  hostPath: {path: SHELF, type: DirectoryOrCreate}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - name: main
        image: localhost/nodeagent-demo:latest
        imagePullPolicy: Never
        args: [serve]
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], storageClassName: shelf, resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: Service
metadata: {name: front}
spec: {selector: {app: db}, ports: [{port: 80, targetPort: 8080}]}
";

#[test]
fn a_stateful_set_keeps_its_volume_and_knows_the_services() {
    let node = node();
    let plane = ControlPlane::beside(&node);
    plane.joins(&node);
    let shelf = node.folder().join("shelf");
    plane.apply(&STATEFUL.replace("SHELF", shelf.to_str().unwrap()));
    plane.until("pod", "db-0", "runs", runs);
    let main = node.pod("db-0").container("main");
    main.demo("write /data/row one");
    assert_eq!(std::fs::read_to_string(shelf.join("row")).unwrap().trim(), "one");
    let environment = main.demo("env");
    assert!(
        environment.contains("FRONT_SERVICE_PORT=80") && environment.contains("KUBERNETES_SERVICE_HOST=10.96.0.1"),
        "{environment}"
    );
    let uid = node.pod("db-0").uid();
    plane.kubectl(&["delete", "pod", "db-0", "--wait=false"]).ok();
    plane.until("pod", "db-0", "is another", |pod| {
        runs(pod)?;
        (pod["metadata"]["uid"] != uid.as_str()).then_some(())
    });
    assert_eq!(node.pod("db-0").container("main").demo("read /data/row").trim(), "one");
    // A claim without a volume: the pod says what it waits for, and runs as soon as it has one.
    let pending = "
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: later}
spec: {accessModes: [ReadWriteOnce], storageClassName: late, resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: waiter}
spec:
  nodeName: node
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: localhost/nodeagent-demo:latest, imagePullPolicy: Never, args: [sleep], volumeMounts: [{name: v, mountPath: /v, readOnly: true}]}
  volumes: [{name: v, persistentVolumeClaim: {claimName: later}}]
";
    plane.apply(pending);
    node.pod("waiter").tells(&["FailedMount", "PVC is not bound"]);
    plane.apply(&format!(
        "{{apiVersion: v1, kind: PersistentVolume, metadata: {{name: late}}, spec: {{capacity: {{storage: 1Gi}}, accessModes: [ReadWriteOnce], \
         storageClassName: late, hostPath: {{path: {}}}}}}}",
        shelf.display()
    ));
    plane.until("pod", "waiter", "runs", runs);
    assert_eq!(node.pod("waiter").container("main").demo("read /v/row").trim(), "one");
}

#[test]
fn a_runtime_class_is_a_handler_of_ours_or_none_and_a_daemon_set_is_everywhere() {
    let node = node();
    let plane = ControlPlane::beside(&node);
    plane.joins(&node);
    let classes = "
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: ours}
handler: nodeagent
overhead: {podFixed: {cpu: 10m, memory: 16Mi}}
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: theirs}
handler: kata
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: everywhere}
spec:
  selector: {matchLabels: {app: everywhere}}
  template:
    metadata: {labels: {app: everywhere}}
    spec:
      terminationGracePeriodSeconds: 1
      runtimeClassName: ours
      containers: [{name: main, image: localhost/nodeagent-demo:latest, imagePullPolicy: Never, args: [serve]}]
";
    plane.apply(classes);
    plane.until("daemonset", "everywhere", "is ready", |set| (set["status"]["numberReady"] == 1).then_some(()));
    plane.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: vm}, spec: {runtimeClassName: theirs, terminationGracePeriodSeconds: 1, \
         containers: [{name: main, image: localhost/nodeagent-demo:latest, imagePullPolicy: Never, args: [sleep]}]}}",
    );
    node.pod("vm").tells(&["FailedCreatePodSandBox", "no runtime for \"kata\" is configured"]);
    // Told there too, by the kubelet's reasons.
    eventually("the API server has the events", || {
        let reasons = plane.kubectl(&["get", "events", "-o", "jsonpath={.items[*].reason}"]).ok();
        let all = ["FailedCreatePodSandBox", "Started", "Scheduled"].iter().all(|reason| reasons.contains(reason));
        if all { Ok(()) } else { Err(reasons) }
    });
    plane.kubectl(&["delete", "pod", "vm", "--grace-period=0", "--force"]).ok();
    node.pod("vm").is_gone();
    plane.kubectl(&["delete", "daemonset", "everywhere"]).ok();
    eventually("all pods are gone", || {
        let pods = plane.kubectl(&["get", "pods", "-o", "name"]).ok();
        if pods.trim().is_empty() { Ok(()) } else { Err(pods) }
    });
}

#[test]
fn the_node_object_has_what_a_kubelets_has() {
    let configuration = "apiVersion: nodeagent.dev/v1\nkind: NodeAgentConfiguration\nserverTLSBootstrap: true\n\
        providerID: cloud:///zone/machine\nnodeLabels: {disk: fast}\nclusterDNS: [10.96.0.10]\nclusterDomain: cluster.test\n\
        registerWithTaints: [{key: fresh, value: \"yes\", effect: NoSchedule}]\n";
    let node = super::builder().config(configuration).start();
    let plane = ControlPlane::beside(&node);
    plane.node_kubeconfig("node");
    plane.starts(&node);
    let object = plane.until("node", "node", "is Ready", |node| is_true(node, "Ready").then(|| node.clone()));
    plane.approves(&node);
    assert_eq!(object["spec"]["providerID"], "cloud:///zone/machine");
    assert!(object["spec"]["taints"].to_string().contains("\"fresh\""), "{}", object["spec"]);
    for (label, value) in
        [("kubernetes.io/hostname", "node"), ("kubernetes.io/os", "linux"), ("beta.kubernetes.io/os", "linux"), ("disk", "fast")]
    {
        assert_eq!(object["metadata"]["labels"][label], value);
    }
    let status = &object["status"];
    assert_eq!(status["addresses"].as_array().unwrap().len(), 2, "{}", status["addresses"]);
    assert!(status["declaredFeatures"].to_string().contains("ExtendWebSocketsToKubelet"));
    assert!(status["images"].to_string().contains("localhost/nodeagent-demo:latest"));
    assert_eq!(status["features"]["supplementalGroupsPolicy"], true);
    assert_eq!(status["daemonEndpoints"]["kubeletEndpoint"]["Port"], 10250);
    assert!(status["nodeInfo"]["kubeletVersion"].as_str().unwrap().starts_with("v1."));
    for resource in ["cpu", "memory", "pods", "ephemeral-storage"] {
        assert!(status["capacity"][resource].is_string() && status["allocatable"][resource].is_string(), "{resource}");
    }
    let conditions: Vec<_> = status["conditions"].as_array().unwrap().iter().map(|c| c["reason"].as_str().unwrap()).collect();
    for reason in ["KubeletHasSufficientMemory", "KubeletHasNoDiskPressure", "KubeletHasSufficientPID", "KubeletReady"] {
        assert!(conditions.contains(&reason), "{conditions:?}");
    }
    assert!(
        plane
            .kubectl(&["-n", "kube-node-lease", "get", "lease", "node", "-o", "jsonpath={.spec.holderIdentity}"])
            .ok()
            .contains("node")
    );
    // The cluster's resolver and domain.
    plane.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: asks}, spec: {nodeName: node, terminationGracePeriodSeconds: 1, \
         containers: [{name: main, image: localhost/nodeagent-demo:latest, imagePullPolicy: Never, args: [sleep]}]}}",
    );
    plane.until("pod", "asks", "runs", runs);
    let resolver = node.pod("asks").container("main").demo("read /etc/resolv.conf");
    assert!(resolver.contains("nameserver 10.96.0.10") && resolver.contains("default.svc.cluster.test"), "{resolver}");
}

const TRUSTS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: localhost/nodeagent-demo:latest, imagePullPolicy: Never, args: [sleep], volumeMounts: [{name: v, mountPath: /v}]}
  volumes:
  - name: v
    projected:
      sources:
      - clusterTrustBundle: {name: all, path: named.pem}
      - clusterTrustBundle: {name: none, path: none.pem, optional: true}
      - clusterTrustBundle: {signerName: example.com/signer, labelSelector: {matchLabels: {live: 'yes'}}, path: signed.pem}
";

#[test]
fn trust_bundles_of_a_name_and_of_a_signer_are_files_that_follow_them() {
    let node = node();
    let plane = ControlPlane::beside(&node);
    plane.joins(&node);
    let certificate = || {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().pem().replace("\r\n", "\n")
    };
    let bundle = |name: &str, more: &str, text: &str| {
        let text = text.replace('\n', "\n    ");
        let (metadata, spec) = more.split_once('|').unwrap();
        plane.apply(&format!(
            "apiVersion: certificates.k8s.io/v1\nkind: ClusterTrustBundle\nmetadata: {{name: '{name}'{metadata}}}\nspec:\n{spec}  trustBundle: |\n    {text}\n"
        ));
    };
    plane.apply(TRUSTS);
    let client = node.pod("client");
    client.tells(&["FailedMount", "clustertrustbundle.certificates.k8s.io \"all\" not found"]);
    let [one, two, three] = [certificate(), certificate(), certificate()];
    bundle("all", "|", &format!("{one}{two}"));
    client.tells(&["FailedMount", "combination of signerName and labelSelector matched zero ClusterTrustBundles"]);
    let signed = "|  signerName: example.com/signer\n";
    bundle("example.com:signer:dead", &format!(", labels: {{live: 'no'}}{signed}"), &two);
    bundle("example.com:signer:live", &format!(", labels: {{live: 'yes'}}{signed}"), &three);
    plane.until("pod", "client", "runs", runs);
    let read = |file: &str| client.container("main").demo(&format!("read /v/{file}"));
    let named = read("named.pem");
    assert_eq!(named.matches("BEGIN").count(), 2, "{named}");
    assert!(named.contains(one.trim()) && named.contains(two.trim()), "{named}");
    assert_eq!((read("signed.pem").trim(), read("none.pem").trim()), (three.trim(), ""));
    // They follow.
    bundle("all", "|", &three);
    eventually("the file has the new anchors", || {
        let named = read("named.pem");
        if named.trim() == three.trim() { Ok(()) } else { Err(named) }
    });
    plane.kubectl(&["label", "clustertrustbundle", "example.com:signer:dead", "--overwrite", "live=yes"]).ok();
    eventually("one more bundle is the signer's", || {
        let signed = read("signed.pem");
        if signed.matches("BEGIN").count() == 2 { Ok(()) } else { Err(signed) }
    });
}
