//! Debian's podman, with crun, netavark and catatonit, in a box and with a storage of its own.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use e2e::{Isolated, Output, Running, run};

use crate::process::{self, Process};
use crate::side::{self, Pods, Side, entries};
use crate::{priority, stopwatch, wrapper};

pub struct Podman {
    inside: Isolated,
    _registry: Running,
    folder: tempfile::TempDir,
    stopwatch: PathBuf,
}

impl Podman {
    pub fn new() -> Self {
        let inside = Isolated::machine();
        let folder = tempfile::Builder::new().prefix("nodeagent-bench-").tempdir().expect("a temporary folder");
        // netavark, podman and conmon write to /run: the box's own.
        run(inside.command("mount").args(["-t", "tmpfs", "tmpfs", "/run"])).ok();
        mount_cgroups(&inside, &folder.path().join("cgroup"));
        configure(folder.path());
        let registry = e2e::start_registry(&inside, folder.path());
        let stopwatch = stopwatch::put(folder.path());
        let mut podman = Self { inside, _registry: registry, folder, stopwatch };
        podman.import_demo();
        // The first pod brings podman's cgroup parent, which stays.
        let first = Pods::new("first", 1, 1);
        podman.start(&first);
        priority::raise_cgroup("libpod_parent");
        podman.stop(&first);
        podman
    }

    /// The same program as in the image that nodeagent embeds.
    fn import_demo(&self) {
        let folder = self.folder.path().join("image");
        std::fs::create_dir(&folder).unwrap();
        std::fs::copy(demo(), folder.join("demo")).unwrap_or_else(|e| panic!("{}: {e}", demo().display()));
        let archive = self.folder.path().join("demo.tar");
        run(Command::new("tar").arg("-C").arg(&folder).arg("-cf").arg(&archive).arg("demo")).ok();
        self.podman(&["import", "-c", "ENTRYPOINT [\"/demo\"]", archive.to_str().unwrap(), e2e::DEMO]).ok();
    }

    fn storage(&self) -> PathBuf {
        self.folder.path().join("storage")
    }

    /// podman with these words, behind another program or alone.
    fn command(&self, program: Option<&Path>, words: &[&str]) -> Command {
        self.command_on(&self.storage(), program, words)
    }

    fn command_on(&self, storage: &Path, program: Option<&Path>, words: &[&str]) -> Command {
        let mut command = self.inside.command("env");
        command.arg(format!("CONTAINERS_CONF={}", self.folder.path().join("containers.conf").display())).args(program);
        command.args(["podman", "--root"]).arg(storage);
        command.args(["--runroot", "/run/storage", "--tmpdir", "/run/libpod"]).args(words);
        command
    }

    fn podman(&self, words: &[&str]) -> Output {
        run(&mut self.command(None, words))
    }

    fn lap(&self, words: &[&str]) -> stopwatch::Lap {
        stopwatch::lap(&mut self.command(Some(&self.stopwatch), words))
    }

    fn stamps(&self) -> Vec<u128> {
        let containers = entries(&self.storage().join("overlay-containers"));
        containers.iter().filter_map(|folder| side::stamp(&folder.join("userdata/ctr.log"))).collect()
    }

    /// What podman leaves running for its containers.
    fn beside(&self) -> Vec<Process> {
        let is_beside = |process: &Process| ["conmon", "catatonit"].iter().any(|name| process.arguments.contains(name));
        process::tree(self.inside.pid()).into_iter().filter(is_beside).collect()
    }

    /// Only downloads: an OCI folder, its layers packed.
    pub fn skopeo(&self, image: &str) -> Duration {
        let target = self.folder.path().join("copy");
        std::fs::remove_dir_all(&target).ok();
        let source = format!("docker://{}/{image}", e2e::REGISTRY);
        let mut command = self.inside.command(self.stopwatch.to_str().expect("a path in UTF-8"));
        command.args(["skopeo", "copy", "--quiet", "--insecure-policy", "--src-tls-verify=false", &source]);
        stopwatch::lap(command.arg(format!("oci:{}", target.display()))).took
    }
}

/// podman wants a hugetlb controller, which not every boot of cgroup v1 mounts: the box gets the machine's hierarchies in a folder
/// of its own, and that one beside them.
fn mount_cgroups(inside: &Isolated, folder: &Path) {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        return;
    }
    std::fs::create_dir(folder).expect("the folder can be written");
    let script = "mount -t tmpfs tmpfs \"$1\"
        for one in /sys/fs/cgroup/*/; do
            here=\"$1/$(basename \"$one\")\"
            mkdir \"$here\"; mount --bind \"$one\" \"$here\"
        done
        if ! test -d \"$1/hugetlb\"; then mkdir \"$1/hugetlb\"; mount -t cgroup -o hugetlb cgroup \"$1/hugetlb\"; fi
        mount --move \"$1\" /sys/fs/cgroup";
    run(inside.command("sh").args(["-euc", script, "sh"]).arg(folder)).ok();
}

fn configure(folder: &Path) {
    std::os::unix::fs::symlink(std::env::current_exe().unwrap(), folder.join(wrapper::NAME)).expect("the folder can be written");
    let text =
        include_str!("../../../bench/containers.conf").replace("RUNTIME_PATH", &folder.join(wrapper::NAME).display().to_string());
    std::fs::write(folder.join("containers.conf"), text).expect("the folder can be written");
}

/// The demo program, static, as `make bench` built it.
fn demo() -> PathBuf {
    let folder = e2e::workspace().join("target/e2e/demo");
    let built = entries(&folder).into_iter().map(|platform| platform.join("static/demo")).find(|path| path.exists());
    built.unwrap_or_else(|| panic!("{}: no demo program; use make bench", folder.display()))
}

impl Side for Podman {
    fn name(&self) -> &'static str {
        "podman"
    }

    fn start(&mut self, pods: &Pods) -> Duration {
        let file = self.folder.path().join(pods.file());
        std::fs::write(&file, pods.yaml()).unwrap();
        let lap = self.lap(&["kube", "play", file.to_str().unwrap()]);
        let stamps = e2e::eventually("all containers run", || {
            let stamps = self.stamps();
            if stamps.len() == pods.commands() { Ok(stamps) } else { Err(format!("{} of {}", stamps.len(), pods.commands())) }
        });
        side::until_last(lap.began, &stamps)
    }

    fn stop(&mut self, _: &Pods) -> Duration {
        // `kube down` and `pod rm --force` would do it in one, but here often wait 3 s for a cgroup that conmon is still in.
        let stop = self.lap(&["pod", "stop", "--all"]);
        let remove = self.lap(&["pod", "rm", "--all"]);
        stop.took + remove.took
    }

    fn memory_beside(&self) -> u64 {
        self.beside().iter().map(|process| process::proportional_memory(process.pid)).sum()
    }

    fn processor(&self) -> Duration {
        self.beside().iter().map(|process| process::processor_time(process.pid)).sum()
    }

    fn pull(&mut self, image: &str) -> Duration {
        // Another storage each time, for the same reason as on our side.
        let storage = self.folder.path().join(format!("storage-{}", side::now()));
        let reference = format!("{}/{image}", e2e::REGISTRY);
        let words = ["pull", "--quiet", "--tls-verify=false", &reference];
        stopwatch::lap(&mut self.command_on(&storage, Some(&self.stopwatch), &words)).took
    }

    fn output(&mut self, bytes: usize) -> Duration {
        let file = self.folder.path().join("wordy.yaml");
        std::fs::write(&file, side::wordy(bytes).yaml()).unwrap();
        self.lap(&["kube", "play", file.to_str().unwrap()]);
        let took = e2e::eventually("all is written", || {
            let containers = entries(&self.storage().join("overlay-containers")).into_iter();
            let took = containers.map(|folder| folder.join("userdata/ctr.log")).find_map(|log| side::wordy_took(&end(&log)?));
            took.ok_or_else(|| "no last line".to_string())
        });
        self.stop(&Pods::new("wordy", 1, 1));
        took
    }

    fn exec(&mut self, pods: &Pods, words: &[&str]) -> Duration {
        self.lap(&[&["exec", &format!("{}-0-c0", pods.name)], words].concat()).took
    }
}

/// The last bytes of a file.
fn end(path: &Path) -> Option<String> {
    let mut file = std::fs::File::open(path).ok()?;
    file.seek(SeekFrom::End(-100)).ok()?;
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    Some(text)
}

impl Drop for Podman {
    fn drop(&mut self) {
        self.podman(&["pod", "rm", "--all", "--force"]);
        // podman leaves its parent cgroups behind.
        let script = "for d in /sys/fs/cgroup/*/libpod_parent; do find $d -depth -type d -exec rmdir {} +; done";
        run(self.inside.command("sh").args(["-c", script]));
        // Mounts of the storage are in the box's MNT namespace, which ends with it; its folder can go then.
        run(self.inside.command("sh").args(["-c", "kill -9 -1"]));
    }
}
