//! Paths that a container may not see, or not write.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use podholder::protocol::{Fault, Recipe, Stage};
use podholder::sys::{self, MountAttributes, attr};
use rustix::fs::{CWD, FileType, OFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::mounts::filesystem;
use super::paths::{Root, file_type};
use super::shown;
use crate::fault::OrFault;

const CLONE: OpenTreeFlags = OpenTreeFlags::OPEN_TREE_CLONE.union(OpenTreeFlags::OPEN_TREE_CLOEXEC);

/// Read-only paths, then masked ones. Before pivot_root, while the host's own /dev/null is at hand: the container's could be
/// anything.
pub fn apply(root: &Root, recipe: &Recipe) -> Result<(), Fault> {
    for path in &recipe.read_only_paths {
        if let Some(place) = find(root, path)? {
            make_read_only(&place).or_fault(Stage::Mask, shown(path))?;
        }
    }
    let mut empty = None;
    for path in &recipe.masked_paths {
        if let Some(place) = find(root, path)? {
            hide(&place, path, &mut empty)?;
        }
    }
    Ok(())
}

fn find(root: &Root, path: &Path) -> Result<Option<OwnedFd>, Fault> {
    match root.open(path, OFlags::PATH) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(None),
        place => place.map(Some).or_fault(Stage::Mask, shown(path)),
    }
}

fn make_read_only(place: &OwnedFd) -> std::io::Result<()> {
    let tree = open_tree(place, "", CLONE | OpenTreeFlags::AT_EMPTY_PATH | OpenTreeFlags::AT_RECURSIVE)?;
    sys::mount_setattr(tree.as_fd(), true, MountAttributes { set: attr::RDONLY, ..MountAttributes::default() })?;
    Ok(put(&tree, place)?)
}

/// `empty`: the folder that others were covered with.
fn hide(place: &OwnedFd, path: &Path, empty: &mut Option<OwnedFd>) -> Result<(), Fault> {
    let (kind, _) = file_type(place).or_fault(Stage::Mask, shown(path))?;
    let cover = match empty {
        _ if kind != FileType::Directory => open_tree(CWD, "/dev/null", CLONE).or_fault(Stage::Mask, "/dev/null")?,
        Some(empty) => open_tree(empty, "", CLONE | OpenTreeFlags::AT_EMPTY_PATH).or_fault(Stage::Mask, shown(path))?,
        None => {
            let attributes = attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC;
            filesystem("tmpfs", "nr_blocks=1,nr_inodes=1,mode=555", attributes, path)?
        }
    };
    put(&cover, place).or_fault(Stage::Mask, shown(path))?;
    if kind == FileType::Directory {
        empty.get_or_insert(cover);
    }
    Ok(())
}

fn put(tree: &OwnedFd, place: &OwnedFd) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, "", place, "", flags)
}
