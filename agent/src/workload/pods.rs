//! What a core asks of a pod. Pure; words and rules as Kubernetes' controllers have them.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::model::PodUid;

/// A pod of an owner.
#[derive(Debug, Clone)]
pub struct Owned {
    /// As last seen; without status until its worker has it.
    pub pod: Arc<Pod>,
    /// Its end is in its Job's status.
    pub counted: bool,
    /// It is no more; kept for one look.
    pub gone: bool,
}

impl Owned {
    /// metadata.uid.
    pub fn uid(&self) -> PodUid {
        PodUid::new(self.pod.metadata.uid.as_deref().unwrap_or_default())
    }

    /// metadata.name.
    pub fn name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap_or_default()
    }

    /// status.phase.
    pub fn phase(&self) -> &str {
        self.pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending")
    }

    /// Whether all of its containers ended well.
    pub fn succeeded(&self) -> bool {
        self.phase() == "Succeeded"
    }

    /// Whether it ended otherwise.
    pub fn failed(&self) -> bool {
        self.phase() == "Failed"
    }

    /// Whether it has ended by itself.
    pub fn finished(&self) -> bool {
        self.succeeded() || self.failed()
    }

    /// Whether it was told to end.
    pub fn terminating(&self) -> bool {
        self.pod.metadata.deletion_timestamp.is_some()
    }

    /// Whether it runs or is going to.
    pub fn active(&self) -> bool {
        !self.gone && !self.counted && !self.terminating() && !self.finished()
    }

    /// Since when it is ready.
    pub fn ready_since(&self) -> Option<Timestamp> {
        let conditions = self.pod.status.as_ref()?.conditions.as_ref()?;
        let ready = conditions.iter().find(|c| c.type_ == "Ready" && c.status == "True")?;
        Some(ready.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0))
    }

    /// Whether it is ready.
    pub fn ready(&self) -> bool {
        self.ready_since().is_some()
    }

    /// When it has been ready for so long.
    pub fn available_at(&self, min_ready_seconds: i32) -> Option<Timestamp> {
        after(self.ready_since()?, i64::from(min_ready_seconds))
    }

    /// Whether it has been ready for so long.
    pub fn available(&self, min_ready_seconds: i32, now: Timestamp) -> bool {
        self.ready() && (min_ready_seconds == 0 || self.available_at(min_ready_seconds).is_some_and(|at| at <= now))
    }

    /// A label's value.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.pod.metadata.labels.as_ref()?.get(key).map(String::as_str)
    }

    /// An annotation's value.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
    }

    /// How often its containers were started again.
    pub fn restarts(&self) -> i32 {
        let status = self.pod.status.as_ref();
        let lists = status.map(|s| [&s.init_container_statuses, &s.container_statuses]);
        lists.into_iter().flatten().flatten().flatten().map(|c| c.restart_count).sum()
    }

    /// When its last container ended.
    pub fn finished_at(&self) -> Option<Timestamp> {
        let status = self.pod.status.as_ref()?;
        let lists = [&status.init_container_statuses, &status.container_statuses];
        let ends = lists.into_iter().flatten().flatten();
        ends.filter_map(|c| c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref().map(|t| t.0)).max()
    }

    /// metadata.creationTimestamp.
    pub fn created(&self) -> Timestamp {
        self.pod.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0)
    }
}

/// Seconds later; none beyond time's end.
pub fn after(time: Timestamp, seconds: i64) -> Option<Timestamp> {
    time.checked_add(Duration::from_secs(u64::try_from(seconds).unwrap_or(0))).ok()
}

/// Which of two pods goes first when there are too many: the one that would be missed less.
pub fn worth(a: &Owned, b: &Owned) -> Ordering {
    let phase = |p: &Owned| match p.phase() {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let cost =
        |p: &Owned| p.annotation("controller.kubernetes.io/pod-deletion-cost").and_then(|c| c.parse::<i32>().ok()).unwrap_or(0);
    // The younger ones go first.
    phase(a)
        .cmp(&phase(b))
        .then(a.ready().cmp(&b.ready()))
        .then(cost(a).cmp(&cost(b)))
        .then(b.ready_since().cmp(&a.ready_since()))
        .then(b.restarts().cmp(&a.restarts()))
        .then(b.created().cmp(&a.created()))
        .then(a.name().cmp(b.name()))
}

/// A count, or a percentage of `of`.
pub fn scaled(value: Option<&IntOrString>, of: i32, round: Round) -> i32 {
    match value {
        None => 0,
        Some(IntOrString::Int(count)) => (*count).max(0),
        Some(IntOrString::String(text)) => {
            let percent = text.strip_suffix('%').and_then(|p| p.parse::<i64>().ok()).unwrap_or(0);
            let hundredths = percent.saturating_mul(i64::from(of));
            let whole = match round {
                Round::Up => hundredths.saturating_add(99) / 100,
                Round::Down => hundredths / 100,
            };
            i32::try_from(whole).unwrap_or(i32::MAX)
        }
    }
}

/// Which way a percentage is rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Round {
    /// As maxSurge.
    Up,
    /// As maxUnavailable.
    Down,
}
