//! Goes through a volume that containers write to: by descriptors, following no link, crossing no mount, at any depth.

use std::ffi::{CStr, OsStr};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// What is done with one entry, named in its folder. It says what the entry is: folders are looked into afterwards.
pub type Visit<'a> = &'a mut dyn FnMut(BorrowedFd<'_>, &CStr) -> rustix::io::Result<FileType>;

/// Visits all that is below `top`. What goes while it is looked at is passed over.
pub fn walk(top: BorrowedFd<'_>, visit: Visit<'_>) -> rustix::io::Result<()> {
    let mut folders = vec![PathBuf::from(".")];
    while let Some(path) = folders.pop() {
        let dir = match open_beneath(top, &path) {
            // Gone, replaced by a link, or somebody's mount.
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::XDEV) => continue,
            opened => opened?,
        };
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            match visit(std::os::fd::AsFd::as_fd(&dir), name) {
                Ok(FileType::Directory) => folders.push(path.join(OsStr::from_bytes(name.to_bytes()))),
                Ok(_) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

fn open_beneath(top: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(top, path, flags, Mode::empty(), resolve)
}
