//! The objects beside pods that files give: ConfigMap, Secret, PersistentVolumeClaim, Service, NetworkPolicy, Namespace; and those that only an
//! API server has: PersistentVolume, RuntimeClass, CSIDriver, VolumeAttachment. Knows no I/O.

use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, PersistentVolume, PersistentVolumeClaim, Secret, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::Origin;

/// The kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ObjectKind {
    /// v1 ConfigMap.
    ConfigMap,
    /// v1 Secret.
    Secret,
    /// v1 PersistentVolumeClaim.
    PersistentVolumeClaim,
    /// v1 Service.
    Service,
    /// networking.k8s.io/v1 NetworkPolicy.
    NetworkPolicy,
    /// v1 Namespace: nothing needs one, but policies select by its labels.
    Namespace,
    /// v1 PersistentVolume, of an API server alone.
    PersistentVolume,
    /// node.k8s.io/v1 RuntimeClass, of an API server alone.
    RuntimeClass,
    /// storage.k8s.io/v1 CSIDriver, of an API server alone.
    CsiDriver,
    /// storage.k8s.io/v1 VolumeAttachment, of an API server alone.
    VolumeAttachment,
}

impl ObjectKind {
    /// All kinds that files give.
    pub const ALL: [Self; 6] =
        [Self::ConfigMap, Self::Secret, Self::PersistentVolumeClaim, Self::Service, Self::NetworkPolicy, Self::Namespace];

    /// As manifests write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
            Self::PersistentVolumeClaim => "PersistentVolumeClaim",
            Self::Service => "Service",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::Namespace => "Namespace",
            Self::PersistentVolume => "PersistentVolume",
            Self::RuntimeClass => "RuntimeClass",
            Self::CsiDriver => "CSIDriver",
            Self::VolumeAttachment => "VolumeAttachment",
        }
    }

    /// The version in which manifests write it.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::NetworkPolicy => "networking.k8s.io/v1",
            Self::RuntimeClass => "node.k8s.io/v1",
            Self::CsiDriver | Self::VolumeAttachment => "storage.k8s.io/v1",
            _ => "v1",
        }
    }

    /// Whether objects of this kind are in no namespace.
    pub fn is_of_cluster(self) -> bool {
        matches!(self, Self::Namespace | Self::PersistentVolume | Self::RuntimeClass | Self::CsiDriver | Self::VolumeAttachment)
    }

    /// From a manifest's `kind`.
    pub fn parse(kind: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == kind)
    }
}

/// Which object: the name by which pods refer to it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectRef {
    /// Its kind.
    pub kind: ObjectKind,
    /// metadata.namespace; empty for what is in none, such as a Namespace.
    pub namespace: String,
    /// metadata.name.
    pub name: String,
}

impl ObjectRef {
    /// From its parts.
    pub fn new(kind: ObjectKind, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectRef {
    /// As the kubelet's errors have it: `configmap "app" not found` begins with the kind in lower case.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} \"{}\"", self.kind.as_str().to_lowercase(), self.name)
    }
}

/// An object of one of the kinds, cheap to clone. Its `Debug` shows no value: a secret must not get into a log by accident.
#[derive(Clone, PartialEq)]
pub enum Body {
    /// v1 ConfigMap.
    ConfigMap(Arc<ConfigMap>),
    /// v1 Secret, with `stringData` merged into `data`.
    Secret(Arc<Secret>),
    /// v1 PersistentVolumeClaim.
    PersistentVolumeClaim(Arc<PersistentVolumeClaim>),
    /// v1 Service.
    Service(Arc<Service>),
    /// networking.k8s.io/v1 NetworkPolicy.
    NetworkPolicy(Arc<NetworkPolicy>),
    /// v1 Namespace.
    Namespace(Arc<Namespace>),
    /// v1 PersistentVolume.
    PersistentVolume(Arc<PersistentVolume>),
    /// node.k8s.io/v1 RuntimeClass.
    RuntimeClass(Arc<RuntimeClass>),
    /// storage.k8s.io/v1 CSIDriver.
    CsiDriver(Arc<CSIDriver>),
    /// storage.k8s.io/v1 VolumeAttachment.
    VolumeAttachment(Arc<VolumeAttachment>),
}

impl Body {
    /// Its kind.
    pub fn kind(&self) -> ObjectKind {
        match self {
            Self::ConfigMap(_) => ObjectKind::ConfigMap,
            Self::Secret(_) => ObjectKind::Secret,
            Self::PersistentVolumeClaim(_) => ObjectKind::PersistentVolumeClaim,
            Self::Service(_) => ObjectKind::Service,
            Self::NetworkPolicy(_) => ObjectKind::NetworkPolicy,
            Self::Namespace(_) => ObjectKind::Namespace,
            Self::PersistentVolume(_) => ObjectKind::PersistentVolume,
            Self::RuntimeClass(_) => ObjectKind::RuntimeClass,
            Self::CsiDriver(_) => ObjectKind::CsiDriver,
            Self::VolumeAttachment(_) => ObjectKind::VolumeAttachment,
        }
    }

    /// Its metadata.
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::ConfigMap(o) => &o.metadata,
            Self::Secret(o) => &o.metadata,
            Self::PersistentVolumeClaim(o) => &o.metadata,
            Self::Service(o) => &o.metadata,
            Self::NetworkPolicy(o) => &o.metadata,
            Self::Namespace(o) => &o.metadata,
            Self::PersistentVolume(o) => &o.metadata,
            Self::RuntimeClass(o) => &o.metadata,
            Self::CsiDriver(o) => &o.metadata,
            Self::VolumeAttachment(o) => &o.metadata,
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.kind().as_str(), self.metadata().name)
    }
}

/// An object that has its defaults and passed every check.
#[derive(Debug, Clone)]
pub struct ValidObject {
    key: ObjectRef,
    body: Body,
    origin: Origin,
}

/// `namespace/name`, by which an object of a kind is known. Kubernetes' own default stands in for a namespace that isn't said.
pub fn namespaced_name(meta: &ObjectMeta) -> String {
    format!("{}/{}", meta.namespace.as_deref().unwrap_or("default"), meta.name.as_deref().unwrap_or_default())
}

impl ValidObject {
    /// Only validation calls this.
    pub(crate) fn trusted(body: Body, origin: Origin) -> Self {
        let metadata = body.metadata();
        let nowhere = if body.kind().is_of_cluster() { "" } else { "default" };
        let namespace = metadata.namespace.as_deref().unwrap_or(nowhere);
        let key = ObjectRef::new(body.kind(), namespace, metadata.name.as_deref().unwrap_or_default());
        Self { key, body, origin }
    }

    /// Its identity.
    pub fn key(&self) -> &ObjectRef {
        &self.key
    }

    /// The object.
    pub fn body(&self) -> &Body {
        &self.body
    }

    /// Where it came from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// `immutable: true`: neither data nor this mark may change as long as it's there.
    pub fn immutable(&self) -> bool {
        match &self.body {
            Body::ConfigMap(o) => o.immutable == Some(true),
            Body::Secret(o) => o.immutable == Some(true),
            _ => false,
        }
    }

    /// Whether the other holds the same values, whatever its labels are.
    pub fn same_data(&self, other: &Self) -> bool {
        match (&self.body, &other.body) {
            (Body::ConfigMap(a), Body::ConfigMap(b)) => {
                a.data == b.data && a.binary_data == b.binary_data && a.immutable == b.immutable
            }
            (Body::Secret(a), Body::Secret(b)) => a.data == b.data && a.immutable == b.immutable,
            (a, b) => a == b,
        }
    }
}
