//! What pods ask for and may have: in the kernel's files, at the door, at an edit, and when the machine runs out.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};

use e2e::{NodeBox, Pod, eventually, pod};
use rstest::rstest;
use serde_json::Value;

const HEAD: &str = "apiVersion: nodeagent.dev/v1\nkind: NodeAgentConfiguration\n";

/// A node with these settings, one a line.
fn configured(lines: &str) -> NodeBox {
    NodeBox::builder().config(&format!("{HEAD}{lines}")).start()
}

/// Where a controller of v1 is, or all are on v2.
fn hierarchy(controller: &str) -> PathBuf {
    let v1 = Path::new("/sys/fs/cgroup").join(controller);
    if v1.is_dir() { v1 } else { "/sys/fs/cgroup".into() }
}

fn is_v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// A pod's group below the node's, by its QoS class.
fn group(node: &NodeBox, pod: &Pod<'_>, controller: &str) -> PathBuf {
    let parent = hierarchy(controller).join(node.cgroup_parent());
    let name = format!("pod{}", pod.uid());
    let places = ["", "burstable", "besteffort"].map(|class| parent.join(class).join(&name));
    places.into_iter().find(|dir| dir.is_dir()).unwrap_or_else(|| panic!("no group {name} below {}", parent.display()))
}

/// A file of the container's group.
fn of_container(node: &NodeBox, pod: &Pod<'_>, container: &str, controller: &str, file: &str) -> String {
    let id = pod.container(container).id();
    let id = id.trim_start_matches("nodeagent://");
    read(&group(node, pod, controller).join(id).join(file))
}

fn of_pod(node: &NodeBox, pod: &Pod<'_>, controller: &str, file: &str) -> String {
    read(&group(node, pod, controller).join(file))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).trim().to_string()
}

/// Controller, v1's file and value, v2's file and value.
type Written = (&'static str, (&'static str, &'static str), (&'static str, &'static str));

struct Row {
    name: &'static str,
    spec: &'static str,
    resources: &'static str,
    class: &'static str,
    container: &'static [Written],
    pod: &'static [Written],
}

const NO_QUOTA: Written = ("cpu", ("cpu.cfs_quota_us", "-1"), ("cpu.max", "max 100000"));

const ROWS: &[Row] = &[
    Row {
        name: "best-effort",
        spec: "",
        resources: "{}",
        class: "BestEffort",
        container: &[("cpu", ("cpu.shares", "2"), ("cpu.weight", "1")), NO_QUOTA],
        pod: &[("cpu", ("cpu.shares", "2"), ("cpu.weight", "1")), ("pids", ("pids.max", "500"), ("pids.max", "500"))],
    },
    Row {
        name: "burstable",
        spec: "",
        resources: "{requests: {cpu: 250m, memory: 32Mi}, limits: {memory: 64Mi}}",
        class: "Burstable",
        container: &[
            ("cpu", ("cpu.shares", "256"), ("cpu.weight", "35")),
            NO_QUOTA,
            ("memory", ("memory.limit_in_bytes", "67108864"), ("memory.max", "67108864")),
        ],
        pod: &[("memory", ("memory.limit_in_bytes", "67108864"), ("memory.max", "67108864"))],
    },
    Row {
        name: "guaranteed",
        spec: "",
        resources: "{limits: {cpu: 500m, memory: 64Mi}}",
        class: "Guaranteed",
        container: &[
            ("cpu", ("cpu.shares", "512"), ("cpu.weight", "59")),
            ("cpu", ("cpu.cfs_quota_us", "50000"), ("cpu.max", "50000 100000")),
            ("memory", ("memory.limit_in_bytes", "67108864"), ("memory.max", "67108864")),
        ],
        pod: &[
            ("cpu", ("cpu.cfs_quota_us", "50000"), ("cpu.max", "50000 100000")),
            ("memory", ("memory.limit_in_bytes", "67108864"), ("memory.max", "67108864")),
        ],
    },
    Row {
        name: "with-overhead",
        spec: "overhead: {cpu: 100m, memory: 16Mi}",
        resources: "{limits: {cpu: 500m, memory: 64Mi}}",
        class: "Guaranteed",
        container: &[
            ("cpu", ("cpu.cfs_quota_us", "50000"), ("cpu.max", "50000 100000")),
            ("memory", ("memory.limit_in_bytes", "67108864"), ("memory.max", "67108864")),
        ],
        pod: &[
            ("cpu", ("cpu.shares", "614"), ("cpu.weight", "67")),
            ("cpu", ("cpu.cfs_quota_us", "60000"), ("cpu.max", "60000 100000")),
            ("memory", ("memory.limit_in_bytes", "83886080"), ("memory.max", "83886080")),
        ],
    },
    Row {
        name: "pod-level",
        spec: "resources: {requests: {cpu: 200m, memory: 32Mi}, limits: {cpu: 400m, memory: 128Mi}}",
        resources: "{}",
        class: "Burstable",
        container: &[],
        pod: &[
            ("cpu", ("cpu.shares", "204"), ("cpu.weight", "29")),
            ("cpu", ("cpu.cfs_quota_us", "40000"), ("cpu.max", "40000 100000")),
            ("memory", ("memory.limit_in_bytes", "134217728"), ("memory.max", "134217728")),
        ],
    },
];

#[test]
fn every_amount_is_in_the_kernels_files() {
    let node = configured("podPidsLimit: 500\n");
    for row in ROWS {
        let manifest = if row.spec.is_empty() { pod(row.name) } else { pod(row.name).spec(row.spec) };
        node.put(&manifest.runs_with("main", "sleep", &format!("resources: {}", row.resources)));
    }
    for row in ROWS {
        let pod = node.pod(row.name);
        pod.becomes("Running");
        assert_eq!(pod.get().unwrap()["status"]["qosClass"], row.class, "{}", row.name);
        let pick = |(controller, v1, v2): Written| (controller, if is_v2() { v2 } else { v1 });
        for (controller, (file, expected)) in row.container.iter().copied().map(pick) {
            assert_eq!(of_container(&node, &pod, "main", controller, file), expected, "{} {file} of the container", row.name);
        }
        for (controller, (file, expected)) in row.pod.iter().copied().map(pick) {
            assert_eq!(of_pod(&node, &pod, controller, file), expected, "{} {file} of the pod", row.name);
        }
    }
}

/// memory.min and memory.high follow requests, on cgroup v2 alone; a class weighs and protects what its pods ask for together.
#[test]
fn requests_are_protected_where_the_kernel_can() {
    let node = configured("memoryQoS: true\n");
    for name in ["one", "two"] {
        let resources = "resources: {requests: {cpu: 250m, memory: 32Mi}, limits: {memory: 64Mi}}";
        node.put(&pod(name).runs_with("main", "sleep", resources)).is_ready();
    }
    let one = node.pod("one");
    let class = |controller: &str| hierarchy(controller).join(node.cgroup_parent()).join("burstable");
    let is = |what: &str, path: PathBuf, expected: &str| {
        eventually(what, || if read(&path) == expected { Ok(()) } else { Err(read(&path)) });
    };
    if is_v2() {
        let high = "63750144"; // 32Mi and 0.9 of the 32Mi up to the limit, in whole pages
        for (file, expected) in [("memory.min", "33554432"), ("memory.high", high), ("memory.oom.group", "1")] {
            assert_eq!(of_container(&node, &one, "main", "memory", file), expected, "{file}");
        }
        assert_eq!(of_pod(&node, &one, "memory", "memory.min"), "33554432");
        assert_eq!(of_pod(&node, &one, "memory", "memory.oom.group"), "0");
        is("the class is protected", class("memory").join("memory.min"), "67108864");
        is("the class weighs what its pods do", class("cpu").join("cpu.weight"), "59");
    } else {
        assert_eq!(of_container(&node, &one, "main", "memory", "memory.limit_in_bytes"), "67108864");
        is("the class weighs what its pods do", class("cpu").join("cpu.shares"), "512");
    }
    node.remove("two.yaml");
    let (file, expected) = if is_v2() { ("cpu.weight", "35") } else { ("cpu.shares", "256") };
    is("the class weighs less", class("cpu").join(file), expected);
}

#[test]
fn who_takes_more_memory_than_its_limit_is_oom_killed() {
    let node = NodeBox::start();
    let greedy = node.put(
        &pod("greedy")
            .spec("restartPolicy: Never")
            .runs_with("main", "eat 256", "resources: {limits: {memory: 32Mi}}")
            .runs("calm", "exit 0"),
    );
    greedy.becomes("Failed");
    assert_eq!(greedy.container("main").exited_with(137)["reason"], "OOMKilled");
    assert_eq!(greedy.container("calm").exited_with(0)["reason"], "Completed");
}

#[test]
fn processes_end_at_the_nodes_limit() {
    let node = configured("podPidsLimit: 20\n");
    let brood = node.put(&pod("brood").spec("restartPolicy: Never").runs("main", "sleep"));
    brood.becomes("Running");
    assert_eq!(of_pod(&node, &brood, "pids", "pids.max"), "20");
}

#[test]
fn who_writes_more_than_its_limit_is_evicted() {
    let node = NodeBox::start();
    let wordy = node.put(
        &pod("wordy").runs_with("main", "spam 8000000", "resources: {limits: {ephemeral-storage: 2Mi}}").runs("calm", "sleep"),
    );
    wordy.becomes("Failed");
    let status = wordy.get().unwrap()["status"].clone();
    assert_eq!(status["reason"], "Evicted", "{status}");
    assert_eq!(status["message"], "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. ");
}

/// What a container may write to without its being a volume or its root.
#[rstest]
#[case::hosts("etc-hosts")]
#[case::resolver("resolv.conf")]
#[case::last_words("containers/main/0/termination-log")]
fn files_that_the_node_lends_count_too(#[case] file: &str) {
    let node = NodeBox::start();
    let wordy =
        node.put(&pod("wordy").runs_with("main", "sleep", "resources: {limits: {ephemeral-storage: 1Mi}}").runs("calm", "sleep"));
    wordy.is_ready();
    let file = node.root().join("var/lib/nodeagent/pods").join(wordy.uid()).join(file);
    assert!(file.is_file(), "{}", file.display());
    std::fs::write(file, vec![b'#'; 2 << 20]).unwrap();
    wordy.becomes("Failed");
    let status = wordy.get().unwrap()["status"].clone();
    assert_eq!(status["message"], "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi. ");
}

// --- at the door ---

fn asks(name: &str, requests: &str) -> e2e::Manifest {
    pod(name).runs_with("main", "sleep", &format!("resources: {{requests: {requests}}}"))
}

#[test]
fn who_does_not_fit_says_so_and_comes_in_when_room_is_made() {
    let cpus = std::thread::available_parallelism().unwrap().get() * 1000;
    // Half a CPU is for pods.
    let node = configured(&format!("systemReserved: {{cpu: {}m}}\nmaxPods: 3\n", cpus - 500));
    let first = node.put(&asks("first", "{cpu: 400m}"));
    first.becomes("Running");
    let second = node.put(&asks("second", "{cpu: 200m}"));
    second.is_rejected(
        "OutOfcpu",
        "Pod was rejected: Node didn't have enough resource: cpu, requested: 200, used: 400, capacity: 500",
    );
    second.tells(&["OutOfcpu", "requested: 200"]);
    let huge = node.put(&asks("huge", "{memory: 100Ti}"));
    huge.is_rejected("OutOfmemory", "requested: 109951162777600, used: 0");
    let disk = node.put(&asks("disk", "{ephemeral-storage: 100Ti}"));
    disk.is_rejected("OutOfephemeral-storage", "ephemeral-storage");
    for name in ["third", "fourth"] {
        node.put(&pod(name).runs("main", "sleep")).becomes("Running");
    }
    let fifth = node.put(&pod("fifth").runs("main", "sleep"));
    fifth.is_rejected("OutOfpods", "requested: 1, used: 3, capacity: 3");

    // The first one's room is for the others.
    node.remove("first.yaml");
    first.is_gone();
    eventually("one of those that wait comes in", || {
        let running = [&second, &fifth].iter().filter(|p| p.get().is_some_and(|o| o["status"]["phase"] == "Running")).count();
        if running == 1 { Ok(()) } else { Err(format!("{running} run")) }
    });
    // An edit that asks for less is an answer as well.
    node.put(&asks("huge", "{memory: 1Mi}"));
    node.remove("third.yaml");
    node.remove("fourth.yaml");
    node.pod("huge").becomes("Running");
}

#[test]
fn the_node_tells_what_it_has_and_what_it_gives() {
    let node = configured(
        "systemReserved: {cpu: 100m, memory: 100Mi}\nkubeReserved: {memory: 28Mi}\nmaxPods: 42\nevictionHard: {memory.available: 72Mi}\n",
    );
    let status = node.object()["status"].clone();
    let bytes = |value: &Value| value.as_str().unwrap().trim_end_matches("Ki").parse::<u64>().unwrap();
    let (capacity, allocatable) = (&status["capacity"], &status["allocatable"]);
    assert_eq!(bytes(&capacity["memory"]) - bytes(&allocatable["memory"]), 200 << 10);
    assert_eq!(allocatable["pods"], "42");
    let cpus = std::thread::available_parallelism().unwrap().get() * 1000;
    assert_eq!(allocatable["cpu"], format!("{}m", cpus - 100));
    assert_eq!(node.condition("MemoryPressure"), "False KubeletHasSufficientMemory");
    assert_eq!(node.condition("DiskPressure"), "False KubeletHasNoDiskPressure");
    assert_eq!(node.condition("PIDPressure"), "False KubeletHasSufficientPID");
    assert!(node.condition("Ready").starts_with("True"));
}

// --- at an edit ---

const POLICY: &str =
    "resizePolicy: [{resourceName: cpu, restartPolicy: NotRequired}, {resourceName: memory, restartPolicy: RestartContainer}]";

fn resizable(cpu: &str, memory: &str) -> e2e::Manifest {
    let resources =
        format!("resources: {{requests: {{cpu: {cpu}, memory: {memory}}}, limits: {{cpu: {cpu}, memory: {memory}}}}}\n{POLICY}");
    pod("web").runs_with("main", "sleep", &resources)
}

#[test]
fn an_edit_of_amounts_resizes_in_place_or_restarts_as_the_policy_says() {
    let node = NodeBox::start();
    let web = node.put(&resizable("100m", "64Mi"));
    web.becomes("Running");
    let main = web.container("main");
    let id = main.id();
    node.put(&resizable("200m", "64Mi"));
    main.until("has the new CPU", |s| {
        (s["resources"]["limits"]["cpu"] == "200m" && s["allocatedResources"]["cpu"] == "200m").then_some(())
    });
    assert_eq!((main.id(), main.restarts()), (id.clone(), 0));
    let (file, expected) = if is_v2() { ("cpu.max", "20000 100000") } else { ("cpu.cfs_quota_us", "20000") };
    assert_eq!(of_container(&node, &web, "main", "cpu", file), expected);
    assert_eq!(of_pod(&node, &web, "cpu", file), expected);
    web.tells(&["ResizeCompleted"]);

    // Smaller again, and memory with it: the policy wants a restart for that.
    node.put(&resizable("150m", "96Mi"));
    main.was_restarted(1);
    main.is_running();
    let limit = if is_v2() { "memory.max" } else { "memory.limit_in_bytes" };
    eventually("the new memory is in force", || {
        let now = of_container(&node, &web, "main", "memory", limit);
        if now == "100663296" { Ok(()) } else { Err(now) }
    });
    assert_ne!(main.id(), id);
    // The sandbox is the same: nothing but the container was made anew.
    assert!(!web.events().iter().any(|event| event.contains("SandboxChanged")));
}

#[test]
fn memory_grows_and_shrinks_in_place_but_not_below_what_is_used() {
    let node = NodeBox::start();
    let manifest = |limit: &str| {
        pod("eater").runs_with(
            "main",
            "eat 48",
            &format!("resources: {{requests: {{memory: 1Mi}}, limits: {{memory: {limit}}}}}"),
        )
    };
    let eater = node.put(&manifest("64Mi"));
    let main = eater.container("main");
    main.logged("holds 48 MiB");
    let limit = if is_v2() { "memory.max" } else { "memory.limit_in_bytes" };
    let becomes = |bytes: &str| {
        eventually(&format!("the limit is {bytes}"), || {
            let now = of_container(&node, &eater, "main", "memory", limit);
            if now == bytes { Ok(()) } else { Err(now) }
        });
    };
    node.put(&manifest("128Mi"));
    becomes("134217728");
    node.put(&manifest("80Mi"));
    becomes("83886080");
    node.put(&manifest("16Mi"));
    resize_condition(&eater, "PodResizeInProgress", "Error", "below current usage");
    assert_eq!(of_container(&node, &eater, "main", "memory", limit), "83886080");
    node.put(&manifest("96Mi"));
    becomes("100663296");
    eventually("no condition is left", || {
        let conditions = eater.get().unwrap()["status"]["conditions"].to_string();
        if conditions.contains("PodResize") { Err(conditions) } else { Ok(()) }
    });
    assert_eq!(main.restarts(), 0);
}

fn resize_condition(pod: &Pod<'_>, kind: &str, reason: &str, message: &str) {
    pod.until(&format!("has {kind} {reason}"), |object| {
        let all = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let fine = |c: &&Value| {
            c["type"] == kind && c["reason"] == reason && c["message"].as_str().unwrap_or_default().contains(message)
        };
        if all.iter().any(|c| fine(&c)) { Ok(()) } else { Err(format!("{all:?}")) }
    });
}

#[test]
fn a_resize_without_room_is_deferred_or_infeasible() {
    let cpus = std::thread::available_parallelism().unwrap().get() * 1000;
    let node = configured(&format!("systemReserved: {{cpu: {}m}}\n", cpus - 500));
    let (one, two) = (node.put(&asks("one", "{cpu: 200m}")), node.put(&asks("two", "{cpu: 200m}")));
    one.becomes("Running");
    two.becomes("Running");
    node.put(&asks("one", "{cpu: 600m}"));
    resize_condition(&one, "PodResizePending", "Infeasible", "cpu, requested: 600, capacity: 500");
    node.put(&asks("one", "{cpu: 400m}"));
    resize_condition(&one, "PodResizePending", "Deferred", "requested: 400, used: 200, capacity: 500");
    let main = one.container("main");
    let allocated = main.until("says what it has", |s| s["allocatedResources"]["cpu"].as_str().map(str::to_string));
    assert_eq!(allocated, "200m");
    node.remove("two.yaml");
    main.until("has it", |s| {
        (s["allocatedResources"]["cpu"] == "400m" && s["resources"]["requests"]["cpu"] == "400m").then_some(())
    });
    assert_eq!(main.restarts(), 0);
}

#[test]
fn an_edit_that_changes_the_class_makes_the_pod_anew() {
    let node = NodeBox::start();
    let manifest = |request: &str| {
        pod("web").runs_with(
            "main",
            "sleep",
            &format!("resources: {{requests: {{cpu: {request}, memory: 8Mi}}, limits: {{cpu: 100m, memory: 8Mi}}}}"),
        )
    };
    let web = node.put(&manifest("50m"));
    web.becomes("Running");
    let id = web.container("main").id();
    node.put(&manifest("100m"));
    web.container("main")
        .until("is another", |s| (s["containerID"].is_string() && s["containerID"] != id.as_str()).then_some(()));
    eventually("the class is another", || {
        let class = web.get().ok_or("between the two")?["status"]["qosClass"].clone();
        if class == "Guaranteed" { Ok(()) } else { Err(class.to_string()) }
    });
}

// --- when the machine runs out ---

/// Nothing, then everything, is scarce: pods run first, and then an agent comes that wants more than there is.
fn evicted_in_order(hard: &str, conditions: (&str, &str), pods: &[(&str, &str)]) -> (NodeBox, Vec<String>) {
    let node = NodeBox::builder().config(HEAD).start();
    for (name, fields) in pods {
        let priority = fields.lines().find(|l| l.starts_with("priority:")).unwrap_or("priority: 0");
        let container: String = fields.lines().filter(|l| !l.starts_with("priority:")).map(|l| format!("{l}\n")).collect();
        node.put(&pod(name).spec(priority).runs_with("main", "eat 8", &container));
    }
    for (name, _) in pods {
        node.pod(name).container("main").logged("holds 8 MiB");
    }
    node.kill_agent();
    let quick = "evictionMonitoringPeriod: 200ms\nevictionPressureTransitionPeriod: 1s\n";
    node.configure(&format!("{HEAD}{quick}evictionHard: {hard}\n"));
    node.start_agent();
    let (kind, holds) = conditions;
    eventually(&format!("the node has {kind}"), || {
        let now = node.condition(kind);
        if now == holds { Ok(()) } else { Err(now) }
    });
    let mut ended: Vec<(String, String)> = Vec::new();
    for (name, _) in pods.iter().filter(|(_, fields)| !fields.contains("priority: 2000000000")) {
        let end = node.pod(name).until("is evicted", |object| {
            let status = &object["status"];
            let disrupted = status["conditions"].to_string().contains("DisruptionTarget");
            if status["reason"] != "Evicted" || status["phase"] != "Failed" || !disrupted {
                return Err(format!("{status:#}"));
            }
            let end = &status["containerStatuses"][0]["state"]["terminated"]["finishedAt"];
            end.as_str().map(str::to_string).ok_or_else(|| format!("{status:#}"))
        });
        ended.push((end, (*name).to_string()));
    }
    // Times are whole seconds in the API; what was told tells the order.
    let told = node.agent_output();
    ended.sort_by_key(|(_, name)| told.find(&format!("object=\"{name}\" reason=\"Evicted\"")).unwrap_or(usize::MAX));
    (node, ended.into_iter().map(|(_, name)| name).collect())
}

#[test]
fn memory_pressure_evicts_by_use_beyond_request_then_priority() {
    let (node, order) = evicted_in_order(
        "{memory.available: 100Ti}",
        ("MemoryPressure", "True KubeletHasInsufficientMemory"),
        &[
            ("within", "resources: {requests: {memory: 64Mi}}"),
            ("beyond", "priority: 100\nresources: {requests: {memory: 1Mi}}"),
            ("lowly", "priority: -1"),
            ("system", "priority: 2000000000"),
        ],
    );
    assert_eq!(order, ["lowly", "beyond", "within"]);
    let status = node.pod("lowly").get().unwrap()["status"].clone();
    let message = status["message"].as_str().unwrap();
    assert!(message.starts_with("The node was low on resource: memory. Threshold quantity: 100Ti, available: "), "{message}");
    assert!(
        message.contains("Container main was using ") && message.contains(", request is 0, has larger consumption of memory. "),
        "{message}"
    );
    node.tells(&["EvictionThresholdMet", "Attempting to reclaim memory"]);
    node.tells(&["NodeHasInsufficientMemory"]);
    // The system's own runs on, and nobody who asked for nothing comes in.
    node.pod("system").container("main").is_running();
    let late = node.put(&pod("late").runs("main", "sleep"));
    late.is_rejected("Evicted", "The node had condition: [MemoryPressure]. ");
}

#[test]
fn pid_pressure_evicts_by_priority() {
    let (_node, order) = evicted_in_order(
        "{pid.available: '100G'}",
        ("PIDPressure", "True KubeletHasInsufficientPID"),
        &[("high", "priority: 10"), ("low", "priority: 1")],
    );
    assert_eq!(order, ["low", "high"]);
}

// --- devices ---

#[test]
fn devices_come_by_their_names() {
    let node = NodeBox::builder().without_agent().start();
    let (first, second) = (node.folder().join("cdi"), node.folder().join("cdi-run"));
    std::fs::create_dir_all(&first).unwrap();
    std::fs::create_dir_all(&second).unwrap();
    let spec = r#"{"cdiVersion": "0.6.0", "kind": "example.com/log", "containerEdits": {"env": ["LOG_DRIVER=1"]}, "devices": [
        {"name": "kmsg", "containerEdits": {"env": ["LOG_DEVICE=kmsg"], "deviceNodes": [{"path": "/dev/kernel-log", "hostPath": "/dev/kmsg", "permissions": "r"}],
         "mounts": [{"hostPath": "/etc/hostname", "containerPath": "/opt/driver/name", "options": ["ro", "bind"]}]}}]}"#;
    std::fs::write(first.join("log.json"), spec).unwrap();
    node.configure(&format!("{HEAD}cdiSpecDirs: [{}, {}]\n", first.display(), second.display()));
    node.start_agent();

    let manifest = |name: &str, device: &str| {
        pod(name).metadata(&format!("annotations: {{cdi.k8s.io/log: {device}}}")).runs("main", "sleep")
    };
    let with = node.put(&manifest("with", "example.com/log=kmsg"));
    let without = node.put(&pod("without").runs("main", "sleep"));
    let lost = node.put(&manifest("lost", "example.com/log=none"));
    with.becomes("Running");
    without.becomes("Running");
    let main = with.container("main");
    let env = main.demo("env");
    assert!(env.contains("LOG_DRIVER=1") && env.contains("LOG_DEVICE=kmsg"), "{env}");
    assert!(main.demo("mounts").contains("/opt/driver/name"));
    // It may be read, and by this container alone; written it may not be.
    assert!(main.exec(&["/demo", "append", "/dev/kernel-log", "x"]).fails().contains("not permitted"));
    let listing = main.demo("list /dev");
    assert!(listing.contains("kernel-log"), "{listing}");
    assert!(!without.container("main").demo("list /dev").contains("kernel-log"));
    lost.container("main").until("waits", |status| {
        let message = status["state"]["waiting"]["message"].as_str().unwrap_or_default();
        message.contains("unresolvable CDI devices example.com/log=none").then_some(())
    });
    // What was made for the device goes with the pod.
    let dir = hierarchy("devices").join(node.cgroup_parent()).join(format!("besteffort/pod{}", with.uid()));
    node.remove("with.yaml");
    with.is_gone();
    assert!(!dir.exists(), "{} is left", dir.display());
}

#[test]
fn the_examples_do_what_they_say() {
    let node = NodeBox::start();
    node.apply_folder("resources");
    node.pod("resize").is_ready();
    node.pod("together").is_ready();
    assert_eq!(node.pod("greedy").container("eats").exited_with(137)["reason"], "OOMKilled");
    let main = node.pod("resize").container("web");
    let text = std::fs::read_to_string(node.manifests().join("resize.yaml")).unwrap();
    node.apply("resize.yaml", &text.replace("cpu: 100m", "cpu: 200m"));
    main.until("has more CPU", |s| (s["resources"]["limits"]["cpu"] == "200m").then_some(()));
    assert_eq!(main.restarts(), 0);
}
