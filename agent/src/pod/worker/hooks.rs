//! A worker's part in its containers' hooks: postStart holds a container back until it has returned, preStop comes before the signal.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Container, Level, Outcome, Phase, Worker};
use crate::pod::hook;
use crate::pod::observed::Unhealthy;
use crate::pod::plan::MINIMUM_GRACE;

/// Hooks that run, by container: dropped, they are waited for no more.
#[derive(Debug, Default)]
pub(super) struct Hooks(BTreeMap<String, DropGuard>);

impl Hooks {
    /// The container has ended.
    pub(super) fn stop(&mut self, name: &str) {
        self.0.remove(name);
    }

    fn begin(&mut self, name: &str) -> CancellationToken {
        let token = CancellationToken::new();
        self.0.insert(name.to_owned(), token.clone().drop_guard());
        token
    }
}

/// Which hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    PostStart,
    PreStop,
}

impl Worker {
    /// A container runs: its postStart hook does now, or it is probed at once.
    pub(super) fn post_start(&mut self, name: &str) {
        match self.running(name).map(|attempt| attempt.note.health.hooked) {
            Some(false) => self.hook(name, Moment::PostStart, Duration::MAX),
            Some(true) => self.probe(name),
            None => {}
        }
    }

    /// Runs one of a container's hooks for as long as the container does.
    pub(super) fn hook(&mut self, name: &str, moment: Moment, limit: Duration) {
        let Some(subject) = self.subject(name) else { return };
        let handler = match moment {
            Moment::PostStart => hook::post_start(&subject.container),
            Moment::PreStop => hook::pre_stop(&subject.container),
        };
        let handler = handler.cloned().unwrap_or_default();
        let (name, id, gone) = (name.to_owned(), subject.id.clone(), self.hooks.begin(name));
        self.outcomes.push(Box::pin(async move {
            let result = tokio::select! {
                result = hook::run(&subject, &handler, limit) => result,
                () = gone.cancelled() => Err("the container ended before it".into()),
            };
            Outcome::Hooked { name, id, moment, result }
        }));
    }

    /// A hook has returned.
    pub(super) fn hooked(&mut self, name: &str, id: &str, moment: Moment, result: Result<(), String>) {
        let Some(container) = self.observed.containers.get_mut(name) else { return };
        let Some(attempt) = container.last.as_mut().filter(|a| a.id == id && a.finish.is_none()) else { return };
        match (moment, result) {
            (Moment::PostStart, Ok(())) => {
                attempt.note.health.hooked = true;
                attempt.note.told = Some(Timestamp::now());
                self.remember(name);
                self.probe(name);
            }
            (Moment::PostStart, Err(why)) => {
                if container.stopping.is_none() {
                    container.unhealthy = Some(Unhealthy::PostStart);
                    self.say(Some(name), Level::Warning, "FailedPostStartHook", &format!("PostStartHook failed: {why}"));
                }
            }
            (Moment::PreStop, result) => {
                Self::give_the_rest(container);
                if let Err(why) = result {
                    self.say(Some(name), Level::Warning, "FailedPreStopHook", &format!("PreStopHook failed: {why}"));
                }
            }
        }
    }

    /// What the hook left of the grace period is for the signal; at least two seconds, as the kubelet has it.
    fn give_the_rest(container: &mut Container) {
        if let Some(stopping) = container.stopping.as_mut().filter(|s| s.phase == Phase::Hook) {
            stopping.phase = Phase::Due;
            let end = stopping.kill_at.checked_sub(MINIMUM_GRACE).unwrap_or(stopping.kill_at);
            stopping.kill_at = end.max(Timestamp::now().checked_add(MINIMUM_GRACE).unwrap_or(Timestamp::MAX));
        }
    }

    /// It is a container's turn to be told to end: its preStop hook has returned.
    pub(super) fn signal(&mut self, name: &str) {
        let Some(attempt) = self.running(name).cloned() else { return };
        let Some(sandbox) = self.sandbox.clone() else { return };
        if let Some(stopping) = self.observed.containers.get_mut(name).and_then(|c| c.stopping.as_mut()) {
            stopping.phase = Phase::Told;
            stopping.kill_at = stopping.kill_at.max(Timestamp::now().checked_add(MINIMUM_GRACE).unwrap_or(Timestamp::MAX));
        }
        self.tell_to_end(name.to_owned(), sandbox, attempt);
    }
}
