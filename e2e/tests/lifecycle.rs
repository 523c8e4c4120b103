//! From init containers to the last signal, as Kubernetes has it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use e2e::{NodeBox, SHARED, assert_eventually, eventually, pod};

/// Restarts that tests can wait for.
const QUICK: &str =
    "apiVersion: nodeagent.dev/v1\nkind: NodeAgentConfiguration\ncrashLoopBackOff: {initial: 100ms, max: 400ms}\n";
/// What makes a sidecar of an init container.
const SIDECAR: &str = "restartPolicy: Always";

fn quick() -> NodeBox {
    NodeBox::builder().config(QUICK).start()
}

#[test]
fn init_containers_run_in_order_and_before_the_others() {
    let node = NodeBox::start();
    let ordered = node.put(
        &pod("ordered")
            .shares_a_folder()
            .first_runs("one", "append /shared/order one", SHARED)
            .first_runs("two", "append /shared/order two", SHARED)
            .spec("restartPolicy: Never")
            .runs_with("main", "read /shared/order", SHARED),
    );
    ordered.becomes("Succeeded");
    assert_eq!(ordered.container("main").logs(&[]), "one\ntwo\n");
    ordered.container("one").exited_with(0);
}

#[test]
fn a_failed_init_container_is_the_end_of_a_pod_that_is_never_restarted() {
    let node = NodeBox::start();
    let failed = node.put(&pod("failed").spec("restartPolicy: Never").first_runs("bad", "exit 3", "").runs("main", "sleep"));
    failed.becomes("Failed");
    failed.container("bad").exited_with(3);
    let status = failed.container("main").status(&failed.get().unwrap());
    assert_eq!(status["state"]["waiting"]["reason"], "PodInitializing", "{status}");
}

#[test]
fn a_failed_init_container_is_tried_again() {
    let node = quick();
    let again = node.put(&pod("again").first_runs("bad", "exit 3", "").runs("main", "sleep"));
    again.container("bad").was_restarted(2);
    again.container("bad").waits_because("CrashLoopBackOff");
    assert_eq!(again.get().unwrap()["status"]["phase"], "Pending");
}

#[test]
fn sidecars_start_before_and_stop_after_in_reverse_order() {
    let node = NodeBox::start();
    let sidecar = |fields: &str| format!("{SIDECAR}\n{fields}");
    let manifest = pod("with-sidecars")
        .first_runs("first", "sleep", &sidecar(""))
        .first_runs("second", "sleep", &sidecar(""))
        .runs("main", "sleep");
    let with = node.put(&manifest);
    with.is_ready();
    let names = ["first", "second", "main"];
    // Each line begins with its time, which says the order.
    let followers: Vec<_> = names.iter().map(|name| with.container(name).follow(&["--timestamps"])).collect();
    for name in names {
        assert_eq!(with.container(name).restarts(), 0);
    }
    let started = |name: &str| {
        with.container(name).until("has started", |status| status["state"]["running"]["startedAt"].as_str().map(str::to_string))
    };
    assert!(started("first") <= started("second") && started("second") <= started("main"));
    node.remove("with-sidecars.yaml");
    let ended: Vec<String> = followers
        .iter()
        .map(|follower| {
            follower.says("SIGTERM: bye");
            let output = follower.output();
            output.lines().find(|line| line.contains("bye")).unwrap().split(' ').next().unwrap().to_string()
        })
        .collect();
    assert!(ended[2] <= ended[1] && ended[1] <= ended[0], "first, second, main ended at {ended:?}");
    with.is_gone();
}

#[test]
fn a_sidecar_does_not_keep_a_job_alive() {
    let node = NodeBox::start();
    let job = node.put(&pod("job").spec("restartPolicy: Never").first_runs("side", "sleep", SIDECAR).runs("main", "exit 0"));
    job.becomes("Succeeded");
    job.container("main").exited_with(0);
}

#[test]
fn of_a_pod_that_completed_nothing_is_left_once_it_is_deleted() {
    let node = NodeBox::start();
    let before = node.snapshot();
    let volumes = "volumes: [{name: data, emptyDir: {}}]";
    let job = node.put(&pod("job").spec("restartPolicy: Never").spec(volumes).runs("main", "exit 0"));
    job.becomes("Succeeded");
    node.remove("job.yaml");
    job.is_gone();
    let of_pods = |fact: &String| fact.contains("/pods/") || fact.contains("cgroup");
    assert_eq!(node.snapshot().since(&before).into_iter().filter(of_pods).collect::<Vec<_>>(), Vec::<String>::new());
}

#[test]
fn restart_policies_decide_what_an_end_means() {
    let node = quick();
    let manifest = |name: &str, policy: &str, words: &str| {
        node.put(&pod(name).spec(&format!("restartPolicy: {policy}")).runs("main", words))
    };
    let always = manifest("always", "Always", "exit 0");
    let succeeds = manifest("succeeds", "OnFailure", "exit 0");
    let fails = manifest("fails", "OnFailure", "exit 3");
    let never = manifest("never", "Never", "exit 3");
    let fine = manifest("fine", "Never", "exit 0");
    always.container("main").was_restarted(2);
    fails.container("main").was_restarted(2);
    fails.container("main").waits_because("CrashLoopBackOff");
    fails.tells(&["BackOff", "main"]);
    for (pod, phase, code) in [(&succeeds, "Succeeded", 0), (&never, "Failed", 3), (&fine, "Succeeded", 0)] {
        pod.becomes(phase);
        let end = pod.container("main").exited_with(code);
        assert_eq!(end["reason"], if code == 0 { "Completed" } else { "Error" });
        assert_eq!(pod.container("main").restarts(), 0);
    }
    let last = fails.container("main").until("has a last state", |status| status["lastState"]["terminated"]["exitCode"].as_i64());
    assert_eq!(last, 3);
}

#[test]
fn the_stop_signal_is_heeded_or_the_grace_period_ends_it() {
    let node = NodeBox::start();
    let polite = node.put(&pod("polite").spec("terminationGracePeriodSeconds: 600").runs("main", "sleep"));
    let stubborn = node.put(&pod("stubborn").spec("terminationGracePeriodSeconds: 1").runs("main", "stubborn"));
    polite.becomes("Running");
    stubborn.becomes("Running");
    let (said_polite, said_stubborn) = (polite.container("main").follow(&[]), stubborn.container("main").follow(&[]));
    // A signal may come before the program can hear it; then the grace period would be the test's.
    eventually("exec works", || polite.container("main").exec(&["/demo", "ps"]).result());
    node.remove("polite.yaml");
    node.remove("stubborn.yaml");
    said_polite.says("SIGTERM: bye");
    said_stubborn.says("SIGTERM, and nothing happens");
    polite.is_gone();
    stubborn.is_gone();
}

#[test]
fn a_command_that_cannot_start_says_why() {
    let node = quick();
    let missing = node.put(&pod("missing").spec("restartPolicy: Never").runs_with("main", "", "command: [/nothing/here]"));
    let not_executable =
        node.put(&pod("not-executable").spec("restartPolicy: Never").runs_with("main", "", "command: [/proc/version]"));
    for (pod, code, words) in [(&missing, 127, "/nothing/here"), (&not_executable, 126, "/proc/version")] {
        pod.becomes("Failed");
        let end = pod.container("main").exited_with(code);
        assert_eq!(end["reason"], "StartError", "{end}");
        assert!(end["message"].as_str().unwrap_or_default().contains(words), "{end}");
        pod.tells(&["Failed", words]);
    }
    let again = node.put(&pod("again").runs_with("main", "", "command: [/nothing/here]"));
    again.container("main").was_restarted(1);
}

#[test]
fn a_killed_container_is_restarted_and_its_neighbour_is_not() {
    let node = quick();
    let two = node.put(&pod("two").runs("a", "sleep").runs("b", "sleep"));
    two.is_ready();
    let pid = two.container("a").host_pid();
    node.inside("kill", &["-9", &pid.to_string()]).ok();
    two.container("a").was_restarted(1);
    two.is_ready();
    let end = two.container("a").until("has a last state", |status| {
        Some(status["lastState"]["terminated"].clone()).filter(serde_json::value::Value::is_object)
    });
    assert_eq!((end["exitCode"].as_i64(), end["signal"].as_i64().unwrap_or(9)), (Some(137), 9), "{end}");
    assert_eq!(two.container("b").restarts(), 0);
    assert!(two.container("a").logs(&["--previous"]).is_empty());
}

#[test]
fn status_is_what_kubernetes_would_write() {
    let node = NodeBox::start();
    let resources = "resources: {requests: {cpu: 10m, memory: 16Mi}, limits: {cpu: 10m, memory: 16Mi}}";
    let sure = node.put(&pod("sure").runs_with("main", "sleep", resources));
    let best_effort = node.put(&pod("best-effort").runs("main", "sleep"));
    sure.is_ready();
    best_effort.is_ready();
    let (sure, best_effort) = (sure.get().unwrap(), best_effort.get().unwrap());
    assert_eq!(sure["status"]["qosClass"], "Guaranteed");
    assert_eq!(best_effort["status"]["qosClass"], "BestEffort");
    let conditions: Vec<&str> =
        sure["status"]["conditions"].as_array().unwrap().iter().filter_map(|condition| condition["type"].as_str()).collect();
    for expected in ["PodScheduled", "Initialized", "ContainersReady", "Ready"] {
        assert!(conditions.contains(&expected), "{conditions:?}");
    }
    let status = &sure["status"]["containerStatuses"][0];
    assert_eq!(status["ready"], true);
    assert_eq!(status["started"], true);
    assert_eq!(status["image"], "localhost/nodeagent-demo:latest");
    assert!(status["imageID"].as_str().unwrap().contains("sha256:"), "{status}");
    assert!(status["containerID"].as_str().unwrap().contains("://"), "{status}");
    for field in ["podIP", "hostIP", "startTime"] {
        assert!(sure["status"][field].is_string(), "{field}: {}", sure["status"]);
    }
    assert_eq!(sure["spec"]["nodeName"], "node");
    assert_eventually!(
        node.run(&["get", "pods", "--field-selector", "status.phase=Running", "--no-headers"]).ok().lines().count() == 2,
        "both pods are found by their phase"
    );
}

#[test]
fn a_process_that_will_not_die_holds_up_no_other_pod() {
    let node = NodeBox::start();
    node.put(&pod("slow").spec("terminationGracePeriodSeconds: 3600").runs("main", "stubborn")).becomes("Running");
    node.remove("slow.yaml");
    node.put(&pod("quick").runs("main", "sleep")).becomes("Running");
    node.remove("quick.yaml");
    node.pod("quick").is_gone();
    assert!(node.pod("slow").get().is_some_and(|pod| pod["metadata"]["deletionTimestamp"].is_string()));
}

#[test]
fn memory_beyond_the_limit_is_the_end_of_the_container_alone() {
    let node = NodeBox::builder().with_registry().config(QUICK).start();
    let hungry = "resources: {limits: {memory: 32Mi}}\ncommand: [sh, -c, \"head -c 200m /dev/zero | tail > /dev/null; exit 9\"]";
    let pod = node.put(&pod("hungry").spec("restartPolicy: Never").image("hungry", "busybox:1", hungry).runs("calm", "sleep"));
    let end = pod.container("hungry").ended();
    // tail is what the kernel kills, or sh with it: either way the container says so.
    assert!(end["reason"] == "OOMKilled" || end["exitCode"] == 9, "{end}");
    pod.container("calm").is_running();
}

#[test]
fn a_stopped_process_is_ended_all_the_same() {
    let node = NodeBox::start();
    let frozen = node.put(&pod("frozen").spec("terminationGracePeriodSeconds: 1").runs("main", "sleep").runs("other", "sleep"));
    frozen.is_ready();
    let pid = frozen.container("main").host_pid();
    node.inside("kill", &["-STOP", &pid.to_string()]).ok();
    let free = node.put(&pod("free").runs("main", "sleep"));
    free.is_ready();
    node.remove("frozen.yaml");
    frozen.is_gone();
    node.remove("free.yaml");
    free.is_gone();
    assert_eventually!(node.snapshot().facts("process").is_empty(), "no process is left");
}

#[test]
fn what_a_container_left_running_ends_with_it() {
    let node = NodeBox::builder().with_registry().config(QUICK).start();
    // Children that ignore SIGTERM, in sessions of their own, with their parent gone.
    let script = "for i in 1 2 3; do setsid sh -c 'trap \"\" TERM HUP; sleep 100'$i & done; trap 'exit 0' TERM; wait";
    let brood = node.put(&pod("brood").spec("shareProcessNamespace: true").shell("main", "busybox:1", script).runs("b", "sleep"));
    brood.is_ready();
    assert_eventually!(
        node.snapshot().facts("process").iter().filter(|process| process.contains("sleep 100")).count() >= 3,
        "the children run"
    );
    node.remove("brood.yaml");
    brood.is_gone();
    assert_eventually!(node.snapshot().facts("process").is_empty(), "no process is left: {:?}", node.snapshot().facts("process"));
}

#[test]
fn exec_gives_the_status_of_its_command() {
    let node = NodeBox::builder().with_registry().start();
    let shell = node.put(&pod("shell").shell("main", "busybox:1", "trap 'exit 0' TERM; while :; do sleep 0.1; done"));
    shell.is_ready();
    let main = shell.container("main");
    for code in [0, 1, 42, 255] {
        assert_eq!(main.exec(&["sh", "-c", &format!("exit {code}")]).code, code);
    }
    assert_eq!(main.exec(&["sh", "-c", "kill -9 $$"]).code, 137);
    assert!(main.exec(&["/nothing/here"]).fails_with(127).contains("/nothing/here"));
    assert!(main.exec(&["/etc/passwd"]).fails_with(126).contains("/etc/passwd"));
    let both = main.exec(&["sh", "-c", "echo out; echo err >&2"]);
    assert_eq!((both.stdout.as_str(), both.stderr.as_str()), ("out\n", "err\n"));
    let fed = node.feed(&["exec", "-i", "shell", "--", "cat"], &b"line\n".repeat(100_000));
    assert_eq!(fed.ok().len(), 500_000);
}

#[test]
fn a_full_disk_stops_what_needs_room_and_nothing_else() {
    // What the kernel says is looked at here; that nobody is evicted for it, in `resources`.
    let without_eviction = format!("{QUICK}evictionHard: {{}}\n");
    let node = NodeBox::builder().with_registry().disk(144).config(&without_eviction).start();
    let counting = node.put(&pod("counting").runs("main", "count --every 5ms"));
    let config =
        |data: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: app}}\ndata: {{size: {data}, more: {data}}}\n");
    node.apply("app.yaml", &config("small"));
    let volumes = "volumes: [{name: app, configMap: {name: app}}, {name: scratch, emptyDir: {}}]";
    let mounts = "volumeMounts: [{name: app, mountPath: /app}, {name: scratch, mountPath: /scratch}]";
    let writes = node.put(&pod("writes").spec(volumes).runs_with("main", "sleep", mounts));
    counting.is_ready();
    writes.is_ready();
    let id = counting.container("main").id();
    node.inside("sh", &["-c", &format!("cat /dev/zero > {}/fill", node.root().display())]).fails();
    let late = node.put(&pod("late").runs("main", "sleep"));
    late.tells(&["Failed", "No space left"]);
    counting.container("main").is_running();
    assert_eq!(counting.container("main").demo("echo still here"), "still here");
    // A volume says so to who writes; one of files goes on as it was, whole.
    let refused = writes.container("main").exec(&["/demo", "write", "/scratch/x", &"x".repeat(20_000)]).fails();
    assert!(refused.contains("No space left"), "{refused}");
    let large = "x".repeat(100_000);
    node.apply("app.yaml", &config(&large));
    writes.tells(&["FailedMount", "\"app\"", "No space left"]);
    assert_eq!(writes.container("main").demo("read /app/size"), "small");
    node.kill_agent();
    node.start_agent();
    counting.container("main").is_running();

    node.inside("rm", &[&format!("{}/fill", node.root().display())]).ok();
    late.is_ready();
    assert_eventually!(writes.container("main").demo("read /app/more") == large, "the volume follows when there is room");
    assert_eq!(writes.container("main").demo("read /app/size"), large);
    writes.container("main").demo("write /scratch/x y");
    let lines = counting.container("main").logs(&[]).lines().count();
    assert_eventually!(counting.container("main").logs(&[]).lines().count() > lines, "the log goes on");

    // An image that is larger than the disk: refused before or while it's unpacked, and nothing of it stays.
    let large = node.put(&pod("large").image("main", "nginx:1", ""));
    large.tells(&["Failed", "no space left"]);
    node.remove("large.yaml");
    large.is_gone();
    assert_eq!((counting.container("main").id(), counting.container("main").restarts()), (id, 0));
}

#[test]
fn without_root_the_agent_says_so_and_leaves_nothing() {
    let node = NodeBox::builder().without_agent().start();
    let before = node.snapshot();
    let folder = node.folder().to_path_buf();
    std::os::unix::fs::chown(&folder, Some(65534), Some(65534)).unwrap();
    std::os::unix::fs::chown(node.root(), Some(65534), Some(65534)).unwrap();
    let agent = node.agent_command();
    let mut words: Vec<_> = agent.get_args().collect();
    let program = words.iter().position(|word| word.to_string_lossy().ends_with("/nodeagent")).unwrap();
    let rest = words.split_off(program);
    let mut command = std::process::Command::new(agent.get_program());
    command.args(&words).args(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]).args(rest);
    let told = e2e::run(&mut command).fails();
    assert!(told.contains("root"), "{told}");
    node.is_as(&before);
}
