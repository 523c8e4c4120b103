//! PersistentVolumeClaims: each is a folder below the configured root, made when the first pod needs it and kept when the pods go.
//! Ephemeral volumes are the same, but end with their pod.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Input, fs_group, ownership};
use crate::model::ValidPod;
use crate::runtime::error::{Cause, ConfigError, file};
use crate::runtime::settings::Settings;

/// persistentVolumeClaim.readOnly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The pod may write.
    ReadWrite,
    /// No container of the pod may.
    ReadOnly,
}

/// The folder of a claim that a file gives.
pub fn bound(input: Input<'_>, settings: &Settings, name: &str, access: Access) -> Result<PathBuf, Cause> {
    let namespace = input.pod.namespace();
    if input.objects.claim(namespace, name).is_none() {
        return Err(ConfigError::new(format!("persistentvolumeclaim \"{name}\" not found")).into());
    }
    let path = settings.claim_dir(namespace, name);
    make(input.pod, settings, &path, access)?;
    Ok(path)
}

/// The folder of an ephemeral volume, among the pod's own.
pub fn ephemeral(pod: &ValidPod, settings: &Settings, name: &str) -> Result<PathBuf, Cause> {
    let path = settings.volume_dir(pod.uid(), "ephemeral", name);
    make(pod, settings, &path, Access::ReadWrite)?;
    Ok(path)
}

fn make(pod: &ValidPod, settings: &Settings, path: &Path, access: Access) -> Result<(), Cause> {
    if !path.exists() {
        let parent = path.parent().unwrap_or(path);
        fs::create_dir_all(parent).map_err(file("make", parent))?;
        match fs::create_dir(path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(file("make", path)(error)),
            _ => {}
        }
        super::own(path, None, 0o777)?;
    }
    // Whoever only reads changes no owners, as in Kubernetes.
    if access == Access::ReadOnly {
        return Ok(());
    }
    give(pod, settings, &path.file_name().unwrap_or_default().to_string_lossy(), path)
}

/// Gives a folder to the pod's fsGroup, if it has one: once for a sandbox, as the kubelet. A volume may be large, and containers restart often.
pub fn give(pod: &ValidPod, settings: &Settings, name: &str, path: &Path) -> Result<(), Cause> {
    let Some(gid) = fs_group(pod) else { return Ok(()) };
    let mark = settings.pod_run(pod.uid()).join(format!("fs-group.{name}"));
    if mark.exists() {
        return Ok(());
    }
    ownership::give(path, gid, ownership::Policy::of(pod))?;
    // Without the mark the next start only looks again.
    let _ = fs::write(&mark, "");
    Ok(())
}
