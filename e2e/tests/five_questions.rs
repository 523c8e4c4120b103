//! The five questions that a pod answers, each a test of that name, on the real kernel.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use e2e::{INSIDE, NodeBox, SHARED, assert_eventually, eventually, pod};

/// What a test needs that changes its own namespaces.
const ADMIN: &str = "securityContext: {capabilities: {add: [SYS_ADMIN]}}";

#[test]
fn own_file_systems() {
    let node = NodeBox::start();
    let one = node.put(&pod("one").runs_with("a", "sleep", ADMIN).runs("b", "sleep"));
    let two = node.put(&pod("two").runs("a", "sleep"));
    one.becomes("Running");
    two.becomes("Running");
    let (a, b, other) = (one.container("a"), one.container("b"), two.container("a"));

    // A tmpfs that is mounted in a container is in nobody else's mountinfo.
    a.demo("mount-tmpfs /secret");
    assert!(a.demo("mounts").contains("/secret tmpfs"));
    for (who, mounts) in [
        ("the neighbour", b.demo("mounts")),
        ("the other pod", other.demo("mounts")),
        ("the node", node.inside("cat", &["/proc/self/mountinfo"]).ok()),
        ("the agent", std::fs::read_to_string(format!("/proc/{}/mountinfo", node.agent_pid())).unwrap()),
        ("the machine", std::fs::read_to_string("/proc/self/mountinfo").unwrap()),
    ] {
        assert!(!mounts.contains("/secret"), "{who} sees it: {mounts}");
    }

    // Each has a MNT namespace of its own, with a root of its own on an overlay.
    let namespaces = [a.demo("namespace mnt"), b.demo("namespace mnt"), other.demo("namespace mnt")];
    assert!(namespaces[0] != namespaces[1] && namespaces[1] != namespaces[2] && namespaces[0] != namespaces[2], "{namespaces:?}");
    assert!(a.demo("mounts").lines().any(|mount| mount.starts_with("/ overlay")), "{}", a.demo("mounts"));
    a.demo("write /mine hello");
    assert_eq!(a.demo("read /mine"), "hello");
    b.exec(&["/demo", "read", "/mine"]).fails();
    other.exec(&["/demo", "read", "/mine"]).fails();

    // Nothing of the node's own files is in sight.
    let root = a.demo("list /");
    assert!(!root.lines().any(|name| ["work", "boot", "manifests"].contains(&name)), "{root}");
}

#[test]
fn processes_and_ipc() {
    let node = NodeBox::start();
    let one = node.put(&pod("one").runs("a", "sleep").runs("b", "sleep"));
    let two = node.put(&pod("two").runs("a", "sleep"));
    one.becomes("Running");
    two.becomes("Running");
    let (a, b, other) = (one.container("a"), one.container("b"), two.container("a"));

    // System V shared memory belongs to the pod: its other container sees it, another pod and the node don't.
    a.demo("hold-shm 42 7");
    assert_eq!(b.demo("read-shm 42"), "7");
    other.exec(&["/demo", "read-shm", "42"]).fails();
    assert!(!node.inside("ipcs", &["-m"]).ok().contains("0x0000002a"));
    // So does POSIX's, which is files.
    a.demo("write /dev/shm/note shared");
    assert_eq!(b.demo("read /dev/shm/note"), "shared");
    other.exec(&["/demo", "read", "/dev/shm/note"]).fails();

    // A container sees its own processes alone, the first one being 1 ...
    let processes = a.demo("ps");
    assert!(processes.starts_with("1 /demo sleep"), "{processes}");
    assert!(!processes.contains("podholder") && !processes.contains("nodeagent"), "{processes}");
    assert_ne!(a.demo("namespace pid"), b.demo("namespace pid"));
    // ... which is another number on the node, as inspect shows.
    let host_pid = a.host_pid();
    let inspected = one.run(&["inspect"], &[]).ok();
    assert!(inspected.contains(&host_pid.to_string()), "{host_pid} is not in {inspected}");

    // It can't signal what it can't see: neither by the node's number nor all at once.
    let mut sleeper = e2e::Running::start(node.command("sleep").arg("1000"));
    let sleeper_pid = eventually("the sleeper is there", || {
        let pid = node.inside("pgrep", &["-x", "sleep"]).result()?;
        pid.lines().next().map(str::to_string).ok_or(pid)
    });
    a.exec(&["/demo", "kill", &sleeper_pid, "KILL"]).fails();
    a.exec(&["/demo", "kill", &host_pid.to_string(), "KILL"]).fails();
    a.exec(&["/demo", "kill", "-1", "SIGKILL"]);
    assert!(sleeper.is_alive());
    b.is_running();
    assert_eq!(b.restarts(), 0);
}

#[test]
fn processes_of_one_pod_are_one_tree_where_it_asks_for_that() {
    let node = NodeBox::start();
    let shared = node.put(&pod("shared").spec("shareProcessNamespace: true").runs("a", "sleep").runs("b", "serve --port 8080"));
    shared.becomes("Running");
    let (a, b) = (shared.container("a"), shared.container("b"));
    assert_eq!(a.demo("namespace pid"), b.demo("namespace pid"));
    let processes = a.demo("ps");
    assert!(processes.contains("/demo sleep") && processes.contains("/demo serve"), "{processes}");
    // PID 1 is neither: it is the pod's own, and reaps what others leave behind.
    assert!(!processes.lines().any(|line| line.starts_with("1 /demo")), "{processes}");
    a.demo("fork 20");
    assert_eventually!(!a.demo("ps").lines().any(|line| line.ends_with(" ?")), "no zombie is left");
    // The container's own end is seen, though it isn't PID 1.
    let pid = processes.lines().find(|line| line.contains("/demo serve")).unwrap().split(' ').next().unwrap().to_string();
    a.demo(&format!("kill {pid} SIGKILL"));
    b.was_restarted(1);
    assert_eq!(a.restarts(), 0);
}

#[test]
fn ip_and_ports() {
    let node = NodeBox::start();
    let serve = "serve --port 8080";
    let port = |number: u16| format!("ports: [{{containerPort: 8080, hostPort: {number}}}]");
    let one = node.put(&pod("one").runs_with("web", serve, &port(9001)).runs("client", "client --every 100ms"));
    let two = node.put(&pod("two").runs_with("web", serve, &port(9002)));
    one.becomes("Running");
    two.becomes("Running");

    // Both listen on 8080, each at its own address.
    let (ip_one, ip_two) = (one.ip(), two.ip());
    assert_ne!(ip_one, ip_two);
    for (pod, ip) in [("one", &ip_one), ("two", &ip_two)] {
        let page = eventually("the page answers", || node.curl(&format!("http://{ip}:8080/hostname")).result());
        assert_eq!(page.trim(), pod);
    }
    // A pod reaches another, and its own neighbour on localhost.
    let page = eventually("a pod reaches another", || {
        one.container("client").exec(&["/demo", "get", &format!("http://{ip_two}:8080/hostname")]).result()
    });
    assert_eq!(page.trim(), "two");
    one.container("client").logged("http://127.0.0.1:8080/json answered");
    assert_eq!(one.container("web").demo("addresses"), one.container("client").demo("addresses"));

    // hostPort reaches the right one, from outside and from the node.
    for (port, pod) in [(9001, "one"), (9002, "two")] {
        let url = format!("http://{INSIDE}:{port}/hostname");
        assert_eq!(eventually("the port answers outside", || node.curl_from_outside(&url).result()).trim(), pod);
        assert_eq!(eventually("the port answers on the node", || node.curl(&url).result()).trim(), pod);
    }
    // What has no hostPort is not reached from outside: nothing routes there.
    node.curl_from_outside(&format!("http://{INSIDE}:8080/hostname")).fails();
    // And a pod reaches the world by the node's address.
    let demo = e2e::binary("demo");
    let server = e2e::Running::start(node.outside().command(demo.to_str().unwrap()).args(["serve", "--port", "7000"]));
    server.says("listening");
    eventually("a pod reaches the world", || {
        one.container("client").exec(&["/demo", "get", &format!("http://{}:7000/healthz", e2e::OUTSIDE)]).result()
    });
    server.says(INSIDE);
}

#[test]
fn same_hostnames() {
    let node = NodeBox::start();
    let twin = |name: &str| pod(name).spec("hostname: shop").runs_with("a", "sleep", ADMIN).runs("b", "sleep");
    let (one, two) = (node.put(&twin("one")), node.put(&twin("two")));
    let plain = node.put(&pod("plain").runs("a", "sleep"));
    for pod in [&one, &two, &plain] {
        pod.becomes("Running");
    }
    assert_eq!(one.container("a").demo("hostname"), "shop");
    assert_eq!(two.container("a").demo("hostname"), "shop");
    assert_eq!(plain.container("a").demo("hostname"), "plain");

    // sethostname inside changes that pod, all of it, and no other; not the node.
    one.container("a").demo("hostname renamed");
    assert_eq!(one.container("b").demo("hostname"), "renamed");
    assert_eq!(two.container("a").demo("hostname"), "shop");
    assert_eq!(node.inside("hostname", &[]).ok().trim(), "node");
    // Without the capability nobody may.
    one.container("b").exec(&["/demo", "hostname", "mine"]).fails();
}

#[test]
fn root_and_account_clashes() {
    let node = NodeBox::start();
    let island = |name: &str| {
        pod(name).spec("hostUsers: false").shares_a_folder().runs_with("a", "sleep", SHARED).runs_with("b", "sleep", SHARED)
    };
    let (one, two) = (node.put(&island("one")), node.put(&island("two")));
    let plain = node.put(&pod("plain").runs("a", "sleep"));
    for pod in [&one, &two, &plain] {
        pod.becomes("Running");
    }

    // Inside, all three are root. Outside, two are an unprivileged user each.
    let host_uid = |pod: &e2e::Pod<'_>| {
        let pid = pod.container("a").host_pid();
        let status = node.inside("cat", &[&format!("/proc/{pid}/status")]).ok();
        let line = status.lines().find(|line| line.starts_with("Uid:")).unwrap().to_string();
        line.split_whitespace().nth(1).unwrap().parse::<u32>().unwrap()
    };
    for pod in [&one, &two, &plain] {
        assert!(pod.container("a").demo("id").starts_with("uid=0 gid=0"), "{}", pod.container("a").demo("id"));
    }
    let (uid_one, uid_two) = (host_uid(&one), host_uid(&two));
    assert!(uid_one >= 65536 && uid_two >= 65536, "{uid_one} {uid_two}");
    assert!(uid_one.abs_diff(uid_two) >= 65536, "the ranges of {uid_one} and {uid_two} overlap");
    assert_eq!(host_uid(&plain), 0);

    // A volume's files are root's, as each container sees them, and on the disk too: an idmapped mount.
    assert!(one.container("a").demo("own /shared").starts_with("0:0"), "{}", one.container("a").demo("own /shared"));
    one.container("a").demo("write /shared/file text");
    assert!(one.container("b").demo("own /shared/file").starts_with("0:0"));
    assert_eq!(one.container("b").demo("read /shared/file"), "text");
    // The image's own files likewise.
    assert!(one.container("a").demo("own /demo").starts_with("0:0"));

    // Root in the pod is no root of the machine: what belongs to the machine's user namespace stays shut.
    one.container("a").exec(&["/demo", "write", "/proc/sys/kernel/panic", "1"]).fails();
}

#[test]
fn an_account_added_in_one_container_is_unknown_in_another() {
    let node = NodeBox::builder().with_registry().start();
    let script = "sleep infinity & trap 'exit 0' TERM; wait";
    let manifest = |name: &str| pod(name).shell("a", "debian:12", script).shell("b", "debian:12", script);
    let (one, two) = (node.put(&manifest("one")), node.put(&manifest("two")));
    one.becomes("Running");
    two.becomes("Running");
    one.container("a").exec(&["useradd", "--uid", "4242", "alice"]).ok();
    assert!(one.container("a").exec(&["id", "alice"]).ok().contains("uid=4242(alice)"));
    one.container("b").exec(&["id", "alice"]).fails();
    two.container("a").exec(&["id", "alice"]).fails();
    assert!(node.inside("id", &["alice"]).fails().contains("no such user"));

    // With the tools of the real world, once more: ipcmk's memory is the pod's.
    let made = one.container("a").exec(&["ipcmk", "--shmem", "4096"]).ok();
    let id = made.split_whitespace().last().unwrap().to_string();
    one.container("b").exec(&["ipcs", "--shmems", "--id", &id]).ok();
    assert!(!two.container("a").exec(&["ipcs", "--shmems"]).ok().contains("0x"));
}
