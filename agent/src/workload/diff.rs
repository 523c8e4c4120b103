//! What a manifest would change of what is there now: the answer to `nodeagent diff`. Pure; knows the node's state by reading it.

use std::sync::Arc;

use k8s_openapi::Metadata;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{deployment, world};
use crate::model::difference::{self, Field};
use crate::model::workload::defaults::job_identity;
use crate::model::{
    Body, Loaded, ObjectKind, Origin, ValidObject, ValidPod, ValidWorkload, Workload, WorkloadKind, change, references,
};
use crate::pod::objects::Objects;
use crate::pod::store::Store;
use crate::pod::store::workloads::Kept;

/// One object that a manifest would change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Such as `Pod`.
    pub kind: String,
    /// metadata.namespace.
    pub namespace: String,
    /// metadata.name.
    pub name: String,
    /// What would follow, as a sentence without its subject.
    pub effect: String,
    /// What differs.
    #[serde(default)]
    pub fields: Vec<Field>,
}

/// Everything that would change, in the manifest's order of kinds.
pub fn diff(loaded: &Loaded, store: &Store, objects: &Objects) -> Vec<Difference> {
    let told = |kind: &str, namespace: &str, name: &str, (effect, fields): Told| Difference {
        kind: kind.into(),
        namespace: namespace.into(),
        name: name.into(),
        effect,
        fields,
    };
    let of_objects = loaded.objects.iter().filter_map(|new| {
        let key = new.key();
        Some(told(key.kind.as_str(), &key.namespace, &key.name, object(new, store, objects)?))
    });
    let of_workloads = loaded.workloads.iter().filter_map(|new| {
        let key = new.key();
        Some(told(key.kind.as_str(), &key.namespace, &key.name, workload(new, store)?))
    });
    let of_pods = loaded.pods.iter().filter_map(|new| Some(told("Pod", new.namespace(), new.name(), pod(new, store)?)));
    of_objects.chain(of_workloads).chain(of_pods).collect()
}

/// What would follow, and what differs.
type Told = (String, Vec<Field>);

fn created() -> Told {
    ("would be created".into(), Vec::new())
}

fn pod(new: &ValidPod, store: &Store) -> Option<Told> {
    let Some(live) = store.pod_named(new.namespace(), new.name()) else { return Some(created()) };
    let fields = difference::between(&declared(&live), &declared(new.object()));
    if fields.is_empty() {
        return None;
    }
    let old = ValidPod::trusted(Pod::clone(&live), Origin::Stdin);
    let effect = match change::between(&old, new) {
        change::Change::Recreate => "would be recreated: all of its containers end and new ones start".into(),
        change::Change::RestartContainers(names) => format!("would be changed; containers that restart: {}", names.join(", ")),
        change::Change::Keep => "would be changed in place: nothing restarts".into(),
    };
    Some((effect, fields))
}

/// What an author writes of an object.
fn declared(object: &impl Serialize) -> Value {
    let value = serde_json::to_value(object).unwrap_or_default();
    let metadata = &value["metadata"];
    let mut shown = value.clone();
    shown["metadata"] = json!({ "labels": metadata["labels"], "annotations": metadata["annotations"] });
    if let Some(fields) = shown.as_object_mut() {
        fields.remove("status");
    }
    shown
}

fn object(new: &ValidObject, store: &Store, objects: &Objects) -> Option<Told> {
    let key = new.key();
    let Some(old) = objects.get(key) else { return Some(created()) };
    let mut fields = difference::between(&body(old.body()), &body(new.body()));
    if fields.is_empty() {
        return None;
    }
    if key.kind == ObjectKind::Secret {
        fields.iter_mut().for_each(conceal);
    }
    let users = users(new, store);
    let effect = if old.immutable() && !old.same_data(new) {
        "would stay as it is: it is immutable".into()
    } else if users.is_empty() {
        "would be changed; no pod refers to it".into()
    } else {
        let users = users.join(", ");
        format!("would be changed; volumes follow at once, environments when a container restarts: pods {users}")
    };
    Some((effect, fields))
}

fn body(body: &Body) -> Value {
    match body {
        Body::ConfigMap(o) => declared(o.as_ref()),
        Body::Secret(o) => declared(o.as_ref()),
        Body::PersistentVolumeClaim(o) => declared(o.as_ref()),
        Body::Service(o) => declared(o.as_ref()),
        Body::NetworkPolicy(o) => declared(o.as_ref()),
        Body::Namespace(o) => declared(o.as_ref()),
        Body::PersistentVolume(o) => declared(o.as_ref()),
        Body::RuntimeClass(o) => declared(o.as_ref()),
        Body::CsiDriver(o) => declared(o.as_ref()),
        Body::VolumeAttachment(o) => declared(o.as_ref()),
    }
}

/// That a secret differs may be told, never what it is.
fn conceal(field: &mut Field) {
    if field.path.starts_with("metadata") || field.path == "type" {
        return;
    }
    for value in [&mut field.old, &mut field.new] {
        if !value.is_null() {
            *value = json!("<hidden>");
        }
    }
}

/// Pods that refer to the object.
fn users(object: &ValidObject, store: &Store) -> Vec<String> {
    let pods = store.pods().objects;
    let pods = pods.iter().map(|pod| ValidPod::trusted(Pod::clone(pod), Origin::Stdin));
    pods.filter(|pod| references::of(pod).contains(object.key())).map(|pod| pod.name().to_owned()).collect()
}

fn workload(new: &ValidWorkload, store: &Store) -> Option<Told> {
    let Some(old) = live(new, store) else { return Some(created()) };
    let new = identified(new.object().clone(), old.uid());
    let fields = difference::between(&declared(&without_notes(old.clone())), &declared(&new));
    if fields.is_empty() { None } else { Some((effect(&old, &new).into(), fields)) }
}

fn live(new: &ValidWorkload, store: &Store) -> Option<Workload> {
    Some(match new.key().kind {
        WorkloadKind::CronJob => Workload::CronJob(find(store, new)?),
        WorkloadKind::DaemonSet => Workload::DaemonSet(find(store, new)?),
        WorkloadKind::Deployment => Workload::Deployment(find(store, new)?),
        WorkloadKind::Job => Workload::Job(find(store, new)?),
        WorkloadKind::ReplicaSet => Workload::ReplicaSet(find(store, new)?),
        WorkloadKind::StatefulSet => Workload::StatefulSet(find(store, new)?),
    })
}

fn find<T: Kept + Metadata<Ty = ObjectMeta>>(store: &Store, new: &ValidWorkload) -> Option<Arc<T>> {
    let key = new.key();
    store.workloads::<T>().objects.into_iter().find(|object| {
        let metadata = object.metadata();
        metadata.name.as_ref() == Some(&key.name) && metadata.namespace.as_ref() == Some(&key.namespace)
    })
}

/// Without what the agent itself notes on the object.
fn without_notes(mut workload: Workload) -> Workload {
    let annotations = &mut workload.metadata_mut().annotations;
    if let Some(notes) = annotations {
        notes.remove(deployment::REVISION);
    }
    *annotations = annotations.take().filter(|notes| !notes.is_empty());
    workload
}

/// A Job's labels name its UID, which is the live one's.
fn identified(mut workload: Workload, uid: &str) -> Workload {
    if let Workload::Job(job) = &mut workload {
        let job = Arc::make_mut(job);
        let name = job.metadata.name.clone().unwrap_or_default();
        if let Some(spec) = &mut job.spec {
            job_identity(spec, &name, uid);
        }
    }
    workload
}

fn effect(old: &Workload, new: &Workload) -> &'static str {
    if world::needs_replacement(old, new) {
        return "would be recreated: all of its pods end and new ones start";
    }
    if old.template() == new.template() {
        return "would be changed in place: no pod restarts";
    }
    let on_delete = |kind: Option<&String>| kind.is_some_and(|kind| kind == "OnDelete");
    match new {
        Workload::CronJob(_) => "would be changed: jobs that begin from then on are as it says",
        Workload::ReplicaSet(_) => "would be changed: pods that are made from then on are as it says",
        Workload::Deployment(o) if o.spec.paused == Some(true) => "would be changed; it is paused: no pod restarts",
        Workload::Deployment(o) if o.spec.strategy.as_ref().and_then(|s| s.type_.as_deref()) == Some("Recreate") => {
            "would be changed: its pods end, then new ones start"
        }
        Workload::StatefulSet(o) if on_delete(o.spec.update_strategy.as_ref().and_then(|s| s.type_.as_ref())) => {
            "would be changed: its pods are replaced as they are deleted"
        }
        Workload::DaemonSet(o) if on_delete(o.spec.update_strategy.as_ref().and_then(|s| s.type_.as_ref())) => {
            "would be changed: its pod is replaced when it is deleted"
        }
        _ => "would be changed: its pods are replaced one after the other",
    }
}
