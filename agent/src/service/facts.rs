//! What services, policies and names must know of a pod, and no more: as long as it is the same, nothing has to be done.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use netplug::Protocol;

/// See the module's page.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// metadata.uid.
    pub uid: String,
    /// metadata.namespace.
    pub namespace: String,
    /// metadata.name.
    pub name: String,
    /// metadata.labels.
    pub labels: BTreeMap<String, String>,
    /// status.podIPs.
    pub ips: Vec<IpAddr>,
    /// It has the node's own addresses.
    pub host_network: bool,
    /// The condition Ready.
    pub ready: bool,
    /// It was told to end.
    pub terminating: bool,
    /// It has ended for good.
    pub finished: bool,
    /// spec.hostname, if it is set.
    pub hostname: Option<String>,
    /// spec.subdomain.
    pub subdomain: Option<String>,
    /// Its named ports.
    pub ports: Vec<(String, Protocol, u16)>,
}

impl Facts {
    /// Of a pod as the API shows it.
    pub fn of<'a>(pod: &'a Pod) -> Self {
        let (meta, status) = (&pod.metadata, pod.status.as_ref());
        let spec = pod.spec.as_ref();
        // A port of an init container that ends is nobody's whom a Service could mean.
        let stays = |init: &&Container| init.restart_policy.as_deref() == Some("Always");
        let sidecars = |s: &'a PodSpec| s.init_containers.iter().flatten().filter(stays);
        let containers = spec.into_iter().flat_map(|s| s.containers.iter().chain(sidecars(s)));
        let conditions = status.into_iter().flat_map(|s| s.conditions.iter().flatten());
        let set = |text: Option<&String>| text.filter(|text| !text.is_empty()).cloned();
        Self {
            uid: meta.uid.clone().unwrap_or_default(),
            namespace: meta.namespace.clone().unwrap_or_else(|| "default".into()),
            name: meta.name.clone().unwrap_or_default(),
            labels: meta.labels.clone().unwrap_or_default(),
            ips: addresses(pod),
            host_network: spec.is_some_and(|s| s.host_network == Some(true)),
            ready: conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True"),
            terminating: meta.deletion_timestamp.is_some(),
            finished: matches!(status.and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed")),
            hostname: set(spec.and_then(|s| s.hostname.as_ref())),
            subdomain: set(spec.and_then(|s| s.subdomain.as_ref())),
            ports: containers
                .flat_map(|c| c.ports.iter().flatten())
                .filter_map(|p| Some((p.name.clone()?, protocol(p.protocol.as_deref()), u16::try_from(p.container_port).ok()?)))
                .collect(),
        }
    }

    /// Whether anything can be sent to it.
    pub fn reachable(&self) -> bool {
        !self.finished && !self.ips.is_empty()
    }
}

/// status.podIPs.
pub fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let ips = pod.status.iter().flat_map(|status| status.pod_ips.iter().flatten());
    ips.filter_map(|ip| ip.ip.parse().ok()).collect()
}

/// A protocol as manifests write it; TCP unless they do.
pub fn protocol(text: Option<&str>) -> Protocol {
    text.and_then(|text| text.parse().ok()).unwrap_or(Protocol::Tcp)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_named_port_is_of_who_stays() {
        let container = |name: &str, port: u16, more: &str| json!({"name": name, "image": "i", "ports": [{"name": "http", "containerPort": port}], "restartPolicy": more});
        let init = [container("setup", 1, "Never"), container("proxy", 2, "Always")];
        let pod = json!({"metadata": {}, "spec": {"initContainers": init, "containers": [{"name": "app", "ports": [{"name": "http", "containerPort": 3}]}]}});
        let ports: Vec<u16> = Facts::of(&serde_json::from_value(pod).unwrap()).ports.iter().map(|(_, _, port)| *port).collect();
        assert_eq!(ports, [3, 2]);
    }
}
