//! A file's bytes to pods that may run, and to the objects that they refer to: parse, flatten lists, decode, default, validate. Each
//! document stands for itself: a wrong one is told and left out, the others are taken.

use std::path::Path as FilePath;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, PersistentVolumeClaim, Pod, Secret, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;

use super::decode::{decode, nearest};
use super::error::{FileError, Position, Problem};
use super::object::ObjectKind;
use super::path::Path;
use super::yaml::{self, Entry, Node, Value};
use super::{
    Body, Origin, ValidObject, ValidPod, ValidWorkload, Workload, WorkloadKind, defaults, exported, secret, validate, workload,
};

/// What a manifest leaves open and the node knows.
#[derive(Debug, Clone, Default)]
pub struct Defaults {
    /// The node's name: part of a pod's derived UID, and `spec.nodeName`.
    pub node_name: String,
}

/// What a file came to.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The pods of the documents that are right.
    pub pods: Vec<ValidPod>,
    /// Their ConfigMaps, Secrets and the like.
    pub objects: Vec<ValidObject>,
    /// Their Deployments, Jobs and the like.
    pub workloads: Vec<ValidWorkload>,
    /// What is wrong, in the order of the text.
    pub errors: Vec<FileError>,
    /// What is right but perhaps not meant.
    pub warnings: Vec<FileError>,
}

/// An object of a manifest, decoded and not yet looked at.
#[derive(Debug)]
enum Object {
    Pod(Box<Pod>),
    Other(Body),
    Workload(Workload),
}

/// Errors that are told of one file: of more, the first ones are enough.
const ERROR_LIMIT: usize = 100;

/// Reads the manifest of the name `source` (`-` is standard input).
pub fn load(source: &FilePath, bytes: &[u8], defaults: &Defaults) -> Loaded {
    let mut loader = Loader { source, defaults, loaded: Loaded::default(), untold: 0 };
    let parsed = yaml::parse(bytes);
    for document in parsed.documents {
        if document.problems.is_empty() {
            loader.document(&document.root);
        } else {
            loader.tell(document.problems);
        }
    }
    loader.tell(parsed.broken);
    loader.finish()
}

struct Loader<'a> {
    source: &'a FilePath,
    defaults: &'a Defaults,
    loaded: Loaded,
    untold: usize,
}

impl Loader<'_> {
    fn document(&mut self, root: &Node) {
        match list_items(root) {
            Ok(Some((items, kind))) => items.iter().for_each(|item| self.object(item, kind)),
            Ok(None) => self.object(root, None),
            Err(problems) => self.tell(problems),
        }
    }

    /// `kind` is what an element of a typed list is without saying so.
    fn object(&mut self, root: &Node, kind: Option<&str>) {
        match object_of(root, kind) {
            Ok(Object::Pod(pod)) => self.pod(*pod, root),
            Ok(Object::Other(body)) => self.other(body, root),
            Ok(Object::Workload(workload)) => self.workload(workload, root),
            Err(problems) if is_secret(root, kind) => self.tell(secret::hidden(root, problems)),
            Err(problems) => self.tell(problems),
        }
    }

    fn pod(&mut self, mut pod: Pod, root: &Node) {
        let warnings = validate::warnings(&pod, root, self.defaults);
        self.loaded.warnings.extend(warnings.into_iter().map(|w| w.of(self.source.to_path_buf())));
        defaults::apply(&mut pod, self.defaults);
        let mut problems = validate::pod(&pod, root);
        if problems.is_empty() {
            exported::leave_out(&mut pod);
            let origin = self.origin(root.at);
            self.loaded.pods.push(ValidPod::trusted(pod, origin));
        } else {
            problems.sort_by_key(|p| p.at);
            self.tell(problems);
        }
    }

    fn other(&mut self, body: Body, root: &Node) {
        let warnings = validate::object_warnings(&body, root);
        self.loaded.warnings.extend(warnings.into_iter().map(|w| w.of(self.source.to_path_buf())));
        let body = defaults::object(body, self.defaults);
        let problems = validate::object(&body, root);
        if problems.is_empty() {
            let origin = self.origin(root.at);
            self.loaded.objects.push(ValidObject::trusted(body, origin));
        } else if body.kind() == ObjectKind::Secret {
            self.tell(secret::hidden(root, problems));
        } else {
            self.tell(problems);
        }
    }

    fn workload(&mut self, object: Workload, root: &Node) {
        let object = workload::defaults::apply(object, self.defaults);
        let problems = validate::workload(&object, root);
        if problems.is_empty() {
            let origin = self.origin(root.at);
            self.loaded.workloads.push(ValidWorkload::trusted(object, origin));
        } else {
            self.tell(problems);
        }
    }

    fn origin(&self, at: Position) -> Origin {
        if self.source.as_os_str() == "-" {
            Origin::Stdin
        } else {
            Origin::File { path: self.source.to_path_buf(), line: at.line }
        }
    }

    fn tell(&mut self, problems: impl IntoIterator<Item = Problem>) {
        for problem in problems {
            if self.loaded.errors.len() < ERROR_LIMIT {
                self.loaded.errors.push(problem.of(self.source.to_path_buf()));
            } else {
                self.untold += 1;
            }
        }
    }

    fn finish(mut self) -> Loaded {
        if self.untold > 0 {
            self.loaded.errors.push(FileError::whole(self.source, format!("and {} more errors", self.untold)));
        }
        self.loaded
    }
}

/// A list's elements and, where the list's kind says it, their kind.
type Items<'a> = (&'a [Node], Option<&'static str>);

fn list_items(root: &Node) -> Result<Option<Items<'_>>, Vec<Problem>> {
    let kind = match root.get("kind").and_then(Node::text) {
        Some("List") => None,
        Some("PodList") => Some("Pod"),
        Some(list) => match list.strip_suffix("List").and_then(|kind| KINDS.into_iter().find(|known| *known == kind)) {
            Some(kind) => Some(kind),
            None => return Ok(None),
        },
        None => return Ok(None),
    };
    let mut problems = Vec::new();
    if let Value::Map(entries) = &root.value {
        problems.extend(entries.iter().filter_map(unknown_in_list));
    }
    let items: &[Node] = match root.get("items").map(|n| (&n.value, n.at)) {
        None | Some((Value::Null, _)) => &[],
        Some((Value::List(items), _)) => items,
        Some((other, at)) => {
            let message = format!("Invalid value: {}: must be a list, not {}", other.shown(), other.kind());
            problems.push(Problem { at, field: "items".into(), message });
            &[]
        }
    };
    problems.extend(wrong_version(root, kind.map_or("v1", version_of)));
    if problems.is_empty() { Ok(Some((items, kind))) } else { Err(problems) }
}

fn unknown_in_list(entry: &Entry) -> Option<Problem> {
    const KNOWN: [&str; 4] = ["apiVersion", "kind", "metadata", "items"];
    if KNOWN.contains(&entry.key.as_str()) {
        return None;
    }
    let hint = nearest(&entry.key, &KNOWN).map(|n| format!(", did you mean {n:?}?")).unwrap_or_default();
    Some(Problem { at: entry.at, field: entry.key.clone(), message: format!("unknown field{hint}") })
}

fn is_secret(root: &Node, kind: Option<&str>) -> bool {
    root.get("kind").and_then(Node::text).or(kind) == Some(ObjectKind::Secret.as_str())
}

fn object_of(root: &Node, kind: Option<&str>) -> Result<Object, Vec<Problem>> {
    if !matches!(root.value, Value::Map(_)) {
        return Err(vec![Problem::text(root.at, format!("a Kubernetes object is a map, this is {}", root.value.kind()))]);
    }
    let path = Path::ROOT.child("kind");
    let told = |message: String| vec![Problem { at: path.position(root), field: "kind".into(), message }];
    let kind = match (root.get("kind").map(|n| &n.value), kind) {
        (Some(Value::Text(kind)), _) => kind.as_str(),
        (None | Some(Value::Null), Some(kind)) => kind,
        (None | Some(Value::Null), None) => return Err(told("Required value: such as \"Pod\"".into())),
        (Some(other), _) => {
            return Err(told(format!("Invalid value: {}: must be a string, not {}", other.shown(), other.kind())));
        }
    };
    if matches!(kind, "List" | "PodList") {
        return Err(told(format!("Forbidden: a {kind} can't be inside of a list")));
    }
    let Some(decode) = decoder(kind) else {
        let shown = yaml::shown_text(kind);
        let known: Vec<&str> = KINDS.iter().copied().chain(["List", "PodList"]).collect();
        let hint = nearest(kind, &known).map(|n| format!(", did you mean {n:?}?")).unwrap_or_default();
        let supported = KINDS.map(|k| format!("{k:?}")).join(", ");
        let why = elsewhere(kind).map(|why| format!(": {why}")).unwrap_or_default();
        return Err(told(format!("Unsupported value: {shown}: supported values: {supported}, \"List\"{hint}{why}")));
    };
    let version = if root.get("kind").is_some() { wrong_version(root, version_of(kind)) } else { None };
    match version {
        Some(problem) => Err(vec![problem]),
        None => decode(root),
    }
}

/// The kinds that a manifest can have.
const KINDS: [&str; 13] = [
    "ConfigMap",
    "CronJob",
    "DaemonSet",
    "Deployment",
    "Job",
    "Namespace",
    "NetworkPolicy",
    "PersistentVolumeClaim",
    "Pod",
    "ReplicaSet",
    "Secret",
    "Service",
    "StatefulSet",
];

/// Why a kind that clusters have isn't taken, and what would be right.
fn elsewhere(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "PersistentVolume" | "StorageClass" => "a claim is a folder on this node: leave it out",
        "ServiceAccount" | "Role" | "RoleBinding" | "ClusterRole" | "ClusterRoleBinding" => {
            "there is no cluster here whose API it would give rights to: leave it out"
        }
        "ReplicationController" => "ReplicaSet and Deployment have taken its place",
        "Ingress" | "IngressClass" | "Gateway" | "HTTPRoute" => {
            "only a cluster has a controller for it; a container's hostPort is reached from outside"
        }
        "HorizontalPodAutoscaler" | "VerticalPodAutoscaler" => {
            "only a cluster has a controller for it: write replicas or resources into the manifest"
        }
        "PodDisruptionBudget"
        | "LimitRange"
        | "ResourceQuota"
        | "ValidatingWebhookConfiguration"
        | "MutatingWebhookConfiguration" => "only a cluster's API server follows it",
        "CustomResourceDefinition" => "only a cluster has custom resources",
        "Kustomization" => "a folder's kustomization.yaml is built as a whole: name its folder",
        _ => return None,
    })
}

/// The version in which a kind is taken.
fn version_of(kind: &str) -> &'static str {
    let object = ObjectKind::parse(kind).map(ObjectKind::api_version);
    object.or_else(|| WorkloadKind::parse(kind).map(WorkloadKind::api_version)).unwrap_or("v1")
}

type Decoder = fn(&Node) -> Result<Object, Vec<Problem>>;

fn decoder(kind: &str) -> Option<Decoder> {
    Some(match kind {
        "Pod" => |root| decode::<Pod>(root).map(|pod| Object::Pod(Box::new(pod))),
        "ConfigMap" => |root| decode::<ConfigMap>(root).map(|o| Object::Other(Body::ConfigMap(Arc::new(o)))),
        "Secret" => |root| {
            let readable = secret::readable(root)?;
            decode::<Secret>(&readable).map(|o| Object::Other(Body::Secret(Arc::new(secret::merged(o)))))
        },
        "PersistentVolumeClaim" => {
            |root| decode::<PersistentVolumeClaim>(root).map(|o| Object::Other(Body::PersistentVolumeClaim(Arc::new(o))))
        }
        "Service" => |root| decode::<Service>(root).map(|o| Object::Other(Body::Service(Arc::new(o)))),
        "NetworkPolicy" => |root| decode::<NetworkPolicy>(root).map(|o| Object::Other(Body::NetworkPolicy(Arc::new(o)))),
        "Namespace" => |root| decode::<Namespace>(root).map(|o| Object::Other(Body::Namespace(Arc::new(o)))),
        kind => return WorkloadKind::parse(kind).map(workload_decoder),
    })
}

fn workload_decoder(kind: WorkloadKind) -> Decoder {
    fn taken<T>(object: T, of: fn(Arc<T>) -> Workload) -> Object {
        Object::Workload(of(Arc::new(object)))
    }
    match kind {
        WorkloadKind::CronJob => |root| decode::<CronJob>(root).map(|o| taken(o, Workload::CronJob)),
        WorkloadKind::DaemonSet => |root| decode::<DaemonSet>(root).map(|o| taken(o, Workload::DaemonSet)),
        WorkloadKind::Deployment => |root| decode::<Deployment>(root).map(|o| taken(o, Workload::Deployment)),
        WorkloadKind::Job => |root| decode::<Job>(root).map(|o| taken(o, Workload::Job)),
        WorkloadKind::ReplicaSet => |root| decode::<ReplicaSet>(root).map(|o| taken(o, Workload::ReplicaSet)),
        WorkloadKind::StatefulSet => |root| decode::<StatefulSet>(root).map(|o| taken(o, Workload::StatefulSet)),
    }
}

fn wrong_version(root: &Node, wanted: &str) -> Option<Problem> {
    let message = match root.get("apiVersion").map(|n| &n.value) {
        Some(Value::Text(version)) if version == wanted => return None,
        None | Some(Value::Null) => format!("Required value: here it is {wanted:?}"),
        Some(other) => format!("Unsupported value: {}: supported values: {wanted:?}", other.shown()),
    };
    Some(Problem { at: Path::ROOT.child("apiVersion").position(root), field: "apiVersion".into(), message })
}
