//! What an edit of a running pod asks for: <https://kubernetes.io/docs/concepts/workloads/pods/#pod-update-and-replacement>. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::ValidPod;

/// What is to become of the running pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It runs on; labels, annotations and the like are taken over.
    Keep,
    /// These containers, whose image is another, are restarted.
    RestartContainers(Vec<String>),
    /// Something changed that Kubernetes calls immutable: it ends, and a new one takes its place.
    Recreate,
}

/// From `old`, which runs, to `new`.
pub fn between(old: &ValidPod, new: &ValidPod) -> Change {
    if fixed(old.spec()) != fixed(new.spec()) || loses_amounts(old.spec(), new.spec()) {
        return Change::Recreate;
    }
    let changed: Vec<String> = old
        .all_containers()
        .zip(new.all_containers())
        .filter(|(before, after)| before.image != after.image)
        .map(|(_, after)| after.name.clone())
        .collect();
    if changed.is_empty() { Change::Keep } else { Change::RestartContainers(changed) }
}

/// The spec without what may be edited in place.
pub fn fixed(spec: &PodSpec) -> PodSpec {
    let mut spec = spec.clone();
    for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        container.image = None;
        container.image_pull_policy = None;
        container.resize_policy = None;
    }
    let containers = spec.init_containers.iter_mut().flatten().chain(&mut spec.containers);
    for resources in containers.map(|c| &mut c.resources).chain([&mut spec.resources]) {
        forget_amounts(resources);
    }
    // They come and go beside the others.
    spec.ephemeral_containers = None;
    spec.active_deadline_seconds = None;
    spec.termination_grace_period_seconds = None;
    spec.tolerations = None;
    spec.node_name = None;
    // What an API server says of a file's pod that it takes over; of pods of its own it never says another.
    (spec.service_account, spec.service_account_name, spec.automount_service_account_token) = (None, None, None);
    (spec.priority, spec.preemption_policy) = (None, None);
    spec
}

/// Amounts of CPU and memory may change in place, and be said where nothing was.
fn is_resizable(name: &str) -> bool {
    matches!(name, "cpu" | "memory")
}

/// What is left says as little where nothing is left as where nothing was.
fn forget_amounts(resources: &mut Option<ResourceRequirements>) {
    let Some(said) = resources else { return };
    for amounts in [&mut said.limits, &mut said.requests] {
        *amounts = amounts.take().map(|mut amounts| {
            amounts.retain(|name, _| !is_resizable(name));
            amounts
        });
        *amounts = amounts.take().filter(|amounts| !amounts.is_empty());
    }
    if *said == ResourceRequirements::default() {
        *resources = None;
    }
}

/// Whether a request or a limit isn't said any more: Kubernetes knows no way to take one away in place.
fn loses_amounts(old: &PodSpec, new: &PodSpec) -> bool {
    let loses = |old: Option<&BTreeMap<String, Quantity>>, new: Option<&BTreeMap<String, Quantity>>| {
        old.into_iter().flatten().any(|(name, _)| is_resizable(name) && new.is_none_or(|new| !new.contains_key(name)))
    };
    let amounts = |spec: &PodSpec| -> Vec<ResourceRequirements> {
        let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
        containers.map(|c| &c.resources).chain([&spec.resources]).map(|r| r.clone().unwrap_or_default()).collect()
    };
    amounts(old)
        .iter()
        .zip(&amounts(new))
        .any(|(old, new)| loses(old.limits.as_ref(), new.limits.as_ref()) || loses(old.requests.as_ref(), new.requests.as_ref()))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;
    use crate::model::Origin;

    fn pod(spec: &Value, labels: &Value) -> ValidPod {
        let pod = json!({"metadata": {"name": "web", "uid": "u", "labels": labels}, "spec": spec});
        ValidPod::trusted(serde_json::from_value(pod).unwrap(), Origin::Stdin)
    }

    fn spec() -> Value {
        json!({"containers": [
            {"name": "a", "image": "one", "resources": {"limits": {"cpu": "1", "ephemeral-storage": "1Gi"}}},
            {"name": "b", "image": "one"}
        ]})
    }

    #[rstest]
    #[case::nothing("/restartPolicy", Value::Null, Change::Keep)]
    #[case::image("/containers/1/image", json!("two"), Change::RestartContainers(vec!["b".into()]))]
    #[case::command("/containers/0/command", json!(["x"]), Change::Recreate)]
    #[case::hostname("/hostname", json!("other"), Change::Recreate)]
    #[case::resize("/containers/0/resources/limits/cpu", json!("2"), Change::Keep)]
    #[case::resize_policy("/containers/0/resizePolicy", json!([{"resourceName": "cpu", "restartPolicy": "NotRequired"}]), Change::Keep)]
    #[case::another_limit("/containers/0/resources/limits/memory", json!("1Gi"), Change::Keep)]
    #[case::first_amounts("/containers/1/resources", json!({"requests": {"cpu": "1m"}}), Change::Keep)]
    #[case::no_limit("/containers/0/resources/limits", json!({"ephemeral-storage": "1Gi"}), Change::Recreate)]
    #[case::of_the_pod("/resources", json!({"limits": {"cpu": "3"}}), Change::Keep)]
    #[case::of_the_pod_another("/resources", json!({"limits": {"hugepages-2Mi": "2Mi"}}), Change::Recreate)]
    #[case::other_resource("/containers/0/resources/limits/ephemeral-storage", json!("2Gi"), Change::Recreate)]
    #[case::service_account("/serviceAccountName", json!("default"), Change::Keep)]
    #[case::priority("/priority", json!(0), Change::Keep)]
    #[case::grace("/terminationGracePeriodSeconds", json!(1), Change::Keep)]
    fn an_edit_costs_what_it_must(#[case] field: &str, #[case] value: Value, #[case] expected: Change) {
        let mut edited = spec();
        let (parent, name) = field.rsplit_once('/').unwrap();
        edited.pointer_mut(parent).unwrap()[name] = value;
        assert_eq!(between(&pod(&spec(), &json!({})), &pod(&edited, &json!({"x": "y"}))), expected);
    }
}
