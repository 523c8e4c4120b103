//! Containers on the real kernel, through the runtime's facade and the embedded holder. Needs root and busybox-static.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod runtime_support;

use std::fs;
use std::path::Path;

use nodeagent::runtime::Cause;
use rstest::rstest;
use runtime_support::{LIMIT, Node, pod, script, volumes};

fn mounts_below(dir: &Path) -> usize {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mountinfo.lines().filter(|line| line.contains(dir.to_str().unwrap())).count()
}

#[tokio::test]
async fn a_container_sees_its_pod() {
    let node = Node::new();
    let sandbox = node
        .sandbox(&script(
            "hostname; echo $FROM $OWN $MY_POD; pwd; grep web /etc/hosts; cat /etc/hostname; echo pid $$$$\nexit 3",
            "  hostname: db\n",
        ))
        .await;
    let (started, exit, log) = node.run(&sandbox, "app").await;
    assert_eq!(exit.code, 3);
    assert_eq!(log, "db\nimage\n/\ndb\npid 1\n");
    assert_eq!(started.id.len(), 64);
    let names: Vec<_> = started.steps.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names[..4], ["recipe", "folders", "cgroup", "holder"]);
}

#[tokio::test]
async fn environment_and_expansion() {
    let node = Node::new();
    let sandbox = node
        .sandbox(
            "  containers:
  - name: app
    image: busybox
    command: [sh, -c]
    args: [\"echo $(A) $(B) $$(A) $(NO) $POD $CPU $IP $FROM\"]
    resources: {limits: {cpu: 1500m}}
    env:
    - {name: A, value: one}
    - {name: B, value: $(A)-two}
    - {name: FROM, value: pod}
    - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}
",
        )
        .await;
    let (_, exit, log) = node.run(&sandbox, "app").await;
    // The shell sees "$(A)" and "$(NO)" as commands that aren't there.
    assert_eq!((exit.code, log.lines().last().unwrap()), (0, "one one-two web 2 10.9.8.7 pod"));
}

#[tokio::test]
async fn containers_share_memory_volumes_and_leave_nothing() {
    let node = Node::new();
    let sandbox = node
        .sandbox(
            "  securityContext: {fsGroup: 2000}
  volumes:
  - {name: mem, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - {name: disk, emptyDir: {}}
  containers:
  - name: writer
    image: busybox
    command: [sh, -c, 'echo hello > /mem/f; mkdir -p /disk/a; echo $(id -g) $(stat -c %g:%a /mem /disk)']
    volumeMounts: [{name: mem, mountPath: /mem}, {name: disk, mountPath: /disk}]
  - name: reader
    image: busybox
    command: [sh, -c, 'cat /mem/f; ls /sub; touch /mem/g || echo read-only; df -k /mem | tail -1 | cut -c20-60 | wc -l']
    volumeMounts: [{name: mem, mountPath: /mem, readOnly: true}, {name: disk, mountPath: /sub, subPath: a/b}]
",
        )
        .await;
    let (_, _, log) = node.run(&sandbox, "writer").await;
    assert_eq!(log, "0 2000:2777 2000:2777\n");
    let (_, _, log) = node.run(&sandbox, "reader").await;
    assert!(log.starts_with("hello\n") && log.contains("Read-only file system") && log.contains("read-only\n"), "{log}");
    let lib = node.runtime.settings().lib.clone();
    assert_eq!(mounts_below(&lib), 1, "the tmpfs, and nothing of the containers");

    let uid = sandbox.pod.uid().clone();
    node.runtime.remove_pod(&uid, Some(&sandbox)).await.unwrap();
    assert_eq!(mounts_below(&lib), 0);
    assert!(node.runtime.leftovers().is_empty());
    for dir in [lib.join("pods"), node.runtime.settings().run.join("pods"), node.runtime.settings().log.clone()] {
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0, "{}", dir.display());
    }
    // Once more is no error.
    node.runtime.remove_pod(&uid, Some(&sandbox)).await.unwrap();
}

#[rstest]
#[case::not_there("command: [nope]", 127, "exec nope: No such file or directory")]
#[case::not_executable("command: [/etc/passwd]", 126, "exec /etc/passwd: Permission denied")]
#[case::no_such_user("command: [sh]\n    workingDir: /etc/passwd", 128, "working directory /etc/passwd: Not a directory")]
#[tokio::test]
async fn a_start_that_fails_says_where(#[case] container: &str, #[case] code: i32, #[case] message: &str) {
    let node = Node::new();
    let sandbox = node.sandbox(&format!("  containers:\n  - name: app\n    image: busybox\n    {container}\n")).await;
    let error = node.start(&sandbox, "app").await.unwrap_err();
    assert!(error.to_string().starts_with(&format!("pod default/web: container app: {message}")), "{error}");
    assert_eq!((error.exit_code(), error.reason()), (code, "StartError"));
    assert!(error.fault().is_some_and(|fault| fault.errno != 0));
}

#[tokio::test]
async fn what_the_spec_can_t_have_is_a_config_error() {
    let node = Node::new();
    let sandbox = node.sandbox(&script("true", "  securityContext: {runAsNonRoot: true}\n")).await;
    let error = node.start(&sandbox, "app").await.unwrap_err();
    assert!(matches!(error.cause, Cause::Config(_)) && error.to_string().contains("image will run as root"), "{error}");
    assert_eq!(error.reason(), "CreateContainerConfigError");
}

#[tokio::test]
async fn a_container_is_confined() {
    let node = Node::new();
    let sandbox = node
        .sandbox(&script(
            "grep -E '^(Seccomp|NoNewPrivs|CapEff|CapBnd):' /proc/self/status\n\
             mknod /disk b 254 0 && head -c1 /disk > /dev/null && echo got the disk\n\
             head -c1 /dev/zero | wc -c\n\
             echo x > /proc/sys/kernel/hostname || echo no\n\
             cat /proc/kcore | wc -c\n\
             mount -t tmpfs t /tmp 2>&1 | grep -c denied\n\
             unshare -U true 2>&1 | grep -c permitted",
            "",
        ))
        .await;
    let (_, _, log) = node.run(&sandbox, "app").await;
    assert!(!log.contains("got the disk"), "{log}");
    for line in ["CapEff:\t00000000a80425fb", "CapBnd:\t00000000a80425fb", "NoNewPrivs:\t0", "Seccomp:\t2", "no", "0"] {
        assert!(log.lines().any(|l| l == line), "{line} isn't in:\n{log}");
    }
    assert_eq!(log.lines().filter(|l| *l == "1").count(), 3, "{log}");
}

#[tokio::test]
async fn users_groups_and_a_read_only_root() {
    let node = Node::new();
    let sandbox = node
        .sandbox(
            "  securityContext: {runAsUser: 1000, supplementalGroups: [7]}
  containers:
  - name: app
    image: busybox
    command: [sh, -c, 'id; touch /x || echo ro; grep CapEff /proc/self/status; grep NoNew /proc/self/status']
    securityContext: {readOnlyRootFilesystem: true, allowPrivilegeEscalation: false}
",
        )
        .await;
    let (_, _, log) = node.run(&sandbox, "app").await;
    assert!(log.starts_with("uid=1000(bob) gid=1001(bob) groups=") && log.contains("50(staff)"), "{log}");
    for line in ["ro", "CapEff:\t0000000000000000", "NoNewPrivs:\t1"] {
        assert!(log.lines().any(|l| l == line), "{line} isn't in:\n{log}");
    }
}

#[tokio::test]
async fn privileged_means_all() {
    let node = Node::new();
    let spec = script("mount -t tmpfs t /tmp && echo mounted; ls -l /dev/kmsg | cut -c1; grep Seccomp: /proc/self/status", "");
    let sandbox = node.sandbox(&format!("{spec}    securityContext: {{privileged: true}}\n")).await;
    let (_, exit, log) = node.run(&sandbox, "app").await;
    assert_eq!((exit.code, log.as_str()), (0, "mounted\nc\nSeccomp:\t0\n"));
}

#[tokio::test]
async fn a_user_namespace_hides_root() {
    let node = Node::new();
    let spec = "  hostUsers: false\n  volumes: [{name: v, emptyDir: {}}]\n";
    let sandbox = node
        .sandbox(&format!(
            "{}    volumeMounts: [{{name: v, mountPath: /v}}]\n",
            script(
                "id -u; head -1 /proc/self/uid_map | grep -v ' 0 ' | wc -l; touch /v/f /f && stat -c %u /v/f /f /bin/busybox",
                spec
            )
        ))
        .await;
    let (_, exit, log) = node.run(&sandbox, "app").await;
    assert_eq!((exit.code, log.as_str()), (0, "0\n0\n0\n0\n0\n"));
    let volume = node.runtime.settings().volume_dir(sandbox.pod.uid(), "empty-dir", "v");
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(volume.join("f")).unwrap());
    assert_eq!(owner, 0, "the idmapped mount keeps the owner as the pod sees it");
}

#[tokio::test]
async fn a_container_that_takes_too_much_memory_is_told_apart() {
    let node = Node::new();
    let spec = script("exec tail /dev/zero", "");
    let sandbox = node.sandbox(&format!("{spec}    resources: {{limits: {{memory: 16Mi}}}}\n")).await;
    let (started, exit, _) = node.run(&sandbox, "app").await;
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    assert!(node.runtime.oom_killed(&sandbox, &started.id));
}

#[tokio::test]
async fn another_life_of_the_agent_goes_on_with_the_pod() {
    let node = Node::new();
    let sandbox = node.sandbox(&script("trap 'exit 5' TERM; sleep 1000 & wait", "")).await;
    let started = node.start(&sandbox, "app").await.unwrap();
    let uid = sandbox.pod.uid().clone();
    // What the dead agent held is closed; the holder lives.
    drop(sandbox);

    let next = node.next_life();
    let adopted = next.adopt().await.into_iter().next().expect("a pod");
    assert_eq!(adopted.uid, uid);
    assert_eq!(adopted.pod.unwrap().to_string(), "default/web");
    let (sandbox, state) = adopted.sandbox.unwrap();
    assert_eq!(state.note, serde_json::json!({"from": "test"}));
    assert_eq!((state.containers[0].pid, state.containers[0].exit), (started.pid, None));

    let seen = next.inspect(&sandbox, started.pid, Some(&started.id));
    let first = seen.processes.iter().find(|p| p.host_pid == started.pid).unwrap();
    assert_eq!(first.container_pids, [1]);
    assert!(first.command.starts_with("sh -c trap") && first.pss > 0, "{first:?}");
    assert!(next.container_stats(&sandbox, &started.id).cpu_nanos > 0);
    assert!(next.pod_stats(&sandbox).pids >= 2, "the holder and the shell, which may not have begun its own child yet");

    // It ends before anybody minds the pod.
    sandbox.holder.signal(&started.id, 15).await.unwrap();
    while sandbox.holder.state().await.unwrap().containers[0].exit.is_none() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let mut events = sandbox.holder.all_events();
    assert_eq!(runtime_support::exit_of(&mut events, &started.id).await.code, 5);
    next.remove_container(&sandbox, "app", 0, &started.id).await.unwrap();
    next.remove_pod(&uid, Some(&sandbox)).await.unwrap();
    assert!(next.leftovers().is_empty());
}

#[tokio::test]
async fn a_holder_that_dies_takes_its_containers_and_is_cleaned_up() {
    let node = Node::new();
    let sandbox = node.sandbox(&script("sleep 1000 & sleep 1000", "")).await;
    let started = node.start(&sandbox, "app").await.unwrap();
    let holder = rustix::process::Pid::from_raw(sandbox.holder.pid()).unwrap();
    rustix::process::kill_process(holder, rustix::process::Signal::KILL).unwrap();
    tokio::time::timeout(LIMIT, sandbox.holder.gone()).await.expect("nobody told of the death");
    assert!(sandbox.holder.state().await.unwrap_err().to_string().ends_with("is gone"));
    assert!(!Path::new(&format!("/proc/{holder}")).join("status").exists(), "reaped");

    let adopted = node.next_life().adopt().await;
    assert!(adopted[0].pod.is_some() && adopted[0].sandbox.is_err());
    node.runtime.remove_pod(sandbox.pod.uid(), None).await.unwrap();
    // Its reaper is now whoever adopts orphans on this machine, at leisure.
    let status = fs::read_to_string(format!("/proc/{}/status", started.pid)).unwrap_or_default();
    assert!(status.is_empty() || status.contains("State:\tZ"), "{status}");
    assert!(node.runtime.leftovers().is_empty());
}

#[tokio::test]
async fn exec_and_attach_by_descriptors() {
    let node = Node::new();
    let sandbox = node.sandbox(&script("sleep 1000", "")).await;
    let started = node.start(&sandbox, "app").await.unwrap();
    let container = sandbox.pod.all_containers().next().unwrap();
    let argv = ["sh", "-c", "cat; hostname; exit 7"].map(String::from).to_vec();
    let (process, cgroups) = node.runtime.exec_process(&sandbox, (container, 0, &started.id), argv, false).unwrap();
    let (read, write) = rustix::pipe::pipe().unwrap();
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null").unwrap();
    let stdio = vec![null.try_clone().unwrap().into(), write, null.into()];
    let exec = sandbox.holder.exec(&started.id, process, cgroups, stdio).await.unwrap();
    let exit = tokio::time::timeout(LIMIT, exec.exit).await.unwrap().unwrap();
    let output = std::io::read_to_string(fs::File::from(read)).unwrap();
    assert_eq!((exit.code, output.as_str()), (7, "web\n"));
}

#[rstest]
#[case("Directory", "/etc/passwd", "hostPath type check failed: /etc/passwd is not a directory")]
#[case("File", "/etc", "hostPath type check failed: /etc is not a file")]
#[case("Socket", "/etc/passwd", "hostPath type check failed: /etc/passwd is not a socket")]
#[case("CharDevice", "/etc", "hostPath type check failed: /etc is not a character device")]
#[case("BlockDevice", "/dev/null", "hostPath type check failed: /dev/null is not a block device")]
#[case("Directory", "/no/such", "hostPath type check failed: /no/such: No such file or directory")]
#[tokio::test]
async fn host_paths_are_checked(#[case] kind: &str, #[case] path: &str, #[case] message: &str) {
    let node = Node::new();
    let pod = pod(&format!(
        "  volumes: [{{name: v, hostPath: {{path: {path}, type: {kind}}}}}]\n  containers: [{{name: app, image: busybox}}]\n"
    ));
    let error = volumes(&node.runtime, &pod).unwrap_err();
    assert!(error.to_string().contains(message), "{error}");
}

#[tokio::test]
async fn a_sub_path_that_is_a_hostile_link_leads_nowhere() {
    let node = Node::new();
    let outside = node.root.path().join("outside");
    let volume = node.root.path().join("volume");
    fs::create_dir_all(&outside).unwrap();
    fs::create_dir_all(&volume).unwrap();
    fs::write(outside.join("secret"), "x").unwrap();
    std::os::unix::fs::symlink(&outside, volume.join("link")).unwrap();
    std::os::unix::fs::symlink("../../../../../../../..", volume.join("up")).unwrap();
    let spec = |sub: &str| {
        format!(
            "{}    volumeMounts: [{{name: v, mountPath: /v, subPath: {sub}}}]\n",
            script("ls -a /v; true", &format!("  volumes: [{{name: v, hostPath: {{path: {}}}}}]\n", volume.display()))
        )
    };
    // Resolved as if the volume were `/`: a link to nowhere there.
    let hostile = node.sandbox(&spec("link/made")).await;
    assert!(node.start(&hostile, "app").await.is_err());
    assert!(!outside.join("made").exists());
    let sandbox = node.sandbox(&spec("up")).await;
    let (_, _, log) = node.run(&sandbox, "app").await;
    assert!(log.contains("link\n") && !log.contains("outside"), "the volume itself: {log}");
}
