//! Pods with a USER namespace of their own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use podholder::protocol::*;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use support::*;

#[test]
fn root_inside_is_nobody_outside_and_owns_its_files() {
    let mut pod = Pod::with_user_namespace();
    let host = tempfile::tempdir().unwrap();
    std::fs::write(host.path().join("mapped"), "volume\n").unwrap();
    let mut recipe = pod.shell(
        "app",
        "id -u; cat /proc/self/uid_map | tr -s ' '; stat -c %u /bin/busybox /etc/passwd /dev/null /proc/1/status /proc/sys /dev/shm /vol /vol/mapped; \
         touch /made /vol/made /dev/shm/made && chmod 600 /etc/passwd && echo changed; echo $$; hostname; echo out > /dev/stdout; while true; do sleep 1; done",
    );
    let mut mount = bind(host.path(), "/vol");
    if let Source::Bind { idmap, .. } = &mut mount.source {
        *idmap = true;
    }
    recipe.mounts.push(mount);
    let pid = pod.start(&recipe).unwrap();
    eventually("it spoke", || log_of(&recipe).contains("F out"));
    let out = text(&log_of(&recipe), "stdout");
    assert_eq!(
        out,
        "0\n 0 200000 65536\n0\n0\n65534\n0\n65534\n0\n0\n0\nchanged\n1\npod\nout\n",
        "{out} {}",
        text(&log_of(&recipe), "stderr")
    );
    assert_eq!(std::fs::metadata(format!("/proc/{pid}")).unwrap().uid(), 200_000);
    assert_eq!(std::fs::metadata(recipe.rootfs.upper.join("made")).unwrap().uid(), 200_000);
    assert_eq!(std::fs::metadata(recipe.rootfs.upper.join("etc/passwd")).unwrap().uid(), 200_000);
    // The volume's owners are as inside; the image's layer is untouched.
    assert_eq!(std::fs::metadata(host.path().join("made")).unwrap().uid(), 0);
    assert_eq!(std::fs::metadata(pod.dir.path().join("image/etc/passwd")).unwrap().uid(), 0);
    // The PID, NET, IPC and UTS namespaces are the USER namespace's.
    for kind in ["pid", "net", "ipc", "uts", "mnt"] {
        let namespace = std::fs::File::open(format!("/proc/{pid}/ns/{kind}")).unwrap();
        let owner = std::fs::read_link(format!("/proc/{pid}/ns/user")).unwrap();
        let own = std::fs::read_link("/proc/self/ns/user").unwrap();
        assert_ne!(owner, own);
        drop(namespace);
    }
}

#[test]
fn many_layers_users_devices_masks_and_read_only_root() {
    let mut pod = Pod::with_user_namespace();
    let mut recipe = pod.shell(
        "app",
        "id; cat /top; touch /x 2>/dev/null || echo read-only; wc -c < /proc/keys; echo x > /dev/null && echo null; ls /sys/firmware; \
         echo 1 > /proc/sys/kernel/panic || echo read-only; echo again > /proc/self/fd/1",
    );
    let image = recipe.rootfs.lower.remove(0);
    recipe.rootfs.lower = (0..60)
        .map(|n| {
            let dir = pod.dir.path().join(format!("layers/{n:0>64}"));
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join("top"), format!("{n}\n")).unwrap();
            dir
        })
        .chain([image])
        .collect();
    recipe.rootfs.read_only = true;
    recipe.process.user.spec = "web".into();
    let ran = pod.run(&recipe);
    assert_eq!(
        ran.stdout, "uid=33(web) gid=34(web) groups=34(web),50(staff)\n0\nread-only\n0\nnull\nread-only\nagain\n",
        "{ran:?}"
    );
}

#[test]
fn read_only_binds_cannot_be_made_writable_by_an_unprivileged_root() {
    let mut pod = Pod::with_user_namespace();
    let host = tempfile::tempdir().unwrap();
    let mut recipe = pod.shell("app", "touch /vol/x 2>/dev/null || echo read-only; umount /vol 2>/dev/null || echo kept; mount -o remount,rw,bind /vol 2>/dev/null || echo kept");
    recipe.mounts.push(Mount {
        read_only: true,
        source: Source::Bind { path: host.path().into(), beneath: PathBuf::new(), recursive: false, idmap: true },
        ..bind(host.path(), "/vol")
    });
    assert_eq!(pod.run(&recipe).stdout, "read-only\nkept\nkept\n");
}

#[test]
fn exec_terminal_and_shared_pid_in_a_user_namespace() {
    let mut pod = Pod::with(|recipe| {
        let map = vec![IdMap { inside: 0, outside: 300_000, count: 65_536 }];
        recipe.user = Some(IdMaps { uids: map.clone(), gids: map });
        recipe.share_pid = true;
    });
    let mut recipe = pod.shell("app", "tty; read x; echo got $x; while true; do sleep 1; done");
    recipe.pid = PidNamespace::Pod;
    recipe.process.tty = true;
    recipe.process.stdin = true;
    let pid = pod.start(&recipe).unwrap();
    assert_eq!(std::fs::metadata(format!("/proc/{pid}")).unwrap().uid(), 300_000);
    let status = std::fs::read_to_string(format!("/proc/{}/status", pod.pause_pid.unwrap())).unwrap();
    assert!(status.contains("Uid:\t300000\t300000"), "{status}");
    let process = Process {
        argv: ["sh", "-c", "id -u; cat /proc/self/uid_map | tr -s ' '; ps | grep -c 'sh -c tty'"].map(String::from).to_vec(),
        tty: false,
        stdin: false,
        ..recipe.process.clone()
    };
    let (code, out, err) = pod.exec(&recipe, process).unwrap();
    assert_eq!((code, out.lines().take(2).collect::<Vec<_>>()), (0, vec!["0", " 0 300000 65536"]), "{out} {err}");
    let request = Request::Attach { container: recipe.id.clone(), stdin: true, stdout: false, stderr: false };
    let (_, mut fds) = pod.call(request).unwrap();
    std::fs::File::from(fds.pop().unwrap()).write_all(b"word\n").unwrap();
    eventually("the terminal works", || text(&log_of(&recipe), "stdout").contains("got word"));
}

#[test]
fn the_death_of_the_holder_ends_it() {
    let mut pod = Pod::with_user_namespace();
    let recipe = pod.recipe("app", &["sleep", "1000"]);
    let pid = pod.start(&recipe).unwrap();
    pod.holder.kill().unwrap();
    eventually("the container is dead", || !is_alive(pid));
}
