//! Files' contents to events: a state machine without I/O. It remembers each file's last good pods and objects, who holds which, and
//! which errors were told.
//!
//! # Guarantees
//! - A document that is wrong changes nothing: its last good version stays. Nothing of a file is deleted while it has an error.
//! - Of two places that claim one pod or object, the first stays and the second is told; when the first gives it up the second gets it.
//! - A change costs what the changed files cost, however many others there are.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use ring::digest;

use super::Event;
use super::sealed::{Keys, unsealed_name};
use crate::model::{self, Defaults, FileError, ObjectRef, Origin, PodUid, ValidObject, ValidPod, ValidWorkload, WorkloadRef};

/// What a file is now.
#[derive(Debug)]
pub enum Content {
    /// Its bytes.
    Bytes(Vec<u8>),
    /// It can't be read, and why. Its last good version stays.
    Unreadable(String),
    /// It isn't there.
    Gone,
}

/// See the module's page.
#[derive(Debug)]
pub struct Folder {
    defaults: Defaults,
    keys: Keys,
    files: BTreeMap<PathBuf, File>,
    /// Files with something that another place holds.
    shadowed: BTreeSet<PathBuf>,
    held: HashMap<Id, Held>,
    names: HashMap<String, Id>,
}

#[derive(Debug, Default)]
struct File {
    digest: Option<[u8; 32]>,
    items: Vec<Item>,
    /// What is wrong with the file itself.
    errors: Vec<FileError>,
    /// What the last `Fault` said.
    told: Vec<FileError>,
    /// What of them this file holds.
    holds: Vec<Id>,
}

#[derive(Debug)]
struct Held {
    file: PathBuf,
    item: Item,
}

/// What a file can hold.
#[derive(Debug, Clone)]
enum Item {
    Object(ValidObject),
    Pod(ValidPod),
    Workload(ValidWorkload),
}

/// An item's identity. Objects are before pods.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Id {
    Object(ObjectRef),
    Pod(PodUid),
    Workload(WorkloadRef),
}

impl Item {
    fn id(&self) -> Id {
        match self {
            Self::Object(object) => Id::Object(object.key().clone()),
            Self::Pod(pod) => Id::Pod(pod.uid().clone()),
            Self::Workload(workload) => Id::Workload(workload.key().clone()),
        }
    }

    /// What no two of a kind share.
    fn name(&self) -> String {
        match self {
            Self::Object(o) => format!("{} {}/{}", o.key().kind.as_str(), o.key().namespace, o.key().name),
            Self::Pod(pod) => pod.to_string(),
            Self::Workload(workload) => workload.key().to_string(),
        }
    }

    fn origin(&self) -> &Origin {
        match self {
            Self::Object(object) => object.origin(),
            Self::Pod(pod) => pod.origin(),
            Self::Workload(workload) => workload.origin(),
        }
    }

    fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Object(a), Self::Object(b)) => a.body() == b.body(),
            (Self::Pod(a), Self::Pod(b)) => a.object() == b.object(),
            (Self::Workload(a), Self::Workload(b)) => a.object() == b.object(),
            _ => false,
        }
    }

    fn applied(&self) -> Event {
        match self {
            Self::Object(object) => Event::ApplyObject(object.clone()),
            Self::Pod(pod) => Event::Apply(pod.clone()),
            Self::Workload(workload) => Event::ApplyWorkload(workload.clone()),
        }
    }
}

impl Folder {
    /// Nothing is known yet.
    pub fn new(defaults: Defaults, keys: Keys) -> Self {
        Self { defaults, keys, files: BTreeMap::new(), shadowed: BTreeSet::new(), held: HashMap::new(), names: HashMap::new() }
    }

    /// The files that are known.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.keys().map(PathBuf::as_path)
    }

    /// Whether the file could not be read when last tried.
    pub fn unreadable(&self, file: &Path) -> bool {
        self.files.get(file).is_some_and(|f| f.digest.is_none())
    }

    /// Takes what changed at one moment, and tells what follows of it. A pod that moves between the files of one call is neither
    /// deleted nor made again.
    pub fn change(&mut self, changes: Vec<(PathBuf, Content)>) -> Vec<Event> {
        let mut before = HashMap::new();
        let mut touched = self.shadowed.clone();
        let mut events = Vec::new();
        for (path, content) in changes {
            if self.take(&path, content, &mut before, &mut events) {
                touched.insert(path);
            }
        }
        for path in &touched {
            self.release(path, &mut before);
        }
        let refused = self.claim_all(&touched, &before);
        self.tell_items(&before, &touched, &mut events);
        self.tell_faults(touched, refused, &mut events);
        events
    }

    /// Whether the file is another than before.
    fn take(&mut self, path: &Path, content: Content, before: &mut HashMap<Id, Held>, events: &mut Vec<Event>) -> bool {
        match content {
            Content::Gone => {
                self.release(path, before);
                self.shadowed.remove(path);
                match self.files.remove(path) {
                    Some(file) if !file.told.is_empty() => events.push(Event::Mended { file: path.to_path_buf() }),
                    Some(_) => {}
                    None => return false,
                }
            }
            Content::Unreadable(why) => {
                let file = self.files.entry(path.to_path_buf()).or_default();
                file.digest = None;
                file.errors = vec![FileError::whole(path, why)];
            }
            Content::Bytes(bytes) => return self.parse(path, &bytes),
        }
        true
    }

    fn parse(&mut self, path: &Path, bytes: &[u8]) -> bool {
        let digest = digest_of(bytes);
        let file = self.files.entry(path.to_path_buf()).or_default();
        if file.digest == Some(digest) {
            return false;
        }
        file.digest = Some(digest);
        let opened = path.file_name().and_then(unsealed_name).map(|_| self.keys.open(bytes)).transpose();
        let plain = match &opened {
            Ok(opened) => opened.as_deref().unwrap_or(bytes),
            Err(why) => {
                file.errors = vec![FileError::whole(path, why.as_str())];
                return true;
            }
        };
        let mut loaded = model::load(path, plain, &self.defaults);
        let mut items: Vec<Item> = loaded.objects.into_iter().map(Item::Object).collect();
        items.extend(loaded.pods.into_iter().map(Item::Pod));
        items.extend(loaded.workloads.into_iter().map(Item::Workload));
        // An editor or `>` empties a file before it writes it: that isn't a wish to have its pods deleted.
        if bytes.iter().all(u8::is_ascii_whitespace) && !file.items.is_empty() {
            let message = "the file is empty: its last good version runs on; remove the file to end its pods";
            loaded.errors.push(FileError::whole(path, message));
        }
        loaded.errors.extend(keep_immutable(path, &file.items, &mut items));
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        if !loaded.errors.is_empty() {
            let replaced = |old: &Item| items.iter().any(|new| new.id() == old.id() || new.name() == old.name());
            let kept: Vec<Item> = file.items.drain(..).filter(|old| !replaced(old)).collect();
            items.extend(kept);
        }
        file.items = items;
        file.errors = loaded.errors;
        true
    }

    fn release(&mut self, path: &Path, before: &mut HashMap<Id, Held>) {
        let Some(file) = self.files.get_mut(path) else { return };
        for id in file.holds.drain(..) {
            if let Some(held) = self.held.remove(&id) {
                self.names.remove(&held.item.name());
                before.insert(id, held);
            }
        }
    }

    /// Gives each touched file what is free; who held one before comes first. Gives back the claims that failed.
    fn claim_all(&mut self, touched: &BTreeSet<PathBuf>, before: &HashMap<Id, Held>) -> BTreeMap<PathBuf, Vec<FileError>> {
        let mut refused: BTreeMap<PathBuf, Vec<FileError>> = BTreeMap::new();
        for holders_turn in [true, false] {
            for path in touched {
                let Some(file) = self.files.get_mut(path) else { continue };
                for item in &file.items {
                    let id = item.id();
                    if before.get(&id).is_some_and(|h| h.file == *path) != holders_turn {
                        continue;
                    }
                    let holder = self.held.get(&id).or_else(|| self.held.get(self.names.get(&item.name())?));
                    if let Some(holder) = holder {
                        refused.entry(path.clone()).or_default().push(duplicate(path, item, holder));
                        continue;
                    }
                    self.names.insert(item.name(), id.clone());
                    self.held.insert(id.clone(), Held { file: path.clone(), item: item.clone() });
                    file.holds.push(id);
                }
            }
        }
        refused
    }

    /// What is gone, then objects, then the pods that may need them.
    fn tell_items(&self, before: &HashMap<Id, Held>, touched: &BTreeSet<PathBuf>, events: &mut Vec<Event>) {
        let mut gone: Vec<Id> = before.keys().filter(|id| !self.held.contains_key(id)).cloned().collect();
        gone.sort();
        events.extend(gone.into_iter().rev().map(|id| match id {
            Id::Pod(uid) => Event::Delete(uid),
            Id::Object(key) => Event::DeleteObject(key),
            Id::Workload(key) => Event::DeleteWorkload(key),
        }));
        let same = |id: &Id, held: &Held| before.get(id).is_some_and(|old| old.file == held.file && old.item.same(&held.item));
        let held = touched.iter().filter_map(|path| self.files.get(path)).flat_map(|file| &file.holds);
        let changed = held.filter_map(|id| self.held.get(id).filter(|held| !same(id, held)));
        let (pods, objects): (Vec<_>, Vec<_>) = changed.partition(|held| !matches!(held.item, Item::Object(_)));
        events.extend(objects.into_iter().chain(pods).map(|held| held.item.applied()));
    }

    fn tell_faults(
        &mut self,
        touched: BTreeSet<PathBuf>,
        mut refused: BTreeMap<PathBuf, Vec<FileError>>,
        events: &mut Vec<Event>,
    ) {
        for path in touched {
            let Some(file) = self.files.get_mut(&path) else { continue };
            let mut errors = file.errors.clone();
            match refused.remove(&path) {
                Some(more) => {
                    errors.extend(more);
                    self.shadowed.insert(path.clone());
                }
                None => {
                    self.shadowed.remove(&path);
                }
            }
            if errors == file.told {
                continue;
            }
            file.told.clone_from(&errors);
            events.push(if errors.is_empty() { Event::Mended { file: path } } else { Event::Fault { file: path, errors } });
        }
    }
}

/// `immutable: true` is kept: an edit of the values is told, and the old ones stay until the object is deleted.
fn keep_immutable(path: &Path, old: &[Item], new: &mut Vec<Item>) -> Vec<FileError> {
    let mut errors = Vec::new();
    new.retain(|item| {
        let Item::Object(object) = item else { return true };
        let before = old.iter().find_map(|i| match i {
            Item::Object(o) if o.key() == object.key() && o.immutable() => Some(o),
            _ => None,
        });
        let keep = before.is_none_or(|before| before.same_data(object));
        if !keep {
            let message = "Forbidden: field is immutable when `immutable` is set: delete the object and make a new one".into();
            errors.push(FileError { file: path.into(), line: line(item), column: 1, field: "data".into(), message });
        }
        keep
    });
    errors
}

fn line(item: &Item) -> usize {
    match item.origin() {
        Origin::File { line, .. } => *line,
        Origin::Stdin | Origin::Api => 1,
    }
}

fn digest_of(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

fn duplicate(path: &Path, item: &Item, holder: &Held) -> FileError {
    let place = match holder.item.origin() {
        Origin::File { path, line } => format!("{}:{line}", path.display()),
        Origin::Stdin => "standard input".into(),
        Origin::Api => "the API server".into(),
    };
    let (field, value) = match &holder.item {
        Item::Pod(other) if other.to_string() != item.name() => ("metadata.uid", other.uid().to_string()),
        _ => ("metadata.name", item.name()),
    };
    let what = match item {
        Item::Pod(_) => "pod",
        Item::Object(_) => "object",
        Item::Workload(_) => "workload",
    };
    let message = format!("Duplicate value: {value:?}: {place} has this {what} already, and keeps it");
    FileError { file: path.to_path_buf(), line: line(item), column: 1, field: field.into(), message }
}
