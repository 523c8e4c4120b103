//! The published ways out of a volume, tried on a node: each must lead nowhere.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use e2e::{Manifest, NodeBox, Pod, assert_eventually, pod};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

/// A pod with the volume at /v.
fn with_volume(name: &str, volume: &str, mount: &str) -> Manifest {
    let mounts = format!("volumeMounts: [{{name: v, mountPath: /v{mount}}}]");
    pod(name).spec(&format!("volumes: [{{name: v, {volume}}}]")).runs_with("main", "sleep", &mounts)
}

fn listed(pod: &Pod<'_>, folder: &str) -> Vec<String> {
    pod.container("main").demo(&format!("list {folder}")).lines().map(str::to_owned).collect()
}

/// Two names that change places as fast as they can, until dropped.
struct Swapping<'s> {
    stop: &'s AtomicBool,
}

impl Drop for Swapping<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn swap(one: &Path, other: &Path, stop: &AtomicBool, times: &AtomicU64) {
    while !stop.load(Ordering::Relaxed) {
        renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE).unwrap();
        times.fetch_add(1, Ordering::Relaxed);
    }
}

/// CVE-2021-25741, CVE-2017-1002101: the container has the path checked, and is mounted another. Here a folder of the volume and a link
/// to the host's folder change places all the while that containers start with it as their subPath.
#[test]
fn a_sub_path_that_changes_while_it_is_mounted_leads_into_the_volume_alone() {
    let node = NodeBox::start();
    let host = node.folder().join("of-the-host");
    let volume = node.folder().join("volume");
    for folder in [host.clone(), volume.join("path")] {
        std::fs::create_dir_all(folder).unwrap();
    }
    std::fs::write(host.join("marker-of-the-host"), "x").unwrap();
    std::os::unix::fs::symlink(&host, volume.join("link")).unwrap();
    let (stop, times) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|threads| {
        threads.spawn(|| swap(&volume.join("path"), &volume.join("link"), &stop, &times));
        let _swapping = Swapping { stop: &stop };
        let racers: Vec<Pod<'_>> = (0..4).map(|i| node.put(&racer(&format!("racer-{i}"), &volume))).collect();
        for racer in &racers {
            racer.until("has tried all", |pod| {
                let statuses = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
                let tried =
                    |s: &serde_json::Value| s["state"]["terminated"].is_object() || s["state"]["waiting"]["message"].is_string();
                if statuses.len() == RACES && statuses.iter().all(tried) { Ok(()) } else { Err(pod["status"].to_string()) }
            });
            for i in 0..RACES {
                // One that met the link did not start: there is no such folder in the volume.
                let log = racer.run(&["logs"], &["-c", &format!("c{i}")]);
                assert!(!log.all().contains("marker-of-the-host"), "{log}");
            }
        }
    });
    assert!(times.load(Ordering::Relaxed) > 100, "the names did change places");
    let left: Vec<PathBuf> = std::fs::read_dir(&host).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left, [host.join("marker-of-the-host")], "nothing was made on the host");
}

const RACES: usize = 12;

fn racer(name: &str, volume: &Path) -> Manifest {
    let volumes = format!("volumes: [{{name: v, hostPath: {{path: {}}}}}]", volume.display());
    let manifest = pod(name).spec(&volumes).spec("restartPolicy: Never");
    (0..RACES).fold(manifest, |manifest, i| {
        // Some of them have a folder made in it.
        let sub = if i % 3 == 0 { format!("path/made-{i}") } else { "path".into() };
        manifest.runs_with(&format!("c{i}"), "list /v", &format!("volumeMounts: [{{name: v, mountPath: /v, subPath: {sub}}}]"))
    })
}

/// CVE-2021-25741, CVE-2017-1002101: a container swaps a subPath for a link to the host's files.
#[test]
fn a_link_in_a_sub_path_leads_into_the_volume_alone() {
    let node = NodeBox::start();
    let secret = node.folder().join("secret-of-the-host");
    std::fs::write(&secret, "x").unwrap();
    let volume = node.folder().join("volume");
    std::fs::create_dir_all(volume.join("etc")).unwrap();
    std::os::unix::fs::symlink("/etc", volume.join("absolute")).unwrap();
    std::os::unix::fs::symlink("../../../../../../..", volume.join("up")).unwrap();
    std::os::unix::fs::symlink(&secret, volume.join("file")).unwrap();
    let manifest = |name: &str, sub: &str| {
        let hostile = format!("hostPath: {{path: {}}}", volume.display());
        node.put(&with_volume(name, &hostile, &format!(", subPath: {sub}")))
    };
    let absolute = manifest("absolute", "absolute");
    absolute.is_ready();
    assert!(listed(&absolute, "/v").is_empty(), "it is the volume's own /etc");
    let up = manifest("up", "up");
    up.is_ready();
    assert_eq!(listed(&up, "/v"), ["absolute", "etc", "file", "up"]);
    let file = manifest("file", "file");
    file.until("does not start", |pod| {
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"];
        if waiting.is_string() { Ok(()) } else { Err(pod["status"].to_string()) }
    });
}

/// CVE-2025-9566: a link that an image or volume holds must not turn the writing of a ConfigMap into a write to the host.
#[test]
fn what_the_agent_writes_for_a_pod_follows_no_link_of_the_pods() {
    let node = NodeBox::start();
    node.apply("app.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: app}\ndata: {evil: first}\n");
    let target = node.folder().join("of-the-host");
    std::fs::write(&target, "untouched").unwrap();
    let mounts = "securityContext: {privileged: true}\nvolumeMounts: [{name: v, mountPath: /v}]";
    let web = node.put(&pod("web").spec("volumes: [{name: v, configMap: {name: app}}]").runs_with("main", "sleep", mounts));
    web.is_ready();
    // As if a pod had got at its volume: the name is a link to the host's file, and so is the present version's file.
    let volume = node.root().join("var/lib/nodeagent/pods").join(web.uid()).join("volumes/files/v");
    let version = volume.join(std::fs::read_link(volume.join("..data")).unwrap());
    for link in [volume.join("evil"), version.join("evil")] {
        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
    }
    node.apply("app.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: app}\ndata: {evil: second}\n");
    // Until then the name may lead nowhere in the container.
    let read = || web.container("main").exec(&["/demo", "read", "/v/evil"]).stdout;
    assert_eventually!(read().trim_end() == "second", "the edit is seen");
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "untouched");
}

/// Like CVE-2021-25741, by way of an fsGroup: the owners of what a link leads to stay theirs.
#[test]
fn a_group_is_given_nothing_beyond_the_volume() {
    let node = NodeBox::start();
    node.apply(
        "claim.yaml",
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: data}\nspec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}\n",
    );
    let claim = node.root().join("var/lib/nodeagent/claims/default/data");
    std::fs::create_dir_all(claim.join("deep")).unwrap();
    let host = node.folder().join("of-the-host");
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("file"), "x").unwrap();
    for (link, target) in [("folder", host.clone()), ("deep/file", host.join("file")), ("deep/proc", "/proc/self/root".into())] {
        std::os::unix::fs::symlink(target, claim.join(link)).unwrap();
    }
    let group = with_volume("web", "persistentVolumeClaim: {claimName: data}", "").spec("securityContext: {fsGroup: 4242}");
    node.put(&group).is_ready();
    let gid = |path: &Path| std::os::unix::fs::MetadataExt::gid(&std::fs::metadata(path).unwrap());
    assert_eq!((gid(&claim.join("deep")), gid(&host), gid(&host.join("file"))), (4242, 0, 0));
}

/// A file for fileKeyRef that is a link to the host's.
#[test]
fn a_link_to_the_hosts_file_is_no_environment() {
    let node = NodeBox::start();
    let host = node.folder().join("of-the-host.env");
    std::fs::write(&host, "KEY='of the host'\n").unwrap();
    let mounts = "volumeMounts: [{name: v, mountPath: /v}]";
    let manifest = pod("web").spec("volumes: [{name: v, emptyDir: {}}]").first_runs("gate", "sleep", mounts).runs_with(
        "main",
        "sleep",
        "env: [{name: X, valueFrom: {fileKeyRef: {volumeName: v, path: some.env, key: KEY}}}]",
    );
    let web = node.put(&manifest);
    web.container("gate").is_running();
    let volume = node.root().join("var/lib/nodeagent/pods").join(web.uid()).join("volumes/empty-dir/v");
    std::os::unix::fs::symlink(&host, volume.join("some.env")).unwrap();
    web.container("gate").demo("kill 1");
    let message = web.container("main").waits_because("CreateContainerConfigError");
    assert_eq!(message, "env X: file some.env of volume v: there is no such file");
}
