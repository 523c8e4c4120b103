//! Binds, their targets and sources, propagation, many layers, read-only roots, cgroups.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use podholder::protocol::*;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use support::*;

#[test]
fn binds_of_files_and_folders_where_nothing_is_and_behind_links() {
    let mut pod = Pod::new();
    let host = tempfile::tempdir().unwrap();
    std::fs::create_dir(host.path().join("folder")).unwrap();
    std::fs::write(host.path().join("folder/file"), "inside\n").unwrap();
    std::fs::write(host.path().join("file"), "alone\n").unwrap();
    let mut recipe = pod.shell(
        "app",
        "cat /var/run/secrets/token /etc/some/folder/file; cat /run/secrets/token; touch /etc/some/folder/new; \
         touch /ro/x 2>/dev/null || echo read-only; cat /hello/there",
    );
    recipe.mounts.push(bind(&host.path().join("file"), "/var/run/secrets/token"));
    recipe.mounts.push(bind(&host.path().join("folder"), "/etc/some/folder"));
    recipe.mounts.push(Mount { read_only: true, ..bind(&host.path().join("folder"), "/ro") });
    // A link of the image that leads nowhere, and one that tries to lead out.
    symlink("/elsewhere/file", recipe.rootfs.upper.join("hello")).unwrap();
    recipe.mounts.push(bind(&host.path().join("file"), "/hello/there"));
    let ran = pod.run(&recipe);
    assert_eq!(ran.stdout, "alone\ninside\nalone\nread-only\nalone\n", "{ran:?}");
    assert!(host.path().join("folder/new").exists());
    assert!(!Path::new("/elsewhere").exists());
}

#[test]
fn no_target_leads_out_of_the_container() {
    let mut pod = Pod::new();
    let host = tempfile::tempdir().unwrap();
    let victim = tempfile::tempdir().unwrap();
    std::fs::write(host.path().join("file"), "x").unwrap();
    // A path of the host that nobody else has.
    let elsewhere = format!("{}-elsewhere", victim.path().display());
    let dots = format!("/../../../../../..{elsewhere}/file");
    for (n, target) in ["/escape/file", dots.as_str(), "/proc/self/root/file", "/proc/self/fd/0"].iter().enumerate() {
        let mut recipe = pod.shell(&format!("app{n}"), "true");
        symlink(victim.path(), recipe.rootfs.upper.join("escape")).unwrap();
        recipe.mounts.push(bind(&host.path().join("file"), target));
        // Refused, or mounted inside: never outside.
        let _ = pod.start(&recipe);
    }
    assert_eq!(std::fs::read_dir(victim.path()).unwrap().count(), 0);
    assert!(!Path::new(&elsewhere).exists() && !Path::new("/file").exists());
}

#[test]
fn a_sub_path_cannot_leave_its_volume() {
    let mut pod = Pod::new();
    let volume = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), "secret").unwrap();
    std::fs::create_dir(volume.path().join("data")).unwrap();
    std::fs::write(volume.path().join("data/file"), "data\n").unwrap();
    symlink(outside.path(), volume.path().join("link")).unwrap();
    symlink("../../../../../../../..", volume.path().join("up")).unwrap();
    symlink("/data", volume.path().join("within")).unwrap();
    let with = |pod: &mut Pod, beneath: &str| {
        let mut recipe = pod.shell("app", "ls /mnt");
        let mut mount = bind(volume.path(), "/mnt");
        if let Source::Bind { beneath: b, .. } = &mut mount.source {
            *b = beneath.into();
        }
        recipe.mounts.push(mount);
        pod.start(&recipe).map(|_| {
            pod.exit_of(&recipe.id);
            text(&log_of(&recipe), "stdout")
        })
    };
    assert_eq!(with(&mut pod, "data").unwrap(), "file\n");
    assert_eq!(with(&mut pod, "within").unwrap(), "file\n", "a link is resolved as if the volume were /");
    assert_eq!(with(&mut pod, "link").unwrap_err().errno, libc::ENOENT);
    assert_eq!(with(&mut pod, "up").unwrap(), "data\nlink\nup\nwithin\n");
    assert_eq!(with(&mut pod, "../..").unwrap(), "data\nlink\nup\nwithin\n");
}

#[test]
fn a_read_only_root_with_writable_mounts() {
    let mut pod = Pod::new();
    let mut recipe = pod.shell("app", "touch /x 2>/dev/null || echo read-only; touch /dev/shm/x /tmp/x && echo written");
    recipe.rootfs.read_only = true;
    recipe.mounts.push(Mount { source: Source::Tmpfs { options: "mode=1777".into() }, ..bind(Path::new(""), "/tmp") });
    assert_eq!(pod.run(&recipe).stdout, "read-only\nwritten\n");
}

#[test]
fn a_hundred_and_twenty_layers_and_awkward_names() {
    let mut pod = Pod::new();
    let layers: Vec<PathBuf> = (0..120)
        .map(|n| {
            let dir = pod.dir.path().join(format!("layers/{n:0>64}"));
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join("top"), n.to_string()).unwrap();
            std::fs::write(dir.join(format!("file{n}")), "").unwrap();
            dir
        })
        .collect();
    let mut recipe = pod.shell("many", "cat /top; ls / | grep -c ^file; touch /new");
    let image = recipe.rootfs.lower.remove(0);
    recipe.rootfs.lower = layers;
    recipe.rootfs.lower.push(image.clone());
    assert_eq!(pod.run(&recipe).stdout, "0120\n");
    assert!(recipe.rootfs.upper.join("new").exists());
    let mut recipe = pod.shell("awkward", "cat /top");
    let odd = pod.dir.path().join("a:b,c\\d");
    std::fs::create_dir(&odd).unwrap();
    std::fs::write(odd.join("top"), "odd\n").unwrap();
    recipe.rootfs.lower = vec![odd, image];
    assert_eq!(pod.run(&recipe).stdout, "odd\n");
}

/// A mount namespace of a test's own would be needed to change the host's: a shared tmpfs of a helper process stands for it.
#[test]
fn a_recursive_bind_can_be_read_only_all_the_way_down() {
    let mut pod = Pod::new();
    let mut recipe = pod.shell("app", "for d in /a /b; do touch $d/mqueue/x 2>/dev/null && echo written || echo refused; done; touch /b/x 2>/dev/null || echo refused");
    let mount = |target: &str| Mount {
        source: Source::Bind { path: "/dev".into(), beneath: PathBuf::new(), recursive: true, idmap: false },
        ..bind(Path::new(""), target)
    };
    // /dev/shm is mounted below the host's /dev.
    recipe.process.argv[2] = recipe.process.argv[2].replace("mqueue/x", "shm/podholder-test-file");
    recipe.mounts.push(Mount { read_only: true, ..mount("/a") });
    recipe.mounts.push(Mount { recursive_read_only: true, ..mount("/b") });
    let out = pod.run(&recipe).stdout;
    let _ = std::fs::remove_file("/dev/shm/podholder-test-file");
    assert_eq!(out, "written\nrefused\nrefused\n");
}

#[test]
fn a_container_is_in_its_cgroups_and_sees_them_as_the_root() {
    let cgroups = Cgroups::make("join");
    let mut pod = Pod::new();
    let mut recipe = pod.shell("app", "cat /proc/self/cgroup; ls /sys/fs/cgroup; while true; do sleep 1; done");
    recipe.cgroups = cgroups.0.clone();
    recipe.mounts.push(Mount { source: Source::Cgroup, read_only: true, ..bind(Path::new(""), "/sys/fs/cgroup") });
    let pid = pod.start(&recipe).unwrap();
    for dir in &cgroups.0 {
        let members = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap();
        assert!(members.lines().any(|l| l == pid.to_string()), "{}: {members}", dir.display());
    }
    let process = Process { argv: ["cat", "/proc/self/cgroup"].map(String::from).to_vec(), ..recipe.process.clone() };
    let (_, table, _) = pod.exec(&recipe, process).unwrap();
    for dir in &cgroups.0 {
        let kind = dir.components().nth(4).unwrap().as_os_str().to_str().unwrap();
        let line = table.lines().find(|l| l.split(':').nth(1) == Some(if kind == "unified" { "" } else { kind }));
        assert!(line.is_none_or(|l| l.ends_with(":/")), "{table}");
    }
    // What a hybrid machine's v2 is for isn't a container's to see: it would take the machine for one of v2.
    let process = Process { argv: ["ls", "/sys/fs/cgroup"].map(String::from).to_vec(), ..recipe.process.clone() };
    let (_, shown, _) = pod.exec(&recipe, process).unwrap();
    assert!(shown.lines().all(|name| name != "unified") && !shown.is_empty(), "{shown}");
    drop(pod);
}
