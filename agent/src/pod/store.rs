//! The pods and events as the node sees them now. One writer (the workers), many readers (the API, the command line, reports).
//! Knows no I/O.

pub mod objects;
pub mod workloads;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, PoisonError, RwLock};

use k8s_openapi::api::core::v1::{Event, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tokio::sync::broadcast;

use crate::model::PodUid;

/// Changes that a watcher may fall behind by before it has to list again (HTTP 410, as etcd's compaction).
const HISTORY: usize = 256;
/// Events that are kept, oldest dropped first.
const EVENTS: usize = 2000;

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// It is new.
    Added,
    /// It is another than before.
    Modified,
    /// It is gone; the object is its last state.
    Deleted,
}

/// A change, with the object after it.
#[derive(Debug)]
pub struct Change<T> {
    /// The store's version after this change: also the object's `metadata.resourceVersion`.
    pub version: u64,
    /// What happened.
    pub verb: Verb,
    /// The object.
    pub object: Arc<T>,
}

impl<T> Clone for Change<T> {
    fn clone(&self) -> Self {
        Self { version: self.version, verb: self.verb, object: self.object.clone() }
    }
}

/// Objects of one kind by a key, with the changes that led to them.
#[derive(Debug)]
pub struct Table<K, T> {
    objects: BTreeMap<K, Arc<T>>,
    history: VecDeque<Change<T>>,
    changes: broadcast::Sender<Change<T>>,
}

impl<K: Ord, T> Table<K, T> {
    fn new() -> Self {
        Self { objects: BTreeMap::new(), history: VecDeque::new(), changes: broadcast::channel(256).0 }
    }

    fn record(&mut self, change: Change<T>) {
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(change.clone());
        // No receiver is no error: nobody watches now.
        let _ = self.changes.send(change);
    }

    fn put(&mut self, version: u64, key: K, object: Arc<T>) {
        let verb = match self.objects.insert(key, object.clone()) {
            Some(_) => Verb::Modified,
            None => Verb::Added,
        };
        self.record(Change { version, verb, object });
    }
}

/// A list as of one version, and the changes after it.
#[derive(Debug)]
pub struct Snapshot<T> {
    /// The store's version.
    pub version: u64,
    /// In the order of their keys.
    pub objects: Vec<Arc<T>>,
    /// What comes after. A receiver that lags gets `RecvError::Lagged`: list again.
    pub changes: broadcast::Receiver<Change<T>>,
}

/// What was missed, and what follows.
pub type Since<T> = (Vec<Change<T>>, broadcast::Receiver<Change<T>>);

/// A watch was asked to go on from a version that isn't remembered any more.
#[derive(Debug, thiserror::Error)]
#[error("too old resource version: {asked} ({oldest})")]
pub struct Expired {
    asked: u64,
    oldest: u64,
}

#[derive(Debug)]
struct Inner {
    version: u64,
    pods: Table<PodUid, Pod>,
    events: Table<String, Event>,
    event_order: VecDeque<String>,
    workloads: workloads::Workloads,
}

/// See the module's page.
#[derive(Debug)]
pub struct Store {
    inner: RwLock<Inner>,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            inner: RwLock::new(Inner {
                // Versions of one agent's life are above those of the lives before it, so that a watcher of an old one lists again.
                version: u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(1),
                pods: Table::new(),
                events: Table::new(),
                event_order: VecDeque::new(),
                workloads: workloads::Workloads::new(),
            }),
        }
    }
}

impl Store {
    /// Takes a pod's newest state and gives it its resourceVersion. A state equal to the stored one changes nothing.
    pub fn put_pod(&self, uid: &PodUid, mut pod: Pod) {
        let mut inner = self.write();
        if let Some(old) = inner.pods.objects.get(uid) {
            pod.metadata.resource_version.clone_from(&old.metadata.resource_version);
            if **old == pod {
                return;
            }
        }
        inner.version += 1;
        let version = inner.version;
        pod.metadata.resource_version = Some(version.to_string());
        inner.pods.put(version, uid.clone(), Arc::new(pod));
    }

    /// The pod is gone.
    pub fn remove_pod(&self, uid: &PodUid) {
        let mut inner = self.write();
        if let Some(old) = inner.pods.objects.remove(uid) {
            inner.version += 1;
            let version = inner.version;
            let mut pod = Arc::unwrap_or_clone(old);
            pod.metadata.resource_version = Some(version.to_string());
            inner.pods.record(Change { version, verb: Verb::Deleted, object: Arc::new(pod) });
        }
    }

    /// A pod by its UID.
    pub fn pod(&self, uid: &PodUid) -> Option<Arc<Pod>> {
        self.read().pods.objects.get(uid).cloned()
    }

    /// A pod by its names. Of two (one ending, its successor waiting) the one that isn't ending.
    pub fn pod_named(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let named = |m: &ObjectMeta| m.namespace.as_deref() == Some(namespace) && m.name.as_deref() == Some(name);
        let inner = self.read();
        let found = inner.pods.objects.values().filter(|p| named(&p.metadata));
        found.min_by_key(|p| p.metadata.deletion_timestamp.is_some()).cloned()
    }

    /// All pods, and what follows.
    pub fn pods(&self) -> Snapshot<Pod> {
        let inner = self.read();
        snapshot(inner.version, &inner.pods)
    }

    /// The changes to pods after `version`, then what follows.
    pub fn pods_since(&self, version: u64) -> Result<Since<Pod>, Expired> {
        since(&self.read().pods, version)
    }

    /// Takes an event. One of the same name replaces it: a repeated event counts up.
    pub fn put_event(&self, mut event: Event) {
        let mut inner = self.write();
        inner.version += 1;
        let version = inner.version;
        event.metadata.resource_version = Some(version.to_string());
        let key = format!(
            "{}/{}",
            event.metadata.namespace.as_deref().unwrap_or_default(),
            event.metadata.name.as_deref().unwrap_or_default()
        );
        if !inner.events.objects.contains_key(&key) {
            inner.event_order.push_back(key.clone());
            if inner.event_order.len() > EVENTS
                && let Some(oldest) = inner.event_order.pop_front()
            {
                inner.events.objects.remove(&oldest);
            }
        }
        inner.events.put(version, key, Arc::new(event));
    }

    /// An event by its names.
    pub fn event(&self, namespace: &str, name: &str) -> Option<Arc<Event>> {
        self.read().events.objects.get(&format!("{namespace}/{name}")).cloned()
    }

    /// All events, and what follows.
    pub fn events(&self) -> Snapshot<Event> {
        let inner = self.read();
        snapshot(inner.version, &inner.events)
    }

    /// The changes to events after `version`, then what follows.
    pub fn events_since(&self, version: u64) -> Result<Since<Event>, Expired> {
        since(&self.read().events, version)
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn snapshot<K, T>(version: u64, table: &Table<K, T>) -> Snapshot<T> {
    Snapshot { version, objects: table.objects.values().cloned().collect(), changes: table.changes.subscribe() }
}

fn since<K, T>(table: &Table<K, T>, version: u64) -> Result<Since<T>, Expired> {
    if let Some(first) = table.history.front().filter(|_| table.history.len() == HISTORY)
        && version + 1 < first.version
    {
        return Err(Expired { asked: version, oldest: first.version });
    }
    let missed = table.history.iter().filter(|c| c.version > version).cloned().collect();
    Ok((missed, table.changes.subscribe()))
}
