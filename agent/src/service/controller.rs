//! Follows pods and objects in the store, and tells what they come to: netplug, the resolver, the API's EndpointSlices. What did not
//! change costs nothing: a pod that became ready concerns the Services that select it alone.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use netplug::dns::Resolver;
use netplug::{Cidr, Network, Rules};
use tokio::sync::{broadcast, oneshot};
use tokio::time::Instant;

use super::endpoints::{self, Endpoint};
use super::facts::Facts;
use super::policies::{Pods, Resolved};
use super::{Inbox, Message, same, zone};
use crate::model::namespaced_name;
use crate::pod::recorder::{Level, Recorder};
use crate::pod::store::Store;

/// Pods of an agent before this one are waited for so long, before what it had in force is replaced by what is known.
const ADOPTION: Duration = Duration::from_secs(5);
/// After a failure.
const AGAIN: Duration = Duration::from_secs(1);

/// What the controller is made of.
#[derive(Debug)]
pub struct Controller {
    /// The node's name.
    pub node: String,
    /// Such as `cluster.local`.
    pub domain: String,
    /// Where Services' addresses are from.
    pub ranges: Vec<Cidr>,
    /// What is followed, and where EndpointSlices go.
    pub store: Arc<Store>,
    /// Tells what goes wrong.
    pub recorder: Recorder,
    /// Where rules are enforced.
    pub network: Network,
    /// Where names are told, if there is a resolver.
    pub resolver: Option<Resolver>,
}

/// What a Service came to, and of what.
struct Computed {
    service: Arc<Service>,
    endpoints: Vec<Endpoint>,
    slices: Vec<EndpointSlice>,
    balanced: Vec<Arc<netplug::Service>>,
}

#[derive(Default)]
struct State {
    /// By UID, with the object that they were read from.
    facts: HashMap<String, (Arc<Pod>, Arc<Facts>)>,
    /// Pods whose addresses aren't in the store yet.
    wired: HashMap<String, Arc<Facts>>,
    pods: Pods,
    computed: BTreeMap<String, Computed>,
    policies: Vec<Arc<NetworkPolicy>>,
    namespaces: Vec<Arc<Namespace>>,
    resolved: Resolved,
    /// Who waits for the next rules.
    waiting: Vec<oneshot::Sender<()>>,
    told: bool,
    /// Pods of an agent before this one that haven't been seen yet.
    missing: HashSet<String>,
    failed: bool,
    /// Whether what is known was told to all.
    in_force: bool,
}

impl Controller {
    /// Until the store's end.
    pub async fn run(self, mut inbox: Inbox) {
        // Before, no pod has an address.
        self.network.up().await;
        let mut pods = self.store.pods().changes;
        let mut services = self.store.workloads::<Service>().changes;
        let mut policies = self.store.workloads::<NetworkPolicy>().changes;
        let mut namespaces = self.store.workloads::<Namespace>().changes;
        let missing = self.network.attached().await.unwrap_or_default().into_iter().map(|lease| lease.uid).collect();
        let mut state = State { missing, ..State::default() };
        let adopted = Instant::now() + ADOPTION;
        loop {
            let again = if state.failed { Some(Instant::now() + AGAIN) } else { (!state.missing.is_empty()).then_some(adopted) };
            let open = tokio::select! {
                change = pods.recv() => is_open(&change),
                change = services.recv() => is_open(&change),
                change = policies.recv() => is_open(&change),
                change = namespaces.recv() => is_open(&change),
                message = inbox.messages.recv() => match message {
                    Some(message) => {
                        state.hear(message);
                        true
                    }
                    None => false,
                },
                () = tokio::time::sleep_until(again.unwrap_or(adopted)), if again.is_some() => true,
            };
            if !open {
                return;
            }
            // What came at once is one change.
            while let Ok(message) = inbox.messages.try_recv() {
                state.hear(message);
            }
            drain(&mut pods);
            drain(&mut services);
            drain(&mut policies);
            drain(&mut namespaces);
            if Instant::now() >= adopted {
                state.missing.clear();
            }
            self.settle(&mut state, &inbox).await;
        }
    }

    async fn settle(&self, state: &mut State, inbox: &Inbox) {
        let pods = state.look(&self.store);
        let services = self.store.workloads::<Service>().objects;
        let changed = self.compute(state, services, &pods) | !pods.is_empty();
        let policies = self.store.workloads::<NetworkPolicy>().objects;
        let namespaces = self.store.workloads::<Namespace>().objects;
        let others = !same(&policies, &state.policies) || !same(&namespaces, &state.namespaces);
        (state.policies, state.namespaces) = (policies, namespaces);
        if others || !pods.is_empty() {
            state.resolved.update(&state.policies, &state.namespaces, &state.pods, &pods);
        }
        // Pods wait from now on: who asks after this is heard before the next rules.
        inbox.guarded.store(!state.policies.is_empty(), Ordering::Release);
        state.in_force &= !changed && !others && state.waiting.is_empty();
        if state.told && state.missing.is_empty() && !state.in_force {
            self.tell(state, inbox).await;
            state.in_force = !state.failed;
        }
    }

    /// Computes the Services anew that changed, or that select pods that did. Whether there are any.
    fn compute(&self, state: &mut State, services: Vec<Arc<Service>>, changed: &Pods) -> bool {
        let mut before = std::mem::take(&mut state.computed);
        let mut any = false;
        for service in services {
            let key = namespaced_name(&service.metadata);
            let namespace = service.metadata.namespace.as_deref().unwrap_or("default");
            let concerned = || changed.get(namespace).into_iter().flatten().any(|pod| endpoints::selects(&service, pod));
            let old = match before.remove(&key) {
                Some(old) if Arc::ptr_eq(&old.service, &service) && !concerned() => {
                    state.computed.insert(key, old);
                    continue;
                }
                old => old,
            };
            any = true;
            let endpoints = endpoints::of(&service, state.pods.get(namespace).map_or(&[], Vec::as_slice));
            let external = service.spec.as_ref().and_then(|s| s.type_.as_deref()) == Some("ExternalName");
            let slices = if external { Vec::new() } else { endpoints::slices(&service, &endpoints, &self.node) };
            self.show(old.as_ref().map_or(&[], |old| &old.slices), &slices);
            let balanced = endpoints::balanced(&service, &endpoints).into_iter().map(Arc::new).collect();
            state.computed.insert(key, Computed { service, endpoints, slices, balanced });
        }
        for gone in before.values() {
            any = true;
            self.show(&gone.slices, &[]);
        }
        any
    }

    fn show(&self, old: &[EndpointSlice], new: &[EndpointSlice]) {
        for gone in old.iter().filter(|old| !new.iter().any(|new| new.metadata.name == old.metadata.name)) {
            self.store.remove_endpoint_slice(gone);
        }
        for slice in new.iter().filter(|slice| !old.contains(slice)) {
            self.store.put_endpoint_slice(slice.clone());
        }
    }

    async fn tell(&self, state: &mut State, inbox: &Inbox) {
        self.enforce(state).await;
        let services = state.computed.values().map(|computed| (&*computed.service, computed.endpoints.as_slice()));
        let zone = Arc::new(zone::zone(&self.domain, services, &state.pods));
        *inbox.names.write().unwrap_or_else(PoisonError::into_inner) = zone.clone();
        if let Some(resolver) = &self.resolver {
            resolver.set(zone);
        }
    }

    async fn enforce(&self, state: &mut State) {
        let rules = Rules {
            service_ranges: self.ranges.clone(),
            services: state.computed.values().flat_map(|computed| computed.balanced.iter().cloned()).collect(),
            policies: state.resolved.all(),
        };
        match self.network.enforce(rules).await {
            Ok(()) => {
                if std::mem::take(&mut state.failed) {
                    self.recorder.node(Level::Normal, "NetworkRules", "Services and network policies are in force again");
                }
                state.waiting.drain(..).for_each(|waiting| {
                    let _ = waiting.send(());
                });
            }
            Err(error) => {
                if !std::mem::replace(&mut state.failed, true) {
                    self.recorder.node(Level::Warning, "NetworkRulesFailed", &format!("{error}: tried again"));
                }
            }
        }
    }
}

impl State {
    fn hear(&mut self, message: Message) {
        match message {
            Message::AllTold => self.told = true,
            Message::Wired(facts, done) => {
                self.wired.insert(facts.uid.clone(), facts);
                self.waiting.push(done);
            }
        }
    }

    /// Reads the pods. Those that are of other facts than before: as they were, and as they are.
    fn look(&mut self, store: &Store) -> Pods {
        let mut before = std::mem::take(&mut self.facts);
        let mut now: Pods = Pods::new();
        for pod in store.pods().objects {
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            let read = match before.remove(&uid) {
                Some((old, facts)) if Arc::ptr_eq(&old, &pod) => facts,
                Some((_, old)) => {
                    let facts = Facts::of(&pod);
                    if *old == facts { old } else { Arc::new(facts) }
                }
                None => Arc::new(Facts::of(&pod)),
            };
            let facts = self.addressed(&uid, &read);
            if !facts.ips.is_empty() {
                self.missing.remove(&uid);
            }
            now.entry(facts.namespace.clone()).or_default().push(facts);
            self.facts.insert(uid, (pod, read));
        }
        self.wired.retain(|uid, _| self.facts.contains_key(uid));
        let changed = different(&self.pods, &now);
        self.pods = now;
        changed
    }

    /// With the addresses that the pod was wired with, until its status has them.
    fn addressed(&mut self, uid: &str, read: &Arc<Facts>) -> Arc<Facts> {
        let Some(wired) = self.wired.get(uid) else { return read.clone() };
        if read.ips == wired.ips || read.finished {
            self.wired.remove(uid);
            return read.clone();
        }
        Arc::new(Facts { ips: wired.ips.clone(), ..Facts::clone(read) })
    }
}

/// The pods that aren't in both, by namespace.
fn different(before: &Pods, now: &Pods) -> Pods {
    let (before, now) = (by_uid(before), by_uid(now));
    let mut changed = Pods::new();
    for (pods, others) in [(&before, &now), (&now, &before)] {
        for pod in pods.values().filter(|pod| others.get(pod.uid.as_str()) != Some(*pod)) {
            changed.entry(pod.namespace.clone()).or_default().push(Arc::clone(pod));
        }
    }
    changed
}

fn by_uid(pods: &Pods) -> HashMap<&str, &Arc<Facts>> {
    pods.values().flatten().map(|pod| (pod.uid.as_str(), pod)).collect()
}

/// Changes that were missed are seen all the same: all is read anew.
fn is_open<T>(change: &Result<T, broadcast::error::RecvError>) -> bool {
    !matches!(change, Err(broadcast::error::RecvError::Closed))
}

fn drain<T: Clone>(changes: &mut broadcast::Receiver<T>) {
    while matches!(changes.try_recv(), Ok(_) | Err(broadcast::error::TryRecvError::Lagged(_))) {}
}
