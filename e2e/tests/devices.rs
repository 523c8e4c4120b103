//! Device plugins, by a real one: Kubernetes' own messages and grpc-go (e2e/plugins).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;

use e2e::{NodeBox, Pod, Running, eventually, pod};
use serde_json::Value;

const GPU: &str = "example.com/gpu";

/// The plugin, with these devices and variables.
fn plugin(node: &NodeBox, variables: &[&str], devices: &[&str]) -> Running {
    let folder = node.root().join("var/lib/kubelet/device-plugins");
    let mut command = node.command("env");
    // A device that no container has unless it is given.
    command.arg("NODE=/dev/loop-control").args(variables).arg(e2e::plugin("device")).arg(folder).arg(GPU).args(devices);
    Running::start(&mut command)
}

/// Waits until the node tells so many devices, and so many that can be given away.
#[track_caller]
fn has(node: &NodeBox, capacity: &str, allocatable: &str) {
    eventually(&format!("the node has {capacity} devices, {allocatable} of them well"), || {
        let status = node.object()["status"].clone();
        let seen = (&status["capacity"][GPU], &status["allocatable"][GPU]);
        if seen == (&Value::from(capacity), &Value::from(allocatable)) { Ok(()) } else { Err(format!("{seen:?}")) }
    });
}

fn asks(name: &str, count: u32) -> e2e::Manifest {
    pod(name).runs_with(
        "main",
        "sleep",
        &format!("resources: {{limits: {{{GPU}: {count}}}}}\n    env: [{{name: OWN, value: the pod's}}]"),
    )
}

fn environment(pod: &Pod<'_>) -> BTreeMap<String, String> {
    let env = pod.container("main").demo("env");
    env.lines().filter_map(|line| line.split_once('=')).map(|(name, value)| (name.into(), value.into())).collect()
}

#[test]
fn a_pod_gets_devices_with_all_that_the_plugin_says_to_them() {
    let node = NodeBox::start();
    // There is no plugin yet: the pod waits for one, and begins when it comes.
    let pod = node.put(&asks("one", 2));
    pod.is_rejected(
        "OutOfexample.com/gpu",
        "Node didn't have enough resource: example.com/gpu, requested: 2, used: 0, capacity: 0",
    );
    let mut plugin = plugin(&node, &["PRE_START=1"], &["gpu0", "gpu1", "gpu2", "gpu3=ill"]);
    plugin.says("registered");
    pod.is_ready();
    has(&node, "4", "3");
    plugin.says("allocate gpu0,gpu1");
    plugin.says("prestart gpu0,gpu1");
    let env = environment(&pod);
    assert_eq!((env["DEVICES"].as_str(), env["OWN"].as_str()), ("gpu0,gpu1", "the pod's"));
    let main = pod.container("main");
    assert!(
        main.demo("mounts").lines().any(|line| line.contains("/opt/device") && line.contains("ro")),
        "{}",
        main.demo("mounts")
    );
    // The kernel lets the container open it: what reading it means is the device's own answer.
    let said = main.exec(&["/demo", "read", "/dev/gpu1"]).fails();
    assert!(said.contains("Invalid argument"), "{said}");
    assert!(main.exec(&["/demo", "read", "/dev/gpu2"]).fails().contains("No such file"));

    // What is left isn't enough for another such pod; it has its turn when the first one has gone.
    let second = node.put(&asks("two", 2));
    let words = "Allocate failed due to requested number of devices unavailable for example.com/gpu. Requested: 2, Available: 1, which is unexpected";
    second.is_rejected("UnexpectedAdmissionError", &format!("Pod was rejected: {words}"));
    second.tells(&["UnexpectedAdmissionError", words]);
    plugin.write("gpu3 well\nprefer gpu3,gpu2\n");
    second.is_ready();
    has(&node, "4", "4");
    assert_eq!(environment(&second)["DEVICES"], "gpu2,gpu3");
    node.remove("one.yaml");
    pod.is_gone();
    node.put(&asks("three", 1)).is_ready();
}

#[test]
fn what_was_given_outlives_agent_and_plugin() {
    let node = NodeBox::start();
    let mut first = plugin(&node, &[], &["gpu0", "gpu1"]);
    first.says("registered");
    has(&node, "2", "2");
    first.write("prefer gpu1\n");
    first.says("did prefer");
    let pod = node.put(&asks("one", 1));
    pod.is_ready();
    assert_eq!(environment(&pod)["DEVICES"], "gpu1");

    node.kill_agent();
    // Its socket is taken away by the agent that comes: it must register anew.
    node.start_agent();
    first.close_input();
    first.ends();
    has(&node, "0", "0");
    assert_eq!(pod.container("main").restarts(), 0);
    // A start of the container needs no plugin: it has what it had.
    let main = pod.container("main").host_pid();
    node.inside("kill", &["-KILL", &main.to_string()]).ok();
    pod.container("main").was_restarted(1);
    pod.is_ready();
    assert_eq!(environment(&pod)["DEVICES"], "gpu1");

    let mut second = plugin(&node, &[], &["gpu0", "gpu1"]);
    second.says("registered");
    has(&node, "2", "2");
    let other = node.put(&asks("two", 1));
    other.is_ready();
    assert_eq!(environment(&other)["DEVICES"], "gpu0");
    // A plugin that is gone: its devices are there, but for nobody.
    second.close_input();
    second.ends();
    has(&node, "2", "0");
    node.put(&asks("three", 1)).is_rejected(
        "UnexpectedAdmissionError",
        "Allocate failed due to no healthy devices present; cannot allocate unhealthy devices example.com/gpu, which is unexpected",
    );
    other.is_ready();
}

#[test]
fn a_plugin_that_refuses_is_quoted() {
    let node = NodeBox::start();
    let mut plugin = plugin(&node, &[], &["gpu0"]);
    plugin.says("registered");
    has(&node, "1", "1");
    plugin.write("refuse\n");
    plugin.says("did refuse");
    let pod = node.put(&asks("one", 1));
    pod.is_rejected(
        "UnexpectedAdmissionError",
        "Allocate failed due to rpc error: code = Unknown desc = the device is on fire, which is unexpected",
    );
    assert_eq!(node.object()["status"]["allocatable"][GPU], "1");
}

#[test]
fn a_plugin_of_another_version_or_a_strange_name_is_told_so() {
    let node = NodeBox::start();
    let wrong = plugin(&node, &["VERSION=v1alpha1"], &["gpu0"]);
    wrong.says("refused rpc error: code = Unknown desc = requested API version \"v1alpha1\" is not supported by kubelet. Supported version is [\"v1beta1\"]");
    assert_eq!(node.object()["status"]["capacity"][GPU], Value::Null);
}

#[test]
fn a_plugin_may_register_in_the_folder_and_devices_may_be_cdis() {
    let node = NodeBox::builder().without_agent().start();
    let cdi = node.folder().join("cdi");
    std::fs::create_dir(&cdi).unwrap();
    let spec = "cdiVersion: 0.6.0\nkind: example.com/gpu\ndevices:\n- {name: gpu0, containerEdits: {env: [CDI=yes]}}\n";
    std::fs::write(cdi.join("gpu.yaml"), spec).unwrap();
    let before = std::fs::read_to_string(node.configuration()).unwrap();
    node.configure(&format!("{before}cdiSpecDirs: [{}]\n", cdi.display()));
    node.start_agent();
    let registry = node.root().join("var/lib/kubelet/plugins_registry");
    let variable = format!("REGISTRY={}", registry.display());
    let plugin = plugin(&node, &[&variable, "CDI=example.com/gpu"], &["gpu0"]);
    plugin.says("status true");
    has(&node, "1", "1");
    let pod = node.put(&asks("one", 1));
    pod.is_ready();
    assert_eq!(environment(&pod)["CDI"], "yes");
    // Its socket is taken away: it has said good-bye.
    std::fs::remove_file(registry.join("example-com-gpu.sock")).unwrap();
    has(&node, "1", "0");
}

#[test]
fn an_init_containers_devices_are_had_by_those_that_come_after() {
    let node = NodeBox::start();
    let plugin = plugin(&node, &[], &["gpu0"]);
    plugin.says("registered");
    has(&node, "1", "1");
    let limits = format!("resources: {{limits: {{{GPU}: 1}}}}");
    let pod = node.put(&pod("one").first_runs("first", "read /dev/null", &limits).runs_with("main", "sleep", &limits));
    pod.is_ready();
    assert_eq!(environment(&pod)["DEVICES"], "gpu0");
}
