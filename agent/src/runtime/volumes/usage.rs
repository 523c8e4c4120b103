//! What a pod uses of the disk: emptyDirs against their sizeLimit, containers' layers and logs against their limits of
//! ephemeral-storage.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use k8s_openapi::api::core::v1::Container;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::walk::walk;
use crate::model::ValidPod;
use crate::runtime::files;
use crate::runtime::resources::units;
use crate::runtime::settings::Settings;

/// Whether a pod has something that [`over_limit`] would measure.
pub fn is_limited(pod: &ValidPod) -> bool {
    limits(pod).next().is_some() || pod.all_containers().any(|c| limit(c).is_some())
}

/// A container's limit of ephemeral-storage, also as it is written.
fn limit(container: &Container) -> Option<(u64, &str)> {
    let quantity = container.resources.as_ref()?.limits.as_ref()?.get("ephemeral-storage")?;
    Some((units(quantity), quantity.0.as_str())).filter(|(bytes, _)| *bytes > 0)
}

/// Name and limit, also as it is written, of each emptyDir on disk that has one. In memory the file system itself is the limit.
fn limits(pod: &ValidPod) -> impl Iterator<Item = (&str, u64, &str)> {
    pod.spec().volumes.iter().flatten().filter_map(|volume| {
        let source = volume.empty_dir.as_ref().filter(|e| e.medium.as_deref().unwrap_or_default().is_empty())?;
        let limit = source.size_limit.as_ref()?;
        Some((volume.name.as_str(), units(limit), limit.0.as_str())).filter(|(_, bytes, _)| *bytes > 0)
    })
}

/// What lies on the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    /// Bytes.
    pub bytes: u64,
    /// Files and folders.
    pub inodes: u64,
}

impl std::ops::Add for Used {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { bytes: self.bytes.saturating_add(other.bytes), inodes: self.inodes.saturating_add(other.inodes) }
    }
}

/// The kubelet's sentence about the first limit that is exceeded: of a volume, of the pod as a whole, of a container.
pub fn over_limit(pod: &ValidPod, settings: &Settings) -> Option<String> {
    let too_large = limits(pod).find_map(|(name, limit, written)| {
        let used = used(&settings.empty_dir(pod.uid(), name)).unwrap_or_default().bytes;
        (used > limit).then(|| format!("Usage of EmptyDir volume \"{name}\" exceeds the limit \"{written}\". "))
    });
    if too_large.is_some() || pod.all_containers().all(|c| limit(c).is_none()) {
        return too_large;
    }
    let containers: Vec<_> = pod.all_containers().map(|c| (c, of_container(pod, &c.name, settings))).collect();
    let whole = containers.iter().map(|(_, used)| *used).fold(of_pod(pod, settings), std::ops::Add::add).bytes;
    // As the kubelet: those that have a limit give the pod's.
    let total = pod.spec().containers.iter().filter_map(limit).map(|(bytes, _)| bytes).fold(0, u64::saturating_add);
    if total > 0 && whole > total {
        let total = crate::eviction::bytes(total);
        return Some(format!("Pod ephemeral local storage usage exceeds the total limit of containers {total}. "));
    }
    containers.iter().find_map(|(container, used)| {
        let (limit, written) = limit(container)?;
        let name = &container.name;
        (used.bytes > limit).then(|| format!("Container {name} exceeded its local ephemeral storage limit \"{written}\". "))
    })
}

/// What a pod has beside its containers: its emptyDirs that aren't memory, and the files in /etc that its containers may all write to.
pub fn of_pod(pod: &ValidPod, settings: &Settings) -> Used {
    let files = files::FILES.map(|(_, name)| of_file(&settings.pod_lib(pod.uid()).join(name)));
    files.into_iter().fold(of_volumes(pod, settings), std::ops::Add::add)
}

fn of_volumes(pod: &ValidPod, settings: &Settings) -> Used {
    let on_disk = pod
        .spec()
        .volumes
        .iter()
        .flatten()
        .filter(|v| v.empty_dir.as_ref().is_some_and(|e| e.medium.as_deref().unwrap_or_default().is_empty()));
    let each = on_disk.map(|v| used(&settings.empty_dir(pod.uid(), &v.name)).unwrap_or_default());
    each.fold(Used::default(), std::ops::Add::add)
}

/// What a container's newest run wrote beside volumes, and its logs.
pub fn of_container(pod: &ValidPod, name: &str, settings: &Settings) -> Used {
    of_layer(pod, name, settings) + of_logs(pod, name, settings)
}

/// What a container's newest run wrote beside volumes: to its root, and as its last words.
pub fn of_layer(pod: &ValidPod, name: &str, settings: &Settings) -> Used {
    let runs = settings.container_dir(pod.uid(), name, 0);
    let numbers = runs.parent().and_then(|dir| std::fs::read_dir(dir).ok()).into_iter().flatten().flatten();
    let newest = numbers.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok()).max().unwrap_or(0);
    let upper = used(&settings.container_dir(pod.uid(), name, newest).join("upper")).unwrap_or_default();
    upper + of_file(&settings.termination_log(pod.uid(), name, newest))
}

/// One file that a container may write to; nothing if it isn't there.
fn of_file(path: &Path) -> Used {
    let stat = rustix::fs::lstat(path).ok();
    stat.map_or_else(Used::default, |stat| Used { bytes: blocks(&stat), inodes: 1 })
}

/// What a file takes of the disk, whatever its length says.
fn blocks(stat: &rustix::fs::Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or_default().saturating_mul(512)
}

/// A container's logs.
pub fn of_logs(pod: &ValidPod, name: &str, settings: &Settings) -> Used {
    settings.log_folder(pod, name).ok().and_then(|folder| used_in(folder.as_fd()).ok()).unwrap_or_default()
}

/// On disk; a file of several names counts once. What is nested too deeply to be measured is more than any limit.
pub fn used(path: &Path) -> rustix::io::Result<Used> {
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    used_in(rustix::fs::open(path, flags, Mode::empty())?.as_fd())
}

fn used_in(top: BorrowedFd<'_>) -> rustix::io::Result<Used> {
    let mut total = Used::default();
    let mut linked = HashSet::new();
    let walked = walk(top, &mut |dir, name| {
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory || stat.st_nlink < 2 || linked.insert(stat.st_ino) {
            total = total + Used { bytes: blocks(&stat), inodes: 1 };
        }
        Ok(kind)
    });
    match walked {
        Err(Errno::NAMETOOLONG) => Ok(Used { bytes: i64::MAX.unsigned_abs(), ..total }),
        walked => walked.map(|()| total),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn counts_what_the_disk_holds_and_nothing_beyond() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        fs::create_dir_all(volume.join("a/b")).unwrap();
        fs::write(dir.path().join("outside"), vec![1; 1 << 20]).unwrap();
        std::os::unix::fs::symlink(dir.path().join("outside"), volume.join("link")).unwrap();
        std::os::unix::fs::symlink("..", volume.join("a/up")).unwrap();
        fs::write(volume.join("a/b/file"), vec![1; 64 << 10]).unwrap();
        fs::hard_link(volume.join("a/b/file"), volume.join("again")).unwrap();
        let sparse = fs::File::create(volume.join("sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        let used = used(&volume).unwrap().bytes;
        assert!((64 << 10..=128 << 10).contains(&used), "{used}");
    }
}
