//! The Kubernetes Node object of this machine.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as k8s;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

/// The kubelet's default of pods a node.
const MAX_PODS: u32 = 110;

/// What the machine can't tell by itself.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The node's name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The pods' ranges.
    pub pod_cidrs: Vec<String>,
    /// Where images and volumes are.
    pub lib: std::path::PathBuf,
    /// When the agent started.
    pub started: Timestamp,
}

/// The object as of now.
pub fn node(facts: &Facts) -> k8s::Node {
    let capacity = capacity(&facts.lib);
    let labels =
        [("kubernetes.io/hostname", facts.name.as_str()), ("kubernetes.io/os", "linux"), ("kubernetes.io/arch", architecture())];
    let mut addresses: Vec<_> =
        facts.addresses.iter().map(|ip| k8s::NodeAddress { type_: "InternalIP".into(), address: ip.to_string() }).collect();
    addresses.push(k8s::NodeAddress { type_: "Hostname".into(), address: facts.name.clone() });
    k8s::Node {
        metadata: ObjectMeta {
            name: Some(facts.name.clone()),
            uid: Some(facts.name.clone()),
            creation_timestamp: Some(Time(facts.started)),
            labels: Some(labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()),
            ..ObjectMeta::default()
        },
        spec: Some(k8s::NodeSpec {
            pod_cidr: facts.pod_cidrs.first().cloned(),
            pod_cidrs: Some(facts.pod_cidrs.clone()),
            ..k8s::NodeSpec::default()
        }),
        status: Some(k8s::NodeStatus {
            addresses: Some(addresses),
            allocatable: Some(capacity.clone()),
            capacity: Some(capacity),
            conditions: Some(conditions(facts.started)),
            node_info: Some(info()),
            ..k8s::NodeStatus::default()
        }),
    }
}

fn conditions(since: Timestamp) -> Vec<k8s::NodeCondition> {
    let condition = |type_: &str, status: &str, reason: &str, message: &str| k8s::NodeCondition {
        type_: type_.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_heartbeat_time: Some(Time(Timestamp::now())),
        last_transition_time: Some(Time(since)),
    };
    vec![condition("Ready", "True", "NodeAgentReady", "nodeagent is posting ready status")]
}

fn capacity(lib: &Path) -> BTreeMap<String, Quantity> {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let nearest = lib.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let disk = nix::sys::statvfs::statvfs(nearest).map_or(0, |s| s.blocks() * s.fragment_size());
    [
        ("cpu", cpus.to_string()),
        ("memory", format!("{}Ki", memory_kib())),
        ("ephemeral-storage", format!("{}Ki", disk >> 10)),
        ("pods", MAX_PODS.to_string()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), Quantity(value)))
    .collect()
}

fn memory_kib() -> u64 {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"));
    total.and_then(|t| t.split_whitespace().next()).and_then(|n| n.parse().ok()).unwrap_or(0)
}

fn info() -> k8s::NodeSystemInfo {
    let version = format!("v{}", env!("CARGO_PKG_VERSION"));
    k8s::NodeSystemInfo {
        architecture: architecture().into(),
        boot_id: super::line("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: format!("nodeagent://{}", env!("CARGO_PKG_VERSION")),
        kernel_version: super::line("/proc/sys/kernel/osrelease"),
        kube_proxy_version: String::new(),
        kubelet_version: version,
        machine_id: super::line("/etc/machine-id"),
        operating_system: "linux".into(),
        os_image: os_image(),
        system_uuid: super::line("/sys/class/dmi/id/product_uuid"),
        ..k8s::NodeSystemInfo::default()
    }
}

fn os_image() -> String {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    name.unwrap_or("Linux").trim_matches('"').to_owned()
}

/// Go's name of the architecture, which is Kubernetes'.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
