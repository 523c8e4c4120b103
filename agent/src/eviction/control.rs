//! What follows from what is seen, over time: conditions that stay for a while, grace periods, one eviction a step. Pure.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::{Amount, Condition, Observation, Settings, Signal, Threshold};

/// The memory between steps.
#[derive(Debug)]
pub struct Control {
    settings: Settings,
    /// Thresholds that are not over: since when.
    met: HashMap<usize, Instant>,
    /// When each condition's cause was last seen.
    seen: HashMap<Condition, Instant>,
}

/// What is to be done now.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Step {
    /// What the node suffers from.
    pub conditions: Vec<Condition>,
    /// A pod must go, for this reason: the gravest threshold whose grace is over, with what is seen.
    pub evict: Option<(Threshold, Observation)>,
}

impl Step {
    /// Whether space can be had without ending a pod: unused images and ended containers first.
    pub fn can_reclaim(&self) -> bool {
        self.evict.as_ref().is_some_and(|(threshold, _)| threshold.signal.condition() == Condition::Disk)
    }
}

impl Control {
    /// Nothing is seen yet. Thresholds of 0 % and 100 % count for nothing.
    pub fn new(mut settings: Settings) -> Self {
        settings.thresholds.retain(|t| !t.value.is_off());
        // Memory first, and of one signal the hard threshold before the soft.
        settings.thresholds.sort_by_key(|t| (t.signal, t.grace));
        Self { settings, met: HashMap::new(), seen: HashMap::new() }
    }

    /// How often to look; never, if there is nothing to look for.
    pub fn period(&self) -> Option<Duration> {
        (!self.settings.thresholds.is_empty()).then_some(self.settings.period)
    }

    /// The most that a pod evicted by this threshold gets to end in.
    pub fn grace(&self, threshold: &Threshold) -> Duration {
        // The kubelet's least: also a pod that must go at once may say good-bye.
        if threshold.grace.is_zero() { Duration::from_secs(1) } else { self.settings.max_grace.max(Duration::from_secs(1)) }
    }

    /// What follows from this.
    pub fn step(&mut self, observations: &[Observation], now: Instant) -> Step {
        let seen_of = |signal: Signal| observations.iter().find(|o| o.signal == signal);
        let mut evict = None;
        for (index, threshold) in self.settings.thresholds.iter().enumerate() {
            // A signal that can't be read says nothing new.
            let Some(seen) = seen_of(threshold.signal) else { continue };
            if !is_met(threshold, seen, self.met.contains_key(&index)) {
                self.met.remove(&index);
                continue;
            }
            let since = *self.met.entry(index).or_insert(now);
            self.seen.insert(threshold.signal.condition(), now);
            if evict.is_none() && now.duration_since(since) >= threshold.grace {
                evict = Some((*threshold, *seen));
            }
        }
        let transition = self.settings.transition;
        self.seen.retain(|_, last| now.duration_since(*last) < transition || now == *last);
        let conditions = Condition::ALL.into_iter().filter(|c| self.seen.contains_key(c)).collect();
        Step { conditions, evict }
    }
}

/// What was below must rise by the least reclaim before it counts as over.
fn is_met(threshold: &Threshold, seen: &Observation, before: bool) -> bool {
    let reclaim = threshold.min_reclaim.filter(|_| before).map_or(0, |amount: Amount| amount.of(seen.capacity));
    seen.available < threshold.value.of(seen.capacity).saturating_add(reclaim)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn threshold(signal: Signal, value: Amount) -> Threshold {
        Threshold { signal, value, grace: Duration::ZERO, min_reclaim: None }
    }

    fn control(thresholds: Vec<Threshold>, transition: u32) -> Control {
        Control::new(Settings { thresholds, transition: SECOND * transition, ..Settings::default() })
    }

    fn seen(signal: Signal, available: u64) -> [Observation; 1] {
        [Observation { signal, available, capacity: 1000 }]
    }

    const MEMORY: Signal = Signal::MemoryAvailable;

    #[test]
    fn a_hard_threshold_evicts_at_once_and_its_condition_stays_a_while() {
        let mut control = control(vec![threshold(MEMORY, Amount::Percent(10.0))], 5);
        let start = Instant::now();
        assert_eq!(control.step(&seen(MEMORY, 100), start), Step::default(), "at the threshold is not below");
        let step = control.step(&seen(MEMORY, 99), start + SECOND);
        assert_eq!(step.conditions, [Condition::Memory]);
        assert_eq!(step.evict.unwrap().0.signal, MEMORY);
        let step = control.step(&seen(MEMORY, 500), start + SECOND * 3);
        assert_eq!((step.conditions.len(), step.evict), (1, None));
        assert_eq!(control.step(&seen(MEMORY, 500), start + SECOND * 6), Step::default());
    }

    #[test]
    fn a_soft_threshold_waits_and_begins_anew_after_a_recovery() {
        let soft = Threshold { grace: SECOND * 10, ..threshold(MEMORY, Amount::Quantity(100)) };
        let mut control = control(vec![soft], 0);
        let start = Instant::now();
        let evicts = |control: &mut Control, available, after| {
            control.step(&seen(MEMORY, available), start + SECOND * after).evict.is_some()
        };
        assert!(!evicts(&mut control, 50, 0));
        assert!(!evicts(&mut control, 50, 9));
        assert!(!evicts(&mut control, 500, 9));
        assert!(!evicts(&mut control, 50, 10));
        assert!(evicts(&mut control, 50, 20));
    }

    #[test]
    fn what_was_below_must_rise_by_the_least_reclaim() {
        let with = Threshold { min_reclaim: Some(Amount::Quantity(50)), ..threshold(MEMORY, Amount::Quantity(100)) };
        let mut control = control(vec![with], 0);
        let now = Instant::now();
        let mut evicts = |available| control.step(&seen(MEMORY, available), now).evict.is_some();
        assert_eq!([120, 90, 120, 149, 150, 120].map(&mut evicts), [false, true, true, true, false, false]);
    }

    #[test]
    fn memory_comes_first_and_disk_may_be_reclaimed() {
        let both = vec![threshold(Signal::NodefsAvailable, Amount::Quantity(10)), threshold(MEMORY, Amount::Quantity(10))];
        let mut control = control(both, 0);
        let low = [seen(Signal::NodefsAvailable, 1)[0], seen(MEMORY, 1)[0]];
        let step = control.step(&low, Instant::now());
        assert_eq!(step.conditions, [Condition::Memory, Condition::Disk]);
        assert!(!step.can_reclaim());
        assert!(control.step(&low[..1], Instant::now()).can_reclaim());
    }

    #[test]
    fn a_hundred_percent_is_off() {
        let mut control = control(vec![threshold(MEMORY, Amount::Percent(100.0))], 0);
        assert_eq!(control.step(&seen(MEMORY, 0), Instant::now()), Step::default());
        assert_eq!(control.period(), None);
    }
}
