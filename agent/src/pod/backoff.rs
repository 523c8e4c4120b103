//! How long to wait before trying again: exponential, bounded, forgotten after a long good run. Pure.

use std::time::Duration;

/// The two waits that Kubernetes has: of a container that ended (CrashLoopBackOff) and of an image that couldn't be pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The first wait.
    pub initial: Duration,
    /// No wait is longer.
    pub max: Duration,
    /// A run of this length is a good one: after it, the first restart is immediate again.
    pub reset_after: Duration,
}

impl Default for Backoff {
    /// As the kubelet: <https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#restart-policy>
    fn default() -> Self {
        Self { initial: Duration::from_secs(10), max: Duration::from_secs(300), reset_after: Duration::from_secs(600) }
    }
}

impl Backoff {
    /// The wait that follows one of `delay`.
    pub fn after(&self, delay: Duration) -> Duration {
        if delay.is_zero() { self.initial } else { (delay * 2).min(self.max) }
    }

    /// The wait after a run that took `ran`, when its start had left `delay` for that case.
    pub fn due(&self, delay: Duration, ran: Duration) -> Duration {
        if ran >= self.reset_after { Duration::ZERO } else { delay }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_from_10_to_300_seconds() {
        let backoff = Backoff::default();
        let mut delay = Duration::ZERO;
        let waits: Vec<u64> = (0..8)
            .map(|_| {
                let wait = delay.as_secs();
                delay = backoff.after(delay);
                wait
            })
            .collect();
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn a_long_run_forgives() {
        let backoff = Backoff::default();
        assert_eq!(backoff.due(Duration::from_secs(300), Duration::from_secs(599)), Duration::from_secs(300));
        assert_eq!(backoff.due(Duration::from_secs(300), Duration::from_secs(600)), Duration::ZERO);
    }
}
