//! Claims of StatefulSets: told to the manager as files' claims are, once each, and taken back only where the set says so.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;

use super::{Entry, World};
use crate::model::{Body, ObjectKind, ObjectRef, Origin, ValidObject, Workload};
use crate::source::Event;
use crate::workload::stateful_set;
use crate::workload::{History, Name, NewPod};

/// What a claim says for its data to go with it.
const RECLAIM: &str = "nodeagent.dev/reclaim-policy";

impl World {
    /// The claims that the set wants are there; those that it wants no more go, where it says so and no pod has them.
    pub(super) fn claim(&mut self, set: &StatefulSet, new: &[NewPod], history: &mut History) {
        let namespace = set.metadata.namespace.clone().unwrap_or_default();
        let uid = set.metadata.uid.as_deref().unwrap_or_default();
        let origin = self.entries.get(uid).map_or(Origin::Stdin, |e| e.origin.clone());
        let new = new.iter().filter_map(|pod| if let Name::Exactly(name) = &pod.name { Some(name.clone()) } else { None });
        let pods: Vec<String> = self.owned(uid).iter().map(|pod| pod.name().to_owned()).chain(new).collect();
        for claim in &stateful_set::claims(set, &pods) {
            let name = claim.metadata.name.clone().unwrap_or_default();
            history.claims.insert(name.clone());
            self.tell_claim(claim.clone(), (&namespace, &name), &origin);
        }
        let (_, when_scaled) = stateful_set::retention(set);
        if !when_scaled {
            return;
        }
        let surplus: Vec<String> = history.claims.iter().filter(|name| !stateful_set::wants_claim(set, name)).cloned().collect();
        for name in surplus.into_iter().filter(|name| !self.is_used(uid, name)).collect::<Vec<_>>() {
            history.claims.remove(&name);
            self.drop_claim(&namespace, &name, &origin);
        }
    }

    fn is_used(&self, owner: &str, claim: &str) -> bool {
        let pods = self.pods.values().filter(|r| r.owner == owner && !r.gone);
        let mut volumes = pods.flat_map(|r| r.pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()));
        volumes.any(|v| v.persistent_volume_claim.as_ref().is_some_and(|c| c.claim_name == claim))
    }

    fn tell_claim(&mut self, claim: PersistentVolumeClaim, (namespace, name): (&str, &str), origin: &Origin) {
        let key = (namespace.to_owned(), name.to_owned());
        // What a file says of a claim of this name holds.
        if !self.given_claims.contains(&key) && self.claims.insert(key) {
            let object = ValidObject::trusted(Body::PersistentVolumeClaim(Arc::new(claim)), origin.clone());
            self.effects.events.push(Event::ApplyObject(object));
        }
    }

    fn drop_claim(&mut self, namespace: &str, name: &str, origin: &Origin) {
        let key = (namespace.to_owned(), name.to_owned());
        if self.given_claims.contains(&key) {
            return;
        }
        self.claims.remove(&key);
        let mut claim = PersistentVolumeClaim::default();
        claim.metadata.name = Some(name.to_owned());
        claim.metadata.namespace = Some(namespace.to_owned());
        claim.metadata.annotations = Some([(RECLAIM.to_owned(), "Delete".to_owned())].into());
        let object = ValidObject::trusted(Body::PersistentVolumeClaim(Arc::new(claim)), origin.clone());
        self.effects.events.push(Event::ApplyObject(object));
        self.effects.events.push(Event::DeleteObject(ObjectRef::new(ObjectKind::PersistentVolumeClaim, namespace, name)));
    }

    /// A set is gone: its claims go with it where it says so.
    pub(super) fn drop_claims(&mut self, entry: &Entry) {
        let Workload::StatefulSet(set) = &entry.object else { return };
        let namespace = set.metadata.namespace.clone().unwrap_or_default();
        let (when_deleted, _) = stateful_set::retention(set);
        for name in &entry.history.claims {
            if when_deleted {
                self.drop_claim(&namespace, name, &entry.origin);
            } else {
                self.claims.remove(&(namespace.clone(), name.clone()));
            }
        }
    }
}
