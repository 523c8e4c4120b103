//! Which events are told, and how many as one: as client-go's EventCorrelator has it (tools/record/events_cache.go). Pure.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use tokio::time::Instant;

/// Of one object, in one tone.
const OF_AN_OBJECT: Rate = Rate { burst: 25, refill: Duration::from_secs(300) };
/// So many that differ in their messages alone are told one by one; the others are one.
const SIMILAR: usize = 10;
/// Without a similar one for so long, they are no longer similar.
const WITHIN: Duration = Duration::from_secs(600);

/// Remembers what it was asked about.
#[derive(Debug, Default)]
pub(super) struct Correlator {
    similar: HashMap<String, Similar>,
    budgets: HashMap<String, Budget>,
}

/// Events that differ in their messages alone.
#[derive(Debug)]
struct Similar {
    /// Messages of those that are told one by one.
    messages: BTreeSet<String>,
    /// What the others have become.
    combined: Option<Event>,
    last: Instant,
}

impl Correlator {
    /// The event that is to be told; none: too many of that object were.
    pub(super) fn correlate(&mut self, event: Event, now: Instant) -> Option<Event> {
        let event = self.combine(event, now);
        self.budgets.retain(|_, budget| !budget.is_full(now));
        let budget = self.budgets.entry(tone(&event)).or_insert_with(|| Budget::full(OF_AN_OBJECT, now));
        budget.take(now).then_some(event)
    }

    fn combine(&mut self, event: Event, now: Instant) -> Event {
        self.similar.retain(|_, similar| now.saturating_duration_since(similar.last) <= WITHIN);
        let fresh = || Similar { messages: BTreeSet::new(), combined: None, last: now };
        let similar = self.similar.entry(kind(&event)).or_insert_with(fresh);
        similar.last = now;
        let message = event.message.clone().unwrap_or_default();
        if similar.messages.contains(&message) {
            return event;
        }
        if similar.messages.len() + 1 < SIMILAR {
            similar.messages.insert(message);
            return event;
        }
        let combined = match similar.combined.take() {
            Some(before) => Event {
                count: before.count.map(|count| count.saturating_add(1)),
                last_timestamp: event.last_timestamp,
                message: Some(combined_message(&message)),
                ..before
            },
            None => first_of_combined(event, &message),
        };
        similar.combined.insert(combined).clone()
    }
}

/// Under a name that no other event has.
fn first_of_combined(event: Event, message: &str) -> Event {
    let mut metadata = event.metadata;
    metadata.name = metadata.name.map(|name| format!("{name}.similar"));
    let first = event.last_timestamp.clone();
    metadata.creation_timestamp.clone_from(&first);
    Event { metadata, count: Some(1), first_timestamp: first, message: Some(combined_message(message)), ..event }
}

fn combined_message(message: &str) -> String {
    format!("(combined from similar events): {message}")
}

/// What events that differ in their messages alone have in common.
fn kind(event: &Event) -> String {
    let reporting = (&event.reason, &event.reporting_component, &event.reporting_instance);
    format!("{} {reporting:?}", tone(event))
}

/// Who says something of what, and how loud.
fn tone(event: &Event) -> String {
    let source = event.source.as_ref().map(|EventSource { component, host }| (component, host));
    let ObjectReference { kind, namespace, name, uid, api_version, .. } = &event.involved_object;
    format!("{source:?} {:?} {:?}", (kind, namespace, name, uid, api_version), event.type_)
}

/// How many at once, and then one in how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rate {
    pub burst: u32,
    pub refill: Duration,
}

/// Events that may still be told.
#[derive(Debug)]
pub(super) struct Budget {
    rate: Rate,
    left: f64,
    at: Instant,
}

impl Budget {
    pub(super) fn full(rate: Rate, now: Instant) -> Self {
        Self { rate, left: rate.burst.into(), at: now }
    }

    fn now(&self, now: Instant) -> f64 {
        let refilled = now.saturating_duration_since(self.at).as_secs_f64() / self.rate.refill.as_secs_f64();
        (self.left + refilled).min(self.rate.burst.into())
    }

    fn is_full(&self, now: Instant) -> bool {
        self.now(now) >= f64::from(self.rate.burst)
    }

    /// Whether there was one left.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        self.left = self.now(now);
        self.at = now;
        let taken = self.left >= 1.0;
        if taken {
            self.left -= 1.0;
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    use rstest::rstest;

    use super::*;

    fn event(object: &str, reason: &str, message: &str) -> Event {
        Event {
            metadata: ObjectMeta { name: Some(format!("{object}.{message}")), ..ObjectMeta::default() },
            involved_object: ObjectReference { uid: Some(object.into()), ..ObjectReference::default() },
            reason: Some(reason.into()),
            message: Some(message.into()),
            count: Some(1),
            ..Event::default()
        }
    }

    /// What is told of events `(seconds, object, reason, message)`: `message count`.
    fn told(events: &[(u64, &str, &str, &str)]) -> Vec<String> {
        let (start, mut correlator) = (Instant::now(), Correlator::default());
        let tell = |(at, object, reason, message): &(u64, &str, &str, &str)| {
            let event = correlator.correlate(event(object, reason, message), start + Duration::from_secs(*at))?;
            Some(format!("{} {}", event.message.unwrap(), event.count.unwrap()))
        };
        events.iter().filter_map(tell).collect()
    }

    const NINE: [(u64, &str, &str, &str); 9] = [
        (0, "a", "R", "1"),
        (0, "a", "R", "2"),
        (0, "a", "R", "3"),
        (0, "a", "R", "4"),
        (0, "a", "R", "5"),
        (0, "a", "R", "6"),
        (0, "a", "R", "7"),
        (0, "a", "R", "8"),
        (0, "a", "R", "9"),
    ];

    #[rstest]
    #[case::the_tenth_and_its_followers_are_one(&[(1, "a", "R", "10"), (2, "a", "R", "11"), (3, "a", "R", "12")],
        &["(combined from similar events): 10 1", "(combined from similar events): 11 2", "(combined from similar events): 12 3"])]
    #[case::what_was_told_by_itself_still_is(&[(1, "a", "R", "10"), (2, "a", "R", "1")], &["(combined from similar events): 10 1", "1 1"])]
    #[case::of_another_object(&[(1, "b", "R", "10")], &["10 1"])]
    #[case::for_another_reason(&[(1, "a", "Q", "10")], &["10 1"])]
    #[case::ten_minutes_after_the_last(&[(600, "a", "R", "10")], &["(combined from similar events): 10 1"])]
    #[case::later(&[(601, "a", "R", "10")], &["10 1"])]
    #[case::later_again(&[(1, "a", "R", "10"), (601, "a", "R", "11"), (1202, "a", "R", "12")],
        &["(combined from similar events): 10 1", "(combined from similar events): 11 2", "12 1"])]
    fn similar_events_become_one(#[case] after: &[(u64, &str, &str, &str)], #[case] expected: &[&str]) {
        let told = told(&[&NINE[..], after].concat());
        assert_eq!(told[..9], ["1 1", "2 1", "3 1", "4 1", "5 1", "6 1", "7 1", "8 1", "9 1"]);
        assert_eq!(told[9..], *expected);
    }

    #[test]
    fn what_similar_events_become_has_one_name_of_its_own() {
        let (now, mut correlator) = (Instant::now(), Correlator::default());
        let mut name = |message: &str| correlator.correlate(event("a", "R", message), now).unwrap().metadata.name.unwrap();
        let names: Vec<String> = (1..=12).map(|n| name(&n.to_string())).collect();
        assert_eq!((names[8].as_str(), names[9].as_str(), names[11].as_str()), ("a.9", "a.10.similar", "a.10.similar"));
    }

    #[test]
    fn nothing_is_remembered_of_what_is_long_ago() {
        let (now, mut correlator) = (Instant::now(), Correlator::default());
        for object in 0..100 {
            let _ = correlator.correlate(event(&object.to_string(), "R", "m"), now);
        }
        let _ = correlator.correlate(event("b", "R", "m"), now + WITHIN * 2);
        assert_eq!((correlator.similar.len(), correlator.budgets.len()), (1, 1));
    }

    #[test]
    fn a_burst_and_then_one_in_five_minutes() {
        let start = Instant::now();
        let mut budget = Budget::full(OF_AN_OBJECT, start);
        let refill = OF_AN_OBJECT.refill;
        assert_eq!((0..30).filter(|_| budget.take(start)).count(), 25);
        assert!(!budget.take(start + refill / 2));
        assert!(budget.take(start + refill));
        assert!(!budget.take(start + refill));
        assert!(budget.is_full(start + refill * 30));
    }
}
