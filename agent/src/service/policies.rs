//! NetworkPolicies and pods to addresses: what netplug enforces. Pure.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use netplug::{Allow, Cidr, Peers, Policy, Ports};

use super::facts::{Facts, protocol};
use crate::model::validate::selects;

/// All pods, by namespace.
pub type Pods = BTreeMap<String, Vec<Arc<Facts>>>;

/// What the policies come to.
pub fn resolve(policies: &[Arc<NetworkPolicy>], namespaces: &[Arc<Namespace>], pods: &Pods) -> Vec<Policy> {
    let context = Context { namespaces: labels(namespaces, pods), pods };
    policies.iter().filter_map(|policy| context.policy(policy)).collect()
}

/// Each namespace's labels: its object's, if there is one, and its name.
fn labels(objects: &[Arc<Namespace>], pods: &Pods) -> BTreeMap<String, BTreeMap<String, String>> {
    let named = |name: &str| [("kubernetes.io/metadata.name".to_owned(), name.to_owned())].into();
    let mut all: BTreeMap<String, BTreeMap<String, String>> = pods.keys().map(|name| (name.clone(), named(name))).collect();
    for object in objects {
        let name = object.metadata.name.clone().unwrap_or_default();
        let own = object.metadata.labels.iter().flatten().map(|(key, value)| (key.clone(), value.clone()));
        all.entry(name.clone()).or_insert_with(|| named(&name)).extend(own);
    }
    all
}

struct Context<'a> {
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
    pods: &'a Pods,
}

impl Context<'_> {
    fn policy(&self, policy: &NetworkPolicy) -> Option<Policy> {
        let spec = policy.spec.as_ref()?;
        let namespace = policy.metadata.namespace.as_deref().unwrap_or("default");
        let name = policy.metadata.name.as_deref().unwrap_or_default();
        let selector = spec.pod_selector.clone().unwrap_or_default();
        let selected: Vec<&Arc<Facts>> = self.of(namespace).filter(|pod| selects(&selector, &pod.labels)).collect();
        let speaks_of = |kind: &str| spec.policy_types.iter().flatten().any(|own| own == kind);
        let ingress = speaks_of("Ingress").then(|| {
            let rules = spec.ingress.iter().flatten();
            rules.map(|rule| self.allow(namespace, rule.from.as_deref(), rule.ports.as_deref(), Some(&selected))).collect()
        });
        let egress = speaks_of("Egress").then(|| {
            let rules = spec.egress.iter().flatten();
            rules.map(|rule| self.allow(namespace, rule.to.as_deref(), rule.ports.as_deref(), None)).collect()
        });
        let pods = selected.iter().flat_map(|pod| pod.ips.iter().copied()).collect();
        Some(Policy { name: format!("{namespace}/{name}"), pods, ingress, egress })
    }

    /// Pods of a namespace that have a network of their own: what has the node's isn't told apart from the node.
    fn of(&self, namespace: &str) -> impl Iterator<Item = &Arc<Facts>> {
        self.pods.get(namespace).into_iter().flatten().filter(|pod| pod.reachable() && !pod.host_network)
    }

    /// `called`: the pods whose named ports are meant; None: the peers.
    fn allow(
        &self,
        namespace: &str,
        peers: Option<&[NetworkPolicyPeer]>,
        ports: Option<&[NetworkPolicyPort]>,
        called: Option<&[&Arc<Facts>]>,
    ) -> Allow {
        let given = peers.filter(|peers| !peers.is_empty());
        let pods: Vec<&Arc<Facts>> = match given {
            Some(peers) => {
                peers.iter().filter(|peer| peer.ip_block.is_none()).flat_map(|peer| self.peer(namespace, peer)).collect()
            }
            None => self.pods.keys().flat_map(|namespace| self.of(namespace)).collect(),
        };
        let called = called.unwrap_or(&pods);
        let ports = ports.filter(|ports| !ports.is_empty());
        let ports = ports.map(|ports| ports.iter().filter_map(|port| resolve_port(port, called)).collect());
        let peers = given.map(|peers| Peers {
            pods: pods.iter().flat_map(|pod| pod.ips.iter().copied()).collect(),
            blocks: peers.iter().filter_map(block).collect(),
        });
        Allow { peers, ports }
    }

    fn peer(&self, own: &str, peer: &NetworkPolicyPeer) -> Vec<&Arc<Facts>> {
        let namespaces: Vec<&str> = match &peer.namespace_selector {
            None => vec![own],
            Some(selector) => {
                let fitting = self.namespaces.iter().filter(|(_, labels)| selects(selector, labels));
                fitting.map(|(name, _)| name.as_str()).collect()
            }
        };
        let selector = peer.pod_selector.clone().unwrap_or_default();
        namespaces.into_iter().flat_map(|namespace| self.of(namespace)).filter(|pod| selects(&selector, &pod.labels)).collect()
    }
}

fn block(peer: &NetworkPolicyPeer) -> Option<(Cidr, Vec<Cidr>)> {
    let block = peer.ip_block.as_ref()?;
    let except = block.except.iter().flatten().filter_map(|cidr| Cidr::around(cidr).ok()).collect();
    Some((Cidr::around(&block.cidr).ok()?, except))
}

fn resolve_port(port: &NetworkPolicyPort, called: &[&Arc<Facts>]) -> Option<Ports> {
    let protocol = protocol(port.protocol.as_deref());
    Some(match &port.port {
        None => Ports::Range(protocol, None),
        Some(IntOrString::Int(first)) => {
            let first = u16::try_from(*first).ok()?;
            let last = port.end_port.and_then(|last| u16::try_from(last).ok()).unwrap_or(first);
            Ports::Range(protocol, Some((first, last)))
        }
        Some(IntOrString::String(name)) => {
            let targets = called.iter().flat_map(|pod| {
                let own = pod.ports.iter().filter(|(own, p, _)| own == name && *p == protocol);
                own.flat_map(move |(_, _, number)| pod.ips.iter().map(move |ip| SocketAddr::new(*ip, *number)))
            });
            Ports::Named(protocol, targets.collect())
        }
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;
    use netplug::Protocol::Tcp;

    fn pods() -> Pods {
        let pod = |namespace: &str, name: &str, ip: &str, host_network: bool| {
            Arc::new(Facts {
                namespace: namespace.into(),
                name: name.into(),
                labels: [("app".to_owned(), name.to_owned())].into(),
                ips: vec![ip.parse().unwrap()],
                host_network,
                ports: vec![("http".into(), Tcp, 8080)],
                ..Facts::default()
            })
        };
        [
            ("shop".to_owned(), vec![pod("shop", "web", "10.0.0.1", false), pod("shop", "db", "10.0.0.2", false)]),
            ("lab".to_owned(), vec![pod("lab", "web", "10.0.1.1", false), pod("lab", "agent", "192.0.2.1", true)]),
        ]
        .into()
    }

    fn resolved(spec: &Value) -> Policy {
        let policy = json!({"metadata": {"name": "p", "namespace": "shop"}, "spec": spec});
        let lab = json!({"metadata": {"name": "lab", "labels": {"team": "a"}}});
        let policies = [Arc::new(serde_json::from_value(policy).unwrap())];
        resolve(&policies, &[Arc::new(serde_json::from_value(lab).unwrap())], &pods()).remove(0)
    }

    #[rstest]
    #[case(json!({"podSelector": {}}), "10.0.0.1 10.0.0.2")]
    #[case(json!({"podSelector": {"matchLabels": {"app": "web"}}}), "10.0.0.1")]
    #[case(json!({"namespaceSelector": {}}), "10.0.1.1 10.0.0.1 10.0.0.2")]
    #[case(json!({"namespaceSelector": {"matchLabels": {"team": "a"}}}), "10.0.1.1")]
    #[case(json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "shop"}}}), "10.0.0.1 10.0.0.2")]
    #[case(json!({"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "web"}}}), "10.0.1.1 10.0.0.1")]
    #[case(json!({"namespaceSelector": {"matchLabels": {"team": "b"}}}), "")]
    fn peers(#[case] peer: Value, #[case] expected: &str) {
        let policy = resolved(&json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [peer]}]}));
        let found = policy.ingress.unwrap()[0].peers.clone().unwrap();
        assert_eq!(found.pods.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "), expected);
        assert_eq!((policy.pods.len(), policy.egress), (2, None));
    }

    #[test]
    fn nobody_and_everybody_are_not_the_same() {
        let policy = resolved(&json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": [{}]}));
        assert_eq!(policy.ingress, Some(vec![Allow { peers: None, ports: None }]));
        assert_eq!(policy.egress, Some(Vec::new()));
    }

    #[test]
    fn ports_and_blocks() {
        let ports = json!([{"port": 80, "endPort": 90, "protocol": "UDP"}, {"port": "http"}, {"protocol": "TCP"}]);
        let block = json!({"ipBlock": {"cidr": "10.1.2.3/8", "except": ["10.2.0.0/16"]}});
        let rule = json!({"ports": ports, "to": [block, {"podSelector": {"matchLabels": {"app": "db"}}}]});
        let policy = resolved(&json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [rule]}));
        let allow = policy.egress.unwrap().remove(0);
        let named = Ports::Named(Tcp, vec!["10.0.0.2:8080".parse().unwrap()]);
        let range = Ports::Range(netplug::Protocol::Udp, Some((80, 90)));
        assert_eq!(allow.ports, Some(vec![range, named, Ports::Range(Tcp, None)]));
        let blocks = vec![("10.0.0.0/8".parse().unwrap(), vec!["10.2.0.0/16".parse().unwrap()])];
        assert_eq!(allow.peers.unwrap().blocks, blocks);
    }
}
