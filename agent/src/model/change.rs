//! What an edit of a running pod asks for: <https://kubernetes.io/docs/concepts/workloads/pods/#pod-update-and-replacement>. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec};
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
    if fixed(old.spec()) != fixed(new.spec()) {
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
fn fixed(spec: &PodSpec) -> PodSpec {
    let mut spec = spec.clone();
    for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        container.image = None;
        container.image_pull_policy = None;
        container.resize_policy = None;
    }
    // A regular init container's amounts count once, at its start; what runs on may be resized.
    let sidecar = |c: &&mut Container| c.restart_policy.as_deref() == Some("Always");
    for container in spec.init_containers.iter_mut().flatten().filter(sidecar).chain(&mut spec.containers) {
        if let Some(resources) = &mut container.resources {
            [&mut resources.limits, &mut resources.requests].into_iter().flatten().for_each(forget_amounts);
        }
    }
    // They come and go beside the others.
    spec.ephemeral_containers = None;
    spec.active_deadline_seconds = None;
    spec.termination_grace_period_seconds = None;
    spec.tolerations = None;
    spec.node_name = None;
    spec
}

/// CPU and memory may become more or less in place; whether there is a request or a limit stays.
fn forget_amounts(amounts: &mut BTreeMap<String, Quantity>) {
    for (_, amount) in amounts.iter_mut().filter(|(name, _)| matches!(name.as_str(), "cpu" | "memory")) {
        amount.0.clear();
    }
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
    #[case::another_limit("/containers/0/resources/limits/memory", json!("1Gi"), Change::Recreate)]
    #[case::other_resource("/containers/0/resources/limits/ephemeral-storage", json!("2Gi"), Change::Recreate)]
    #[case::grace("/terminationGracePeriodSeconds", json!(1), Change::Keep)]
    fn an_edit_costs_what_it_must(#[case] field: &str, #[case] value: Value, #[case] expected: Change) {
        let mut edited = spec();
        let (parent, name) = field.rsplit_once('/').unwrap();
        edited.pointer_mut(parent).unwrap()[name] = value;
        assert_eq!(between(&pod(&spec(), &json!({})), &pod(&edited, &json!({"x": "y"}))), expected);
    }
}
