//! What a row of probes' findings means: thresholds counted as the kubelet counts them. Pure.
//! <https://kubernetes.io/docs/concepts/configuration/liveness-readiness-startup-probes/>

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as k8s;

use crate::pod::plan::between;

/// Which of a container's probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Fails: the container is restarted.
    Liveness,
    /// Fails: the container is not ready.
    Readiness,
    /// Nothing else is probed before it has succeeded; fails: the container is restarted.
    Startup,
}

impl Kind {
    /// As events begin.
    pub fn title(self) -> &'static str {
        match self {
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
            Self::Startup => "Startup",
        }
    }

    /// The container's probe of this kind.
    pub fn of(self, container: &k8s::Container) -> Option<&k8s::Probe> {
        match self {
            Self::Liveness => container.liveness_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
            Self::Startup => container.startup_probe.as_ref(),
        }
    }
}

/// One probe's finding, where it found something out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// As it should be.
    Success,
    /// Not as it should be.
    Failure,
}

/// Counts findings.
#[derive(Debug, Clone)]
pub struct Counter {
    success_threshold: u32,
    failure_threshold: u32,
    last: Option<Finding>,
    run: u32,
}

impl Counter {
    /// Nothing found yet.
    pub fn new(probe: &k8s::Probe) -> Self {
        let threshold = |field: Option<i32>, default| field.and_then(|n| u32::try_from(n).ok()).unwrap_or(default).max(1);
        Self {
            success_threshold: threshold(probe.success_threshold, 1),
            failure_threshold: threshold(probe.failure_threshold, 3),
            last: None,
            run: 0,
        }
    }

    /// One more: what is certain now, if anything.
    pub fn count(&mut self, finding: Finding) -> Option<Finding> {
        self.run = if self.last == Some(finding) { self.run.saturating_add(1) } else { 1 };
        self.last = Some(finding);
        let threshold = match finding {
            Finding::Success => self.success_threshold,
            Finding::Failure => self.failure_threshold,
        };
        (self.run >= threshold).then_some(finding)
    }

    /// Whether it has ever found anything.
    pub fn is_new(&self) -> bool {
        self.last.is_none()
    }
}

/// When a probe runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// From the container's start.
    pub delay: Duration,
    /// From one probe to the next.
    pub period: Duration,
    /// What one may take.
    pub timeout: Duration,
}

impl Schedule {
    /// The probe's own.
    pub fn of(probe: &k8s::Probe) -> Self {
        let seconds = |field: Option<i32>, default: u64| {
            Duration::from_secs(field.map_or(default, |s| u64::try_from(s).unwrap_or_default()))
        };
        let at_least_one = |duration: Duration| duration.max(Duration::from_secs(1));
        Self {
            delay: seconds(probe.initial_delay_seconds, 0),
            period: at_least_one(seconds(probe.period_seconds, 10)),
            timeout: at_least_one(seconds(probe.timeout_seconds, 1)),
        }
    }

    /// How long from `now` to the first probe of a container that runs since `since`: the beat goes on across the agent's lives, so
    /// that an agent that comes after doesn't probe all containers in one instant.
    pub fn first(&self, since: Timestamp, now: Timestamp) -> Duration {
        let runs = between(since, now);
        let Some(beyond) = runs.checked_sub(self.delay) else { return self.delay.saturating_sub(runs) };
        // The very first beat is not to be missed because some moments passed since the start.
        if beyond < Duration::from_secs(1) {
            return Duration::ZERO;
        }
        let into = beyond.as_nanos() % self.period.as_nanos();
        self.period.saturating_sub(Duration::from_nanos(u64::try_from(into).unwrap_or_default()))
    }
}

/// Beats of all containers fall together.
const GRAIN: Duration = Duration::from_millis(100);

/// A wait of at least this long that ends on a tenth of a second: many containers' probes are one wake of the processor then, which finds
/// in its caches what the first of them left there.
pub fn in_step(now: Timestamp, wait: Duration) -> Duration {
    let end = u128::try_from(now.as_nanosecond()).unwrap_or_default() + wait.as_nanos();
    let over = u64::try_from(end % GRAIN.as_nanos()).unwrap_or_default();
    if over == 0 { wait } else { wait.saturating_add(GRAIN.saturating_sub(Duration::from_nanos(over))) }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn probe(yaml: &str) -> k8s::Probe {
        serde_yaml::from_str(yaml).unwrap()
    }

    /// `+` a success, `-` a failure; what is certain after each, `.` nothing new.
    #[rstest]
    #[case::defaults("{}", "--+---", "..+..-")]
    #[case::one_is_enough("{failureThreshold: 1}", "-+-", "-+-")]
    #[case::successes_in_a_row("{successThreshold: 3}", "++-+++", ".....+")]
    #[case::a_failure_between("{failureThreshold: 2}", "-+-+--", ".+.+.-")]
    #[case::stays("{successThreshold: 2, failureThreshold: 2}", "+++---++", ".++.--.+")]
    fn findings_in_a_row_count(#[case] thresholds: &str, #[case] findings: &str, #[case] expected: &str) {
        let mut counter = Counter::new(&probe(thresholds));
        let certain: String = findings
            .chars()
            .map(|c| counter.count(if c == '+' { Finding::Success } else { Finding::Failure }))
            .map(|certain| match certain {
                Some(Finding::Success) => '+',
                Some(Finding::Failure) => '-',
                None => '.',
            })
            .collect();
        assert_eq!(certain, expected);
    }

    #[rstest]
    #[case::at_once("{}", 0, 0)]
    #[case::after_its_delay("{initialDelaySeconds: 5}", 0, 5_000)]
    #[case::the_rest_of_it("{initialDelaySeconds: 5}", 1_200, 3_800)]
    #[case::a_moment_late("{initialDelaySeconds: 5}", 5_300, 0)]
    #[case::in_the_beat("{initialDelaySeconds: 5, periodSeconds: 4}", 10_000, 3_000)]
    #[case::long_after("{periodSeconds: 1}", 86_400_250, 750)]
    fn first_beat(#[case] yaml: &str, #[case] runs_ms: i64, #[case] expected_ms: u64) {
        let since = Timestamp::from_second(1_000_000).unwrap();
        let now = Timestamp::from_millisecond(1_000_000_000 + runs_ms).unwrap();
        assert_eq!(Schedule::of(&probe(yaml)).first(since, now), Duration::from_millis(expected_ms));
    }

    #[rstest]
    #[case(0, 1_000, 1_000)]
    #[case(1, 1_000, 1_099)]
    #[case(99, 1_000, 1_001)]
    #[case(250, 0, 50)]
    fn beats_fall_on_tenths_of_a_second(#[case] now_ms: i64, #[case] wait_ms: u64, #[case] expected_ms: u64) {
        let now = Timestamp::from_millisecond(1_000_000_000 + now_ms).unwrap();
        assert_eq!(in_step(now, Duration::from_millis(wait_ms)), Duration::from_millis(expected_ms));
    }

    #[test]
    fn nothing_overflows() {
        let schedule =
            Schedule::of(&probe("{initialDelaySeconds: 2147483647, periodSeconds: 2147483647, timeoutSeconds: 2147483647}"));
        assert!(schedule.first(Timestamp::MIN, Timestamp::MAX) <= schedule.period);
        assert_eq!(schedule.first(Timestamp::MAX, Timestamp::MIN), schedule.delay);
    }
}
