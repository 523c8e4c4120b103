//! Who must go when the machine runs out of memory, disk or process IDs: the kubelet's signals, thresholds, ranking and sentences.
//! Pure but for `observe`; whoever uses it does the I/O.
//! <https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/>

mod control;
mod observe;
mod rank;

use std::str::FromStr;
use std::time::Duration;

use crate::model::quantity::Quantity;

pub use control::{Control, Step};
pub use observe::observe;
pub use rank::{ContainerUsage, PodUsage, bytes, message, rank};

/// What is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Signal {
    /// Memory that is free, or page cache that is easily dropped.
    MemoryAvailable,
    /// Bytes of the disk with volumes and logs.
    NodefsAvailable,
    /// Its inodes.
    NodefsInodesFree,
    /// Bytes of the disk with images and containers' layers.
    ImagefsAvailable,
    /// Its inodes.
    ImagefsInodesFree,
    /// Process IDs.
    PidAvailable,
}

impl Signal {
    /// All, in the order in which they are dealt with: memory first.
    pub const ALL: [Self; 6] = [
        Self::MemoryAvailable,
        Self::NodefsAvailable,
        Self::NodefsInodesFree,
        Self::ImagefsAvailable,
        Self::ImagefsInodesFree,
        Self::PidAvailable,
    ];

    /// As the configuration writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory.available",
            Self::NodefsAvailable => "nodefs.available",
            Self::NodefsInodesFree => "nodefs.inodesFree",
            Self::ImagefsAvailable => "imagefs.available",
            Self::ImagefsInodesFree => "imagefs.inodesFree",
            Self::PidAvailable => "pid.available",
        }
    }

    /// The signal of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|signal| signal.name() == name)
    }

    /// What is scarce, as messages have it.
    pub fn resource(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory",
            Self::NodefsAvailable | Self::ImagefsAvailable => "ephemeral-storage",
            Self::NodefsInodesFree | Self::ImagefsInodesFree => "inodes",
            Self::PidAvailable => "pids",
        }
    }

    /// The node condition that it makes.
    pub fn condition(self) -> Condition {
        match self {
            Self::MemoryAvailable => Condition::Memory,
            Self::PidAvailable => Condition::Pid,
            _ => Condition::Disk,
        }
    }
}

/// What the node suffers from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Condition {
    /// `MemoryPressure`.
    Memory,
    /// `DiskPressure`.
    Disk,
    /// `PIDPressure`.
    Pid,
}

impl Condition {
    /// All.
    pub const ALL: [Self; 3] = [Self::Memory, Self::Disk, Self::Pid];

    /// Type of the node's condition.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "MemoryPressure",
            Self::Disk => "DiskPressure",
            Self::Pid => "PIDPressure",
        }
    }

    /// The kubelet's reason and message, as it holds or not.
    pub fn words(self, holds: bool) -> (&'static str, &'static str) {
        match (self, holds) {
            (Self::Memory, true) => ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
            (Self::Memory, false) => ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
            (Self::Disk, true) => ("KubeletHasDiskPressure", "kubelet has disk pressure"),
            (Self::Disk, false) => ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            (Self::Pid, true) => ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
            (Self::Pid, false) => ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        }
    }
}

/// An amount of a signal.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Amount {
    /// Bytes, inodes or process IDs.
    Quantity(u64),
    /// Of the capacity: 0 to 100.
    Percent(f64),
}

impl Amount {
    /// In the signal's own unit.
    pub fn of(self, capacity: u64) -> u64 {
        match self {
            Self::Quantity(amount) => amount,
            Self::Percent(percent) => (capacity as f64 * percent / 100.0) as u64,
        }
    }

    /// 0 % and 100 % switch a threshold off.
    fn is_off(self) -> bool {
        matches!(self, Self::Percent(percent) if percent <= 0.0 || percent >= 100.0)
    }
}

impl FromStr for Amount {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(percent) = text.strip_suffix('%') {
            let percent: f64 = percent.parse().map_err(|_| "must be a percentage such as 5%")?;
            let fine = (0.0..=100.0).contains(&percent);
            return if fine { Ok(Self::Percent(percent)) } else { Err("must be between 0% and 100%") };
        }
        let quantity: Quantity = text.parse().map_err(|_| "must be a quantity such as 100Mi, or a percentage such as 5%")?;
        u64::try_from(quantity.value()).map(Self::Quantity).map_err(|_| "must not be negative")
    }
}

/// Below `value`, something must happen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Threshold {
    /// What is watched.
    pub signal: Signal,
    /// What must at least be there.
    pub value: Amount,
    /// How long it may be below; zero: a hard threshold.
    pub grace: Duration,
    /// So much more must be free again before it counts as over.
    pub min_reclaim: Option<Amount>,
}

/// When pods are evicted.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Hard and soft ones.
    pub thresholds: Vec<Threshold>,
    /// How long a condition stays after its cause went.
    pub transition: Duration,
    /// Grace of pods that a soft threshold evicts, at most.
    pub max_grace: Duration,
    /// Between two looks.
    pub period: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            thresholds: default_thresholds(),
            transition: Duration::from_secs(300),
            max_grace: Duration::ZERO,
            period: Duration::from_secs(10),
        }
    }
}

/// The kubelet's, all hard; but of disks 5 %, not 10 and 15: a machine that is no cluster's has other things on its disk, and one
/// that is seven eighths full must still run pods.
pub fn default_thresholds() -> Vec<Threshold> {
    let hard = |signal, value| Threshold { signal, value, grace: Duration::ZERO, min_reclaim: None };
    vec![
        hard(Signal::MemoryAvailable, Amount::Quantity(100 << 20)),
        hard(Signal::NodefsAvailable, Amount::Percent(5.0)),
        hard(Signal::NodefsInodesFree, Amount::Percent(5.0)),
        hard(Signal::ImagefsAvailable, Amount::Percent(5.0)),
        hard(Signal::ImagefsInodesFree, Amount::Percent(5.0)),
    ]
}

/// How a signal stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observation {
    /// Which.
    pub signal: Signal,
    /// What is there.
    pub available: u64,
    /// What there is at all.
    pub capacity: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("100Mi", Ok(Amount::Quantity(100 << 20)))]
    #[case("10%", Ok(Amount::Percent(10.0)))]
    #[case("0%", Ok(Amount::Percent(0.0)))]
    #[case("5.5%", Ok(Amount::Percent(5.5)))]
    #[case("101%", Err("must be between 0% and 100%"))]
    #[case("x%", Err("must be a percentage such as 5%"))]
    #[case("-1", Err("must not be negative"))]
    #[case("", Err("must be a quantity such as 100Mi, or a percentage such as 5%"))]
    fn amounts(#[case] text: &str, #[case] expected: Result<Amount, &str>) {
        assert_eq!(text.parse::<Amount>(), expected);
    }
}
