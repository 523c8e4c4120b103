//! A pod's volumes, off the agent's own threads: making, finding and refreshing them waits for disks and networks, and an fsGroup
//! walks whole trees. One task at a time works on a pod's volumes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::{Mutex, OwnedMutexGuard};

use super::Node;
use super::claims::Resolved;
use crate::model::ValidPod;
use crate::runtime;
use crate::runtime::volumes::{Input, Volumes};

/// Whose turn it is to work on a pod's volumes: two containers that start at once, an edit of an object, the pod's end.
#[derive(Debug, Clone, Default)]
pub struct Turn(Arc<Mutex<()>>);

impl Turn {
    /// Waits until nobody else is at it.
    pub(super) async fn take(&self) -> OwnedMutexGuard<()> {
        self.0.clone().lock_owned().await
    }
}

impl Node {
    /// Makes all volumes of a pod, or finds them as they are.
    pub(super) async fn make_volumes(
        self: &Arc<Self>,
        pod: &ValidPod,
        pod_ips: &[IpAddr],
        turn: &Turn,
    ) -> Result<Volumes, runtime::Error> {
        if pod.spec().volumes.iter().flatten().next().is_none() {
            return Ok(Volumes::new());
        }
        let turn = turn.take().await;
        let Resolved { pod, read_only, disks, elsewhere, csi } = self.resolve_claims(pod)?;
        if let Some(error) = elsewhere {
            return Err(error);
        }
        let images = self.attach_volumes(&pod).await?;
        let mounted = self.mount_all(&pod, csi).await?;
        let (node, pod_ips) = (self.clone(), pod_ips.to_vec());
        let place = pod.to_string();
        let made = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let objects = node.objects.of(&pod);
            let input = Input { pod: &pod, pod_ips: &pod_ips, objects, images: &images, mounted: &mounted, disks: &disks };
            let mut volumes = node.runtime.prepare_volumes(input)?;
            for name in read_only {
                volumes.entry(name).and_modify(|volume| volume.read_only = true);
            }
            Ok(volumes)
        });
        made.await.unwrap_or_else(|error| Err(runtime::Error::pod(place, format!("making its volumes: {error}"))))
    }

    /// Brings the volumes that are there to what the pod's objects and its own fields say now. Goes on past errors.
    pub(super) async fn refresh_volumes(self: Arc<Self>, pod: ValidPod, pod_ips: Vec<IpAddr>, turn: Turn) -> Vec<runtime::Error> {
        let turn = turn.take().await;
        let place = pod.to_string();
        let refreshed = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let (images, mounted) = (BTreeMap::new(), BTreeMap::new());
            let objects = self.objects.of(&pod);
            let input = Input { pod: &pod, pod_ips: &pod_ips, objects, images: &images, mounted: &mounted, disks: &[] };
            self.runtime.refresh_volumes(input)
        });
        refreshed.await.unwrap_or_else(|error| vec![runtime::Error::pod(place, format!("refreshing its volumes: {error}"))])
    }
}
