//! What the node says to every pod's recipe. Made once, from the agent's configuration.

use std::net::IpAddr;
use std::path::PathBuf;

/// See the fields. Paths are absolute.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What a reboot ends: holders' sockets. `/run/nodeagent`.
    pub run: PathBuf,
    /// What stays: containers' files and volumes. `/var/lib/nodeagent`.
    pub lib: PathBuf,
    /// PersistentVolumeClaims' folders, kept when pods go. `/var/lib/nodeagent/claims`.
    pub claims: PathBuf,
    /// Containers' logs. `/var/log/pods`.
    pub log: PathBuf,
    /// The cgroup of all pods, relative to each hierarchy's mount.
    pub cgroup_parent: String,
    /// A log is rotated at this many bytes; 0: never.
    pub log_max_size: u64,
    /// Log files kept of a container, the current one counted.
    pub log_max_files: u32,
    /// The Node object's name.
    pub node_name: String,
    /// The node's addresses, the main one first.
    pub node_ips: Vec<IpAddr>,
    /// Host IDs for pods with `hostUsers: false`: the first, and how many.
    pub id_range: (u32, u32),
    /// How many of them each such pod takes.
    pub ids_per_pod: u32,
    /// Where nothing is said, containers run under the default seccomp profile (the kubelet's `seccompDefault`).
    pub seccomp_default: bool,
    /// A profile (OCI JSON) that is `RuntimeDefault`, instead of the built-in one.
    pub seccomp_default_profile: Option<PathBuf>,
    /// Folder of profiles for `seccompProfile: {type: Localhost}`.
    pub seccomp_root: PathBuf,
    /// Processes and threads of one pod at most.
    pub pod_pids: Option<u64>,
    /// The host's resolver configuration, from which pods' are made.
    pub resolv_conf: PathBuf,
    /// Name servers of `dnsPolicy: ClusterFirst`; none: the host's.
    pub cluster_dns: Vec<IpAddr>,
    /// `cluster.local`, or what it is here.
    pub cluster_domain: String,
    /// Sysctls beside Kubernetes' safe ones that pods may set; `*` at the end stands for any rest.
    pub unsafe_sysctls: Vec<String>,
    /// Where the machine's own part begins: what all pods together can use at most. Never less than `allocatable`.
    pub enforced: Allocatable,
    /// v2: memory.min is the request, and memory.high between request and limit, by this factor.
    pub memory_throttling: Option<f64>,
    /// v2: the kernel kills one process for memory, not the container.
    pub single_process_oom_kill: bool,
    /// Folders of CDI specs; the later overrules.
    pub cdi_spec_dirs: Vec<PathBuf>,
    /// What pods may have together, for admission, `resourceFieldRef` and OOM scores.
    pub allocatable: Allocatable,
    /// Capabilities that the agent can give: its own bounding set.
    pub capabilities: u64,
}

/// What the node has for pods.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Allocatable {
    /// Thousandths of a CPU.
    pub cpu_millis: u64,
    /// Bytes.
    pub memory: u64,
    /// Bytes.
    pub ephemeral_storage: u64,
}

impl Allocatable {
    /// All of this machine.
    pub fn of_machine(lib: &std::path::Path) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let total = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        let nearest = lib.ancestors().find(|p| p.exists()).unwrap_or(lib);
        let disk = rustix::fs::statvfs(nearest).map(|s| s.f_blocks.saturating_mul(s.f_frsize)).unwrap_or_default();
        Self { cpu_millis: cpus * 1000, memory: total.unwrap_or_default() * 1024, ephemeral_storage: disk }
    }

    /// What is left of it.
    #[must_use]
    pub fn less(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_sub(other.cpu_millis),
            memory: self.memory.saturating_sub(other.memory),
            ephemeral_storage: self.ephemeral_storage.saturating_sub(other.ephemeral_storage),
        }
    }
}

/// The bounding set of this process: what no child of ours can go beyond.
pub fn own_capabilities() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let hex = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    hex.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or_default()
}

impl Settings {
    /// Everything below one folder, with the machine's own facts: what tests and `--root` start from.
    pub fn below(root: &std::path::Path, cgroup_parent: &str) -> Self {
        Self {
            run: root.join("run/nodeagent"),
            lib: root.join("var/lib/nodeagent"),
            claims: root.join("var/lib/nodeagent/claims"),
            log: root.join("var/log/pods"),
            cgroup_parent: cgroup_parent.into(),
            log_max_size: 10 << 20,
            log_max_files: 5,
            node_name: "node".into(),
            node_ips: Vec::new(),
            id_range: (0x8000_0000, 0x4000_0000),
            ids_per_pod: 65536,
            seccomp_default: true,
            seccomp_default_profile: None,
            seccomp_root: root.join("var/lib/nodeagent/seccomp"),
            pod_pids: None,
            resolv_conf: "/etc/resolv.conf".into(),
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".into(),
            unsafe_sysctls: Vec::new(),
            enforced: Allocatable::of_machine(root),
            memory_throttling: None,
            single_process_oom_kill: false,
            cdi_spec_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
            allocatable: Allocatable::of_machine(root),
            capabilities: own_capabilities(),
        }
    }
}
