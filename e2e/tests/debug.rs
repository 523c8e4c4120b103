//! Ephemeral containers: by `nodeagent debug`, by kubectl, over the agent's restart.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use e2e::{DEMO, NodeBox, assert_eventually, pod};

#[test]
fn a_debug_container_sees_its_target_and_ends_with_the_pod() {
    let node = NodeBox::start();
    let web = node.put(&pod("web").runs("app", "serve").runs("other", "sleep"));
    web.is_ready();
    // Its network is the pod's, its processes are its target's.
    let output = node.run(&[
        "debug",
        "web",
        "-c",
        "look",
        "--image",
        DEMO,
        "--target",
        "app",
        "--",
        "/demo",
        "get",
        "http://127.0.0.1:8080/hostname",
    ]);
    assert_eq!(output.ok().trim(), "look");
    web.container("look").exited_with(0);
    assert_eq!(web.container("look").logs(&[]), "web\n");
    node.run(&["debug", "web", "-c", "stays", "--image", DEMO, "--target", "app", "--env", "A=b", "--", "/demo", "sleep"]).ok();
    let stays = web.container("stays");
    stays.is_running();
    let processes = stays.demo("ps");
    assert!(processes.contains("serve") && processes.contains("sleep"), "{processes}");
    assert_eq!(stays.demo("namespace pid"), web.container("app").demo("namespace pid"));
    assert_ne!(stays.demo("namespace mnt"), web.container("app").demo("namespace mnt"));
    assert!(stays.demo("env").contains("A=b"));
    // One without a target has processes of its own.
    node.run(&["debug", "web", "-c", "alone", "--image", DEMO, "--", "/demo", "sleep"]).ok();
    web.container("alone").is_running();
    assert_ne!(web.container("alone").demo("namespace pid"), web.container("app").demo("namespace pid"));
    // It is nobody's readiness, and it is not restarted.
    let status = stays.status(&web.get().unwrap());
    assert_eq!(status["ready"], false, "{status}");
    stays.exec(&["/demo", "kill", &pid_of(&processes, "sleep"), "SIGKILL"]);
    stays.exited_with(137);
    assert_eq!(stays.restarts(), 0);
    web.is_ready();
    let described = node.run(&["describe", "pod", "web"]).ok();
    assert!(described.contains("Ephemeral Containers:") && described.contains("alone"), "{described}");
    node.remove("web.yaml");
    web.is_gone();
    assert_eventually!(node.snapshot().facts("process").is_empty(), "no process is left");
}

/// `PID COMMAND` lines.
fn pid_of(processes: &str, command: &str) -> String {
    let line = processes.lines().find(|line| line.contains(command)).unwrap_or_else(|| panic!("{processes}"));
    line.split_whitespace().next().unwrap().to_owned()
}

#[test]
fn a_debug_container_outlives_the_agent_and_an_edit_but_not_the_pod() {
    let node = NodeBox::start();
    let web = node.put(&pod("web").runs("app", "sleep"));
    web.is_ready();
    node.run(&["debug", "web", "-c", "stays", "--image", DEMO, "--", "/demo", "sleep"]).ok();
    web.container("stays").is_running();
    let id = web.container("stays").id();
    node.kill_agent();
    node.start_agent();
    web.container("stays").is_running();
    assert_eq!(web.container("stays").demo("echo here"), "here");
    node.put(&pod("web").metadata("labels: {a: b}").runs("app", "sleep"));
    web.until(
        "has the label",
        |pod| {
            if pod["metadata"]["labels"]["a"] == "b" { Ok(()) } else { Err(pod["metadata"].to_string()) }
        },
    );
    assert_eq!((web.container("stays").id(), web.container("app").restarts()), (id, 0));
    // What Kubernetes calls immutable makes another pod, which nobody has looked into yet.
    node.put(&pod("web").runs("app", "stubborn").spec("terminationGracePeriodSeconds: 1"));
    web.until(
        "is another",
        |pod| {
            if pod["spec"]["ephemeralContainers"].is_null() { Ok(()) } else { Err(pod["spec"].to_string()) }
        },
    );
    web.is_ready();
    node.run(&["logs", "web", "-c", "stays"]).fails();
}

#[test]
fn standard_input_is_passed_on_to_a_debug_container() {
    let node = NodeBox::start();
    node.put(&pod("web").runs("app", "sleep")).is_ready();
    let output = node.feed(&["debug", "-i", "web", "--image", DEMO, "--", "/demo", "cat"], b"through and through\n");
    assert!(output.stdout.contains("through and through"), "{output}");
    assert!(output.stderr.contains("Defaulting debug container name to debugger-"), "{output}");
}

#[test]
fn what_cannot_be_is_refused_with_a_sentence() {
    let node = NodeBox::start();
    let web = node.put(&pod("web").runs("app", "sleep"));
    web.is_ready();
    let rows: [(&[&str], &str); 5] = [
        (
            &["debug", "web", "-c", "x", "--image", DEMO, "--target", "nobody"],
            "spec.ephemeralContainers[0].targetContainerName: Not found: \"nobody\"",
        ),
        (&["debug", "web", "-c", "app", "--image", DEMO], "Duplicate value: \"app\""),
        (&["debug", "web", "-c", "No", "--image", DEMO], "spec.ephemeralContainers[0].name: Invalid value: \"No\""),
        (&["debug", "web", "--image", DEMO, "--env", "novalue"], "write NAME=VALUE"),
        (&["debug", "absent", "--image", DEMO], "not found"),
    ];
    for (words, expected) in rows {
        let told = node.run(words).fails();
        assert!(told.contains(expected), "{words:?}: {told}");
    }
    assert!(web.get().unwrap()["spec"]["ephemeralContainers"].is_null());
    // One that is there stays as it is.
    node.run(&["debug", "web", "-c", "x", "--image", DEMO, "--", "/demo", "sleep"]).ok();
    let told = node.run(&["debug", "web", "-c", "x", "--image", DEMO, "--", "/demo", "id"]).fails();
    assert!(told.contains("existing ephemeral containers \"x\" may not be changed"), "{told}");
}

#[test]
fn a_completed_pod_takes_no_debug_container() {
    let node = NodeBox::start();
    let done = node.put(&pod("done").spec("restartPolicy: Never").runs("app", "exit 0"));
    done.becomes("Succeeded");
    let told = node.run(&["debug", "done", "-c", "x", "--image", DEMO]).fails();
    assert!(told.contains("has completed"), "{told}");
}
