//! The Node, the namespaces that the pods are in, and images: resources that are computed when asked for and have no history.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Node as NodeObject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::broadcast;

use super::list::{Changes, Served};
use super::table::{Column, column, wide};
use super::{ApiError, GROUP, human};
use crate::pod::node::{ImageSummary, Node};
use crate::pod::store::{Change, Expired, Snapshot};

/// Changes that never come, from a sender that never goes.
fn silence<T: Send + Sync + 'static>(sender: &LazyLock<broadcast::Sender<Change<T>>>) -> Changes<T> {
    sender.subscribe()
}

fn fixed<T>(node: &dyn Node, changes: Changes<T>, objects: Vec<T>) -> Snapshot<T> {
    Snapshot { version: node.store().pods().version, objects: objects.into_iter().map(Arc::new).collect(), changes }
}

static NODES: LazyLock<broadcast::Sender<Change<NodeObject>>> = LazyLock::new(|| broadcast::channel(1).0);
static NAMESPACES: LazyLock<broadcast::Sender<Change<Namespace>>> = LazyLock::new(|| broadcast::channel(1).0);
static IMAGES: LazyLock<broadcast::Sender<Change<Image>>> = LazyLock::new(|| broadcast::channel(1).0);

impl Served for NodeObject {
    const RESOURCE: &'static str = "nodes";
    const KIND: &'static str = "Node";
    const API_VERSION: &'static str = "v1";
    const COLUMNS: &'static [Column] = &[
        column("Name"),
        column("Status"),
        column("Roles"),
        column("Age"),
        column("Version"),
        wide("Internal-IP"),
        wide("External-IP"),
        wide("OS-Image"),
        wide("Kernel-Version"),
        wide("Container-Runtime"),
    ];
    const FIELDS: &'static [&'static str] = &["spec.unschedulable"];

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn field(&self, name: &str) -> String {
        let unschedulable = self.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false);
        if name == "spec.unschedulable" { unschedulable.to_string() } else { String::new() }
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let status = self.status.clone().unwrap_or_default();
        let info = status.node_info.unwrap_or_default();
        let ready = status.conditions.iter().flatten().find(|c| c.type_ == "Ready").map(|c| c.status.as_str());
        let mut words = vec![match ready {
            Some("True") => "Ready",
            Some(_) => "NotReady",
            None => "Unknown",
        }];
        if self.field("spec.unschedulable") == "true" {
            words.push("SchedulingDisabled");
        }
        let roles = self.metadata.labels.iter().flatten().filter_map(|(key, _)| key.strip_prefix("node-role.kubernetes.io/"));
        let or_none = |text: String| if text.is_empty() { "<none>".to_owned() } else { text };
        let address = |kind: &str| {
            let found = status.addresses.iter().flatten().find(|a| a.type_ == kind).map(|a| a.address.clone());
            or_none(found.unwrap_or_default())
        };
        vec![
            json!(self.metadata.name),
            json!(words.join(",")),
            json!(or_none(roles.collect::<Vec<_>>().join(","))),
            json!(human::since(self.metadata.creation_timestamp.as_ref().map(|t| t.0), now)),
            json!(info.kubelet_version),
            json!(address("InternalIP")),
            json!(address("ExternalIP")),
            json!(info.os_image),
            json!(info.kernel_version),
            json!(info.container_runtime_version),
        ]
    }

    async fn snapshot(node: &dyn Node) -> Result<Snapshot<Self>, ApiError> {
        Ok(fixed(node, silence(&NODES), vec![node.node()]))
    }

    fn since(_: &dyn Node, _: u64) -> Result<(Vec<Change<Self>>, Changes<Self>), Expired> {
        Ok((Vec::new(), silence(&NODES)))
    }
}

impl Served for Namespace {
    const RESOURCE: &'static str = "namespaces";
    const KIND: &'static str = "Namespace";
    const API_VERSION: &'static str = "v1";
    const COLUMNS: &'static [Column] = &[column("Name"), column("Status"), column("Age")];
    const FIELDS: &'static [&'static str] = &["status.phase"];

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn field(&self, _: &str) -> String {
        "Active".to_owned()
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let created = self.metadata.creation_timestamp.as_ref().map(|t| t.0);
        vec![json!(self.metadata.name), json!("Active"), json!(human::since(created, now))]
    }

    async fn snapshot(node: &dyn Node) -> Result<Snapshot<Self>, ApiError> {
        let created = node.node().metadata.creation_timestamp;
        let pods = node.store().pods().objects;
        let used = pods.iter().filter_map(|pod| pod.metadata.namespace.clone());
        let mut names: BTreeSet<String> = used.chain(["default".to_owned()]).collect();
        let mut objects: Vec<Namespace> = Vec::new();
        for told in node.store().workloads::<Namespace>().objects {
            let mut told = Namespace::clone(&told);
            names.remove(told.metadata.name.as_deref().unwrap_or_default());
            told.status = namespace(String::new(), None).status;
            objects.push(told);
        }
        objects.extend(names.into_iter().map(|name| namespace(name, created.clone())));
        objects.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        Ok(fixed(node, silence(&NAMESPACES), objects))
    }

    fn since(_: &dyn Node, _: u64) -> Result<(Vec<Change<Self>>, Changes<Self>), Expired> {
        Ok((Vec::new(), silence(&NAMESPACES)))
    }
}

fn namespace(name: String, created: Option<Time>) -> Namespace {
    let mut namespace = Namespace::default();
    namespace.metadata.labels = Some([("kubernetes.io/metadata.name".to_owned(), name.clone())].into());
    namespace.metadata.name = Some(name);
    namespace.metadata.creation_timestamp = created;
    namespace.status =
        Some(k8s_openapi::api::core::v1::NamespaceStatus { phase: Some("Active".to_owned()), ..Default::default() });
    namespace
}

/// An image as an object: its name is the beginning of its digest, as references can't be names.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    api_version: String,
    kind: &'static str,
    metadata: ObjectMeta,
    #[serde(flatten)]
    summary: ImageSummary,
}

impl Image {
    fn new(summary: ImageSummary) -> Self {
        let digest = summary.id.strip_prefix("sha256:").unwrap_or(&summary.id);
        let name = Some(digest.chars().take(12).collect());
        let creation_timestamp = summary.created.as_deref().and_then(|t| t.parse().ok()).map(Time);
        let metadata = ObjectMeta { name, creation_timestamp, ..ObjectMeta::default() };
        Self { api_version: format!("{GROUP}/v1"), kind: "Image", metadata, summary }
    }
}

impl Served for Image {
    const RESOURCE: &'static str = "images";
    const KIND: &'static str = "Image";
    const API_VERSION: &'static str = "nodeagent.dev/v1";
    const COLUMNS: &'static [Column] = &[
        column("Image"),
        column("ID"),
        column("Size"),
        column("Created"),
        Column { name: "In Use", kind: "integer", priority: 0 },
        wide("Pinned"),
        wide("Digest"),
    ];
    const FIELDS: &'static [&'static str] = &[];

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn field(&self, _: &str) -> String {
        String::new()
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let or_none = |names: &[String]| if names.is_empty() { "<none>".to_owned() } else { names.join(", ") };
        let created = self.metadata.creation_timestamp.as_ref().map(|t| t.0);
        vec![
            json!(or_none(&self.summary.tags)),
            json!(self.metadata.name),
            json!(human::size(self.summary.size)),
            json!(human::since(created, now)),
            json!(self.summary.in_use),
            json!(self.summary.pinned.to_string()),
            json!(or_none(&self.summary.digests)),
        ]
    }

    async fn snapshot(node: &dyn Node) -> Result<Snapshot<Self>, ApiError> {
        let images = node.images().list().await?;
        Ok(fixed(node, silence(&IMAGES), images.into_iter().map(Self::new).collect()))
    }

    fn since(_: &dyn Node, _: u64) -> Result<(Vec<Change<Self>>, Changes<Self>), Expired> {
        Ok((Vec::new(), silence(&IMAGES)))
    }
}
