//! The machine goes down, which logind tells by the system bus: a bus and a logind of the tests' own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// Of what zbus writes.
#![allow(missing_docs)]

use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use e2e::{Manifest, NodeBox, Running, assert_eventually, eventually, pod};
use serde_json::Value;
use zbus::blocking::{Connection, connection, fdo::DBusProxy};
use zbus::object_server::SignalEmitter;
use zbus::zvariant;

const LOGIND: &str = "/org/freedesktop/login1";
const BY_PRIORITY: &str = "apiVersion: nodeagent.dev/v1
kind: NodeAgentConfiguration
shutdownGracePeriodByPodPriority:
- {priority: 1000, shutdownGracePeriodSeconds: 20}
- {priority: 0, shutdownGracePeriodSeconds: 40}
";

/// A system bus.
struct Bus {
    address: String,
    _daemon: Running,
}

impl Bus {
    fn start(folder: &Path) -> Self {
        let socket = folder.join("bus");
        let address = format!("unix:path={}", socket.display());
        let configuration = folder.join("bus.conf");
        let text = format!(
            "<busconfig><listen>{address}</listen><auth>EXTERNAL</auth><policy context=\"default\">\
             <allow send_destination=\"*\"/><allow receive_sender=\"*\"/><allow own=\"*\"/><allow user=\"*\"/></policy></busconfig>"
        );
        std::fs::write(&configuration, text).unwrap();
        let _ = std::fs::remove_file(&socket);
        let mut command = Command::new("dbus-daemon");
        command.args(["--nofork", "--nopidfile", "--config-file"]).arg(&configuration);
        let mut daemon = Running::start(&mut command);
        eventually("the bus listens", || {
            assert!(daemon.is_alive(), "dbus-daemon has ended:\n{}", daemon.output());
            if socket.exists() { Ok(()) } else { Err(daemon.output()) }
        });
        Self { address, _daemon: daemon }
    }

    /// What is connected, without a logind of ours.
    fn strangers(&self) -> usize {
        let connection = connection::Builder::address(self.address.as_str()).unwrap().build().unwrap();
        let names = DBusProxy::new(&connection).unwrap().list_names().unwrap();
        names.iter().filter(|name| name.starts_with(':') && **name != connection.unique_name().unwrap().as_str()).count()
    }
}

/// What the stand-in knows.
#[derive(Default)]
struct State {
    delay: u64,
    going_down: bool,
    /// What was asked for, and the end of the pipe that tells when the lock is released.
    locks: Vec<(String, std::io::PipeReader)>,
}

/// logind's part of the bus.
struct Manager(Arc<Mutex<State>>);

#[zbus::interface(name = "org.freedesktop.login1.Manager")]
impl Manager {
    fn inhibit(&self, what: &str, who: &str, why: &str, mode: &str) -> zvariant::OwnedFd {
        assert!(!why.is_empty());
        let (told, lock) = std::io::pipe().unwrap();
        nix::fcntl::fcntl(&told, nix::fcntl::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
        self.0.lock().unwrap().locks.push((format!("{what} {who} {mode}"), told));
        OwnedFd::from(lock).into()
    }

    #[zbus(property, name = "InhibitDelayMaxUSec")]
    fn inhibit_delay_max(&self) -> u64 {
        self.0.lock().unwrap().delay
    }

    #[zbus(property)]
    fn preparing_for_shutdown(&self) -> bool {
        self.0.lock().unwrap().going_down
    }

    #[zbus(signal)]
    async fn prepare_for_shutdown(emitter: &SignalEmitter<'_>, begins: bool) -> zbus::Result<()>;
}

/// systemd's part: it tells logind to read its settings.
struct Systemd(Arc<Mutex<State>>, PathBuf);

#[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
impl Systemd {
    fn kill_unit(&self, unit: &str, whom: &str, signal: i32) {
        assert_eq!((unit, whom, signal), ("systemd-logind.service", "all", 1));
        let settings = std::fs::read_to_string(self.1.join("logind.conf.d/99-nodeagent.conf")).unwrap();
        let (head, seconds) = settings.trim().rsplit_once('=').unwrap();
        assert!(head.ends_with("[Login]\nInhibitDelayMaxSec"), "{settings}");
        self.0.lock().unwrap().delay = seconds.parse::<u64>().unwrap() * 1_000_000;
    }
}

struct Logind {
    connection: Connection,
    state: Arc<Mutex<State>>,
}

impl Logind {
    /// On this bus; what is in /etc/systemd for it is in `settings`.
    fn on(bus: &Bus, settings: &Path) -> Self {
        let state = Arc::new(Mutex::new(State { delay: 5_000_000, ..State::default() }));
        let connection = connection::Builder::address(bus.address.as_str()).unwrap();
        let connection = connection
            .serve_at(LOGIND, Manager(state.clone()))
            .and_then(|c| c.serve_at("/org/freedesktop/systemd1", Systemd(state.clone(), settings.into())))
            .and_then(|c| c.name("org.freedesktop.login1"))
            .and_then(|c| c.name("org.freedesktop.systemd1"))
            .unwrap();
        Self { connection: connection.build().unwrap(), state }
    }

    fn says(&self, going_down: bool) {
        self.state.lock().unwrap().going_down = going_down;
        self.connection
            .emit_signal(None::<()>, LOGIND, "org.freedesktop.login1.Manager", "PrepareForShutdown", &going_down)
            .unwrap();
    }

    /// How many locks were taken, and how many of them are held.
    fn locks(&self) -> (usize, usize) {
        let state = self.state.lock().unwrap();
        let is_held = |mut pipe: &std::io::PipeReader| match pipe.read(&mut [0]) {
            Ok(0) => false,
            Err(error) if error.kind() == ErrorKind::WouldBlock => true,
            other => panic!("{other:?}"),
        };
        assert!(state.locks.iter().all(|(asked, _)| asked == "shutdown nodeagent delay"));
        (state.locks.len(), state.locks.iter().filter(|(_, pipe)| is_held(pipe)).count())
    }

    #[track_caller]
    fn has_given(&self, locks: usize) {
        eventually(&format!("lock {locks} is held"), || match self.locks() {
            (given, 1) if given == locks => Ok(()),
            other => Err(format!("{other:?}: given, held")),
        });
    }
}

/// A node that finds this bus, and whose /etc/systemd is the folder of that name in its own.
fn node_on(bus: &Bus, folder: &Path, configuration: &str) -> NodeBox {
    let address = format!("DBUS_SYSTEM_BUS_ADDRESS={}", bus.address);
    let node = NodeBox::builder().without_agent().environment(address).config(configuration).start();
    let settings = folder.join("systemd");
    std::fs::create_dir_all(&settings).unwrap();
    node.inside("mount", &["--bind", settings.to_str().unwrap(), "/etc/systemd"]).ok();
    node.start_agent();
    node
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
    let folder = tempfile::tempdir().unwrap();
    let bus = Bus::start(folder.path());
    let logind = Logind::on(&bus, &folder.path().join("systemd"));
    let node = node_on(&bus, folder.path(), BY_PRIORITY);
    logind.has_given(1);
    assert_eventually!(logind.state.lock().unwrap().delay == 60_000_000, "logind waits long enough");
    let check = run_check(&node, &bus);
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
    logind.state.lock().unwrap().going_down = false;
    node.start_agent();
    for pod in [&low, &high, &late] {
        pod.is_ready();
    }
}

fn run_check(node: &NodeBox, bus: &Bus) -> String {
    let mut command = node.command("env");
    command.arg(format!("DBUS_SYSTEM_BUS_ADDRESS={}", bus.address)).arg(e2e::binary("nodeagent"));
    e2e::run(command.arg("--config").arg(node.folder().join("config.yaml")).arg("check")).all()
}

#[test]
fn a_shutdown_that_is_cancelled_leaves_the_node_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let bus = Bus::start(folder.path());
    let logind = Logind::on(&bus, &folder.path().join("systemd"));
    let node = node_on(&bus, folder.path(), BY_PRIORITY);
    logind.has_given(1);
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
    first.connection.clone().close().unwrap();
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
fn an_agent_that_starts_as_the_machine_goes_down_runs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let bus = Bus::start(folder.path());
    let logind = Logind::on(&bus, &folder.path().join("systemd"));
    let node = node_on(&bus, folder.path(), BY_PRIORITY);
    logind.has_given(1);
    let low = node.put(&held("low"));
    low.is_ready();
    node.kill_agent();
    logind.state.lock().unwrap().going_down = true;
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
shutdownGracePeriod: 3s
shutdownGracePeriodCriticalPods: 2s
";
    let nowhere = format!("DBUS_SYSTEM_BUS_ADDRESS=unix:path={}", folder.path().join("nobody").display());
    let node = NodeBox::builder().environment(nowhere).config(configuration).start();
    assert_eventually!(
        node.events()
            .iter()
            .any(|event| event.starts_with("ShutdownNotNoticed") && event.contains("no system bus at unix:path=")),
        "the node tells"
    );
    let low = node.put(&pod("low").spec("terminationGracePeriodSeconds: 600").runs("main", "stubborn"));
    let high = node.put(&pod("high").spec("priorityClassName: system-node-critical").runs("main", "sleep"));
    low.is_ready();
    high.is_ready();
    let [low, high] = [low, high].map(|pod| pod.container("main").follow(&["--timestamps"]));
    assert_eq!(node.stop_agent(), 0);
    let told = |follower: &Running| {
        let output = follower.output();
        let line = output.lines().find(|line| line.contains("SIGTERM")).unwrap_or_else(|| panic!("{output}")).to_owned();
        let seconds = line.split_once(' ').unwrap().0.trim_end_matches('Z').rsplit_once(':').unwrap().1.parse::<f64>().unwrap();
        (line, seconds)
    };
    let ((low, low_at), (high, high_at)) = (told(&low), told(&high));
    // The critical pods' turn comes when the others' second is over.
    assert!((high_at - low_at).rem_euclid(60.0) >= 1.0, "{low}\n{high}");
    assert!(node.run(&["get", "pods"]).fails().contains("agent"), "nothing answers");
}

#[test]
fn without_the_settings_nobody_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let bus = Bus::start(folder.path());
    let node = node_on(&bus, folder.path(), "apiVersion: nodeagent.dev/v1\nkind: NodeAgentConfiguration\n");
    node.put(&pod("web").runs("main", "sleep")).is_ready();
    let check = run_check(&node, &bus);
    assert!(check.contains("no shutdownGracePeriod is set"), "{check}");
    assert_eq!(bus.strangers(), 0);
}
