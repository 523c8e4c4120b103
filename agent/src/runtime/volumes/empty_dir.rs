//! emptyDir: a folder of the pod's own, on disk, in memory or in huge pages.

use std::fs;
use std::path::Path;

use k8s_openapi::api::core::v1::EmptyDirVolumeSource;
use rustix::mount::MountFlags;

use super::{fs_group, mount_tmpfs, own};
use crate::model::ValidPod;
use crate::runtime::error::{Cause, ConfigError, file};
use crate::runtime::remove::is_mount_point;
use crate::runtime::resources::{Totals, units};
use crate::runtime::settings::Settings;

/// Makes it, or finds it.
pub fn make(pod: &ValidPod, settings: &Settings, source: &EmptyDirVolumeSource, path: &Path) -> Result<(), Cause> {
    fs::create_dir_all(path).map_err(file("make", path))?;
    if !is_mount_point(path) {
        match source.medium.as_deref().unwrap_or_default() {
            "" => {}
            "Memory" => mount_tmpfs(path, &format!("mode=0777,size={}", memory(pod, settings, source)))?,
            medium => mount_huge_pages(pod, source, medium, path)?,
        }
    }
    // Everybody's, as Kubernetes has it; with an fsGroup, new files belong to that group.
    let group = fs_group(pod);
    let mode = source.mode.and_then(|m| u32::try_from(m).ok()).unwrap_or(0o777);
    own(path, group, if group.is_some() { mode | 0o2770 } else { mode })
}

/// The least of what the volume, the pod's containers and the node may have.
fn memory(pod: &ValidPod, settings: &Settings, source: &EmptyDirVolumeSource) -> u64 {
    let limit = source.size_limit.as_ref().map(units).filter(|n| *n > 0);
    let of_pod = Totals::of_pod(pod.spec()).memory_limit.filter(|n| *n > 0);
    [limit, of_pod].into_iter().flatten().fold(settings.allocatable.memory, u64::min)
}

fn mount_huge_pages(pod: &ValidPod, source: &EmptyDirVolumeSource, medium: &str, path: &Path) -> Result<(), Cause> {
    let size = match medium.strip_prefix("HugePages-") {
        Some(size) => size.to_owned(),
        None => only_page_size(pod)?,
    };
    let bytes = units(&k8s_openapi::apimachinery::pkg::api::resource::Quantity(size.clone()));
    let pool = format!("/sys/kernel/mm/hugepages/hugepages-{}kB", bytes / 1024);
    if !Path::new(&pool).exists() {
        return Err(
            ConfigError::new(format!("medium {medium}: this machine has no huge pages of {size}: {pool} is missing")).into()
        );
    }
    let limit = source.size_limit.as_ref().map(units).filter(|n| *n > 0);
    let limit = limit.map(|n| format!(",size={n}")).unwrap_or_default();
    let options = std::ffi::CString::new(format!("mode=0777,pagesize={bytes}{limit}")).unwrap_or_default();
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("hugetlbfs", path, "hugetlbfs", flags, options.as_c_str())
        .map_err(|e| file("mount huge pages at", path)(e.into()))
}

/// `medium: HugePages` means the one size that the pod's containers ask for.
fn only_page_size(pod: &ValidPod) -> Result<String, ConfigError> {
    let resources = pod.all_containers().filter_map(|c| c.resources.as_ref());
    let lists = resources.flat_map(|r| r.requests.iter().chain(&r.limits));
    let sizes: std::collections::BTreeSet<&str> =
        lists.flat_map(|list| list.keys().filter_map(|name| name.strip_prefix("hugepages-"))).collect();
    match Vec::from_iter(sizes)[..] {
        [only] => Ok(only.to_owned()),
        [] => Err(ConfigError::new("medium HugePages: no container of the pod asks for huge pages")),
        _ => Err(ConfigError::new("medium HugePages: the pod asks for several sizes: say which, such as HugePages-2Mi")),
    }
}
