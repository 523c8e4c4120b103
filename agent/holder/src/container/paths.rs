//! Paths inside a container: resolved beneath its root by the kernel, whatever links the image or a volume holds.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use podholder::beneath;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// Links that lead nowhere, one to the next, before we give up: as the kernel's own limit.
const MAX_LINKS: u32 = 40;

/// What a target that isn't there is made as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Directory,
    File,
}

/// A container's `/`.
pub struct Root(OwnedFd);

impl Root {
    pub fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Opens a path beneath the root. Links are followed as in a process that has this root; magic links of /proc are not.
    pub fn open(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        open_beneath(self.0.as_fd(), path, flags)
    }

    /// The same with `O_PATH`, but no link on the way.
    pub fn open_without_links(&self, path: &Path) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
        Ok(beneath::open(&self.0, normalise(path), OFlags::PATH, resolve)?)
    }

    /// The same with `O_PATH`, made as `kind` (its parents as directories) if it isn't there.
    pub fn make(&self, path: &Path, kind: Kind) -> io::Result<OwnedFd> {
        self.make_following(&normalise(path), kind, 0)
    }

    fn make_following(&self, path: &Path, kind: Kind, links: u32) -> io::Result<OwnedFd> {
        let existing = self.open(path, OFlags::PATH);
        if !existing.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
            return existing;
        }
        if links > MAX_LINKS {
            return Err(Errno::LOOP.into());
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return existing };
        match self.make_one(parent, name, kind, links) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.make_following(parent, Kind::Directory, links)?;
                self.make_one(parent, name, kind, links)?;
            }
            made => made?,
        }
        self.open(path, OFlags::PATH)
    }

    fn make_one(&self, parent: &Path, name: &OsStr, kind: Kind, links: u32) -> io::Result<()> {
        let dir = self.open(parent, OFlags::PATH | OFlags::DIRECTORY)?;
        let made = match kind {
            Kind::Directory => rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o755)),
            Kind::File => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
                rustix::fs::openat(&dir, name, flags, Mode::from_raw_mode(0o644)).map(drop)
            }
        };
        if made != Err(Errno::EXIST) {
            return Ok(made?);
        }
        // A link that leads nowhere: what it points at is made. Anything else came into being just now.
        match rustix::fs::readlinkat(&dir, name, Vec::new()) {
            Ok(target) => {
                let target = parent.join(OsStr::from_bytes(target.as_bytes()));
                self.make_following(&normalise(&target), kind, links + 1).map(drop)
            }
            Err(Errno::INVAL) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Opens `path` with `dir` as the root of its resolution.
pub fn open_beneath(dir: BorrowedFd<'_>, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(beneath::open(dir, path, flags, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)?)
}

/// What a descriptor is.
pub fn file_type(fd: impl AsFd) -> io::Result<(FileType, Stat)> {
    let stat = rustix::fs::statat(fd, "", AtFlags::EMPTY_PATH)?;
    Ok((FileType::from_raw_mode(stat.st_mode), stat))
}

/// Absolute, without `.`, `..` and doubled slashes, by the text alone.
pub fn normalise(path: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => drop(out.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root(dir: &Path) -> Root {
        Root::new(std::fs::File::open(dir).unwrap().into())
    }

    #[test]
    fn normalises_by_text() {
        for (given, wanted) in [("", "/"), ("a/../../b", "/b"), ("/a/./b//c/", "/a/b/c"), ("/..", "/")] {
            assert_eq!(normalise(Path::new(given)), Path::new(wanted), "{given}");
        }
    }

    #[test]
    fn makes_targets_beneath_the_root_through_links() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("var")).unwrap();
        symlink("/run", dir.path().join("var/run")).unwrap();
        symlink("../../../../../..", dir.path().join("up")).unwrap();
        symlink(outside.path(), dir.path().join("out")).unwrap();
        let root = root(dir.path());
        root.make(Path::new("/var/run/secrets/token"), Kind::File).unwrap();
        assert!(dir.path().join("run/secrets/token").is_file());
        root.make(Path::new("/up/made"), Kind::Directory).unwrap();
        assert!(dir.path().join("made").is_dir());
        root.make(Path::new("/out/x"), Kind::Directory).unwrap();
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn links_in_a_circle_are_an_error() {
        let dir = tempfile::tempdir().unwrap();
        symlink("b", dir.path().join("a")).unwrap();
        symlink("a", dir.path().join("b")).unwrap();
        let error = root(dir.path()).make(Path::new("/a"), Kind::File).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
    }
}
