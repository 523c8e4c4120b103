//! Where pods, and the objects that they refer to, come from: folders and files of manifests, standard input, and the API server of a
//! cluster. Every source tells the same few events.

pub mod apiserver;
pub mod directory;
pub mod folder;
pub mod kustomize;
mod scan;
pub mod sealed;

use std::path::PathBuf;

use k8s_openapi::api::core::v1::PodCondition;

use crate::model::{FileError, ObjectRef, PodUid, ValidObject, ValidPod, ValidWorkload, WorkloadRef};

pub use directory::{WatchError, watch};

/// What a source tells, in this order: `Init`, what is there, `InitDone`, then what changes.
#[derive(Debug, Clone)]
pub enum Event {
    /// What is there follows.
    Init,
    /// This pod shall be, as it is here. One of the same UID is updated.
    Apply(ValidPod),
    /// This object is, as it is here. Of one moment's changes, objects are told before pods, so that a pod finds what it needs.
    ApplyObject(ValidObject),
    /// This workload shall be, as it is here.
    ApplyWorkload(ValidWorkload),
    /// This workload shall not be any more, nor its pods.
    DeleteWorkload(WorkloadRef),
    /// All that is there has been told: a pod that runs and wasn't told may go, unless it is of a file that is at fault.
    InitDone,
    /// This pod shall not be any more.
    Delete(PodUid),
    /// The same of one of the API server's, which has it no more.
    Gone(PodUid),
    /// The API server's part of `InitDone`: all its pods of this node have been told.
    Listed,
    /// The API server asks that this pod end, in so many seconds; it is there until it has.
    End {
        /// The pod, also where nothing runs of it.
        pod: ValidPod,
        /// metadata.deletionGracePeriodSeconds.
        grace: Option<i64>,
    },
    /// What others tell of a pod of the API server, all of it: its readiness gates.
    Told {
        /// Whose.
        uid: PodUid,
        /// Of types that are not the node's to tell.
        conditions: Vec<PodCondition>,
    },
    /// This object is no more.
    DeleteObject(ObjectRef),
    /// This file (or folder) is wrong now. What was right in it before goes on.
    Fault {
        /// As it was named to us.
        file: PathBuf,
        /// All that is wrong with it.
        errors: Vec<FileError>,
    },
    /// The file that was wrong is right, or gone.
    Mended {
        /// As it was named to us.
        file: PathBuf,
    },
}
