//! Which files the given folders and files are at this moment, and which directories have to be watched to see that change: also
//! those in which a symbolic link on the way lies, and the one in which something that is missing would appear.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::Metadata;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::kustomize;

/// Files of one kustomization that are looked at.
const TREE_LIMIT: usize = 10_000;

/// What of a directory's changes matters.
#[derive(Debug, Default)]
pub(super) struct Interest {
    /// It is one of the folders, by these names: any manifest and any subfolder matters.
    pub(super) folders: Vec<PathBuf>,
    /// These entries matter in themselves: links on a way, things that are missing.
    pub(super) entries: HashSet<OsString>,
    /// A kustomization reads it: every change matters.
    pub(super) all: bool,
}

/// One look at all that was asked for.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// The manifests, by the path by which they were found.
    pub(super) files: BTreeMap<PathBuf, Identity>,
    /// What isn't there or can't be looked into, and why. What was below an entry that can't be read is left as it was.
    pub(super) failed: BTreeMap<PathBuf, Failure>,
    /// By the directory's real path.
    pub(super) watches: HashMap<PathBuf, Interest>,
    visited: HashSet<(u64, u64)>,
    /// Folders that a kustomization takes in: they are no manifests of their own.
    taken_in: HashSet<PathBuf>,
}

/// Why something could not be looked into.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) missing: bool,
    pub(super) why: String,
}

/// Tells one state of a file from another without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
    /// Found through a symbolic link, or written so lately that a next write might leave the same times.
    uncertain: bool,
}

impl Identity {
    fn of(meta: &Metadata, through_link: bool) -> Self {
        let age = meta.modified().ok().and_then(|m| SystemTime::now().duration_since(m).ok()).unwrap_or_default();
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            changed: (meta.ctime(), meta.ctime_nsec()),
            uncertain: through_link || age < Duration::from_secs(1),
        }
    }

    /// Whether a file of the other identity surely has the same content.
    pub(super) fn surely_same(&self, other: &Self) -> bool {
        !self.uncertain && self == other
    }
}

/// What a folder's files are, taken together.
#[derive(Default)]
struct TreeState {
    hasher: DefaultHasher,
    files: usize,
    uncertain: bool,
}

impl TreeState {
    fn add(&mut self, path: &Path, meta: &Metadata) -> io::Result<()> {
        self.files += 1;
        if self.files > TREE_LIMIT {
            return Err(io::Error::other(format!("a kustomization of more than {TREE_LIMIT} files")));
        }
        let identity = Identity::of(meta, meta.is_symlink());
        self.uncertain |= identity.uncertain && !meta.is_dir();
        path.hash(&mut self.hasher);
        if !meta.is_dir() {
            (identity.device, identity.inode, identity.size, identity.changed).hash(&mut self.hasher);
        }
        Ok(())
    }

    fn identity(self) -> Identity {
        Identity { device: 0, inode: self.hasher.finish(), size: 0, changed: (0, 0), uncertain: self.uncertain }
    }
}

/// Whether a name is left alone: hidden files, editors' and ConfigMap's own.
pub(super) fn hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

/// Whether a file of a folder is a manifest.
pub(super) fn is_manifest(name: &OsStr) -> bool {
    let name = super::sealed::unsealed_name(name).unwrap_or(name);
    let extension = Path::new(name).extension().and_then(OsStr::to_str);
    !hidden(name) && matches!(extension, Some("yaml" | "yml" | "json"))
}

/// Looks. `watch` is called for each directory before it is read, so that no change falls between; its error is told as the folder's.
pub(super) fn scan(roots: &[PathBuf], watch: &mut dyn FnMut(&Path) -> io::Result<()>) -> Scan {
    let mut scan = Scan::default();
    for root in roots {
        scan.root(root, watch);
    }
    let taken_in = std::mem::take(&mut scan.taken_in);
    scan.files.retain(|path, _| !path.canonicalize().is_ok_and(|real| taken_in.contains(&real)));
    scan
}

type Watch<'a> = &'a mut dyn FnMut(&Path) -> io::Result<()>;

impl Scan {
    fn root(&mut self, root: &Path, watch: Watch<'_>) {
        if let Err(error) = self.look(root, true, watch) {
            let missing = error.kind() == io::ErrorKind::NotFound;
            let why = if missing { format!("{error}: it is taken as soon as it appears") } else { error.to_string() };
            self.failed.insert(root.to_path_buf(), Failure { missing, why });
        }
    }

    /// Takes a file, or a folder with all that is in it. `root`: it was asked for by name, so its own name doesn't matter, and
    /// its absence does.
    fn look(&mut self, path: &Path, root: bool, watch: Watch<'_>) -> io::Result<()> {
        let through_link = root || std::fs::symlink_metadata(path)?.is_symlink();
        if through_link {
            self.watch_way(path, watch)?;
        }
        let meta = std::fs::metadata(path)?;
        if meta.is_dir() {
            return self.folder(path, &meta, watch);
        }
        let name = path.file_name().unwrap_or_default();
        if meta.is_file() && (root || is_manifest(name)) {
            let identity = Identity::of(&meta, through_link);
            let known = |i: &Identity| (i.device, i.inode) == (identity.device, identity.inode);
            // A file that was named beside its folder is one file.
            if !(root && self.files.values().any(known)) {
                self.files.insert(path.to_path_buf(), identity);
            }
        } else if !meta.is_file() && (root || is_manifest(name)) {
            // A pipe, a socket, a device: reading it could wait for ever.
            return Err(io::Error::other("it is neither a folder nor a file"));
        }
        Ok(())
    }

    fn folder(&mut self, path: &Path, meta: &Metadata, watch: Watch<'_>) -> io::Result<()> {
        let real = path.canonicalize()?;
        // A link to a folder above or beside would be walked twice, or for ever.
        if !self.visited.insert((meta.dev(), meta.ino())) {
            return Ok(());
        }
        watch(&real)?;
        self.watches.entry(real).or_default().folders.push(path.to_path_buf());
        if kustomize::description(path).is_some() {
            return self.kustomization(path, watch);
        }
        let mut names = std::fs::read_dir(path)?.map(|e| e.map(|e| e.file_name())).collect::<io::Result<Vec<_>>>()?;
        names.sort();
        for name in names.iter().filter(|n| !hidden(n)) {
            let child = path.join(name);
            match self.look(&child, false, watch) {
                Ok(()) => {}
                // Gone since it was listed: its event comes. A link that leads nowhere is worth telling.
                Err(e) if e.kind() == io::ErrorKind::NotFound && !child.is_symlink() => {}
                Err(e) => {
                    let missing = e.kind() == io::ErrorKind::NotFound;
                    self.failed.insert(child, Failure { missing, why: e.to_string() });
                }
            }
        }
        Ok(())
    }

    /// A folder that is built as a whole is one manifest. Whatever lies in it, or in the folders that it names, may change that.
    fn kustomization(&mut self, path: &Path, watch: Watch<'_>) -> io::Result<()> {
        let mut state = TreeState::default();
        for folder in kustomize::folders(path) {
            let real = folder.canonicalize()?;
            if folder != path {
                self.taken_in.insert(real.clone());
            }
            self.tree(&real, &mut state, watch)?;
        }
        self.files.insert(path.to_path_buf(), state.identity());
        Ok(())
    }

    fn tree(&mut self, folder: &Path, state: &mut TreeState, watch: Watch<'_>) -> io::Result<()> {
        watch(folder)?;
        self.watches.entry(folder.to_path_buf()).or_default().all = true;
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let meta = std::fs::symlink_metadata(entry.path())?;
            state.add(&entry.path(), &meta)?;
            if meta.is_dir() && entry.file_name() != ".git" {
                self.tree(&entry.path(), state, watch)?;
            }
        }
        Ok(())
    }

    /// Watches each directory that holds a symbolic link on the way to `path`, the one that holds its end, or the one in which the
    /// way ends now.
    fn watch_way(&mut self, path: &Path, watch: Watch<'_>) -> io::Result<()> {
        let absolute = std::path::absolute(path)?;
        let mut rest: Vec<OsString> = absolute.components().rev().map(|c| c.as_os_str().to_owned()).collect();
        let mut here = PathBuf::from("/");
        let mut links = 0;
        while let Some(part) = rest.pop() {
            match Path::new(&part).components().next() {
                Some(Component::RootDir) => here = PathBuf::from("/"),
                Some(Component::ParentDir) => {
                    here.pop();
                }
                Some(Component::Normal(name)) => {
                    let next = here.join(name);
                    let target = match std::fs::read_link(&next) {
                        Ok(target) => Some(target),
                        Err(e) if e.kind() == io::ErrorKind::NotFound => return self.watch_entry(&here, name, watch),
                        Err(_) => None,
                    };
                    if target.is_some() || (rest.is_empty() && !next.is_dir()) {
                        self.watch_entry(&here, name, watch)?;
                    }
                    let Some(target) = target else {
                        here = next;
                        continue;
                    };
                    links += 1;
                    if links > 40 {
                        return Err(io::Error::other("too many levels of symbolic links"));
                    }
                    rest.extend(target.components().rev().map(|c| c.as_os_str().to_owned()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn watch_entry(&mut self, directory: &Path, name: &OsStr, watch: Watch<'_>) -> io::Result<()> {
        watch(directory)?;
        self.watches.entry(directory.to_path_buf()).or_default().entries.insert(name.to_owned());
        Ok(())
    }
}
