//! Where a pod's files are. Pure; every name in here has been validated as one path component.

use std::io;
use std::path::{Path, PathBuf};

use super::log_folder::LogFolder;
use super::settings::Settings;
use crate::model::{PodUid, ValidPod};

impl Settings {
    /// What a reboot ends of a pod: `holder.sock`, `pod.json`.
    pub fn pod_run(&self, uid: &PodUid) -> PathBuf {
        self.run.join("pods").join(uid.as_str())
    }

    /// Where the pod's holder listens.
    pub fn holder_socket(&self, uid: &PodUid) -> PathBuf {
        self.pod_run(uid).join("holder.sock")
    }

    /// The pod as it was when its sandbox was made.
    pub fn pod_json(&self, uid: &PodUid) -> PathBuf {
        self.pod_run(uid).join("pod.json")
    }

    /// What every container's root is mounted on, in the mount namespace of that container alone.
    pub fn root_mount(&self) -> PathBuf {
        self.run.join("root")
    }

    /// What lasts of a pod, until it's removed.
    pub fn pod_lib(&self, uid: &PodUid) -> PathBuf {
        self.lib.join("pods").join(uid.as_str())
    }

    /// One run of a container: `upper`, `work`, `termination-log`. A restart begins with a fresh file system.
    pub fn container_dir(&self, uid: &PodUid, container: &str, attempt: u32) -> PathBuf {
        self.pod_lib(uid).join("containers").join(container).join(attempt.to_string())
    }

    /// What a container may leave as its last words.
    pub fn termination_log(&self, uid: &PodUid, container: &str, attempt: u32) -> PathBuf {
        self.container_dir(uid, container, attempt).join("termination-log")
    }

    /// A volume of a kind, such as `empty-dir`.
    pub fn volume_dir(&self, uid: &PodUid, kind: &str, name: &str) -> PathBuf {
        self.pod_lib(uid).join("volumes").join(kind).join(name)
    }

    /// An emptyDir, among the pod's volumes.
    pub fn empty_dir(&self, uid: &PodUid, name: &str) -> PathBuf {
        self.volume_dir(uid, "empty-dir", name)
    }

    /// The folder of a PersistentVolumeClaim.
    pub fn claim_dir(&self, namespace: &str, name: &str) -> PathBuf {
        self.claims.join(namespace).join(name)
    }

    /// The process that a container was started with, for those that join it later.
    pub fn process_json(&self, uid: &PodUid, container: &str, attempt: u32) -> PathBuf {
        self.pod_run(uid).join(format!("{container}.{attempt}.process.json"))
    }

    /// All logs of a pod, where log shippers look for them.
    pub fn pod_logs(&self, pod: &ValidPod) -> PathBuf {
        self.log.join(pod_log_name(pod))
    }

    /// Opens the folder of a container's logs.
    pub fn log_folder(&self, pod: &ValidPod, container: &str) -> io::Result<LogFolder> {
        LogFolder::open(&self.log, &Path::new(&pod_log_name(pod)).join(container))
    }

    /// The log of one run of a container.
    pub fn container_log(&self, pod: &ValidPod, container: &str, attempt: u32) -> PathBuf {
        self.pod_logs(pod).join(container).join(format!("{attempt}.log"))
    }
}

/// Of a pod's folder among the logs.
fn pod_log_name(pod: &ValidPod) -> String {
    format!("{}_{}_{}", pod.namespace(), pod.name(), pod.uid())
}
