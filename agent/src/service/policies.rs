//! NetworkPolicies and pods to addresses: what netplug enforces. Pure. What is kept makes a pod that changes cost as much as the
//! policies that speak of it, however many pods and policies there are.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use netplug::{Allow, Cidr, Peers, Policy, Ports};

use super::facts::{Facts, protocol};
use super::same;
use crate::model::namespaced_name;
use crate::model::validate::selects;

/// All pods, by namespace.
pub type Pods = BTreeMap<String, Vec<Arc<Facts>>>;

/// What the policies come to.
#[derive(Debug, Default)]
pub struct Resolved {
    /// By namespace and name, with the object that each is of.
    policies: BTreeMap<String, (Arc<NetworkPolicy>, Arc<Policy>)>,
    namespaces: Vec<Arc<Namespace>>,
}

impl Resolved {
    /// Brings it up to date. `changed`: pods that aren't as they were, as they were and as they are.
    pub fn update(&mut self, policies: &[Arc<NetworkPolicy>], namespaces: &[Arc<Namespace>], pods: &Pods, changed: &Pods) {
        let all = !same(&self.namespaces, namespaces);
        self.namespaces = namespaces.to_vec();
        let changed_pods = relevant(changed);
        // A pod may have been the last of its namespace.
        let context = Context { namespaces: labels(namespaces, pods.keys().chain(changed.keys())), pods };
        let mut before = std::mem::take(&mut self.policies);
        for policy in policies {
            let key = namespaced_name(&policy.metadata);
            let concerned = || all || changed_pods.iter().any(|pod| context.concerns(policy, pod));
            let old = match before.remove(&key) {
                Some((object, old)) if Arc::ptr_eq(&object, policy) && !concerned() => {
                    self.policies.insert(key, (object, old));
                    continue;
                }
                old => old.map(|(_, old)| old),
            };
            let Some(new) = context.policy(policy) else { continue };
            let new = old.filter(|old| **old == new).unwrap_or_else(|| Arc::new(new));
            self.policies.insert(key, (policy.clone(), new));
        }
    }

    /// For netplug: what is as it was is the same `Arc`.
    pub fn all(&self) -> Vec<Arc<Policy>> {
        self.policies.values().map(|(_, policy)| policy.clone()).collect()
    }
}

/// Those that changed in what policies look at: whether a pod is ready isn't.
fn relevant(changed: &Pods) -> Vec<&Arc<Facts>> {
    let mut by_uid: HashMap<&str, Vec<&Arc<Facts>>> = HashMap::new();
    for pod in changed.values().flatten().filter(|pod| is_visible(pod)) {
        by_uid.entry(&pod.uid).or_default().push(pod);
    }
    let alike = |a: &Facts, b: &Facts| a.namespace == b.namespace && a.labels == b.labels && a.ips == b.ips && a.ports == b.ports;
    let states = by_uid.into_values();
    states.filter(|states| !matches!(&states[..], [a, b] if alike(a, b))).flatten().collect()
}

/// Has a network of its own: what has the node's isn't told apart from the node.
fn is_visible(pod: &Facts) -> bool {
    pod.reachable() && !pod.host_network
}

/// Whether a selector takes a pod; one that isn't there takes all.
fn fits(selector: Option<&LabelSelector>, pod: &Facts) -> bool {
    selector.is_none_or(|selector| selects(selector, &pod.labels))
}

/// Each namespace's labels: its object's, if there is one, and its name.
fn labels<'a>(objects: &[Arc<Namespace>], used: impl Iterator<Item = &'a String>) -> BTreeMap<String, BTreeMap<String, String>> {
    let named = |name: &str| [("kubernetes.io/metadata.name".to_owned(), name.to_owned())].into();
    let mut all: BTreeMap<String, BTreeMap<String, String>> = used.map(|name| (name.clone(), named(name))).collect();
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
        let selected: Vec<&Arc<Facts>> = self.of(namespace).filter(|pod| fits(spec.pod_selector.as_ref(), pod)).collect();
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

    /// Whether what a policy comes to depends on a pod.
    fn concerns(&self, policy: &NetworkPolicy, pod: &Facts) -> bool {
        let Some(spec) = policy.spec.as_ref() else { return false };
        let namespace = policy.metadata.namespace.as_deref().unwrap_or("default");
        let selected = || pod.namespace == namespace && fits(spec.pod_selector.as_ref(), pod);
        let from = || spec.ingress.iter().flatten().flat_map(|rule| rule.from.iter().flatten());
        let to = || spec.egress.iter().flatten().flat_map(|rule| rule.to.iter().flatten());
        let by_name = |port: &NetworkPolicyPort| matches!(port.port, Some(IntOrString::String(_)));
        // Named ports of everybody.
        let everybody = || {
            let mut to_all = spec.egress.iter().flatten().filter(|rule| rule.to.as_ref().is_none_or(Vec::is_empty));
            to_all.any(|rule| rule.ports.iter().flatten().any(by_name))
        };
        selected() || from().chain(to()).any(|peer| self.is_peer(namespace, peer, pod)) || everybody()
    }

    fn is_peer(&self, own: &str, peer: &NetworkPolicyPeer, pod: &Facts) -> bool {
        let namespace = match &peer.namespace_selector {
            None => pod.namespace == own,
            Some(selector) => self.namespaces.get(&pod.namespace).is_some_and(|labels| selects(selector, labels)),
        };
        peer.ip_block.is_none() && namespace && fits(peer.pod_selector.as_ref(), pod)
    }

    /// Pods of a namespace.
    fn of(&self, namespace: &str) -> impl Iterator<Item = &Arc<Facts>> {
        self.pods.get(namespace).into_iter().flatten().filter(|pod| is_visible(pod))
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
        let pods = namespaces.into_iter().flat_map(|namespace| self.of(namespace));
        pods.filter(|pod| fits(peer.pod_selector.as_ref(), pod)).collect()
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
        let mut resolved = Resolved::default();
        resolved.update(&policies, &[Arc::new(serde_json::from_value(lab).unwrap())], &pods(), &Pods::new());
        Policy::clone(&resolved.all()[0])
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

    /// A few policies of all kinds, by number.
    fn some(number: usize) -> Arc<NetworkPolicy> {
        let peer = |app: &str| json!({"podSelector": {"matchLabels": {"app": app}}});
        let team = json!({"namespaceSelector": {"matchLabels": {"team": "a"}}});
        let spec = match number {
            0 => json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [peer("a0")]}]}),
            1 => json!({"podSelector": {"matchLabels": {"app": "a1"}}, "policyTypes": ["Egress"], "egress": [{"to": [team]}]}),
            2 => {
                json!({"podSelector": {"matchLabels": {"app": "a2"}}, "policyTypes": ["Egress"], "egress": [{"ports": [{"port": "http"}]}]})
            }
            3 => {
                json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [team], "ports": [{"port": "http"}]}]})
            }
            _ => json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),
        };
        let metadata = json!({"name": format!("p{number}"), "namespace": if number == 3 { "n1" } else { "n0" }});
        Arc::new(serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap())
    }

    proptest::proptest! {
        /// However pods come, change and go: what is kept is what would be made of all of it.
        #[test]
        fn step_by_step_is_all_at_once(
            edits in proptest::collection::vec((0..4u8, 0..2u8, 0..3u8, 0..4u8, 0..6usize, proptest::bool::ANY), 1..24),
        ) {
            let policies: Vec<_> = (0..5).map(some).collect();
            let lab = |labels: Value| serde_json::from_value(json!({"metadata": {"name": "n1", "labels": labels}})).unwrap();
            let labs: [Vec<Arc<Namespace>>; 2] = [Vec::new(), vec![Arc::new(lab(json!({"team": "a"})))]];
            let mut resolved = Resolved::default();
            let mut current: BTreeMap<u8, Arc<Facts>> = BTreeMap::new();
            let grouped = |pods: Vec<Arc<Facts>>| {
                let mut all = Pods::new();
                pods.into_iter().for_each(|pod| all.entry(pod.namespace.clone()).or_default().push(pod));
                all
            };
            for (pod, namespace, app, state, without, lab) in edits {
                let facts = Facts {
                    uid: format!("u{pod}"),
                    namespace: format!("n{namespace}"),
                    name: format!("p{pod}"),
                    labels: [("app".to_owned(), format!("a{app}"))].into(),
                    ips: vec![[10, 0, 0, pod].into()],
                    ready: state == 1,
                    finished: state == 2,
                    ports: vec![("http".into(), Tcp, 8080)],
                    ..Facts::default()
                };
                let old = current.remove(&pod);
                let new = (state != 3).then(|| Arc::new(facts));
                current.extend(new.clone().map(|new| (pod, new)));
                let changed = grouped(old.into_iter().chain(new).collect());
                let pods = grouped(current.values().cloned().collect());
                let policies: Vec<_> = policies.iter().enumerate().filter(|(n, _)| *n != without).map(|(_, p)| p.clone()).collect();
                resolved.update(&policies, &labs[usize::from(lab)], &pods, &changed);
                let mut at_once = Resolved::default();
                at_once.update(&policies, &labs[usize::from(lab)], &pods, &Pods::new());
                proptest::prop_assert_eq!(resolved.all(), at_once.all());
            }
        }
    }

    #[test]
    fn who_is_not_spoken_of_changes_nothing() {
        let policies = [some(1)];
        let mut resolved = Resolved::default();
        resolved.update(&policies, &[], &pods(), &Pods::new());
        let before = resolved.all();
        let mut changed = pods();
        for pod in changed.values_mut().flatten() {
            *pod = Arc::new(Facts { ready: true, ..Facts::clone(pod) });
        }
        resolved.update(&policies, &[], &changed, &changed);
        assert!(Arc::ptr_eq(&before[0], &resolved.all()[0]));
    }
}
