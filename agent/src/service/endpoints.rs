//! A Service's endpoints: of its selector and the pods, as EndpointSlices and as what netplug balances. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ObjectReference, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint as SliceEndpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use netplug::Protocol;

use super::facts::{Facts, protocol};
use crate::model::namespaced_name;

/// Endpoints of one slice, as the cluster's controller has it.
const SLICE: usize = 100;

/// One address behind a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The pod.
    pub pod: Arc<Facts>,
    /// One of its addresses.
    pub ip: IpAddr,
    /// It gets new connections.
    pub ready: bool,
    /// Its pod is ready, terminating or not.
    pub serving: bool,
    /// Its own name below a headless Service's.
    pub hostname: Option<String>,
    /// The Service's ports that it has: name, protocol, its own number.
    pub ports: Vec<(String, Protocol, u16)>,
}

/// Whether a Service's selector matches a pod of its namespace.
pub fn selects(service: &Service, pod: &Facts) -> bool {
    let Some(spec) = &service.spec else { return false };
    let selector = spec.selector.as_ref().filter(|selector| !selector.is_empty());
    let selector = selector.filter(|_| spec.type_.as_deref() != Some("ExternalName"));
    selector.is_some_and(|selector| selector.iter().all(|(k, v)| pod.labels.get(k) == Some(v)))
}

/// Those of a Service among the pods of its namespace.
pub fn of(service: &Service, pods: &[Arc<Facts>]) -> Vec<Endpoint> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let families = spec.ip_families.as_deref().unwrap_or_default();
    let anyway = spec.publish_not_ready_addresses == Some(true);
    let mut endpoints = Vec::new();
    for pod in pods.iter().filter(|pod| pod.reachable() && selects(service, pod)) {
        let ports: Vec<_> = spec.ports.iter().flatten().filter_map(|port| target(port, pod)).collect();
        for ip in pod.ips.iter().filter(|ip| families.iter().any(|f| (f == "IPv4") == ip.is_ipv4())) {
            endpoints.push(Endpoint {
                pod: pod.clone(),
                ip: *ip,
                ready: anyway || pod.ready && !pod.terminating,
                serving: pod.ready,
                hostname: pod.hostname.clone().filter(|_| pod.subdomain == service.metadata.name),
                ports: ports.clone(),
            });
        }
    }
    endpoints.sort_by_key(|endpoint| endpoint.ip);
    endpoints
}

fn target(port: &ServicePort, pod: &Facts) -> Option<(String, Protocol, u16)> {
    let protocol = protocol(port.protocol.as_deref());
    let number = match &port.target_port {
        None => u16::try_from(port.port).ok()?,
        Some(IntOrString::Int(number)) => u16::try_from(*number).ok()?,
        Some(IntOrString::String(name)) => pod.ports.iter().find(|(own, p, _)| own == name && *p == protocol)?.2,
    };
    Some((port.name.clone().unwrap_or_default(), protocol, number))
}

/// What netplug balances: one entry a port. Where none is ready, those that end but still serve get the connections, as kube-proxy
/// has it.
pub fn balanced(service: &Service, endpoints: &[Endpoint]) -> Vec<netplug::Service> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let whole = namespaced_name(&service.metadata);
    let cluster = spec.cluster_ips.iter().flatten().filter_map(|ip| ip.parse::<IpAddr>().ok());
    let addresses: Vec<IpAddr> =
        cluster.chain(spec.external_ips.iter().flatten().filter_map(|ip| ip.parse::<IpAddr>().ok())).collect();
    if addresses.is_empty() {
        return Vec::new();
    }
    let stay = spec.session_affinity.as_deref() == Some("ClientIP");
    let seconds = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref()?.timeout_seconds);
    let affinity = stay.then(|| Duration::from_secs(u64::try_from(seconds.unwrap_or(10_800)).unwrap_or(10_800)));
    let entry = |port: &ServicePort| {
        let (port_name, protocol) = (port.name.clone().unwrap_or_default(), protocol(port.protocol.as_deref()));
        let shown = if port_name.is_empty() { port.port.to_string() } else { port_name.clone() };
        Some(netplug::Service {
            name: format!("{whole}:{shown}"),
            protocol,
            port: u16::try_from(port.port).ok()?,
            addresses: addresses.clone(),
            node_port: port.node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0),
            endpoints: sockets(endpoints, &port_name, protocol),
            affinity,
        })
    };
    spec.ports.iter().flatten().filter_map(entry).collect()
}

fn sockets(endpoints: &[Endpoint], port: &str, protocol: Protocol) -> Vec<SocketAddr> {
    let of = |which: fn(&Endpoint) -> bool| -> Vec<SocketAddr> {
        let chosen = endpoints.iter().filter(|endpoint| which(endpoint));
        chosen
            .filter_map(|endpoint| {
                let (_, _, number) = endpoint.ports.iter().find(|(name, own, _)| name == port && *own == protocol)?;
                Some(SocketAddr::new(endpoint.ip, *number))
            })
            .collect()
    };
    let ready = of(|endpoint| endpoint.ready);
    if ready.is_empty() { of(|endpoint| endpoint.serving && endpoint.pod.terminating) } else { ready }
}

/// As the API shows them: endpoints of one family and with the same ports share a slice; without any, one empty slice.
pub fn slices(service: &Service, endpoints: &[Endpoint], node: &str) -> Vec<EndpointSlice> {
    type Ports = Vec<(String, &'static str, u16)>;
    let mut groups: BTreeMap<(bool, Ports), Vec<&Endpoint>> = BTreeMap::new();
    for endpoint in endpoints {
        let ports = endpoint.ports.iter().map(|(name, protocol, number)| (name.clone(), protocol.name(), *number)).collect();
        groups.entry((endpoint.ip.is_ipv6(), ports)).or_default().push(endpoint);
    }
    if groups.is_empty() {
        let families = service.spec.as_ref().and_then(|s| s.ip_families.as_ref());
        let v6 = families.and_then(|f| f.first()).is_some_and(|first| first == "IPv6");
        groups.insert((v6, Vec::new()), Vec::new());
    }
    let mut slices = Vec::new();
    for ((v6, ports), group) in groups {
        let chunks: Vec<&[&Endpoint]> = if group.is_empty() { vec![&[][..]] } else { group.chunks(SLICE).collect() };
        for (number, chunk) in chunks.into_iter().enumerate() {
            let port = |(name, protocol, number): &(String, &str, u16)| EndpointPort {
                name: Some(name.clone()),
                protocol: Some((*protocol).into()),
                port: Some((*number).into()),
                ..EndpointPort::default()
            };
            slices.push(EndpointSlice {
                metadata: slice_metadata(service, &format!("{v6} {ports:?} {number}")),
                address_type: if v6 { "IPv6" } else { "IPv4" }.into(),
                endpoints: Some(chunk.iter().map(|endpoint| slice_endpoint(endpoint, node)).collect()),
                ports: Some(ports.iter().map(port).collect()),
            });
        }
    }
    slices
}

fn slice_metadata(service: &Service, what: &str) -> ObjectMeta {
    let meta = &service.metadata;
    let own = meta.name.clone().unwrap_or_default();
    let hash = what.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let mut labels = meta.labels.clone().unwrap_or_default();
    labels.insert("kubernetes.io/service-name".into(), own.clone());
    labels.insert("endpointslice.kubernetes.io/managed-by".into(), "nodeagent".into());
    if service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None") {
        labels.insert("service.kubernetes.io/headless".into(), String::new());
    }
    ObjectMeta {
        name: Some(format!("{own}-{:05x}", hash & 0xf_ffff)),
        namespace: meta.namespace.clone(),
        uid: meta.uid.as_ref().map(|uid| format!("{uid}-{hash:08x}")),
        labels: Some(labels),
        owner_references: Some(vec![OwnerReference {
            api_version: "v1".into(),
            kind: "Service".into(),
            name: own,
            uid: meta.uid.clone().unwrap_or_default(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }]),
        ..ObjectMeta::default()
    }
}

fn slice_endpoint(endpoint: &Endpoint, node: &str) -> SliceEndpoint {
    let pod = &endpoint.pod;
    SliceEndpoint {
        addresses: vec![endpoint.ip.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(endpoint.ready),
            serving: Some(endpoint.serving),
            terminating: Some(pod.terminating),
        }),
        hostname: endpoint.hostname.clone(),
        node_name: Some(node.to_owned()),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".into()),
            namespace: Some(pod.namespace.clone()),
            name: Some(pod.name.clone()),
            uid: Some(pod.uid.clone()),
            ..ObjectReference::default()
        }),
        ..SliceEndpoint::default()
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    fn service(more: &Value) -> Service {
        let mut spec = json!({
            "selector": {"app": "web"}, "clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5"], "ipFamilies": ["IPv4"],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": "http"}],
        });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "shop", "uid": "u"}, "spec": spec})).unwrap()
    }

    /// `ready`, `unready`, `ending` (ready, but terminating) or `over`.
    fn pod(name: &str, ip: &str, state: &str) -> Arc<Facts> {
        Arc::new(Facts {
            namespace: "shop".into(),
            name: name.into(),
            labels: [("app".to_owned(), "web".to_owned())].into(),
            ips: vec![ip.parse().unwrap()],
            ready: matches!(state, "ready" | "ending"),
            terminating: state == "ending",
            finished: state == "over",
            hostname: Some(name.into()),
            subdomain: Some("web".into()),
            ports: vec![("http".into(), Protocol::Tcp, 8080)],
            ..Facts::default()
        })
    }

    #[rstest]
    #[case(json!({}), &["ready", "ready"], "10.0.0.1:8080 10.0.0.2:8080")]
    #[case(json!({}), &["ready", "unready"], "10.0.0.1:8080")]
    #[case(json!({}), &["unready", "over"], "")]
    #[case(json!({}), &["ready", "ending"], "10.0.0.1:8080")]
    #[case::the_last_ones_serve_to_their_end(json!({}), &["unready", "ending"], "10.0.0.2:8080")]
    #[case(json!({"publishNotReadyAddresses": true}), &["unready", "ready"], "10.0.0.1:8080 10.0.0.2:8080")]
    #[case(json!({"selector": {"app": "other"}}), &["ready"], "")]
    #[case(json!({"selector": {}}), &["ready"], "")]
    #[case(json!({"ports": [{"port": 80, "targetPort": "https"}]}), &["ready"], "")]
    #[case(json!({"ports": [{"port": 80, "targetPort": 9}]}), &["ready"], "10.0.0.1:9")]
    #[case(json!({"ipFamilies": ["IPv6"]}), &["ready"], "")]
    #[case::all_are_on_this_node(
        json!({"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local", "type": "NodePort"}),
        &["ready", "ready"],
        "10.0.0.1:8080 10.0.0.2:8080"
    )]
    fn who_gets_connections(#[case] more: Value, #[case] states: &[&str], #[case] expected: &str) {
        let pods: Vec<_> =
            states.iter().zip(1..).map(|(state, n)| pod(&format!("p{n}"), &format!("10.0.0.{n}"), state)).collect();
        let service = service(&more);
        let balanced = balanced(&service, &of(&service, &pods));
        let shown: Vec<String> = balanced[0].endpoints.iter().map(ToString::to_string).collect();
        assert_eq!(shown.join(" "), expected);
    }

    #[test]
    fn slices_show_all_that_there_is() {
        let service = service(&json!({}));
        let pods = [pod("a", "10.0.0.1", "ready"), pod("b", "10.0.0.2", "ending"), pod("c", "10.0.0.3", "unready")];
        let slices = slices(&service, &of(&service, &pods), "node");
        assert_eq!(slices.len(), 1);
        let conditions: Vec<_> = slices[0].endpoints.as_ref().unwrap().iter().map(|e| e.conditions.clone().unwrap()).collect();
        let shown: Vec<_> = conditions.iter().map(|c| (c.ready.unwrap(), c.serving.unwrap(), c.terminating.unwrap())).collect();
        assert_eq!(shown, [(true, true, false), (false, true, true), (false, false, false)]);
        assert_eq!(slices[0].endpoints.as_ref().unwrap()[0].hostname.as_deref(), Some("a"));
        assert_eq!(super::slices(&service, &[], "node")[0].endpoints.as_ref().unwrap().len(), 0);
    }

    #[test]
    fn a_hundred_endpoints_fill_a_slice() {
        let service = service(&json!({}));
        let pods: Vec<_> = (0..150).map(|n| pod(&format!("p{n}"), &format!("10.0.1.{n}"), "ready")).collect();
        let slices = slices(&service, &of(&service, &pods), "node");
        let mut sizes: Vec<usize> = slices.iter().map(|slice| slice.endpoints.as_ref().unwrap().len()).collect();
        sizes.sort_unstable();
        assert_eq!(sizes, [50, 100]);
        assert_ne!(slices[0].metadata.name, slices[1].metadata.name);
    }
}
