//! postStart, preStop, last words and deadlines, from the user's side.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use e2e::{NodeBox, SHARED, assert_eventually, pod};

const QUICK: &str =
    "apiVersion: nodeagent.dev/v1\nkind: NodeAgentConfiguration\ncrashLoopBackOff: {initial: 100ms, max: 400ms}\n";

fn quick() -> NodeBox {
    NodeBox::builder().config(QUICK).start()
}

fn post_start(handler: &str) -> String {
    format!("lifecycle: {{postStart: {{{handler}}}}}")
}

fn pre_stop(handler: &str) -> String {
    format!("lifecycle: {{preStop: {{{handler}}}}}")
}

#[test]
fn a_container_runs_once_its_post_start_hook_has_returned() {
    let node = quick();
    let hook = post_start("exec: {command: [/demo, await, /shared/go]}");
    let probe = "readinessProbe: {exec: {command: [/demo, append, /shared/probed, x]}, periodSeconds: 1}";
    let manifest = pod("held")
        .shares_a_folder()
        .first_runs("side", "sleep", &format!("restartPolicy: Always\n{SHARED}"))
        .runs_with("main", "sleep", &format!("{SHARED}\n{hook}\n{probe}"))
        .runs("next", "sleep");
    let held = node.put(&manifest);
    assert_eventually!(node.snapshot().facts("process").iter().any(|p| p.contains("await")), "the hook runs");
    held.container("main").waits_because("ContainerCreating");
    held.container("next").waits_because("PodInitializing");
    held.container("side").exec(&["/demo", "read", "/shared/probed"]).fails();
    // An agent that comes after sees the hook to its end.
    node.kill_agent();
    node.start_agent();
    held.container("side").demo("write /shared/go yes");
    held.is_ready();
    assert_eq!(held.container("main").restarts(), 0);
}

#[test]
fn hooks_of_each_kind_are_run() {
    let node = quick();
    let web = node.put(&pod("web").runs("main", "serve"));
    web.is_ready();
    let other = format!("httpGet: {{host: {}, path: /status, port: 8080}}", web.ip());
    let rows = [
        ("exec", "exec: {command: [/demo, append, /shared/said, hooked]}".to_string()),
        // Any answer will do, a 404 as well.
        ("http", other),
        ("tcp", format!("tcpSocket: {{host: {}, port: 8080}}", web.ip())),
        ("sleep", "sleep: {seconds: 0}".to_string()),
    ];
    for (name, handler) in rows {
        let hooks = format!("{SHARED}\nlifecycle: {{postStart: {{{handler}}}, preStop: {{{handler}}}}}");
        let pod = node.put(&pod(name).shares_a_folder().runs_with("main", "sleep", &hooks));
        pod.is_ready();
        if name == "exec" {
            assert_eq!(pod.container("main").demo("read /shared/said"), "hooked");
        }
        node.remove(&format!("{name}.yaml"));
        pod.is_gone();
        let warned: Vec<_> = node.events().into_iter().filter(|e| e.contains("Hook failed")).collect();
        assert!(warned.is_empty(), "{warned:?}");
    }
    let log = web.container("main").logs(&[]);
    assert!(log.matches("GET /status 404").count() >= 2, "{log}");
}

#[test]
fn a_failed_post_start_hook_ends_its_container() {
    let node = quick();
    let hook = post_start("exec: {command: [/demo, exit, '3']}");
    let pod = node.put(&pod("failed").runs_with("main", "sleep", &hook));
    pod.container("main").was_restarted(1);
    pod.tells(&["FailedPostStartHook", "exited with 3"]);
    pod.tells(&["Killing", "FailedPostStartHook"]);
}

#[test]
fn the_next_container_starts_after_the_hook_of_the_one_before() {
    let node = quick();
    let hook = post_start("exec: {command: [/demo, write, /shared/hooked, done]}");
    let manifest = pod("ordered")
        .shares_a_folder()
        .spec("restartPolicy: Never")
        .runs_with("first", "sleep", &format!("{SHARED}\n{hook}"))
        .runs_with("second", "read /shared/hooked", SHARED);
    // It found what the hook wrote.
    node.put(&manifest).container("second").exited_with(0);
}

#[test]
fn pre_stop_comes_before_the_signal_and_within_the_grace_period() {
    let node = quick();
    let hook = pre_stop("exec: {command: [/demo, append, /proc/1/fd/1, the hook]}");
    let polite = node.put(&pod("polite").spec("terminationGracePeriodSeconds: 600").runs_with("main", "serve", &hook));
    let endless = pre_stop("exec: {command: [/demo, sleep, '600']}");
    let late = node.put(&pod("late").spec("terminationGracePeriodSeconds: 1").runs_with("main", "serve", &endless));
    let wrong = node.put(&pod("wrong").runs_with("main", "serve", &pre_stop("exec: {command: [/demo, exit, '9']}")));
    let names = ["polite", "late", "wrong"];
    let pods = [&polite, &late, &wrong];
    for pod in pods {
        pod.is_ready();
    }
    let followers: Vec<_> = pods.iter().map(|pod| pod.container("main").follow(&[])).collect();
    followers.iter().for_each(|follower| follower.says("listening"));
    for name in names {
        node.remove(&format!("{name}.yaml"));
    }
    for (pod, follower) in pods.iter().zip(&followers) {
        // All get their signal, and two seconds to heed it, whatever became of the hook.
        follower.says("SIGTERM: bye");
        pod.is_gone();
    }
    let said = followers[0].output();
    assert!(said.find("the hook") < said.find("SIGTERM"), "{said}");
    node.tells(&["FailedPreStopHook", "did not return within 1 s"]);
    node.tells(&["FailedPreStopHook", "exited with 9"]);
}

#[test]
fn without_a_grace_period_nothing_is_asked() {
    let node = quick();
    let hook = pre_stop("exec: {command: [/demo, sleep, '600']}");
    for (name, seconds) in [("none", "0"), ("huge", "9223372036854775807")] {
        let spec = format!("terminationGracePeriodSeconds: {seconds}");
        let pod = node.put(&pod(name).spec(&spec).runs_with("main", "stubborn", &hook));
        pod.is_ready();
        if name == "huge" {
            // A hook and a program without end: a deletion with a grace period of its own ends both.
            node.remove("huge.yaml");
            pod.until("ends", |pod| pod["metadata"]["deletionTimestamp"].as_str().map(drop).ok_or_else(String::new));
            pod.run(&["delete", "pod"], &["--force", "--no-wait"]).ok();
        } else {
            node.remove("none.yaml");
        }
        pod.is_gone();
    }
}

#[test]
fn the_stop_signal_is_the_containers_own() {
    let node = quick();
    let pod = node.put(&pod("other").spec("os: {name: linux}").runs_with("main", "serve", "lifecycle: {stopSignal: SIGUSR1}"));
    pod.is_ready();
    assert_eq!(pod.container("main").status(&pod.get().unwrap())["stopSignal"], "SIGUSR1");
    let said = pod.container("main").follow(&[]);
    said.says("listening");
    node.remove("other.yaml");
    said.says("SIGUSR1: bye");
    pod.is_gone();
}

#[test]
fn last_words_are_kept() {
    let node = NodeBox::builder().with_registry().start();
    let fallback = "terminationMessagePolicy: FallbackToLogsOnError";
    // Each row: the script, more fields, and what is to be in the message; and its length.
    let rows = [
        ("file", "echo -n bye > /dev/termination-log; exit 1", "", "bye", 3),
        ("path", "echo -n bye > /tmp/last; exit 0", "terminationMessagePath: /tmp/last", "bye", 3),
        (
            "long",
            "head -c 9000 /dev/zero | tr '\\0' x > /dev/termination-log; echo -n end >> /dev/termination-log; exit 1",
            "",
            "xend",
            4096,
        ),
        ("logs", "echo from the log; exit 1", fallback, "from the log", 12),
        ("fine", "echo from the log; exit 0", fallback, "", 0),
        ("both", "echo from the log; echo -n file > /dev/termination-log; exit 1", fallback, "file", 4),
        ("lines", "for i in $(seq 200); do echo line $i; done; exit 1", fallback, "line 200", 0),
        ("bytes", "head -c 5000 /dev/zero | tr '\\0' y; echo; echo last; exit 1", fallback, "last", 2048),
    ];
    for (name, script, fields, words, length) in rows {
        let command = format!("command: [sh, -c, {}]\n{fields}", serde_json::Value::from(script));
        let pod = node.put(&pod(name).spec("restartPolicy: Never").image("main", "busybox:1", &command));
        let end = pod.container("main").ended();
        let message = end["message"].as_str().unwrap_or_default();
        assert!(message.ends_with(words), "{name}: {message:?}");
        if name == "lines" {
            assert_eq!((message.lines().count(), message.lines().next()), (80, Some("line 121")), "{name}");
        } else {
            assert_eq!(message.len(), length, "{name}");
        }
    }
}

#[test]
fn a_pod_that_is_active_too_long_fails() {
    let node = quick();
    let pod = node.put(&pod("brief").spec("activeDeadlineSeconds: 2").runs("main", "sleep"));
    pod.container("main").is_running();
    pod.becomes("Failed");
    let object = pod.get().unwrap();
    assert_eq!(object["status"]["reason"], "DeadlineExceeded", "{}", object["status"]);
    pod.tells(&["DeadlineExceeded", "longer than the specified deadline"]);
    assert_eventually!(pod.get().unwrap()["status"]["containerStatuses"][0]["state"]["terminated"].is_object(), "it has ended");
    // Its time doesn't begin anew with the agent's.
    node.kill_agent();
    node.start_agent();
    pod.becomes("Failed");
}
