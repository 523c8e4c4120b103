//! pod.json: the pod that a sandbox was made from, for the agent's next life.

use std::fs;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;
use netplug::whole::{self, Outlives};
use serde::{Deserialize, Serialize};

use super::error::{Cause, ConfigError, file};
use crate::model::{Origin, ValidPod};

#[derive(Serialize, Deserialize)]
struct Record<P> {
    pod: P,
    /// Unset: standard input, or the API server.
    file: Option<PathBuf>,
    #[serde(default)]
    line: usize,
    #[serde(default)]
    api: bool,
}

/// Whole or not at all; the folder is in memory, so nothing needs to be synced.
pub fn write(path: &Path, pod: &ValidPod) -> Result<(), Cause> {
    let (origin, line) = match pod.origin() {
        Origin::File { path, line } => (Some(path.clone()), *line),
        Origin::Stdin | Origin::Api => (None, 0),
    };
    let record = Record { pod: pod.object().as_ref(), file: origin, line, api: *pod.origin() == Origin::Api };
    let text = serde_json::to_vec(&record).map_err(|e| file("write", path)(e.into()))?;
    whole::write(path, &text, 0o600, Outlives::Process).map_err(file("write", path))
}

pub fn read(path: &Path) -> Result<ValidPod, Cause> {
    let text = fs::read(path).map_err(file("read", path))?;
    let record: Record<Pod> = serde_json::from_slice(&text)
        .map_err(|error| ConfigError::new(format!("{} isn't the record of a pod: {error}", path.display())))?;
    let origin = match record.file {
        Some(path) => Origin::File { path, line: record.line },
        None if record.api => Origin::Api,
        None => Origin::Stdin,
    };
    Ok(ValidPod::trusted(record.pod, origin))
}
