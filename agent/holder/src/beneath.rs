//! Paths that a container, an image or a user names are opened beneath a folder, by the kernel's own rules (openat2(2)).

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::path::Arg;

/// Who renames all the time gets an error.
const RACES: u32 = 64;

/// Opens `path` (empty: the folder itself) as `resolve` allows; the descriptor is closed on exec.
///
/// The kernel says EAGAIN when anything on the machine was renamed or mounted while it went through a `..`, and leaves it to the caller to
/// ask again.
///
/// # Errors
/// As openat2(2).
pub fn open(dir: impl AsFd, path: impl Arg, flags: OFlags, resolve: ResolveFlags) -> rustix::io::Result<OwnedFd> {
    path.into_with_c_str(|path| {
        let path = if path.is_empty() { c"." } else { path };
        for _ in 0..RACES {
            match rustix::fs::openat2(dir.as_fd(), path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                opened => return opened,
            }
        }
        Err(Errno::AGAIN)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn what_others_rename_meanwhile_is_in_nobodys_way() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("a/b")).unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        let top = fs::File::open(folder.path()).unwrap();
        let done = AtomicBool::new(false);
        let (one, other) = (folder.path().join("x"), folder.path().join("y"));
        fs::write(&one, "").unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    fs::rename(&one, &other).unwrap();
                    fs::rename(&other, &one).unwrap();
                }
            });
            let tried: Result<Vec<_>, _> =
                (0..3000).map(|_| open(&top, "a/b/../../file", OFlags::PATH, ResolveFlags::BENEATH).map(drop)).collect();
            done.store(true, Ordering::Relaxed);
            tried.unwrap();
        });
        open(&top, "", OFlags::PATH, ResolveFlags::BENEATH).unwrap();
        assert_eq!(open(&top, "../x", OFlags::PATH, ResolveFlags::BENEATH).unwrap_err(), Errno::XDEV);
    }
}
