//! Claims of pods: what they are bound to, and what mounting that takes.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, SecretReference};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use kube::Api;

use super::Eager;
use super::needs::Keeper;
use crate::cluster::{Failure, answer};
use crate::model::{Body, Origin, ValidObject};
use crate::plugin::csi::wanted::{self, Wanted};

/// How long at most an attachment that is there isn't seen.
const ATTACHING: Duration = Duration::from_secs(2);

/// What there is of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// Not itself, or not its volume.
    Nothing,
    /// Its volume, and not all that mounting it takes.
    Claim,
    /// Everything.
    All,
}

impl Keeper {
    /// Until all is there that mounting the claim's volume takes; of that, nothing that matters here changes any more. A node may get
    /// these objects, and watch none of them.
    pub(super) async fn claim(self) {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.cluster.client(), &self.key.namespace);
        let mut failures = 0_u32;
        let mut waits = Eager::default();
        loop {
            let most = match self.bound(&claims).await {
                Ok(found) => {
                    self.told.send_replace(true);
                    match found {
                        Found::All => return,
                        // Somebody is at it.
                        Found::Claim => ATTACHING,
                        Found::Nothing => Eager::MOST,
                    }
                }
                Err(failure) => {
                    failures = failures.saturating_add(u32::from(failure.code != 0));
                    self.complain(failures, &failure.to_string());
                    Eager::MOST
                }
            };
            tokio::time::sleep(waits.next().unwrap_or(most).min(most)).await;
        }
    }

    async fn bound(&self, claims: &Api<PersistentVolumeClaim>) -> Result<Found, Failure> {
        let Some(mut claim) = answer(claims.get_opt(&self.key.name)).await? else {
            self.remove();
            return Ok(Found::Nothing);
        };
        let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).filter(|name| !name.is_empty());
        let bound = claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
        let mut found = Found::Nothing;
        if let (Some(name), true) = (&name, bound) {
            let volumes: Api<PersistentVolume> = Api::all(self.cluster.client());
            let mut volume = answer(volumes.get(name)).await?;
            volume.metadata.managed_fields = None;
            found = self.behind(&volume).await?;
            self.node.objects.cluster.put(ValidObject::trusted(Body::PersistentVolume(Arc::new(volume)), Origin::Api));
        }
        let known = self.node.objects.cluster.get(&self.key);
        let known = known.as_ref().and_then(|claim| claim.body().metadata().resource_version.as_ref());
        // Who waits for it tries again: not each time that somebody looks.
        if found == Found::All || known != claim.metadata.resource_version.as_ref() {
            claim.metadata.managed_fields = None;
            self.put(ValidObject::trusted(Body::PersistentVolumeClaim(Arc::new(claim)), Origin::Api));
        }
        Ok(found)
    }

    /// What mounting a volume takes besides, where a CSI driver does it: what the cluster says of the driver, Secrets with keys, and that
    /// it is attached to this node.
    async fn behind(&self, volume: &PersistentVolume) -> Result<Found, Failure> {
        let Some(wanted) = Wanted::persistent(volume) else { return Ok(Found::All) };
        let driver = self.fetch(&wanted.driver, Body::CsiDriver as fn(Arc<CSIDriver>) -> Body).await?;
        let mut all = true;
        for reference in wanted.secrets.iter().flatten() {
            all &= self.fetch_secret(&wanted.name, reference).await?;
        }
        if wanted.needs_attachment(driver.as_ref().map(|driver| &driver.spec)) {
            let name = wanted::attachment(&wanted.handle, &wanted.driver, self.cluster.node_name());
            let found = self.fetch(&name, Body::VolumeAttachment as fn(Arc<VolumeAttachment>) -> Body).await?;
            all &= found.and_then(|found| found.status.clone()).is_some_and(|status| status.attached);
        }
        Ok(if all { Found::All } else { Found::Claim })
    }

    async fn fetch_secret(&self, volume: &str, reference: &SecretReference) -> Result<bool, Failure> {
        let secret = self.cluster.volume_secret(volume, reference).await?;
        let found = secret.is_some();
        secret.into_iter().for_each(|secret| self.node.objects.cluster.put(secret));
        Ok(found)
    }
}
