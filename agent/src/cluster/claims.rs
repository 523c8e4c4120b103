//! Claims of pods as they are now, Secrets of their volumes, and what the node tells of their size.

use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Secret, SecretReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::{Cluster, Failure, answer};
use crate::model::{Body, Origin, ValidObject};
use crate::plugin::csi::growth::Claims;
use crate::plugin::csi::wanted;

impl Cluster {
    fn claims(&self, namespace: &str) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.client(), namespace)
    }

    /// A Secret that a PersistentVolume names, under a name that no Secret has: who may see it is the volume, not the pod.
    pub(crate) async fn volume_secret(&self, volume: &str, reference: &SecretReference) -> Result<Option<ValidObject>, Failure> {
        let key = wanted::secret_key(volume, reference);
        let secrets: Api<Secret> = Api::namespaced(self.client(), &key.namespace);
        let Some(mut secret) = answer(secrets.get_opt(reference.name.as_deref().unwrap_or_default())).await? else {
            return Ok(None);
        };
        secret.metadata = ObjectMeta { name: Some(key.name), namespace: Some(key.namespace), ..ObjectMeta::default() };
        Ok(Some(ValidObject::trusted(Body::Secret(Arc::new(secret)), Origin::Api)))
    }
}

impl Claims for Cluster {
    fn claim<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<PersistentVolumeClaim, String>> {
        async move { answer(self.claims(namespace).get(name)).await.map_err(text) }.boxed()
    }

    fn volume<'a>(&'a self, claim: &'a PersistentVolumeClaim) -> BoxFuture<'a, Result<PersistentVolume, String>> {
        async move {
            let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
            answer(Api::all(self.client()).get(name)).await.map_err(text)
        }
        .boxed()
    }

    fn secret<'a>(
        &'a self,
        volume: &'a str,
        reference: &'a SecretReference,
    ) -> BoxFuture<'a, Result<Option<ValidObject>, String>> {
        async move { self.volume_secret(volume, reference).await.map_err(text) }.boxed()
    }

    fn tell<'a>(
        &'a self,
        claim: &'a PersistentVolumeClaim,
        status: Value,
    ) -> BoxFuture<'a, Result<PersistentVolumeClaim, String>> {
        async move {
            let metadata = &claim.metadata;
            let claims = self.claims(metadata.namespace.as_deref().unwrap_or_default());
            let patch = Patch::Merge(json!({"metadata": {"resourceVersion": metadata.resource_version}, "status": status}));
            let name = metadata.name.as_deref().unwrap_or_default();
            answer(claims.patch_status(name, &PatchParams::default(), &patch)).await.map_err(text)
        }
        .boxed()
    }
}

fn text(failure: Failure) -> String {
    failure.to_string()
}
