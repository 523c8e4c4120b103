//! `/`: an overlay of the image's layers, and the way into it.

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use podholder::protocol::{Fault, IdMaps, Rootfs, Stage};
use podholder::sys::{self, MountAttributes, attr};
use rustix::fs::{CWD, Gid, Mode, OFlags, Uid};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount as mount_classic, mount_change,
    move_mount, open_tree, unmount,
};

use super::paths::Root;
use crate::fault::OrFault;

/// mount(2) takes one page of options, with a zero at its end. fsconfig's 256 bytes a value (before Linux 6.5) are too few.
const OPTIONS_LIMIT: usize = 4095;

/// Nothing that is mounted from here on is seen by the host.
pub fn cut_propagation() -> Result<(), Fault> {
    let all = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", all).or_fault(Stage::Rootfs, "/")
}

/// Mounts the overlay on `rootfs.target`. In a pod with a USER namespace the layers' owners are mapped as it maps them.
pub fn mount(rootfs: &Rootfs, user_ns: Option<BorrowedFd<'_>>, maps: Option<&IdMaps>) -> Result<(), Fault> {
    let lower = match user_ns {
        Some(user_ns) => mapped_layers(rootfs, user_ns)?,
        None => rootfs.lower.clone(),
    };
    if let Some(maps) = maps {
        give_to_mapped_root(rootfs, maps)?;
    }
    let upper: Vec<PathBuf> = vec![rootfs.upper.clone(), rootfs.work.clone()];
    let mut options = overlay_options(&lower, &upper);
    let mut open: Vec<OwnedFd> = Vec::new();
    if options.len() > OPTIONS_LIMIT || lower.iter().chain(&upper).any(|p| needs_escape(p)) {
        // Short names for long paths, and none that overlayfs would read as two.
        let mut by_number = |paths: &[PathBuf]| -> Result<Vec<PathBuf>, Fault> {
            paths
                .iter()
                .map(|path| {
                    let fd = open_directory(path)?;
                    let name = format!("/proc/self/fd/{}", fd.as_raw_fd());
                    open.push(fd);
                    Ok(name.into())
                })
                .collect()
        };
        options = overlay_options(&by_number(&lower)?, &by_number(&upper)?);
    }
    let options = std::ffi::CString::new(options).or_fault(Stage::Rootfs, rootfs.target.display())?;
    mount_classic("overlay", &rootfs.target, "overlay", MountFlags::empty(), Some(options.as_c_str()))
        .map_err(|e| overlay_fault(rootfs, e))
}

/// ENOENT and such don't say which directory: look.
fn overlay_fault(rootfs: &Rootfs, error: rustix::io::Errno) -> Fault {
    let all = rootfs.lower.iter().chain([&rootfs.upper, &rootfs.work, &rootfs.target]);
    let missing = all.into_iter().find(|p| !p.is_dir());
    crate::fault::kernel(Stage::Rootfs, missing.unwrap_or(&rootfs.target).display(), error)
}

fn overlay_options(lower: &[PathBuf], upper: &[PathBuf]) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    let mut options = b"lowerdir=".to_vec();
    for (n, layer) in lower.iter().enumerate() {
        if n > 0 {
            options.push(b':');
        }
        options.extend_from_slice(layer.as_os_str().as_bytes());
    }
    for (name, path) in ["upperdir", "workdir"].iter().zip(upper) {
        // Writing to a vector doesn't fail.
        let _ = write!(options, ",{name}=");
        options.extend_from_slice(path.as_os_str().as_bytes());
    }
    options
}

fn needs_escape(path: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    path.as_os_str().as_bytes().iter().any(|b| matches!(b, b':' | b',' | b'\\' | b'"'))
}

fn open_directory(path: &Path) -> Result<OwnedFd, Fault> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty()).or_fault(Stage::Rootfs, path.display())
}

/// The layers, each mounted with its owners mapped, below a small tmpfs on `target` that the overlay then covers. overlayfs takes
/// only mounts that are somewhere in this namespace.
fn mapped_layers(rootfs: &Rootfs, user_ns: BorrowedFd<'_>) -> Result<Vec<PathBuf>, Fault> {
    let target = &rootfs.target;
    mount_classic("tmpfs", target, "tmpfs", MountFlags::empty(), Some(c"mode=700")).or_fault(Stage::Rootfs, target.display())?;
    let mut mapped = Vec::with_capacity(rootfs.lower.len());
    for (n, layer) in rootfs.lower.iter().enumerate() {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, layer, flags).or_fault(Stage::Rootfs, layer.display())?;
        let map = MountAttributes { set: attr::RDONLY, user_namespace: Some(user_ns), ..MountAttributes::default() };
        sys::mount_setattr(tree.as_fd(), false, map).or_fault(Stage::IdMap, layer.display())?;
        let place = target.join(n.to_string());
        rustix::fs::mkdir(&place, Mode::from_raw_mode(0o700)).or_fault(Stage::Rootfs, place.display())?;
        move_mount(tree, "", CWD, &place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).or_fault(Stage::Rootfs, place.display())?;
        mapped.push(place);
    }
    Ok(mapped)
}

/// `upper` isn't mapped: what it holds is written by the pod's users as they are outside.
fn give_to_mapped_root(rootfs: &Rootfs, maps: &IdMaps) -> Result<(), Fault> {
    let (uid, gid) = mapped_root(maps);
    for dir in [&rootfs.upper, &rootfs.work] {
        rustix::fs::chownat(CWD, dir, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
            .or_fault(Stage::IdMap, dir.display())?;
    }
    Ok(())
}

/// Who root is outside. A map without root is nobody's wish; then it's the overflow ID.
pub fn mapped_root(maps: &IdMaps) -> (u32, u32) {
    let root =
        |lines: &[podholder::protocol::IdMap]| lines.iter().find(|l| l.inside == 0 && l.count > 0).map_or(65534, |l| l.outside);
    (root(&maps.uids), root(&maps.gids))
}

/// Makes the overlay the working directory: the way to it for a process that gives up its rights and may then not pass the folders
/// above it. Unsharing the mount namespace keeps it, as the copy.
pub fn stand_on(rootfs: &Rootfs) -> Result<(), Fault> {
    rustix::process::chdir(&rootfs.target).or_fault(Stage::Rootfs, rootfs.target.display())
}

/// The overlay's root. In a USER namespace the overlay is locked where it is, as all that was copied from the host: pivot_root
/// wants a mount of our own, so it is bound on itself. There the working directory is the overlay: see [`stand_on`].
pub fn open(rootfs: &Rootfs, in_user_ns: bool) -> Result<Root, Fault> {
    let target = &rootfs.target;
    if !in_user_ns {
        return Ok(Root::new(open_directory(target)?));
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(CWD, ".", flags).or_fault(Stage::Rootfs, target.display())?;
    move_mount(&tree, "", CWD, ".", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).or_fault(Stage::Rootfs, target.display())?;
    Ok(Root::new(tree))
}

/// Makes `root` this namespace's `/` and lets go of the host's.
pub fn pivot(root: &Root, rootfs: &Rootfs) -> Result<(), Fault> {
    let fault = |what: &'static str| move |e: rustix::io::Errno| crate::fault::kernel(Stage::PivotRoot, what, e);
    rustix::process::fchdir(root).map_err(fault("/"))?;
    // The old root comes to lie on the new one, so that no directory for it is needed in the image (pivot_root(2), NOTES).
    rustix::process::pivot_root(".", ".").map_err(fault("pivot_root"))?;
    unmount(".", UnmountFlags::DETACH).map_err(fault("old root"))?;
    rustix::process::chdir("/").map_err(fault("/"))?;
    if rootfs.read_only {
        let read_only = MountAttributes { set: attr::RDONLY, ..MountAttributes::default() };
        sys::mount_setattr(root.as_fd(), false, read_only).or_fault(Stage::Rootfs, "/")?;
    }
    Ok(())
}
