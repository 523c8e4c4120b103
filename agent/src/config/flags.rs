//! The flags of `nodeagent --manifests DIR …`. Each lies over the setting of the same name in the configuration file.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

/// How lines of the agent's log look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What is logged: this and what is graver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What went wrong.
    Error,
    /// What may be wrong.
    Warn,
    /// What happened.
    #[default]
    Info,
    /// Each step.
    Debug,
    /// Each byte, nearly.
    Trace,
}

impl From<LogLevel> for tracing::level_filters::LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

/// Who connects pods to the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Wiring {
    /// The agent itself, by a bridge of its own.
    Bridge,
    /// CNI plugins, by the first configuration in /etc/cni/net.d.
    Cni,
}

/// Where an agent's files are: what commands must know as well.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Root {
    /// Keep everything (sockets, images, logs) below this folder, so that several agents can share a machine
    #[arg(long = "root", value_name = "DIR", env = "NODEAGENT_ROOT", global = true)]
    pub folder: Option<PathBuf>,
}

/// What the command line may say of how the agent runs.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Flags {
    /// Folder or file of pod manifests, watched for changes; - reads standard input. May be given more than once
    #[arg(long, short = 'm', value_name = "DIR|FILE|-")]
    pub manifests: Vec<PathBuf>,
    /// Join the cluster of this kubeconfig: its API server gives pods to this node
    #[arg(long, value_name = "FILE", env = "NODEAGENT_KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// Ask the cluster of this kubeconfig, by its token, for the node's certificate; then write --kubeconfig [default of that: kubeconfig below /var/lib/nodeagent]
    #[arg(long, value_name = "FILE", env = "NODEAGENT_BOOTSTRAP_KUBECONFIG")]
    pub bootstrap_kubeconfig: Option<PathBuf>,
    /// What the cloud calls this machine, such as aws:///eu-west-1a/i-0123
    #[arg(long, value_name = "ID")]
    pub provider_id: Option<String>,
    /// Configuration file [default: /etc/nodeagent/config.yaml, if there is one]
    #[arg(long, value_name = "FILE", env = "NODEAGENT_CONFIG")]
    pub config: Option<PathBuf>,
    /// Where its files are
    #[command(flatten)]
    pub root: Root,
    /// Name of this node [default: the host's name]
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// cgroup below which all pods are [default: nodeagent]
    #[arg(long, value_name = "NAME")]
    pub cgroup_parent: Option<String>,
    /// Bridge that the pods are connected to [default: nodeagent0]
    #[arg(long, value_name = "NAME")]
    pub bridge: Option<String>,
    /// Range of the pods' addresses; may be given more than once, of IPv4 and of IPv6: a full one gives way to the next [default: 10.85.0.0/16]
    #[arg(long = "pod-cidr", value_name = "CIDR", value_delimiter = ',')]
    pub pod_cidrs: Vec<String>,
    /// nftables table of this agent's own [default: nodeagent]
    #[arg(long, value_name = "NAME")]
    pub nft_table: Option<String>,
    /// MTU of the pods' links [default: that of the way out]
    #[arg(long, value_name = "BYTES")]
    pub mtu: Option<u32>,
    /// Who connects pods to the network: the agent's own bridge, or the CNI plugins of /etc/cni/net.d [default: bridge]
    #[arg(long, value_enum, value_name = "KIND")]
    pub network: Option<Wiring>,
    /// End all pods when the agent is told to stop, instead of leaving them to the next one
    #[arg(long)]
    pub drain: bool,
    /// Loopback address at which kubectl is served, with TLS and client certificates
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// Group that may use the local API's socket beside root
    #[arg(long, value_name = "GROUP")]
    pub socket_group: Option<String>,
    /// How lines of the log look
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// What is logged: this and what is graver
    #[arg(long, value_enum, value_name = "LEVEL")]
    pub log_level: Option<LogLevel>,
}
