//! The Kubernetes Node object of this machine.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as k8s;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use crate::admission::{Labels, Pressure};
use crate::eviction;
use crate::runtime::{Allocatable, hugepages};

/// What the machine can't tell by itself.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Its name and labels.
    pub labels: Labels,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The pods' ranges.
    pub pod_cidrs: Vec<String>,
    /// How many pods may be here.
    pub max_pods: u32,
    /// Where images and volumes are.
    pub lib: std::path::PathBuf,
    /// When the agent started.
    pub started: Timestamp,
    /// Where the kubelet API is served, if it is.
    pub kubelet_port: Option<u16>,
}

/// The labels that every node has, and more. The machine's facts win: what says `kubernetes.io/arch` is true.
pub fn labels(name: &str, more: &BTreeMap<String, String>) -> Labels {
    let own = [
        ("kubernetes.io/hostname", name),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture()),
        // What the RuntimeClass of the chart selects by.
        ("nodeagent.dev/node", "true"),
    ];
    let own = own.map(|(key, value)| (key.to_owned(), value.to_owned()));
    Labels { name: name.to_owned(), labels: more.clone().into_iter().chain(own).collect() }
}

/// The object as of now.
pub fn node(facts: &Facts, allocatable: Allocatable, pressures: &[Pressure]) -> k8s::Node {
    let Labels { name, labels } = &facts.labels;
    let mut addresses: Vec<_> =
        facts.addresses.iter().map(|ip| k8s::NodeAddress { type_: "InternalIP".into(), address: ip.to_string() }).collect();
    addresses.push(k8s::NodeAddress { type_: "Hostname".into(), address: name.clone() });
    k8s::Node {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            uid: Some(name.clone()),
            creation_timestamp: Some(Time(facts.started)),
            labels: Some(labels.clone()),
            ..ObjectMeta::default()
        },
        spec: Some(k8s::NodeSpec {
            pod_cidr: facts.pod_cidrs.first().cloned(),
            pod_cidrs: Some(facts.pod_cidrs.clone()),
            ..k8s::NodeSpec::default()
        }),
        status: Some(k8s::NodeStatus {
            addresses: Some(addresses),
            allocatable: Some(amounts(allocatable, facts.max_pods)),
            capacity: Some(amounts(Allocatable::of_machine(&facts.lib), facts.max_pods)),
            conditions: Some(conditions(facts.started, pressures)),
            node_info: Some(info()),
            daemon_endpoints: facts
                .kubelet_port
                .map(|port| k8s::NodeDaemonEndpoints { kubelet_endpoint: Some(k8s::DaemonEndpoint { port: port.into() }) }),
            ..k8s::NodeStatus::default()
        }),
    }
}

fn conditions(started: Timestamp, pressures: &[Pressure]) -> Vec<k8s::NodeCondition> {
    let condition = |type_: &str, status: &str, (reason, message): (&str, &str), since: Timestamp| k8s::NodeCondition {
        type_: type_.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_heartbeat_time: Some(Time(Timestamp::now())),
        last_transition_time: Some(Time(since)),
    };
    let mut all: Vec<_> = pressures
        .iter()
        .map(|p| condition(p.condition.name(), if p.holds { "True" } else { "False" }, p.condition.words(p.holds), p.since))
        .collect();
    all.push(condition("Ready", "True", ("NodeAgentReady", "nodeagent is posting ready status"), started));
    all
}

/// The pods' network can't be had: no pod should be sent here, as the kubelet says it.
pub fn not_ready(node: &mut k8s::Node, problem: &str) {
    let conditions = node.status.iter_mut().flat_map(|status| status.conditions.iter_mut().flatten());
    for condition in conditions.filter(|condition| condition.type_ == "Ready") {
        condition.status = "False".into();
        condition.reason = Some("NodeAgentNotReady".into());
        condition.message = Some(format!(
            "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:{problem}"
        ));
    }
}

fn amounts(room: Allocatable, pods: u32) -> BTreeMap<String, Quantity> {
    let cpu = if room.cpu_millis.is_multiple_of(1000) {
        format!("{}", room.cpu_millis / 1000)
    } else {
        format!("{}m", room.cpu_millis)
    };
    [
        ("cpu", cpu),
        ("memory", format!("{}Ki", room.memory >> 10)),
        ("ephemeral-storage", format!("{}Ki", room.ephemeral_storage >> 10)),
        ("pods", pods.to_string()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), Quantity(value)))
    .chain(hugepages::of_machine().into_iter().map(|(size, bytes)| (hugepages::name(size), Quantity(eviction::bytes(bytes)))))
    .collect()
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
