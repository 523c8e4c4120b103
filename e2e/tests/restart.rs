//! The agent may die at any moment, be upgraded or lose power: no pod notices, or all come back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use e2e::{NodeBox, Pod, assert_eventually, eventually, pod};

/// Whether the numbers in a log of `demo count` follow each other.
fn continuous(log: &str) -> Result<usize, String> {
    let numbers: Vec<u64> = log.lines().filter_map(|line| line.parse().ok()).collect();
    match numbers.windows(2).find(|pair| pair[1] != pair[0] + 1) {
        Some(pair) => Err(format!("{} follows {}", pair[1], pair[0])),
        None => Ok(numbers.len()),
    }
}

fn is_untouched(pod: &Pod<'_>, container: &str, id: &str) {
    pod.becomes("Running");
    assert_eq!(pod.container(container).id(), id);
    assert_eq!(pod.container(container).restarts(), 0);
}

#[test]
fn a_killed_agent_adopts_all_pods_and_restarts_none() {
    let node = NodeBox::start();
    let counting = node.put(&pod("counting").runs("main", "count --every 5ms").runs("other", "sleep"));
    counting.becomes("Running");
    let id = counting.container("main").id();
    counting.container("main").logged("\n20\n");
    for _ in 0..3 {
        node.kill_agent();
        node.start_agent();
        is_untouched(&counting, "main", &id);
    }
    // The holder wrote on while nobody looked.
    let seen = continuous(&counting.container("main").logs(&[])).unwrap();
    assert_eventually!(continuous(&counting.container("main").logs(&[])).unwrap() > seen, "the log goes on");
    // What works with a pod works with an adopted one.
    assert_eq!(counting.container("other").demo("echo still here"), "still here");
    let pid = counting.container("other").host_pid();
    node.inside("kill", &["-9", &pid.to_string()]).ok();
    counting.container("other").was_restarted(1);
    node.remove("counting.yaml");
    counting.is_gone();
    assert_eventually!(node.snapshot().facts("process").is_empty(), "no process is left");
}

#[test]
fn sigterm_leaves_the_pods_running() {
    let node = NodeBox::start();
    let counting = node.put(&pod("counting").runs("main", "count --every 5ms"));
    counting.becomes("Running");
    let (id, pid) = (counting.container("main").id(), counting.container("main").host_pid());
    assert_eq!(node.stop_agent(), 0);
    node.inside("kill", &["-0", &pid.to_string()]).ok();
    node.start_agent();
    is_untouched(&counting, "main", &id);
    continuous(&counting.container("main").logs(&[])).unwrap();
}

#[test]
fn drain_ends_the_pods() {
    let node = NodeBox::builder().argument("--drain").without_agent().start();
    let before = node.snapshot();
    node.start_agent();
    node.put(&pod("one").runs("main", "sleep")).becomes("Running");
    node.put(&pod("two").runs("main", "sleep")).becomes("Running");
    assert_eq!(node.stop_agent(), 0);
    node.is_as(&before);
}

#[test]
fn an_exit_that_nobody_saw_is_not_lost() {
    let node = NodeBox::start();
    let job = node.put(&pod("job").spec("restartPolicy: Never").runs("main", "sleep"));
    job.becomes("Running");
    let pid = job.container("main").host_pid();
    node.kill_agent();
    node.inside("kill", &["-9", &pid.to_string()]).ok();
    node.start_agent();
    job.becomes("Failed");
    job.container("main").exited_with(137);
}

#[test]
fn what_changed_while_the_agent_was_away_is_done_when_it_is_back() {
    let node = NodeBox::start();
    let (gone, edited) = (node.put(&pod("gone").runs("main", "sleep")), node.put(&pod("edited").runs("main", "sleep")));
    gone.becomes("Running");
    edited.becomes("Running");
    let id = edited.container("main").id();
    node.kill_agent();
    node.remove("gone.yaml");
    node.put(&pod("edited").runs("main", "count"));
    let new = node.put(&pod("new").runs("main", "sleep"));
    node.start_agent();
    gone.is_gone();
    new.becomes("Running");
    edited.until("was made anew", |object| {
        let status = edited.container("main").status(object);
        let other = status["state"]["running"].is_object() && status["containerID"] != id.as_str();
        if other { Ok(()) } else { Err(status.to_string()) }
    });
    edited.container("main").logged("1\n");
}

#[test]
fn killed_at_any_step_of_a_start_or_an_end_it_loses_and_leaks_nothing() {
    let node = NodeBox::builder().argument("--drain").without_agent().start();
    let before = node.snapshot();
    node.start_agent();
    for (round, pause) in [0, 1, 2, 4, 7, 11, 16, 25].into_iter().enumerate() {
        let name = format!("round-{round}");
        node.put(&pod(&name).runs("a", "sleep").runs("b", "sleep"));
        std::thread::sleep(Duration::from_millis(pause));
        node.kill_agent();
        node.start_agent();
        let made = node.pod(&name);
        made.is_ready();
        for container in ["a", "b"] {
            assert_eq!(made.container(container).restarts(), 0, "round {round}");
        }
        node.remove(&format!("{name}.yaml"));
        std::thread::sleep(Duration::from_millis(pause));
        node.kill_agent();
        node.start_agent();
        made.is_gone();
    }
    assert_eq!(node.stop_agent(), 0);
    node.is_as(&before);
}

#[test]
fn after_a_reboot_the_pods_start_again() {
    let node = NodeBox::start();
    let back = node.put(&pod("back").spec("hostname: box").runs_with(
        "web",
        "serve --port 8080",
        "ports: [{containerPort: 8080, hostPort: 9001}]",
    ));
    back.becomes("Running");
    let id = back.container("web").id();
    node.reboot();
    node.start_agent();
    back.until("runs anew", |object| {
        let status = back.container("web").status(object);
        let other = status["state"]["running"].is_object() && status["containerID"] != id.as_str();
        if other { Ok(()) } else { Err(status.to_string()) }
    });
    let page = eventually("the page answers", || node.curl(&format!("http://{}:9001/hostname", e2e::INSIDE)).result());
    assert_eq!(page.trim(), "box");
    node.remove("back.yaml");
    back.is_gone();
    assert_eventually!(node.snapshot().facts("process").is_empty(), "no process is left");
    assert_eventually!(node.snapshot().facts("cgroup").iter().all(|path| !path.contains("pod")), "no cgroup is left");
}

#[test]
fn a_holder_that_dies_ends_its_containers_and_the_pod_is_made_anew() {
    let node = NodeBox::start();
    let (hit, spared) =
        (node.put(&pod("hit").runs("a", "sleep").runs("b", "sleep")), node.put(&pod("spared").runs("a", "sleep")));
    hit.is_ready();
    spared.is_ready();
    let (id, pids) = (hit.container("a").id(), [hit.container("a").host_pid(), hit.container("b").host_pid()]);
    let processes = node.inside("ps", &["-e", "-o", "pid=,args="]).ok();
    let holder = processes
        .lines()
        .find(|line| line.contains("podholder") && line.contains("default/hit"))
        .unwrap_or_else(|| panic!("{processes}"));
    node.inside("kill", &["-9", holder.split_whitespace().next().unwrap()]).ok();
    for pid in pids {
        assert_eventually!(node.inside("kill", &["-0", &pid.to_string()]).code != 0, "process {pid} is gone");
    }
    hit.until("runs anew", |object| {
        let status = hit.container("a").status(object);
        let other = status["state"]["running"].is_object() && status["containerID"] != id.as_str();
        if other { Ok(()) } else { Err(status.to_string()) }
    });
    hit.is_ready();
    assert!(hit.events().iter().any(|event| event.to_lowercase().contains("holder")), "{:#?}", hit.events());
    assert_eq!(spared.container("a").restarts(), 0);
}
