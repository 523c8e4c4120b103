//! The kinds that make pods: Job, CronJob, Deployment, ReplicaSet, StatefulSet, DaemonSet; as data. Knows no I/O.

pub mod cron;
pub(crate) mod defaults;
pub mod indexes;

use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Origin;

/// The kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum WorkloadKind {
    /// batch/v1 CronJob.
    CronJob,
    /// apps/v1 DaemonSet.
    DaemonSet,
    /// apps/v1 Deployment.
    Deployment,
    /// batch/v1 Job.
    Job,
    /// apps/v1 ReplicaSet.
    ReplicaSet,
    /// apps/v1 StatefulSet.
    StatefulSet,
}

impl WorkloadKind {
    /// All kinds.
    pub const ALL: [Self; 6] = [Self::CronJob, Self::DaemonSet, Self::Deployment, Self::Job, Self::ReplicaSet, Self::StatefulSet];

    /// As manifests write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CronJob => "CronJob",
            Self::DaemonSet => "DaemonSet",
            Self::Deployment => "Deployment",
            Self::Job => "Job",
            Self::ReplicaSet => "ReplicaSet",
            Self::StatefulSet => "StatefulSet",
        }
    }

    /// `apiVersion`.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::CronJob | Self::Job => "batch/v1",
            _ => "apps/v1",
        }
    }

    /// As paths have it: `deployments`.
    pub fn resource(self) -> &'static str {
        match self {
            Self::CronJob => "cronjobs",
            Self::DaemonSet => "daemonsets",
            Self::Deployment => "deployments",
            Self::Job => "jobs",
            Self::ReplicaSet => "replicasets",
            Self::StatefulSet => "statefulsets",
        }
    }

    /// From a manifest's `kind`.
    pub fn parse(kind: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == kind)
    }
}

/// Which workload: no two of a kind in a namespace share a name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadRef {
    /// Its kind.
    pub kind: WorkloadKind,
    /// metadata.namespace.
    pub namespace: String,
    /// metadata.name.
    pub name: String,
}

impl fmt::Display for WorkloadRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind.as_str(), self.namespace, self.name)
    }
}

/// An object of one of the kinds, cheap to clone.
#[derive(Debug, Clone, PartialEq)]
pub enum Workload {
    /// batch/v1 CronJob.
    CronJob(Arc<CronJob>),
    /// apps/v1 DaemonSet.
    DaemonSet(Arc<DaemonSet>),
    /// apps/v1 Deployment.
    Deployment(Arc<Deployment>),
    /// batch/v1 Job.
    Job(Arc<Job>),
    /// apps/v1 ReplicaSet.
    ReplicaSet(Arc<ReplicaSet>),
    /// apps/v1 StatefulSet.
    StatefulSet(Arc<StatefulSet>),
}

/// The same expression for whichever kind it is.
macro_rules! each {
    ($workload:expr, $object:ident => $then:expr) => {
        match $workload {
            Workload::CronJob($object) => $then,
            Workload::DaemonSet($object) => $then,
            Workload::Deployment($object) => $then,
            Workload::Job($object) => $then,
            Workload::ReplicaSet($object) => $then,
            Workload::StatefulSet($object) => $then,
        }
    };
}
pub(crate) use each;

impl Workload {
    /// Its kind.
    pub fn kind(&self) -> WorkloadKind {
        match self {
            Self::CronJob(_) => WorkloadKind::CronJob,
            Self::DaemonSet(_) => WorkloadKind::DaemonSet,
            Self::Deployment(_) => WorkloadKind::Deployment,
            Self::Job(_) => WorkloadKind::Job,
            Self::ReplicaSet(_) => WorkloadKind::ReplicaSet,
            Self::StatefulSet(_) => WorkloadKind::StatefulSet,
        }
    }

    /// Its metadata.
    pub fn metadata(&self) -> &ObjectMeta {
        each!(self, o => &o.metadata)
    }

    /// Its metadata, to be changed.
    pub fn metadata_mut(&mut self) -> &mut ObjectMeta {
        each!(self, o => &mut Arc::make_mut(o).metadata)
    }

    /// metadata.uid.
    pub fn uid(&self) -> &str {
        self.metadata().uid.as_deref().unwrap_or_default()
    }

    /// What its pods are made from; a CronJob's jobs' pods.
    pub fn template(&self) -> Option<&PodTemplateSpec> {
        match self {
            Self::CronJob(o) => o.spec.job_template.spec.as_ref().map(|s| &s.template),
            Self::DaemonSet(o) => Some(&o.spec.template),
            Self::Deployment(o) => Some(&o.spec.template),
            Self::Job(o) => o.spec.as_ref().map(|s| &s.template),
            Self::ReplicaSet(o) => o.spec.template.as_ref(),
            Self::StatefulSet(o) => Some(&o.spec.template),
        }
    }

    /// The same, to be changed.
    pub fn template_mut(&mut self) -> Option<&mut PodTemplateSpec> {
        match self {
            Self::CronJob(o) => Arc::make_mut(o).spec.job_template.spec.as_mut().map(|s| &mut s.template),
            Self::DaemonSet(o) => Some(&mut Arc::make_mut(o).spec.template),
            Self::Deployment(o) => Some(&mut Arc::make_mut(o).spec.template),
            Self::Job(o) => Arc::make_mut(o).spec.as_mut().map(|s| &mut s.template),
            Self::ReplicaSet(o) => Arc::make_mut(o).spec.template.as_mut(),
            Self::StatefulSet(o) => Some(&mut Arc::make_mut(o).spec.template),
        }
    }

    /// Whether the specs are the same, whatever metadata and status say.
    pub fn same_spec(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::CronJob(a), Self::CronJob(b)) => a.spec == b.spec,
            (Self::DaemonSet(a), Self::DaemonSet(b)) => a.spec == b.spec,
            (Self::Deployment(a), Self::Deployment(b)) => a.spec == b.spec,
            (Self::Job(a), Self::Job(b)) => a.spec == b.spec,
            (Self::ReplicaSet(a), Self::ReplicaSet(b)) => a.spec == b.spec,
            (Self::StatefulSet(a), Self::StatefulSet(b)) => a.spec == b.spec,
            _ => false,
        }
    }

    /// Takes over the other's spec and what an author writes of metadata; identity and status stay.
    pub fn take_spec(&mut self, new: &Self) {
        match (&mut *self, new) {
            (Self::CronJob(a), Self::CronJob(b)) => Arc::make_mut(a).spec.clone_from(&b.spec),
            (Self::DaemonSet(a), Self::DaemonSet(b)) => Arc::make_mut(a).spec.clone_from(&b.spec),
            (Self::Deployment(a), Self::Deployment(b)) => Arc::make_mut(a).spec.clone_from(&b.spec),
            (Self::Job(a), Self::Job(b)) => Arc::make_mut(a).spec.clone_from(&b.spec),
            (Self::ReplicaSet(a), Self::ReplicaSet(b)) => Arc::make_mut(a).spec.clone_from(&b.spec),
            (Self::StatefulSet(a), Self::StatefulSet(b)) => Arc::make_mut(a).spec.clone_from(&b.spec),
            _ => return,
        }
        let meta = self.metadata_mut();
        meta.labels.clone_from(&new.metadata().labels);
        meta.annotations.clone_from(&new.metadata().annotations);
    }

    /// Which one it is.
    pub fn key(&self) -> WorkloadRef {
        let metadata = self.metadata();
        WorkloadRef {
            kind: self.kind(),
            namespace: metadata.namespace.clone().unwrap_or_else(|| "default".into()),
            name: metadata.name.clone().unwrap_or_default(),
        }
    }
}

impl Serialize for Workload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        each!(self, o => o.serialize(serializer))
    }
}

impl<'de> Deserialize<'de> for Workload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        fn read<T: serde::de::DeserializeOwned, E: Error>(value: serde_json::Value) -> Result<Arc<T>, E> {
            serde_json::from_value(value).map(Arc::new).map_err(E::custom)
        }
        let value = serde_json::Value::deserialize(deserializer)?;
        let kind = value["kind"].as_str().and_then(WorkloadKind::parse).ok_or_else(|| D::Error::custom("no known kind"))?;
        Ok(match kind {
            WorkloadKind::CronJob => Self::CronJob(read(value)?),
            WorkloadKind::DaemonSet => Self::DaemonSet(read(value)?),
            WorkloadKind::Deployment => Self::Deployment(read(value)?),
            WorkloadKind::Job => Self::Job(read(value)?),
            WorkloadKind::ReplicaSet => Self::ReplicaSet(read(value)?),
            WorkloadKind::StatefulSet => Self::StatefulSet(read(value)?),
        })
    }
}

/// A workload that has its defaults and passed every check.
#[derive(Debug, Clone)]
pub struct ValidWorkload {
    key: WorkloadRef,
    object: Workload,
    origin: Origin,
}

impl ValidWorkload {
    /// Only validation calls this.
    pub(crate) fn trusted(object: Workload, origin: Origin) -> Self {
        Self { key: object.key(), object, origin }
    }

    /// Its identity.
    pub fn key(&self) -> &WorkloadRef {
        &self.key
    }

    /// The object.
    pub fn object(&self) -> &Workload {
        &self.object
    }

    /// Where it came from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }
}
