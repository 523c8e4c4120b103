//! The recipe's mounts: sources are opened with the host's rights and paths, then attached in order inside the container.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use podholder::protocol::{Fault, Mount, PidNamespace, Propagation, Recipe, Source, Stage};
use podholder::sys::{self, MountAttributes, attr};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_fd,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::paths::{Kind, Root, file_type, open_beneath};
use super::{Pod, mount_attributes, shown};
use crate::cgroups::UNIFIED;
use crate::fault::{OrFault, kernel, refused};
use crate::shm::Kept;

const CLONE: OpenTreeFlags = OpenTreeFlags::OPEN_TREE_CLONE.union(OpenTreeFlags::OPEN_TREE_CLOEXEC);

/// A mount that isn't attached anywhere yet.
pub struct Tree(OwnedFd);

/// Opens the mounts that come from outside of the container, with their attributes, one entry a mount of the recipe.
pub fn open_sources(
    mounts: &[Mount],
    user_ns: Option<BorrowedFd<'_>>,
    (shm, kept): (BorrowedFd<'_>, Kept),
) -> Result<Vec<Option<Tree>>, Fault> {
    mounts
        .iter()
        .map(|mount| match &mount.source {
            Source::Bind { path, beneath, recursive, idmap } => {
                let fd = open_bind(path, beneath, *recursive)?;
                let user_ns = user_ns.filter(|_| *idmap);
                set_attributes(fd.as_fd(), mount, *recursive, user_ns).or_fault(Stage::Mount, path.join(beneath).display())?;
                Ok(Some(Tree(fd)))
            }
            Source::Shm => {
                let fd = crate::shm::copy(shm, kept).or_fault(Stage::Mount, shown(&mount.target))?;
                set_attributes(fd.as_fd(), mount, false, None).or_fault(Stage::Mount, shown(&mount.target))?;
                Ok(Some(Tree(fd)))
            }
            _ => Ok(None),
        })
        .collect()
}

fn open_bind(path: &Path, beneath: &Path, recursive: bool) -> Result<OwnedFd, Fault> {
    let flags = if recursive { CLONE | OpenTreeFlags::AT_RECURSIVE } else { CLONE };
    if beneath.as_os_str().is_empty() {
        return open_tree(CWD, path, flags).or_fault(Stage::Mount, path.display());
    }
    let base =
        rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).or_fault(Stage::Mount, path.display())?;
    let full = path.join(beneath);
    let inner = open_beneath(base.as_fd(), beneath, OFlags::PATH).or_fault(Stage::Mount, full.display())?;
    open_tree(inner, "", flags | OpenTreeFlags::AT_EMPTY_PATH).or_fault(Stage::Mount, full.display())
}

fn set_attributes(fd: BorrowedFd<'_>, mount: &Mount, recursive: bool, user_ns: Option<BorrowedFd<'_>>) -> std::io::Result<()> {
    let propagation = match mount.propagation {
        Propagation::Private => attr::PRIVATE,
        Propagation::Slave => attr::SLAVE,
        Propagation::Shared => attr::SHARED,
    };
    let both = MountAttributes { propagation, user_namespace: user_ns, ..MountAttributes::default() };
    sys::mount_setattr(fd, recursive, both)?;
    // Only what is asked for is set and nothing cleared: flags that the host's mount has are kept.
    let set = mount_attributes(mount);
    if set != 0 {
        sys::mount_setattr(fd, false, MountAttributes { set, ..MountAttributes::default() })?;
    }
    if mount.recursive_read_only {
        sys::mount_setattr(fd, recursive, MountAttributes { set: attr::RDONLY, ..MountAttributes::default() })?;
    }
    Ok(())
}

/// Attaches all of the recipe's mounts.
///
/// The PID namespace is the container's, where it isn't this process's own.
pub fn attach(
    root: &Root,
    recipe: &Recipe,
    (pod, pid): (&Pod<'_>, Option<BorrowedFd<'_>>),
    (trees, cgroups): (Vec<Option<Tree>>, &[Shown<'_>]),
) -> Result<(), Fault> {
    for (mount, tree) in recipe.mounts.iter().zip(trees) {
        let fd = match (tree, &mount.source) {
            (Some(Tree(fd)), _) => fd,
            (None, Source::Cgroup) => {
                attach_cgroup(root, mount, cgroups)?;
                continue;
            }
            (None, Source::Proc) if let Some(pid) = pid => {
                made_of("proc", "", Some(pid), mount_attributes(mount), &mount.target)?
            }
            (None, source) => new_filesystem(mount, source, recipe.pid, pod)?,
        };
        if matches!(mount.source, Source::Proc | Source::Sysfs) {
            attach_kernels(root, &fd, &mount.target)?;
            continue;
        }
        attach_tree(root, &fd, &mount.target)?;
    }
    Ok(())
}

/// Attaches a detached mount at a path of the container, made as what the mount is if it isn't there.
pub fn attach_tree(root: &Root, fd: impl AsFd, target: &Path) -> Result<(), Fault> {
    let (kind, _) = file_type(&fd).or_fault(Stage::Mount, shown(target))?;
    let kind = if kind == FileType::Directory { Kind::Directory } else { Kind::File };
    let place = root.make(target, kind).or_fault(Stage::Mount, shown(target))?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(fd, "", place, "", flags).or_fault(Stage::Mount, shown(target))
}

/// The kernel's own file systems lie where they are said to be, or nowhere: behind a link, into a volume that others change at the
/// same time, the paths to be masked in them could be gone when they are looked for.
fn attach_kernels(root: &Root, fd: &OwnedFd, target: &Path) -> Result<(), Fault> {
    root.make(target, Kind::Directory).or_fault(Stage::Mount, shown(target))?;
    let place = root.open_without_links(target).map_err(|e| {
        let mut fault = kernel(Stage::Mount, shown(target), e);
        if fault.errno == libc::ELOOP {
            "the image has a link there".clone_into(&mut fault.detail);
        }
        fault
    })?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(fd, "", place, "", flags).or_fault(Stage::Mount, shown(target))
}

fn new_filesystem(mount: &Mount, source: &Source, pid: PidNamespace, pod: &Pod<'_>) -> Result<OwnedFd, Fault> {
    let gid_5 = pod.maps.is_none_or(|m| m.gids.iter().any(|l| l.inside <= 5 && 5 - l.inside < l.count));
    let devpts = if gid_5 { "newinstance,ptmxmode=0666,mode=0620,gid=5" } else { "newinstance,ptmxmode=0666,mode=0620" };
    let (kind, options) = match source {
        Source::Tmpfs { options } => ("tmpfs", options.as_str()),
        Source::Proc => ("proc", ""),
        Source::Sysfs => ("sysfs", ""),
        Source::Devpts => ("devpts", devpts),
        Source::Mqueue => ("mqueue", ""),
        Source::Bind { .. } | Source::Shm | Source::Cgroup => {
            return Err(refused(Stage::Mount, shown(&mount.target), "not a file system of its own"));
        }
    };
    let made = filesystem(kind, options, mount_attributes(mount), &mount.target);
    match (made, source) {
        // A USER namespace may mount the procfs or sysfs of its own PID and NET namespace alone: of the host's it gets a copy.
        (Err(fault), Source::Proc | Source::Sysfs) if fault.errno == libc::EPERM && pod.maps.is_some() => {
            let host = match source {
                Source::Proc if pid == PidNamespace::Host => "/proc",
                Source::Sysfs => "/sys",
                _ => return Err(fault),
            };
            let tree = open_tree(CWD, host, CLONE | OpenTreeFlags::AT_RECURSIVE).or_fault(Stage::Mount, shown(&mount.target))?;
            set_attributes(tree.as_fd(), mount, true, None).or_fault(Stage::Mount, shown(&mount.target))?;
            Ok(tree)
        }
        (made, _) => made,
    }
}

/// Whether this kernel gives the procfs of another PID namespace than the asking process's own: Linux 6.18.
pub fn makes_procfs_of_others() -> bool {
    let made = || {
        let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let own = rustix::fs::openat(CWD, "/proc/self/ns/pid", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        fsconfig_set_fd(&context, PID_NAMESPACE, own)
    };
    made().is_ok()
}

/// procfs's parameter.
const PID_NAMESPACE: &str = "pidns";

/// A new file system, not attached yet.
pub fn filesystem(kind: &str, options: &str, attributes: u64, target: &Path) -> Result<OwnedFd, Fault> {
    made_of(kind, options, None, attributes, target)
}

/// The same, of a PID namespace if one is given.
fn made_of(kind: &str, options: &str, pid: Option<BorrowedFd<'_>>, attributes: u64, target: &Path) -> Result<OwnedFd, Fault> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).or_fault(Stage::Mount, shown(target))?;
    // The kernel's own words are in the context.
    let fault = |e: rustix::io::Errno| {
        let mut words = [0; 256];
        let length = rustix::io::read(&context, &mut words).unwrap_or(0);
        let mut fault = kernel(Stage::Mount, shown(target), e);
        fault.detail = String::from_utf8_lossy(&words[..length]).trim_end().to_owned();
        fault
    };
    fsconfig_set_string(&context, "source", kind).map_err(fault)?;
    for option in options.split(',').filter(|o| !o.is_empty()) {
        match option.split_once('=') {
            Some((key, value)) => fsconfig_set_string(&context, key, value).map_err(fault)?,
            None => fsconfig_set_flag(&context, option).map_err(fault)?,
        }
    }
    if let Some(pid) = pid {
        fsconfig_set_fd(&context, PID_NAMESPACE, pid).map_err(fault)?;
    }
    fsconfig_create(&context).map_err(fault)?;
    let attributes = MountAttrFlags::from_bits_retain(attributes as u32);
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(fault)
}

/// v2 alone: the tree. Else a tmpfs with the container's own directory of each hierarchy: a new superblock for each of them, as a mount
/// of its own needs, takes ten times as long. v2 beside v1 is left out: programs that see it take the machine for one of v2, and it
/// controls nothing.
fn attach_cgroup(root: &Root, mount: &Mount, cgroups: &[Shown<'_>]) -> Result<(), Fault> {
    let attributes = mount_attributes(mount);
    if let [Shown { name: UNIFIED, .. }] = cgroups {
        return attach_tree(root, filesystem("cgroup2", "", attributes, &mount.target)?, &mount.target);
    }
    let holder = filesystem("tmpfs", "mode=755", attributes & !attr::RDONLY, &mount.target)?;
    attach_tree(root, &holder, &mount.target)?;
    let set = MountAttributes { set: attributes, propagation: attr::PRIVATE, ..MountAttributes::default() };
    for Shown { name, tree } in cgroups.iter().filter(|group| group.name != UNIFIED) {
        let place = || shown(&mount.target.join(name));
        // Nobody else has put anything into this new file system: no link is on the way.
        match rustix::fs::mkdirat(&holder, *name, Mode::from_raw_mode(0o755)) {
            // Once is enough.
            Err(Errno::EXIST) => continue,
            made => made.or_fault(Stage::Mount, place())?,
        }
        sys::mount_setattr(tree.as_fd(), false, set).or_fault(Stage::Mount, place())?;
        move_mount(tree, "", &holder, *name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).or_fault(Stage::Mount, place())?;
        for alias in name.split(',').filter(|alias| alias != name) {
            rustix::fs::symlinkat(*name, &holder, alias).or_fault(Stage::Mount, shown(&mount.target.join(alias)))?;
        }
    }
    let read_only = MountAttributes { set: attributes, ..MountAttributes::default() };
    sys::mount_setattr(holder.as_fd(), false, read_only).or_fault(Stage::Mount, shown(&mount.target))
}

/// A cgroup that a container sees: its hierarchy's name, and a mount that isn't attached anywhere yet.
pub struct Shown<'a> {
    pub name: &'a str,
    pub tree: OwnedFd,
}
