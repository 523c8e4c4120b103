//! The machine goes down, which logind tells by the system bus: a bus and a logind of the tests' own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::process::Command;

use e2e::{Bus, Logind, Manifest, NodeBox, assert_eventually, eventually, pod};
use serde_json::Value;

const BY_PRIORITY: &str = "apiVersion: nodeagent.dev/v1
kind: NodeAgentConfiguration
shutdownGracePeriodByPodPriority:
- {priority: 1000, shutdownGracePeriodSeconds: 20}
- {priority: 0, shutdownGracePeriodSeconds: 40}
";

/// A node that finds this bus, and whose /etc/systemd is the folder of that name in its own.
fn node_on(bus: &Bus, folder: &Path, configuration: &str) -> NodeBox {
    let node = NodeBox::builder().without_agent().environment(bus.variable()).config(configuration).start();
    node.keeps_systemd_in(&folder.join("systemd"));
    node.start_agent();
    node
}

/// A node whose pods end by priority, with what it needs for that: logind has given it its lock. The node goes first, the folder last.
fn delayed() -> (tempfile::TempDir, Bus, Logind, NodeBox) {
    let folder = tempfile::tempdir().unwrap();
    let bus = Bus::start(folder.path());
    let logind = Logind::on(&bus, &folder.path().join("systemd"));
    let node = node_on(&bus, folder.path(), BY_PRIORITY);
    logind.has_given(1);
    (folder, bus, logind, node)
}

/// A pod whose container ends when its /tmp/go is there.
fn held(name: &str) -> Manifest {
    let hook = "lifecycle: {preStop: {exec: {command: [/demo, await, /tmp/go]}}}";
    pod(name).spec("terminationGracePeriodSeconds: 600").runs_with("main", "sleep", hook)
}

fn condition(object: &Value, kind: &str) -> Option<Value> {
    object["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == kind).cloned()
}

/// Waits until a pod has been told to end with the node.
fn is_disrupted(pod: &e2e::Pod<'_>) {
    let target = pod.until("is a disruption's target", |object| {
        condition(object, "DisruptionTarget").ok_or_else(|| object["status"].to_string())
    });
    assert_eq!(
        (target["status"].as_str(), target["reason"].as_str(), target["message"].as_str()),
        (Some("True"), Some("TerminationByKubelet"), Some("Pod was terminated in response to imminent node shutdown."))
    );
}

fn ended_with_the_node(pod: &e2e::Pod<'_>) {
    let status = &pod.get().unwrap()["status"];
    assert_eq!(
        (&status["phase"], &status["reason"], &status["message"]),
        (&"Failed".into(), &"Terminated".into(), &"Pod was terminated in response to imminent node shutdown.".into())
    );
    assert!(status["containerStatuses"][0]["state"]["terminated"].is_object(), "{status}");
}

#[test]
fn as_the_machine_goes_down_pods_end_in_the_order_of_their_priorities() {
    let (_folder, bus, logind, node) = delayed();
    assert_eventually!(logind.waits() == 60, "logind waits long enough");
    let check = run_check(&node, &bus.variable());
    assert!(check.contains("shutdown") && check.contains("logind waits for pods, 60s at most"), "{check}");

    let low = node.put(&held("low"));
    let high = node.put(&pod("high").spec("priority: 1000").runs("main", "sleep"));
    low.is_ready();
    high.is_ready();
    let followed = high.container("main").follow(&["--timestamps"]);
    logind.says(true);
    is_disrupted(&low);
    let ready = eventually("the node isn't ready", || {
        let ready = condition(&node.object(), "Ready").unwrap();
        if ready["status"] == "False" { Ok(ready) } else { Err(ready.to_string()) }
    });
    assert_eq!((&ready["reason"], &ready["message"]), (&"KubeletNotReady".into(), &"node is shutting down".into()));
    let late = node.put(&pod("late").spec("priority: 2000000000").runs("main", "sleep"));
    late.is_rejected("NodeShutdown", "Pod was rejected as the node is shutting down.");
    // As long as one of low priority ends, the others run, and the machine waits.
    assert_eq!(high.get().unwrap()["status"]["phase"], "Running");
    assert!(!followed.output().contains("bye"));
    assert_eq!(logind.locks(), (1, 1));

    low.container("main").demo("write /tmp/go now");
    assert_eventually!(logind.locks() == (1, 0), "the lock is released");
    ended_with_the_node(&low);
    ended_with_the_node(&high);
    let low_ended = low.container("main").ended()["finishedAt"].as_str().unwrap().to_owned();
    followed.says("SIGTERM: bye");
    let bye = followed.output().lines().find(|line| line.contains("bye")).unwrap().to_owned();
    assert!(low_ended[..19] <= bye[..19], "low ended at {low_ended}, and high was told at {bye}");
    assert!(node.events().contains(&"NodeShutdown Shutdown manager detected shutdown event".to_owned()));

    // With the machine, pods of files come back.
    node.kill_agent();
    node.reboot();
    logind.knows(false);
    node.start_agent();
    for pod in [&low, &high, &late] {
        pod.is_ready();
    }
}

fn run_check(node: &NodeBox, bus: &str) -> String {
    let mut command = node.command("env");
    command.arg(bus).arg(e2e::binary("nodeagent"));
    e2e::run(command.arg("--config").arg(node.configuration()).arg("check")).all()
}

#[test]
fn a_shutdown_that_is_cancelled_leaves_the_node_as_it_was() {
    let (_folder, _bus, logind, node) = delayed();
    let low = node.put(&held("low"));
    let high = node.put(&pod("high").spec("priority: 1000").runs("main", "sleep"));
    node.apply("web.yaml", DEPLOYMENT);
    low.is_ready();
    high.is_ready();
    let replica = eventually("the Deployment has a pod", || one_replica(&node));
    node.pod(&replica).is_ready();
    let (id, uid) = (high.container("main").id(), node.pod(&replica).uid());
    logind.says(true);
    is_disrupted(&low);
    // Of what ended with the node, a workload makes no other.
    node.pod(&replica).until("has ended", |object| {
        if object["status"]["reason"] == "Terminated" { Ok(()) } else { Err(object["status"].to_string()) }
    });
    let late = node.put(&pod("late").runs("main", "sleep"));
    late.is_rejected("NodeShutdown", "shutting down");

    logind.says(false);
    logind.has_given(2);
    assert_eventually!(node.condition("Ready") == "True KubeletReady", "the node is ready again");
    late.is_ready();
    low.container("main").demo("write /tmp/go now");
    low.is_ready();
    node.pod(&replica).is_ready();
    assert_eq!(one_replica(&node).unwrap(), replica);
    assert_eq!(node.pod(&replica).uid(), uid);
    // Its turn had not come.
    assert_eq!((high.container("main").id(), high.container("main").restarts()), (id, 0));
    assert_eq!(logind.locks(), (2, 1));
    logind.says(true);
    assert_eventually!(
        logind.locks() == (2, 1) && condition(&low.get().unwrap(), "DisruptionTarget").is_some(),
        "and the next one counts"
    );
}

const DEPLOYMENT: &str = "apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 5
      containers: [{name: main, image: 'localhost/nodeagent-demo:latest', args: [sleep]}]
";

fn one_replica(node: &NodeBox) -> Result<String, String> {
    let list = node.run(&["get", "pods", "-o", "name"]).ok();
    let names: Vec<&str> = list.lines().map(|line| line.trim_start_matches("pod/")).filter(|n| n.starts_with("web-")).collect();
    if let [name] = names[..] { Ok(name.to_owned()) } else { Err(list) }
}

#[test]
fn a_logind_or_a_bus_that_comes_back_is_asked_again() {
    let folder = tempfile::tempdir().unwrap();
    let settings = folder.path().join("systemd");
    let bus = Bus::start(folder.path());
    let first = Logind::on(&bus, &settings);
    let node =
        node_on(&bus, folder.path(), "apiVersion: nodeagent.dev/v1\nkind: NodeAgentConfiguration\nshutdownGracePeriod: 3s\n");
    first.has_given(1);
    assert!(!settings.join("logind.conf.d").exists(), "it waits long enough as it is");
    first.leaves();
    let second = Logind::on(&bus, &settings);
    second.has_given(1);
    assert_eventually!(first.locks() == (1, 0), "one lock is enough");
    drop(second);
    drop(bus);
    assert_eventually!(node.events().iter().any(|event| event.starts_with("ShutdownNotNoticed")), "the node tells");
    let bus = Bus::start(folder.path());
    let third = Logind::on(&bus, &settings);
    third.has_given(1);
    let web = node.put(&pod("web").runs("main", "sleep"));
    web.is_ready();
    third.says(true);
    assert_eventually!(third.locks() == (1, 0), "the lock is released");
    ended_with_the_node(&web);
}

#[test]
fn a_logind_that_does_not_wait_long_enough_is_told_of_and_made_use_of() {
    let folder = tempfile::tempdir().unwrap();
    let bus = Bus::start(folder.path());
    let logind = Logind::on(&bus, &folder.path().join("systemd"));
    logind.is_overruled();
    let node = node_on(&bus, folder.path(), BY_PRIORITY);
    let told = eventually("the node tells", || {
        let events = node.events();
        events.iter().find(|event| event.starts_with("ShutdownDelayTooShort")).cloned().ok_or_else(|| events.join("\n"))
    });
    for word in ["all of the 60s", "goes on to wait for 5s", "/etc/systemd/logind.conf.d/99-nodeagent.conf", "a later file there"]
    {
        assert!(told.contains(word), "{word:?} in {told}");
    }
    let check = run_check(&node, &bus.variable());
    assert!(check.contains("logind waits 5s, and pods are to have 60s"), "{check}");
    // What time there is, pods have.
    let web = node.put(&pod("web").runs("main", "sleep"));
    web.is_ready();
    logind.says(true);
    assert_eventually!(logind.locks() == (1, 0), "the lock is released");
    ended_with_the_node(&web);
}

#[test]
fn an_agent_that_starts_as_the_machine_goes_down_runs_nothing() {
    let (_folder, _bus, logind, node) = delayed();
    let low = node.put(&held("low"));
    low.is_ready();
    node.kill_agent();
    logind.knows(true);
    node.start_agent();
    is_disrupted(&low);
    let late = node.put(&pod("late").runs("main", "sleep"));
    late.is_rejected("NodeShutdown", "shutting down");
}

#[test]
fn a_drain_has_the_same_order_and_needs_no_bus() {
    let folder = tempfile::tempdir().unwrap();
    let configuration = "apiVersion: nodeagent.dev/v1
kind: NodeAgentConfiguration
drainOnStop: true
shutdownGracePeriod: 90s
shutdownGracePeriodCriticalPods: 30s
";
    let nowhere = format!("DBUS_SYSTEM_BUS_ADDRESS=unix:path={}", folder.path().join("nobody").display());
    let node = NodeBox::builder().environment(nowhere.clone()).config(configuration).start();
    assert_eventually!(
        node.events()
            .iter()
            .any(|event| event.starts_with("ShutdownNotNoticed") && event.contains("no system bus at unix:path=")),
        "the node tells"
    );
    let check = run_check(&node, &nowhere);
    assert!(check.contains("no system bus at unix:path=") && check.contains("start systemd-logind"), "{check}");
    let low = node.put(&held("low"));
    let high = node.put(&pod("high").spec("priorityClassName: system-node-critical").runs("main", "sleep"));
    low.is_ready();
    high.is_ready();
    let followed = high.container("main").follow(&[]);
    e2e::run(Command::new("kill").args(["-TERM", &node.agent_pid().to_string()])).ok();
    let ends = |pod: &e2e::Pod<'_>| pod.get().unwrap()["metadata"]["deletionTimestamp"].is_string();
    assert_eventually!(ends(&low), "low has its turn");
    assert!(!ends(&high) && !followed.output().contains("bye"), "and high has not");
    low.container("main").demo("write /tmp/go now");
    followed.says("SIGTERM: bye");
    assert_eventually!(node.run(&["get", "pods"]).all().contains("no agent answers"), "the agent ends");
    assert_eq!(std::fs::read_dir(node.root().join("run/nodeagent/pods")).unwrap().count(), 0);
}

#[test]
fn without_the_settings_nobody_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let bus = Bus::start(folder.path());
    let node = node_on(&bus, folder.path(), "apiVersion: nodeagent.dev/v1\nkind: NodeAgentConfiguration\n");
    node.put(&pod("web").runs("main", "sleep")).is_ready();
    let check = run_check(&node, &bus.variable());
    assert!(check.contains("no shutdownGracePeriod is set"), "{check}");
    assert_eq!(bus.connections(), 0);
}
