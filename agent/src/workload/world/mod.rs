//! All workloads, what they own, and the pods: a state machine without I/O. It is told what the sources say and what becomes of the
//! pods, and [`World::settle`] says what follows: pods for the manager, objects for the API, files to be kept, events.
//!
//! # Guarantees
//! - What a look decides, the next look sees: no pod is made twice because its worker is slow to show it.
//! - Pods of an agent before this one are looked at again before anything is decided about them.

mod claims;
mod keep;
mod look;
mod make;

pub use make::needs_replacement;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::pods::Owned;
use super::{History, Said};
use crate::model::workload::defaults::job_identity;
use crate::model::{Origin, PodUid, ValidPod, ValidWorkload, Workload, WorkloadRef};
use crate::pod::store::{Change, Verb};
use crate::shutdown;
use crate::source::Event;

/// How long pods of an agent before this one are waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Looks at one tree before it is left for a moment: more than any rollout's steps that need no pod to change.
const LOOKS: usize = 64;

/// What a workload is to the world.
#[derive(Debug, Clone)]
struct Entry {
    object: Workload,
    /// The UID of what made it; none for what a file says.
    owner: Option<String>,
    root: String,
    origin: Origin,
    history: History,
}

#[derive(Debug, Clone)]
struct Record {
    pod: Arc<Pod>,
    owner: String,
    counted: bool,
    gone: bool,
    /// It was told to end.
    ending: bool,
    /// Of an agent before this one, and not seen since.
    unseen: bool,
}

/// What follows.
#[derive(Debug, Default)]
pub struct Effects {
    /// For the pod manager.
    pub events: Vec<Event>,
    /// For the store: newest states.
    pub changed: Vec<Workload>,
    /// For the store: what is gone.
    pub removed: Vec<Workload>,
    /// Events to be recorded.
    pub said: Vec<(ObjectReference, Said)>,
    /// By root: what a restart must know; none where there is nothing any more.
    pub saves: BTreeMap<String, Option<Vec<u8>>>,
}

/// Fills a buffer with chance.
pub type Chance = Box<dyn FnMut(&mut [u8]) + Send>;

/// See the module's page.
pub struct World {
    node: String,
    entries: BTreeMap<String, Entry>,
    pods: BTreeMap<PodUid, Record>,
    /// What the sources name.
    named: HashMap<WorkloadRef, String>,
    /// Kept from an agent before this one, and not named so far.
    unnamed: BTreeSet<String>,
    faults: BTreeSet<PathBuf>,
    settled_sources: bool,
    dirty: BTreeSet<String>,
    due: BTreeMap<String, Timestamp>,
    /// Until when unseen pods are waited for.
    patience: Option<Timestamp>,
    /// Pods of what is gone, by namespace and name, that are still ending: nobody else may have their names yet.
    leaving: HashMap<PodUid, (String, String)>,
    /// Claims that were told.
    claims: BTreeSet<(String, String)>,
    /// Claims that files give.
    given_claims: BTreeSet<(String, String)>,
    saved: HashMap<String, Vec<u8>>,
    chance: Chance,
    effects: Effects,
}

impl World {
    /// An empty one.
    pub fn new(node: &str, chance: Chance) -> Self {
        Self {
            node: node.to_owned(),
            entries: BTreeMap::new(),
            pods: BTreeMap::new(),
            named: HashMap::new(),
            unnamed: BTreeSet::new(),
            faults: BTreeSet::new(),
            settled_sources: false,
            dirty: BTreeSet::new(),
            due: BTreeMap::new(),
            patience: None,
            leaving: HashMap::new(),
            claims: BTreeSet::new(),
            given_claims: BTreeSet::new(),
            saved: HashMap::new(),
            chance,
            effects: Effects::default(),
        }
    }

    /// What a source says of workloads, files and claims.
    pub fn told(&mut self, event: &Event, now: Timestamp) {
        match event {
            Event::ApplyWorkload(workload) => self.apply(workload, now),
            Event::DeleteWorkload(key) => {
                if let Some(root) = self.named.remove(key) {
                    self.remove_tree(&root);
                }
            }
            Event::ApplyObject(object) if object.key().kind == crate::model::ObjectKind::PersistentVolumeClaim => {
                self.given_claims.insert((object.key().namespace.clone(), object.key().name.clone()));
            }
            Event::DeleteObject(key) if key.kind == crate::model::ObjectKind::PersistentVolumeClaim => {
                let key = (key.namespace.clone(), key.name.clone());
                self.given_claims.remove(&key);
                // A set that wants it has it again.
                if self.claims.remove(&key) {
                    self.dirty.extend(self.entries.values().map(|e| e.root.clone()));
                }
            }
            Event::Fault { file, .. } => {
                self.faults.insert(file.clone());
            }
            Event::Mended { file } => {
                self.faults.remove(file);
                self.forget_unnamed(now);
            }
            Event::InitDone => {
                self.settled_sources = true;
                self.forget_unnamed(now);
            }
            _ => {}
        }
    }

    /// What no source names any more goes, unless it is of a file that can't be understood now: then it runs on as it was.
    fn forget_unnamed(&mut self, now: Timestamp) {
        if !self.settled_sources {
            return;
        }
        for root in self.unnamed.clone() {
            let origin = self.entries.get(&root).map(|e| &e.origin);
            let doubt = matches!(origin, Some(Origin::File { path, .. }) if self.faults.contains(path));
            if doubt {
                self.resume(&root, now);
            } else {
                self.unnamed.remove(&root);
                self.remove_tree(&root);
            }
        }
    }

    fn apply(&mut self, new: &ValidWorkload, now: Timestamp) {
        let key = new.key();
        let known = self.named.get(key).cloned().or_else(|| {
            let root = self.unnamed.iter().find(|root| self.entries.get(*root).is_some_and(|e| e.object.key() == *key))?;
            Some(root.clone())
        });
        let Some(root) = known else { return self.begin(new, None, now) };
        if self.unnamed.remove(&root) {
            self.resume(&root, now);
        }
        self.named.insert(key.clone(), root.clone());
        let Some(entry) = self.entries.get_mut(&root) else { return };
        entry.origin = new.origin().clone();
        let mut wanted = new.object().clone();
        identify(&mut wanted, &root);
        if make::needs_replacement(&entry.object, &wanted) {
            let uid = self.random_uid();
            self.remove_tree(&root);
            return self.begin(new, Some(uid), now);
        }
        let generation = entry.object.metadata().generation.unwrap_or(1);
        if !entry.object.same_spec(&wanted) {
            entry.object.metadata_mut().generation = Some(generation + 1);
            entry.history.expired = false;
        }
        entry.object.take_spec(&wanted);
        self.dirty.insert(root);
    }

    fn begin(&mut self, new: &ValidWorkload, uid: Option<String>, now: Timestamp) {
        let mut object = new.object().clone();
        let metadata = object.metadata_mut();
        metadata.uid = uid.or(metadata.uid.take());
        metadata.generation = Some(1);
        metadata.creation_timestamp = Some(Time(now));
        let root = object.uid().to_owned();
        identify(&mut object, &root);
        let entry = Entry { object, owner: None, root: root.clone(), origin: new.origin().clone(), history: History::default() };
        self.named.insert(new.key().clone(), root.clone());
        self.entries.insert(root.clone(), entry);
        self.dirty.insert(root);
    }

    /// Pods of an agent before this one are wanted again.
    fn resume(&mut self, root: &str, now: Timestamp) {
        let owners = self.tree(root);
        let origin = self.entries.get(root).map_or(Origin::Stdin, |e| e.origin.clone());
        for record in self.pods.values().filter(|r| r.unseen && owners.contains(&r.owner)) {
            self.effects.events.push(Event::Apply(ValidPod::trusted(Pod::clone(&record.pod), origin.clone())));
        }
        self.patience.get_or_insert_with(|| now.checked_add(PATIENCE).unwrap_or(now));
        self.dirty.insert(root.to_owned());
    }

    /// What the store says of a pod.
    pub fn seen(&mut self, change: &Change<Pod>) {
        let uid = PodUid::new(change.object.metadata.uid.as_deref().unwrap_or_default());
        if change.verb == Verb::Deleted && self.leaving.remove(&uid).is_some() {
            self.dirty.extend(self.entries.values().map(|e| e.root.clone()));
        }
        let Some(record) = self.pods.get_mut(&uid) else { return };
        record.unseen = false;
        // It comes back with the node: nobody replaces it, and no Job counts it.
        if change.verb != Verb::Deleted && shutdown::keeps_down(&change.object) {
            return;
        }
        let mut pod = change.object.clone();
        if record.ending && pod.metadata.deletion_timestamp.is_none() {
            Arc::make_mut(&mut pod).metadata.deletion_timestamp.clone_from(&record.pod.metadata.deletion_timestamp);
        }
        record.pod = pod;
        record.gone = change.verb == Verb::Deleted;
        if let Some(entry) = self.entries.get(&record.owner) {
            self.dirty.insert(entry.root.clone());
        }
    }

    /// All pods, after changes were missed: what isn't among them is gone.
    pub fn seen_all(&mut self, pods: &[Arc<Pod>]) {
        for pod in pods {
            self.seen(&Change { version: 0, verb: Verb::Modified, object: pod.clone() });
        }
        let there: BTreeSet<&str> = pods.iter().filter_map(|p| p.metadata.uid.as_deref()).collect();
        let lost: Vec<Arc<Pod>> = self
            .pods
            .values()
            // One that its worker hasn't shown yet has no status.
            .filter(|r| r.pod.status.is_some() && !there.contains(r.pod.metadata.uid.as_deref().unwrap_or_default()))
            .map(|r| r.pod.clone())
            .collect();
        let left = self.leaving.len();
        self.leaving.retain(|uid, _| there.contains(uid.as_str()));
        if self.leaving.len() < left {
            self.dirty.extend(self.entries.values().map(|e| e.root.clone()));
        }
        for object in lost {
            self.seen(&Change { version: 0, verb: Verb::Deleted, object });
        }
    }

    /// When the next look is due without anything having changed.
    pub fn next_due(&self) -> Option<Timestamp> {
        let waits = self.patience.filter(|_| !self.dirty.is_empty());
        self.due.values().min().copied().into_iter().chain(waits).min()
    }

    /// Looks at all that changed or is due, until nothing follows any more.
    pub fn settle(&mut self, now: Timestamp) -> Effects {
        let due: Vec<String> = self.due.iter().filter(|(_, at)| **at <= now).map(|(root, _)| root.clone()).collect();
        self.dirty.extend(due);
        if self.patience.is_some_and(|end| end <= now) {
            self.pods.values_mut().for_each(|record| record.unseen = false);
            self.patience = None;
        }
        for root in std::mem::take(&mut self.dirty) {
            if !self.entries.contains_key(&root) || (self.unnamed.contains(&root) && !self.settled_sources) {
                continue;
            }
            if self.pods.values().any(|r| r.unseen && self.entries.get(&r.owner).is_some_and(|e| e.root == root)) {
                self.dirty.insert(root);
                continue;
            }
            self.due.remove(&root);
            self.settle_tree(&root, now);
            self.publish(&root);
            self.save(&root);
        }
        std::mem::take(&mut self.effects)
    }

    fn settle_tree(&mut self, root: &str, now: Timestamp) {
        for _ in 0..LOOKS {
            let mut changed = false;
            self.due.remove(root);
            for uid in self.tree(root) {
                changed |= self.look(&uid, now);
            }
            if !changed {
                return;
            }
        }
        // Something goes back and forth: not all of the processor for it.
        self.wake(root, now.checked_add(Duration::from_secs(1)).unwrap_or(now), now);
    }

    fn wake(&mut self, root: &str, at: Timestamp, now: Timestamp) {
        let at = at.max(now.checked_add(Duration::from_millis(20)).unwrap_or(now));
        let due = self.due.entry(root.to_owned()).or_insert(at);
        *due = at.min(*due);
    }

    /// The root and what it made, owners before what they own.
    fn tree(&self, root: &str) -> Vec<String> {
        let mut found = vec![root.to_owned()];
        let mut next = 0;
        while let Some(owner) = found.get(next).cloned() {
            found.extend(self.children(&owner).map(|(uid, _)| uid.clone()));
            next += 1;
        }
        found
    }

    fn children<'a>(&'a self, owner: &'a str) -> impl Iterator<Item = (&'a String, &'a Entry)> {
        self.entries.iter().filter(move |(_, e)| e.owner.as_deref() == Some(owner))
    }

    fn owned(&self, owner: &str) -> Vec<Owned> {
        let own = self.pods.values().filter(|r| r.owner == owner);
        own.map(|r| Owned { pod: r.pod.clone(), counted: r.counted, gone: r.gone }).collect()
    }

    fn publish(&mut self, root: &str) {
        for uid in self.tree(root) {
            let Some(entry) = self.entries.get(&uid) else { continue };
            let list = if entry.history.expired { &mut self.effects.removed } else { &mut self.effects.changed };
            list.push(entry.object.clone());
        }
    }

    /// An object goes with all that it made.
    fn drop_branch(&mut self, branch: &str) {
        for uid in self.tree(branch) {
            let own: Vec<PodUid> = self.pods.iter().filter(|(_, r)| r.owner == uid).map(|(uid, _)| uid.clone()).collect();
            for pod in own {
                if let Some(record) = self.pods.remove(&pod).filter(|r| !r.gone) {
                    self.leaving.insert(pod.clone(), names(&record.pod));
                }
                self.effects.events.push(Event::Delete(pod));
            }
            if let Some(entry) = self.entries.remove(&uid) {
                self.drop_claims(&entry);
                self.effects.removed.push(entry.object);
            }
        }
    }

    /// The whole tree goes, with all its pods.
    fn remove_tree(&mut self, root: &str) {
        self.drop_branch(root);
        self.due.remove(root);
        self.dirty.remove(root);
        self.saved.remove(root);
        self.effects.saves.insert(root.to_owned(), None);
    }

    fn random_uid(&mut self) -> String {
        let mut bytes = [0; 16];
        (self.chance)(&mut bytes);
        // RFC 9562: version 4, variant 10.
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        let hex = format!("{:032x}", u128::from_be_bytes(bytes));
        format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }
}

fn names(pod: &Pod) -> (String, String) {
    (pod.metadata.namespace.clone().unwrap_or_default(), pod.metadata.name.clone().unwrap_or_default())
}

/// A Job's pods are known by its UID.
fn identify(workload: &mut Workload, uid: &str) {
    if let Workload::Job(job) = workload {
        let job = Arc::make_mut(job);
        let name = job.metadata.name.clone().unwrap_or_default();
        if let Some(spec) = &mut job.spec {
            job_identity(spec, &name, uid);
        }
    }
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").field("entries", &self.entries.len()).field("pods", &self.pods.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
