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
    /// What the cloud calls it.
    pub provider_id: Option<String>,
    /// What it is tainted with when it is registered.
    pub taints: Vec<k8s::Taint>,
}

/// Images that a Node shows, the largest, and names of one. The kubelet's numbers.
const IMAGES: usize = 50;
const NAMES_OF_IMAGE: usize = 5;

/// The Kubernetes whose kubelet this is in place of: what its clients expect to find.
const KUBERNETES: &str = "v1.37.0";

/// What the API server may use only where a node declares it. By the feature gates' names.
const DECLARED: [&str; 4] = [
    "ExtendWebSocketsToKubelet",
    "InPlacePodLevelResourcesVerticalScaling",
    "InPlacePodVerticalScalingInitContainers",
    "RestartAllContainersOnContainerExits",
];

/// The labels that every node has, and more. The machine's facts win: what says `kubernetes.io/arch` is true.
pub fn labels(name: &str, more: &BTreeMap<String, String>) -> Labels {
    let own = [
        ("kubernetes.io/hostname", name),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", architecture()),
        // What the RuntimeClass of the chart selects by.
        ("nodeagent.dev/node", "true"),
    ];
    let own = own.map(|(key, value)| (key.to_owned(), value.to_owned()));
    Labels { name: name.to_owned(), labels: more.clone().into_iter().chain(own).collect() }
}

/// The object as of now.
pub fn node(facts: &Facts, allocatable: Allocatable, pressures: &[Pressure]) -> k8s::Node {
    let Labels { name, labels } = &facts.labels;
    // One a family, as the kubelet: others are of bridges and the like.
    let first = |is_v6| facts.addresses.iter().find(|ip| ip.is_ipv6() == is_v6);
    let internal = |ip: &IpAddr| k8s::NodeAddress { type_: "InternalIP".into(), address: ip.to_string() };
    let mut addresses: Vec<_> = [first(false), first(true)].into_iter().flatten().map(internal).collect();
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
            provider_id: facts.provider_id.clone(),
            taints: (!facts.taints.is_empty()).then(|| facts.taints.clone()),
            ..k8s::NodeSpec::default()
        }),
        status: Some(k8s::NodeStatus {
            addresses: Some(addresses),
            allocatable: Some(amounts(allocatable, facts.max_pods)),
            capacity: Some(amounts(Allocatable::of_machine(&facts.lib), facts.max_pods)),
            conditions: Some(conditions(facts.started, pressures)),
            node_info: Some(info()),
            declared_features: Some(DECLARED.map(str::to_owned).into()),
            features: Some(k8s::NodeFeatures { supplemental_groups_policy: Some(true) }),
            // The default, and by name.
            runtime_handlers: Some(["", "nodeagent", "runc"].map(handler).into()),
            daemon_endpoints: facts
                .kubelet_port
                .map(|port| k8s::NodeDaemonEndpoints { kubelet_endpoint: Some(k8s::DaemonEndpoint { port: port.into() }) }),
            ..k8s::NodeStatus::default()
        }),
    }
}

fn handler(name: &str) -> k8s::NodeRuntimeHandler {
    let features = k8s::NodeRuntimeHandlerFeatures { recursive_read_only_mounts: Some(true), user_namespaces: Some(true) };
    k8s::NodeRuntimeHandler { name: Some(name.into()), features: Some(features) }
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
    all.push(condition("Ready", "True", ("KubeletReady", "kubelet is posting ready status"), started));
    all
}

/// What of a pods' network that can't be had is to be said.
pub fn without_network(problem: &str) -> String {
    format!("container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:{problem}")
}

/// No pod should be sent here, for these reasons if there are any, as the kubelet says it.
pub fn not_ready(node: &mut k8s::Node, problems: &[String]) {
    let message = match problems {
        [] => return,
        [problem] => problem.clone(),
        several => format!("[{}]", several.join(", ")),
    };
    let conditions = node.status.iter_mut().flat_map(|status| status.conditions.iter_mut().flatten());
    for condition in conditions.filter(|condition| condition.type_ == "Ready") {
        condition.status = "False".into();
        condition.reason = Some("KubeletNotReady".into());
        condition.message = Some(message.clone());
    }
}

/// What device plugins have: name, capacity, and how many can be given away.
pub fn show_devices(node: &mut k8s::Node, devices: impl IntoIterator<Item = (String, usize, usize)>) {
    let Some(status) = &mut node.status else { return };
    for (name, all, well) in devices {
        status.capacity.get_or_insert_default().insert(name.clone(), Quantity(all.to_string()));
        status.allocatable.get_or_insert_default().insert(name, Quantity(well.to_string()));
    }
}

/// Volumes that are not to be detached now.
pub fn show_volumes(node: &mut k8s::Node, volumes: Vec<String>) {
    if let Some(status) = node.status.as_mut().filter(|_| !volumes.is_empty()) {
        status.volumes_in_use = Some(volumes);
    }
}

/// The images that are here: names and bytes of each. The largest are shown.
pub fn show_images(node: &mut k8s::Node, images: impl IntoIterator<Item = (Vec<String>, u64)>) {
    let Some(status) = &mut node.status else { return };
    let mut images: Vec<_> = images.into_iter().filter(|(names, _)| !names.is_empty()).collect();
    // By name where the size is the same: the same images are the same list.
    images.sort_by(|(a_names, a), (b_names, b)| b.cmp(a).then_with(|| a_names.cmp(b_names)));
    let image = |(mut names, bytes): (Vec<String>, u64)| {
        names.truncate(NAMES_OF_IMAGE);
        k8s::ContainerImage { names: Some(names), size_bytes: i64::try_from(bytes).ok() }
    };
    status.images = Some(images.into_iter().take(IMAGES).map(image).collect());
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
    let or = |text: String, other: &str| if text.is_empty() { super::line(other) } else { text };
    let machine_id = or(super::line("/etc/machine-id"), "/var/lib/dbus/machine-id");
    k8s::NodeSystemInfo {
        architecture: architecture().into(),
        boot_id: super::boot_id(),
        container_runtime_version: format!("nodeagent://{}", env!("CARGO_PKG_VERSION")),
        kernel_version: super::line("/proc/sys/kernel/osrelease"),
        kube_proxy_version: String::new(),
        kubelet_version: format!("{KUBERNETES}+nodeagent.{}", env!("CARGO_PKG_VERSION")),
        machine_id: machine_id.clone(),
        operating_system: "linux".into(),
        os_image: os_image(),
        system_uuid: Some(super::line("/sys/class/dmi/id/product_uuid")).filter(|id| !id.is_empty()).unwrap_or(machine_id),
        swap: swap().map(|bytes| k8s::NodeSwapStatus { capacity: Some(bytes) }),
        ..k8s::NodeSystemInfo::default()
    }
}

/// Bytes of swap; none: there is no swap.
fn swap() -> Option<i64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kibibytes: i64 =
        text.lines().find_map(|line| line.strip_prefix("SwapTotal:"))?.split_whitespace().next()?.parse().ok()?;
    (kibibytes > 0).then_some(kibibytes << 10)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_images_are_shown_each_by_its_first_names() {
        let mut node = k8s::Node { status: Some(k8s::NodeStatus::default()), ..k8s::Node::default() };
        let names = |image: u64| (0..9).map(|name| format!("image-{image}:{name}")).collect::<Vec<_>>();
        show_images(&mut node, (0..70).map(|image| (names(image), image)).chain([(Vec::new(), 1000)]));
        let shown = node.status.unwrap().images.unwrap();
        assert_eq!(shown.len(), 50);
        assert_eq!((shown[0].size_bytes, shown[49].size_bytes), (Some(69), Some(20)));
        assert_eq!(shown[0].names.as_ref().unwrap().len(), 5);
    }
}
