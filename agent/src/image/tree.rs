//! Removing directories that somebody else filled: no recursion, a constant count of descriptors, however deep they are.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::{Errno, Result};

pub(super) fn open_dir(parent: BorrowedFd<'_>, name: impl rustix::path::Arg) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// Removes everything inside `trash`. Directories inside directories are first moved up to it: so a tree deeper than any path
/// may be long still goes.
pub(super) fn empty(trash: BorrowedFd<'_>) -> Result<()> {
    let mut moved = 0_u64;
    loop {
        let mut clean = true;
        for entry in Dir::read_from(trash)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            clean = false;
            if is_dir(trash, name, entry.file_type())? {
                flatten(trash, name, &mut moved)?;
                ignore_gone(rustix::fs::unlinkat(trash, name, AtFlags::REMOVEDIR))?;
            } else {
                ignore_gone(rustix::fs::unlinkat(trash, name, AtFlags::empty()))?;
            }
        }
        if clean {
            return Ok(());
        }
    }
}

/// Removes what is at `name`, if anything is; directories go by way of `trash`.
pub(super) fn remove(parent: BorrowedFd<'_>, name: &[u8], trash: BorrowedFd<'_>) -> Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        other => return ignore_gone(other),
    }
    rustix::fs::renameat(parent, name, trash, "replaced")?;
    empty(trash)
}

/// Unlinks the files in a directory, and moves its directories to the trash.
fn flatten(trash: BorrowedFd<'_>, name: &CStr, moved: &mut u64) -> Result<()> {
    let dir = open_dir(trash, name)?;
    loop {
        let mut clean = true;
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            let child = entry.file_name();
            if matches!(child.to_bytes(), b"." | b"..") {
                continue;
            }
            clean = false;
            if is_dir(dir.as_fd(), child, entry.file_type())? {
                *moved += 1;
                rename_new(dir.as_fd(), child, trash, moved)?;
            } else {
                ignore_gone(rustix::fs::unlinkat(&dir, child, AtFlags::empty()))?;
            }
        }
        if clean {
            return Ok(());
        }
    }
}

/// Moves to a name that isn't taken yet.
fn rename_new(dir: BorrowedFd<'_>, child: &CStr, trash: BorrowedFd<'_>, moved: &mut u64) -> Result<()> {
    loop {
        let name = format!(".moved-{moved}");
        match rustix::fs::renameat_with(dir, child, trash, &name, rustix::fs::RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => *moved += 1,
            other => return other,
        }
    }
}

fn is_dir(parent: BorrowedFd<'_>, name: &CStr, kind: FileType) -> Result<bool> {
    match kind {
        FileType::Directory => Ok(true),
        FileType::Unknown => {
            let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
            Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
        }
        _ => Ok(false),
    }
}

fn ignore_gone(result: Result<()>) -> Result<()> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_deeper_than_a_path_goes() {
        let base = tempfile::tempdir().unwrap();
        let base_fd = rustix::fs::open(base.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        rustix::fs::mkdirat(&base_fd, "trash", Mode::RWXU).unwrap();
        let trash = open_dir(base_fd.as_fd(), "trash").unwrap();
        let mut at = rustix::io::dup(&base_fd).unwrap();
        let name = "d".repeat(100);
        // 20 000 bytes of path, nearly five times what a path may have.
        for _ in 0..200 {
            rustix::fs::mkdirat(&at, &name, Mode::RWXU).unwrap();
            rustix::fs::openat(&at, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
            at = open_dir(at.as_fd(), &name).unwrap();
        }
        remove(base_fd.as_fd(), name.as_bytes(), trash.as_fd()).unwrap();
        let left: Vec<_> = std::fs::read_dir(base.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left.len(), 2, "{left:?}");
        assert_eq!(std::fs::read_dir(base.path().join("trash")).unwrap().count(), 0);
    }
}
