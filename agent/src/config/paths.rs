//! Where things lie: Kubernetes' own places where it has one, all of them below `--root` where that is given.

use std::path::{Path, PathBuf};

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
    /// The image store.
    pub fn images(&self) -> PathBuf {
        self.lib().join("images")
    }
    /// Keys and certificates of the local API.
    pub fn certificates(&self) -> PathBuf {
        self.lib().join("pki")
    }
}

impl Default for Paths {
    fn default() -> Self {
        Self::below("/")
    }
}
