//! A pod's volumes on this machine: made, checked, found again, unmounted.
//!
//! What lives in memory (emptyDir of memory, Secrets) is a tmpfs mounted at the volume's folder in the agent's mount namespace, as the
//! kubelet has it: it must outlive containers and the agent, and the kernel's mount table is what a new agent finds it by. Containers
//! see none of it but what they mount.

mod atomic;
mod claim;
mod empty_dir;
mod host_path;
mod image;
mod network;
mod ownership;
pub mod payload;
pub mod usage;
pub(super) mod walk;

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Volume, VolumeDevice};
use podholder::beneath;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use super::cgroup::layout::unescape;
use super::error::{Cause, ConfigError, file};
use super::grant::Device;
use super::recipe::env::Objects;
use super::recipe::env_file::FILE_LIMIT;
use super::recipe::sandbox;
use super::remove::is_mount_point;
use super::settings::Settings;
use crate::model::ValidPod;
pub use network::{attach, detach};
use payload::Sources;

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

/// What a pod's volumes are made from.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// The pod.
    pub pod: &'a ValidPod,
    /// Its addresses; empty on the host's network.
    pub pod_ips: &'a [IpAddr],
    /// ConfigMaps, Secrets and claims.
    pub objects: &'a dyn Objects,
    /// The layers of image volumes, the lowest first, by the volumes' names.
    pub images: &'a BTreeMap<String, Vec<PathBuf>>,
    /// Where drivers have mounted volumes, by the volumes' names.
    pub mounted: &'a BTreeMap<String, PathBuf>,
    /// hostPaths that are disks of the pod's own, by the volumes' names.
    pub disks: &'a [String],
}

/// Makes, or finds, all volumes of a pod. May be repeated.
pub fn prepare(input: Input<'_>, settings: &Settings) -> Result<Volumes, Cause> {
    let pod = input.pod;
    let mut roots = Volumes::new();
    for volume in pod.spec().volumes.iter().flatten() {
        let (path, read_only) = one(input, settings, volume)
            .map_err(|cause| Cause::Volume { volume: volume.name.clone(), cause: Box::new(cause) })?;
        let idmap = sandbox::wants_ids(pod) && can_be_mapped(volume);
        roots.insert(volume.name.clone(), VolumeRoot { path, read_only, idmap });
    }
    Ok(roots)
}

/// Brings the volumes that are made of objects, or of the pod's own fields, to what those say now. Goes on past errors. Those that
/// aren't there yet, or any more, stay away.
pub fn refresh(input: Input<'_>, settings: &Settings) -> Vec<Cause> {
    let mut errors = Vec::new();
    for volume in input.pod.spec().volumes.iter().flatten() {
        if !settings.volume_dir(input.pod.uid(), FILES, &volume.name).exists() {
            continue;
        }
        if let Some(Err(cause)) = files(input, settings, volume) {
            errors.push(Cause::Volume { volume: volume.name.clone(), cause: Box::new(cause) });
        }
    }
    errors
}

fn one(input: Input<'_>, settings: &Settings, volume: &Volume) -> Result<(PathBuf, bool), Cause> {
    let pod = input.pod;
    if let Some(source) = &volume.empty_dir {
        let path = settings.empty_dir(pod.uid(), &volume.name);
        empty_dir::make(pod, settings, source, &path)?;
        return Ok((path, false));
    }
    if let Some(source) = &volume.host_path {
        host_path::check(source)?;
        let path = PathBuf::from(&source.path);
        if input.disks.contains(&volume.name) {
            claim::give(pod, settings, &volume.name, &path)?;
        }
        return Ok((path, false));
    }
    if let Some(source) = &volume.csi {
        let path = input.mounted.get(&volume.name).ok_or_else(|| ConfigError::new("it is not mounted (yet)"))?;
        return Ok((path.clone(), source.read_only == Some(true)));
    }
    if let Some(path) = network::place(pod, settings, volume) {
        return Ok((network::find(path)?, network::is_read_only(volume)));
    }
    if let Some(made) = files(input, settings, volume) {
        return Ok((made?, true));
    }
    if let Some(source) = &volume.persistent_volume_claim {
        let read_only = source.read_only == Some(true);
        let access = if read_only { claim::Access::ReadOnly } else { claim::Access::ReadWrite };
        return Ok((claim::bound(input, settings, &source.claim_name, access)?, read_only));
    }
    if volume.ephemeral.is_some() {
        return Ok((claim::ephemeral(pod, settings, &volume.name)?, false));
    }
    if let Some(source) = &volume.image {
        return Ok((image::mount(input, settings, &volume.name, source)?, true));
    }
    Err(ConfigError::new("this kind of volume is not served by this agent").into())
}

/// The kernel maps owners of most file systems; not of overlayfs (image volumes), hugetlbfs and those of other machines.
fn can_be_mapped(volume: &Volume) -> bool {
    let huge = volume.empty_dir.as_ref().and_then(|e| e.medium.as_deref()).is_some_and(|m| m.starts_with("HugePages"));
    volume.image.is_none() && volume.nfs.is_none() && volume.csi.is_none() && !huge
}

/// The kind of a volume of files that the agent writes.
const FILES: &str = "files";

/// A volume of files that the agent writes. `None`: it is of another kind.
fn files(input: Input<'_>, settings: &Settings, volume: &Volume) -> Option<Result<PathBuf, Cause>> {
    let Input { pod, pod_ips, objects, .. } = input;
    let payload = payload::of(&Sources { pod, settings, pod_ips, objects }, volume)?;
    let write = |payload| {
        let path = settings.volume_dir(pod.uid(), FILES, &volume.name);
        fs::create_dir_all(&path).map_err(file("make", &path))?;
        if payload::in_memory(volume) && !is_mount_point(&path) {
            mount_secret_tmpfs(&path)?;
        }
        own(&path, fs_group(pod), if fs_group(pod).is_some() { 0o3777 } else { 0o1777 })?;
        atomic::write(&path, &payload, fs_group(pod)).map_err(file("write the files of", &path))?;
        Ok(path)
    };
    Some(payload.map_err(Cause::from).and_then(write))
}

/// The block devices that a container gets of its pod's volumes. One that is only to be read is only opened so; it may be made anew no more.
pub fn devices(container: &Container, volumes: &Volumes) -> Result<Vec<Device>, ConfigError> {
    let device = |wanted: &VolumeDevice| {
        let missing = || ConfigError::new(format!("volumeDevices: no volume is named \"{}\"", wanted.name));
        let volume = volumes.get(&wanted.name).ok_or_else(missing)?;
        Ok(Device {
            host_path: volume.path.clone(),
            container_path: Path::new("/").join(&wanted.device_path),
            permissions: if volume.read_only { "r" } else { "rwm" }.into(),
        })
    };
    container.volume_devices.iter().flatten().map(device).collect()
}

/// Gives a volume that somebody has mounted to the pod's fsGroup. Blocks on the disk.
pub fn give(pod: &ValidPod, path: &Path) -> Result<(), Cause> {
    fs_group(pod).map_or(Ok(()), |gid| ownership::give(path, gid, ownership::Policy::of(pod)))
}

/// securityContext.fsGroup.
pub fn fs_group(pod: &ValidPod) -> Option<u32> {
    pod.spec().security_context.as_ref()?.fs_group.and_then(|gid| u32::try_from(gid).ok())
}

/// Never written to a disk, also not as swap, where the kernel (Linux 6.4) can promise that.
fn mount_secret_tmpfs(path: &Path) -> Result<(), Cause> {
    mount_tmpfs(path, "mode=1777,noswap").or_else(|_| mount_tmpfs(path, "mode=1777"))
}

fn mount_tmpfs(path: &Path, options: &str) -> Result<(), Cause> {
    let options = CString::new(options).unwrap_or_default();
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("tmpfs", path, "tmpfs", flags, options.as_c_str()).map_err(|e| file("mount a tmpfs at", path)(e.into()))
}

/// Sets a volume folder's group and rights, whatever lies at the path: a link is refused.
fn own(path: &Path, gid: Option<u32>, mode: u32) -> Result<(), Cause> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let dir = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| file("open", path)(e.into()))?;
    let owned = gid.map_or(Ok(()), |gid| rustix::fs::fchown(&dir, None, Some(rustix::fs::Gid::from_raw(gid))));
    owned.and_then(|()| rustix::fs::fchmod(&dir, Mode::from_raw_mode(mode))).map_err(|e| file("set the owner of", path)(e.into()))
}

/// Reads a file that a container may have written: beneath the volume whatever links say, and only as much as is allowed.
pub fn read_env_file(volumes: &Volumes, name: &str, path: &str) -> io::Result<Option<Vec<u8>>> {
    let Some(volume) = volumes.get(name) else { return Ok(None) };
    let top = rustix::fs::open(&volume.path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = match beneath::open(&top, path, flags, resolve) {
        Err(Errno::NOENT) => return Ok(None),
        opened => fs::File::from(opened?),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(FILE_LIMIT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_LIMIT {
        return Err(io::Error::other(format!("it is larger than {} KiB", FILE_LIMIT / 1024)));
    }
    Ok(Some(bytes))
}

/// Makes the folders of a subPath that aren't there, with the volume's own mode. Links in the volume are a container's doing:
/// they are resolved as if the volume were `/`, so none leads out.
pub fn make_beneath(root: &Path, sub: &Path) -> Result<(), Cause> {
    let failed = |error: Errno| file("make subPath in", root)(error.into());
    let top = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    let mode = Mode::from_raw_mode(rustix::fs::fstat(&top).map_err(failed)?.st_mode & 0o3777);
    let open = |path: &Path| beneath::open(&top, path, OFlags::PATH, ResolveFlags::IN_ROOT);
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
        // mkdir is subject to the agent's umask. By descriptor: a container may have put a link in its place since.
        let made = walk::open_in(parent.as_fd(), part.as_os_str()).map_err(failed)?;
        rustix::fs::fchmod(&made, mode).map_err(failed)?;
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    /// A container of the volume puts a link in the place of each folder, as soon as it is made: its rights are the volume's, those of
    /// what the link leads to stay.
    #[test]
    fn a_sub_path_gives_no_rights_beyond_the_volume() {
        let dir = tempfile::tempdir().unwrap();
        let (volume, host) = (dir.path().join("volume"), dir.path().join("host"));
        for (path, mode) in [(&volume, 0o777), (&host, 0o700)] {
            fs::create_dir(path).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
        let (now, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        std::thread::scope(|threads| {
            threads.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let made = volume.join(now.load(Ordering::Relaxed).to_string());
                    // The link that is there already is its own.
                    if fs::symlink_metadata(&made).is_ok_and(|meta| meta.is_dir()) {
                        fs::rename(&made, volume.join("taken")).unwrap();
                        symlink(&host, &made).unwrap();
                        fs::remove_dir(volume.join("taken")).unwrap();
                    }
                }
            });
            for number in 0..3000 {
                now.store(number, Ordering::Relaxed);
                // It may fail: the folder isn't what it was.
                let _ = make_beneath(&volume, Path::new(&number.to_string()));
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert_eq!(mode(&host), 0o700);
        assert_eq!(fs::read_dir(&host).unwrap().count(), 0);
        make_beneath(&volume, Path::new("a/b")).unwrap();
        assert_eq!((mode(&volume.join("a")), mode(&volume.join("a/b"))), (0o777, 0o777));
    }
}
