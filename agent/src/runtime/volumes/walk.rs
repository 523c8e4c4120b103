//! Goes through a volume that containers write to: by descriptors, following no link, crossing no mount, with memory for no more than
//! the way down.

use std::ffi::CStr;
use std::os::fd::{BorrowedFd, OwnedFd};

use podholder::beneath;
use rustix::fs::{Dir, FileType, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::path::Arg;

/// How deep folders are looked into: each on the way down is a descriptor.
pub const DEPTH: usize = 256;

/// What is done with one entry, named in its folder. It says what the entry is: folders are looked into afterwards.
pub type Visit<'a> = &'a mut dyn FnMut(BorrowedFd<'_>, &CStr) -> rustix::io::Result<FileType>;

/// Visits all that is below `top`. What goes while it is looked at is passed over; folders deeper than [`DEPTH`] are ENAMETOOLONG.
pub fn walk(top: BorrowedFd<'_>, visit: Visit<'_>) -> rustix::io::Result<()> {
    let mut way = vec![Dir::new(open_in(top, c".")?)?];
    while let Some(dir) = way.last_mut() {
        let Some(entry) = dir.read() else {
            way.pop();
            continue;
        };
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        match visit(dir.fd()?, name) {
            Ok(FileType::Directory) => {}
            Ok(_) | Err(Errno::NOENT) => continue,
            Err(error) => return Err(error),
        }
        let below = match open_in(dir.fd()?, name) {
            // Gone, replaced by a link, or somebody's mount.
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::XDEV) => continue,
            opened => opened?,
        };
        if way.len() == DEPTH {
            return Err(Errno::NAMETOOLONG);
        }
        way.push(Dir::new(below)?);
    }
    Ok(())
}

/// A folder that lies in this one, to be read: no link, nobody's mount.
pub fn open_in(dir: BorrowedFd<'_>, name: impl Arg) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    beneath::open(dir, name, flags, resolve)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::fd::AsFd as _;

    use rustix::fs::{AtFlags, CWD, Mode};

    use super::*;

    fn count(path: &std::path::Path) -> rustix::io::Result<usize> {
        let top = rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let mut seen = 0;
        walk(top.as_fd(), &mut |dir, name| {
            seen += 1;
            Ok(FileType::from_raw_mode(rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode))
        })?;
        Ok(seen)
    }

    /// So many folders, one in the other, of long names: no path leads to the last of them.
    fn nested(path: &std::path::Path, depth: usize) {
        let mut dir = rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..depth {
            let name = "n".repeat(100);
            rustix::fs::mkdirat(&dir, &name, Mode::RWXU).unwrap();
            dir = rustix::fs::openat(&dir, &name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
    }

    #[test]
    fn all_is_seen_also_where_no_path_leads_and_links_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        nested(folder.path(), 100);
        std::fs::create_dir(folder.path().join("a")).unwrap();
        std::fs::write(folder.path().join("a/file"), "").unwrap();
        std::os::unix::fs::symlink("/", folder.path().join("a/link")).unwrap();
        assert_eq!(count(folder.path()), Ok(103));
        crate::runtime::remove_tree(folder.path()).unwrap();
    }

    #[test]
    fn what_is_too_deep_is_an_error_and_not_nothing() {
        let folder = tempfile::tempdir().unwrap();
        nested(folder.path(), DEPTH);
        assert_eq!(count(folder.path()), Err(Errno::NAMETOOLONG));
        crate::runtime::remove_tree(folder.path()).unwrap();
    }
}
