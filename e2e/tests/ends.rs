//! Pods that are over, or nearly: what is left of them, and what an agent that comes after makes of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use e2e::{Manifest, NodeBox, Pod, SHARED, assert_eventually, eventually, pod};
use jiff::{SignedDuration, Timestamp};
use rstest::rstest;
use serde_json::Value;

/// Restarts that tests can wait for.
const QUICK: &str =
    "apiVersion: nodeagent.dev/v1\nkind: NodeAgentConfiguration\ncrashLoopBackOff: {initial: 100ms, max: 400ms}\n";

fn quick() -> NodeBox {
    NodeBox::builder().config(QUICK).start()
}

/// One that ends by itself and doesn't run again.
fn job(name: &str, words: &str) -> Manifest {
    pod(name).spec("restartPolicy: Never").shares_a_folder().runs_with("main", words, SHARED)
}

/// Folders, processes and cgroups of pods.
fn remains(node: &NodeBox) -> Vec<String> {
    let snapshot = node.snapshot();
    let of_pods = |facts: Vec<&str>| facts.into_iter().filter(|fact| fact.contains("/pod")).map(str::to_owned).collect();
    let folders: Vec<String> = of_pods(snapshot.facts("file"));
    let folders = folders.into_iter().filter(|path| !path.ends_with("/pods"));
    let cgroups: Vec<String> = of_pods(snapshot.facts("cgroup"));
    folders.chain(cgroups).chain(snapshot.facts("process").into_iter().map(str::to_owned)).collect()
}

#[track_caller]
fn nothing_is_left(node: &NodeBox) {
    eventually("nothing is left of any pod", || {
        let left = remains(node);
        if left.is_empty() { Ok(()) } else { Err(left.join("\n")) }
    });
}

fn another_agent(node: &NodeBox) {
    node.kill_agent();
    node.start_agent();
}

fn kill_holder(node: &NodeBox, pod: &str) {
    let processes = node.inside("ps", &["-e", "-o", "pid=,args="]).ok();
    let holder = processes.lines().find(|line| line.contains("podholder") && line.contains(pod));
    node.inside("kill", &["-9", holder.unwrap_or_else(|| panic!("{processes}")).split_whitespace().next().unwrap()]).ok();
}

#[test]
fn a_pod_that_was_stopped_ends_also_under_another_agent() {
    let node = NodeBox::start();
    let web = node.put(&pod("web").spec("terminationGracePeriodSeconds: 600").runs("main", "sleep"));
    web.is_ready();
    let pid = web.container("main").host_pid().to_string();
    node.inside("kill", &["-STOP", &pid]).ok();
    node.run(&["stop", "web"]).ok();
    web.until("ends", |pod| pod["metadata"]["deletionTimestamp"].as_str().map(drop).ok_or_else(|| pod.to_string()));
    another_agent(&node);
    node.inside("kill", &["-CONT", &pid]).ok();
    nothing_is_left(&node);
    assert!(web.get().is_none(), "it stays stopped");
    node.run(&["start", "web"]).ok();
    web.is_ready();
}

#[test]
fn a_stopped_pod_whose_file_went_runs_when_the_file_comes_back() {
    let node = NodeBox::start();
    let manifest = pod("web").runs("main", "sleep");
    let web = node.put(&manifest);
    web.is_ready();
    node.run(&["stop", "web"]).ok();
    web.is_gone();
    node.stop_agent();
    node.remove("web.yaml");
    node.start_agent();
    node.put(&manifest);
    web.is_ready();
}

fn status(pod: &Pod<'_>) -> Value {
    pod.until("is there", |pod| Ok(pod["status"].clone()))
}

/// Each condition's type, status and time.
fn conditions(status: &Value) -> Vec<(&str, &str, Timestamp)> {
    let text = |value: &Value| value.as_str().expect("a text").parse().expect("a time");
    let all = status["conditions"].as_array().expect("conditions").iter();
    all.map(|c| (c["type"].as_str().unwrap(), c["status"].as_str().unwrap(), text(&c["lastTransitionTime"]))).collect()
}

#[test]
fn what_was_is_the_same_to_another_agent() {
    let node = quick();
    let probe = "readinessProbe: {exec: {command: [/demo, await, /tmp/go]}, periodSeconds: 1}";
    let ready = node.put(&pod("ready").first_runs("init", "exit 0", "").runs_with("main", "sleep", probe));
    let done = node.put(&job("done", "exit 0"));
    let failed = node.put(&job("failed", "exit 3"));
    let late = node.put(&pod("late").spec("activeDeadlineSeconds: 2").runs("main", "exit 3"));
    done.becomes("Succeeded");
    failed.becomes("Failed");
    late.becomes("Failed");
    ready.container("main").demo("write /tmp/go now");
    ready.is_ready();
    let pods = [ready, done, failed, late];
    let before: Vec<Value> = pods.iter().map(status).collect();
    assert!(before[3]["containerStatuses"][0]["lastState"]["terminated"].is_object(), "{}", before[3]);
    // Times are told in seconds.
    std::thread::sleep(Duration::from_secs(3));
    another_agent(&node);
    for (pod, before) in pods.iter().zip(before) {
        let after = status(pod);
        for field in ["initContainerStatuses", "containerStatuses", "phase", "reason", "message", "startTime", "podIP"] {
            assert_eq!(after[field], before[field], "{field}");
        }
        for (was, is) in conditions(&before).into_iter().zip(conditions(&after)) {
            assert_eq!((was.0, was.1), (is.0, is.1));
            assert!(was.2.duration_since(is.2).abs() <= SignedDuration::from_secs(1), "{was:?} is {is:?}");
        }
    }
}

#[rstest]
#[case::by_this_agent(false)]
#[case::as_no_agent_looks(true)]
fn an_edit_of_what_has_completed_begins_with_nothing_of_it(#[case] away: bool) {
    let node = NodeBox::start();
    let job_ = node.put(&job("job", "write /shared/x old"));
    let image = node.put(&job("image", "exit 0"));
    job_.becomes("Succeeded");
    image.becomes("Succeeded");
    if away {
        node.kill_agent();
    }
    node.put(&job("job", "read /shared/x"));
    let other = "image: localhost/other:latest\nimagePullPolicy: Never";
    let yaml = job("image", "exit 0").yaml().replace("image: localhost/nodeagent-demo:latest", &other.replace('\n', "\n    "));
    node.apply("image.yaml", &yaml);
    if away {
        node.start_agent();
    }
    job_.becomes("Failed");
    assert_eq!(job_.container("main").restarts(), 0);
    image.container("main").waits_because("ErrImageNeverPull");
}

/// The same as if the agent had seen it.
#[rstest]
#[case::by_this_agent(false)]
#[case::as_no_agent_looks(true)]
fn what_never_restarts_has_failed_when_its_holder_ends(#[case] away: bool) {
    let node = NodeBox::start();
    let never = node.put(&job("never", "sleep"));
    let always = node.put(&pod("always").runs("main", "sleep"));
    never.is_ready();
    always.is_ready();
    if away {
        node.kill_agent();
    }
    kill_holder(&node, "default/never");
    kill_holder(&node, "default/always");
    if away {
        node.start_agent();
    }
    never.becomes("Failed");
    assert_eq!(never.container("main").exited_with(137)["reason"], "ContainerStatusUnknown");
    assert_eq!(never.container("main").restarts(), 0);
    always.container("main").was_restarted(1);
    always.is_ready();
    let last = always
        .container("main")
        .until("has a last state", |status| Some(status["lastState"]["terminated"].clone()).filter(Value::is_object));
    assert_eq!(last["reason"], "ContainerStatusUnknown");
    node.remove("never.yaml");
    node.remove("always.yaml");
    never.is_gone();
    always.is_gone();
    nothing_is_left(&node);
}

#[test]
fn a_start_that_failed_once_does_its_neighbours_no_harm_and_leaves_nothing() {
    let node = quick();
    let host = node.folder().join("host");
    std::fs::create_dir(&host).unwrap();
    let volumes = format!("volumes: [{{name: host, hostPath: {{path: {}}}}}]", host.display());
    let command = "command: [/host/demo, exit, \"0\"]\nvolumeMounts: [{name: host, mountPath: /host}]";
    let two = node.put(&pod("two").spec(&volumes).runs("calm", "sleep").runs_with("late", "", command));
    let (calm, late) = (two.container("calm"), two.container("late"));
    late.was_restarted(4);
    assert_eq!(late.ended()["reason"], "StartError");
    std::os::unix::fs::symlink("/demo", host.join("demo")).unwrap();
    let runs = |status: &Value| {
        let (now, last) = (&status["state"]["terminated"], &status["lastState"]["terminated"]);
        [now, last].iter().any(|end| end["exitCode"] == 0).then(|| status["restartCount"].as_u64().unwrap())
    };
    let first = late.until("runs", runs);
    late.was_restarted(first + 4);
    assert_eq!(calm.restarts(), 0);
    let folders = node.root().join("var/lib/nodeagent/pods").join(two.uid()).join("containers/late");
    assert_eventually!(std::fs::read_dir(&folders).unwrap().count() <= 3, "what earlier attempts had is removed");
}

#[test]
fn a_completed_pod_holds_no_memory_and_no_users() {
    let config = format!("{QUICK}userNamespaces: {{maxPods: 1}}\n");
    let node = NodeBox::builder().config(&config).start();
    node.apply("secret.yaml", "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {a: b}\n");
    let volumes = "volumes: [{name: m, emptyDir: {medium: Memory}}, {name: s, secret: {secretName: s}}, {name: d, emptyDir: {}}]";
    let mounts = "volumeMounts: [{name: m, mountPath: /m}, {name: s, mountPath: /s}, {name: d, mountPath: /d}]";
    for name in ["one", "two"] {
        let done = node.put(&pod(name).spec("hostUsers: false").spec("restartPolicy: Never").spec(volumes).runs_with(
            "main",
            "write /m/x y",
            mounts,
        ));
        done.becomes("Succeeded");
        let uid = done.uid();
        let snapshot = node.snapshot();
        let mounts: Vec<&str> = snapshot.facts("mount").into_iter().filter(|mount| mount.contains(&uid)).collect();
        assert_eq!(mounts, Vec::<&str>::new());
    }
    for name in ["one", "two"] {
        node.remove(&format!("{name}.yaml"));
        node.pod(name).is_gone();
    }
    nothing_is_left(&node);
}

#[test]
fn a_pod_that_has_succeeded_is_not_evicted_for_what_it_wrote() {
    let node = NodeBox::start();
    let large = |name: &str, words: &str| {
        let volumes = "volumes: [{name: shared, emptyDir: {sizeLimit: 1}}]";
        node.put(&pod(name).spec("restartPolicy: Never").spec(volumes).runs_with("main", words, SHARED))
    };
    let done = large("done", "write /shared/x much");
    done.becomes("Succeeded");
    // Who runs on is measured as often.
    let runs = large("runs", "count --into /shared/x");
    runs.is_rejected("Evicted", "exceeds the limit");
    assert_eq!(status(&done)["phase"], "Succeeded", "{}", status(&done));
}

/// Perhaps it is the file's that can't be read now.
#[test]
fn what_has_completed_stays_so_while_its_file_is_wrong() {
    let node = NodeBox::start();
    let manifest = job("job", "exit 0");
    let job = node.put(&manifest);
    job.becomes("Succeeded");
    let before = status(&job)["containerStatuses"].clone();
    node.kill_agent();
    node.apply("job.yaml", "spec: {");
    node.start_agent();
    job.becomes("Succeeded");
    node.put(&manifest);
    node.tells(&["ManifestMended", "job.yaml"]);
    job.becomes("Succeeded");
    assert_eq!(status(&job)["containerStatuses"], before);
    // Mended, and the pod isn't in it any more.
    node.kill_agent();
    node.apply("job.yaml", "spec: {");
    node.start_agent();
    job.becomes("Succeeded");
    node.apply("job.yaml", &manifest.yaml().replace("name: job", "name: other"));
    job.is_gone();
    node.pod("other").becomes("Succeeded");
    node.remove("job.yaml");
    node.pod("other").is_gone();
    nothing_is_left(&node);
}

/// Something of it can't be removed yet, and the agent dies over it.
#[rstest]
#[case::by_itself("restartPolicy: Never", "await /shared/go", "Succeeded")]
#[case::evicted("restartPolicy: Always", "count --into /shared/x", "Failed")]
fn what_is_over_does_not_run_again_when_the_agent_dies_as_it_clears_up(
    #[case] policy: &str,
    #[case] words: &str,
    #[case] phase: &str,
) {
    let node = NodeBox::start();
    let volumes = "volumes: [{name: shared, emptyDir: {}}, {name: small, emptyDir: {sizeLimit: 1}}]";
    let mounts = "volumeMounts: [{name: shared, mountPath: /shared}, {name: small, mountPath: /small}]";
    let job = node.put(&pod("job").spec(policy).spec(volumes).runs_with("main", words, mounts));
    job.becomes("Running");
    let busy = node.root().join("var/lib/nodeagent/pods").join(job.uid()).join("containers/busy");
    std::fs::create_dir(&busy).unwrap();
    let busy = busy.to_str().unwrap();
    node.inside("mount", &["-t", "tmpfs", "busy", busy]).ok();
    let end = if phase == "Succeeded" { "/shared/go" } else { "/small/x" };
    job.container("main").demo(&format!("write {end} now"));
    job.tells(&["FailedKillPod", "containers"]);
    job.becomes(phase);
    let before = status(&job);
    node.kill_agent();
    node.inside("umount", &[busy]).ok();
    node.start_agent();
    job.becomes(phase);
    let after = status(&job);
    for field in ["containerStatuses", "reason", "message"] {
        assert_eq!(after[field], before[field], "{field}");
    }
    node.remove("job.yaml");
    job.is_gone();
    nothing_is_left(&node);
}
