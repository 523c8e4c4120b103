//! A pod as the rest of the agent may see it: parsed, defaulted, validated. Knows nobody else.

pub mod change;
pub mod decode;
pub mod defaults;
pub mod difference;
pub mod duration;
pub mod ephemeral;
mod error;
mod exported;
mod load;
pub mod network;
pub mod object;
mod path;
pub mod quantity;
pub mod references;
mod secret;
mod subject;
pub mod text;
pub mod validate;
pub mod workload;
pub mod yaml;

use std::fmt;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec};

pub use error::{FileError, Position, Problem};
pub use load::{Defaults, Loaded, load};
pub use object::{Body, ObjectKind, ObjectRef, ValidObject, namespaced_name};
pub use path::Path;
pub use subject::Subject;
pub use workload::{ValidWorkload, Workload, WorkloadKind, WorkloadRef};

/// `metadata.uid`: a pod's identity. Safe as one path component: 1..=63 characters of `[a-z0-9-]`, checked by validation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodUid(Arc<str>);

impl PodUid {
    /// Takes a UID that validation has seen, or one that the agent wrote itself.
    pub fn new(uid: &str) -> Self {
        Self(uid.into())
    }
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a pod came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A document of a file below `--manifests`.
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1, on which the document starts.
        line: usize,
    },
    /// Standard input.
    Stdin,
    /// The API server of the cluster that this node is of.
    Api,
}

/// From this priority on a pod is the system's own.
pub const SYSTEM_CRITICAL: i32 = 2_000_000_000;

/// A pod that has its defaults and passed every check: name, namespace, uid and spec are there. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ValidPod {
    pod: Arc<Pod>,
    /// Its ephemeral containers, as containers.
    ephemeral: Arc<[Container]>,
    uid: PodUid,
    origin: Origin,
}

impl ValidPod {
    /// Only `model::validate` calls this, and an agent that reads back what it wrote.
    pub(crate) fn trusted(pod: Pod, origin: Origin) -> Self {
        let uid = PodUid::new(pod.metadata.uid.as_deref().unwrap_or_default());
        let ephemeral = pod.spec.iter().flat_map(ephemeral::of).collect();
        Self { pod: Arc::new(pod), ephemeral, uid, origin }
    }
    /// The identity.
    pub fn uid(&self) -> &PodUid {
        &self.uid
    }
    /// metadata.name.
    pub fn name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap_or_default()
    }
    /// metadata.namespace.
    pub fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or("default")
    }
    /// The spec, with defaults.
    pub fn spec(&self) -> &PodSpec {
        static EMPTY: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
        self.pod.spec.as_ref().unwrap_or(&EMPTY)
    }
    /// Where it came from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }
    /// The whole object.
    pub fn object(&self) -> &Arc<Pod> {
        &self.pod
    }
    /// Init containers, then containers, in the spec's order.
    pub fn all_containers(&self) -> impl Iterator<Item = &Container> {
        let spec = self.spec();
        spec.init_containers.iter().flatten().chain(&spec.containers)
    }
    /// Its ephemeral containers, as containers.
    pub fn ephemeral(&self) -> &[Container] {
        &self.ephemeral
    }
    /// The container of that name, ephemeral ones too.
    pub fn container(&self, name: &str) -> Option<&Container> {
        self.all_containers().chain(self.ephemeral()).find(|c| c.name == name)
    }
    /// The same pod with these ephemeral containers.
    #[must_use]
    pub fn with_ephemeral(&self, containers: Option<Vec<EphemeralContainer>>) -> Self {
        let mut pod = Pod::clone(&self.pod);
        if let Some(spec) = &mut pod.spec {
            spec.ephemeral_containers = containers;
        }
        Self::trusted(pod, self.origin.clone())
    }
}

impl Deref for ValidPod {
    type Target = Pod;
    fn deref(&self) -> &Pod {
        &self.pod
    }
}

impl fmt::Display for ValidPod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace(), self.name())
    }
}
