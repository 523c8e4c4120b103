//! A pod's volumes of CSI drivers: what the cluster, its Secrets and its service accounts give for them; their mounting and their end.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Secret, SecretReference, Volume};
use k8s_openapi::api::storage::v1::CSIDriverSpec;
use serde_json::json;

use super::Node;
use super::objects::Objects;
use crate::model::{Body, ObjectKind, ObjectRef, Origin, PodUid, Subject, ValidObject, ValidPod};
use crate::plugin::csi::driver::Refusal;
use crate::plugin::csi::wanted::{self, Given, Life, Request, Wanted};
use crate::runtime;

/// About as often as the kubelet asks drivers again that want it.
const REPUBLISH: Duration = Duration::from_secs(45);
/// Between two tries to take back what nobody knows any more; doubled up to the kubelet's two minutes.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LAST_WAIT: Duration = Duration::from_secs(122);

/// The volumes that a pod describes itself, by their names.
pub(super) fn inline(pod: &ValidPod) -> BTreeMap<String, Wanted> {
    let wanted = |volume: &Volume| Some((volume.name.clone(), Wanted::inline(pod, &volume.name, volume.csi.as_ref()?)));
    pod.spec().volumes.iter().flatten().filter_map(wanted).collect()
}

impl Node {
    /// Mounts all volumes of a pod that CSI drivers make, or finds them. Where they are, by their names in the pod.
    pub(super) async fn mount_all(
        &self,
        pod: &ValidPod,
        csi: BTreeMap<String, Wanted>,
    ) -> Result<BTreeMap<String, PathBuf>, runtime::Error> {
        let mut mounted = BTreeMap::new();
        for (volume, wanted) in csi {
            let path = self.mount(pod, &wanted).await.map_err(|why| runtime::Error::volume(pod, &wanted.name, why))?;
            mounted.insert(volume, path);
        }
        Ok(mounted)
    }

    async fn mount(&self, pod: &ValidPod, wanted: &Wanted) -> Result<PathBuf, String> {
        let path = if let Some(path) = self.csi.mounted(pod.uid(), wanted) {
            path
        } else {
            let driver = driver(self.objects.of(pod), &wanted.driver);
            let given = self.given(pod, wanted, driver.as_ref()).await?;
            self.csi.mount(Request { pod, wanted, driver: driver.as_ref(), given: &given }).await?
        };
        self.grow_at_first(pod, wanted).await?;
        Ok(path)
    }

    /// Tells a driver that a volume is to be so many bytes large.
    pub(super) async fn expand(&self, pod: &ValidPod, wanted: &Wanted, bytes: u64) -> Result<(), Refusal> {
        let driver = driver(self.objects.of(pod), &wanted.driver);
        let given = self.given(pod, wanted, driver.as_ref()).await.map_err(Refusal::Unreached)?;
        self.csi.expand(Request { pod, wanted, driver: driver.as_ref(), given: &given }, bytes).await
    }

    async fn given(&self, pod: &ValidPod, wanted: &Wanted, driver: Option<&CSIDriverSpec>) -> Result<Given, String> {
        let objects = self.objects.of(pod);
        let needs_attachment = *pod.origin() == Origin::Api && wanted.needs_attachment(driver);
        let [stage, publish, expand] = &wanted.secrets;
        Ok(Given {
            attachment: if needs_attachment { attachment(objects, wanted, &self.name)? } else { BTreeMap::new() },
            stage_secrets: secrets(objects, wanted, "NodeStageSecretRef", stage.as_ref())?,
            publish_secrets: secrets(objects, wanted, "NodePublishSecretRef", publish.as_ref())?,
            expand_secrets: secrets(objects, wanted, "NodeExpandSecretRef", expand.as_ref())?,
            tokens: self.tokens(pod, driver).await?,
        })
    }

    /// <https://kubernetes-csi.github.io/docs/token-requests.html>
    async fn tokens(&self, pod: &ValidPod, driver: Option<&CSIDriverSpec>) -> Result<Option<String>, String> {
        let requests = driver.and_then(|spec| spec.token_requests.as_deref()).unwrap_or_default();
        let Some(accounts) = self.accounts.as_ref().filter(|_| !requests.is_empty()) else { return Ok(None) };
        let mut tokens = BTreeMap::new();
        for request in requests {
            let asked = accounts.token(&Subject::of(pod), &request.audience, request.expiration_seconds).await;
            let (token, expires) = asked.map_err(|why| format!("failed to get service account token attributes: {why}"))?;
            tokens.insert(&request.audience, json!({"token": token, "expirationTimestamp": expires}));
        }
        Ok(Some(json!(tokens).to_string()))
    }

    /// Tells drivers that want it again and again what their volumes are to be, as long as the pods live. Sleeps while there are none.
    pub async fn republish(self: Arc<Self>) {
        let mut changed = self.csi.changed();
        loop {
            if self.csi.to_be_republished().is_empty() {
                if changed.changed().await.is_err() {
                    return;
                }
                continue;
            }
            tokio::time::sleep(REPUBLISH).await;
            for uid in self.csi.to_be_republished() {
                let Some(object) = self.store.pod(&uid) else { continue };
                // Only a cluster knows of drivers that want this.
                let pod = ValidPod::trusted(k8s_openapi::api::core::v1::Pod::clone(&object), Origin::Api);
                if let Err(error) = self.republish_all(&pod).await {
                    tracing::warn!(%pod, error, "a CSI driver could not be told anew of a volume; it is tried again");
                }
            }
        }
    }

    async fn republish_all(&self, pod: &ValidPod) -> Result<(), String> {
        let wanted = self.resolve_claims(pod).map_err(|error| error.to_string())?.csi;
        for wanted in wanted.values() {
            let driver = driver(self.objects.of(pod), &wanted.driver);
            if driver.as_ref().and_then(|spec| spec.requires_republish) == Some(true) {
                self.renew_publish_secret(wanted).await;
                let given = self.given(pod, wanted, driver.as_ref()).await?;
                self.csi.republish(Request { pod, wanted, driver: driver.as_ref(), given: &given }).await?;
            }
        }
        Ok(())
    }

    /// A PersistentVolume's Secret as it is now, as for a driver that is asked first. While the API server can't be asked, what it said last
    /// counts.
    async fn renew_publish_secret(&self, wanted: &Wanted) {
        let (Some(claims), [_, Some(reference), _], Life::Persistent) = (&self.claims, &wanted.secrets, wanted.life) else {
            return;
        };
        match claims.secret(&wanted.name, reference).await {
            Ok(Some(secret)) => self.objects.cluster.put(secret),
            Ok(None) => drop(self.objects.cluster.remove(&wanted::secret_key(&wanted.name, reference))),
            Err(why) => tracing::debug!(volume = wanted.name, why, "a volume's Secret could not be asked for"),
        }
    }

    /// Whether there is something of an earlier life of the pod: after a reboot, or after a crash between two steps.
    pub(super) fn has_leftovers(&self, uid: &PodUid) -> bool {
        self.runtime.has_leftovers(uid) || self.csi.has(uid)
    }

    /// Removes what is left of a pod that nobody knows any more. Its drivers may come later than this agent.
    pub(super) async fn clear(&self, uid: &PodUid) -> Result<(), String> {
        self.runtime.remove_pod(uid, None).await.map_err(|error| error.to_string())?;
        let (mut changed, mut wait) = (self.csi.changed(), FIRST_WAIT);
        while let Err(error) = self.csi.unmount(uid).await {
            if wait == FIRST_WAIT {
                tracing::warn!(%uid, error, "volumes of a pod that is gone are still mounted; it is tried again");
            }
            let _ = tokio::time::timeout(wait, changed.changed()).await;
            wait = (wait * 2).min(LAST_WAIT);
        }
        Ok(())
    }
}

fn driver(objects: &Objects, name: &str) -> Option<CSIDriverSpec> {
    match objects.get(&ObjectRef::new(ObjectKind::CsiDriver, "", name))?.body() {
        Body::CsiDriver(driver) => Some(driver.spec.clone()),
        _ => None,
    }
}

/// What the attacher said; an error, as long as the volume isn't attached.
fn attachment(objects: &Objects, wanted: &Wanted, node: &str) -> Result<BTreeMap<String, String>, String> {
    let name = wanted::attachment(&wanted.handle, &wanted.driver, node);
    let found = objects.get(&ObjectRef::new(ObjectKind::VolumeAttachment, "", &name));
    let status = match found.as_ref().map(ValidObject::body) {
        Some(Body::VolumeAttachment(attachment)) => attachment.status.clone(),
        _ => None,
    };
    match status.filter(|status| status.attached) {
        Some(status) => Ok(status.attachment_metadata.unwrap_or_default()),
        None => Err(format!("volume {} is not attached for volume attachment {name}", wanted.handle)),
    }
}

fn secrets(
    objects: &Objects,
    wanted: &Wanted,
    field: &str,
    reference: Option<&SecretReference>,
) -> Result<BTreeMap<String, String>, String> {
    let Some(reference) = reference else { return Ok(BTreeMap::new()) };
    let (namespace, name) = (reference.namespace.as_deref().unwrap_or_default(), reference.name.as_deref().unwrap_or_default());
    let key = match wanted.life {
        Life::Ephemeral => ObjectRef::new(ObjectKind::Secret, namespace, name),
        Life::Persistent => wanted::secret_key(&wanted.name, reference),
    };
    match objects.get(&key).as_ref().map(ValidObject::body) {
        Some(Body::Secret(secret)) => Ok(texts(secret)),
        _ => Err(format!("fetching {field} {namespace}/{name} failed: secrets \"{name}\" not found")),
    }
}

fn texts(secret: &Secret) -> BTreeMap<String, String> {
    let data = secret.data.iter().flatten();
    data.map(|(name, value)| (name.clone(), String::from_utf8_lossy(&value.0).into_owned())).collect()
}
