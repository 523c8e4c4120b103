//! Events as the kubelet writes them, into the store. A repeated one counts up instead of standing there twice.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as k8s;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::counters::Counters;
use super::store::Store;

/// How loud an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// As expected.
    Normal,
    /// Somebody should look.
    Warning,
}

/// Writes the events of this node.
#[derive(Debug, Clone)]
pub struct Recorder {
    store: Arc<Store>,
    node: String,
    counters: Arc<Counters>,
    /// In the names of this agent's events, so that none is one of an agent before it, which the API server may still have.
    begun: Timestamp,
}

impl Recorder {
    /// Events of `node` go into `store`, and are counted.
    pub fn new(store: Arc<Store>, node: &str, counters: Arc<Counters>) -> Self {
        Self { store, node: node.to_owned(), counters, begun: Timestamp::now() }
    }

    /// An event about a pod, or about one of its containers.
    pub fn pod(&self, pod: &k8s::Pod, container: Option<&str>, level: Level, reason: &str, message: &str) {
        let meta = &pod.metadata;
        let spec = pod.spec.as_ref();
        let inits = spec.iter().flat_map(|s| s.init_containers.iter().flatten()).map(|c| c.name.as_str());
        let ephemeral = spec.iter().flat_map(|s| s.ephemeral_containers.iter().flatten()).map(|c| c.name.as_str());
        let field = match container {
            Some(name) if inits.into_iter().any(|c| c == name) => "initContainers",
            Some(name) if ephemeral.into_iter().any(|c| c == name) => "ephemeralContainers",
            _ => "containers",
        };
        self.record(
            k8s::ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: meta.name.clone(),
                namespace: meta.namespace.clone(),
                uid: meta.uid.clone(),
                resource_version: meta.resource_version.clone(),
                field_path: container.map(|c| format!("spec.{field}{{{c}}}")),
            },
            level,
            reason,
            message,
        );
    }

    /// An event about the node itself.
    pub fn node(&self, level: Level, reason: &str, message: &str) {
        let node = k8s::ObjectReference {
            kind: Some("Node".into()),
            name: Some(self.node.clone()),
            uid: Some(self.node.clone()),
            ..Default::default()
        };
        self.record(node, level, reason, message);
    }

    /// An event about any object.
    pub fn record(&self, object: k8s::ObjectReference, level: Level, reason: &str, message: &str) {
        match level {
            Level::Normal => tracing::debug!(object = object.name, reason, message, "event"),
            Level::Warning => tracing::warn!(object = object.name, reason, message, "event"),
        }
        self.counters.event(if level == Level::Normal { "Normal" } else { "Warning" }, reason);
        let now = Timestamp::now();
        // The key of what is counted together is the event's name: the same thing said of the same object.
        let said =
            format!("{:?}{:?}{:?}{reason}{message}{}", object.kind, object.uid, object.field_path, self.begun.as_nanosecond());
        let digest = ring::digest::digest(&ring::digest::SHA256, said.as_bytes());
        let hex: String = digest.as_ref().iter().take(8).map(|b| format!("{b:02x}")).collect();
        let namespace = object.namespace.clone().unwrap_or_else(|| "default".into());
        let name = format!("{}.{hex}", object.name.as_deref().unwrap_or("node"));
        let old = self.store.event(&namespace, &name);
        let first = old.as_ref().and_then(|e| e.first_timestamp.clone()).unwrap_or(Time(now));
        let count = old.as_ref().and_then(|e| e.count).unwrap_or(0).saturating_add(1);
        self.store.put_event(k8s::Event {
            count: Some(count),
            first_timestamp: Some(first),
            last_timestamp: Some(Time(now)),
            involved_object: object,
            message: Some(message.to_owned()),
            metadata: ObjectMeta {
                creation_timestamp: Some(old.and_then(|e| e.metadata.creation_timestamp.clone()).unwrap_or(Time(now))),
                name: Some(name),
                namespace: Some(namespace),
                ..Default::default()
            },
            reason: Some(reason.to_owned()),
            reporting_component: Some("nodeagent".into()),
            reporting_instance: Some(self.node.clone()),
            source: Some(k8s::EventSource { component: Some("nodeagent".into()), host: Some(self.node.clone()) }),
            type_: Some(if level == Level::Normal { "Normal" } else { "Warning" }.into()),
            ..Default::default()
        });
    }
}
