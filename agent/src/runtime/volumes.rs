//! A pod's volumes on this machine: made, checked, found again, unmounted.
//!
//! An emptyDir of memory is a tmpfs mounted at the volume's folder in the agent's mount namespace, as the kubelet has it: it must
//! outlive containers and the agent, and the kernel's mount table is what a new agent finds it by. Containers see none of it but
//! what they mount.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, HostPathVolumeSource, Volume};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use super::cgroup::layout::unescape;
use super::error::{Cause, ConfigError, file};
use super::recipe::{mounts, sandbox};
use super::remove::is_mount_point;
use super::resources::units;
use super::settings::Settings;
use crate::model::ValidPod;

/// Where a volume is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeRoot {
    /// On the host; a folder, or a file for some hostPaths.
    pub path: PathBuf,
    /// Whatever a mount says.
    pub read_only: bool,
    /// Owners are to be mapped for a pod with its own USER namespace.
    pub idmap: bool,
}

/// A pod's volumes by name.
pub type Volumes = BTreeMap<String, VolumeRoot>;

/// Makes, or finds, all volumes of a pod. May be repeated.
pub fn prepare(pod: &ValidPod, settings: &Settings) -> Result<Volumes, Cause> {
    let mut roots = Volumes::new();
    for volume in pod.spec().volumes.iter().flatten() {
        let (path, read_only) = one(pod, settings, volume)?;
        roots.insert(volume.name.clone(), VolumeRoot { path, read_only, idmap: sandbox::wants_ids(pod) });
    }
    for mount in pod.all_containers().flat_map(|c| c.volume_mounts.iter().flatten()) {
        if let (Some(root), Some(sub)) = (roots.get(&mount.name), mount.sub_path.as_deref().filter(|s| !s.is_empty()))
            && root.path.is_dir()
        {
            make_beneath(&root.path, &mounts::beneath(sub)?)?;
        }
    }
    Ok(roots)
}

fn one(pod: &ValidPod, settings: &Settings, volume: &Volume) -> Result<(PathBuf, bool), Cause> {
    if let Some(source) = &volume.empty_dir {
        let path = settings.volume_dir(pod.uid(), "empty-dir", &volume.name);
        empty_dir(pod, settings, source, &path)?;
        return Ok((path, false));
    }
    if let Some(source) = &volume.host_path {
        host_path(source)?;
        return Ok((source.path.clone().into(), false));
    }
    Err(ConfigError::new(format!("volume \"{}\": this agent serves emptyDir and hostPath", volume.name)).into())
}

fn empty_dir(pod: &ValidPod, settings: &Settings, source: &EmptyDirVolumeSource, path: &Path) -> Result<(), Cause> {
    fs::create_dir_all(path).map_err(file("make", path))?;
    if source.medium.as_deref() == Some("Memory") && !is_mount_point(path) {
        let limit = source.size_limit.as_ref().map(units).filter(|n| *n > 0);
        let size = limit.unwrap_or(settings.allocatable.memory).min(settings.allocatable.memory);
        let options = std::ffi::CString::new(format!("mode=0777,size={size}")).unwrap_or_default();
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount("tmpfs", path, "tmpfs", flags, options.as_c_str())
            .map_err(|e| file("mount a tmpfs at", path)(e.into()))?;
    }
    let fs_group = pod.spec().security_context.as_ref().and_then(|c| c.fs_group).and_then(|g| u32::try_from(g).ok());
    let dir = open_dir(path).map_err(|e| file("open", path)(e.into()))?;
    // Everybody's, as Kubernetes has it; with an fsGroup, new files belong to that group.
    let mode = if fs_group.is_some() { 0o2777 } else { 0o777 };
    let owned = fs_group.map_or(Ok(()), |gid| rustix::fs::fchown(&dir, None, Some(Gid::from_raw(gid))));
    owned.and_then(|()| rustix::fs::fchmod(&dir, Mode::from_raw_mode(mode))).map_err(|e| file("set the owner of", path)(e.into()))
}

fn open_dir(path: &Path) -> rustix::io::Result<std::os::fd::OwnedFd> {
    rustix::fs::open(path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())
}

/// <https://kubernetes.io/docs/concepts/storage/volumes/#hostpath-volume-types>
fn host_path(source: &HostPathVolumeSource) -> Result<(), Cause> {
    let path = Path::new(&source.path);
    let kind = source.type_.as_deref().unwrap_or_default();
    let found = fs::metadata(path);
    let missing = found.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound);
    match kind {
        "" | "DirectoryOrCreate" if missing => return fs::create_dir_all(path).map_err(file("make", path)),
        "FileOrCreate" if missing => {
            return fs::OpenOptions::new().append(true).create(true).open(path).map(drop).map_err(file("make", path));
        }
        _ => {}
    }
    let found = found.map_err(file("hostPath type check failed:", path))?.file_type();
    let (right, wanted) = match kind {
        "" => (true, ""),
        "Directory" | "DirectoryOrCreate" => (found.is_dir(), "a directory"),
        "File" | "FileOrCreate" => (found.is_file(), "a file"),
        "Socket" => (found.is_socket(), "a socket"),
        "CharDevice" => (found.is_char_device(), "a character device"),
        "BlockDevice" => (found.is_block_device(), "a block device"),
        other => return Err(ConfigError::new(format!("hostPath: unknown type \"{other}\"")).into()),
    };
    if right {
        Ok(())
    } else {
        Err(ConfigError::new(format!("hostPath type check failed: {} is not {wanted}", source.path)).into())
    }
}

/// Makes the folders of a subPath that aren't there, with the volume's own mode. Links in the volume are a container's doing:
/// they are resolved as if the volume were `/`, so none leads out.
pub fn make_beneath(root: &Path, sub: &Path) -> Result<(), Cause> {
    let failed = |error: Errno| file("make subPath in", root)(error.into());
    let top = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    let mode = Mode::from_raw_mode(rustix::fs::fstat(&top).map_err(failed)?.st_mode & 0o7777);
    let open =
        |path: &Path| rustix::fs::openat2(&top, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT);
    let mut done = PathBuf::from(".");
    for part in sub.components() {
        let parent = open(&done).map_err(failed)?;
        done.push(part);
        match open(&done) {
            Ok(_) => continue,
            Err(Errno::NOENT) => {}
            Err(error) => return Err(failed(error)),
        }
        match rustix::fs::mkdirat(&parent, part.as_os_str(), mode) {
            // Another container's start was quicker, or it is a link to nowhere: the mount will tell.
            Err(Errno::EXIST) => continue,
            made => made.map_err(failed)?,
        }
        // mkdir is subject to the agent's umask.
        rustix::fs::chmodat(&parent, part.as_os_str(), mode, AtFlags::empty()).map_err(failed)?;
    }
    Ok(())
}

/// Unmounts all that is mounted below a folder, the deepest first.
pub fn unmount_below(dir: &Path) -> Vec<Cause> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape).map(PathBuf::from);
    let mut ours: Vec<PathBuf> = points.filter(|point| point.starts_with(dir)).collect();
    ours.sort_by_key(|point| std::cmp::Reverse(point.components().count()));
    let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    let failed = ours.iter().filter_map(|point| match rustix::mount::unmount(point, flags) {
        // Somebody else was quicker.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => None,
        Err(error) => Some(file("unmount", point)(error.into())),
    });
    failed.collect()
}
