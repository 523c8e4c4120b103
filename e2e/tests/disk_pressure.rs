//! Disk pressure, in a program of its own: a small disk is filled, and who filled it goes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use e2e::{NodeBox, pod};

const CONFIGURATION: &str = "apiVersion: nodeagent.dev/v1
kind: NodeAgentConfiguration
evictionMonitoringPeriod: 200ms
evictionPressureTransitionPeriod: 10s
evictionHard: {nodefs.available: 30Mi}
containerLogMaxSize: 200Mi
";

#[test]
fn disk_pressure_evicts_who_filled_the_disk_and_ends_with_it() {
    let node = NodeBox::builder().disk(96).config(CONFIGURATION).start();
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
    assert_eq!(node.condition("DiskPressure"), "True KubeletHasDiskPressure");
    let late = node.put(&pod("late").runs("main", "sleep"));
    late.is_rejected("Evicted", "DiskPressure");
    // The logs of a pod that is over go before another pod does; with them the pressure, and who waited comes in.
    late.becomes("Running");
    assert_eq!(node.condition("DiskPressure"), "False KubeletHasNoDiskPressure");
    calm.container("main").is_running();
    assert_eq!(calm.container("main").restarts(), 0);
}
