//! Volumes that become larger while their pods have them, or had become before they came here: [`growth`] says what is due, here it is done.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::recorder::Level;
use super::{Node, claims};
use crate::model::{Origin, ValidPod};
use crate::plugin::csi::Size;
use crate::plugin::csi::driver::{Growth, Refusal};
use crate::plugin::csi::growth::{self, Claims, Due, Known};
use crate::plugin::csi::wanted::Wanted;
use crate::runtime::resources::units;

/// About as often as the kubelet looks. A node may get claims, and watch none.
const LOOK: Duration = Duration::from_secs(45);
/// Of drivers that never let a volume grow on the node, every so many looks: all that comes of it is that the claim says so.
const RARELY: u32 = 10;

impl Node {
    /// Brings a volume that was just mounted to the size that it has elsewhere, before a container has it. Asks the API server only if there is
    /// something to do, and if nobody has asked since the volume was mounted.
    pub(super) async fn grow_at_first(&self, pod: &ValidPod, wanted: &Wanted) -> Result<(), String> {
        let Some(size) = self.csi.size(pod.uid(), wanted).filter(|size| size.bytes.is_none()) else { return Ok(()) };
        let Some((namespace, name)) = &wanted.claim else { return Ok(()) };
        let Ok((claim, volume)) = claims::find(&self.objects.cluster, namespace, name) else { return Ok(()) };
        match growth::due(&claim, &volume, None) {
            Due::Nothing(bytes) => self.csi.keep_size(pod.uid(), wanted, Size { bytes: Some(bytes), ..size }),
            Due::Grow { .. } => self.grow(pod, wanted, size).await.map_err(|why| format!("failed while expanding volume: {why}")),
        }
    }

    /// Looks from time to time whether a volume that is in use has become larger. Sleeps while there is none that could.
    pub async fn follow_growth(self: Arc<Self>) {
        let mut changed = self.csi.changed();
        let mut looks = 0_u32;
        loop {
            if self.claims.is_none() || self.csi.may_grow().is_empty() {
                if changed.changed().await.is_err() {
                    return;
                }
                continue;
            }
            for uid in self.csi.may_grow() {
                let Some(object) = self.store.pod(&uid) else { continue };
                // Only a cluster's have volumes that grow.
                self.look(&ValidPod::trusted(Pod::clone(&object), Origin::Api), looks.is_multiple_of(RARELY)).await;
            }
            looks = looks.wrapping_add(1);
            tokio::time::sleep(LOOK).await;
        }
    }

    /// `at_all`: also at volumes that don't grow on the node.
    async fn look(&self, pod: &ValidPod, at_all: bool) {
        let Ok(resolved) = self.resolve_claims(pod) else { return };
        for wanted in resolved.csi.values().filter(|wanted| at_all || self.csi.expands(&wanted.driver)) {
            let Some(size) = self.csi.size(pod.uid(), wanted).filter(|size| size.bytes.is_some() && !size.not_in_use) else {
                continue;
            };
            if let Err(why) = self.grow(pod, wanted, size).await {
                let message = format!("NodeExpandVolume.NodeExpandVolume failed for volume \"{}\" : {why}", wanted.name);
                self.recorder.pod(pod, None, Level::Warning, "VolumeResizeFailed", &message);
            }
        }
    }

    async fn grow(&self, pod: &ValidPod, wanted: &Wanted, size: Size) -> Result<(), String> {
        let (Some(claims), Some((namespace, name))) = (&self.claims, &wanted.claim) else { return Ok(()) };
        let claim = match claims.claim(namespace, name).await {
            Ok(claim) => claim,
            // Nothing on the node waits for the API server: it is looked at again.
            Err(why) => {
                tracing::debug!(claim = name, why, "a claim's size could not be asked for");
                return Ok(());
            }
        };
        let version = claim.metadata.resource_version.clone().unwrap_or_default();
        if size.bytes.is_some() && size.seen == version {
            return Ok(());
        }
        let volume = claims.volume(&claim).await?;
        let bytes = match growth::due(&claim, &volume, size.bytes) {
            Due::Nothing(bytes) => bytes,
            Due::Grow { size: to, .. } if wanted.read_only => {
                let message =
                    format!("MountVolume.NodeExpandVolume failed for volume \"{}\" requested read-only file system", wanted.name);
                self.say(pod, &claim, Level::Warning, "FileSystemResizeFailed", &message);
                units(&to)
            }
            Due::Grow { size: to, known } => {
                let task = Task { node: self, claims: claims.as_ref(), pod, wanted };
                return task.run(claim, &to, known, size).await;
            }
        };
        self.csi.keep_size(pod.uid(), wanted, Size { bytes: Some(bytes), seen: version, ..Size::default() })
    }

    /// Of the pod, and of its claim.
    fn say(&self, pod: &ValidPod, claim: &PersistentVolumeClaim, level: Level, reason: &str, message: &str) {
        self.recorder.pod(pod, None, level, reason, message);
        let metadata = claim.metadata.clone();
        let object = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("PersistentVolumeClaim".into()),
            name: metadata.name,
            namespace: metadata.namespace,
            uid: metadata.uid,
            ..ObjectReference::default()
        };
        self.recorder.record(object, level, reason, message);
    }
}

/// A volume that is to be larger.
struct Task<'a> {
    node: &'a Node,
    claims: &'a dyn Claims,
    pod: &'a ValidPod,
    wanted: &'a Wanted,
}

impl Task<'_> {
    async fn run(&self, mut claim: PersistentVolumeClaim, to: &Quantity, known: Known, size: Size) -> Result<(), String> {
        let Self { node, claims, pod, wanted } = self;
        if known == Known::ByStep {
            claim = claims.tell(&claim, growth::in_progress()).await?;
        }
        if let Err(refusal) = node.expand(pod, wanted, units(to)).await {
            return self.refused(&claim, to, known, size, &refusal).await;
        }
        let message = format!("MountVolume.NodeExpandVolume succeeded for volume \"{}\" {}", wanted.name, node.name);
        node.say(pod, &claim, Level::Normal, "FileSystemResizeSuccessful", &message);
        if known != Known::Already {
            claim = claims.tell(&claim, growth::finished(&claim, to)).await?;
        }
        let seen = claim.metadata.resource_version.unwrap_or_default();
        node.csi.keep_size(pod.uid(), wanted, Size { bytes: Some(units(to)), seen, ..Size::default() })
    }

    async fn refused(
        &self,
        claim: &PersistentVolumeClaim,
        to: &Quantity,
        known: Known,
        mut size: Size,
        refusal: &Refusal,
    ) -> Result<(), String> {
        let kind = refusal.growth();
        if kind == Growth::Never && known != Known::ByStep {
            // It is so large without the node's doing: whoever let it grow knew that there is nothing to do here.
            let seen = claim.metadata.resource_version.clone().unwrap_or_default();
            return self.node.csi.keep_size(
                self.pod.uid(),
                self.wanted,
                Size { bytes: Some(units(to)), seen, ..Size::default() },
            );
        }
        let why = match kind {
            Growth::Never => refusal.to_string(),
            _ => format!("Expander.NodeExpand failed to expand the volume : {refusal}"),
        };
        if kind == Growth::Later || known != Known::ByStep {
            return if kind == Growth::NotInUse { self.keep(size, true) } else { Err(why) };
        }
        // Who asked for another size meanwhile gets that, instead of one that fails again and again.
        let infeasible = kind == Growth::Infeasible || size.failed && !growth::is_asked_for(claim, to);
        size.failed = true;
        self.claims.tell(claim, growth::failed(claim, &why, infeasible, Timestamp::now())).await?;
        self.keep(size, kind == Growth::NotInUse)?;
        if kind == Growth::NotInUse { Ok(()) } else { Err(why) }
    }

    fn keep(&self, size: Size, not_in_use: bool) -> Result<(), String> {
        self.node.csi.keep_size(self.pod.uid(), self.wanted, Size { not_in_use, ..size })
    }
}
