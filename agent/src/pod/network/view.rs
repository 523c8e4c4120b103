//! The node's network as `nodeagent net` shows it: what netplug reads from the kernel, with the Services and policies of each pod. Pure.

use std::net::IpAddr;
use std::sync::Arc;

use netplug::{Lease, LinkState, Picture, PodState, Port, Rules};
use serde::{Deserialize, Serialize};

/// See the module's page.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkView {
    /// `bridge`, or `cni`: then all that is known are the pods' addresses.
    pub wiring: String,
    /// Links with a default route.
    pub uplinks: Vec<LinkView>,
    /// The pods' bridge; none: it is gone, or plugins wire the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bridge: Option<LinkView>,
    /// The nftables table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<TableView>,
    /// Why no pod takes the direct way to others, past the host's rules; none: those do that nothing keeps off it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_direct_path: Option<String>,
    /// Why no pod's sockets are connected to Services' endpoints from the beginning, and the rules translate instead; none: they are,
    /// where that can be (TCP, without affinity).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_service_sockets: Option<String>,
    /// Pods with a network of their own.
    pub pods: Vec<PodView>,
    /// Links in the bridge that are no pod's.
    pub strangers: Vec<LinkView>,
    /// Ports of Services.
    pub services: Vec<ServiceView>,
    /// NetworkPolicies.
    pub policies: Vec<PolicyView>,
    /// What other firewalls may do to pods, and what to do about it.
    pub obstacles: Vec<String>,
}

/// A link of the node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LinkView {
    /// Its name.
    pub name: String,
    /// Whether it is up.
    pub up: bool,
    /// In bytes.
    pub mtu: u32,
    /// With their prefixes.
    pub addresses: Vec<String>,
}

/// The table of nftables' family inet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TableView {
    /// Its name.
    pub name: String,
    /// Whether it is there, made of the agent's settings.
    pub stands: bool,
}

/// A pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodView {
    /// metadata.uid.
    pub uid: String,
    /// `namespace/name`.
    pub pod: String,
    /// Of its eth0.
    pub addresses: Vec<IpAddr>,
    /// The host's end of its veth.
    pub host_interface: String,
    /// What is wrong with that, if something.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub problem: String,
    /// Ports of the node that lead to it.
    pub host_ports: Vec<HostPort>,
    /// Bits per second, what it gets and what it sends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress_bandwidth: Option<u64>,
    /// The same of what it sends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress_bandwidth: Option<u64>,
    /// Ports of Services that lead to it.
    pub services: Vec<String>,
    /// Why it reaches other pods by the host alone; none: it takes the direct way to those that do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_direct_path: Option<String>,
    /// Policies that select it.
    pub policies: Vec<String>,
}

/// A port of the node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HostPort {
    /// Which of the node's addresses; none: all.
    #[serde(rename = "hostIP", skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
    /// The node's.
    pub host_port: u16,
    /// The pod's.
    pub container_port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
}

/// A port of a Service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceView {
    /// `namespace/name:port`.
    pub name: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Where clients knock.
    pub addresses: Vec<IpAddr>,
    /// At which port.
    pub port: u16,
    /// At which port of the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_port: Option<u16>,
    /// Who answers: `address:port`. None: refused.
    pub endpoints: Vec<String>,
    /// For how long a client keeps its endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity_seconds: Option<u64>,
}

/// A NetworkPolicy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyView {
    /// `namespace/name`.
    pub name: String,
    /// The addresses that it selects.
    pub pods: Vec<IpAddr>,
    /// How many rules allow what comes in; none: it doesn't speak of that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<usize>,
    /// How many rules allow what goes out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<usize>,
}

/// What would become of a connection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TraceView {
    /// `namespace/name` of who calls.
    pub pod: String,
    /// Its address.
    pub source: String,
    /// What was asked for.
    pub to: String,
    /// The address and port that it is.
    pub destination: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The steps of each way that it could go: one an endpoint.
    pub ways: Vec<Vec<netplug::Step>>,
    /// What other firewalls may do to it.
    pub obstacles: Vec<String>,
}

/// Of our own bridge.
pub(super) fn of_bridge(picture: Picture, rules: &Rules, obstacles: Vec<String>) -> NetworkView {
    NetworkView {
        wiring: "bridge".into(),
        uplinks: picture.uplinks.iter().map(link).collect(),
        bridge: picture.bridge.as_ref().map(link),
        table: Some(TableView { name: picture.table, stands: picture.table_stands }),
        no_direct_path: picture.no_direct_way.clone(),
        no_service_sockets: picture.no_led_sockets.clone(),
        pods: picture.pods.iter().map(|state| pod(state, rules)).collect(),
        strangers: picture.strangers.iter().map(link).collect(),
        services: rules.services.iter().map(|known| service(known)).collect(),
        policies: rules.policies.iter().map(|one| policy(one)).collect(),
        obstacles,
    }
}

fn link(state: &LinkState) -> LinkView {
    LinkView { name: state.name.clone(), up: state.up, mtu: state.mtu, addresses: state.shown() }
}

fn pod(state: &PodState, rules: &Rules) -> PodView {
    let PodState { lease, link, in_place, not_direct } = state;
    let Lease { uid, pod, ips, host_if, ports, bandwidth, .. } = lease;
    let problem = match link {
        None => "is gone",
        Some(_) if !in_place => "is not where it belongs",
        Some(link) if !link.up => "is down",
        Some(_) => "",
    };
    let serves =
        |service: &&std::sync::Arc<netplug::Service>| service.endpoints.iter().any(|endpoint| ips.contains(&endpoint.ip()));
    let selects = |policy: &&Arc<netplug::Policy>| policy.pods.iter().any(|ip| ips.contains(ip));
    PodView {
        uid: uid.clone(),
        pod: pod.clone(),
        addresses: ips.clone(),
        host_interface: host_if.clone(),
        problem: problem.into(),
        host_ports: ports.iter().map(host_port).collect(),
        ingress_bandwidth: bandwidth.and_then(|limits| limits.ingress).map(|rate| rate.bits),
        egress_bandwidth: bandwidth.and_then(|limits| limits.egress).map(|rate| rate.bits),
        no_direct_path: not_direct.clone(),
        services: rules.services.iter().filter(serves).map(|service| service.name.clone()).collect(),
        policies: rules.policies.iter().filter(selects).map(|policy| policy.name.clone()).collect(),
    }
}

fn host_port(port: &Port) -> HostPort {
    HostPort {
        host_ip: port.host_ip.filter(|ip| !ip.is_unspecified()),
        host_port: port.host_port,
        container_port: port.container_port,
        protocol: port.protocol.to_string(),
    }
}

fn service(service: &netplug::Service) -> ServiceView {
    ServiceView {
        name: service.name.clone(),
        protocol: service.protocol.to_string(),
        addresses: service.addresses.clone(),
        port: service.port,
        node_port: service.node_port,
        endpoints: service.endpoints.iter().map(ToString::to_string).collect(),
        affinity_seconds: service.affinity.map(|time| time.as_secs()),
    }
}

fn policy(policy: &netplug::Policy) -> PolicyView {
    PolicyView {
        name: policy.name.clone(),
        pods: policy.pods.clone(),
        ingress: policy.ingress.as_ref().map(Vec::len),
        egress: policy.egress.as_ref().map(Vec::len),
    }
}
