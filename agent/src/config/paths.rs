//! Where things lie: Kubernetes' own places where it has one, all of them below `--root` where that is given.

use std::path::{Path, PathBuf};

use crate::model::PodUid;

/// Every place of one agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    root: PathBuf,
}

impl Paths {
    /// All places below `root`, an absolute path.
    pub fn below(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// What all places are below: `/` unless `--root` says otherwise.
    pub fn root(&self) -> &Path {
        &self.root
    }
    /// What a reboot ends.
    pub fn run(&self) -> PathBuf {
        self.root.join("run/nodeagent")
    }
    /// What a reboot doesn't end.
    pub fn lib(&self) -> PathBuf {
        self.root.join("var/lib/nodeagent")
    }
    /// Where the kubelet would be, and its plugins look for it.
    pub fn kubelet(&self) -> PathBuf {
        self.root.join("var/lib/kubelet")
    }
    /// Logs of pods.
    pub fn log(&self) -> PathBuf {
        self.root.join("var/log/pods")
    }
    /// The local API's socket.
    pub fn socket(&self) -> PathBuf {
        self.run().join("agent.sock")
    }
    /// Locked by the agent that holds this root.
    pub fn lock(&self) -> PathBuf {
        self.run().join("agent.lock")
    }
    /// Address leases.
    pub fn net(&self) -> PathBuf {
        self.run().join("net")
    }
    /// All pods' run folders.
    pub fn pods_run(&self) -> PathBuf {
        self.run().join("pods")
    }
    /// A pod's holder socket and spec.
    pub fn pod_run(&self, uid: &PodUid) -> PathBuf {
        self.pods_run().join(uid.as_str())
    }
    /// A pod's holder's socket.
    pub fn holder_socket(&self, uid: &PodUid) -> PathBuf {
        self.pod_run(uid).join("holder.sock")
    }
    /// The spec that a running pod was made from.
    pub fn pod_json(&self, uid: &PodUid) -> PathBuf {
        self.pod_run(uid).join("pod.json")
    }
    /// All pods' durable folders.
    pub fn pods_lib(&self) -> PathBuf {
        self.lib().join("pods")
    }
    /// A pod's containers' layers, and its volumes.
    pub fn pod_lib(&self, uid: &PodUid) -> PathBuf {
        self.pods_lib().join(uid.as_str())
    }
    /// A volume of a pod; `kind` is such as `empty-dir`.
    pub fn volume(&self, uid: &PodUid, kind: &str, name: &str) -> PathBuf {
        self.pod_lib(uid).join("volumes").join(kind).join(name)
    }
    /// The image store.
    pub fn images(&self) -> PathBuf {
        self.lib().join("images")
    }
    /// Keys and certificates of the local API.
    pub fn certificates(&self) -> PathBuf {
        self.lib().join("pki")
    }
    /// A pod's logs.
    pub fn pod_log_dir(&self, namespace: &str, name: &str, uid: &PodUid) -> PathBuf {
        self.log().join(format!("{namespace}_{name}_{uid}"))
    }
    /// A container's logs: `0.log`, and what was rotated.
    pub fn container_log_dir(&self, namespace: &str, name: &str, uid: &PodUid, container: &str) -> PathBuf {
        self.pod_log_dir(namespace, name, uid).join(container)
    }
}

impl Default for Paths {
    fn default() -> Self {
        Self::below("/")
    }
}
