//! Starts and ends of containers, and every way in which a start fails.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use podholder::protocol::*;
use support::*;

fn fault(pod: &mut Pod, recipe: &Recipe) -> (Stage, i32, String, String) {
    let fault = pod.start(recipe).expect_err("it started");
    assert!(pod.state().containers.iter().all(|c| c.id != recipe.id), "a failed start leaves a record");
    (fault.stage, fault.errno, fault.subject, fault.detail)
}

#[test]
fn a_container_runs_and_its_end_and_output_are_told() {
    let mut pod = Pod::new();
    let recipe = pod.shell("app", "echo out; echo err >&2; exit 7");
    let ran = pod.run(&recipe);
    assert_eq!((ran.exit.code, ran.exit.signal), (7, None));
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("out\n", "err\n"));
    let state = pod.state();
    assert_eq!(state.note, serde_json::json!({"from": "test"}));
    assert_eq!(state.containers.len(), 1);
    assert_eq!(state.containers[0].exit, Some(ran.exit));
    pod.call(Request::Forget { container: recipe.id.clone() }).unwrap();
    assert!(pod.state().containers.is_empty());
}

#[test]
fn many_containers_start_at_once() {
    let mut pod = Pod::new();
    let recipes: Vec<Recipe> = (0..20).map(|n| pod.shell(&format!("c{n}"), &format!("exit {n}"))).collect();
    let calls: Vec<u64> = recipes.iter().map(|r| pod.connection().send(Request::Start(Box::new(r.clone())), &[])).collect();
    // Replies come in any order: the last one's answer may follow others'.
    assert_eq!(calls.len(), 20);
    for (n, recipe) in recipes.iter().enumerate() {
        assert_eq!(pod.exit_of(&recipe.id).code, n as i32);
    }
}

#[test]
fn a_command_that_is_not_there_or_not_executable() {
    let mut pod = Pod::new();
    let upper = |recipe: &Recipe, name: &str, text: &str, mode: u32| {
        use std::os::unix::fs::PermissionsExt;
        let path = recipe.rootfs.upper.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let recipe = pod.recipe("a", &["nothing"]);
    let (stage, errno, subject, _) = fault(&mut pod, &recipe);
    assert_eq!((stage, errno, subject.as_str()), (Stage::Exec, libc::ENOENT, "nothing"));
    let recipe = pod.recipe("b", &["/no/such"]);
    assert_eq!(fault(&mut pod, &recipe).1, libc::ENOENT);
    let recipe = pod.recipe("c", &["/text"]);
    upper(&recipe, "text", "text", 0o644);
    assert_eq!(fault(&mut pod, &recipe).1, libc::EACCES);
    let recipe = pod.recipe("d", &["/etc"]);
    assert_eq!(fault(&mut pod, &recipe).1, libc::EACCES);
    let recipe = pod.recipe("e", &["/script"]);
    upper(&recipe, "script", "#!/no/interpreter\n", 0o755);
    let (stage, errno, _, detail) = fault(&mut pod, &recipe);
    assert_eq!((stage, errno), (Stage::Exec, libc::ENOENT));
    assert!(detail.contains("interpreter"), "{detail}");
    let recipe = pod.recipe("f", &["/not-a-program"]);
    upper(&recipe, "not-a-program", "text", 0o755);
    assert_eq!(fault(&mut pod, &recipe).1, libc::ENOEXEC);
    let recipe = pod.recipe("g", &[""]);
    assert_eq!(fault(&mut pod, &recipe).0, Stage::Exec);
}

#[test]
fn faults_name_stage_and_subject() {
    let mut pod = Pod::new();
    let mut recipe = pod.shell("a", "true");
    recipe.process.user.spec = "nobody-here".into();
    assert_eq!(fault(&mut pod, &recipe), (Stage::User, 0, "nobody-here".into(), "no such user in /etc/passwd".into()));
    let mut recipe = pod.shell("b", "true");
    recipe.mounts.push(bind("/no/such/source".as_ref(), "/mnt"));
    assert_eq!(fault(&mut pod, &recipe), (Stage::Mount, libc::ENOENT, "/no/such/source".into(), String::new()));
    let mut recipe = pod.shell("c", "true");
    recipe.rootfs.lower.push("/no/such/layer".into());
    assert_eq!(fault(&mut pod, &recipe), (Stage::Rootfs, libc::ENOENT, "/no/such/layer".into(), String::new()));
    let mut recipe = pod.shell("d", "true");
    recipe.cgroups.push("/no/such/cgroup".into());
    assert_eq!(fault(&mut pod, &recipe), (Stage::Cgroup, libc::ENOENT, "/no/such/cgroup".into(), String::new()));
    let mut recipe = pod.shell("e", "true");
    recipe.process.cwd = "/etc/passwd".into();
    assert_eq!(fault(&mut pod, &recipe).0, Stage::WorkingDir);
    let mut recipe = pod.shell("f", "true");
    recipe.process.seccomp = "!".into();
    assert_eq!(fault(&mut pod, &recipe).0, Stage::Seccomp);
    let mut recipe = pod.shell("g", "true");
    recipe.log.as_mut().unwrap().path = "/no/such/folder/0.log".into();
    assert_eq!(fault(&mut pod, &recipe).0, Stage::Log);
    let mut recipe = pod.shell("h", "true");
    recipe.pid = PidNamespace::Pod;
    assert_eq!(fault(&mut pod, &recipe).0, Stage::Namespace);
    let mut recipe = pod.shell("i", "true");
    recipe.mounts[1].source = Source::Tmpfs { options: "mode=755,nonsense=1".into() };
    let (stage, errno, subject, detail) = fault(&mut pod, &recipe);
    assert_eq!((stage, errno, subject.as_str()), (Stage::Mount, libc::EINVAL, "/dev"));
    assert!(detail.contains("nonsense"), "{detail}");
    // And the pod is as good as new.
    assert_eq!(pod.sh("echo fine"), "fine\n");
}

#[test]
fn a_signal_reaches_the_first_process_and_its_exit_says_so() {
    let mut pod = Pod::new();
    let recipe = pod.shell("app", "trap 'exit 3' TERM; echo ready; while true; do sleep 0.01; done");
    let pid = pod.start(&recipe).unwrap();
    eventually("the trap is set", || log_of(&recipe).contains("ready"));
    assert!(is_alive(pid));
    pod.signal(&recipe.id, libc::SIGTERM);
    assert_eq!(pod.exit_of(&recipe.id).code, 3);
    // Also after the end.
    pod.signal(&recipe.id, libc::SIGTERM);
    let recipe = pod.recipe("sleeper", &["sleep", "1000"]);
    pod.start(&recipe).unwrap();
    pod.signal(&recipe.id, libc::SIGKILL);
    let exit = pod.exit_of(&recipe.id);
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    let unknown = pod.call(Request::Signal { container: "nobody".into(), signal: 9 }).unwrap_err();
    assert_eq!((unknown.stage, unknown.errno), (Stage::Protocol, libc::ESRCH));
}

#[test]
fn at_most_two_ends_of_one_name_are_remembered() {
    let mut pod = Pod::new();
    for _ in 0..4 {
        let recipe = pod.shell("app", "true");
        pod.run(&recipe);
    }
    let other = pod.shell("other", "true");
    pod.run(&other);
    let names: Vec<String> = pod.state().containers.into_iter().map(|c| c.id).collect();
    assert_eq!(names, ["app-3", "app-4", "other-5"]);
}

#[test]
fn the_same_id_twice_and_an_unknown_request_are_faults() {
    let mut pod = Pod::new();
    let recipe = pod.recipe("app", &["sleep", "1000"]);
    pod.start(&recipe).unwrap();
    assert_eq!(pod.start(&recipe).unwrap_err().errno, libc::EEXIST);
    let running = pod.call(Request::Forget { container: recipe.id.clone() }).unwrap_err();
    assert_eq!(running.errno, libc::EBUSY);
    let mut raw = Connection::open(&pod.dir.path().join("holder.sock"));
    let fault = raw.raw(br#"{"id": 77, "request": {"danceTango": {}}}"#, 77).unwrap_err();
    assert_eq!(fault.stage, Stage::Protocol);
}

#[test]
fn the_process_is_what_the_recipe_says() {
    let mut pod = Pod::new();
    let script = "id; pwd; echo $HOME; umask; grep -E 'Cap|NoNewPrivs|Seccomp:|SigIgn|SigBlk' /proc/self/status; cat /proc/self/oom_score_adj";
    let mut recipe = pod.shell("user", script);
    recipe.process.user = User { spec: "web".into(), groups: vec![2000], ..User::default() };
    recipe.process.cwd = "/made/for/it".into();
    recipe.process.umask = 0o077;
    recipe.process.capabilities.ambient = 1 << 10;
    recipe.process.oom_score_adj = Some(1000);
    let out = pod.run(&recipe).stdout;
    let expect = [
        "uid=33(web) gid=34(web) groups=34(web),50(staff),2000",
        "/made/for/it",
        "/var/www",
        "0077",
        "SigBlk:\t0000000000000000",
        "SigIgn:\t0000000000000000",
        "CapInh:\t0000000000000400",
        "CapPrm:\t0000000000000400",
        "CapEff:\t0000000000000400",
        "CapBnd:\t00000000a80425fb",
        "CapAmb:\t0000000000000400",
        "NoNewPrivs:\t1",
        "Seccomp:\t0",
        "1000",
    ];
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines, expect);
    let root = pod.sh("id -u; echo $HOME; umask; grep CapEff /proc/self/status");
    assert_eq!(root, "0\n/root\n0022\nCapEff:\t00000000a80425fb\n");
}

#[test]
fn all_capabilities_are_those_that_the_machine_has() {
    let mut pod = Pod::new();
    let mut recipe = pod.shell("privileged", "grep CapEff /proc/self/status");
    recipe.process.capabilities =
        Capabilities { bounding: ALL_CAPABILITIES, effective: ALL_CAPABILITIES, inheritable: 0, ambient: 0 };
    recipe.process.no_new_privs = false;
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let own = own.lines().find(|l| l.starts_with("CapEff")).unwrap();
    assert_eq!(pod.run(&recipe).stdout.trim(), own);
}

/// `if nr == mkdir return ERRNO(EPERM) else ALLOW`, x86_64's numbers or the general ones.
fn no_mkdir() -> String {
    let instructions: [(u16, u8, u8, u32); 5] = [
        (0x20, 0, 0, 0),
        (0x15, 1, 0, libc::SYS_mkdirat as u32),
        #[cfg(target_arch = "x86_64")]
        (0x15, 0, 1, libc::SYS_mkdir as u32),
        #[cfg(not(target_arch = "x86_64"))]
        (0x15, 0, 1, u32::MAX),
        (0x06, 0, 0, 0x0005_0001),
        (0x06, 0, 0, 0x7fff_0000),
    ];
    let bytes: Vec<u8> = instructions
        .iter()
        .flat_map(|(code, jt, jf, k)| {
            let mut one = code.to_ne_bytes().to_vec();
            one.extend([*jt, *jf]);
            one.extend(k.to_ne_bytes());
            one
        })
        .collect();
    base64(&bytes)
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0u32, |b, c| b << 8 | u32::from(*c)) << (8 * (3 - chunk.len()));
        for n in 0..=chunk.len() {
            out.push(char::from(DIGITS[(bits >> (18 - 6 * n)) as usize & 63]));
        }
        out.push_str(&"=="[..3 - chunk.len()]);
    }
    out
}

#[test]
fn a_seccomp_filter_is_in_force_with_and_without_no_new_privs() {
    let mut pod = Pod::new();
    for (no_new_privs, user) in [(true, "0"), (false, "0"), (true, "web"), (false, "web")] {
        let mut recipe = pod.shell("filtered", "grep Seccomp: /proc/self/status; mkdir /tmp/x || echo refused");
        recipe.process.seccomp = no_mkdir();
        recipe.process.no_new_privs = no_new_privs;
        recipe.process.user.spec = user.into();
        let out = pod.run(&recipe).stdout;
        assert_eq!(out, "Seccomp:\t2\nrefused\n", "no_new_privs {no_new_privs}, {user}");
    }
}

#[test]
fn limits_are_the_nearest_that_the_machine_permits() {
    let mut pod = Pod::new();
    let mut recipe = pod.shell("limits", "grep -E 'Max (open files|core)' /proc/self/limits");
    let (_, hard) = podholder::sys::rlimit(libc::RLIMIT_NOFILE).unwrap();
    recipe.process.rlimits = vec![(libc::RLIMIT_NOFILE, 1 << 40, 1 << 41), (libc::RLIMIT_CORE, 0, 0)];
    recipe.process.oom_score_adj = Some(-999);
    let out = pod.run(&recipe).stdout;
    let fields: Vec<Vec<&str>> = out.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(fields[0][4], "0", "{out}");
    let files: u64 = fields[1][4].parse().unwrap();
    assert!(files >= hard.min(1 << 20), "{out}");
    let mut recipe = pod.shell("low", "grep 'Max open files' /proc/self/limits");
    recipe.process.rlimits = vec![(libc::RLIMIT_NOFILE, 5, 6)];
    let out = pod.run(&recipe).stdout;
    assert_eq!(out.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["5", "6"]);
}
