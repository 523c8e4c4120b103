//! What a container sees of its pod, of its neighbours, of the host; and what the host sees of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use podholder::protocol::*;
use std::os::unix::fs::{MetadataExt, symlink};
use support::*;

#[test]
fn no_descriptor_of_the_holder_leaks() {
    let mut pod = Pod::new();
    // Others, whose pipes must not be seen.
    let neighbour = pod.recipe("neighbour", &["sleep", "1000"]);
    pod.start(&neighbour).unwrap();
    let out = pod.sh("ls -l /proc/self/fd");
    // 3 is ls's own view of the folder.
    let fds: Vec<&str> = out.lines().filter_map(|l| l.split_whitespace().nth(8)).collect();
    assert_eq!(fds, ["0", "1", "2", "3"], "{out}");
    let process = Process { argv: vec!["ls".into(), "/proc/self/fd".into()], ..neighbour.process.clone() };
    assert_eq!(pod.exec(&neighbour, process).unwrap().1, "0\n1\n2\n3\n");
}

#[test]
fn the_hosts_mounts_are_as_before_and_a_neighbours_are_not_seen() {
    let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut pod = Pod::new();
    let mut recipe = pod.shell("app", "mount -t tmpfs mine /tmp && echo mounted; while true; do sleep 1; done");
    recipe.process.capabilities =
        Capabilities { bounding: ALL_CAPABILITIES, effective: ALL_CAPABILITIES, inheritable: 0, ambient: 0 };
    pod.start(&recipe).unwrap();
    eventually("it is mounted", || log_of(&recipe).contains("mounted"));
    let own = pod.dir.path().display().to_string();
    let of_us = |table: &str| table.lines().filter(|l| l.contains(&own)).count();
    assert_eq!(of_us(&before), 0);
    assert_eq!(of_us(&std::fs::read_to_string("/proc/self/mountinfo").unwrap()), 0);
    assert!(!std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains(" mine "));
    let table = pod.sh("cat /proc/self/mountinfo");
    assert!(!table.contains(" mine "), "{table}");
    // Nothing but what the recipe says: no trace of the host's tree.
    let targets: Vec<&str> = table.lines().map(|l| l.split(' ').nth(4).unwrap()).collect();
    for target in &targets {
        let known = ["/", "/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys"];
        assert!(known.contains(target) || target.starts_with("/proc/") || *target == "/sys/firmware", "{target} in {targets:?}");
    }
}

fn host_tool(pod: &mut Pod, argv: &[&str]) -> String {
    let recipe = host_program(pod, argv);
    let ran = pod.run(&recipe);
    assert_eq!(ran.exit.code, 0, "{ran:?}");
    ran.stdout
}

#[test]
fn hostname_and_ipc_are_shared_in_a_pod_and_not_beyond() {
    let (mut one, mut two) = (Pod::new(), Pod::new());
    let made = host_tool(&mut one, &["/usr/bin/ipcmk", "-M", "4096"]);
    let id: String = made.split_whitespace().last().unwrap().into();
    let seen = host_tool(&mut one, &["/usr/bin/ipcs", "-m"]);
    assert!(seen.contains(&format!(" {id} ")), "the pod's other container sees it: {seen}");
    assert_eq!(host_tool(&mut two, &["/usr/bin/ipcs", "-m"]).lines().filter(|l| l.starts_with("0x")).count(), 0);
    one.sh("echo shared > /dev/shm/file");
    assert_eq!(one.sh("cat /dev/shm/file; df -k /dev/shm | grep -c 65536"), "shared\n1\n");
    assert_eq!(two.sh("ls /dev/shm"), "");
    let mut recipe = one.shell("admin", "hostname changed");
    recipe.process.capabilities =
        Capabilities { bounding: ALL_CAPABILITIES, effective: ALL_CAPABILITIES, inheritable: 0, ambient: 0 };
    assert_eq!(one.run(&recipe).exit.code, 0);
    assert_eq!(one.sh("hostname"), "changed\n");
    assert_eq!(two.sh("hostname"), "pod\n");
    assert_ne!(std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim(), "changed");
}

#[test]
fn masked_and_read_only_paths() {
    let mut pod = Pod::new();
    let out = pod.sh("wc -c < /proc/keys; ls /proc/acpi /sys/firmware 2>/dev/null | grep -v : ; \
         echo 1 > /proc/sys/kernel/panic || echo read-only; touch /sys/x 2>/dev/null || echo read-only; \
         echo b > /proc/sysrq-trigger || echo read-only");
    let lines: Vec<&str> = out.lines().filter(|l| !l.is_empty()).collect();
    assert_eq!(lines, ["0", "read-only", "read-only", "read-only"]);
}

#[test]
fn devices_and_links_of_dev() {
    let mut pod = Pod::new();
    let out = pod
        .sh("ls /dev | sort | tr '\\n' ' '; echo; echo lost > /dev/null; head -c 4 /dev/zero | wc -c; stat -c %a /dev/null; \
                      for l in fd stdout ptmx; do readlink /dev/$l; done; echo again > /dev/stdout; echo full > /dev/full || echo full");
    let expect = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero \n4\n666\n/proc/self/fd\n/proc/self/fd/1\npts/ptmx\nagain\nfull\n";
    assert_eq!(out, expect);
}

#[test]
fn a_user_may_open_its_standard_output_again() {
    let mut pod = Pod::new();
    let mut recipe = pod.shell("web", "echo one > /dev/stdout; echo two > /proc/self/fd/2");
    recipe.process.user.spec = "web".into();
    let ran = pod.run(&recipe);
    assert_eq!((ran.exit.code, ran.stdout.as_str(), ran.stderr.as_str()), (0, "one\n", "two\n"));
}

#[test]
fn a_container_is_pid_1_and_the_host_cannot_be_signalled() {
    let mut pod = Pod::new();
    let recipe = pod.shell("app", "echo $$; kill -0 1000000 2>/dev/null || echo none; ps | wc -l; while true; do sleep 1; done");
    let pid = pod.start(&recipe).unwrap();
    assert!(is_alive(pid));
    eventually("it spoke", || log_of(&recipe).lines().count() == 3);
    let mut lines = text(&log_of(&recipe), "stdout").lines().map(str::to_owned).collect::<Vec<_>>();
    assert!(lines.pop().unwrap().trim().parse::<u32>().unwrap() < 6);
    assert_eq!(lines, ["1", "none"]);
}

#[test]
fn a_shared_pid_namespace_has_a_pause_that_reaps_and_hides_the_host() {
    let mut pod = Pod::with(|r| r.share_pid = true);
    let pause = pod.pause_pid.unwrap();
    assert!(is_alive(pause));
    let mut sleeper = pod.recipe("sleeper", &["sleep", "1234"]);
    sleeper.pid = PidNamespace::Pod;
    let pid = pod.start(&sleeper).unwrap();
    let mut other = pod.shell("other", "ps -o pid,args; sh -c 'sleep 0.2 & exit'; echo ROOT; ls -A /proc/1/root/; echo END; while true; do sleep 0.05; ps -o stat,args | grep '^Z' || { echo clean; break; }; done");
    other.pid = PidNamespace::Pod;
    other.process.capabilities =
        Capabilities { bounding: ALL_CAPABILITIES, effective: ALL_CAPABILITIES, inheritable: 0, ambient: 0 };
    let out = pod.run(&other).stdout;
    assert!(out.contains("sleep 1234"), "{out}");
    assert!(out.ends_with("clean\n"), "{out}");
    let root = out.lines().skip_while(|l| *l != "ROOT").skip(1).take_while(|l| *l != "END").collect::<Vec<_>>();
    assert_eq!(root, [""; 0], "pause's root shows the host: {out}");
    assert!(is_alive(pid));
    let status = std::fs::read_to_string(format!("/proc/{pause}/status")).unwrap();
    assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
    assert_eq!(std::fs::read_dir(format!("/proc/{pause}/fd")).unwrap().count(), 0);
    kill(pause);
    assert_eq!(pod.exit_of(&sleeper.id).code, 137, "the namespace ends with its PID 1");
}

#[test]
fn the_hosts_pid_namespace() {
    let mut pod = Pod::new();
    let mut recipe = pod.shell("app", "echo $$");
    recipe.pid = PidNamespace::Host;
    let pid = pod.start(&recipe).unwrap();
    pod.exit_of(&recipe.id);
    assert_eq!(text(&log_of(&recipe), "stdout").trim(), pid.to_string());
}

#[test]
fn a_socket_of_the_pods_network_and_the_namespace_itself() {
    let mut pod = Pod::new();
    let socket = Request::Socket { domain: libc::AF_NETLINK, kind: libc::SOCK_RAW, protocol: libc::NETLINK_ROUTE };
    let (_, fds) = pod.call(socket).unwrap();
    // SIOCGSKNS: the namespace that a socket belongs to.
    assert_eq!(fds.len(), 1);
    let (_, namespace) = pod.call(Request::NetNamespace).unwrap();
    let theirs = rustix::fs::fstat(&namespace[0]).unwrap();
    let holder = std::fs::metadata(format!("/proc/{}/ns/net", pod.pid)).unwrap();
    let own = std::fs::metadata("/proc/self/ns/net").unwrap();
    assert_eq!(theirs.st_ino, holder.ino());
    assert_ne!(theirs.st_ino, own.ino());
    // A listener in the pod, reached by a socket of the holder's: there is no loopback until netplug brings it up, but binding
    // to an abstract name shows which namespace it is in.
    let (_, tcp) = pod.call(Request::Socket { domain: libc::AF_INET, kind: libc::SOCK_STREAM, protocol: 0 }).unwrap();
    let address = std::net::SocketAddrV4::new(std::net::Ipv4Addr::UNSPECIFIED, 18_080);
    rustix::net::bind(&tcp[0], &address).unwrap();
    rustix::net::listen(&tcp[0], 1).unwrap();
    assert!(pod.sh("cat /proc/net/tcp").contains("00000000:46A0"), "the container sees the listener");
    assert!(!std::fs::read_to_string("/proc/net/tcp").unwrap().contains("00000000:46A0"));
    assert_eq!(pod.call(Request::Socket { domain: -1, kind: 1, protocol: 0 }).unwrap_err().stage, Stage::Protocol);
}

#[test]
fn sysctls_are_the_pods() {
    let mut pod = Pod::with(|r| {
        r.sysctls = vec![
            ("net.ipv4.ip_unprivileged_port_start".into(), "81".into()),
            ("net/ipv4/conf/lo/forwarding".into(), "1".into()),
            ("kernel.shm_rmid_forced".into(), "1".into()),
        ];
    });
    let out = pod.sh("cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/conf/lo/forwarding /proc/sys/kernel/shm_rmid_forced");
    assert_eq!(out, "81\n1\n1\n");
    assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap().trim(), "1024");
    for (name, stage) in [("net.no.such", Stage::Sysctl), ("../../etc/passwd", Stage::Sysctl)] {
        let fault = Pod::try_with(|r| r.sysctls = vec![(name.into(), "1".into())]).err().unwrap();
        assert_eq!((fault.stage, fault.subject.as_str()), (stage, name));
    }
}

#[test]
fn a_working_directory_behind_a_magic_link_is_refused() {
    let mut pod = Pod::new();
    for cwd in ["/proc/self/fd/4", "/proc/self/root", "/proc/1/cwd"] {
        let mut recipe = pod.recipe("app", &["pwd"]);
        recipe.process.cwd = cwd.into();
        let fault = pod.start(&recipe).unwrap_err();
        assert_eq!(fault.stage, Stage::WorkingDir, "{cwd}: {fault:?}");
    }
    let mut recipe = pod.shell("link", "pwd; ls /");
    symlink("../../../../../../..", recipe.rootfs.upper.join("up")).unwrap();
    recipe.process.cwd = "/up".into();
    let out = pod.run(&recipe).stdout;
    assert!(out.starts_with("/\n") && !out.contains("home\n"), "{out}");
}

#[test]
fn a_container_beside_another_has_its_processes_and_nothing_else_of_it() {
    for pod in [Pod::new(), Pod::with_user_namespace()] {
        let mut pod = pod;
        let target = pod.recipe("target", &["sleep", "1000"]);
        let target_pid = pod.start(&target).unwrap();
        let mut beside = pod.shell("beside", "readlink /proc/self/ns/pid; cat /proc/1/cmdline; echo; sleep 1001");
        beside.beside = Some(target.id.clone());
        let pid = pod.start(&beside).unwrap();
        let namespace = |pid: i32, kind: &str| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        assert_eq!(namespace(pid, "pid"), namespace(target_pid, "pid"));
        assert_ne!(namespace(pid, "mnt"), namespace(target_pid, "mnt"));
        eventually("it sees its target", || log_of(&beside).contains("1000"));
        // It goes without its target noticing, but not the other way round.
        kill(pid);
        assert_eq!(pod.exit_of(&beside.id).code, 137);
        assert!(is_alive(target_pid));
        let mut late = pod.recipe("late", &["sleep", "1002"]);
        late.beside = Some(target.id.clone());
        let late_pid = pod.start(&late).unwrap();
        kill(target_pid);
        eventually("both are dead", || !is_alive(late_pid));
        late.id = "f".repeat(64);
        let fault = pod.start(&late).unwrap_err();
        assert_eq!((fault.stage, fault.errno), (Stage::Namespace, libc::ESRCH));
    }
}
