//! Deletes a tree that containers wrote: by descriptors, following no link, crossing no mount, at any depth.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;

use super::volumes::walk::open_in;

/// Descriptors held open at once. What lies deeper is moved up to the top and deleted from there.
const DEEP: usize = 64;

/// Deletes `path` and all below. What isn't there is no error. Goes on past errors; the first of them is the result.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a path without a name"));
    };
    let directory = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let parent = match rustix::fs::open(parent, directory, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        opened => opened?,
    };
    let name = CString::new(name.as_encoded_bytes())?;
    let mut removal = Removal { root: parent, moved: Vec::new(), first_error: None };
    removal.entry(&name);
    removal.first_error.map_or(Ok(()), |error| Err(error.into()))
}

/// Makes the names of moved folders differ between removals that run at once.
static MOVED: AtomicU64 = AtomicU64::new(0);
/// How a folder is called that was moved up and not yet deleted when the agent died.
pub const LEFTOVER: &str = ".removing-";

struct Removal {
    root: OwnedFd,
    moved: Vec<CString>,
    first_error: Option<Errno>,
}

impl Removal {
    /// Deletes one entry of the root, and what had to be moved beside it on the way.
    fn entry(&mut self, name: &CStr) {
        let Ok(root) = self.root.try_clone() else { return self.note(Errno::MFILE) };
        self.in_directory(root.as_fd(), name, 0);
        while let Some(moved) = self.moved.pop() {
            self.in_directory(root.as_fd(), &moved, 0);
        }
    }

    fn in_directory(&mut self, dir: BorrowedFd<'_>, name: &CStr, depth: usize) {
        match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return,
            Err(Errno::ISDIR) => {}
            Err(error) => return self.note(error),
        }
        if depth == DEEP {
            return self.move_up(dir, name);
        }
        // Some file systems skip entries of a folder that changes while it's read: then once more.
        for _ in 0..3 {
            self.empty(dir, name, depth);
            match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => return,
                Err(Errno::NOTEMPTY) if self.first_error.is_none() => {}
                Err(error) => return self.note(error),
            }
        }
        self.note(Errno::NOTEMPTY);
    }

    /// Deletes what is in a folder.
    fn empty(&mut self, parent: BorrowedFd<'_>, name: &CStr, depth: usize) {
        let dir = match open_in(parent, name) {
            Ok(dir) => dir,
            Err(error) => return self.note(error),
        };
        let entries = match Dir::read_from(&dir) {
            Ok(entries) => entries,
            Err(error) => return self.note(error),
        };
        for entry in entries {
            match entry {
                Ok(entry) if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
                Ok(entry) => self.in_directory(dir.as_fd(), entry.file_name(), depth + 1),
                Err(error) => return self.note(error),
            }
        }
    }

    fn move_up(&mut self, dir: BorrowedFd<'_>, name: &CStr) {
        let unique = MOVED.fetch_add(1, Ordering::Relaxed);
        let Ok(moved) = CString::new(format!("{LEFTOVER}{}-{unique}", std::process::id())) else { return };
        match rustix::fs::renameat(dir, name, &self.root, &moved) {
            Ok(()) => self.moved.push(moved),
            Err(error) => self.note(error),
        }
    }

    fn note(&mut self, error: Errno) {
        self.first_error.get_or_insert(error);
    }
}

/// Whether a path is a mount point: then deleting it would reach into something else.
pub fn is_mount_point(path: &Path) -> bool {
    let found = rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE);
    found.is_ok_and(|stat| {
        let folder = FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Directory;
        folder && stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_lead_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let (keep, tree) = (dir.path().join("keep"), dir.path().join("tree"));
        fs::create_dir_all(keep.join("inner")).unwrap();
        fs::write(keep.join("file"), "x").unwrap();
        fs::create_dir_all(tree.join("a/b")).unwrap();
        symlink(&keep, tree.join("a/link")).unwrap();
        symlink(&keep, tree.join("a/b/link")).unwrap();
        symlink("nowhere", tree.join("dangling")).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists() && keep.join("file").exists() && keep.join("inner").exists());
        remove_tree(&tree).unwrap();
    }

    #[test]
    fn a_link_in_place_of_the_tree_is_removed_itself() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("keep")).unwrap();
        symlink(dir.path().join("keep"), dir.path().join("link")).unwrap();
        remove_tree(&dir.path().join("link")).unwrap();
        assert!(dir.path().join("keep").exists() && !dir.path().join("link").exists());
    }

    #[test]
    fn deeper_than_the_stack_and_the_descriptors_reach() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("deep");
        fs::create_dir(&top).unwrap();
        let mut at = rustix::fs::open(&top, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, "d", OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()).unwrap();
        }
        drop(at);
        remove_tree(&top).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
