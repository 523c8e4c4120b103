//! Claims of pods as they are now, and what the node tells of their size.

use futures::FutureExt as _;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::{Cluster, Failure, answer};
use crate::plugin::csi::growth::Claims;

impl Cluster {
    fn claims(&self, namespace: &str) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.client(), namespace)
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
