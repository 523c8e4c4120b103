//! The pod's /dev/shm: one tmpfs, which the host sees nothing of and of which every container gets a mount.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use podholder::protocol::{Fault, SandboxRecipe, Stage};
use podholder::sys::{self, attr, ns};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::container::mapped_root;
use crate::container::mounts::filesystem;
use crate::fault::OrFault;

/// Kubernetes' default size.
const SIZE: u64 = 64 << 20;
/// The first Linux that copies a mount which is attached nowhere (OPEN_TREE_CLONE of an anonymous mount namespace's mount).
const COPIES_DETACHED: (u32, u32) = (6, 15);
const CLONE: OpenTreeFlags = OpenTreeFlags::OPEN_TREE_CLONE.union(OpenTreeFlags::OPEN_TREE_CLOEXEC);

/// See the module's page.
pub struct Shm {
    fd: OwnedFd,
    kept: Kept,
}

/// How it is kept.
#[derive(Clone, Copy)]
pub enum Kept {
    /// As a mount that is attached nowhere.
    Detached,
    /// As the root of a mount namespace where nothing else is, so that it pins nothing of the host's. Its making waits for an RCU
    /// grace period, with the unmounting of the host's root in it.
    Namespace,
}

impl Shm {
    /// A fresh one.
    pub fn make(recipe: &SandboxRecipe) -> Result<Self, Fault> {
        let size = if recipe.shm_size == 0 { SIZE } else { recipe.shm_size };
        let (uid, gid) = recipe.user.as_ref().map_or((0, 0), mapped_root);
        let options = format!("mode=1777,size={size},uid={uid},gid={gid}");
        if kernel_version() >= COPIES_DETACHED {
            let attributes = attr::NOSUID | attr::NODEV | attr::NOEXEC;
            let fd = filesystem("tmpfs", &options, attributes, Path::new("/dev/shm"))?;
            return Ok(Self { fd, kept: Kept::Detached });
        }
        Ok(Self { fd: in_a_namespace(&options)?, kept: Kept::Namespace })
    }

    /// How it is kept.
    pub fn kept(&self) -> Kept {
        self.kept
    }
}

impl AsFd for Shm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// One more mount of it.
pub fn copy(shm: BorrowedFd<'_>, kept: Kept) -> io::Result<OwnedFd> {
    match kept {
        Kept::Detached => Ok(open_tree(shm, "", CLONE | OpenTreeFlags::AT_EMPTY_PATH)?),
        Kept::Namespace => {
            let own = own_mount_namespace()?;
            sys::setns(shm, ns::MNT)?;
            let tree = open_tree(CWD, "/", CLONE);
            sys::setns(own.as_fd(), ns::MNT)?;
            Ok(tree?)
        }
    }
}

fn in_a_namespace(options: &str) -> Result<OwnedFd, Fault> {
    use rustix::mount::MountFlags;
    let own = own_mount_namespace().or_fault(Stage::Namespace, "mnt")?;
    sys::unshare(ns::MNT).or_fault(Stage::Namespace, "mnt")?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let made = own_mount_namespace().and_then(|shm| crate::sandbox::empty_root(options, flags).map(|()| shm));
    // Back in any case: this also sets the root and the working directory back.
    sys::setns(own.as_fd(), ns::MNT).or_fault(Stage::Namespace, "mnt")?;
    made.or_fault(Stage::Mount, "/dev/shm")
}

fn own_mount_namespace() -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(CWD, "/proc/thread-self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Of `6.18.2-rc1`, 6 and 18; of what can't be read, 0 and 0.
fn kernel_version() -> (u32, u32) {
    let name = rustix::system::uname();
    let mut numbers = name.release().to_bytes().split(|byte| !byte.is_ascii_digit());
    let mut number = || numbers.next().and_then(|text| str::from_utf8(text).ok()?.parse().ok()).unwrap_or(0);
    (number(), number())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rustix::fs::openat;

    /// Both ways give mounts of one tmpfs, and leave the process where it was.
    #[test]
    fn every_copy_is_of_the_same_tmpfs() {
        assert!(rustix::process::geteuid().is_root(), "this test needs root");
        // setns of a mount namespace wants a thread that shares its working directory with no other.
        let body = || {
            sys::unshare(libc::CLONE_FS as u64).unwrap();
            let options = "mode=1777,size=65536";
            let mut all = vec![Shm { fd: in_a_namespace(options).unwrap(), kept: Kept::Namespace }];
            if kernel_version() >= COPIES_DETACHED {
                all.push(Shm::make(&SandboxRecipe { shm_size: 65536, ..SandboxRecipe::default() }).unwrap());
            }
            let root = rustix::fs::stat("/").unwrap();
            for shm in &all {
                let [one, two] = [(); 2].map(|()| copy(shm.as_fd(), shm.kept()).unwrap());
                assert_eq!(rustix::fs::fstatfs(&one).unwrap().f_type as i64, libc::TMPFS_MAGIC);
                openat(&one, "file", OFlags::CREATE | OFlags::CLOEXEC, Mode::from_raw_mode(0o600)).unwrap();
                openat(&two, "file", OFlags::CLOEXEC, Mode::empty()).unwrap();
                let now = rustix::fs::stat("/").unwrap();
                assert_eq!((now.st_dev, now.st_ino), (root.st_dev, root.st_ino));
            }
        };
        std::thread::scope(|scope| scope.spawn(body).join().unwrap());
    }
}
