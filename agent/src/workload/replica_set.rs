//! ReplicaSet: so many pods of a template. Pure.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/replicaset/>.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};

use super::pods::{Owned, after, worth};
use super::{Name, NewPod, Steps, room};

/// Pods that failed as a whole (evicted, refused by the node) and are kept to be looked at.
const FAILED_KEPT: usize = 5;
/// The longest wait before the next try of what failed as a whole, in seconds.
const LONGEST_WAIT: i64 = 300;

/// What is to be done for the set, and its status after that.
pub fn plan(set: &ReplicaSet, pods: &[Owned], now: Timestamp) -> (ReplicaSetStatus, Steps) {
    let mut steps = Steps::default();
    let mut active: Vec<&Owned> = pods.iter().filter(|p| p.active()).collect();
    let wanted = usize::try_from(set.spec.replicas.unwrap_or(1)).unwrap_or(0);
    if active.len() < wanted {
        match replacement_time(pods) {
            Some(time) if time > now => steps.at(time),
            _ => create(set, (wanted - active.len()).min(room(pods)), &mut steps),
        }
    } else {
        active.sort_by(|a, b| worth(a, b));
        steps.delete = active[..active.len() - wanted].iter().map(|p| p.uid()).collect();
        for pod in &active[..active.len() - wanted] {
            steps.say("SuccessfulDelete", format!("Deleted pod: {}", pod.name()));
        }
    }
    forget_failed(pods, &mut steps);
    (status(set, pods, &mut steps, now), steps)
}

fn create(set: &ReplicaSet, count: usize, steps: &mut Steps) {
    let Some(template) = &set.spec.template else { return };
    let name = set.metadata.name.as_deref().unwrap_or_default();
    let new = || NewPod { name: Name::Starting(format!("{name}-")), template: template.clone() };
    steps.create.extend(std::iter::repeat_with(new).take(count));
}

/// Pods that fail as a whole are tried again later and later: a node that refuses one would refuse the next at once.
pub(super) fn replacement_time(pods: &[Owned]) -> Option<Timestamp> {
    let failed: Vec<&Owned> = pods.iter().filter(|p| p.failed() && !p.terminating() && !p.gone).collect();
    let last = failed.iter().map(|p| p.finished_at().unwrap_or_else(|| p.created())).max()?;
    let wait = (1_i64 << failed.len().min(16)).min(LONGEST_WAIT);
    after(last, wait)
}

fn forget_failed(pods: &[Owned], steps: &mut Steps) {
    let mut ended: Vec<&Owned> = pods.iter().filter(|p| p.finished() && !p.terminating() && !p.gone).collect();
    ended.sort_by_key(|p| p.created());
    let surplus = ended.len().saturating_sub(FAILED_KEPT);
    steps.delete.extend(ended[..surplus].iter().map(|p| p.uid()));
}

fn status(set: &ReplicaSet, pods: &[Owned], steps: &mut Steps, now: Timestamp) -> ReplicaSetStatus {
    let min_ready = set.spec.min_ready_seconds.unwrap_or(0);
    let alive: Vec<&Owned> = pods.iter().filter(|p| p.active() && !steps.delete.contains(&p.uid())).collect();
    let count = |fits: &dyn Fn(&Owned) -> bool| i32::try_from(alive.iter().filter(|p| fits(p)).count()).unwrap_or(i32::MAX);
    let next = alive.iter().filter_map(|p| p.available_at(min_ready)).filter(|at| *at > now).min();
    if let Some(next) = next {
        steps.at(next);
    }
    let labels = set.spec.template.as_ref().and_then(|t| t.metadata.as_ref()?.labels.clone()).unwrap_or_default();
    let ending = pods.iter().filter(|p| !p.gone && !p.finished() && (p.terminating() || steps.delete.contains(&p.uid()))).count();
    let some = |number: i32| Some(number).filter(|n| *n > 0);
    ReplicaSetStatus {
        replicas: i32::try_from(alive.len() + steps.create.len()).unwrap_or(i32::MAX),
        fully_labeled_replicas: some(
            count(&|p| labels.iter().all(|(key, value)| p.label(key) == Some(value)))
                + i32::try_from(steps.create.len()).unwrap_or(0),
        ),
        ready_replicas: some(count(&Owned::ready)),
        available_replicas: some(count(&|p| p.available(min_ready, now))),
        terminating_replicas: Some(i32::try_from(ending).unwrap_or(i32::MAX)),
        observed_generation: set.metadata.generation,
        conditions: None,
    }
}
