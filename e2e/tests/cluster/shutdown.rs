//! The machine goes down with the API server's pods on it.

use e2e::{Bus, ControlPlane, Logind, is_true};
use serde_json::Value;

use super::{CONFIGURATION, runs};

fn pod(name: &str, priority: i32) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{nodeName: node, automountServiceAccountToken: false, \
         priorityClassName: {}, terminationGracePeriodSeconds: 600, containers: [{{name: main, image: localhost/nodeagent-demo:latest, \
         imagePullPolicy: Never, args: [sleep]}}]}}}}\n",
        if priority > 0 { "high" } else { "''" }
    )
}

const HIGH: &str = "{apiVersion: scheduling.k8s.io/v1, kind: PriorityClass, metadata: {name: high}, value: 1000}\n";

fn condition<'a>(object: &'a Value, kind: &str) -> &'a Value {
    let all = object["status"]["conditions"].as_array();
    all.and_then(|all| all.iter().find(|condition| condition["type"] == kind)).unwrap_or(&Value::Null)
}

#[test]
fn pods_of_the_api_server_end_by_priority_and_are_not_begun_again_not_even_without_it() {
    let folder = tempfile::tempdir().unwrap();
    let bus = Bus::start(folder.path());
    let logind = Logind::on(&bus, &folder.path().join("systemd"));
    let periods = "shutdownGracePeriodByPodPriority: [{priority: 0, shutdownGracePeriodSeconds: 3}, {priority: 1000, shutdownGracePeriodSeconds: 1}]";
    let node = super::builder().config(&format!("{CONFIGURATION}{periods}\n")).environment(bus.variable()).start();
    let plane = ControlPlane::beside(&node);
    plane.joins(&node);
    logind.has_given(1);
    plane.apply(&[HIGH, &pod("low", 0), &pod("high", 1000)].concat());
    for name in ["low", "high"] {
        plane.until("pod", name, "runs", runs);
    }
    logind.says(true);
    plane.until("node", "node", "isn't ready", |node| {
        let ready = condition(node, "Ready");
        (ready["status"] == "False" && ready["reason"] == "KubeletNotReady" && ready["message"] == "node is shutting down")
            .then_some(())
    });
    let ended = |name: &str| {
        plane.until("pod", name, "has ended with the node", |pod| {
            let status = &pod["status"];
            let target = condition(pod, "DisruptionTarget");
            let fine = status["phase"] == "Failed"
                && status["reason"] == "Terminated"
                && target["status"] == "True"
                && target["reason"] == "TerminationByKubelet";
            let ended = status["containerStatuses"][0]["state"]["terminated"]["finishedAt"].as_str()?;
            fine.then(|| ended.to_owned())
        })
    };
    let (low, high) = (ended("low"), ended("high"));
    assert!(low <= high, "low ended at {low}, high at {high}");
    e2e::eventually("the lock is released", || match logind.locks() {
        (1, 0) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let checkpoints = node.root().join("var/lib/nodeagent/checkpoints/pods");
    e2e::eventually("nothing is kept of pods that are over", || {
        let left = std::fs::read_dir(&checkpoints).into_iter().flatten().count();
        if left == 0 { Ok(()) } else { Err(format!("{left} are left")) }
    });

    // After a reboot without the API server nobody begins what it knows to be over.
    plane.script(&["stop", "kube-apiserver"]).ok();
    node.kill_agent();
    node.reboot();
    logind.knows(false);
    plane.starts(&node);
    logind.has_given(2);
    let file = node.put(&e2e::pod("file").runs("main", "sleep"));
    file.is_ready();
    assert!(node.pod("low").get().is_none() && node.pod("high").get().is_none());
    plane.script(&["start", "kube-apiserver"]).ok();
    plane.until("node", "node", "is ready again", |node| is_true(node, "Ready").then_some(()));
    assert_eq!(plane.get("pod", "low").unwrap()["status"]["reason"], "Terminated");
}
