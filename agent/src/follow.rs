//! Tells when somebody changed folders, also such as aren't there yet. The kernel tells (inotify); nothing is polled.

use std::ffi::OsString;
use std::future::Future;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

/// What belongs together (an add-on writes a plugin and its configuration) is looked at once.
const TOGETHER: Duration = Duration::from_millis(20);

/// Folders that are followed.
#[derive(Debug)]
pub struct Followed {
    queue: Arc<OwnedFd>,
    folders: Vec<PathBuf>,
    /// By watch descriptor: the one name that matters there, if not all do.
    watches: Vec<(i32, Option<OsString>)>,
}

impl Followed {
    /// Begins to follow these folders.
    pub fn new(folders: Vec<PathBuf>) -> io::Result<Self> {
        let queue = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let mut followed = Self { queue: Arc::new(queue), folders, watches: Vec::new() };
        followed.watch();
        Ok(followed)
    }

    /// Watches each folder, or the nearest above it that there is.
    fn watch(&mut self) {
        for (watch, _) in self.watches.drain(..) {
            let _ = inotify::remove_watch(&self.queue, watch);
        }
        let flags = WatchFlags::CREATE
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ATTRIB
            | WatchFlags::ONLYDIR
            | WatchFlags::MASK_ADD;
        for folder in &self.folders {
            let mut name: Option<OsString> = None;
            for place in folder.ancestors() {
                if let Ok(watch) = inotify::add_watch(&self.queue, place, flags) {
                    self.watches.push((watch, name));
                    break;
                }
                name = place.file_name().map(Into::into);
            }
        }
    }

    /// Whether anything that was told matters. To the last of what is told.
    fn drain(&self) -> bool {
        let mut buffer = [MaybeUninit::uninit(); 8192];
        let mut reader = inotify::Reader::new(&self.queue, &mut buffer);
        let mut matters = false;
        loop {
            match reader.next() {
                Ok(event) => {
                    let name = event.file_name().map(|name| Path::new(std::ffi::OsStr::new(name.to_str().unwrap_or_default())));
                    matters |= self.watches.iter().any(|(watch, wanted)| {
                        let named = wanted.as_ref().is_none_or(|wanted| name.is_none_or(|name| name == Path::new(wanted)));
                        *watch == event.wd() && named
                    });
                    // The queue ran over: anything may have been.
                    matters |= event.wd() < 0;
                }
                Err(Errno::INTR) => {}
                Err(_) => return matters,
            }
        }
    }
}

/// Looks at once, and whenever something changed; `look` says after what time it wants to look again in any case, and None when
/// nobody wants to know any more.
pub async fn follow<F: Future<Output = Option<Option<Duration>>>>(mut followed: Followed, look: impl Fn() -> F) {
    #[expect(
        deprecated,
        reason = "the new way is unsafe, for types that give another descriptor each time: an OwnedFd never does"
    )]
    let Ok(ready) = AsyncFd::new(followed.queue.clone()) else { return };
    loop {
        let Some(again) = look().await else { return };
        let again = async {
            match again {
                Some(patience) => tokio::time::sleep(patience).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(again);
        loop {
            tokio::select! {
                () = &mut again => break,
                guard = ready.readable() => {
                    let Ok(mut guard) = guard else { return };
                    guard.clear_ready();
                    if followed.drain() {
                        tokio::time::sleep(TOGETHER).await;
                        followed.drain();
                        followed.watch();
                        break;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use tokio::sync::mpsc;

    #[tokio::test]
    async fn a_folder_that_comes_later_is_followed() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("etc/cni/net.d");
        let (looked, mut looks) = mpsc::unbounded_channel();
        let followed = Followed::new(vec![folder.clone()]).unwrap();
        let task = tokio::spawn(follow(followed, move || {
            let open = looked.send(()).is_ok();
            async move { open.then_some(None) }
        }));
        let patience = Duration::from_secs(30);
        let next =
            async |looks: &mut mpsc::UnboundedReceiver<()>| tokio::time::timeout(patience, looks.recv()).await.unwrap().unwrap();
        next(&mut looks).await;
        std::fs::create_dir_all(&folder).unwrap();
        next(&mut looks).await;
        // Watches are renewed when it looks: whatever was made before then is seen by the look itself.
        std::fs::write(folder.join("10-a.conflist"), "{}").unwrap();
        next(&mut looks).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        while looks.try_recv().is_ok() {}
        std::fs::write(root.path().join("elsewhere"), "").unwrap();
        std::fs::remove_file(folder.join("10-a.conflist")).unwrap();
        next(&mut looks).await;
        drop(looks);
        std::fs::write(folder.join("last"), "").unwrap();
        tokio::time::timeout(patience, task).await.unwrap().unwrap();
    }
}
