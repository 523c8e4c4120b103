//! Services and pods as names. Pure.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use netplug::dns::{Entry, Target, Zone};

use super::endpoints::Endpoint;
use super::facts::protocol;
use super::policies::Pods;

/// The names of these Services, with their endpoints, and of all pods.
pub fn zone<'a>(domain: &str, services: impl Iterator<Item = (&'a Service, &'a [Endpoint])>, pods: &Pods) -> Zone {
    let mut zone = Zone { domain: domain.to_ascii_lowercase(), ..Zone::default() };
    for pod in pods.values().flatten().filter(|pod| pod.reachable() && !pod.host_network) {
        zone.pods.insert((pod.namespace.clone(), pod.name.clone()), pod.ips.clone());
        let name = format!("{}.{}.svc.{domain}", pod.name, pod.namespace);
        if is_name(&name) {
            zone.reverse.extend(pod.ips.iter().map(|ip| (*ip, name.clone())));
        }
    }
    for (service, endpoints) in services {
        let Some(spec) = &service.spec else { continue };
        let namespace = service.metadata.namespace.clone().unwrap_or_else(|| "default".into());
        let name = service.metadata.name.clone().unwrap_or_default();
        let whole = format!("{name}.{namespace}.svc.{domain}");
        let entry = if spec.type_.as_deref() == Some("ExternalName") {
            let target = spec.external_name.as_deref().unwrap_or_default();
            Entry::External(target.trim_end_matches('.').to_ascii_lowercase())
        } else if spec.cluster_ip.as_deref() == Some("None") {
            let ready = endpoints.iter().filter(|endpoint| endpoint.ready);
            Entry::Headless(ready.map(|endpoint| target(endpoint, &whole, &mut zone)).collect())
        } else {
            let ips: Vec<IpAddr> = spec.cluster_ips.iter().flatten().filter_map(|ip| ip.parse().ok()).collect();
            zone.reverse.extend(ips.iter().map(|ip| (*ip, whole.clone())));
            let named = spec.ports.iter().flatten().filter_map(|port| {
                let name = port.name.clone().filter(|name| !name.is_empty())?;
                Some((name, protocol(port.protocol.as_deref()), u16::try_from(port.port).ok()?))
            });
            Entry::Cluster(ips, named.collect())
        };
        zone.services.insert((namespace, name), entry);
    }
    zone
}

/// Whether a message can have it (RFC 1035, 2.3.4): a pod's name, which may have 253 characters, isn't one for that.
fn is_name(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(|label| (1..=63).contains(&label.len()))
}

fn target(endpoint: &Endpoint, service: &str, zone: &mut Zone) -> Target {
    if let Some(hostname) = &endpoint.hostname {
        zone.reverse.insert(endpoint.ip, format!("{hostname}.{service}"));
    }
    let ports = endpoint.ports.iter().filter(|(name, ..)| !name.is_empty()).cloned().collect();
    Target { ip: endpoint.ip, hostname: endpoint.hostname.clone(), ports }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::service::facts::Facts;

    #[test]
    fn a_pod_has_a_reverse_name_if_it_can() {
        let pod = |name: String, last: u8| {
            Arc::new(Facts { namespace: "shop".into(), name, ips: vec![[10, 85, 0, last].into()], ..Facts::default() })
        };
        let pods: Pods = [("shop".to_owned(), vec![pod("web.v1".into(), 2), pod("x".repeat(64), 3)])].into();
        let zone = zone("cluster.local", std::iter::empty(), &pods);
        assert_eq!(zone.reverse, [([10, 85, 0, 2].into(), "web.v1.shop.svc.cluster.local".to_owned())].into());
    }
}
