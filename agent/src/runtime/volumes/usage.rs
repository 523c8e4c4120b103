//! What emptyDirs on disk use, against their sizeLimit.

use std::collections::HashSet;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};

use super::walk::walk;
use crate::model::ValidPod;
use crate::runtime::resources::units;
use crate::runtime::settings::Settings;

/// Whether a pod has a volume that [`over_limit`] would measure.
pub fn is_limited(pod: &ValidPod) -> bool {
    limits(pod).next().is_some()
}

/// Name and limit, also as it is written, of each emptyDir on disk that has one. In memory the file system itself is the limit.
fn limits(pod: &ValidPod) -> impl Iterator<Item = (&str, u64, &str)> {
    pod.spec().volumes.iter().flatten().filter_map(|volume| {
        let source = volume.empty_dir.as_ref().filter(|e| e.medium.as_deref().unwrap_or_default().is_empty())?;
        let limit = source.size_limit.as_ref()?;
        Some((volume.name.as_str(), units(limit), limit.0.as_str())).filter(|(_, bytes, _)| *bytes > 0)
    })
}

/// The kubelet's sentence about the first volume that is too large.
pub fn over_limit(pod: &ValidPod, settings: &Settings) -> Option<String> {
    limits(pod).find_map(|(name, limit, written)| {
        let used = used(&settings.volume_dir(pod.uid(), "empty-dir", name)).unwrap_or_default();
        (used > limit).then(|| format!("Usage of EmptyDir volume \"{name}\" exceeds the limit \"{written}\". "))
    })
}

/// Bytes on disk; a file of several names counts once.
fn used(path: &Path) -> rustix::io::Result<u64> {
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let top = rustix::fs::open(path, flags, Mode::empty())?;
    let mut total = 0_u64;
    let mut linked = HashSet::new();
    walk(std::os::fd::AsFd::as_fd(&top), &mut |dir, name| {
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory || stat.st_nlink < 2 || linked.insert(stat.st_ino) {
            total = total.saturating_add(u64::try_from(stat.st_blocks).unwrap_or_default().saturating_mul(512));
        }
        Ok(kind)
    })?;
    Ok(total)
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
        let used = used(&volume).unwrap();
        assert!((64 << 10..=128 << 10).contains(&used), "{used}");
    }
}
