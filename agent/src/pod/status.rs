//! What is observed, in Kubernetes' words: phase, conditions, container statuses. Pure. Source:
//! <https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/>.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as k8s;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::observed::{Attempt, Container, Image, Observed, Sandbox, Then};
use super::plan::{init_failed, is_complete, scheduling_gates};
use super::restart::{self, has_ended};
use super::since::since;
use super::{resize, whole};
use crate::model::ValidPod;
use crate::runtime::resources::is_sidecar;

/// What a status needs besides what is observed.
#[derive(Debug, Clone)]
pub struct Context<'a> {
    /// The node's addresses.
    pub host_ips: &'a [IpAddr],
    /// When the worker took the pod.
    pub start_time: Timestamp,
    /// The time now: of conditions that change.
    pub now: Timestamp,
    /// The pod's QoS class.
    pub qos: &'a str,
}

/// The pod's status; `old` gives the transition times of the conditions that stay.
pub fn status(pod: &ValidPod, observed: &Observed, context: &Context<'_>, old: Option<&k8s::PodStatus>) -> k8s::PodStatus {
    if scheduling_gates(pod).is_some() {
        let mut status = gated(pod, context);
        keep_times(&mut status, old, |_| context.now);
        return status;
    }
    let spec = pod.spec();
    let mut init: Vec<_> = spec.init_containers.iter().flatten().map(|c| container_status(c, pod, observed)).collect();
    let mut regular: Vec<_> = spec.containers.iter().map(|c| container_status(c, pod, observed)).collect();
    let mut ephemeral: Vec<_> = pod.ephemeral().iter().map(|c| ephemeral_status(c, pod, observed)).collect();
    let share = MESSAGES / (init.len() + regular.len() + ephemeral.len()).max(1);
    init.iter_mut().chain(&mut regular).chain(&mut ephemeral).for_each(|status| shorten_messages(status, share));
    let phase = phase(pod, observed);
    let ips: &[IpAddr] = match &observed.sandbox {
        Sandbox::Ready { ips, .. } => ips,
        _ => &[],
    };
    let mut conditions = conditions(pod, observed, phase, &init, &regular);
    conditions.extend(observed.failure.as_ref().filter(|f| f.disrupted).map(|failure| k8s::PodCondition {
        type_: "DisruptionTarget".into(),
        status: "True".into(),
        reason: Some("TerminationByKubelet".into()),
        message: Some(failure.message.clone()),
        observed_generation: pod.metadata.generation,
        ..k8s::PodCondition::default()
    }));
    conditions.extend(resize::condition(pod, observed));
    conditions.extend(restart::is_resetting(pod, observed).then(|| k8s::PodCondition {
        type_: "AllContainersRestarting".into(),
        status: "True".into(),
        observed_generation: pod.metadata.generation,
        ..k8s::PodCondition::default()
    }));
    conditions.extend(observed.conditions.iter().cloned());
    let (promised, in_force) = whole::of(pod, observed);
    let failure = observed.failure.as_ref().filter(|_| phase == "Failed");
    let mut status = k8s::PodStatus {
        allocated_resources: promised.and_then(|whole| whole.requests),
        resources: in_force,
        conditions: Some(conditions),
        container_statuses: Some(regular),
        reason: failure.map(|failure| failure.reason.clone().into_owned()),
        message: failure.map(|failure| failure.message.clone()),
        host_ip: context.host_ips.first().map(IpAddr::to_string),
        host_ips: Some(context.host_ips.iter().map(|ip| k8s::HostIP { ip: ip.to_string() }).collect()),
        ephemeral_container_statuses: (!ephemeral.is_empty()).then_some(ephemeral),
        init_container_statuses: (!init.is_empty()).then_some(init),
        observed_generation: pod.metadata.generation,
        phase: Some(phase.to_owned()),
        pod_ip: ips.first().map(IpAddr::to_string),
        pod_ips: (!ips.is_empty()).then(|| ips.iter().map(|ip| k8s::PodIP { ip: ip.to_string() }).collect()),
        qos_class: Some(context.qos.to_owned()),
        start_time: Some(Time(context.start_time)),
        ..k8s::PodStatus::default()
    };
    let first = |condition: &k8s::PodCondition| since(condition, pod, observed, context.start_time).min(context.now);
    keep_times(&mut status, old, |condition| if old.is_none() { first(condition) } else { context.now });
    status
}

/// A pod that isn't to be anywhere yet: no node says anything of its containers.
fn gated(pod: &ValidPod, context: &Context<'_>) -> k8s::PodStatus {
    let scheduled = k8s::PodCondition {
        type_: "PodScheduled".into(),
        status: "False".into(),
        reason: Some("SchedulingGated".into()),
        message: Some("Scheduling is blocked due to non-empty scheduling gates".into()),
        observed_generation: pod.metadata.generation,
        ..k8s::PodCondition::default()
    };
    k8s::PodStatus {
        conditions: Some(vec![scheduled]),
        phase: Some("Pending".into()),
        qos_class: Some(context.qos.to_owned()),
        observed_generation: pod.metadata.generation,
        ..k8s::PodStatus::default()
    }
}

/// Conditions that this program tells itself.
const OWN: [&str; 9] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
    "DisruptionTarget",
    "PodResizePending",
    "PodResizeInProgress",
    "AllContainersRestarting",
];

/// Whether a condition is for others to tell.
pub fn is_others(type_: &str) -> bool {
    !OWN.contains(&type_)
}

/// Readiness gates of which nobody says True: <https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#pod-readiness-gate>
fn closed_gates(pod: &ValidPod, told: &[k8s::PodCondition]) -> Option<(&'static str, String)> {
    let closed = |gate: &k8s::PodReadinessGate| {
        let name = &gate.condition_type;
        match told.iter().find(|c| c.type_ == *name) {
            None => Some(format!("corresponding condition of pod readiness gate \"{name}\" does not exist.")),
            Some(c) if c.status != "True" => {
                Some(format!("the status of pod readiness gate \"{name}\" is not \"True\", but {}", c.status))
            }
            Some(_) => None,
        }
    };
    let closed: Vec<String> = pod.spec().readiness_gates.iter().flatten().filter_map(closed).collect();
    (!closed.is_empty()).then(|| ("ReadinessGatesNotReady", closed.join(", ")))
}

/// Bytes of termination messages that a pod's status has room for, as the kubelet's.
const MESSAGES: usize = 12 * 1024;

/// Each container has the same share.
fn shorten_messages(status: &mut k8s::ContainerStatus, share: usize) {
    for state in [&mut status.state, &mut status.last_state].into_iter().flatten() {
        let Some(message) = state.terminated.as_mut().and_then(|t| t.message.as_mut()) else { continue };
        let end = (0..=share.min(message.len())).rev().find(|i| message.is_char_boundary(*i)).unwrap_or(0);
        message.truncate(end);
    }
}

fn keep_times(status: &mut k8s::PodStatus, old: Option<&k8s::PodStatus>, else_since: impl Fn(&k8s::PodCondition) -> Timestamp) {
    let old: &[k8s::PodCondition] = old.and_then(|o| o.conditions.as_deref()).unwrap_or_default();
    for condition in status.conditions.iter_mut().flatten() {
        let before = old.iter().find(|o| o.type_ == condition.type_ && o.status == condition.status);
        if is_others(&condition.type_) && condition.last_transition_time.is_some() {
            continue;
        }
        let before = before.and_then(|o| o.last_transition_time.clone());
        condition.last_transition_time = before.or_else(|| Some(Time(else_since(condition))));
    }
}

fn phase(pod: &ValidPod, observed: &Observed) -> &'static str {
    let spec = pod.spec();
    let of = |name: &str| observed.containers.get(name);
    if is_over(pod, observed) {
        let succeeded =
            |c: &k8s::Container| of(&c.name).and_then(|o| o.last.as_ref()?.finish.as_ref()).is_some_and(|f| f.code == 0);
        let failed = observed.failure.is_some() || init_failed(pod, observed) || !spec.containers.iter().all(succeeded);
        return if failed { "Failed" } else { "Succeeded" };
    }
    // One whose postStart hook runs for the first time hasn't.
    let hooked = |o: &Container| o.previous.is_some() || o.running().is_none_or(|a| a.note.health.hooked);
    let begun = |c: &k8s::Container| of(&c.name).is_some_and(|o| o.last.is_some() && hooked(o));
    if spec.containers.iter().all(begun) { "Running" } else { "Pending" }
}

/// Whether the phase is one of the last two: nothing is to run, and nothing runs. Whoever makes a pod in the place of one that has failed
/// never has two that run.
fn is_over(pod: &ValidPod, observed: &Observed) -> bool {
    let goes = observed.ending.as_ref().is_some_and(|ending| ending.then == Then::Gone);
    (goes || is_complete(pod, observed)) && !observed.has_processes()
}

/// The status of a pod that was asked to end, of which nobody knows more than that nothing is left of it: what was told of it last, and that
/// it has failed, where that wasn't said.
pub fn gone(told: Option<&k8s::PodStatus>) -> k8s::PodStatus {
    let mut status = told.cloned().unwrap_or_default();
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return status;
    }
    let has_begun = |c: &k8s::ContainerStatus| c.state.as_ref().is_some_and(|s| s.waiting.is_none()) || c.last_state.is_some();
    let lists = [&mut status.init_container_statuses, &mut status.container_statuses];
    for container in lists.into_iter().flatten().flatten().filter(|c| has_begun(c)) {
        (container.ready, container.started) = (false, Some(false));
        container.state = container.state.take().filter(|s| s.terminated.is_some()).or_else(|| Some(unknown_end()));
    }
    let succeeded =
        |c: &k8s::ContainerStatus| c.state.as_ref().and_then(|s| s.terminated.as_ref()).is_some_and(|t| t.exit_code == 0);
    let all = status.container_statuses.as_ref().is_some_and(|all| !all.is_empty() && all.iter().all(succeeded));
    let (phase, reason) = if all { ("Succeeded", "PodCompleted") } else { ("Failed", "PodFailed") };
    status.phase = Some(phase.into());
    for ready in status.conditions.iter_mut().flatten().filter(|c| matches!(c.type_.as_str(), "Ready" | "ContainersReady")) {
        (ready.status, ready.reason, ready.message) = ("False".into(), Some(reason.into()), None);
    }
    status
}

/// The kubelet's word for an end that nobody saw.
fn unknown_end() -> k8s::ContainerState {
    let terminated = k8s::ContainerStateTerminated {
        exit_code: 137,
        reason: Some("ContainerStatusUnknown".into()),
        message: Some("The container was gone when its pod was asked to end".into()),
        ..k8s::ContainerStateTerminated::default()
    };
    k8s::ContainerState { terminated: Some(terminated), ..k8s::ContainerState::default() }
}

fn conditions(
    pod: &ValidPod,
    observed: &Observed,
    phase: &str,
    init: &[k8s::ContainerStatus],
    regular: &[k8s::ContainerStatus],
) -> Vec<k8s::PodCondition> {
    let condition = |type_: &str, unmet: Option<(&str, String)>| k8s::PodCondition {
        type_: type_.to_owned(),
        status: if unmet.is_none() { "True" } else { "False" }.to_owned(),
        reason: unmet.as_ref().map(|(reason, _)| (*reason).to_owned()).filter(|r| !r.is_empty()),
        message: unmet.map(|(_, message)| message).filter(|m| !m.is_empty()),
        observed_generation: pod.metadata.generation,
        ..k8s::PodCondition::default()
    };
    let names = |statuses: &[&k8s::ContainerStatus]| statuses.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(" ");
    let sidecar = |name: &str| pod.spec().init_containers.iter().flatten().any(|c| c.name == name && is_sidecar(c));

    let incomplete: Vec<_> = init
        .iter()
        .filter(|s| {
            let terminated = s.state.as_ref().and_then(|s| s.terminated.as_ref());
            if sidecar(&s.name) {
                s.started != Some(true) && terminated.is_none()
            } else {
                terminated.is_none_or(|t| t.exit_code != 0)
            }
        })
        .collect();
    // Once regular containers ran, the pod stays initialised, also while a new sandbox is made.
    let begun = regular.iter().any(|s| s.state.as_ref().is_some_and(|s| s.waiting.is_none()) || s.last_state.is_some());
    let uninitialised = (!incomplete.is_empty() && !begun && phase != "Succeeded")
        .then(|| ("ContainersNotInitialized", format!("containers with incomplete status: [{}]", names(&incomplete))));

    let unready: Vec<_> = init.iter().filter(|s| sidecar(&s.name)).chain(regular).filter(|s| !s.ready).collect();
    let not_ready = match phase {
        "Succeeded" => Some(("PodCompleted", String::new())),
        "Failed" => Some(("PodFailed", String::new())),
        // Nobody sends it more work, also while it ends.
        _ if observed.failure.is_some() => Some(("PodFailed", String::new())),
        _ => (!unready.is_empty())
            .then(|| ("ContainersNotReady", format!("containers with unready status: [{}]", names(&unready)))),
    };
    let sandbox = matches!(observed.sandbox, Sandbox::Ready { .. });
    let ready = not_ready.clone().or_else(|| closed_gates(pod, &observed.conditions));
    vec![
        condition("PodReadyToStartContainers", (!sandbox).then(|| ("", String::new()))),
        condition("Initialized", uninitialised),
        condition("Ready", ready),
        condition("ContainersReady", not_ready),
        condition("PodScheduled", None),
    ]
}

fn container_status(container: &k8s::Container, pod: &ValidPod, observed: &Observed) -> k8s::ContainerStatus {
    let unknown = Container::default();
    let seen = observed.containers.get(&container.name).unwrap_or(&unknown);
    let init = pod.spec().init_containers.iter().flatten().find(|c| c.name == container.name);
    let regular_init = init.is_some_and(|c| !is_sidecar(c));
    let (state, last_state) = states(container, seen, observed, pod);
    let running = state.running.is_some();
    let completed = state.terminated.as_ref().is_some_and(|t| t.exit_code == 0);
    let last = seen.last.as_ref();
    k8s::ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        image_id: last.map(|a| a.note.image_id.clone()).unwrap_or_default(),
        container_id: last.filter(|a| !a.id.is_empty()).map(container_id),
        // An init container is ready once it is done; the others while they run.
        ready: if regular_init { completed } else { running && seen.is_ready() },
        started: Some(running && seen.started().is_some()),
        restart_count: last.map_or(0, |a| i32::try_from(a.number).unwrap_or(i32::MAX)),
        // What is promised, and what is in force.
        allocated_resources: observed.resources(container).and_then(|r| r.requests.clone()),
        resources: seen.running().and_then(|a| a.note.resources.clone()).or_else(|| observed.resources(container).cloned()),
        state: Some(state),
        last_state,
        stop_signal: seen.running().and_then(|a| signal_name(a.note.stop_signal)),
        volume_mounts: container.volume_mounts.as_ref().map(|mounts| mounts.iter().map(mount_status).collect()),
        ..k8s::ContainerStatus::default()
    }
}

/// Of one that nobody waits for: it is neither started nor ready.
fn ephemeral_status(container: &k8s::Container, pod: &ValidPod, observed: &Observed) -> k8s::ContainerStatus {
    k8s::ContainerStatus {
        ready: false,
        started: None,
        allocated_resources: None,
        resources: None,
        ..container_status(container, pod, observed)
    }
}

/// A recursive read-only mount is one, or the container doesn't start.
fn mount_status(mount: &k8s::VolumeMount) -> k8s::VolumeMountStatus {
    let read_only = mount.read_only == Some(true);
    let recursive = matches!(mount.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible"));
    k8s::VolumeMountStatus {
        name: mount.name.clone(),
        mount_path: mount.mount_path.clone(),
        read_only: Some(read_only),
        recursive_read_only: read_only.then(|| if recursive { "Enabled" } else { "Disabled" }.to_owned()),
        ..k8s::VolumeMountStatus::default()
    }
}

/// `SIGTERM`; real-time signals count from SIGRTMIN.
fn signal_name(number: i32) -> Option<String> {
    let named = nix::sys::signal::Signal::try_from(number).ok().map(|signal| signal.as_str().to_owned());
    named.or_else(|| match number - nix::libc::SIGRTMIN() {
        0 => Some("SIGRTMIN".into()),
        n @ 1..=30 => Some(format!("SIGRTMIN+{n}")),
        _ => None,
    })
}

fn container_id(attempt: &Attempt) -> String {
    format!("nodeagent://{}", attempt.id)
}

/// The present state, and how the attempt before it ended.
fn states(
    container: &k8s::Container,
    seen: &Container,
    observed: &Observed,
    pod: &ValidPod,
) -> (k8s::ContainerState, Option<k8s::ContainerState>) {
    let before = seen.previous.as_ref().and_then(terminated);
    if let Some(running) = seen.running().filter(|a| a.note.health.hooked) {
        let running = k8s::ContainerStateRunning { started_at: Some(Time(running.started_at)) };
        return (k8s::ContainerState { running: Some(running), ..Default::default() }, before);
    }
    let ended = seen.last.as_ref().and_then(terminated);
    match waiting(container, seen, observed, pod) {
        Some(waiting) => (k8s::ContainerState { waiting: Some(waiting), ..Default::default() }, ended.or(before)),
        None => (ended.unwrap_or_default(), before),
    }
}

/// Of a container that nothing else is to be said of.
const CREATING: &str = "ContainerCreating";

/// Why a container doesn't run although it should; unset for one that ended and stays so.
fn waiting(
    container: &k8s::Container,
    seen: &Container,
    observed: &Observed,
    pod: &ValidPod,
) -> Option<k8s::ContainerStateWaiting> {
    let because =
        |reason: &str, message: Option<String>| Some(k8s::ContainerStateWaiting { reason: Some(reason.to_owned()), message });
    let stays = has_ended(pod, container, seen);
    if stays || (seen.last.is_some() && (observed.ending.is_some() || is_complete(pod, observed))) {
        return None;
    }
    // The kubelet's word for one that hasn't run, init containers among them.
    let initialising = seen.last.is_none() && pod.spec().init_containers.iter().flatten().next().is_some();
    let not_yet = if initialising { "PodInitializing" } else { CREATING };
    if let Some(refused) = &seen.refused {
        let reason = if refused.reason == CREATING { not_yet } else { refused.reason };
        return because(reason, Some(refused.message.clone()));
    }
    if let Image::Failed { reason, message, delay, .. } = &seen.image {
        // The first failure shows what it is; the waits after it show that it is waited.
        let backs_off = !delay.is_zero() && matches!(*reason, "ErrImagePull" | "RegistryUnavailable");
        let reason = if backs_off { "ImagePullBackOff" } else { reason };
        return because(reason, Some(message.clone()));
    }
    if let Sandbox::Failed { message, .. } = &observed.sandbox {
        return because(not_yet, Some(message.clone()));
    }
    if let Some(finish) = seen.last.as_ref().filter(|_| !seen.starting).and_then(Attempt::finished) {
        let delay = seen.last.as_ref().map_or(0, |a| a.note.delay_ms);
        if delay > 0 {
            let message = format!(
                "back-off {}s restarting failed container={} pod={}_{}({}); it ended with exit code {} ({})",
                delay.div_ceil(1000),
                container.name,
                pod.name(),
                pod.namespace(),
                pod.uid(),
                finish.code,
                finish.reason
            );
            return because("CrashLoopBackOff", Some(message));
        }
    }
    because(not_yet, None)
}

/// The containers that wait, by name, each with the reason.
pub fn waits(status: Option<&k8s::PodStatus>) -> Vec<(&str, &str)> {
    let lists = status.map(|s| [&s.init_container_statuses, &s.container_statuses]);
    let all = lists.into_iter().flatten().flatten().flatten();
    all.filter_map(|s| Some((s.name.as_str(), s.state.as_ref()?.waiting.as_ref()?.reason.as_deref()?))).collect()
}

fn terminated(attempt: &Attempt) -> Option<k8s::ContainerState> {
    let finish = attempt.finish.as_ref()?;
    Some(k8s::ContainerState {
        terminated: Some(k8s::ContainerStateTerminated {
            container_id: (!attempt.id.is_empty()).then(|| container_id(attempt)),
            exit_code: finish.code,
            finished_at: Some(Time(finish.at)),
            message: finish.message.clone(),
            reason: Some(finish.reason.clone().into_owned()),
            signal: None,
            started_at: Some(Time(attempt.started_at)),
        }),
        ..Default::default()
    })
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
