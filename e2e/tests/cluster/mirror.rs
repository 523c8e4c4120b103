//! Pods of the node's files, as the API server shows them.

use e2e::{ControlPlane, eventually};

use super::{node, runs, uid};

#[test]
fn a_files_pod_is_shown_by_the_api_server_which_can_neither_end_nor_edit_it() {
    let node = node();
    let plane = ControlPlane::beside(&node);
    let manifest = "
apiVersion: v1
kind: Pod
metadata: {name: local, labels: {app: local}}
spec:
  terminationGracePeriodSeconds: 2
  containers:
  - {name: main, image: localhost/nodeagent-demo:latest, imagePullPolicy: Never, args: [serve], envFrom: [{configMapRef: {name: here}}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: here}
data: {GREETING: of the file}
";
    node.apply("local.yaml", manifest);
    plane.joins(&node);
    let uid = uid(&plane, "local-node");
    let shown = plane.get("pod", "local-node").expect("it is there");
    assert_eq!(shown["status"]["podIP"], node.pod("local").ip().as_str());
    assert_eq!(shown["metadata"]["labels"]["app"], "local");
    let id = node.pod("local").container("main").id();
    assert_eq!(plane.kubectl(&["exec", "local-node", "--", "/demo", "echo", "here"]).ok().trim(), "here");

    // What happened to it is told of the mirror.
    eventually("kubectl finds its events", || {
        let page = plane.kubectl(&["describe", "pod", "local-node"]).ok();
        let all =
            ["already present on machine", "Container created", "Container started"].iter().all(|words| page.contains(words));
        if all { Ok(()) } else { Err(page) }
    });

    // What somebody writes over its state is put back.
    let patch = r#"{"status": {"phase": "Pending", "containerStatuses": null}}"#;
    plane.kubectl(&["patch", "pod", "local-node", "--subresource=status", "--type=merge", "-p", patch]).ok();
    plane.until("pod", "local-node", "is as the node says", |pod| {
        runs(pod)?;
        pod["status"]["containerStatuses"][0]["state"]["running"].is_object().then_some(())
    });

    // Deleted there, it is there again, and was never touched here.
    plane.kubectl(&["delete", "pod", "local-node", "--wait=false"]).ok();
    plane.until("pod", "local-node", "is another", |pod| {
        runs(pod)?;
        (pod["metadata"]["uid"] != uid.as_str()).then_some(())
    });
    assert_eq!(node.pod("local").container("main").id(), id);

    // A new agent finds it as it is; an edit of the file is seen; without the file it goes.
    node.kill_agent();
    plane.joins(&node);
    node.apply("local.yaml", &manifest.replace("app: local", "app: edited"));
    plane.until("pod", "local-node", "is edited", |pod| {
        runs(pod)?;
        (pod["metadata"]["labels"]["app"] == "edited").then_some(())
    });
    assert_eq!(node.pod("local").container("main").id(), id);
    eventually("only one mirror is there", || {
        let pods = plane.kubectl(&["get", "pods", "-o", "name"]).ok();
        if pods.trim() == "pod/local-node" { Ok(()) } else { Err(pods) }
    });
    node.remove("local.yaml");
    plane.is_gone("pod", "local-node");
}
