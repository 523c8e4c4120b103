//! The holder's own life: agents that come and go, its death, its end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use podholder::protocol::*;
use std::os::unix::fs::PermissionsExt;
use support::*;

#[test]
fn the_agents_death_changes_nothing_and_the_next_one_learns_all() {
    let mut pod = Pod::new();
    let mut runs = pod.recipe("runs", &["sleep", "1000"]);
    runs.note = serde_json::json!({"hash": 1});
    let ends = pod.shell("ends", "sleep 0.2; exit 9");
    let pid = pod.start(&runs).unwrap();
    pod.start(&ends).unwrap();
    pod.call(Request::Note(serde_json::json!("left by the first"))).unwrap();
    let note = serde_json::json!({"hash": 2});
    pod.call(Request::NoteContainer { container: runs.id.clone(), note: note.clone() }).unwrap();
    pod.call(Request::NoteContainer { container: "nobody".into(), note: note.clone() }).unwrap_err();
    pod.disconnect();
    pod.reconnect();
    assert!(is_alive(pid));
    eventually("the other ended", || pod.state().containers[1].exit.is_some());
    let state = pod.state();
    assert_eq!(state.note, serde_json::json!("left by the first"));
    assert_eq!((state.version, state.pid), (VERSION, pod.pid));
    assert_eq!((state.containers[0].pid, &state.containers[0].note), (pid, &note));
    assert_eq!(state.containers[1].exit.unwrap().code, 9);
    assert_eq!(state.sandbox.hostname.as_deref(), Some("pod"));
}

#[test]
fn the_holders_death_is_its_containers_death() {
    for share_pid in [false, true] {
        let mut pod = Pod::with(|r| r.share_pid = share_pid);
        let mut recipe = pod.shell("app", "trap '' TERM; sleep 1000 & sleep 1001");
        recipe.process.user.spec = "web".into();
        if share_pid {
            recipe.pid = PidNamespace::Pod;
        }
        let pid = pod.start(&recipe).unwrap();
        pod.holder.kill().unwrap();
        eventually("the container is dead", || !is_alive(pid));
    }
}

#[test]
fn shutdown_kills_all_and_leaves_nothing() {
    let mut pod = Pod::with(|r| r.share_pid = true);
    let mut recipes: Vec<Recipe> =
        (0..3).map(|n| pod.shell(&format!("c{n}"), "trap '' TERM INT; while true; do sleep 1; done")).collect();
    recipes[0].pid = PidNamespace::Pod;
    recipes[1].pid = PidNamespace::Host;
    let pids: Vec<i32> = recipes.iter().map(|r| pod.start(r).unwrap()).collect();
    pod.call(Request::Shutdown).unwrap();
    while let Some(message) = pod.connection().receive() {
        assert!(matches!(message.0, Message::Event(_)));
    }
    assert!(pod.holder.wait().unwrap().success());
    assert!(pids.iter().all(|pid| !is_alive(*pid)));
    assert!(!pod.dir.path().join("holder.sock").exists());
}

#[test]
fn the_holder_is_private_and_named() {
    let mut pod = Pod::new();
    let socket = std::fs::metadata(pod.dir.path().join("holder.sock")).unwrap();
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    let line = std::fs::read(format!("/proc/{}/cmdline", pod.pid)).unwrap();
    assert!(line.starts_with(b"podholder test/pod\0"), "{}", String::from_utf8_lossy(&line));
    assert_eq!(std::fs::read_to_string(format!("/proc/{}/comm", pod.pid)).unwrap().trim(), "podholder");
    // Standard descriptors, the listener, epoll, the connection and the two namespaces: nothing else.
    let fds = |pid: i32| {
        let mut names: Vec<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            // One may be closed at this moment.
            .filter_map(|e| Some(std::fs::read_link(e.unwrap().path()).ok()?.display().to_string()))
            .collect();
        names.sort();
        names
    };
    let before = fds(pod.pid);
    for _ in 0..3 {
        pod.sh("true");
    }
    let missing = pod.recipe("missing", &["missing"]);
    pod.start(&missing).unwrap_err();
    eventually("the holder has no more descriptors than before", || fds(pod.pid).len() <= before.len());
    let zombies = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", pod.pid)).unwrap();
    assert_eq!(zombies.trim(), "");
}

#[test]
fn a_signal_to_the_holder_does_not_end_the_pod() {
    let mut pod = Pod::new();
    let pid = rustix::process::Pid::from_raw(pod.pid).unwrap();
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT, rustix::process::Signal::HUP] {
        rustix::process::kill_process(pid, signal).unwrap();
    }
    assert_eq!(pod.sh("echo alive"), "alive\n");
}

#[test]
fn a_holder_that_nobody_talks_to_ends() {
    let mut pod = Pod::try_with(|r| r.cgroups = vec!["/no/such/cgroup".into()]);
    let fault = pod.as_mut().err().unwrap();
    assert_eq!((fault.stage, fault.subject.as_str()), (Stage::Cgroup, "/no/such/cgroup"));
    let mut holder = std::process::Command::new("/bin/busybox")
        .args(["sh", "-c", "exec 3</dev/null; exec \"$0\"", env!("CARGO_BIN_EXE_podholder")])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    assert!(!holder.wait().unwrap().success());
}

#[test]
fn a_long_message_travels() {
    let mut pod = Pod::new();
    let note = serde_json::json!("x".repeat(300_000));
    pod.call(Request::Note(note.clone())).unwrap();
    assert_eq!(pod.state().note, note);
}
