//! Where a pod may be: node labels, and gates that its author removes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use e2e::{NodeBox, assert_eventually, pod};

const LABELS: &str = "apiVersion: nodeagent.dev/v1
kind: NodeAgentConfiguration
nodeLabels:
  disk: ssd
  example.com/zone: north
";

#[test]
fn a_pod_for_another_node_is_turned_away() {
    let node = NodeBox::builder().config(LABELS).start();
    let here = node.put(&pod("here").spec("nodeSelector: {disk: ssd, kubernetes.io/os: linux}").runs("main", "sleep"));
    here.becomes("Running");
    let required = "affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: \
                    [{key: example.com/zone, operator: NotIn, values: [north]}]}]}}}";
    for (name, spec) in [("selected", "nodeSelector: {disk: hdd}"), ("required", required)] {
        let elsewhere = node.put(&pod(name).spec(spec).runs("main", "sleep"));
        elsewhere.becomes("Failed");
        let status = &elsewhere.get().unwrap()["status"];
        assert_eq!(status["reason"], "NodeAffinity");
        node.tells(&["NodeAffinity", "node(s) didn't match Pod's node affinity/selector"]);
        // An edit that names this node lets it in.
        node.put(&pod(name).spec("nodeSelector: {disk: ssd}").runs("main", "sleep")).becomes("Running");
    }
}

#[test]
fn a_gated_pod_waits_until_its_gates_are_gone() {
    let node = NodeBox::start();
    let gated = node.put(&pod("gated").spec("schedulingGates: [{name: example.com/wait}]").runs("main", "sleep"));
    assert_eventually!(gated.get().is_some_and(|p| p["status"]["phase"] == "Pending"), "it is told");
    let shown = node.run(&["get", "pod", "gated"]).ok();
    assert!(shown.contains("SchedulingGated"), "{shown}");
    let explained = node.run(&["explain", "gated"]).ok();
    assert!(explained.contains("example.com/wait"), "{explained}");
    assert_eq!(gated.get().unwrap()["status"]["containerStatuses"][0]["state"]["running"], serde_json::Value::Null);
    node.put(&pod("gated").runs("main", "sleep")).becomes("Running");
}
