//! ConfigMaps, Secrets, claims and Services as the API lists and watches them. No Secret's value is in here: who asks for one Secret
//! by its name gets it from where the pods have it.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{
    ConfigMap, Namespace, PersistentVolumeClaim, PersistentVolumeClaimSpec, PersistentVolumeClaimStatus, Secret, Service,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::Store;
use super::workloads::Kept;
use crate::model::{Body, ObjectKind, ObjectRef, ValidObject, namespaced_name};

/// Says of a listed Secret why its values are empty.
pub const REDACTED: &str = "nodeagent.dev/redacted";

impl Store {
    /// Takes an object's newest state. One equal to the stored one changes nothing.
    pub fn put_object(&self, object: &ValidObject) {
        let key = key(object.key());
        match object.body() {
            Body::ConfigMap(map) => self.put_aged(key, ConfigMap::clone(map)),
            Body::Secret(secret) => self.put_aged(key, redacted(secret)),
            Body::PersistentVolumeClaim(claim) => self.put_aged(key, bound(claim)),
            Body::Service(service) => self.put_aged(key, Service::clone(service)),
            Body::NetworkPolicy(policy) => self.put_aged(key, NetworkPolicy::clone(policy)),
            Body::Namespace(namespace) => self.put_aged(key, Namespace::clone(namespace)),
            // The API server itself shows them.
            Body::PersistentVolume(_) | Body::RuntimeClass(_) | Body::CsiDriver(_) | Body::VolumeAttachment(_) => {}
        }
    }

    /// The object is gone.
    pub fn remove_object(&self, object: &ObjectRef) {
        let key = key(object);
        match object.kind {
            ObjectKind::ConfigMap => self.remove_kept::<ConfigMap>(&key),
            ObjectKind::Secret => self.remove_kept::<Secret>(&key),
            ObjectKind::PersistentVolumeClaim => self.remove_kept::<PersistentVolumeClaim>(&key),
            ObjectKind::Service => self.remove_kept::<Service>(&key),
            ObjectKind::NetworkPolicy => self.remove_kept::<NetworkPolicy>(&key),
            ObjectKind::Namespace => self.remove_kept::<Namespace>(&key),
            ObjectKind::PersistentVolume | ObjectKind::RuntimeClass | ObjectKind::CsiDriver | ObjectKind::VolumeAttachment => {}
        }
    }

    /// Takes a Service's endpoints as they are now.
    pub fn put_endpoint_slice(&self, slice: EndpointSlice) {
        self.put_aged(namespaced_name(&slice.metadata), slice);
    }

    /// These endpoints are no more.
    pub fn remove_endpoint_slice(&self, slice: &EndpointSlice) {
        self.remove_kept::<EndpointSlice>(&namespaced_name(&slice.metadata));
    }

    /// A file's object is as old as the agent's knowledge of it.
    fn put_aged<T: Kept>(&self, key: String, mut object: T) {
        let since = self.kept::<T>(&key).and_then(|old| T::clone(&old).meta().creation_timestamp.take());
        object.meta().creation_timestamp = since.or_else(|| Some(Time(Timestamp::now())));
        self.put_kept(key, object);
    }
}

fn key(object: &ObjectRef) -> String {
    format!("{}/{}", object.namespace, object.name)
}

/// The keys stay, for those who want to know which there are.
fn redacted(secret: &Arc<Secret>) -> Secret {
    let mut shown = Secret::clone(secret);
    for value in shown.data.iter_mut().flat_map(|data| data.values_mut()) {
        *value = ByteString::default();
    }
    shown.string_data = None;
    let annotations = shown.metadata.annotations.get_or_insert_default();
    annotations.insert(REDACTED.into(), "values are shown to who asks for this Secret by its name".into());
    // kubectl apply keeps the whole object here, values and all.
    annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    shown
}

/// A claim's folder needs no binding: it is there as soon as it's wanted.
fn bound(claim: &Arc<PersistentVolumeClaim>) -> PersistentVolumeClaim {
    let mut claim = PersistentVolumeClaim::clone(claim);
    let spec: PersistentVolumeClaimSpec = claim.spec.clone().unwrap_or_default();
    claim.status = Some(PersistentVolumeClaimStatus {
        phase: Some("Bound".into()),
        access_modes: spec.access_modes,
        capacity: spec.resources.and_then(|resources| resources.requests),
        ..PersistentVolumeClaimStatus::default()
    });
    claim
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::Origin;
    use crate::pod::store::Verb;

    fn secret(value: &str) -> ValidObject {
        let annotations = json!({"kubectl.kubernetes.io/last-applied-configuration": format!("{{\"data\": \"{value}\"}}")});
        let metadata = json!({"name": "login", "namespace": "default", "annotations": annotations});
        let mut secret: Secret = serde_json::from_value(json!({"metadata": metadata})).unwrap();
        secret.data = Some([("password".to_owned(), ByteString(value.into()))].into());
        secret.string_data = Some([("more".to_owned(), value.to_owned())].into());
        ValidObject::trusted(Body::Secret(Arc::new(secret)), Origin::Stdin)
    }

    #[test]
    fn a_listed_secret_has_no_value() {
        let store = Store::default();
        let mut watch = store.workloads::<Secret>().changes;
        store.put_object(&secret("hunter2"));
        store.put_object(&secret("hunter3"));
        let listed = store.workloads::<Secret>().objects;
        let changes: Vec<_> = std::iter::from_fn(|| watch.try_recv().ok()).collect();
        let text = format!("{listed:?}{changes:?}{}", serde_json::to_string(&listed[0].as_ref()).unwrap());
        assert!(!text.contains("hunter") && !text.contains("aHVudGVy"), "{text}");
        assert!(listed[0].data.as_ref().unwrap().contains_key("password"));
        store.remove_object(secret("").key());
        assert!(store.workloads::<Secret>().objects.is_empty());
        assert_eq!(watch.try_recv().unwrap().verb, Verb::Deleted);
    }

    #[test]
    fn an_object_keeps_its_age_and_changes_its_version() {
        let store = Store::default();
        let map = |value: &str| {
            let map = json!({"metadata": {"name": "app", "namespace": "default"}, "data": {"key": value}});
            ValidObject::trusted(Body::ConfigMap(Arc::new(serde_json::from_value(map).unwrap())), Origin::Stdin)
        };
        let metadata = || store.workloads::<ConfigMap>().objects[0].metadata.clone();
        store.put_object(&map("1"));
        let first = metadata();
        assert!(first.creation_timestamp.is_some());
        store.put_object(&map("1"));
        assert_eq!(metadata(), first);
        store.put_object(&map("2"));
        assert_eq!(metadata().creation_timestamp, first.creation_timestamp);
        assert_ne!(metadata().resource_version, first.resource_version);
    }
}
