//! Objects from what a core asked for: pods with their names, owners and UIDs.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};

use super::{Entry, Record, World};
use crate::model::{PodUid, ValidPod, Workload, defaults};
use crate::source::Event;
use crate::workload::{Name, NewPod, Steps, letters};

impl World {
    /// Does what a core asked for. True: something is another than before.
    pub(super) fn take_steps(&mut self, owner: &str, mut steps: Steps, now: Timestamp) -> bool {
        let Some(entry) = self.entries.get(owner).cloned() else { return false };
        let namespace = entry.object.metadata().namespace.clone().unwrap_or_default();
        // A name that stays has one pod at a time.
        let taken = |name: &Name| match name {
            Name::Exactly(name) => self.leaving.values().any(|(ns, other)| *ns == namespace && other == name),
            Name::Starting(_) => false,
        };
        steps.create.retain(|new| !taken(&new.name));
        let changed = !steps.create.is_empty() || !steps.delete.is_empty() || !steps.counted.is_empty();
        for uid in steps.counted {
            if let Some(record) = self.pods.get_mut(&uid) {
                record.counted = true;
            }
        }
        for uid in steps.delete {
            self.end_pod(&uid, now);
        }
        let reference = reference(&entry.object);
        for new in steps.create {
            let name = self.create_pod(&entry, new, now);
            let said = crate::workload::Said {
                level: crate::pod::recorder::Level::Normal,
                reason: "SuccessfulCreate",
                message: format!("Created pod: {name}"),
            };
            self.effects.said.push((reference.clone(), said));
        }
        self.effects.said.extend(steps.said.into_iter().map(|said| (reference.clone(), said)));
        if let Some(again) = steps.again {
            self.wake(&entry.root, again, now);
        }
        changed
    }

    fn end_pod(&mut self, uid: &PodUid, now: Timestamp) {
        let Some(record) = self.pods.get_mut(uid).filter(|r| !r.ending) else { return };
        record.ending = true;
        Arc::make_mut(&mut record.pod).metadata.deletion_timestamp = Some(Time(now));
        self.effects.events.push(Event::Delete(uid.clone()));
    }

    fn create_pod(&mut self, entry: &Entry, new: NewPod, now: Timestamp) -> String {
        let uid = self.random_uid();
        let name = match new.name {
            Name::Exactly(name) => name,
            Name::Starting(prefix) => {
                let mut bytes = [0; 5];
                (self.chance)(&mut bytes);
                // A name is a host name too: 63 characters, of which five make it unique.
                let prefix: String = prefix.chars().take(58).collect();
                prefix + &letters(&bytes)
            }
        };
        let pod = pod(entry, &self.node, new.template, (&name, &uid), now);
        let uid = PodUid::new(&uid);
        let valid = ValidPod::trusted(pod.clone(), entry.origin.clone());
        self.effects.events.push(Event::Apply(valid));
        let owner = entry.object.uid().to_owned();
        let record = Record { pod: Arc::new(pod), owner, counted: false, gone: false, ending: false, unseen: false };
        self.pods.insert(uid, record);
        name
    }
}

fn pod(
    entry: &Entry,
    node: &str,
    template: k8s_openapi::api::core::v1::PodTemplateSpec,
    (name, uid): (&str, &str),
    now: Timestamp,
) -> Pod {
    let metadata = template.metadata.unwrap_or_default();
    let mut spec = template.spec.unwrap_or_default();
    defaults::of_pod(&mut spec);
    spec.node_name = Some(node.to_owned());
    Pod {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: entry.object.metadata().namespace.clone(),
            uid: Some(uid.to_owned()),
            labels: metadata.labels,
            annotations: metadata.annotations,
            owner_references: Some(vec![owner_reference(&entry.object)]),
            creation_timestamp: Some(Time(now)),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    }
}

/// How what an object owns names it.
pub(super) fn owner_reference(owner: &Workload) -> OwnerReference {
    OwnerReference {
        api_version: owner.kind().api_version().into(),
        kind: owner.kind().as_str().into(),
        name: owner.metadata().name.clone().unwrap_or_default(),
        uid: owner.uid().into(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// How events name an object.
pub(super) fn reference(object: &Workload) -> ObjectReference {
    let metadata = object.metadata();
    ObjectReference {
        api_version: Some(object.kind().api_version().into()),
        kind: Some(object.kind().as_str().into()),
        name: metadata.name.clone(),
        namespace: metadata.namespace.clone(),
        uid: metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// As its worker takes it: a status is what the worker finds.
pub(super) fn without_status(pod: &Pod) -> Pod {
    Pod {
        status: None,
        metadata: ObjectMeta { resource_version: None, creation_timestamp: None, ..pod.metadata.clone() },
        spec: pod.spec.clone(),
    }
}

/// Whether an edit changes what Kubernetes calls immutable: then the object is made anew, and its pods with it.
pub fn needs_replacement(old: &Workload, new: &Workload) -> bool {
    match (old, new) {
        (Workload::Job(a), Workload::Job(b)) => {
            let fixed = |job: &k8s_openapi::api::batch::v1::Job| {
                let mut spec = job.spec.clone().unwrap_or_default();
                // An indexed Job may grow and shrink when both numbers do together.
                let elastic = spec.completion_mode.as_deref() == Some("Indexed") && spec.completions == spec.parallelism;
                spec.parallelism = None;
                spec.completions = spec.completions.filter(|_| !elastic);
                spec.suspend = None;
                spec.active_deadline_seconds = None;
                spec.ttl_seconds_after_finished = None;
                spec.backoff_limit = None;
                spec.max_failed_indexes = None;
                spec
            };
            fixed(a) != fixed(b)
        }
        (Workload::Deployment(a), Workload::Deployment(b)) => a.spec.selector != b.spec.selector,
        (Workload::ReplicaSet(a), Workload::ReplicaSet(b)) => a.spec.selector != b.spec.selector,
        (Workload::DaemonSet(a), Workload::DaemonSet(b)) => a.spec.selector != b.spec.selector,
        (Workload::StatefulSet(a), Workload::StatefulSet(b)) => {
            let (a, b) = (&a.spec, &b.spec);
            a.selector != b.selector
                || a.service_name != b.service_name
                || a.pod_management_policy != b.pod_management_policy
                || a.volume_claim_templates != b.volume_claim_templates
        }
        _ => false,
    }
}
