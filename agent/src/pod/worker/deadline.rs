//! activeDeadlineSeconds: how long a pod may be on the node.

use std::time::Duration;

use jiff::Timestamp;

use super::{Failure, Level, Worker};
use crate::model::ValidPod;

/// When a pod that is here since `since` has been here long enough.
fn end_of(pod: &ValidPod, since: Timestamp) -> Option<Timestamp> {
    let seconds = u64::try_from(pod.spec().active_deadline_seconds?).ok()?;
    since.checked_add(Duration::from_secs(seconds)).ok()
}

impl Worker {
    /// Fails a pod that was here too long. When to look again, of one that wasn't yet.
    pub(super) fn keep_active_deadline(&mut self) -> Option<Timestamp> {
        let end = end_of(&self.pod, self.start_time)?;
        let over = self.observed.failure.is_some() || self.observed.ending.is_some();
        if over || crate::pod::plan::is_complete(&self.pod, &self.observed) {
            return None;
        }
        let now = Timestamp::now();
        if end > now {
            return Some(end);
        }
        let message = "Pod was active on the node longer than the specified deadline";
        self.say(None, Level::Normal, "DeadlineExceeded", message);
        let grace = self.pod.spec().termination_grace_period_seconds.unwrap_or(30).max(0).unsigned_abs();
        let deadline = now.checked_add(Duration::from_secs(grace)).unwrap_or(Timestamp::MAX);
        self.observed.failure =
            Some(Failure { reason: "DeadlineExceeded".into(), message: message.into(), deadline, disrupted: false });
        self.probes.pod_ends();
        None
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;
    use crate::model::Origin;

    #[rstest]
    #[case::none(Value::Null, None)]
    #[case::some(json!(60), Some(60))]
    #[case::beyond_all_time(json!(i64::MAX), None)]
    fn from_the_pods_beginning(#[case] seconds: Value, #[case] expected: Option<i64>) {
        let pod = json!({"metadata": {"name": "a"}, "spec": {"containers": [], "activeDeadlineSeconds": seconds}});
        let pod = ValidPod::trusted(serde_json::from_value(pod).unwrap(), Origin::Stdin);
        let since = Timestamp::from_second(1_000_000).unwrap();
        assert_eq!(end_of(&pod, since).map(|end| end.as_second() - 1_000_000), expected);
    }
}
