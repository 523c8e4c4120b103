//! In-place resize: what an edit of a running container's amounts asks for, and how the pod's status tells of it. Pure.
//! <https://kubernetes.io/docs/tasks/configure-pod-container/resize-container-resources/>

use k8s_openapi::api::core::v1::{self as k8s, ResourceRequirements};

use super::observed::{Note, Observed, Resize};
use crate::model::ValidPod;
use crate::runtime::resources::{Totals, within};

/// What bounds a container: its own amounts, and those of its pod as a whole.
#[derive(Debug, Clone, Copy)]
pub struct Amounts<'a> {
    own: Option<&'a ResourceRequirements>,
    pod: Option<&'a ResourceRequirements>,
}

impl<'a> Amounts<'a> {
    /// What it was started with, or resized to since.
    pub fn noted(note: &'a Note) -> Self {
        Self { own: note.resources.as_ref(), pod: note.pod_resources.as_ref() }
    }

    /// What it is to have.
    pub fn wanted(container: &'a k8s::Container, pod: &'a ValidPod, observed: &'a Observed) -> Self {
        Self { own: observed.resources(container), pod: observed.pod_resources(pod.spec()) }
    }

    fn totals(self) -> Totals {
        Totals::of(Some(&within(self.own, self.pod)))
    }
}

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

/// From what a container has to what it is to have. One that was started before this was noted is left as it is. Where the pod's own
/// amounts are others, its cgroup is told together with the container's.
pub fn of(container: &k8s::Container, had: Amounts<'_>, to_have: Amounts<'_>) -> How {
    if had.own.is_none() {
        return How::Not;
    }
    let pod = Totals::of(had.pod) != Totals::of(to_have.pod);
    let (has, wanted) = (had.totals(), to_have.totals());
    let cpu = (has.cpu_request, has.cpu_limit) != (wanted.cpu_request, wanted.cpu_limit);
    let memory = (has.memory_request, has.memory_limit) != (wanted.memory_request, wanted.memory_limit);
    let restarts = |resource: &str| {
        let policies = container.resize_policy.iter().flatten();
        policies.into_iter().any(|p| p.resource_name == resource && p.restart_policy == "RestartContainer")
    };
    match (cpu, memory) {
        (false, false) if !pod => How::Not,
        _ if (cpu && restarts("cpu")) || (memory && restarts("memory")) => How::Restart,
        _ => How::InPlace,
    }
}

/// Whether some running container hasn't what the spec says.
pub fn is_under_way(pod: &ValidPod, observed: &Observed) -> bool {
    pod.all_containers().any(|container| {
        let running = observed.containers.get(&container.name).and_then(|c| c.running());
        let wanted = Amounts::wanted(container, pod, observed);
        running.is_some_and(|a| of(container, Amounts::noted(&a.note), wanted) != How::Not)
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
        let (has, wanted) = (resources(has), resources(wanted));
        let own = |own| Amounts { own, pod: None };
        assert_eq!(of(&container, own(Some(&has)), own(Some(&wanted))), expected);
        assert_eq!(of(&container, own(None), own(Some(&wanted))), How::Not);
    }

    #[rstest]
    #[case::binds_the_container("{}", "{limits: {memory: 1Gi}}", "{limits: {memory: 2Gi}}", How::Restart)]
    #[case::has_its_own("{limits: {memory: 1Mi}}", "{limits: {memory: 1Gi}}", "{limits: {memory: 2Gi}}", How::InPlace)]
    #[case::request("{}", "{requests: {memory: 1Gi}}", "{requests: {memory: 2Gi}}", How::InPlace)]
    #[case::the_same("{}", "{limits: {memory: 1Gi}}", "{limits: {memory: 1024Mi}}", How::Not)]
    fn the_pods_own_amounts_bind_what_has_none(
        #[case] own: &str,
        #[case] has: &str,
        #[case] wanted: &str,
        #[case] expected: How,
    ) {
        let policy = "[{resourceName: memory, restartPolicy: RestartContainer}]";
        let container: k8s::Container = serde_yaml::from_str(&format!("{{name: a, resizePolicy: {policy}}}")).unwrap();
        let (own, has, wanted) = (resources(own), resources(has), resources(wanted));
        let of_pod = |pod| Amounts { own: Some(&own), pod: Some(pod) };
        assert_eq!(of(&container, of_pod(&has), of_pod(&wanted)), expected);
    }
}
