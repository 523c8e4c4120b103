//! Debian's podman, with crun, netavark and catatonit, in a box and with a storage of its own.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use e2e::{Isolated, Output, Running, run};

use crate::side::{self, Side};

/// The runtime's name in containers.conf.
pub const RUNTIME: &str = "crun-without-rlimits";

/// Where podman wants a controller that this machine's boot didn't mount.
const HUGETLB: &str = "/sys/fs/cgroup/hugetlb";

pub struct Podman {
    inside: Isolated,
    _registry: Running,
    folder: tempfile::TempDir,
    file: PathBuf,
    containers: Vec<String>,
    made_hugetlb: bool,
}

impl Podman {
    pub fn new() -> Self {
        let inside = Isolated::machine();
        let folder = tempfile::Builder::new().prefix("nodeagent-bench-").tempdir().expect("a temporary folder");
        let path = folder.path();
        // netavark, podman and conmon write to /run: the box's own.
        run(inside.command("mount").args(["-t", "tmpfs", "tmpfs", "/run"])).ok();
        let made_hugetlb = !Path::new(HUGETLB).exists();
        if made_hugetlb {
            std::fs::create_dir(HUGETLB).expect("the cgroup hierarchies' folder can be written");
            run(inside.command("mount").args(["-t", "cgroup", "-o", "hugetlb", "cgroup", HUGETLB])).ok();
        }
        std::os::unix::fs::symlink(std::env::current_exe().unwrap(), path.join(RUNTIME)).expect("the folder can be written");
        let configuration = format!(
            "[engine]\nruntime = \"{RUNTIME}\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n\
             [engine.runtimes]\n{RUNTIME} = [\"{}\"]\n",
            path.join(RUNTIME).display()
        );
        std::fs::write(path.join("containers.conf"), configuration).expect("the folder can be written");
        let registry = e2e::start_registry(&inside, path);
        let file = path.join("pods.yaml");
        let podman = Self { inside, _registry: registry, folder, file, containers: Vec::new(), made_hugetlb };
        podman.import_demo();
        podman
    }

    /// The same program as in the image that nodeagent embeds.
    fn import_demo(&self) {
        let folder = self.folder.path().join("image");
        std::fs::create_dir(&folder).unwrap();
        std::fs::copy(demo(), folder.join("demo")).unwrap_or_else(|e| panic!("{}: {e}", demo().display()));
        let archive = self.folder.path().join("demo.tar");
        run(Command::new("tar").arg("-C").arg(&folder).arg("-cf").arg(&archive).arg("demo")).ok();
        let name = "localhost/nodeagent-demo:latest";
        self.podman(&["import", "-c", "ENTRYPOINT [\"/demo\"]", archive.to_str().unwrap(), name]).ok();
    }

    fn podman(&self, words: &[&str]) -> Output {
        let folder = self.folder.path();
        let mut command = self.inside.command("env");
        command.arg(format!("CONTAINERS_CONF={}", folder.join("containers.conf").display()));
        command.arg("podman").arg("--root").arg(folder.join("storage"));
        command.arg("--runroot").arg("/run/storage").arg("--tmpdir").arg("/run/libpod").args(words);
        run(&mut command)
    }

    fn is_beside(process: &side::Process) -> bool {
        ["conmon", "catatonit"].iter().any(|name| process.arguments.contains(name))
    }
}

/// The demo program, static, as `make bench` built it.
fn demo() -> PathBuf {
    let folder = e2e::workspace().join("target/e2e/demo");
    let platforms = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}; use make bench", folder.display()));
    let built = platforms.flatten().map(|entry| entry.path().join("static/demo")).find(|path| path.exists());
    built.unwrap_or_else(|| panic!("{}: no demo program; use make bench", folder.display()))
}

impl Side for Podman {
    fn name(&self) -> &'static str {
        "podman"
    }

    fn start(&mut self, yaml: &str, containers: usize) -> Duration {
        std::fs::write(&self.file, yaml).unwrap();
        let began = side::now();
        self.podman(&["kube", "play", self.file.to_str().unwrap()]).ok();
        let names = self.podman(&["ps", "--no-trunc", "--format", "{{.Names}}"]).ok();
        self.containers = names.lines().filter(|name| name.starts_with("bench-")).map(str::to_string).collect();
        let stamps: Vec<u128> = self
            .containers
            .iter()
            .filter_map(|name| self.podman(&["logs", name]).ok().split_whitespace().next()?.parse().ok())
            .collect();
        assert_eq!(stamps.len(), containers, "podman runs {names}");
        side::until_last(began, &stamps)
    }

    fn stop(&mut self) -> Duration {
        let began = Instant::now();
        // `kube down` and `pod rm --force` would do it in one, but here often wait 3 s for a cgroup that conmon is still in.
        self.podman(&["pod", "stop", "--all"]).ok();
        self.podman(&["pod", "rm", "--all"]).ok();
        began.elapsed()
    }

    fn memory_beside(&self) -> u64 {
        let processes = side::descendants(self.inside.pid());
        processes.iter().filter(|process| Self::is_beside(process)).map(|process| side::proportional_memory(process.pid)).sum()
    }

    fn processor(&self) -> Duration {
        let processes = side::descendants(self.inside.pid());
        processes.iter().filter(|process| Self::is_beside(process)).map(|process| side::processor_time(process.pid)).sum()
    }

    fn pull(&mut self, image: &str) -> Duration {
        self.podman(&["rmi", "--all", "--force"]);
        let reference = format!("{}/{image}", e2e::REGISTRY);
        let began = Instant::now();
        self.podman(&["pull", "--quiet", "--tls-verify=false", &reference]).ok();
        began.elapsed()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        self.podman(&["pod", "rm", "--all", "--force"]);
        // podman leaves its parent cgroups behind, everywhere but where they were made before.
        run(Command::new("sh")
            .args(["-c", "for d in /sys/fs/cgroup/*/libpod_parent; do find $d -depth -type d -exec rmdir {} +; done"]));
        if self.made_hugetlb {
            run(self.inside.command("umount").arg(HUGETLB));
            std::fs::remove_dir(HUGETLB).ok();
        }
        // Mounts of the storage are in the box's MNT namespace, which ends with it; its folder can go then.
        run(self.inside.command("sh").args(["-c", "kill -9 -1"]));
    }
}

/// What podman takes for crun: asks for no more than this machine may give (raising rlimits needs CAP_SYS_RESOURCE), then is crun.
pub fn without_rlimits(words: &[String]) -> ExitCode {
    let bundle = words.iter().position(|word| word == "--bundle" || word == "-b").and_then(|at| words.get(at + 1));
    if let Some(bundle) = bundle {
        let path = Path::new(bundle).join("config.json");
        let text = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut configuration: serde_json::Value =
            serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        if let Some(process) = configuration["process"].as_object_mut() {
            process.remove("rlimits");
        }
        std::fs::write(&path, configuration.to_string()).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
    let error = Command::new("crun").args(words).exec();
    eprintln!("crun: {error}");
    ExitCode::FAILURE
}
