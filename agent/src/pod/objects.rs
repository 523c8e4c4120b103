//! The objects that pods refer to, as the files have them now. One writer (the manager), many readers; who needs an object is told of
//! its changes, and nobody polls. Knows no I/O.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Secret, Service};
use tokio::sync::{Notify, oneshot};

use crate::model::{Body, ObjectKind, ObjectRef, Origin, PodUid, ValidObject, ValidPod};
use crate::runtime::recipe::env;

/// See the module's page.
#[derive(Debug, Default)]
pub struct Objects {
    inner: RwLock<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    objects: HashMap<ObjectRef, ValidObject>,
    watchers: HashMap<ObjectRef, Vec<Weak<Notify>>>,
}

/// The files' objects and the cluster's: two of them may have the same name, and a pod sees those of where it comes from itself.
#[derive(Debug, Default)]
pub struct ObjectSets {
    /// Of the files; the manager writes them.
    pub files: Objects,
    /// Of the API server, as far as its pods here refer to them; its source writes them.
    pub cluster: Objects,
    /// Of pods that begin before all that they refer to is known.
    asked: Mutex<HashMap<PodUid, Asked>>,
}

/// Ends, by a word or without, when there was an answer about all that a pod refers to, or none for too long.
pub type Asked = oneshot::Receiver<()>;

impl ObjectSets {
    /// The containers of a pod that will begin are to wait for this.
    pub fn ask(&self, uid: PodUid, asked: Asked) {
        self.asked().insert(uid, asked);
    }

    /// What the pod's containers wait for, if anything: told once, to who cares for the pod from now on.
    pub fn take_asked(&self, uid: &PodUid) -> Option<Asked> {
        self.asked().remove(uid)
    }

    fn asked(&self) -> MutexGuard<'_, HashMap<PodUid, Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that the pod can see.
    pub fn of(&self, pod: &ValidPod) -> &Objects {
        match pod.origin() {
            Origin::Api => &self.cluster,
            Origin::File { .. } | Origin::Stdin => &self.files,
        }
    }
}

/// What one pod needs: wakes when any of it changes. Its drop ends the watch.
#[derive(Debug, Default)]
pub struct Watch {
    keys: BTreeSet<ObjectRef>,
    /// Among which objects: the address of these. An adopted pod turns from the files' to the cluster's.
    of: usize,
    changed: Arc<Notify>,
}

impl Watch {
    /// Waits for the next change; of changes since the last wait, at once. Never, when nothing is watched.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

impl Objects {
    /// Takes an object's newest version.
    pub fn put(&self, object: ValidObject) {
        let mut inner = self.write();
        let key = object.key().clone();
        inner.objects.insert(key.clone(), object);
        inner.tell(&key);
    }

    /// The object is gone; its last version.
    pub fn remove(&self, key: &ObjectRef) -> Option<ValidObject> {
        let mut inner = self.write();
        let old = inner.objects.remove(key);
        inner.tell(key);
        old
    }

    /// No pod needs the object any more: its going is nobody's news, not even of a pod that is about to end.
    pub fn forget(&self, key: &ObjectRef) {
        self.write().objects.remove(key);
    }

    /// Wakes all who need objects of these kinds, as if these had changed.
    pub fn touch(&self, kinds: &[ObjectKind]) {
        let mut inner = self.write();
        let keys: Vec<ObjectRef> = inner.watchers.keys().filter(|key| kinds.contains(&key.kind)).cloned().collect();
        keys.iter().for_each(|key| inner.tell(key));
    }

    /// An object by its name.
    pub fn get(&self, key: &ObjectRef) -> Option<ValidObject> {
        self.read().objects.get(key).cloned()
    }

    /// All objects of a kind, ordered by namespace and name.
    pub fn of_kind(&self, kind: ObjectKind) -> Vec<ValidObject> {
        self.found(|key| key.kind == kind)
    }

    /// The Services of a namespace, ordered by name.
    pub fn services_of(&self, namespace: &str) -> Vec<ValidObject> {
        self.found(|key| key.kind == ObjectKind::Service && key.namespace == namespace)
    }

    fn found(&self, is_wanted: impl Fn(&ObjectRef) -> bool) -> Vec<ValidObject> {
        let mut found: Vec<_> = self.read().objects.values().filter(|object| is_wanted(object.key())).cloned().collect();
        found.sort_by(|a, b| a.key().cmp(b.key()));
        found
    }

    /// Sets what a watch is about. The same keys again cost nothing.
    pub fn watch(&self, watch: &mut Watch, keys: BTreeSet<ObjectRef>) {
        let of = std::ptr::from_ref(self).addr();
        if watch.keys == keys && watch.of == of {
            return;
        }
        watch.of = of;
        let mut inner = self.write();
        // A new signal: the old one is dropped, and with it the old keys' entries.
        watch.changed = Arc::new(Notify::new());
        for key in &keys {
            let waiting = inner.watchers.entry(key.clone()).or_default();
            waiting.retain(|w| w.strong_count() > 0);
            waiting.push(Arc::downgrade(&watch.changed));
        }
        watch.keys = keys;
        // What changed between the old watch and this one may not be known to the watcher.
        watch.changed.notify_one();
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn tell(&mut self, key: &ObjectRef) {
        let Some(waiting) = self.watchers.get_mut(key) else { return };
        waiting.retain(|watcher| match watcher.upgrade() {
            Some(changed) => {
                changed.notify_one();
                true
            }
            None => false,
        });
        if waiting.is_empty() {
            self.watchers.remove(key);
        }
    }
}

impl env::Objects for Objects {
    fn config_map(&self, namespace: &str, name: &str) -> Option<Arc<ConfigMap>> {
        match self.read().objects.get(&ObjectRef::new(ObjectKind::ConfigMap, namespace, name))?.body() {
            Body::ConfigMap(map) => Some(map.clone()),
            _ => None,
        }
    }

    fn secret(&self, namespace: &str, name: &str) -> Option<Arc<Secret>> {
        match self.read().objects.get(&ObjectRef::new(ObjectKind::Secret, namespace, name))?.body() {
            Body::Secret(secret) => Some(secret.clone()),
            _ => None,
        }
    }

    fn claim(&self, namespace: &str, name: &str) -> Option<Arc<PersistentVolumeClaim>> {
        match self.read().objects.get(&ObjectRef::new(ObjectKind::PersistentVolumeClaim, namespace, name))?.body() {
            Body::PersistentVolumeClaim(claim) => Some(claim.clone()),
            _ => None,
        }
    }

    fn services(&self, namespace: &str) -> Vec<Arc<Service>> {
        let here = self.services_of(namespace).into_iter();
        here.filter_map(|object| if let Body::Service(service) = object.body() { Some(service.clone()) } else { None }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config_map(name: &str, value: &str) -> ValidObject {
        let map = serde_json::json!({"metadata": {"name": name, "namespace": "default"}, "data": {"key": value}});
        ValidObject::trusted(Body::ConfigMap(Arc::new(serde_json::from_value(map).unwrap())), Origin::Stdin)
    }

    fn told(watch: &Watch) -> bool {
        use futures::FutureExt;
        watch.changed().now_or_never().is_some()
    }

    #[test]
    fn only_who_needs_an_object_is_told() {
        let objects = Objects::default();
        let (mut one, mut two) = (Watch::default(), Watch::default());
        let key = |name: &str| ObjectRef::new(ObjectKind::ConfigMap, "default", name);
        objects.watch(&mut one, [key("a")].into());
        objects.watch(&mut two, [key("b")].into());
        assert!(told(&one) && told(&two), "a new watch begins with a look");
        objects.put(config_map("a", "1"));
        assert!(told(&one) && !told(&two));
        objects.watch(&mut one, [key("a")].into());
        assert!(!told(&one), "the same keys are the same watch");
        objects.watch(&mut one, [key("b")].into());
        assert!(told(&one));
        objects.remove(&key("a"));
        assert!(!told(&one) && !told(&two));
        drop(two);
        objects.put(config_map("b", "2"));
        assert!(told(&one));
        objects.forget(&key("b"));
        assert!(objects.get(&key("b")).is_none() && !told(&one), "nobody needs it");
    }
    #[test]
    fn a_watch_that_turns_to_other_objects_hears_of_those() {
        let (files, cluster) = (Objects::default(), Objects::default());
        let mut watch = Watch::default();
        let keys = BTreeSet::from([ObjectRef::new(ObjectKind::ConfigMap, "default", "a")]);
        files.watch(&mut watch, keys.clone());
        cluster.watch(&mut watch, keys);
        assert!(told(&watch));
        files.put(config_map("a", "1"));
        assert!(!told(&watch));
        cluster.put(config_map("a", "2"));
        assert!(told(&watch));
    }
}
