//! Folders and files, watched by inotify. Nothing polls: between two changes this costs nothing. What the changes mean is decided by
//! [`super::folder`]; where to look by [`super::scan`].

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

use super::Event;
use super::folder::{Content, Folder};
use super::scan::{self, Failure, Identity, Interest, Scan};
use super::sealed::Keys;
use crate::model::Defaults;

/// The largest file that is read.
const FILE_LIMIT: u64 = 64 << 20;
/// The name of standard input, as a root and in errors.
const STDIN: &str = "-";

/// Watching can't begin or go on at all.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The kernel gives no inotify instance.
    #[error("watch the manifests: make an inotify instance: {0} (the limit is /proc/sys/fs/inotify/max_user_instances)")]
    Inotify(#[source] io::Error),
    /// A bug of ours.
    #[error("watch the manifests: the reader ended early: {0}")]
    Reader(#[from] tokio::task::JoinError),
}

/// `keys` open sealed manifests. Tells `events` what the manifests in `roots` (folders, files, `-` for standard input) are and how they change, until nobody
/// listens any more. A change is told as soon as the kernel tells it.
pub async fn watch(roots: Vec<PathBuf>, defaults: Defaults, keys: Keys, events: mpsc::Sender<Event>) -> Result<(), WatchError> {
    let stdin = roots.iter().any(|r| r.as_os_str() == STDIN).then(read_stdin);
    let roots = roots.into_iter().filter(|r| r.as_os_str() != STDIN).collect();
    watch_with(roots, stdin, defaults, keys, events).await
}

/// As [`watch`], with what stands for standard input.
pub async fn watch_with(
    roots: Vec<PathBuf>,
    mut stdin: Option<oneshot::Receiver<io::Result<Vec<u8>>>>,
    defaults: Defaults,
    keys: Keys,
    events: mpsc::Sender<Event>,
) -> Result<(), WatchError> {
    let queue = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(|e| WatchError::Inotify(e.into()))?;
    let queue = Arc::new(queue);
    #[expect(
        deprecated,
        reason = "the new way is unsafe, for types that give another descriptor each time: an OwnedFd never does"
    )]
    let ready = AsyncFd::new(queue.clone()).map_err(WatchError::Inotify)?;
    let mut watcher = Watcher::new(queue, roots, Folder::new(defaults, keys));

    let mut told = vec![Event::Init];
    let first;
    (watcher, first) = blocking(watcher, |w| w.rescan(Vec::new())).await?;
    told.extend(first);
    if stdin.is_none() {
        told.push(Event::InitDone);
    }
    loop {
        for event in told.drain(..) {
            if events.send(event).await.is_err() {
                return Ok(());
            }
        }
        tokio::select! {
            () = events.closed() => return Ok(()),
            content = read_end(&mut stdin) => {
                stdin = None;
                (watcher, told) = blocking(watcher, move |w| w.folder.change(vec![(STDIN.into(), content)])).await?;
                told.push(Event::InitDone);
            }
            guard = ready.readable() => {
                guard.map_err(WatchError::Inotify)?.clear_ready();
                let mut batch = drain(&watcher.queue);
                if batch.has_half_move() {
                    // The kernel tells a rename as two events; between them we may have been faster than it.
                    tokio::task::yield_now().await;
                    batch.0.extend(drain(&watcher.queue).0);
                }
                (watcher, told) = blocking(watcher, move |w| w.follow(batch)).await?;
            }
        }
    }
}

/// Reading files may block on a disk: not on a worker of the runtime.
async fn blocking<F>(mut watcher: Watcher, work: F) -> Result<(Watcher, Vec<Event>), WatchError>
where
    F: FnOnce(&mut Watcher) -> Vec<Event> + Send + 'static,
{
    let done = tokio::task::spawn_blocking(move || {
        let events = work(&mut watcher);
        (watcher, events)
    });
    Ok(done.await?)
}

/// A thread of its own: the runtime would wait for one of its pool's at the end, and a terminal may never close.
fn read_stdin() -> oneshot::Receiver<io::Result<Vec<u8>>> {
    let (send, receive) = oneshot::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let result = io::stdin().lock().take(FILE_LIMIT + 1).read_to_end(&mut bytes).map(|_| bytes);
        // Nobody waits any more when the agent is about to end.
        let _ = send.send(result);
    });
    receive
}

/// Waits for the end of standard input; for ever if there is none.
async fn read_end(stdin: &mut Option<oneshot::Receiver<io::Result<Vec<u8>>>>) -> Content {
    let Some(receiver) = stdin else { return std::future::pending().await };
    match receiver.await {
        Ok(Ok(bytes)) => bounded(bytes),
        Ok(Err(error)) => Content::Unreadable(format!("read standard input: {error}")),
        Err(_) => Content::Unreadable("standard input was not read".into()),
    }
}

/// One event of the kernel's.
#[derive(Debug)]
struct Notice {
    watch: i32,
    flags: ReadFlags,
    cookie: u32,
    name: Option<std::ffi::OsString>,
}

#[derive(Debug, Default)]
struct Batch(Vec<Notice>);

impl Batch {
    fn has_half_move(&self) -> bool {
        let arrived = |cookie| self.0.iter().any(|n| n.flags.contains(ReadFlags::MOVED_TO) && n.cookie == cookie);
        self.0.iter().any(|n| n.flags.contains(ReadFlags::MOVED_FROM) && !arrived(n.cookie))
    }
}

/// All that is queued now.
fn drain(queue: &OwnedFd) -> Batch {
    use std::os::unix::ffi::OsStrExt;
    let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
    let mut reader = inotify::Reader::new(queue, &mut buffer);
    let mut notices = Vec::new();
    // The only errors are "nothing there" and interruption: the latter leaves the queue readable.
    while let Ok(event) = reader.next() {
        let name = event.file_name().map(|n| OsStr::from_bytes(n.to_bytes()).to_owned());
        notices.push(Notice { watch: event.wd(), flags: event.events(), cookie: event.cookie(), name });
    }
    Batch(notices)
}

#[derive(Debug)]
struct Watcher {
    queue: Arc<OwnedFd>,
    roots: Vec<PathBuf>,
    folder: Folder,
    identities: BTreeMap<PathBuf, Identity>,
    failed: BTreeMap<PathBuf, Failure>,
    /// The watched directories' real paths.
    watched: HashMap<i32, PathBuf>,
    interests: HashMap<PathBuf, Interest>,
}

/// What a batch of notices asks for.
#[derive(Debug, Default)]
struct Work {
    rescan: bool,
    /// Notices were lost: nothing that is remembered can be relied on.
    forget: bool,
    /// Files to look at; true for those that were only created so far.
    files: BTreeMap<PathBuf, bool>,
}

impl Watcher {
    fn new(queue: Arc<OwnedFd>, roots: Vec<PathBuf>, folder: Folder) -> Self {
        Self {
            queue,
            roots,
            folder,
            identities: BTreeMap::new(),
            failed: BTreeMap::new(),
            watched: HashMap::new(),
            interests: HashMap::new(),
        }
    }

    fn follow(&mut self, batch: Batch) -> Vec<Event> {
        let mut work = Work::default();
        batch.0.into_iter().for_each(|notice| self.note(notice, &mut work));
        if work.forget {
            self.identities.clear();
        }
        let mut changes = Vec::new();
        for (path, created) in work.files {
            match self.look(&path, created) {
                Look::Is(content) => {
                    self.identities.remove(&path);
                    changes.push((path, content));
                }
                Look::Wait => {}
                Look::Other => work.rescan = true,
            }
        }
        if work.rescan { self.rescan(changes) } else { self.folder.change(changes) }
    }

    fn note(&self, notice: Notice, work: &mut Work) {
        let Notice { watch, flags, name, .. } = notice;
        if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            work.rescan = true;
            work.forget = true;
            return;
        }
        // A watch that was given up may have events left.
        let Some(interest) = self.watched.get(&watch).and_then(|d| self.interests.get(d)) else { return };
        if flags.contains(ReadFlags::ATTRIB) {
            // Rights that changed matter to what could not be read.
            work.rescan |= !self.failed.is_empty();
            return;
        }
        let Some(name) = name else {
            work.rescan = true;
            return;
        };
        if interest.all
            || super::kustomize::describes(&name)
            || interest.entries.contains(&name)
            || (flags.contains(ReadFlags::ISDIR) && !interest.folders.is_empty() && !scan::hidden(&name))
        {
            work.rescan = true;
        } else if scan::is_manifest(&name) {
            let created = flags.contains(ReadFlags::CREATE);
            for folder in &interest.folders {
                *work.files.entry(folder.join(&name)).or_insert(created) &= created;
            }
        }
    }

    fn look(&self, path: &Path, created: bool) -> Look {
        match std::fs::symlink_metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Look::Is(Content::Gone),
            Err(e) => Look::Is(Content::Unreadable(e.to_string())),
            // Its writer has it open, and closing it tells us. A second link to an inode tells nothing later.
            Ok(meta) if meta.is_file() && created && meta.nlink() == 1 => Look::Wait,
            Ok(meta) if meta.is_file() && !self.failed.contains_key(path) => Look::Is(read(path)),
            Ok(_) => Look::Other,
        }
    }

    /// Looks at everything again; reads what isn't surely the same. `changes` were seen already.
    fn rescan(&mut self, mut changes: Vec<(PathBuf, Content)>) -> Vec<Event> {
        let mut watched = HashMap::new();
        let queue = self.queue.clone();
        let found = scan::scan(&self.roots, &mut |directory| {
            watched.insert(add_watch(&queue, directory)?, directory.to_path_buf());
            Ok(())
        });
        for watch in self.watched.keys().filter(|w| !watched.contains_key(w)) {
            // The kernel gave it up already where the directory is gone.
            let _ = inotify::remove_watch(&self.queue, *watch);
        }
        self.watched = watched;
        changes.retain(|(path, _)| found.files.contains_key(path));
        self.compare(found, &mut changes);
        self.folder.change(changes)
    }

    fn compare(&mut self, found: Scan, changes: &mut Vec<(PathBuf, Content)>) {
        let Scan { files, failed, watches, .. } = found;
        self.interests = watches;
        let beyond_sight = |path: &Path| failed.iter().any(|(f, failure)| !failure.missing && path.starts_with(f));
        for known in self.folder.files().filter(|f| f.as_os_str() != STDIN) {
            if !files.contains_key(known) && !failed.contains_key(known) && !beyond_sight(known) {
                changes.push((known.to_path_buf(), Content::Gone));
            }
        }
        for (path, failure) in &failed {
            if self.failed.get(path).is_none_or(|f| f.why != failure.why) {
                // What was asked for by name and is gone has no pods any more; a link that leads nowhere is a mistake.
                if failure.missing && !path.is_symlink() {
                    changes.push((path.clone(), Content::Gone));
                }
                changes.push((path.clone(), Content::Unreadable(failure.why.clone())));
            }
        }
        for (path, identity) in &files {
            let same = self.identities.get(path).is_some_and(|old| identity.surely_same(old)) && !self.folder.unreadable(path);
            if !same && !changes.iter().any(|(p, _)| p == path) {
                changes.push((path.clone(), read(path)));
            }
        }
        self.identities = files;
        self.failed = failed;
    }
}

enum Look {
    Is(Content),
    /// It will be told when it is written.
    Wait,
    /// A link, a folder: more than this name may have changed.
    Other,
}

fn add_watch(queue: &OwnedFd, directory: &Path) -> io::Result<i32> {
    let flags = WatchFlags::CLOSE_WRITE
        | WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::MOVED_FROM
        | WatchFlags::MOVED_TO
        | WatchFlags::ATTRIB
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF
        | WatchFlags::ONLYDIR;
    inotify::add_watch(queue, directory, flags).map_err(|errno| match errno {
        rustix::io::Errno::NOSPC => io::Error::other(format!(
            "watch {}: no inotify watch is left: raise /proc/sys/fs/inotify/max_user_watches",
            directory.display()
        )),
        errno => errno.into(),
    })
}

fn read(path: &Path) -> Content {
    if path.is_dir() {
        return super::kustomize::build(path).map_or_else(Content::Unreadable, Content::Bytes);
    }
    // What was a file a moment ago may be a pipe now: opening must not wait for its writer.
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let opened = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Content::Gone,
        Err(e) => return Content::Unreadable(e.to_string()),
    };
    let mut bytes = Vec::new();
    match file.take(FILE_LIMIT + 1).read_to_end(&mut bytes) {
        Ok(_) => bounded(bytes),
        Err(e) => Content::Unreadable(e.to_string()),
    }
}

fn bounded(bytes: Vec<u8>) -> Content {
    if bytes.len() as u64 > FILE_LIMIT {
        return Content::Unreadable(format!("larger than {} MiB: no manifest is", FILE_LIMIT >> 20));
    }
    Content::Bytes(bytes)
}
