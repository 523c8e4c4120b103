//! Device nodes and the usual links of /dev.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use podholder::protocol::{Device, Fault, Recipe, Source, Stage};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::mounts::attach_tree;
use super::paths::{Kind, Root, normalise};
use super::shown;
use crate::fault::{OrFault, refused};

const LINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];

/// Makes the recipe's devices and the links, unless /dev is a folder of the host's: that one isn't ours to change.
pub fn make(root: &Root, recipe: &Recipe, in_user_ns: bool) -> Result<(), Fault> {
    let is_dev = |target: &Path| normalise(target) == Path::new("/dev");
    if recipe.mounts.iter().any(|m| is_dev(&m.target) && matches!(m.source, Source::Bind { .. })) {
        return Ok(());
    }
    let mut folder = Folder { root, open: None };
    for device in &recipe.devices {
        if in_user_ns { bind(root, device)? } else { make_node(&mut folder, device)? }
    }
    for (path, target) in LINKS {
        let (dir, name) = folder.of(Path::new(path))?;
        match rustix::fs::symlinkat(target, dir, &name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e).or_fault(Stage::Device, path),
        }
    }
    Ok(())
}

/// The folder that was asked for last: nearly always /dev.
struct Folder<'a> {
    root: &'a Root,
    open: Option<(PathBuf, OwnedFd)>,
}

impl Folder<'_> {
    /// That of `path`, made if need be, and the name in it.
    fn of(&mut self, path: &Path) -> Result<(BorrowedFd<'_>, PathBuf), Fault> {
        let path = normalise(path);
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(refused(Stage::Device, shown(&path), "not a device's path"));
        };
        let open = match self.open.take() {
            Some(open) if open.0 == parent => self.open.insert(open),
            _ => {
                let dir = self.root.make(parent, Kind::Directory).or_fault(Stage::Device, shown(parent))?;
                self.open.insert((parent.to_owned(), dir))
            }
        };
        Ok((open.1.as_fd(), name.into()))
    }
}

fn make_node(folder: &mut Folder<'_>, device: &Device) -> Result<(), Fault> {
    let fault = |e: Errno| crate::fault::kernel(Stage::Device, shown(&device.path), e);
    let (dir, name) = folder.of(&device.path)?;
    let number = rustix::fs::makedev(device.major, device.minor);
    // The umask is 0, so the mode is exact.
    match rustix::fs::mknodat(dir, &name, file_type(device), Mode::from_raw_mode(device.mode), number) {
        Err(Errno::EXIST) => return Ok(()),
        made => made.map_err(fault)?,
    }
    if (device.uid, device.gid) != (0, 0) {
        let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
        rustix::fs::chownat(dir, &name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(fault)?;
    }
    Ok(())
}

fn file_type(device: &Device) -> FileType {
    if device.kind == 'b' { FileType::BlockDevice } else { FileType::CharacterDevice }
}

/// No USER namespace may make a node: the host's own is bound.
fn bind(root: &Root, device: &Device) -> Result<(), Fault> {
    let host = host_path(device).ok_or_else(|| refused(Stage::Device, shown(&device.path), "the host has no such device"))?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, &host, flags).or_fault(Stage::Device, host.display())?;
    attach_tree(root, tree, &device.path)
}

/// Where the host has the device: under the same name, or that which the kernel gave it.
fn host_path(device: &Device) -> Option<PathBuf> {
    let is_it = |path: &Path| {
        let stat = rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
            .and_then(rustix::fs::fstat);
        stat.is_ok_and(|s| {
            FileType::from_raw_mode(s.st_mode) == file_type(device)
                && s.st_rdev == rustix::fs::makedev(device.major, device.minor)
        })
    };
    let class = if device.kind == 'b' { "block" } else { "char" };
    let uevent =
        std::fs::read_to_string(format!("/sys/dev/{class}/{}:{}/uevent", device.major, device.minor)).unwrap_or_default();
    let named = uevent.lines().find_map(|l| l.strip_prefix("DEVNAME=")).map(|name| Path::new("/dev").join(name));
    [Some(device.path.clone()), named].into_iter().flatten().find(|path| is_it(path))
}
