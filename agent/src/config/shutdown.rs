//! How long pods have when the machine goes down: the kubelet's settings under the kubelet's names, and its rules.

use std::time::Duration;

use serde::Deserialize;

use super::check::Checker;
use super::file::Declared;
use crate::model::Path;
use crate::shutdown::{self, Period};

/// One of `shutdownGracePeriodByPodPriority`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PrioritySection {
    pub(super) priority: i32,
    pub(super) shutdown_grace_period_seconds: i64,
}

/// In the order of their priorities; none: the machine's shutdown is nothing to the agent.
pub(super) fn shutdown(c: &mut Checker<'_>, declared: &Declared) -> Vec<Period> {
    let all = period(c, "shutdownGracePeriod", declared.shutdown_grace_period.as_ref());
    let critical = period(c, "shutdownGracePeriodCriticalPods", declared.shutdown_grace_period_critical_pods.as_ref());
    if critical > all {
        let message = format!("Invalid value: {critical:?}: must not be more than shutdownGracePeriod, which it is a part of");
        c.file("shutdownGracePeriodCriticalPods", message);
    }
    if declared.shutdown_grace_period_by_pod_priority.is_empty() {
        return shutdown::periods(all, critical);
    }
    for (field, period) in [("shutdownGracePeriod", all), ("shutdownGracePeriodCriticalPods", critical)] {
        if !period.is_zero() {
            c.file(field, "Forbidden: shutdownGracePeriodByPodPriority says the same, and more: give one of the two".into());
        }
    }
    by_priority(c, &declared.shutdown_grace_period_by_pod_priority)
}

fn period(c: &mut Checker<'_>, field: &str, text: Option<&String>) -> Duration {
    let period = c.duration(field, text, Duration::ZERO);
    if !period.is_zero() && period < Duration::from_secs(1) {
        c.file(field, format!("Invalid value: {period:?}: must be 0, or 1s at least"));
    }
    period
}

fn by_priority(c: &mut Checker<'_>, declared: &[PrioritySection]) -> Vec<Period> {
    let mut periods: Vec<Period> = Vec::new();
    let all = Path::ROOT.child("shutdownGracePeriodByPodPriority");
    for (index, &PrioritySection { priority, shutdown_grace_period_seconds: seconds }) in declared.iter().enumerate() {
        let at = all.index(index);
        if periods.iter().any(|period| period.priority == priority) {
            c.at(&at.child("priority"), format!("Duplicate value: {priority}"));
        }
        if let Ok(seconds) = u32::try_from(seconds) {
            periods.push(Period { priority, grace: Duration::from_secs(seconds.into()) });
        } else {
            let message = format!("Invalid value: {seconds}: must be between 0 and {}", u32::MAX);
            c.at(&at.child("shutdownGracePeriodSeconds"), message);
        }
    }
    periods.sort_by_key(|period| period.priority);
    periods
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::super::network_tests::load;

    #[rstest]
    #[case::off("", &[])]
    #[case::zero("shutdownGracePeriod: 0s", &[])]
    #[case::for_all("shutdownGracePeriod: 30s", &[(0, 30_000), (2_000_000_000, 0)])]
    #[case::with_critical_pods("shutdownGracePeriod: 1m\nshutdownGracePeriodCriticalPods: 10s", &[(0, 50_000), (2_000_000_000, 10_000)])]
    #[case::parts_of_a_second_count("shutdownGracePeriod: 2.5s\nshutdownGracePeriodCriticalPods: 1s", &[(0, 1500), (2_000_000_000, 1000)])]
    #[case::by_priority(
        "shutdownGracePeriodByPodPriority: [{priority: 1000, shutdownGracePeriodSeconds: 5}, {priority: -3, shutdownGracePeriodSeconds: 7}]",
        &[(-3, 7000), (1000, 5000)]
    )]
    fn periods(#[case] yaml: &str, #[case] expected: &[(i32, u128)]) {
        let periods = load(&[], yaml).unwrap().shutdown;
        assert_eq!(periods.iter().map(|period| (period.priority, period.grace.as_millis())).collect::<Vec<_>>(), expected);
    }

    #[rstest]
    #[case(
        "shutdownGracePeriod: 10s\nshutdownGracePeriodCriticalPods: 20s",
        "c.yaml:4:1: shutdownGracePeriodCriticalPods: Invalid value: 20s: must not be more than shutdownGracePeriod, which it is a part of"
    )]
    #[case(
        "shutdownGracePeriodCriticalPods: 20s",
        "c.yaml:3:1: shutdownGracePeriodCriticalPods: Invalid value: 20s: must not be more than shutdownGracePeriod, which it is a part of"
    )]
    #[case("shutdownGracePeriod: 999ms", "c.yaml:3:1: shutdownGracePeriod: Invalid value: 999ms: must be 0, or 1s at least")]
    #[case(
        "shutdownGracePeriod: '30'",
        "c.yaml:3:1: shutdownGracePeriod: Invalid value: \"30\": must be a duration such as \"10s\", \"1m30s\" or \"500ms\""
    )]
    #[case(
        "shutdownGracePeriod: 10s\nshutdownGracePeriodByPodPriority: [{priority: 0, shutdownGracePeriodSeconds: 5}]",
        "c.yaml:3:1: shutdownGracePeriod: Forbidden: shutdownGracePeriodByPodPriority says the same, and more: give one of the two"
    )]
    #[case(
        "shutdownGracePeriodByPodPriority:\n- {priority: 0, shutdownGracePeriodSeconds: 5}\n- {priority: 0, shutdownGracePeriodSeconds: 6}",
        "c.yaml:5:4: shutdownGracePeriodByPodPriority[1].priority: Duplicate value: 0"
    )]
    #[case(
        "shutdownGracePeriodByPodPriority:\n- {priority: 0, shutdownGracePeriodSeconds: -1}",
        "c.yaml:4:17: shutdownGracePeriodByPodPriority[0].shutdownGracePeriodSeconds: Invalid value: -1: must be between 0 and 4294967295"
    )]
    fn what_is_wrong_is_told_with_its_place(#[case] yaml: &str, #[case] expected: &str) {
        assert_eq!(load(&[], yaml).unwrap_err(), expected);
    }
}
