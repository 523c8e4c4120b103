//! Before the agent acts: `diff`, `validate`, and folders that kustomize builds.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;

use e2e::{NodeBox, Output, binary, eventually, run};

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, labels: {app: web}}\nspec:\n  terminationGracePeriodSeconds: 1\n  \
                   containers:\n  - name: app\n    image: localhost/nodeagent-demo:latest\n    imagePullPolicy: Never\n    args: [sleep]\n    \
                   envFrom: [{configMapRef: {name: settings, optional: true}}]\n";
const MAP: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {color: blue}\n";
const SECRET: &str = "apiVersion: v1\nkind: Secret\nmetadata: {name: key}\nstringData: {password: tiger}\n";
const DEPLOYMENT: &str = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: api}\nspec:\n  selector: {matchLabels: {app: api}}\n  \
                          template:\n    metadata: {labels: {app: api}}\n    spec:\n      terminationGracePeriodSeconds: 1\n      containers:\n      - \
                          name: app\n        image: localhost/nodeagent-demo:latest\n        imagePullPolicy: Never\n        args: [sleep]\n";

fn diff(node: &NodeBox, yaml: &str) -> Output {
    node.feed(&["diff", "-f", "-"], yaml.as_bytes())
}

#[track_caller]
fn changes(node: &NodeBox, yaml: &str, lines: &[&str]) {
    let output = diff(node, yaml);
    assert_eq!(output.code, 1, "{output}");
    for line in lines {
        assert!(output.stdout.lines().any(|l| l == *line), "{line:?} is not in {output}");
    }
}

#[test]
fn diff_tells_what_would_follow_field_by_field() {
    let node = NodeBox::start();
    let all = [MAP, SECRET, POD, DEPLOYMENT].join("---\n");
    changes(
        &node,
        &all,
        &[
            "configmap default/settings would be created",
            "secret default/key would be created",
            "pod default/web would be created",
            "deployment default/api would be created",
        ],
    );
    node.apply("all.yaml", &all);
    node.pod("web").is_ready();
    eventually("the deployment is there", || node.run(&["get", "deployment", "api"]).result());
    let same = diff(&node, &all);
    assert_eq!((same.code, same.stdout.as_str()), (0, ""), "{same}");

    changes(
        &node,
        &POD.replace("app: web", "app: shop"),
        &["pod default/web would be changed in place: nothing restarts", "  ~ metadata.labels.app: \"web\" → \"shop\""],
    );
    changes(
        &node,
        &POD.replace("demo:latest", "demo:other"),
        &[
            "pod default/web would be changed; containers that restart: app",
            "  ~ spec.containers[0].image: \"localhost/nodeagent-demo:latest\" → \"localhost/nodeagent-demo:other\"",
        ],
    );
    changes(
        &node,
        &POD.replace("args: [sleep]", "args: [sleep, \"5\"]"),
        &[
            "pod default/web would be recreated: all of its containers end and new ones start",
            "  + spec.containers[0].args[1]: \"5\"",
        ],
    );
    changes(
        &node,
        &MAP.replace("blue", "red"),
        &[
            "configmap default/settings would be changed; volumes follow at once, environments when a container restarts: pods web",
            "  ~ data.color: \"blue\" → \"red\"",
        ],
    );
    let hidden = diff(&node, &SECRET.replace("tiger", "scott"));
    assert!(
        hidden.stdout.contains("~ data.password: \"<hidden>\" → \"<hidden>\"") && !hidden.stdout.contains("c2NvdHQ"),
        "{hidden}"
    );
    changes(
        &node,
        &DEPLOYMENT.replace("spec:\n  selector", "spec:\n  replicas: 2\n  selector"),
        &["deployment default/api would be changed in place: no pod restarts", "  ~ spec.replicas: 1 → 2"],
    );
    changes(
        &node,
        &DEPLOYMENT.replace("args: [sleep]", "args: [serve]"),
        &[
            "deployment default/api would be changed: its pods are replaced one after the other",
            "  ~ spec.template.spec.containers[0].args[0]: \"sleep\" → \"serve\"",
        ],
    );
    changes(
        &node,
        &DEPLOYMENT.replace("app: api", "app: other"),
        &["deployment default/api would be recreated: all of its pods end and new ones start"],
    );
    let wrong = diff(&node, &POD.replace("image:", "imagee:"));
    assert_eq!(wrong.code, 2, "{wrong}");
    assert!(wrong.stderr.contains("-:8:5: spec.containers[0].imagee: unknown field, did you mean \"image\"?"), "{wrong}");
    // Nothing of all this was done.
    assert_eq!(diff(&node, &all).code, 0);
}

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

#[test]
fn a_folder_with_a_kustomization_is_built_and_followed() {
    let node = NodeBox::builder().without_agent().start();
    assert!(node.inside("kubectl", &["version", "--client"]).code == 0, "kubectl is missing: install it");
    let app = node.manifests().join("app");
    write(&app.join("base/kustomization.yaml"), "resources: [pod.yaml]\n");
    write(&app.join("base/pod.yaml"), POD);
    let overlay = "resources: [../base]\nnamePrefix: prod-\nconfigMapGenerator:\n- name: settings\n  files: [colors.txt]\n";
    write(&app.join("prod/kustomization.yaml"), overlay);
    write(&app.join("prod/colors.txt"), "blue\n");
    let valid = node.run(&["validate", node.manifests().to_str().unwrap()]).ok();
    assert!(valid.contains("pods"), "{valid}");
    let mut without = node.command("env");
    without.arg("PATH=/nowhere").arg(binary("nodeagent")).arg("validate").arg(app.join("prod"));
    assert!(run(&mut without).fails_with(1).contains("neither kustomize nor kubectl is installed"));
    node.start_agent();
    let pod = node.pod("prod-web");
    pod.is_ready();
    assert!(!node.run(&["get", "pods"]).ok().contains("\nweb "), "what an overlay takes in is no manifest of its own");

    // A file that a generator reads, and one of the base.
    let before = pod.get().unwrap()["spec"]["containers"][0]["envFrom"].clone();
    write(&app.join("prod/colors.txt"), "red\n");
    eventually("the pod refers to the other ConfigMap", || {
        let now = pod.get().ok_or("it is gone")?["spec"]["containers"][0]["envFrom"].clone();
        if now == before { Err(now.to_string()) } else { Ok(()) }
    });
    write(&app.join("base/pod.yaml"), &POD.replace("app: web", "app: shop"));
    eventually("the pod has the other label", || {
        let label = pod.get().ok_or("it is gone")?["metadata"]["labels"]["app"].clone();
        if label == "shop" { Ok(()) } else { Err(label.to_string()) }
    });

    // What is wrong is told; what was right runs on.
    write(&app.join("prod/kustomization.yaml"), "resources: [../nowhere]\n");
    node.tells(&["InvalidManifest", "app/prod", "nowhere"]);
    pod.is_ready();
    write(&app.join("prod/kustomization.yaml"), overlay);
    node.tells(&["ManifestMended"]);
    std::fs::remove_dir_all(app).unwrap();
    pod.is_gone();
}
