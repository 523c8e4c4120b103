//! Disk pressure, in a program of its own: beside other tests the moments of eviction fall otherwise.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, unused_imports)]

use e2e::{NodeBox, Pod, eventually, pod};
use serde_json::Value;

const HEAD: &str = "apiVersion: nodeagent.dev/v1\nkind: NodeAgentConfiguration\n";

fn condition(node: &NodeBox, kind: &str) -> String {
    let object = node_object(node);
    let all = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = all.iter().find(|c| c["type"] == kind).unwrap_or_else(|| panic!("no condition {kind} in {all:?}"));
    format!("{} {}", found["status"].as_str().unwrap(), found["reason"].as_str().unwrap())
}

fn node_object(node: &NodeBox) -> Value {
    serde_json::from_str(&node.run(&["get", "node", "node", "-o", "json"]).ok()).unwrap()
}

fn rejected(pod: &Pod<'_>, reason: &str, message: &str) {
    pod.until(&format!("is rejected as {reason}"), |object| {
        let status = &object["status"];
        let said = status["message"].as_str().unwrap_or_default();
        let fine = status["phase"] == "Failed" && status["reason"] == reason && said.contains(message);
        if fine { Ok(()) } else { Err(format!("{status:#}")) }
    });
}

#[test]
fn disk_pressure_evicts_who_filled_the_disk_and_ends_with_it() {
    let node = NodeBox::builder()
        .disk(96)
        .config(&format!(
            "{HEAD}evictionMonitoringPeriod: 200ms\nevictionPressureTransitionPeriod: 1s\nevictionHard: {{nodefs.available: 30Mi}}\ncontainerLogMaxSize: 200Mi\n"
        ))
        .start();
    let calm = node.put(&pod("calm").runs("main", "sleep"));
    calm.becomes("Running");
    let filler = node.put(&pod("filler").runs("main", "spam 70000000"));
    filler.until("is evicted", |object| {
        let status = &object["status"];
        let message = status["message"].as_str().unwrap_or_default();
        let fine = status["reason"] == "Evicted"
            && message.starts_with("The node was low on resource: ephemeral-storage. Threshold quantity: 30Mi");
        if fine { Ok(()) } else { Err(format!("{status:#}")) }
    });
    assert_eq!(condition(&node, "DiskPressure"), "True KubeletHasDiskPressure");
    let late = node.put(&pod("late").runs("main", "sleep"));
    rejected(&late, "Evicted", "DiskPressure");
    calm.container("main").is_running();
    // With its manifest its logs go, and the pressure, and who waited comes in.
    node.remove("filler.yaml");
    filler.is_gone();
    late.becomes("Running");
    assert_eq!(condition(&node, "DiskPressure"), "False KubeletHasNoDiskPressure");
    assert_eq!(calm.container("main").restarts(), 0);
}
