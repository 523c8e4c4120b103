//! Which pods end when, as the machine goes down or the agent takes its pods along: the kubelet's settings, groups and sentences. Pure but for
//! [`logind`], which hears of it. <https://kubernetes.io/docs/concepts/cluster-administration/node-shutdown/>

pub mod logind;

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use crate::model::{PodUid, SYSTEM_CRITICAL, ValidPod};

/// The reason in the status of a pod that ended with the node.
pub const REASON: &str = "Terminated";
/// Its message.
pub const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";
/// The reason of one that came too late.
pub const REFUSED: &str = "NodeShutdown";
/// Its message.
pub const REFUSED_MESSAGE: &str = "Pod was rejected as the node is shutting down.";
/// What the node's Ready condition says meanwhile.
pub const NOT_READY: &str = "node is shutting down";

/// The time of pods from this priority on, up to the next period's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Period {
    /// The least priority.
    pub priority: i32,
    /// From the first pod's SIGTERM until the next period's pods have their turn.
    pub grace: Duration,
}

/// All of it, for all pods but the critical ones, which have the last part of it.
pub fn periods(all: Duration, critical: Duration) -> Vec<Period> {
    if all.is_zero() {
        return Vec::new();
    }
    vec![Period { priority: 0, grace: all.saturating_sub(critical) }, Period { priority: SYSTEM_CRITICAL, grace: critical }]
}

/// How long all of them take.
pub fn needed(periods: &[Period]) -> Duration {
    periods.iter().map(|period| period.grace).sum()
}

/// A pod that is to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub uid: PodUid,
    /// spec.priority.
    pub priority: i32,
    /// spec.terminationGracePeriodSeconds.
    pub grace: Duration,
}

impl Candidate {
    /// The pod as one.
    pub fn of(pod: &ValidPod) -> Self {
        let seconds = pod.spec().termination_grace_period_seconds.unwrap_or(30).max(0).unsigned_abs();
        let priority = pod.spec().priority.unwrap_or(0);
        Self { uid: pod.uid().clone(), priority, grace: Duration::from_secs(seconds) }
    }
}

/// Pods that end together, before those of the next group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// After so long the next group has its turn; none: once all of this one's have ended.
    pub within: Option<Duration>,
    /// Each with what it has from SIGTERM to SIGKILL.
    pub pods: Vec<(PodUid, Duration)>,
}

/// The groups in their order, without those that nobody is in. Without periods all pods end at once, each in its own time.
pub fn groups(periods: &[Period], pods: impl IntoIterator<Item = Candidate>) -> Vec<Group> {
    let mut periods = periods.to_vec();
    periods.sort_by_key(|period| period.priority);
    let empty = |within| Group { within, pods: Vec::new() };
    let mut groups: Vec<Group> = periods.iter().map(|period| empty(Some(period.grace))).collect();
    if groups.is_empty() {
        groups.push(empty(None));
    }
    for pod in pods {
        // Who is below all of them has the first one's time.
        let index = periods.iter().rposition(|period| period.priority <= pod.priority).unwrap_or(0);
        if let Some(group) = groups.get_mut(index) {
            group.pods.push((pod.uid, group.within.map_or(pod.grace, |within| within.min(pod.grace))));
        }
    }
    groups.retain(|group| !group.pods.is_empty());
    groups
}

/// Whether the pod ended with the node, or was not let in as it went down. It has neither done its work nor failed at it: a file's comes with the
/// node.
pub fn keeps_down(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|status| status.reason.as_deref()), Some(REASON | REFUSED))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn period(&(priority, grace): &(i32, u64)) -> Period {
        Period { priority, grace: seconds(grace) }
    }

    /// Each group as `WITHIN: POD=GRACE …`.
    fn told(groups: &[Group]) -> Vec<String> {
        let pods = |group: &Group| {
            let pods = group.pods.iter().map(|(uid, grace)| format!("{uid}={}", grace.as_secs()));
            pods.collect::<Vec<_>>().join(" ")
        };
        let within = |group: &Group| group.within.map_or_else(|| "-".to_owned(), |within| within.as_secs().to_string());
        groups.iter().map(|group| format!("{}: {}", within(group), pods(group))).collect()
    }

    #[rstest]
    #[case::no_settings(&[], &[(0, 30), (-5, 7), (2_000_000_000, 600)], &["-: 0=30 1=7 2=600"])]
    #[case::nobody(&[(0, 10)], &[], &[])]
    #[case::in_order_whatever_the_file_says(&[(1000, 5), (0, 10)], &[(1000, 30), (0, 30)], &["10: 1=10", "5: 0=5"])]
    #[case::the_pods_own_time_if_it_is_less(&[(0, 10)], &[(0, 3), (0, 10), (0, 11), (0, 0)], &["10: 0=3 1=10 2=10 3=0"])]
    #[case::between_two_is_the_lower(&[(0, 10), (100, 20)], &[(99, 30), (100, 30), (101, 30)], &["10: 0=10", "20: 1=20 2=20"])]
    #[case::below_and_above_all(&[(10, 1), (20, 2)], &[(-7, 30), (i32::MAX, 30)], &["1: 0=1", "2: 1=2"])]
    #[case::empty_groups_take_no_time(&[(0, 10), (5, 20), (9, 30)], &[(9, 60), (0, 60)], &["10: 1=10", "30: 0=30"])]
    #[case::no_time_at_all(&[(0, 0)], &[(0, 30)], &["0: 0=0"])]
    fn who_ends_when(#[case] periods: &[(i32, u64)], #[case] pods: &[(i32, u64)], #[case] expected: &[&str]) {
        let periods: Vec<Period> = periods.iter().map(period).collect();
        let candidate = |(number, &(priority, grace)): (usize, &(i32, u64))| Candidate {
            uid: PodUid::new(&number.to_string()),
            priority,
            grace: seconds(grace),
        };
        assert_eq!(told(&groups(&periods, pods.iter().enumerate().map(candidate))), expected);
    }

    #[rstest]
    #[case::off(0, 0, &[])]
    #[case::without_a_part_for_critical_pods(30, 0, &[(0, 30), (2_000_000_000, 0)])]
    #[case::with_one(30, 10, &[(0, 20), (2_000_000_000, 10)])]
    #[case::for_critical_pods_alone(30, 30, &[(0, 0), (2_000_000_000, 30)])]
    fn one_time_for_all_is_two_periods(#[case] all: u64, #[case] critical: u64, #[case] expected: &[(i32, u64)]) {
        let periods = periods(seconds(all), seconds(critical));
        assert_eq!(periods, expected.iter().map(period).collect::<Vec<_>>());
        assert_eq!(needed(&periods), seconds(all));
    }
}
