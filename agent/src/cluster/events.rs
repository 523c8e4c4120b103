//! Events of the cluster's pods, and of the node, for the API server. A repeated event counts up there as it does here. Events are worth
//! less than pods: they go one after another, at most so many a minute of one object, and one that can't be told is dropped.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Event;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Cluster, Failure, answer};
use crate::model::PodUid;
use crate::pod::Node;

/// As client-go's spam filter: a burst, and then one in so long.
const BURST: u32 = 25;
const REFILL: Duration = Duration::from_secs(300);

/// Events come in bursts, with the beginning of pods, which needs the API server more.
const AFTER: Duration = Duration::from_millis(100);

/// Events that wait to be told; further ones are dropped.
const KEPT: usize = 1024;

/// Follows the events; never returns.
pub(super) async fn follow(cluster: &Cluster, node: &Node) {
    let (waiting, events) = mpsc::channel(KEPT);
    tokio::join!(collect(cluster, node, waiting), tell_all(cluster, events));
}

/// Those that the API server is to know.
async fn collect(cluster: &Cluster, node: &Node, waiting: mpsc::Sender<Event>) {
    let mut changes = node.store.events().changes;
    let mut budgets: HashMap<String, Budget> = HashMap::new();
    cluster.member().await;
    loop {
        let event = match changes.recv().await {
            Ok(change) => of_cluster(cluster, &change.object),
            Err(RecvError::Lagged(_)) => None,
            Err(RecvError::Closed) => return,
        };
        if let Some(event) = event.filter(|event| may_be_told(&mut budgets, event)) {
            let _ = waiting.try_send(event);
        }
    }
}

async fn tell_all(cluster: &Cluster, mut events: mpsc::Receiver<Event>) {
    while let Some(first) = events.recv().await {
        tokio::time::sleep(AFTER).await;
        tell(cluster, first).await;
        while let Ok(next) = events.try_recv() {
            tell(cluster, next).await;
        }
    }
}

fn may_be_told(budgets: &mut HashMap<String, Budget>, event: &Event) -> bool {
    let object = event.involved_object.uid.clone().unwrap_or_default();
    let now = Instant::now();
    budgets.retain(|_, budget| !budget.is_full(now));
    budgets.entry(object).or_insert_with(|| Budget::full(now)).take(now)
}

/// The event for the API server, if its object is there.
fn of_cluster(cluster: &Cluster, event: &Event) -> Option<Event> {
    let object = &event.involved_object;
    let mut event = event.clone();
    event.metadata.resource_version = None;
    match object.kind.as_deref() {
        Some("Pod") => {
            let pod = cluster.pod(&PodUid::new(object.uid.as_deref()?))?;
            event.involved_object.uid.clone_from(&pod.metadata.uid);
            // The store's version says nothing there.
            event.involved_object.resource_version = None;
        }
        Some("Node" | "PersistentVolumeClaim") => {}
        _ => return None,
    }
    Some(event)
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
        let patch = json!({"count": event.count, "lastTimestamp": event.last_timestamp});
        match answer(events.patch(name, &PatchParams::default(), &Patch::Merge(patch))).await {
            // It was too old for the API server, or never got there.
            Err(failure) if failure.code == 404 => {}
            told => return told.map(drop),
        }
    }
    answer(events.create(&PostParams::default(), event)).await.map(drop)
}

/// Events that may still be told of an object.
struct Budget {
    left: f64,
    at: Instant,
}

impl Budget {
    fn full(now: Instant) -> Self {
        Self { left: BURST.into(), at: now }
    }

    fn now(&self, now: Instant) -> f64 {
        let refilled = now.saturating_duration_since(self.at).as_secs_f64() / REFILL.as_secs_f64();
        (self.left + refilled).min(BURST.into())
    }

    fn is_full(&self, now: Instant) -> bool {
        self.now(now) >= f64::from(BURST)
    }

    fn take(&mut self, now: Instant) -> bool {
        self.left = self.now(now);
        self.at = now;
        let taken = self.left >= 1.0;
        if taken {
            self.left -= 1.0;
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_one_in_five_minutes() {
        let start = Instant::now();
        let mut budget = Budget::full(start);
        assert_eq!((0..30).filter(|_| budget.take(start)).count(), 25);
        assert!(!budget.take(start + REFILL / 2));
        assert!(budget.take(start + REFILL));
        assert!(!budget.take(start + REFILL));
        assert!(budget.is_full(start + REFILL * 30));
    }
}
