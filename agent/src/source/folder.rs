//! Files' contents to events: a state machine without I/O. It remembers each file's last good pods, who holds which pod, and which
//! errors were told.
//!
//! # Guarantees
//! - A document that is wrong changes nothing: its last good version stays. Nothing of a file is deleted while it has an error.
//! - Of two places that claim one pod, the first stays and the second is told; when the first gives it up the second gets it.
//! - A change costs what the changed files cost, however many others there are.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use ring::digest;

use super::Event;
use crate::model::{self, Defaults, FileError, Origin, PodUid, ValidPod};

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
    files: BTreeMap<PathBuf, File>,
    /// Files with a pod that another place holds.
    shadowed: BTreeSet<PathBuf>,
    held: HashMap<PodUid, Held>,
    names: HashMap<String, PodUid>,
}

#[derive(Debug, Default)]
struct File {
    digest: Option<[u8; 32]>,
    pods: Vec<ValidPod>,
    /// What is wrong with the file itself.
    errors: Vec<FileError>,
    /// What the last `Fault` said.
    told: Vec<FileError>,
    /// The pods that this file holds.
    holds: Vec<PodUid>,
}

#[derive(Debug)]
struct Held {
    file: PathBuf,
    pod: ValidPod,
}

impl Folder {
    /// Nothing is known yet.
    pub fn new(defaults: Defaults) -> Self {
        Self { defaults, files: BTreeMap::new(), shadowed: BTreeSet::new(), held: HashMap::new(), names: HashMap::new() }
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
        self.tell_pods(before, &touched, &mut events);
        self.tell_faults(touched, refused, &mut events);
        events
    }

    /// Whether the file is another than before.
    fn take(&mut self, path: &Path, content: Content, before: &mut HashMap<PodUid, Held>, events: &mut Vec<Event>) -> bool {
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
        let mut loaded = model::load(path, bytes, &self.defaults);
        // An editor or `>` empties a file before it writes it: that isn't a wish to have its pods deleted.
        if bytes.iter().all(u8::is_ascii_whitespace) && !file.pods.is_empty() {
            let message = "the file is empty: its last good version runs on; remove the file to end its pods";
            loaded.errors.push(FileError::whole(path, message));
        }
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        if !loaded.errors.is_empty() {
            let replaced = |old: &ValidPod| loaded.pods.iter().any(|new| new.uid() == old.uid() || name(new) == name(old));
            let kept: Vec<ValidPod> = file.pods.drain(..).filter(|old| !replaced(old)).collect();
            loaded.pods.extend(kept);
        }
        file.pods = loaded.pods;
        file.errors = loaded.errors;
        true
    }

    fn release(&mut self, path: &Path, before: &mut HashMap<PodUid, Held>) {
        let Some(file) = self.files.get_mut(path) else { return };
        for uid in file.holds.drain(..) {
            if let Some(held) = self.held.remove(&uid) {
                self.names.remove(&name(&held.pod));
                before.insert(uid, held);
            }
        }
    }

    /// Gives each touched file the pods that are free; who held one before comes first. Gives back the claims that failed.
    fn claim_all(&mut self, touched: &BTreeSet<PathBuf>, before: &HashMap<PodUid, Held>) -> BTreeMap<PathBuf, Vec<FileError>> {
        let mut refused: BTreeMap<PathBuf, Vec<FileError>> = BTreeMap::new();
        for holders_turn in [true, false] {
            for path in touched {
                let Some(file) = self.files.get_mut(path) else { continue };
                for pod in &file.pods {
                    if before.get(pod.uid()).is_some_and(|h| h.file == *path) != holders_turn {
                        continue;
                    }
                    let holder = self.held.get(pod.uid()).or_else(|| self.held.get(self.names.get(&name(pod))?));
                    if let Some(holder) = holder {
                        refused.entry(path.clone()).or_default().push(duplicate(path, pod, holder));
                        continue;
                    }
                    self.names.insert(name(pod), pod.uid().clone());
                    self.held.insert(pod.uid().clone(), Held { file: path.clone(), pod: pod.clone() });
                    file.holds.push(pod.uid().clone());
                }
            }
        }
        refused
    }

    fn tell_pods(&self, before: HashMap<PodUid, Held>, touched: &BTreeSet<PathBuf>, events: &mut Vec<Event>) {
        let mut gone: Vec<PodUid> = before.keys().filter(|uid| !self.held.contains_key(uid)).cloned().collect();
        gone.sort();
        events.extend(gone.into_iter().map(Event::Delete));
        let same = |held: &Held| {
            before.get(held.pod.uid()).is_some_and(|old| old.file == held.file && old.pod.object() == held.pod.object())
        };
        for uid in touched.iter().filter_map(|path| self.files.get(path)).flat_map(|file| &file.holds) {
            if let Some(held) = self.held.get(uid).filter(|held| !same(held)) {
                events.push(Event::Apply(held.pod.clone()));
            }
        }
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

fn name(pod: &ValidPod) -> String {
    format!("{}/{}", pod.namespace(), pod.name())
}

fn digest_of(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

fn duplicate(path: &Path, pod: &ValidPod, holder: &Held) -> FileError {
    let place = match holder.pod.origin() {
        Origin::File { path, line } => format!("{}:{line}", path.display()),
        Origin::Stdin => "standard input".into(),
    };
    let line = match pod.origin() {
        Origin::File { line, .. } => *line,
        Origin::Stdin => 1,
    };
    let (field, value) =
        if name(pod) == name(&holder.pod) { ("metadata.name", name(pod)) } else { ("metadata.uid", pod.uid().to_string()) };
    let message = format!("Duplicate value: {value:?}: {place} has this pod already, and keeps it");
    FileError { file: path.to_path_buf(), line, column: 1, field: field.into(), message }
}
