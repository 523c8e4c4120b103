//! Services, NetworkPolicies and names of files: what they come to on this node. Addresses are given when an object is read, so that
//! whoever sees a Service sees its address; the [`controller`] follows objects and pods and tells netplug, the resolver and the API.
//! All that is computed is pure: [`endpoints`], [`policies`], [`zone`].

mod addresses;
pub mod controller;
pub mod endpoints;
pub mod facts;
pub mod policies;
pub mod zone;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use k8s_openapi::api::core::v1::Service;
use netplug::dns::Zone;
use tokio::sync::{mpsc, oneshot};

pub use addresses::Addresses;
use facts::Facts;

use crate::model::{Body, ObjectKind, ObjectRef, Origin, ValidObject, ValidPod};

/// What the rest of the agent has of services: cheap to ask, and silent where services are off.
#[derive(Debug, Default)]
pub struct Services {
    on: Option<On>,
    /// Whether the pods are wired by others, who know nothing of our files.
    foreign: bool,
}

#[derive(Debug)]
struct On {
    addresses: Mutex<Addresses>,
    /// Services that don't have all that they ask for, as they ask, and what stands in the way.
    refused: Mutex<BTreeMap<ObjectRef, Refused>>,
    /// Whether any NetworkPolicy is in force: then a pod waits for it before it begins.
    guarded: Arc<AtomicBool>,
    names: Arc<RwLock<Arc<Zone>>>,
    messages: mpsc::UnboundedSender<Message>,
}

type Refused = (Arc<Service>, Origin, Vec<String>);

/// What the controller is told beside changes in the store.
#[derive(Debug)]
pub(crate) enum Message {
    /// The sources have told all that there is.
    AllTold,
    /// A pod got its addresses and waits until its policies are in force.
    Wired(Arc<Facts>, oneshot::Sender<()>),
}

/// The controller's end.
#[derive(Debug)]
pub struct Inbox {
    pub(crate) messages: mpsc::UnboundedReceiver<Message>,
    pub(crate) guarded: Arc<AtomicBool>,
    pub(crate) names: Arc<RwLock<Arc<Zone>>>,
}

impl Services {
    /// Services get their addresses from here.
    pub fn new(addresses: Addresses) -> (Self, Inbox) {
        let (sender, messages) = mpsc::unbounded_channel();
        let guarded = Arc::new(AtomicBool::new(false));
        let names = Arc::<RwLock<Arc<Zone>>>::default();
        let inbox = Inbox { messages, guarded: guarded.clone(), names: names.clone() };
        let on = On { addresses: Mutex::new(addresses), refused: Mutex::default(), guarded, names, messages: sender };
        (Self { on: Some(on), foreign: false }, inbox)
    }

    /// CNI plugins wire the pods: Services and policies of files have no effect, and whoever writes one is told.
    pub fn foreign() -> Self {
        Self { on: None, foreign: true }
    }

    /// Gives a Service what it leaves open: addresses, node ports. What can't be as the file says is told, as events.
    pub fn admit(&self, object: ValidObject) -> (ValidObject, Vec<String>) {
        let kind = object.key().kind;
        if self.foreign && matches!(kind, ObjectKind::Service | ObjectKind::NetworkPolicy) {
            let ObjectRef { namespace, name, .. } = object.key();
            let kind = kind.as_str();
            let wrong =
                format!("{kind} {namespace}/{name} has no effect: CNI plugins wire the pods, not the agent's own network");
            return (object, vec![wrong]);
        }
        let (Some(on), Body::Service(service)) = (&self.on, object.body()) else { return (object, Vec::new()) };
        let mut given = Service::clone(service);
        let wrong = on.lock().assign(&mut given);
        let origin = object.origin().clone();
        let mut refused = on.refused();
        if wrong.is_empty() {
            refused.remove(object.key());
        } else {
            refused.insert(object.key().clone(), (service.clone(), origin.clone(), wrong.clone()));
        }
        (ValidObject::trusted(Body::Service(Arc::new(given)), origin), wrong)
    }

    /// Services that get now what they were refused: who had it has let it go.
    pub fn again(&self) -> Vec<ValidObject> {
        let Some(on) = &self.on else { return Vec::new() };
        let (mut addresses, mut refused) = (on.lock(), on.refused());
        let mut better = Vec::new();
        for (service, origin, before) in refused.values_mut() {
            let mut given = Service::clone(service);
            let wrong = addresses.assign(&mut given);
            if wrong != *before {
                better.push(ValidObject::trusted(Body::Service(Arc::new(given)), origin.clone()));
                *before = wrong;
            }
        }
        refused.retain(|_, (.., wrong)| !wrong.is_empty());
        better
    }

    /// The names that pods' questions are answered from, now.
    pub fn names(&self) -> Arc<Zone> {
        self.on.as_ref().map(|on| on.names.read().unwrap_or_else(PoisonError::into_inner).clone()).unwrap_or_default()
    }

    /// The object is gone: its addresses are free.
    pub fn forget(&self, key: &ObjectRef) {
        if let (Some(on), ObjectKind::Service) = (&self.on, key.kind) {
            on.lock().release(key);
            on.refused().remove(key);
        }
    }

    /// The sources have told all that there is: addresses of Services that weren't told are free.
    pub fn all_told(&self) {
        if let Some(on) = &self.on {
            on.lock().release_untold();
            let _ = on.messages.send(Message::AllTold);
        }
    }

    /// A pod got its addresses; returns when the policies that are in force know it. Without policies, at once.
    pub async fn wired(&self, pod: &ValidPod, ips: &[IpAddr]) {
        let Some(on) = &self.on else { return };
        if !on.guarded.load(Ordering::Acquire) {
            return;
        }
        let (done, known) = oneshot::channel();
        let mut facts = Facts::of(pod.object());
        facts.ips = ips.to_vec();
        if on.messages.send(Message::Wired(Arc::new(facts), done)).is_ok() {
            let _ = known.await;
        }
    }
}

impl On {
    fn lock(&self) -> std::sync::MutexGuard<'_, Addresses> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refused(&self) -> std::sync::MutexGuard<'_, BTreeMap<ObjectRef, Refused>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether two lists are of the very same objects.
fn same<T>(a: &[Arc<T>], b: &[Arc<T>]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b))
}
