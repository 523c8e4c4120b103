//! Declared settings (command line over configuration file over defaults) to validated [`Settings`]. Every problem of either is told
//! at once; of the file with line and column. Knows `model` for its YAML and `eviction`'s pure settings, and nobody else.

mod cluster;
mod file;
mod flags;
mod kubelet;
mod network;
mod paths;
mod pods;
mod shutdown;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::eviction;
use crate::model::FileError;
use crate::shutdown::Period;

pub use cluster::Cluster;
pub use file::{ApiSection, BackoffSection, CniSection, Declared, ImageSection, LogSection, RangeSection, UsernsSection};
pub use flags::{Flags, LogFormat, LogLevel, Root, Wiring};
pub use kubelet::Kubelet;
pub use network::plain_range;
pub use paths::Paths;
pub use pods::{Pods, Reserved, Security};
pub use shutdown::PrioritySection;

/// Where the configuration file is looked for if the command line names none.
pub const DEFAULT_FILE: &str = "/etc/nodeagent/config.yaml";

/// Everything that can be set, checked and with its defaults.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Folders and files of manifests; `-` is standard input.
    pub manifests: Vec<PathBuf>,
    /// The cluster that this node is of, if it is of one.
    pub cluster: Option<Cluster>,
    /// Where everything lies on this machine.
    pub paths: Paths,
    /// The node's name: a DNS subdomain. The host's name unless set.
    pub node_name: String,
    /// The node's labels, beside those that every node has: what nodeSelector and node affinity ask for.
    pub node_labels: BTreeMap<String, String>,
    /// The cgroup below which all pods are.
    pub cgroup_parent: String,
    /// The pods' network.
    pub network: Network,
    /// Whether the pods end with the agent.
    pub on_stop: OnStop,
    /// How long a container that ends waits before it is started again.
    pub backoff: Backoff,
    /// Containers' log files.
    pub container_logs: ContainerLogs,
    /// Images.
    pub images: Images,
    /// The file that pods with `dnsPolicy: Default` get their name servers from.
    pub resolv_conf: PathBuf,
    /// The local API.
    pub api: Api,
    /// The kubelet API.
    pub kubelet: Kubelet,
    /// Host IDs of the pods with `hostUsers: false`.
    pub userns: Userns,
    /// What pods may be and do.
    pub security: Security,
    /// What pods may use.
    pub pods: Pods,
    /// When pods are evicted.
    pub eviction: eviction::Settings,
    /// What time pods have when the machine goes down, by priority; none: its shutdown isn't listened for.
    pub shutdown: Vec<Period>,
    /// Where PersistentVolumeClaims' folders are; unset: `claims` below /var/lib/nodeagent.
    pub claims: Option<PathBuf>,
    /// The age identities that open `*.yaml.age`.
    pub age_identities: Option<PathBuf>,
    /// The agent's own log.
    pub log: Log,
}

/// The pods' network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// The bridge's name: an interface name of at most 15 bytes.
    pub bridge: String,
    /// The ranges that pods get their addresses from, at least one; a pod gets an address of each family that has one.
    pub pod_ranges: Vec<netplug::Range>,
    /// How long an address rests between two pods.
    pub reuse_after: Duration,
    /// How long a new pod waits for somebody on the bridge who has its address already; none: nobody is asked.
    pub probe: Option<Duration>,
    /// Whether what pods send to the world has the node's address.
    pub masquerade: bool,
    /// Whether pods may reach each other past the host's rules, where no rule has to see it.
    pub direct_path: bool,
    /// Where pods' own addresses are seen, beside their ranges.
    pub masquerade_except: Vec<netplug::Cidr>,
    /// The nftables table of this agent's own.
    pub nft_table: String,
    /// The ranges that Services get their addresses from, one a family at most; none: services are off.
    pub service_cidrs: Vec<netplug::Cidr>,
    /// Whether the agent answers its pods' questions for names.
    pub dns: bool,
    /// The MTU of the pods' links; of the way out unless set.
    pub mtu: Option<u32>,
    /// Who wires pods, if it was said.
    pub wiring: Option<Wiring>,
    /// Whether ranges were asked for; else `pod_ranges` is the default.
    pub ranges: Ranges,
    /// CNI plugins: for all pods, or for further interfaces that a pod asks for.
    pub cni: Cni,
}

impl Network {
    /// The first subnet of each family: a Node object has room for no more.
    pub fn first_subnets(&self) -> impl Iterator<Item = netplug::Cidr> {
        let subnets = || self.pod_ranges.iter().map(|range| range.subnet);
        let first = move |v4: bool| subnets().position(|subnet| subnet.is_v4() == v4);
        let mut numbers: Vec<usize> = [first(true), first(false)].into_iter().flatten().collect();
        numbers.sort_unstable();
        numbers.into_iter().filter_map(|number| Some(self.pod_ranges.get(number)?.subnet))
    }
}

/// Where the pods' ranges come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ranges {
    /// Somebody chose them.
    Chosen,
    /// Nobody did.
    Default,
}

/// CNI plugins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cni {
    /// Network configurations.
    pub conf_dir: PathBuf,
    /// Plugins; the first folder that has one counts.
    pub bin_dirs: Vec<PathBuf>,
    /// What was done by them.
    pub cache_dir: PathBuf,
    /// How long one may take.
    pub timeout: Duration,
}

/// What becomes of the pods when the agent is told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnStop {
    /// They run on, and the next agent takes them over.
    Keep,
    /// They end first.
    Drain,
}

/// CrashLoopBackOff.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The first wait.
    pub initial: Duration,
    /// What the doubling stops at.
    pub max: Duration,
    /// A container that ran this long begins at `initial` again.
    pub reset_after: Duration,
}

/// Containers' log files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContainerLogs {
    /// Bytes at which a file is rotated.
    pub max_size: u64,
    /// How many files of one container are kept, the present one with them.
    pub max_files: u32,
}

/// Images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Images {
    /// Percent of the disk at which unused images are removed.
    pub gc_high_percent: u8,
    /// Percent of the disk at which that stops.
    pub gc_low_percent: u8,
    /// Images that are pulled at the same time.
    pub parallel_pulls: usize,
    /// Mirrors, insecure and blocked registries.
    pub registries_conf: PathBuf,
    /// Docker's config.json with credentials and their helpers.
    pub auth_file: PathBuf,
    /// Programs that give logins.
    pub providers: Option<CredentialProviders>,
}

/// Where the kubelet's credential provider plugins are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialProviders {
    /// A CredentialProviderConfig, or a folder of such.
    pub config: PathBuf,
    /// The folder of their programs.
    pub programs: PathBuf,
}

/// The local API.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Api {
    /// The group that may use the socket beside root: a name or a number.
    pub socket_group: Option<String>,
    /// A loopback address for kubectl, with TLS and client certificates.
    pub listen: Option<SocketAddr>,
    /// The CA of client certificates, instead of the agent's own.
    pub client_ca: Option<PathBuf>,
}

/// Host IDs of the pods with `hostUsers: false`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Userns {
    /// The first host ID.
    pub first: u32,
    /// IDs a pod.
    pub per_pod: u32,
    /// Pods that there is room for.
    pub pods: u32,
}

/// The agent's own log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Log {
    /// Lines for people or for machines.
    pub format: LogFormat,
    /// What is too little to be logged.
    pub level: LogLevel,
}

/// What can't be run with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file is wrong.
    #[error(transparent)]
    File(#[from] FileError),
    /// A flag is wrong.
    #[error("{flag}: {message}")]
    Flag {
        /// As it is written: `--node-name`.
        flag: &'static str,
        /// What is wrong.
        message: String,
    },
}

/// Reads the configuration file, lays the flags over it, fills in the defaults and checks all of it.
pub fn load(flags: &Flags) -> Result<Settings, Vec<ConfigError>> {
    let (declared, source) = match file::read(flags.config.as_deref()) {
        Ok(read) => read,
        Err(errors) => return Err(errors.into_iter().map(ConfigError::File).collect()),
    };
    settings(flags, &declared, &source)
}

/// As [`load`], from a configuration file's text.
pub fn load_from(flags: &Flags, name: &std::path::Path, text: &[u8]) -> Result<Settings, Vec<ConfigError>> {
    match file::parse(name, text) {
        Ok((declared, source)) => settings(flags, &declared, &source),
        Err(errors) => Err(errors.into_iter().map(ConfigError::File).collect()),
    }
}

mod check;
use check::settings;

#[cfg(test)]
mod network_tests;
