//! What containers write is kept, whoever dies or looks away meanwhile, and told in every way that kubectl's users know.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::PathBuf;

use e2e::{NodeBox, Pod, assert_eventually, eventually, pod};

fn small_logs(files: u32) -> NodeBox {
    let config = format!(
        "apiVersion: nodeagent.dev/v1\nkind: NodeAgentConfiguration\ncontainerLogMaxSize: 64Ki\ncontainerLogMaxFiles: {files}\n\
         crashLoopBackOff: {{initial: 100ms, max: 400ms}}\n"
    );
    NodeBox::builder().config(&config).start()
}

/// The files of a container's log.
fn files(node: &NodeBox, pod: &Pod<'_>, container: &str) -> Vec<PathBuf> {
    let name = pod.get().unwrap()["metadata"]["name"].as_str().unwrap().to_string();
    let folder = node.root().join("var/log/pods").join(format!("default_{name}_{}", pod.uid())).join(container);
    std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// The numbers of `demo spam`'s or `demo count`'s lines.
fn numbers(log: &str) -> Vec<u64> {
    log.lines().map(|line| line.split(' ').next().unwrap().parse().unwrap_or_else(|_| panic!("{line:?} has no number"))).collect()
}

#[track_caller]
fn follow_each_other(numbers: &[u64]) {
    let gap = numbers.windows(2).find(|pair| pair[1] != pair[0] + 1);
    assert!(gap.is_none(), "a line is lost or doubled: {gap:?}");
}

#[test]
fn logs_are_read_across_rotations() {
    let node = small_logs(1000);
    let spam = node.put(&pod("spam").spec("restartPolicy: Never").runs("main", "spam 1000000"));
    spam.becomes("Succeeded");
    let log = spam.container("main").logs(&[]);
    let all = numbers(&log);
    assert_eq!((all.first(), all.last(), all.len()), (Some(&0), Some(&9999), 10_000));
    follow_each_other(&all);
    let parts = files(&node, &spam, "main");
    assert!(parts.len() > 10, "{parts:?}");
    for part in parts {
        assert!(part.metadata().unwrap().len() <= 64 * 1024, "{}", part.display());
    }
    // The last lines also where they lie in more than one file.
    assert_eq!(numbers(&spam.container("main").logs(&["--tail", "3000"])), all[7000..]);
}

#[test]
fn rotated_logs_are_as_many_as_may_be() {
    let node = small_logs(3);
    let spam = node.put(&pod("spam").spec("restartPolicy: Never").runs("main", "spam 1000000"));
    spam.becomes("Succeeded");
    assert_eventually!(files(&node, &spam, "main").len() <= 3, "no more than three files stay");
    let rest = numbers(&spam.container("main").logs(&[]));
    assert_eq!(rest.last(), Some(&9999));
    follow_each_other(&rest);
}

#[test]
fn a_follower_misses_nothing_over_rotations_and_ends_with_the_container() {
    let node = small_logs(1000);
    let counting = node.put(&pod("counting").spec("restartPolicy: Never").runs("main", "count --every 0ms"));
    counting.becomes("Running");
    let mut follower = counting.container("main").follow(&[]);
    assert_eventually!(files(&node, &counting, "main").len() > 4, "the log was rotated some times");
    node.remove("counting.yaml");
    assert_eq!(follower.ends(), 0);
    counting.is_gone();
    let output = follower.output();
    let lines = output.rsplit_once("SIGTERM").map_or(output.as_str(), |(before, _)| before.rsplit_once('\n').unwrap().0);
    let all = numbers(lines);
    assert_eq!(all.first(), Some(&1));
    follow_each_other(&all);
}

#[test]
fn the_log_of_the_life_before_is_kept() {
    let node = small_logs(5);
    let again = node.put(&pod("again").runs("talks", "echo first words"));
    again.container("talks").was_restarted(1);
    assert_eq!(again.container("talks").logs(&["--previous"]), "first words\n");
    let once = node.put(&pod("once").runs("main", "sleep"));
    once.is_ready();
    assert!(once.run(&["logs"], &["--previous"]).fails().contains("previous"));
}

#[test]
fn tail_since_and_timestamps() {
    let node = small_logs(1000);
    let counting = node.put(&pod("counting").runs("main", "count --every 10ms").runs("quiet", "sleep"));
    let main = counting.container("main");
    main.logged("\n50\n");
    let tail = numbers(&main.logs(&["--tail", "5"]));
    assert_eq!(tail.len(), 5);
    follow_each_other(&tail);
    assert_eq!(main.logs(&["--tail", "0"]), "");
    assert_eq!(counting.container("quiet").logs(&[]), "");

    let stamped = main.logs(&["--timestamps", "--tail", "20"]);
    let times: Vec<&str> = stamped.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert!(times.windows(2).all(|pair| pair[0] <= pair[1]) && times[0].contains('T'), "{times:?}");
    // From the time of a line on: that line is the first.
    let (time, number) = stamped.lines().nth(7).unwrap().split_once(' ').unwrap();
    let since = main.logs(&["--since-time", time]);
    assert_eq!(since.lines().next(), Some(number));
    assert!(numbers(&main.logs(&["--since", "1h"])).len() > 50);
    main.logged("\n150\n");
    let recent = numbers(&main.logs(&["--since", "1s"]));
    assert!(recent[0] > 1, "{recent:?}");
    // A follower with a tail goes on from there.
    let follower = main.follow(&["--tail", "1"]);
    eventually("the follower goes on", || {
        let all = numbers(follower.output().rsplit_once('\n').map_or("", |(whole, _)| whole));
        if all.len() > 10 && all[0] > 100 { Ok(()) } else { Err(format!("{all:?}")) }
    });
}

#[test]
fn long_lines_are_one_line_and_the_last_needs_no_end() {
    let node = NodeBox::builder().with_registry().start();
    let long = node.put(&pod("long").spec("restartPolicy: Never").runs("main", "line 1000000"));
    let script = "printf 'to stdout\\n'; printf 'to stderr\\n' >&2; printf 'no end'";
    let open = node.put(&pod("open").spec("restartPolicy: Never").shell("main", "busybox:1", script));
    long.becomes("Succeeded");
    open.becomes("Succeeded");
    let line = long.container("main").logs(&[]);
    assert_eq!((line.len(), line.lines().count()), (1_000_000, 1));
    // On the disk it is in parts, as CRI has it: the first ones marked P, the last F.
    let raw = std::fs::read_to_string(&files(&node, &long, "main")[0]).unwrap();
    let tags: Vec<&str> = raw.lines().map(|line| line.split(' ').nth(2).unwrap()).collect();
    assert!(tags.len() > 1 && tags[..tags.len() - 1].iter().all(|tag| *tag == "P") && tags.last() == Some(&"F"), "{tags:?}");

    let said = open.container("main").logs(&[]);
    assert!(said.contains("to stdout\n") && said.contains("to stderr\n") && said.contains("no end"), "{said:?}");
    let raw = std::fs::read_to_string(&files(&node, &open, "main")[0]).unwrap();
    assert!(raw.contains(" stdout F to stdout\n") && raw.contains(" stderr F to stderr\n"), "{raw}");
}

#[test]
fn all_containers_at_once_each_with_its_name() {
    let node = NodeBox::start();
    let all = node.put(
        &pod("all")
            .spec("restartPolicy: Never")
            .first_runs("init", "echo zero", "")
            .runs("one", "echo one")
            .runs("two", "echo two"),
    );
    all.becomes("Succeeded");
    assert_eq!(all.run(&["logs"], &["--all-containers"]).ok(), "zero\none\ntwo\n");
    let prefixed = all.run(&["logs"], &["--all-containers", "--prefix"]).ok();
    assert!(prefixed.contains("[pod/all/init] zero\n") && prefixed.contains("[pod/all/two] two\n"), "{prefixed}");
    // Which one is meant is asked where it isn't plain; which there are is told.
    let unknown = all.run(&["logs"], &["-c", "three"]).fails();
    assert!(unknown.contains("three"), "{unknown}");
    assert!(node.run(&["logs", "nobody"]).fails().contains("not found"));
}

#[test]
fn no_line_is_lost_while_the_agent_is_dead() {
    let node = NodeBox::start();
    let spam = node.put(&pod("spam").spec("restartPolicy: Never").runs("main", "spam 50000000"));
    spam.container("main").logged("000000000000");
    node.kill_agent();
    node.start_agent();
    node.kill_agent();
    node.start_agent();
    spam.becomes("Succeeded");
    let all = numbers(&spam.container("main").logs(&[]));
    assert_eq!(all.last(), Some(&499_999));
    follow_each_other(&all);
}

#[test]
fn the_log_goes_with_its_pod() {
    let node = NodeBox::start();
    let gone = node.put(&pod("gone").runs("main", "echo hello"));
    gone.container("main").logged("hello");
    let folder = files(&node, &gone, "main")[0].parent().unwrap().parent().unwrap().to_path_buf();
    assert!(folder.exists());
    node.remove("gone.yaml");
    gone.is_gone();
    assert_eventually!(!folder.exists(), "the log's folder is gone");
}
