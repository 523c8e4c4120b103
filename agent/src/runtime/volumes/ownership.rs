//! fsGroup: everything in a volume belongs to the group and may be read and written by it. The content is not trusted: links are not
//! followed, and no path leads out of the volume.
//! <https://kubernetes.io/docs/tasks/configure-pod-container/security-context/#configure-volume-permission-and-ownership-change-policy-for-pods>

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use podholder::beneath;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::walk::walk;
use crate::model::ValidPod;
use crate::runtime::error::{Cause, file};

/// securityContext.fsGroupChangePolicy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Every start looks at every file.
    Always,
    /// Only when the volume's own folder isn't the group's yet.
    OnRootMismatch,
}

impl Policy {
    /// A pod's.
    pub fn of(pod: &ValidPod) -> Self {
        let policy = pod.spec().security_context.as_ref().and_then(|c| c.fs_group_change_policy.as_deref());
        if policy == Some("OnRootMismatch") { Self::OnRootMismatch } else { Self::Always }
    }
}

/// Group and others' rights of a file, of a folder.
const FILE: u32 = 0o660;
const FOLDER: u32 = 0o2770;

/// Gives the whole volume to the group.
pub fn give(root: &Path, gid: u32, policy: Policy) -> Result<(), Cause> {
    let failed = |error: Errno| file("give to the fsGroup", root)(error.into());
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let top = rustix::fs::open(root, flags, Mode::empty()).map_err(failed)?;
    let stat = rustix::fs::fstat(&top).map_err(failed)?;
    if policy == Policy::OnRootMismatch && !differs(&stat, gid) {
        return Ok(());
    }
    // The root last, so that OnRootMismatch finds an unfinished walk unfinished.
    walk(top.as_fd(), &mut |dir, name| give_one(dir, name, gid)).map_err(failed)?;
    set(top.as_fd(), &stat, gid).map_err(failed)
}

fn give_one(dir: BorrowedFd<'_>, name: &std::ffi::CStr, gid: u32) -> rustix::io::Result<FileType> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let fd = beneath::open(dir, name, flags, resolve)?;
    let stat = rustix::fs::fstat(&fd)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind == FileType::Symlink {
        // A link is given itself; where it leads is not looked at.
        rustix::fs::chownat(&fd, "", None, Some(Gid::from_raw(gid)), AtFlags::EMPTY_PATH)?;
        return Ok(kind);
    }
    if differs(&stat, gid) {
        set(fd.as_fd(), &stat, gid)?;
    }
    Ok(kind)
}

fn wanted(stat: &Stat) -> u32 {
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory { FOLDER } else { FILE }
}

fn differs(stat: &Stat, gid: u32) -> bool {
    stat.st_gid != gid || stat.st_mode & wanted(stat) != wanted(stat)
}

/// chown first: it clears set-id bits. A descriptor of O_PATH names its file through /proc, whatever its name leads to by now.
fn set(fd: BorrowedFd<'_>, stat: &Stat, gid: u32) -> rustix::io::Result<()> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rustix::fs::chownat(CWD, path.as_str(), None, Some(Gid::from_raw(gid)), AtFlags::empty())?;
    let mode = (stat.st_mode & 0o7777) | wanted(stat);
    rustix::fs::chmodat(CWD, path.as_str(), Mode::from_raw_mode(mode), AtFlags::empty())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn everything_in_the_volume_and_nothing_beyond() {
        let dir = tempfile::tempdir().unwrap();
        let (outside, volume) = (dir.path().join("outside"), dir.path().join("volume"));
        fs::write(&outside, "x").unwrap();
        fs::set_permissions(&outside, fs::Permissions::from_mode(0o600)).unwrap();
        fs::create_dir_all(volume.join("a/b")).unwrap();
        fs::write(volume.join("a/b/file"), "x").unwrap();
        fs::set_permissions(volume.join("a/b/file"), fs::Permissions::from_mode(0o600)).unwrap();
        symlink(&outside, volume.join("a/link")).unwrap();
        symlink("..", volume.join("a/b/up")).unwrap();
        give(&volume, 4242, Policy::Always).unwrap();
        let rights = |path: &Path| {
            let meta = fs::symlink_metadata(path).unwrap();
            (meta.gid(), meta.mode() & 0o7777)
        };
        assert_eq!(rights(&volume.join("a/b/file")), (4242, 0o660));
        assert_eq!(rights(&volume.join("a/b")).0, 4242);
        assert_eq!(rights(&volume).1 & 0o2770, 0o2770);
        assert_eq!(rights(&volume.join("a/link")).0, 4242);
        assert_eq!(rights(&outside), (0, 0o600));
    }

    #[test]
    fn on_root_mismatch_looks_at_the_root_alone() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        fs::create_dir(&volume).unwrap();
        give(&volume, 4242, Policy::OnRootMismatch).unwrap();
        fs::write(volume.join("late"), "x").unwrap();
        std::os::unix::fs::chown(volume.join("late"), None, Some(0)).unwrap();
        give(&volume, 4242, Policy::OnRootMismatch).unwrap();
        assert_eq!(fs::metadata(volume.join("late")).unwrap().gid(), 0);
        give(&volume, 4242, Policy::Always).unwrap();
        assert_eq!(fs::metadata(volume.join("late")).unwrap().gid(), 4242);
    }
}
