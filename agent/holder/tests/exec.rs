//! Processes beside a container's own, terminals, attach.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use podholder::protocol::*;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use support::*;

/// Containers whose execs come into their PID namespace first, and last: then the exec is the same to who asks for it.
fn each_sleeper(mut test: impl FnMut(&mut Pod, Recipe)) {
    for more in [0, SYS_PTRACE] {
        let mut pod = Pod::new();
        let mut recipe = pod.recipe("app", &["sleep", "1000"]);
        recipe.process.capabilities.bounding |= more;
        recipe.process.capabilities.effective |= more;
        pod.start(&recipe).unwrap();
        test(&mut pod, recipe);
    }
}

fn process(recipe: &Recipe, script: &str) -> Process {
    Process { argv: ["sh", "-c", script].map(String::from).to_vec(), ..recipe.process.clone() }
}

#[test]
fn exec_joins_all_namespaces_and_its_end_is_told() {
    each_sleeper(|pod, recipe| joins_all(pod, &recipe));
}

fn joins_all(pod: &mut Pod, recipe: &Recipe) {
    let script = "for n in mnt pid net ipc uts cgroup user; do [ $(readlink /proc/1/ns/$n) = $(readlink /proc/self/ns/$n) ] || echo $n; done; \
                  echo done; echo err >&2; id -u; exit 5";
    let mut web = process(recipe, script);
    // To look at PID 1's namespaces.
    web.capabilities = Capabilities { bounding: ALL_CAPABILITIES, effective: ALL_CAPABILITIES, inheritable: 0, ambient: 0 };
    assert_eq!(pod.exec(recipe, web).unwrap(), (5, "done\n0\n".into(), "err\n".into()));
    let mut web = process(recipe, "id -un; echo $HOME; pwd");
    web.user.spec = "web".into();
    web.cwd = "/tmp".into();
    assert_eq!(pod.exec(recipe, web).unwrap(), (0, "web\n/var/www\n/tmp\n".into(), String::new()));
}

#[test]
fn exec_of_nothing_and_in_nothing() {
    each_sleeper(|pod, recipe| of_nothing(pod, &recipe));
}

fn of_nothing(pod: &mut Pod, recipe: &Recipe) {
    let missing = Process { argv: vec!["missing".into()], ..recipe.process.clone() };
    let fault = pod.exec(recipe, missing).unwrap_err();
    assert_eq!((fault.stage, fault.errno), (Stage::Exec, libc::ENOENT));
    let denied = Process { argv: vec!["/etc/passwd".into()], ..recipe.process.clone() };
    assert_eq!(pod.exec(recipe, denied).unwrap_err().errno, libc::EACCES);
    pod.signal(&recipe.id, libc::SIGKILL);
    pod.exit_of(&recipe.id);
    let fault = pod.exec(recipe, process(recipe, "true")).unwrap_err();
    assert_eq!((fault.stage, fault.errno), (Stage::Protocol, libc::ESRCH));
}

#[test]
fn exec_with_a_terminal() {
    each_sleeper(|pod, recipe| with_a_terminal(pod, &recipe));
}

fn with_a_terminal(pod: &mut Pod, recipe: &Recipe) {
    // By way of /dev/tty, which only the leader of the terminal's session has.
    let mut shell = process(recipe, "tty; stty size < /dev/tty; read x; echo got $x; exit 4");
    shell.tty = true;
    shell.tty_size = Some((33, 101));
    let request = Request::Exec { container: recipe.id.clone(), process: Box::new(shell), cgroups: Vec::new() };
    let (reply, mut fds) = pod.call(request).unwrap();
    let Reply::Exec { exec, pid } = reply else { panic!("{reply:?}") };
    assert!(pid > 0);
    let mut master = std::fs::File::from(fds.pop().unwrap());
    master.write_all(b"hello\n").unwrap();
    let out = read_all(master.into()).replace('\r', "");
    assert_eq!(pod.exec_exit(exec).code, 4);
    for part in ["/dev/pts/0\n", "33 101\n", "got hello\n"] {
        assert!(out.contains(part), "{out}");
    }
}

#[test]
fn an_exec_and_what_it_started_can_be_killed() {
    each_sleeper(|pod, recipe| can_be_killed(pod, &recipe));
}

fn can_be_killed(pod: &mut Pod, recipe: &Recipe) {
    let (out, writer) = pipe();
    let null = std::fs::File::open("/dev/null").unwrap();
    let request = Request::Exec {
        container: recipe.id.clone(),
        process: Box::new(process(recipe, "sleep 1000 & echo started; wait")),
        cgroups: Vec::new(),
    };
    let reply = pod.connection().call(request, &[null.as_fd(), writer.as_fd(), writer.as_fd()]).unwrap();
    let (Reply::Exec { exec, .. }, _) = reply else { panic!("{reply:?}") };
    drop(writer);
    let mut out = std::fs::File::from(out);
    let mut word = [0; 8];
    out.read_exact(&mut word).unwrap();
    pod.call(Request::KillExec { exec }).unwrap();
    assert_eq!(pod.exec_exit(exec).signal, Some(9));
    // End of file: the child in the background is dead too.
    assert_eq!(out.read(&mut word).unwrap(), 0);
    pod.call(Request::KillExec { exec }).unwrap();
}

#[test]
fn attach_copies_output_and_gives_stdin() {
    let mut pod = Pod::new();
    let mut recipe = pod.shell("app", "while read x; do echo out $x; echo err $x >&2; done; echo end");
    recipe.process.stdin = true;
    pod.start(&recipe).unwrap();
    let (out, out_writer) = pipe();
    let (err, err_writer) = pipe();
    let request = Request::Attach { container: recipe.id.clone(), stdin: true, stdout: true, stderr: true };
    let (reply, mut fds) = pod.connection().call(request, &[out_writer.as_fd(), err_writer.as_fd()]).unwrap();
    assert!(matches!(reply, Reply::Attached { stdin: true }));
    drop((out_writer, err_writer));
    let mut stdin = std::fs::File::from(fds.pop().unwrap());
    stdin.write_all(b"one\ntwo\n").unwrap();
    drop(stdin);
    eventually("it was read", || log_of(&recipe).contains("out two"));
    // Another one, only for a look, that closes at once.
    let (_, writer) = pipe();
    let request = Request::Attach { container: recipe.id.clone(), stdin: false, stdout: true, stderr: false };
    pod.connection().call(request, &[writer.as_fd()]).unwrap();
    drop(writer);
    pod.call(Request::CloseStdin { container: recipe.id.clone() }).unwrap();
    assert_eq!(pod.exit_of(&recipe.id).code, 0);
    assert_eq!((read_all(out), read_all(err)), ("out one\nout two\nend\n".into(), "err one\nerr two\n".into()));
    assert_eq!(text(&log_of(&recipe), "stdout"), "out one\nout two\nend\n");
}

#[test]
fn an_attached_descriptor_that_nobody_reads_does_not_stop_the_log() {
    let mut pod = Pod::new();
    let mut recipe = pod.shell("app", "read x; yes 0123456789 | head -n 200000");
    recipe.process.stdin = true;
    pod.start(&recipe).unwrap();
    let (_unread, writer) = pipe();
    let request = Request::Attach { container: recipe.id.clone(), stdin: true, stdout: true, stderr: false };
    let (_, mut fds) = pod.connection().call(request, &[writer.as_fd()]).unwrap();
    std::fs::File::from(fds.pop().unwrap()).write_all(b"go\n").unwrap();
    assert_eq!(pod.exit_of(&recipe.id).code, 0);
    eventually("all is in the log", || log_of(&recipe).lines().count() == 200_000);
}

#[test]
fn a_containers_terminal() {
    let mut pod = Pod::new();
    let mut recipe =
        pod.shell("app", "tty; stty size; ls -l /dev/console; echo console > /dev/console; read x; echo got $x; exit 6");
    recipe.process.tty = true;
    recipe.process.stdin = true;
    recipe.process.tty_size = Some((24, 80));
    recipe.process.user.spec = "web".into();
    pod.start(&recipe).unwrap();
    let (out, writer) = pipe();
    let request = Request::Attach { container: recipe.id.clone(), stdin: true, stdout: true, stderr: false };
    let (_, mut fds) = pod.connection().call(request, &[writer.as_fd()]).unwrap();
    drop(writer);
    let mut master = std::fs::File::from(fds.pop().unwrap());
    master.write_all(b"hello\n").unwrap();
    assert_eq!(pod.exit_of(&recipe.id).code, 6);
    drop(master);
    assert!(read_all(out).contains("got hello"));
    let log = text(&log_of(&recipe), "stdout").replace('\r', "");
    for part in ["/dev/pts/0\n", "24 80\n", "console\n", "got hello\n", "crw--w----"] {
        assert!(log.contains(part), "{part}: {log}");
    }
}
