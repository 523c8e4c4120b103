//! Disk pressure, in a program of its own: a small disk is filled, and who filled it goes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use e2e::{Manifest, NodeBox, SHARED, pod};
use rstest::rstest;

const CONFIGURATION: &str = "apiVersion: nodeagent.dev/v1
kind: NodeAgentConfiguration
evictionMonitoringPeriod: 200ms
evictionPressureTransitionPeriod: 10s
evictionHard: {nodefs.available: 30Mi}
containerLogMaxSize: 200Mi
";

const FILL: &str = "command: [sh, -c, 'head -c 70000000 /dev/zero > /shared/x; sleep 1000']";

/// Fills the disk with its log, or its volume.
#[rstest]
#[case::log(pod("filler").runs("main", "spam 70000000"))]
#[case::volume(pod("filler").shares_a_folder().image("main", "busybox:1", &format!("{FILL}\n{SHARED}")))]
fn disk_pressure_evicts_who_filled_the_disk_and_ends_with_it(#[case] filler: Manifest) {
    let node = NodeBox::builder().with_registry().disk(96).config(CONFIGURATION).start();
    let calm = node.put(&pod("calm").runs("main", "sleep"));
    calm.becomes("Running");
    let filler = node.put(&filler);
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
    // What a pod that is over left goes before another pod does; with it the pressure, and who waited comes in.
    late.becomes("Running");
    assert_eq!(node.condition("DiskPressure"), "False KubeletHasNoDiskPressure");
    calm.container("main").is_running();
    assert_eq!(calm.container("main").restarts(), 0);
}
