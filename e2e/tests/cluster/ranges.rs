//! The range of a node's pods, where the cluster gives it late, or another one than before. No controllers are here: the test gives it.

use e2e::{ControlPlane, NodeBox, is_true};
use serde_json::Value;

use super::{node, runs};

fn pod(name: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{nodeName: node, automountServiceAccountToken: false, \
         terminationGracePeriodSeconds: 1, containers: [{{name: main, image: localhost/nodeagent-demo:latest, imagePullPolicy: Never, args: [serve]}}]}}}}"
    )
}

fn gives(plane: &ControlPlane<'_>, range: &str) {
    let patch = format!(r#"{{"spec": {{"podCIDR": "{range}", "podCIDRs": ["{range}"]}}}}"#);
    plane.kubectl(&["patch", "node", "node", "--type=merge", "-p", &patch]).ok();
}

fn says(node: &NodeBox, words: &str) {
    e2e::eventually(&format!("the agent says {words:?}"), || {
        let output = node.agent_output();
        if output.contains(words) { Ok(()) } else { Err(output) }
    });
}

fn ready(node: &Value) -> &Value {
    let conditions = node["status"]["conditions"].as_array();
    conditions.and_then(|all| all.iter().find(|condition| condition["type"] == "Ready")).unwrap_or(&Value::Null)
}

fn address(plane: &ControlPlane<'_>, name: &str) -> String {
    plane.until("pod", name, "runs", |pod| {
        runs(pod)?;
        pod["status"]["podIP"].as_str().map(str::to_owned)
    })
}

#[test]
fn pods_wait_for_a_range_that_comes_late_and_have_another_one_when_none_has_the_old() {
    let node = node();
    let plane = ControlPlane::with(&node, &["--no-controllers"]);
    plane.kubectl(&["create", "serviceaccount", "default"]).ok();
    plane.node_kubeconfig("node");
    plane.starts(&node);
    plane.until("node", "node", "waits for its range", |node| {
        let ready = ready(node);
        let message = ready["message"].as_str()?;
        let waits = message.contains("NetworkReady=false reason:NetworkPluginNotReady") && message.contains("spec.podCIDR");
        (ready["status"] == "False" && ready["reason"] == "KubeletNotReady" && waits).then_some(())
    });
    plane.apply(&pod("web"));
    node.pod("web")
        .tells(&["FailedCreatePodSandBox", "the cluster has not given this node a range for its pods (spec.podCIDR) yet"]);
    gives(&plane, "10.77.0.0/24");
    let first = address(&plane, "web");
    assert!(first.starts_with("10.77.0."), "{first}");
    plane.until("node", "node", "is Ready", |node| is_true(node, "Ready").then_some(()));

    // Somebody deletes the Node, and the cluster gives the next one of the name another range.
    node.kill_agent();
    plane.kubectl(&["delete", "node", "node"]).ok();
    plane.starts(&node);
    plane.until("node", "node", "is Ready again", |node| is_true(node, "Ready").then_some(()));
    gives(&plane, "10.78.0.0/24");
    says(&node, "the cluster gives the pods of this node 10.78.0.0/24, but web have addresses of 10.77.0.0/24");
    assert_eq!(address(&plane, "web"), first);
    plane.kubectl(&["delete", "pod", "web"]).ok();
    says(&node, "pods get addresses of the range that the cluster gave this node ranges=\"10.78.0.0/24\"");
    plane.apply(&pod("next"));
    let next = address(&plane, "next");
    assert!(next.starts_with("10.78.0."), "{next}");
}
