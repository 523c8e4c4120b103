//! Image volumes: an image's layers as a folder, read-only and without execution.
//! <https://kubernetes.io/docs/tasks/configure-pod-container/image-volumes/>

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::ImageVolumeSource;
use rustix::fs::{Mode, OFlags};
use rustix::mount::MountFlags;

use super::Input;
use crate::runtime::error::{Cause, ConfigError, file};
use crate::runtime::remove::is_mount_point;
use crate::runtime::settings::Settings;

/// Mounts it, or finds it. An overlay without an upper layer can't be written.
pub fn mount(input: Input<'_>, settings: &Settings, name: &str, source: &ImageVolumeSource) -> Result<PathBuf, Cause> {
    let path = settings.volume_dir(input.pod.uid(), "image", name);
    if is_mount_point(&path) {
        return Ok(path);
    }
    let Some(layers) = input.images.get(name).filter(|layers| !layers.is_empty()) else {
        let reference = source.reference.as_deref().unwrap_or_default();
        return Err(ConfigError::new(format!("image \"{reference}\" has not been pulled")).into());
    };
    // overlayfs wants two layers at least: an empty one does for the second. Numbers stand for long names.
    let empty = settings.volume_dir(input.pod.uid(), "image", ".empty");
    for dir in [&empty, &path] {
        fs::create_dir_all(dir).map_err(file("make", dir))?;
    }
    let mut open: Vec<OwnedFd> = Vec::new();
    let mut options = b"lowerdir=".to_vec();
    for layer in layers.iter().rev().chain([&empty]) {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(layer, flags, Mode::empty()).map_err(|e| file("open", layer)(e.into()))?;
        if !open.is_empty() {
            options.push(b':');
        }
        options.extend_from_slice(PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd())).as_os_str().as_bytes());
        open.push(fd);
    }
    let options = CString::new(options).unwrap_or_default();
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("overlay", &path, "overlay", flags, options.as_c_str())
        .map_err(|e| file("mount the image at", &path)(e.into()))?;
    Ok(path)
}
