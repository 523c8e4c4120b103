//! What a container, an image or a neighbour tries against the holder.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::Path;

use podholder::protocol::*;
use support::*;

const PERL: &str = "/usr/bin/perl";

/// A program of system calls that busybox has no command for. In the host's PID namespace: PID 1 of another may do less.
fn perl(pod: &mut Pod, pid: PidNamespace, script: &str) -> Recipe {
    assert!(Path::new(PERL).exists(), "{PERL} is missing: apt-get install perl");
    let mut recipe = host_program(pod, &[PERL, "-e", script]);
    recipe.pid = pid;
    recipe
}

fn children(pid: i32) -> Vec<i32> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    list.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

#[test]
fn children_that_a_container_foists_on_the_holder_are_reaped() {
    let mut pod = Pod::new();
    let script = format!(
        "$| = 1; for (1..20) {{ my $pid = syscall({}, 0x8000 | 17, 0, 0, 0, 0); exit 0 if $pid == 0; die $! if $pid < 0 }} \
         print qq(made\\n); sleep 1000",
        libc::SYS_clone
    );
    let recipe = perl(&mut pod, PidNamespace::Host, &script);
    let pid = pod.start(&recipe).unwrap();
    eventually("all are made", || log_of(&recipe).contains("F made"));
    eventually("none is left", || children(pod.pid) == [pid]);
    assert_eq!(pod.sh("echo well"), "well\n");
}

#[test]
fn a_thread_that_has_the_holder_trace_it_does_not_hide_the_end() {
    let mut pod = Pod::new();
    let script = format!(
        "use threads; $| = 1; threads->create(sub {{ syscall({}, 0, 0, 0, 0) == 0 or die $! }})->detach; \
         sleep 1; print qq(traced\\n); exit 7",
        libc::SYS_ptrace
    );
    let recipe = perl(&mut pod, PidNamespace::Own, &script);
    let ran = pod.run(&recipe);
    assert_eq!((ran.exit.code, ran.stdout.as_str()), (7, "traced\n"), "{ran:?}");
    eventually("it is gone", || children(pod.pid).is_empty());
}

#[test]
fn a_fork_bomb_ends_with_its_pod() {
    for namespace in [PidNamespace::Own, PidNamespace::Pod] {
        let cgroups = Cgroups::make(&format!("bomb-{namespace:?}"));
        let limit = cgroups.0.iter().map(|dir| dir.join("pids.max")).find(|file| file.exists()).expect("no pids controller");
        std::fs::write(limit, "60").unwrap();
        let mut pod = Pod::with(|r| r.share_pid = true);
        let mut recipe =
            perl(&mut pod, namespace, "$SIG{TERM} = 'IGNORE'; while (1) { fork; select(undef, undef, undef, 0.01) }");
        recipe.cgroups = cgroups.0.clone();
        pod.start(&recipe).unwrap();
        let members = || -> usize {
            let counts = cgroups.0.iter().map(|dir| std::fs::read_to_string(dir.join("cgroup.procs")).unwrap().lines().count());
            counts.max().unwrap()
        };
        eventually("it grew", || members() > 40);
        pod.call(Request::Shutdown).unwrap();
        while pod.connection().receive().is_some() {}
        assert!(pod.holder.wait().unwrap().success());
        eventually("all are dead", || members() == 0);
    }
}

#[test]
fn pause_has_nothing_to_gain_for_who_traces_it() {
    for user in [false, true] {
        let pod = if user {
            Pod::with(|r| {
                let map = vec![IdMap { inside: 0, outside: 300_000, count: 65_536 }];
                (r.share_pid, r.user) = (true, Some(IdMaps { uids: map.clone(), gids: map }));
            })
        } else {
            Pod::with(|r| r.share_pid = true)
        };
        let status = std::fs::read_to_string(format!("/proc/{}/status", pod.pause_pid.unwrap())).unwrap();
        for line in ["CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"] {
            assert!(status.contains(line), "{line}: {status}");
        }
    }
}

/// Looks at all that is born beside it, as closely as CAP_SYS_PTRACE lets it, and says what it sees of the host.
fn watcher(pod: &mut Pod, namespace: PidNamespace) -> Recipe {
    let allowed = DEFAULT_CAPABILITIES | SYS_PTRACE;
    let script = format!(
        r#"$| = 1; my ($last, %told) = ($$); sub once {{ print "$_[0]\n" unless $told{{$_[0]}}++ }}
        while (1) {{ for my $n ($last - 1 .. $last + 3) {{
            next if $n == $$ or $n < 2;
            if (-e "/proc/$n/root{marker}") {{ once("the host's root") }}
            open(my $f, "<", "/proc/$n/status") or next;
            my $text = join "", <$f>;
            once("the holder's rights") if $text =~ /CapPrm:\s*(\w+)/ && (hex($1) & ~{allowed});
            $last = $n if $n > $last; }}
            once("watching") }}"#,
        marker = pod.dir.path().join("holder.sock").display()
    );
    let mut recipe = perl(pod, namespace, &script);
    recipe.process.capabilities.bounding = allowed;
    recipe.process.capabilities.effective = allowed;
    pod.start(&recipe).unwrap();
    eventually("it watches", || log_of(&recipe).contains("watching"));
    recipe
}

#[test]
fn who_may_trace_sees_nothing_of_the_host_when_an_exec_is_born_beside_it() {
    for namespace in [PidNamespace::Own, PidNamespace::Pod] {
        let mut pod = Pod::with(|r| r.share_pid = namespace == PidNamespace::Pod);
        let watcher = watcher(&mut pod, namespace);
        for no_new_privs in [true, false] {
            for _ in 0..150 {
                let argv = ["/bin/sh", "-c", "echo $$"].map(String::from).to_vec();
                let (code, out, _) = pod.exec(&watcher, Process { argv, no_new_privs, ..watcher.process.clone() }).unwrap();
                assert!(code == 0 && out.trim().parse::<i32>().unwrap() > 1, "{code} {out}");
            }
        }
        assert_eq!(text(&log_of(&watcher), "stdout"), "watching\n", "{namespace:?}");
        eventually("nothing is left of the execs", || children(pod.pid).len() <= 2);
    }
}

#[test]
fn who_may_trace_sees_nothing_of_the_host_when_a_container_is_born_beside_it() {
    // Only with this can a procfs be mounted from outside of its PID namespace: see SECURITY.md.
    let version = rustix::system::uname();
    let version: Vec<u32> = version.release().to_str().unwrap().split(['.', '-']).flat_map(str::parse).take(2).collect();
    assert!(version >= vec![6, 18], "this test is for Linux 6.18 and later");
    for (share_pid, may_trace) in [(true, true), (true, false), (false, false)] {
        let mut pod = Pod::with(|r| (r.share_pid, r.may_trace) = (share_pid, may_trace));
        let namespace = if share_pid { PidNamespace::Pod } else { PidNamespace::Own };
        let watcher = watcher(&mut pod, namespace);
        for round in 0..30 {
            let mut recipe = pod.shell("app", "echo $$; ls /proc/sys > /dev/null; readlink /proc/self; cat /proc/1/comm");
            if share_pid {
                recipe.pid = PidNamespace::Pod;
            } else {
                // As a debug container is.
                recipe.beside = Some(watcher.id.clone());
            }
            recipe.process.tty = round % 2 == 1;
            let ran = pod.run(&recipe);
            assert_eq!(ran.exit.code, 0, "{ran:?}");
            // The procfs is of the namespace that it's in.
            let lines: Vec<&str> = ran.stdout.lines().map(str::trim).collect();
            assert!(lines[0].parse::<i32>().unwrap() > 1 && lines[1].parse::<i32>().is_ok(), "{ran:?}");
            assert_eq!(lines[2], if share_pid { "podholder" } else { "perl" });
        }
        assert_eq!(text(&log_of(&watcher), "stdout"), "watching\n", "{share_pid} {may_trace}");
    }
}

#[test]
fn an_image_whose_proc_is_a_link_is_refused() {
    let mut pod = Pod::new();
    for name in ["proc", "sys"] {
        let recipe = pod.recipe("app", &["true"]);
        symlink("/tmp", recipe.rootfs.upper.join(name)).unwrap();
        let fault = pod.start(&recipe).unwrap_err();
        assert_eq!((fault.stage, fault.errno), (Stage::Mount, libc::ELOOP), "{fault:?}");
        assert_eq!((fault.subject, fault.detail.as_str()), (format!("/{name}"), "the image has a link there"));
    }
}

#[test]
fn the_holder_shows_nothing_to_a_container_with_the_hosts_processes() {
    let mut pod = Pod::new();
    let script = format!(
        "cd /proc/{} || exit 1; readlink fd/3 && echo fd; ls root/ 2>/dev/null && echo root; cat environ maps 2>/dev/null && echo text; \
         readlink exe cwd ns/net; (: > mem) 2>/dev/null && echo mem; echo end",
        pod.pid
    );
    let mut recipe = pod.shell("app", &script);
    recipe.pid = PidNamespace::Host;
    assert_eq!(pod.run(&recipe).stdout, "end\n");
}

#[test]
fn an_image_does_not_decide_what_a_number_means() {
    let mut pod = Pod::new();
    let passwd = "1000:x:0:0::/:\nnone:x:4294967295:4294967295::/:\n";
    for (spec, wanted) in [("1000", Ok("1000 0\n")), ("1000:1000", Ok("1000 1000\n")), ("none", Err(Stage::User))] {
        let mut recipe = pod.shell("app", "echo $(id -u) $(id -g)");
        std::fs::create_dir(recipe.rootfs.upper.join("etc")).unwrap();
        std::fs::write(recipe.rootfs.upper.join("etc/passwd"), passwd).unwrap();
        std::fs::write(recipe.rootfs.upper.join("etc/group"), "1000:x:0:\n").unwrap();
        recipe.process.user.spec = spec.into();
        match wanted {
            Ok(ids) => assert_eq!(pod.run(&recipe).stdout, ids, "{spec}"),
            Err(stage) => assert_eq!(pod.start(&recipe).unwrap_err().stage, stage, "{spec}"),
        }
    }
}

/// Most of what it has is beyond the holder's patience: it must neither grow nor stop hearing others.
#[test]
fn a_flood_on_both_streams_keeps_the_holder_small_and_answering() {
    let mut pod = Pod::new();
    let mut recipe = pod.shell("app", "yes & yes >&2 & head -c 1000000000 /dev/zero");
    let log = recipe.log.as_mut().unwrap();
    (log.max_size, log.max_files) = (1 << 20, 2);
    pod.start(&recipe).unwrap();
    eventually("it writes", || log_of(&recipe).len() > 100_000);
    for _ in 0..20 {
        assert_eq!(pod.state().containers.len(), 1);
    }
    assert_eq!(pod.sh("echo heard"), "heard\n");
    let status = std::fs::read_to_string(format!("/proc/{}/status", pod.pid)).unwrap();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap();
    assert!(peak < 16 * 1024, "{peak} kB at its largest");
}

#[test]
fn a_socket_far_down_the_tree() {
    let pod = Pod::with(|r| {
        let folder = r.socket.parent().unwrap().join("a-folder-with-a-long-name".repeat(6)).join("and another one");
        std::fs::create_dir_all(&folder).unwrap();
        r.socket = folder.join("holder.sock");
    });
    let found = std::fs::read_dir(pod.dir.path()).unwrap().flatten().find(|e| e.file_name().len() > 100).unwrap().path();
    let socket = found.join("and another one/holder.sock");
    let metadata = std::fs::metadata(&socket).unwrap();
    assert!(metadata.file_type().is_socket() && metadata.permissions().mode() & 0o777 == 0o600);
    // Connected by way of a short name for the long path.
    let short = pod.dir.path().join("short");
    symlink(socket.parent().unwrap(), &short).unwrap();
    let (reply, _) = Connection::open(&short.join("holder.sock")).call(Request::State, &[]).unwrap();
    assert!(matches!(reply, Reply::State(_)));
}
