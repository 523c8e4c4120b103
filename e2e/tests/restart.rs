//! The agent may die at any moment, be upgraded or lose power: no pod notices, or all come back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use e2e::{NodeBox, Pod, assert_eventually, eventually, pod, run};

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

#[test]
fn a_second_agent_on_one_root_learns_who_holds_it() {
    let node = NodeBox::start();
    let kept = node.put(&pod("kept").runs("main", "sleep"));
    kept.is_ready();
    let id = kept.container("main").id();
    let told = run(&mut node.agent_command()).fails();
    let inside = node.inside("pgrep", &["-f", "nodeagent.*--manifests"]).ok();
    let holder = format!("process {} ", inside.lines().next().unwrap());
    assert!(told.contains("another nodeagent holds") && told.contains(&holder), "{holder:?} is not in {told}");
    is_untouched(&kept, "main", &id);
    // The dead hold nothing.
    node.kill_agent();
    node.start_agent();
    is_untouched(&kept, "main", &id);
}

#[test]
fn two_agents_with_a_root_each_share_a_machine() {
    let node = NodeBox::start();
    let before = node.snapshot();
    let second_root = node.folder().join("second");
    let manifests = node.folder().join("second-manifests");
    std::fs::create_dir(&manifests).unwrap();
    let mut command = node.command(e2e::binary("nodeagent").to_str().unwrap());
    command.arg("--config").arg(node.configuration());
    command.arg("--manifests").arg(&manifests).arg("--root").arg(&second_root);
    command.args(["--bridge", "second0", "--pod-cidr", "10.99.0.0/16", "--nft-table", "second", "--drain"]);
    command.args(["--cgroup-parent", &format!("{}/second", node.cgroup_parent())]);
    let mut second = e2e::Running::start(&mut command);
    // The same pod on both, with the same port of its own: neither knows of the other.
    let web = pod("web").runs("main", "serve --port 8080");
    std::fs::write(manifests.join("web.yaml"), web.yaml()).unwrap();
    let first = node.put(&web);
    first.is_ready();
    let client = |words: &[&str]| {
        let mut command = node.command(e2e::binary("nodeagent").to_str().unwrap());
        run(command.arg("--root").arg(&second_root).args(words))
    };
    let address = eventually("the second's pod runs", || {
        let wide = client(&["get", "pods", "-o", "wide", "--no-headers"]).result()?;
        let runs = wide.contains("Running");
        wide.split_whitespace().find(|word| runs && word.starts_with("10.99.")).map(str::to_string).ok_or(wide)
    });
    eventually("the second's page answers", || node.curl(&format!("http://{address}:8080/hostname")).result());
    eventually("the first's page answers", || node.curl(&format!("http://{}:8080/hostname", first.ip())).result());
    let id = first.container("main").id();
    // The second ends, and takes along what is its own.
    let pid = node.inside("pgrep", &["-f", "nodeagent.*second0"]).ok();
    node.inside("kill", &["-TERM", pid.lines().next().unwrap()]).ok();
    assert_eq!(second.ends(), 0);
    is_untouched(&first, "main", &id);
    eventually("the first's page answers still", || node.curl(&format!("http://{}:8080/hostname", first.ip())).result());
    let left: Vec<String> = node.snapshot().since(&before).into_iter().filter(|fact| fact.contains("second")).collect();
    assert_eq!(left, Vec::<String>::new());
}

#[test]
fn killed_at_random_moments_beside_many_pods() {
    let node = NodeBox::builder().argument("--drain").without_agent().start();
    let before = node.snapshot();
    node.start_agent();
    let steady = node.put(&pod("steady").runs("main", "count --every 5ms"));
    steady.becomes("Running");
    let id = steady.container("main").id();
    for round in 0..6 {
        let names: Vec<String> = (0..5).map(|number| format!("r{round}-{number}")).collect();
        let put = |name: &String| node.put(&pod(name).first_runs("init", "exit 0", "").runs("a", "sleep").runs("b", "sleep"));
        names[..3].iter().for_each(|name| drop(put(name)));
        let pause = Duration::from_micros(u64::from(nanoseconds() % 60_000));
        std::thread::sleep(pause);
        node.kill_agent();
        names[3..].iter().for_each(|name| drop(put(name)));
        node.remove(&format!("{}.yaml", names[0]));
        node.start_agent();
        for name in &names[1..] {
            let made = node.pod(name);
            made.is_ready();
            assert_eq!(made.container("a").restarts() + made.container("b").restarts(), 0, "{name} after {pause:?}");
        }
        node.pod(&names[0]).is_gone();
        names[1..].iter().for_each(|name| node.remove(&format!("{name}.yaml")));
        std::thread::sleep(pause / 2);
        node.kill_agent();
        node.start_agent();
        names.iter().for_each(|name| node.pod(name).is_gone());
        is_untouched(&steady, "main", &id);
    }
    continuous(&steady.container("main").logs(&[])).unwrap();
    assert_eq!(node.stop_agent(), 0);
    node.is_as(&before);
}

/// As random as is needed.
fn nanoseconds() -> u32 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos()
}
