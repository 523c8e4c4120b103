//! What `explain` tells: each step of a pod's start with its time, and what the pod waits for now.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::node::{ExplainedStep, Explanation};

/// Steps that are remembered; a pod that restarts for days must not grow the agent.
const LIMIT: usize = 256;

/// A worker writes, the API reads. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Trace(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    origin: Instant,
    explanation: Explanation,
}

impl Trace {
    /// Counts from now.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Inner { origin: Instant::now(), explanation: Explanation::default() })))
    }

    /// Forgets all: the pod is made anew.
    pub fn restart(&self) {
        self.with(|inner| *inner = Inner { origin: Instant::now(), explanation: Explanation::default() });
    }

    /// A step that began at `begun` and ends now.
    pub fn step(&self, name: &str, container: Option<&str>, begun: Instant) {
        self.steps(container, begun, [(name.to_owned(), begun.elapsed())]);
    }

    /// Steps that followed each other from `begun` on.
    pub fn steps(&self, container: Option<&str>, begun: Instant, steps: impl IntoIterator<Item = (String, Duration)>) {
        self.with(|inner| {
            let mut at = begun.saturating_duration_since(inner.origin);
            for (name, took) in steps {
                if inner.explanation.steps.len() < LIMIT {
                    inner.explanation.steps.push(ExplainedStep {
                        name,
                        container: container.map(str::to_owned),
                        started: micros(at),
                        micros: micros(took),
                    });
                }
                at += took;
            }
        });
    }

    /// The same, as the holder's protocol has them.
    pub fn protocol_steps(&self, container: Option<&str>, begun: Instant, steps: &[podholder::protocol::Step]) {
        self.steps(container, begun, steps.iter().map(|s| (s.name.clone(), Duration::from_micros(s.micros))));
    }

    /// What the pod waits for now.
    pub fn waits_for(&self, what: Option<String>) {
        self.with(|inner| inner.explanation.waiting_for = what);
    }

    /// All of it, in the order of the steps' beginnings.
    pub fn explanation(&self) -> Explanation {
        let mut explanation = self.with(|inner| inner.explanation.clone());
        explanation.steps.sort_by_key(|s| s.started);
        explanation
    }

    fn with<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Default for Trace {
    fn default() -> Self {
        Self::new()
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
