//! Who goes first, and what is said about it. Pure.

use std::cmp::{Ordering, Reverse};
use std::fmt::Write as _;

use super::{Observation, Signal, Threshold};
use crate::model::{PodUid, SYSTEM_CRITICAL};

/// What a pod uses, and what it asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodUsage {
    /// Which.
    pub uid: PodUid,
    /// spec.priority.
    pub priority: i32,
    /// Its processes and threads.
    pub pids: u64,
    /// Requests of the pod as a whole, where it has some: memory, ephemeral storage in bytes.
    pub requests: (u64, u64),
    /// Its emptyDirs and logs on disk: bytes, inodes.
    pub volumes: (u64, u64),
    /// Each container's.
    pub containers: Vec<ContainerUsage>,
}

/// What a container uses, and what it asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerUsage {
    /// Its name.
    pub name: String,
    /// Working set, bytes.
    pub memory: u64,
    /// Bytes.
    pub memory_request: u64,
    /// What it wrote beside volumes: bytes.
    pub disk: u64,
    /// Bytes.
    pub disk_request: u64,
    /// Inodes of the same.
    pub inodes: u64,
}

impl PodUsage {
    /// May be evicted.
    pub fn is_evictable(&self) -> bool {
        self.priority < SYSTEM_CRITICAL
    }

    fn sum(&self, of: impl Fn(&ContainerUsage) -> u64) -> u64 {
        self.containers.iter().map(of).fold(0, u64::saturating_add)
    }

    /// What it uses of the signal's resource, and what it asked for.
    fn usage(&self, signal: Signal) -> (u64, u64) {
        match signal {
            Signal::MemoryAvailable => (self.sum(|c| c.memory), self.requests.0),
            Signal::NodefsAvailable | Signal::ImagefsAvailable => {
                (self.sum(|c| c.disk).saturating_add(self.volumes.0), self.requests.1)
            }
            Signal::NodefsInodesFree | Signal::ImagefsInodesFree => (self.sum(|c| c.inodes).saturating_add(self.volumes.1), 0),
            Signal::PidAvailable => (self.pids, 0),
        }
    }
}

/// The first of the result goes first: who uses more than it asked for, then the lower priority, then who is farther beyond its
/// request. Nobody asks for process IDs or inodes: of them, priority and use alone count. Critical pods aren't in it.
pub fn rank(mut pods: Vec<PodUsage>, signal: Signal) -> Vec<PodUsage> {
    pods.retain(PodUsage::is_evictable);
    pods.sort_by(|a, b| compare(a, b, signal));
    pods
}

fn compare(a: &PodUsage, b: &PodUsage, signal: Signal) -> Ordering {
    let key = |pod: &PodUsage| {
        let (used, asked) = pod.usage(signal);
        let requestable = signal != Signal::PidAvailable;
        let within = requestable && used <= asked;
        (within, pod.priority, Reverse(i128::from(used) - i128::from(asked)))
    };
    key(a).cmp(&key(b))
}

/// The kubelet's sentences about an eviction: what was scarce, and which containers used more than they asked for.
pub fn message(threshold: &Threshold, seen: &Observation, pod: &PodUsage) -> String {
    let signal = threshold.signal;
    let resource = signal.resource();
    let mut text = format!(
        "The node was low on resource: {resource}. Threshold quantity: {}, available: {}. ",
        amount(threshold.value.of(seen.capacity), signal),
        amount(seen.available, signal)
    );
    for c in &pod.containers {
        let (used, asked) = match signal {
            Signal::MemoryAvailable => (c.memory, c.memory_request),
            Signal::NodefsAvailable | Signal::ImagefsAvailable => (c.disk, c.disk_request),
            _ => continue,
        };
        if used > asked {
            let (used, asked) = (amount(used, signal), amount(asked, signal));
            let name = &c.name;
            let _ = write!(text, "Container {name} was using {used}, request is {asked}, has larger consumption of {resource}. ");
        }
    }
    text
}

fn amount(number: u64, signal: Signal) -> String {
    match signal {
        Signal::PidAvailable | Signal::NodefsInodesFree | Signal::ImagefsInodesFree => number.to_string(),
        _ => bytes(number),
    }
}

/// Bytes in the largest binary unit that leaves no rest, as Kubernetes writes them.
pub fn bytes(number: u64) -> String {
    let power = if number > 0 { (number.trailing_zeros() / 10).min(6) } else { 0 };
    let unit = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"].get(power as usize).copied().unwrap_or_default();
    format!("{}{unit}", number >> (power * 10))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rstest::rstest;

    use super::super::Amount;
    use super::*;

    fn pod(name: &str, priority: i32, memory: u64, request: u64) -> PodUsage {
        let container = ContainerUsage { name: "app".into(), memory, memory_request: request, ..ContainerUsage::default() };
        let pids = memory;
        PodUsage {
            uid: PodUid::new(name),
            priority,
            pids,
            requests: (request, 0),
            volumes: (memory, 0),
            containers: vec![container],
        }
    }

    fn order(pods: Vec<PodUsage>, signal: Signal) -> String {
        rank(pods, signal).iter().map(|p| p.uid.to_string()).collect::<Vec<_>>().join(" ")
    }

    #[rstest]
    // Beyond its request goes before within, whatever the priorities.
    #[case(vec![pod("within", -5, 10, 20), pod("beyond", 1000, 30, 20)], "beyond within")]
    // Then the lower priority.
    #[case(vec![pod("high", 10, 90, 0), pod("low", 1, 10, 0)], "low high")]
    // Then who is farther beyond.
    #[case(vec![pod("near", 0, 30, 20), pod("far", 0, 25, 0)], "far near")]
    // Within its request, who has most left goes last.
    #[case(vec![pod("modest", 0, 1, 100), pod("full", 0, 99, 100)], "full modest")]
    // The system's own never go.
    #[case(vec![pod("critical", 2_000_000_000, 90, 0), pod("user", 1_000_000_000, 1, 0)], "user")]
    fn memory_ranks(#[case] pods: Vec<PodUsage>, #[case] expected: &str) {
        assert_eq!(order(pods, Signal::MemoryAvailable), expected);
    }

    #[test]
    fn other_signals_rank_by_what_they_are_about() {
        let pods = || vec![pod("many", 5, 50, 0), pod("few", 5, 2, 0), pod("lowly", 1, 1, 0)];
        assert_eq!(order(pods(), Signal::PidAvailable), "lowly many few");
        assert_eq!(order(pods(), Signal::NodefsAvailable), "lowly many few");
    }

    #[test]
    fn the_message_is_the_kubelets() {
        let threshold = Threshold {
            signal: Signal::MemoryAvailable,
            value: Amount::Quantity(100 << 20),
            grace: Duration::ZERO,
            min_reclaim: None,
        };
        let seen = Observation { signal: Signal::MemoryAvailable, available: 50 << 10, capacity: 1 << 30 };
        assert_eq!(
            message(&threshold, &seen, &pod("p", 0, 5 << 20, 0)),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Ki. \
             Container app was using 5Mi, request is 0, has larger consumption of memory. "
        );
    }
}
