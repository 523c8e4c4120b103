//! Which other objects a pod refers to. Pure.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{ClusterTrustBundleProjection, EnvFromSource, EnvVar, ServiceAccountTokenProjection, Volume};

use super::object::{ObjectKind, ObjectRef};
use super::{Origin, ValidPod};

/// All ConfigMaps, Secrets and claims that a pod's volumes and containers name, optional ones too.
pub fn of(pod: &ValidPod) -> BTreeSet<ObjectRef> {
    let mut found = Found { namespace: pod.namespace(), refs: BTreeSet::new() };
    pod.spec().volumes.iter().flatten().for_each(|volume| found.volume(volume));
    pod.all_containers().for_each(|c| found.environment(c.env.as_deref(), c.env_from.as_deref()));
    for container in pod.spec().ephemeral_containers.iter().flatten() {
        found.environment(container.env.as_deref(), container.env_from.as_deref());
    }
    for secret in pod.spec().image_pull_secrets.iter().flatten() {
        found.add(ObjectKind::Secret, Some(&secret.name));
    }
    if *pod.origin() == Origin::Api {
        let ephemeral = pod.spec().volumes.iter().flatten().filter(|volume| volume.ephemeral.is_some());
        ephemeral.for_each(|volume| found.add(ObjectKind::PersistentVolumeClaim, Some(&ephemeral_claim(pod, volume))));
        found.refs.extend(tokens(pod).map(|token| token_secret(pod, token)));
        found.refs.extend(trusts(pod).map(trust_map));
        found.refs.extend(runtime_class(pod));
    }
    found.refs
}

/// The claim that a cluster makes of a pod's generic ephemeral volume.
pub fn ephemeral_claim(pod: &ValidPod, volume: &Volume) -> String {
    format!("{}-{}", pod.name(), volume.name)
}

/// The RuntimeClass that a pod names.
pub fn runtime_class(pod: &ValidPod) -> Option<ObjectRef> {
    let name = pod.spec().runtime_class_name.as_deref().filter(|name| !name.is_empty())?;
    Some(ObjectRef::new(ObjectKind::RuntimeClass, "", name))
}

/// The service account tokens that a pod's volumes want.
pub fn tokens(pod: &ValidPod) -> impl Iterator<Item = &ServiceAccountTokenProjection> {
    let volumes = pod.spec().volumes.iter().flatten().filter_map(|volume| volume.projected.as_ref());
    volumes.flat_map(|p| p.sources.iter().flatten()).filter_map(|source| source.service_account_token.as_ref())
}

/// The Secret that a pod's token is kept as: no Secret of a cluster can have such a name.
pub fn token_secret(pod: &ValidPod, token: &ServiceAccountTokenProjection) -> ObjectRef {
    let audience = token.audience.as_deref().unwrap_or_default();
    let name = format!("{}/token/{}/{audience}", pod.uid(), token.expiration_seconds.unwrap_or(3600));
    ObjectRef::new(ObjectKind::Secret, pod.namespace(), &name)
}

/// The trust anchors that a pod's volumes want.
pub fn trusts(pod: &ValidPod) -> impl Iterator<Item = &ClusterTrustBundleProjection> {
    let volumes = pod.spec().volumes.iter().flatten().filter_map(|volume| volume.projected.as_ref());
    volumes.flat_map(|p| p.sources.iter().flatten()).filter_map(|source| source.cluster_trust_bundle.as_ref())
}

/// The ConfigMap that what ClusterTrustBundles say is kept as: no ConfigMap of a cluster can have such a name.
pub fn trust_map(source: &ClusterTrustBundleProjection) -> ObjectRef {
    let name = match (&source.name, &source.signer_name, &source.label_selector) {
        (Some(name), _, _) => format!("trust/{name}"),
        (None, signer, selector) => {
            let signer = signer.as_deref().unwrap_or_default();
            format!("trust//{signer}/{}", serde_json::to_string(selector).unwrap_or_default())
        }
    };
    ObjectRef::new(ObjectKind::ConfigMap, "", &name)
}

struct Found<'a> {
    namespace: &'a str,
    refs: BTreeSet<ObjectRef>,
}

impl Found<'_> {
    fn add(&mut self, kind: ObjectKind, name: Option<&String>) {
        if let Some(name) = name.filter(|name| !name.is_empty()) {
            self.refs.insert(ObjectRef::new(kind, self.namespace, name));
        }
    }

    fn volume(&mut self, volume: &Volume) {
        self.add(ObjectKind::ConfigMap, volume.config_map.as_ref().map(|s| &s.name));
        self.add(ObjectKind::Secret, volume.secret.as_ref().and_then(|s| s.secret_name.as_ref()));
        self.add(ObjectKind::PersistentVolumeClaim, volume.persistent_volume_claim.as_ref().map(|s| &s.claim_name));
        if let Some(source) = &volume.csi {
            self.add(ObjectKind::Secret, source.node_publish_secret_ref.as_ref().map(|s| &s.name));
            self.refs.insert(ObjectRef::new(ObjectKind::CsiDriver, "", &source.driver));
        }
        for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            self.add(ObjectKind::ConfigMap, source.config_map.as_ref().map(|s| &s.name));
            self.add(ObjectKind::Secret, source.secret.as_ref().map(|s| &s.name));
        }
    }

    fn environment(&mut self, env: Option<&[EnvVar]>, env_from: Option<&[EnvFromSource]>) {
        for from in env_from.into_iter().flatten() {
            self.add(ObjectKind::ConfigMap, from.config_map_ref.as_ref().map(|s| &s.name));
            self.add(ObjectKind::Secret, from.secret_ref.as_ref().map(|s| &s.name));
        }
        for source in env.into_iter().flatten().filter_map(|var| var.value_from.as_ref()) {
            self.add(ObjectKind::ConfigMap, source.config_map_key_ref.as_ref().map(|s| &s.name));
            self.add(ObjectKind::Secret, source.secret_key_ref.as_ref().map(|s| &s.name));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_place_that_can_name_an_object_is_looked_at() {
        let pod = json!({"metadata": {"name": "web", "namespace": "shop", "uid": "u"}, "spec": {
            "volumes": [
                {"name": "a", "configMap": {"name": "c1"}},
                {"name": "b", "secret": {"secretName": "s1"}},
                {"name": "c", "persistentVolumeClaim": {"claimName": "p1"}},
                {"name": "d", "projected": {"sources": [{"configMap": {"name": "c2"}}, {"secret": {"name": "s2"}}]}},
            ],
            "imagePullSecrets": [{"name": "s3"}],
            "initContainers": [{"name": "i", "env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "s4", "key": "k"}}}]}],
            "containers": [{"name": "m",
                "envFrom": [{"configMapRef": {"name": "c3"}}, {"secretRef": {"name": "s5"}}],
                "env": [{"name": "Y", "valueFrom": {"configMapKeyRef": {"name": "c4", "key": "k"}}}],
            }],
            "ephemeralContainers": [{"name": "e", "envFrom": [{"secretRef": {"name": "s6"}}]}],
        }});
        let pod = ValidPod::trusted(serde_json::from_value(pod).unwrap(), Origin::Stdin);
        let names: Vec<String> = of(&pod).into_iter().map(|r| format!("{}/{}", r.namespace, r.name)).collect();
        let expected = ["c1", "c2", "c3", "c4", "s1", "s2", "s3", "s4", "s5", "s6", "p1"];
        assert_eq!(names, expected.map(|name| format!("shop/{name}")));
    }
}
