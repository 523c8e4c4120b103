//! Events of the node's pods, and of the node, for the API server. A repeated event counts up there as it does here, and many that differ
//! only in what they say become one. Events are worth less than pods: they go one after another, at most so many a minute of one object, and
//! one that can't be told is dropped. Those of a file's pod are about its mirror.

mod correlate;

use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, Pod};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::{Cluster, Failure, answer, mirror};
use crate::model::PodUid;
use crate::pod::Node;
use crate::pod::store::Snapshot;
use correlate::{Budget, Correlator, Rate};

/// Events come in bursts, with the beginning of pods, which needs the API server more.
const AFTER: Duration = Duration::from_millis(100);

/// As the kubelet's eventBurst and eventRecordQPS: of all objects together.
const PACE: Rate = Rate { burst: 100, refill: Duration::from_millis(20) };

/// Events that wait to be told; further ones are dropped.
const KEPT: usize = 1024;

/// Follows the events; never returns. `used` hears whenever all of them are told.
pub(super) async fn follow(cluster: &Cluster, node: &Node, used: &Notify) {
    let (waiting, events) = mpsc::channel(KEPT);
    tokio::join!(collect(cluster, node, waiting), tell_all(cluster, events, used));
}

/// Those that the API server is to know, what happened before it knew the node among them.
async fn collect(cluster: &Cluster, node: &Node, waiting: mpsc::Sender<Event>) {
    cluster.member().await;
    let Snapshot { objects: mut before, mut changes, .. } = node.store.events();
    before.sort_by_key(|event| event.metadata.resource_version.as_deref().and_then(|version| version.parse::<u64>().ok()));
    let mut before = before.into_iter();
    let mut correlator = Correlator::default();
    loop {
        let next = match before.next() {
            Some(event) => Ok(event),
            None => changes.recv().await.map(|change| change.object),
        };
        let event = match next {
            Ok(event) => of_cluster(cluster, node, &event),
            Err(RecvError::Lagged(_)) => None,
            Err(RecvError::Closed) => return,
        };
        if let Some(event) = event.and_then(|event| correlator.correlate(event, Instant::now())) {
            let _ = waiting.try_send(event);
        }
    }
}

async fn tell_all(cluster: &Cluster, mut events: mpsc::Receiver<Event>, used: &Notify) {
    let mut pace = Budget::full(PACE, Instant::now());
    while let Some(first) = events.recv().await {
        tokio::time::sleep(AFTER).await;
        let mut next = Some(first);
        while let Some(event) = next {
            while !pace.take(Instant::now()) {
                tokio::time::sleep(PACE.refill).await;
            }
            tell(cluster, event).await;
            next = events.try_recv().ok();
        }
        used.notify_one();
    }
}

/// The event for the API server, if its object is there.
fn of_cluster(cluster: &Cluster, node: &Node, event: &Event) -> Option<Event> {
    let mut event = event.clone();
    event.metadata.resource_version = None;
    let kind = event.involved_object.kind.clone().unwrap_or_default();
    match kind.as_str() {
        "Pod" => {
            // The store's version says nothing there.
            event.involved_object.resource_version = None;
            let uid = PodUid::new(event.involved_object.uid.as_deref()?);
            if let Some(known) = cluster.pod(&uid) {
                event.involved_object.uid.clone_from(&known.metadata.uid);
            } else {
                let pod = node.files_pod(&uid)?;
                about_the_mirror(cluster, &mut event, &pod);
            }
        }
        "Node" | "PersistentVolumeClaim" => {}
        _ => return None,
    }
    Some(event)
}

/// `kubectl describe` looks for the events of a mirror by the version that it is of, as a kubelet's are.
fn about_the_mirror(cluster: &Cluster, event: &mut Event, pod: &Pod) {
    let (name, version) = mirror::identity(pod, cluster);
    if let Some((_, rest)) = event.metadata.name.as_deref().and_then(|old| old.rsplit_once('.')) {
        event.metadata.name = Some(format!("{name}.{rest}"));
    }
    (event.involved_object.name, event.involved_object.uid) = (Some(name), Some(version));
}

async fn tell(cluster: &Cluster, event: Event) {
    if let Err(failure) = try_to_tell(cluster, &event).await {
        tracing::debug!(reason = event.reason, %failure, "an event could not be told to the API server");
    }
}

async fn try_to_tell(cluster: &Cluster, event: &Event) -> Result<(), Failure> {
    let events: Api<Event> = Api::namespaced(cluster.client(), event.metadata.namespace.as_deref().unwrap_or("default"));
    if event.count.is_some_and(|count| count > 1) {
        let name = event.metadata.name.as_deref().unwrap_or_default();
        let patch = json!({"count": event.count, "lastTimestamp": event.last_timestamp, "message": event.message});
        match answer(events.patch(name, &PatchParams::default(), &Patch::Merge(patch))).await {
            // It was too old for the API server, or never got there.
            Err(failure) if failure.code == 404 => {}
            told => return told.map(drop),
        }
    }
    answer(events.create(&PostParams::default(), event)).await.map(drop)
}
