//! A volume that has grown where it is kept, and that this node has yet to bring to that size. Pure: what the claim and its PersistentVolume
//! say, what of it is the node's to do, and what the claim's status becomes of it. As the kubelet has it, of
//! <https://kubernetes.io/docs/concepts/storage/persistent-volumes/#expanding-persistent-volumes-claims>.

use std::collections::BTreeMap;

use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, SecretReference};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::{Value, json};

use crate::model::ValidObject;
use crate::runtime::resources::units;

/// Conditions of a claim that are about its size.
const CONDITIONS: [&str; 4] = ["FileSystemResizePending", "Resizing", "ControllerResizeError", "NodeResizeError"];
/// Whoever let the volume grow says that nodes have nothing to do for it.
const NOT_REQUIRED: &str = "volume.kubernetes.io/node-expansion-not-required";
const STORAGE: &str = "storage";

/// Who has the claims as they are now, and what is behind them, and is told how large they have become: a cluster.
pub trait Claims: Send + Sync {
    /// A claim.
    fn claim<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<PersistentVolumeClaim, String>>;
    /// The volume that a claim is bound to.
    fn volume<'a>(&'a self, claim: &'a PersistentVolumeClaim) -> BoxFuture<'a, Result<PersistentVolume, String>>;
    /// A Secret of a PersistentVolume's, under the name that it has here; none: there is none, or not any more.
    fn secret<'a>(
        &'a self,
        volume: &'a str,
        reference: &'a SecretReference,
    ) -> BoxFuture<'a, Result<Option<ValidObject>, String>>;
    /// Changes a claim's status by a merge patch, unless it is another one by now.
    fn tell<'a>(
        &'a self,
        claim: &'a PersistentVolumeClaim,
        status: Value,
    ) -> BoxFuture<'a, Result<PersistentVolumeClaim, String>>;
}

/// What is the node's to do for a volume's size.
#[derive(Debug, Clone, PartialEq)]
pub enum Due {
    /// Nothing now; the volume is so large here.
    Nothing(u64),
    /// To tell the driver that the volume is to be so large, and the claim what comes of it.
    Grow {
        /// As the claim has it.
        size: Quantity,
        /// Whether the claim knows already that it is so large: by another node, or by who let the volume grow.
        known: Known,
    },
}

/// Whether a claim's status already has the new size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// It hasn't: the node tells.
    Not,
    /// It hasn't, and says which steps a node is at: the node tells these too.
    ByStep,
    /// It has.
    Already,
}

/// What is due, where the volume had so many bytes here when somebody looked last; none: nobody has.
pub fn due(claim: &PersistentVolumeClaim, volume: &PersistentVolume, had: Option<u64>) -> Due {
    let size = |sizes: Option<&BTreeMap<String, Quantity>>| sizes.and_then(|sizes| sizes.get(STORAGE)).cloned();
    let status = claim.status.as_ref();
    let capacity = size(status.and_then(|status| status.capacity.as_ref()));
    let has = capacity.as_ref().map_or(0, units);
    let whole = size(volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref()));
    let here = had.unwrap_or(has);
    let Some(whole) = whole.filter(|whole| here > 0 && units(whole) > here) else { return Due::Nothing(here) };
    let step = status.and_then(|status| status.allocated_resource_statuses.as_ref()?.get(STORAGE)).map(String::as_str);
    let allocated = status.and_then(|status| status.allocated_resources.as_ref());
    if step.is_none() && allocated.is_none() {
        // Who let it grow is older than the steps.
        let known = if has >= units(&whole) { Known::Already } else { Known::Not };
        return Due::Grow { size: whole, known };
    }
    let size = size(allocated).unwrap_or(whole);
    let already = step.is_none() && has >= units(&size);
    let shared = claim.spec.iter().flat_map(|spec| spec.access_modes.iter().flatten()).any(|mode| mode == "ReadWriteMany");
    let not_required = claim.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(NOT_REQUIRED));
    match step {
        // Another node has told, and each that has the volume must do it.
        None if already && shared && !not_required => Due::Grow { size, known: Known::Already },
        None if already => Due::Nothing(units(&size)),
        Some("NodeResizePending" | "NodeResizeInProgress") => Due::Grow { size, known: Known::ByStep },
        _ => Due::Nothing(here),
    }
}

/// What a claim's status becomes: the node is at it.
pub fn in_progress() -> Value {
    json!({"allocatedResourceStatuses": {STORAGE: "NodeResizeInProgress"}})
}

/// What a claim's status becomes: it is so large now.
pub fn finished(claim: &PersistentVolumeClaim, size: &Quantity) -> Value {
    let conditions = conditions(claim, |kind| !CONDITIONS.contains(&kind));
    json!({"capacity": {STORAGE: size}, "allocatedResourceStatuses": {STORAGE: null}, "conditions": conditions})
}

/// What a claim's status becomes: it could not be made larger, and may be tried again; or never, by `infeasible`.
pub fn failed(claim: &PersistentVolumeClaim, why: &str, infeasible: bool, now: Timestamp) -> Value {
    let mut conditions = conditions(claim, |kind| kind != "NodeResizeError");
    let known = claim.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let known = known.into_iter().find(|condition| condition.type_ == "NodeResizeError" && condition.status == "True");
    conditions.push(known.map_or_else(
        || {
            let now = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            let message = format!("failed to expand pvc with {why}");
            json!({"type": "NodeResizeError", "status": "True", "lastTransitionTime": now, "message": message})
        },
        |known| json!(known),
    ));
    let mut status = json!({"conditions": conditions});
    if let (true, Some(status)) = (infeasible, status.as_object_mut()) {
        status.insert("allocatedResourceStatuses".into(), json!({STORAGE: "NodeResizeInfeasible"}));
    }
    status
}

/// Whether the claim asks for the size that the node is to make.
pub fn is_asked_for(claim: &PersistentVolumeClaim, size: &Quantity) -> bool {
    let asked = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref()?.get(STORAGE));
    asked.is_some_and(|asked| units(asked) == units(size))
}

fn conditions(claim: &PersistentVolumeClaim, stays: impl Fn(&str) -> bool) -> Vec<Value> {
    let all = claim.status.iter().flat_map(|status| status.conditions.iter().flatten());
    all.filter(|condition| stays(&condition.type_)).map(|condition| json!(condition)).collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn claim(status: Value, modes: &[&str]) -> PersistentVolumeClaim {
        let spec = json!({"accessModes": modes, "resources": {"requests": {"storage": "32Mi"}}});
        serde_json::from_value(json!({"metadata": {"name": "data"}, "spec": spec, "status": status})).unwrap()
    }

    fn volume(size: &str) -> PersistentVolume {
        serde_json::from_value(json!({"metadata": {"name": "pv"}, "spec": {"capacity": {"storage": size}}})).unwrap()
    }

    fn grow(known: Known) -> Due {
        Due::Grow { size: Quantity("32Mi".into()), known }
    }

    #[rstest]
    #[case::as_it_was(json!({"capacity": {"storage": "16Mi"}}), "16Mi", None, Due::Nothing(16 * MIB))]
    #[case::nobody_knows_its_size(json!({}), "32Mi", None, Due::Nothing(0))]
    #[case::an_old_resizer(json!({"capacity": {"storage": "16Mi"}}), "32Mi", None, grow(Known::Not))]
    #[case::pending(json!({"capacity": {"storage": "16Mi"}, "allocatedResources": {"storage": "32Mi"},
        "allocatedResourceStatuses": {"storage": "NodeResizePending"}}), "32Mi", None, grow(Known::ByStep))]
    #[case::an_agent_died_at_it(json!({"capacity": {"storage": "16Mi"}, "allocatedResources": {"storage": "32Mi"},
        "allocatedResourceStatuses": {"storage": "NodeResizeInProgress"}}), "32Mi", Some(16 * MIB), grow(Known::ByStep))]
    #[case::not_yet(json!({"capacity": {"storage": "16Mi"}, "allocatedResources": {"storage": "32Mi"},
        "allocatedResourceStatuses": {"storage": "ControllerResizeInProgress"}}), "32Mi", None, Due::Nothing(16 * MIB))]
    #[case::never(json!({"capacity": {"storage": "16Mi"}, "allocatedResources": {"storage": "32Mi"},
        "allocatedResourceStatuses": {"storage": "NodeResizeInfeasible"}}), "32Mi", None, Due::Nothing(16 * MIB))]
    #[case::done_without_a_node(json!({"capacity": {"storage": "32Mi"}, "allocatedResources": {"storage": "32Mi"}}),
        "32Mi", Some(16 * MIB), Due::Nothing(32 * MIB))]
    #[case::only_what_was_allotted(json!({"capacity": {"storage": "16Mi"}, "allocatedResources": {"storage": "32Mi"},
        "allocatedResourceStatuses": {"storage": "NodeResizePending"}}), "64Mi", None, grow(Known::ByStep))]
    fn what_is_due(#[case] status: Value, #[case] size: &str, #[case] had: Option<u64>, #[case] expected: Due) {
        assert_eq!(due(&claim(status, &["ReadWriteOnce"]), &volume(size), had), expected);
    }

    #[test]
    fn each_node_brings_a_shared_volume_to_its_size() {
        let status = json!({"capacity": {"storage": "32Mi"}, "allocatedResources": {"storage": "32Mi"}});
        let mut shared = claim(status, &["ReadWriteMany"]);
        assert_eq!(due(&shared, &volume("32Mi"), Some(16 * MIB)), grow(Known::Already));
        assert_eq!(due(&shared, &volume("32Mi"), Some(32 * MIB)), Due::Nothing(32 * MIB));
        shared.metadata.annotations = Some([(NOT_REQUIRED.to_owned(), "true".to_owned())].into());
        assert_eq!(due(&shared, &volume("32Mi"), Some(16 * MIB)), Due::Nothing(32 * MIB));
    }

    #[test]
    fn the_claim_is_told_and_what_others_say_stays() {
        let status = json!({"conditions": [{"type": "FileSystemResizePending", "status": "True"},
            {"type": "ModifyingVolume", "status": "True"}]});
        let claim = claim(status, &["ReadWriteOnce"]);
        let size = Quantity("32Mi".into());
        assert!(is_asked_for(&claim, &size) && !is_asked_for(&claim, &Quantity("64Mi".into())));
        let told = finished(&claim, &size);
        assert_eq!(told["conditions"], json!([{"type": "ModifyingVolume", "status": "True"}]));
        assert_eq!(
            (&told["capacity"]["storage"], &told["allocatedResourceStatuses"]),
            (&json!("32Mi"), &json!({"storage": null}))
        );
        let told = failed(&claim, "why", false, Timestamp::UNIX_EPOCH);
        assert_eq!(told["conditions"].as_array().unwrap().len(), 3);
        assert_eq!(told["conditions"][2]["message"], "failed to expand pvc with why");
        assert_eq!(told.get("allocatedResourceStatuses"), None);
        let told = failed(&claim, "why", true, Timestamp::UNIX_EPOCH);
        assert_eq!(told["allocatedResourceStatuses"]["storage"], "NodeResizeInfeasible");
    }
}
