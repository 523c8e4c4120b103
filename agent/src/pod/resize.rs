//! In-place resize: what an edit of a running container's amounts asks for, and how the pod's status tells of it. Pure.
//! <https://kubernetes.io/docs/tasks/configure-pod-container/resize-container-resources/>

use k8s_openapi::api::core::v1::{self as k8s, ResourceRequirements};

use super::observed::{Observed, Resize};
use crate::model::ValidPod;
use crate::runtime::resources::Totals;

/// What a difference asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// There is none.
    Not,
    /// The kernel is told, the container runs on.
    InPlace,
    /// The container's resizePolicy wants a restart.
    Restart,
}

/// From what a container has to what it is to have. One that was started before this was noted is left as it is.
pub fn of(container: &k8s::Container, has: Option<&ResourceRequirements>, wanted: Option<&ResourceRequirements>) -> How {
    if has.is_none() || wanted.is_none() {
        return How::Not;
    }
    let (has, wanted) = (Totals::of(has), Totals::of(wanted));
    let cpu = (has.cpu_request, has.cpu_limit) != (wanted.cpu_request, wanted.cpu_limit);
    let memory = (has.memory_request, has.memory_limit) != (wanted.memory_request, wanted.memory_limit);
    let restarts = |resource: &str| {
        let policies = container.resize_policy.iter().flatten();
        policies.into_iter().any(|p| p.resource_name == resource && p.restart_policy == "RestartContainer")
    };
    match (cpu, memory) {
        (false, false) => How::Not,
        _ if (cpu && restarts("cpu")) || (memory && restarts("memory")) => How::Restart,
        _ => How::InPlace,
    }
}

/// Whether some running container hasn't what the spec says.
pub fn is_under_way(pod: &ValidPod, observed: &Observed) -> bool {
    pod.all_containers().any(|container| {
        let running = observed.containers.get(&container.name).and_then(|c| c.running());
        running.is_some_and(|a| of(container, a.note.resources.as_ref(), observed.resources(container)) != How::Not)
    })
}

/// `PodResizePending` or `PodResizeInProgress`, while an edit isn't in force.
pub fn condition(pod: &ValidPod, observed: &Observed) -> Option<k8s::PodCondition> {
    let condition = |type_: &str, reason: Option<&str>, message: Option<&str>| k8s::PodCondition {
        type_: type_.into(),
        status: "True".into(),
        reason: reason.map(str::to_owned),
        message: message.map(str::to_owned),
        observed_generation: pod.metadata.generation,
        ..k8s::PodCondition::default()
    };
    match &observed.resize {
        Some(Resize::Pending { reason, message, .. }) => Some(condition("PodResizePending", Some(reason), Some(message))),
        Some(Resize::Failed { message, .. }) => Some(condition("PodResizeInProgress", Some("Error"), Some(message))),
        Some(Resize::InProgress) => Some(condition("PodResizeInProgress", None, None)),
        None => is_under_way(pod, observed).then(|| condition("PodResizeInProgress", None, None)),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn resources(yaml: &str) -> ResourceRequirements {
        serde_yaml::from_str(yaml).unwrap()
    }

    const ONE: &str = "{requests: {cpu: '1', memory: 1Gi}}";

    #[rstest]
    #[case(ONE, "{requests: {cpu: 1000m, memory: 1024Mi}}", How::Not)]
    #[case(ONE, "{requests: {cpu: '2', memory: 1Gi}}", How::InPlace)]
    #[case(ONE, "{requests: {cpu: '1', memory: 2Gi}}", How::Restart)]
    #[case(ONE, "{requests: {cpu: '2', memory: 2Gi}}", How::Restart)]
    #[case("{limits: {cpu: '1'}}", "{limits: {cpu: '2'}}", How::InPlace)]
    fn a_difference_asks_for_what_the_policy_says(#[case] has: &str, #[case] wanted: &str, #[case] expected: How) {
        let policy = "[{resourceName: memory, restartPolicy: RestartContainer}, {resourceName: cpu, restartPolicy: NotRequired}]";
        let container: k8s::Container = serde_yaml::from_str(&format!("{{name: a, resizePolicy: {policy}}}")).unwrap();
        assert_eq!(of(&container, Some(&resources(has)), Some(&resources(wanted))), expected);
        assert_eq!(of(&container, None, Some(&resources(wanted))), How::Not);
    }
}
