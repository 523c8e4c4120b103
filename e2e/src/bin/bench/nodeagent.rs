//! Us: the release build, in a box like podman's.

use std::path::Path;
use std::time::{Duration, Instant};

use e2e::NodeBox;

use crate::side::{self, Side};

pub struct Nodeagent {
    pub node: NodeBox,
}

impl Nodeagent {
    pub fn new() -> Self {
        Self { node: NodeBox::builder().with_registry().start() }
    }

    /// What the containers printed when they began, as far as it is in the logs.
    fn stamps(&self) -> Vec<u128> {
        let mut stamps = Vec::new();
        for pod in entries(&self.node.root().join("var/log/pods")) {
            for container in entries(&pod) {
                let log = std::fs::read_to_string(container.join("0.log")).unwrap_or_default();
                // CRI log format: time, stream, tag, then the text.
                stamps.extend(log.lines().next().and_then(|line| line.split(' ').nth(3)?.parse::<u128>().ok()));
            }
        }
        stamps
    }

    /// Whether no holder, no folder and no cgroup of a pod is left.
    fn is_empty(&self) -> bool {
        let root = self.node.root();
        let cgroups = Path::new("/sys/fs/cgroup");
        let pods = |hierarchy: &Path| walk(&hierarchy.join(self.node.cgroup_parent())).iter().any(|name| name.contains("pod"));
        ["run/nodeagent/pods", "var/lib/nodeagent/pods"].iter().all(|folder| entries(&root.join(folder)).is_empty())
            && !entries(cgroups).iter().any(|hierarchy| pods(hierarchy))
    }

    fn beside(&self) -> Vec<side::Process> {
        let agent = self.node.agent_pid();
        let mut processes = side::descendants(self.node.pid());
        // Killed agents leave their holders to PID 1, whose child nsenter's child is not: both trees are ours.
        processes.extend(side::descendants(agent));
        processes.retain(|process| process.pid != agent && process.arguments.starts_with("podholder"));
        processes.sort_by_key(|process| process.pid);
        processes.dedup_by_key(|process| process.pid);
        processes
    }

    pub fn agent_memory(&self) -> u64 {
        side::resident_memory(self.node.agent_pid())
    }

    /// Kills the agent, starts another; how long until it knows these pods as running.
    pub fn restart(&self, pods: usize) -> Duration {
        self.node.kill_agent();
        let began = Instant::now();
        self.node.start_agent();
        e2e::eventually("all pods are known", || {
            let running = self.node.run(&["get", "pods", "--no-headers"]).stdout.matches(" Running ").count();
            if running == pods { Ok(()) } else { Err(running.to_string()) }
        });
        began.elapsed()
    }
}

impl Side for Nodeagent {
    fn name(&self) -> &'static str {
        "us"
    }

    fn start(&mut self, yaml: &str, containers: usize) -> Duration {
        let began = side::now();
        self.node.apply("pods.yaml", yaml);
        let stamps = e2e::eventually("all containers run", || {
            let stamps = self.stamps();
            if stamps.len() == containers { Ok(stamps) } else { Err(format!("{} of {containers}", stamps.len())) }
        });
        side::until_last(began, &stamps)
    }

    fn stop(&mut self) -> Duration {
        let began = Instant::now();
        self.node.remove("pods.yaml");
        while !self.is_empty() {
            assert!(began.elapsed() < Duration::from_secs(60), "pods are left: {}", self.node.agent_output());
            std::thread::sleep(Duration::from_micros(200));
        }
        began.elapsed()
    }

    fn memory_beside(&self) -> u64 {
        self.beside().iter().map(|process| side::proportional_memory(process.pid)).sum()
    }

    fn processor(&self) -> Duration {
        let holders: Duration = self.beside().iter().map(|process| side::processor_time(process.pid)).sum();
        holders + side::processor_time(self.node.agent_pid())
    }

    fn pull(&mut self, image: &str) -> Duration {
        self.node.run(&["image", "rm", image]);
        self.node.run(&["image", "prune", "--all"]);
        let began = Instant::now();
        self.node.run(&["image", "pull", image]).ok();
        began.elapsed()
    }
}

fn entries(folder: &Path) -> Vec<std::path::PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// Names of all folders below.
fn walk(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            names.push(entry.file_name().to_string_lossy().into_owned());
            names.extend(walk(&entry.path()));
        }
    }
    names
}
