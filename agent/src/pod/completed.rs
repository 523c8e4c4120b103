//! The memory of a pod that ended by itself: it doesn't run again, not even after a reboot, until its spec changes. Kept below the
//! pod's folder in /var/lib, which survives what /run doesn't.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};

use super::observed::{Attempt, Failure};
use crate::durable;
use crate::model::{Origin, PodUid, ValidPod};
use crate::runtime::Runtime;

const FILE: &str = "completed.json";

/// What is remembered.
#[derive(Debug)]
pub struct Completed {
    /// The spec that ran.
    pub pod: ValidPod,
    /// When its first container could have started.
    pub start_time: Timestamp,
    /// How each container ended.
    pub attempts: BTreeMap<String, Attempt>,
    /// How it had ended the time before.
    pub previous: BTreeMap<String, Attempt>,
    /// Why the pod as a whole failed.
    pub failure: Option<Failure>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    pod: Pod,
    start_time: Timestamp,
    attempts: BTreeMap<String, Attempt>,
    #[serde(default)]
    previous: BTreeMap<String, Attempt>,
    #[serde(default)]
    failure: Option<Failure>,
    /// Unset: standard input, or the API server.
    #[serde(default)]
    file: Option<PathBuf>,
}

/// Durable: written, synced, renamed. Writing the same again costs a read.
pub fn write(runtime: &Runtime, completed: &Completed) -> io::Result<()> {
    let folder = runtime.settings().pod_lib(completed.pod.uid());
    let record = Record {
        pod: Pod::clone(completed.pod.object()),
        start_time: completed.start_time,
        attempts: completed.attempts.clone(),
        previous: completed.previous.clone(),
        failure: completed.failure.clone(),
        file: match completed.pod.origin() {
            Origin::File { path, .. } => Some(path.clone()),
            Origin::Stdin | Origin::Api => None,
        },
    };
    let bytes = serde_json::to_vec(&record)?;
    let path = folder.join(FILE);
    if std::fs::read(&path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    std::fs::create_dir_all(&folder)?;
    durable::write(&path, &bytes)
}

/// Nothing, when the pod never completed or the record can't be read: then it runs.
pub fn read(runtime: &Runtime, uid: &PodUid) -> Option<Completed> {
    let bytes = std::fs::read(runtime.settings().pod_lib(uid).join(FILE)).ok()?;
    let record: Record = serde_json::from_slice(&bytes).ok()?;
    let origin = record.file.map_or(Origin::Stdin, |path| Origin::File { path, line: 0 });
    Some(Completed {
        pod: ValidPod::trusted(record.pod, origin),
        start_time: record.start_time,
        attempts: record.attempts,
        previous: record.previous,
        failure: record.failure,
    })
}
