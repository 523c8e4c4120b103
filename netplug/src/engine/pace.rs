//! When to act on what somebody changes: soon, what changes together at once, and ever more seldom when each act is followed by the next
//! change (a second agent, a network manager), lest it become a race.

use std::time::{Duration, Instant};

use rustix::event::Timespec;

const LONGEST: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Pace {
    /// From the first change to the act.
    shortest: Duration,
    /// A change so long after an act isn't its echo; beside four times the patience.
    calm: Duration,
    patience: Duration,
    due: Option<Instant>,
    acted: Option<Instant>,
}

impl Pace {
    pub(super) fn new(shortest: Duration, calm: Duration) -> Pace {
        Pace { shortest, calm, patience: shortest, due: None, acted: None }
    }

    /// Something changed.
    pub(super) fn plan(&mut self) {
        if self.due.is_some() {
            return;
        }
        let again = self.acted.is_some_and(|acted| acted.elapsed() < self.patience * 4 + self.calm);
        self.patience = if again { (self.patience * 2).min(LONGEST) } else { self.shortest };
        self.due = Some(Instant::now() + self.patience);
    }

    /// Whether it is time; said once.
    pub(super) fn is_due(&mut self) -> bool {
        self.due.take_if(|due| *due <= Instant::now()).is_some()
    }

    pub(super) fn act(&mut self) {
        self.acted = Some(Instant::now());
    }

    /// When to act, if something changed.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }
}

/// How long that is, as poll(2) takes it.
pub(super) fn until(due: Instant) -> Timespec {
    let left = due.saturating_duration_since(Instant::now());
    Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) }
}
