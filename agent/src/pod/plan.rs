//! What to do next for a pod: a pure function of its spec, of what is observed and of the time. Everything that a worker does was
//! decided here, so a crash between any two actions is repaired by planning again.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as k8s;

use super::backoff::Backoff;
use super::hook;
use super::observed::{Attempt, Container, Finish, Image, Observed, Phase, Resize, Sandbox, Stopping, Unhealthy};
use super::resize::{self, Amounts};
use super::restart::{self, Fate, fate, has_ended};
use crate::model::ValidPod;
use crate::runtime::resources::is_sidecar;

/// One step, idempotent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make the holder, its namespaces, the address.
    CreateSandbox,
    /// Take all of it down: nothing runs in it any more.
    RemoveSandbox,
    /// Get a container's image.
    Pull(String),
    /// Run a container.
    Start {
        /// Which.
        name: String,
        /// What its next attempt would have to wait.
        delay: Duration,
    },
    /// Tell a container to end.
    Stop {
        /// Which.
        name: String,
        /// From now until SIGKILL.
        grace: Duration,
        /// For the event.
        why: Why,
    },
    /// Send a container its signal, after its preStop hook.
    Signal(String),
    /// SIGKILL to all of a container.
    Kill(String),
    /// Give a running container what the spec says now.
    Resize(String),
    /// Nothing runs any more: all containers are to begin anew in the same sandbox.
    Reset,
}

/// Why a container is told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The pod ends.
    PodEnds,
    /// Its image or amounts were edited.
    Edited,
    /// A probe or a hook of its own failed.
    Unhealthy(Unhealthy),
    /// All of the pod's containers begin anew.
    Reset,
}

/// The next actions, all at once, and when to look again if nothing happens.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// To be done now, none waits for another.
    pub actions: Vec<Action>,
    /// The next moment at which time itself changes the plan.
    pub wake: Option<Timestamp>,
    /// The pod has ended by itself: nothing will run again.
    pub complete: bool,
    /// The pod was to end and nothing is left of it.
    pub over: bool,
    /// What is waited for, in words.
    pub waiting_for: Option<String>,
}

impl Plan {
    fn wake_at(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |w| w.min(at)));
    }
    fn wait(&mut self, what: impl FnOnce() -> String) {
        if self.waiting_for.is_none() {
            self.waiting_for = Some(what());
        }
    }
}

/// A container gets at least this long after its preStop hook, or the containers before it, used up the grace period, as the kubelet
/// has it.
pub const MINIMUM_GRACE: Duration = Duration::from_secs(2);

/// See the module's page.
pub fn plan(pod: &ValidPod, observed: &Observed, backoff: &Backoff, now: Timestamp) -> Plan {
    let mut planner = Planner { pod, observed, backoff, now, plan: Plan::default(), held: false };
    if observed.ending.is_some() {
        planner.end();
    } else {
        planner.run();
    }
    planner.plan
}

/// Whether every regular container has ended and none is to run again: the pod's phase is Succeeded or Failed.
pub fn is_complete(pod: &ValidPod, observed: &Observed) -> bool {
    let stays = |c: &k8s::Container| observed.containers.get(&c.name).is_some_and(|o| stays_ended(pod, observed, c, o));
    observed.failure.is_some()
        || (!restart::is_asked_to_reset(pod, observed) && (init_failed(pod, observed) || pod.spec().containers.iter().all(stays)))
}

/// Whether an init container failed for good.
pub fn init_failed(pod: &ValidPod, observed: &Observed) -> bool {
    pod.spec().init_containers.iter().flatten().filter(|c| !is_sidecar(c)).any(|c| {
        let Some(seen) = observed.containers.get(&c.name) else { return false };
        let failed = seen.last.as_ref().and_then(Attempt::finished).is_some_and(|f| f.code != 0);
        failed && stays_ended(pod, observed, c, seen)
    })
}

/// It ended, and nothing has it run again: not its policy, nor that all begin anew.
fn stays_ended(pod: &ValidPod, observed: &Observed, container: &k8s::Container, seen: &Container) -> bool {
    has_ended(pod, container, seen) && !seen.last.as_ref().is_some_and(|attempt| observed.is_before_reset(attempt))
}

/// The gates that keep the pod from starting, in words. Here nobody but the manifest's author can remove them.
/// <https://kubernetes.io/docs/concepts/scheduling-eviction/pod-scheduling-readiness/>
pub fn scheduling_gates(pod: &ValidPod) -> Option<String> {
    let gates: Vec<&str> = pod.spec().scheduling_gates.iter().flatten().map(|gate| gate.name.as_str()).collect();
    (!gates.is_empty()).then(|| gates.join(", "))
}

struct Planner<'a> {
    pod: &'a ValidPod,
    observed: &'a Observed,
    backoff: &'a Backoff,
    now: Timestamp,
    plan: Plan,
    /// A postStart hook runs: no container after its own begins.
    held: bool,
}

impl Planner<'_> {
    fn observed_of(&self, name: &str) -> Option<&Container> {
        self.observed.containers.get(name)
    }

    // The pod is to run.
    fn run(&mut self) {
        if is_complete(self.pod, self.observed) {
            self.complete();
            return;
        }
        if let Some(gates) = scheduling_gates(self.pod) {
            return self.plan.wait(|| format!("its scheduling gates to be removed: {gates}"));
        }
        self.pull_ahead();
        let generation = match &self.observed.sandbox {
            Sandbox::Absent => {
                self.plan.actions.push(Action::CreateSandbox);
                return;
            }
            Sandbox::Creating => return self.plan.wait(|| "the sandbox (namespaces, network)".into()),
            Sandbox::Removing => return self.plan.wait(|| "the old sandbox to be gone".into()),
            Sandbox::Failed { message, retry_at, .. } => {
                if *retry_at <= self.now {
                    self.plan.actions.push(Action::CreateSandbox);
                } else {
                    self.plan.wait(|| format!("the next try of the sandbox: {message}"));
                    self.plan.wake_at(*retry_at);
                }
                return;
            }
            Sandbox::Ready { generation, .. } => *generation,
        };
        self.keep_deadlines();
        if let Some(cause) = restart::cause_of_reset(self.pod, self.observed, generation) {
            return self.reset(cause);
        }
        self.start_ephemeral();
        if self.initialise(generation) {
            let pod = self.pod;
            for container in &pod.spec().containers {
                self.keep_running(container, generation);
                self.held |= self.holds_up(container);
            }
        }
    }

    /// Ends all containers, without their preStop hooks, so that they can begin anew after the back-off of the one that asked for it.
    fn reset(&mut self, cause: &Attempt) {
        let mut ended = true;
        for (name, container) in &self.observed.containers {
            if container.starting || container.running().is_some() {
                ended = false;
                self.plan.wait(|| format!("container {name} to end, since all containers are restarted"));
            }
            if container.running().is_some() && container.stopping.is_none() {
                self.plan.actions.push(Action::Stop { name: name.clone(), grace: self.grace(), why: Why::Reset });
            }
        }
        let Some(finish) = cause.finish.as_ref().filter(|_| ended) else { return };
        let due = finish.at + self.backoff.due(Duration::from_millis(cause.note.delay_ms), between(cause.started_at, finish.at));
        if due <= self.now {
            self.plan.actions.push(Action::Reset);
        } else {
            self.plan.wait(|| "the back-off of the restart of all containers to end".into());
            self.plan.wake_at(due);
        }
    }

    /// Ephemeral containers are started once, whatever the others do, and never again.
    fn start_ephemeral(&mut self) {
        let pod = self.pod;
        for container in pod.ephemeral() {
            let unknown = Container::default();
            let observed = self.observed.containers.get(&container.name).unwrap_or(&unknown);
            match &observed.stopping {
                _ if observed.last.is_none() && !observed.starting => self.start(container, observed, Duration::ZERO),
                Some(stopping) if observed.running().is_some() => self.go_on(&container.name, stopping),
                _ => {}
            }
        }
    }

    /// The next containers begin once this one's postStart hook has returned: they are started one after the other, as the
    /// kubelet starts them.
    fn holds_up(&self, container: &k8s::Container) -> bool {
        let Some(observed) = self.observed_of(&container.name).filter(|_| hook::post_start(container).is_some()) else {
            return false;
        };
        let starts = self.plan.actions.iter().any(|a| matches!(a, Action::Start { name, .. } if *name == container.name));
        let hook_runs = observed.running().is_some_and(|a| !a.note.health.hooked) && observed.unhealthy.is_none();
        observed.starting || starts || (hook_runs && observed.stopping.is_none())
    }

    /// Images are fetched while the sandbox is made and while init containers run.
    fn pull_ahead(&mut self) {
        let pod = self.pod;
        for container in pod.all_containers() {
            let unknown = Container::default();
            let observed = self.observed_of(&container.name).unwrap_or(&unknown);
            // One that is there needs its image again only when it starts again: `start` asks for it then.
            if observed.last.is_none() && observed.image == Image::Unknown {
                self.plan.actions.push(Action::Pull(container.name.clone()));
            }
        }
    }

    /// Init containers in their order. True once the regular ones may run.
    fn initialise(&mut self, generation: u64) -> bool {
        let pod = self.pod;
        // Once a regular container ran in this sandbox, init containers aren't looked at again, but sidecars are kept.
        let initialised = pod
            .spec()
            .containers
            .iter()
            .any(|c| self.observed_of(&c.name).and_then(|o| o.last.as_ref()).is_some_and(|a| a.generation == generation));
        for container in pod.spec().init_containers.iter().flatten() {
            if is_sidecar(container) {
                self.keep_running(container, generation);
                let started = self.observed_of(&container.name).is_some_and(|o| o.started().is_some());
                if !started && !initialised {
                    self.plan.wait(|| format!("sidecar {} to start", container.name));
                    return false;
                }
            } else if !initialised {
                let done = self.observed_of(&container.name).and_then(|o| o.ended_in(generation)).is_some_and(|f| f.code == 0);
                if !done {
                    self.keep_running(container, generation);
                    self.plan.wait(|| format!("init container {} to complete", container.name));
                    return false;
                }
            }
        }
        true
    }

    /// Starts a container when it is due, restarts it when its image was edited.
    fn keep_running(&mut self, container: &k8s::Container, generation: u64) {
        let unknown = Container::default();
        let observed = self.observed.containers.get(&container.name).unwrap_or(&unknown);
        if observed.starting {
            return self.plan.wait(|| format!("container {} to start", container.name));
        }
        let wanted = Amounts::wanted(container, self.pod, self.observed);
        let resize = |a: &Attempt| resize::of(container, Amounts::noted(&a.note), wanted);
        let edited = |a: &Attempt| Some(a.note.image.as_str()) != container.image.as_deref() || resize(a) == resize::How::Restart;
        let runs_again = |finish: &Finish| fate(self.pod, container, observed, finish) != Fate::Stays;
        match &observed.last {
            None => self.start(container, observed, Duration::ZERO),
            Some(attempt) => match &attempt.finish {
                None if observed.unhealthy.is_some() && observed.stopping.is_none() => self.end_unhealthy(container, observed),
                None if edited(attempt) && observed.stopping.is_none() => {
                    self.plan.actions.push(Action::Stop { name: container.name.clone(), grace: self.grace(), why: Why::Edited });
                }
                None if observed.stopping.is_some() => {
                    if let Some(stopping) = &observed.stopping {
                        self.go_on(&container.name, stopping);
                    }
                }
                None if resize(attempt) == resize::How::InPlace => self.resize(container),
                None => {}
                Some(_) if edited(attempt) => self.start(container, observed, Duration::ZERO),
                // All containers begin anew: also those that had done their part.
                Some(finish) if attempt.generation != generation && self.observed.is_before_reset(attempt) => {
                    let ran_well = between(attempt.started_at, finish.at) >= self.backoff.reset_after;
                    let delay = Duration::from_millis(attempt.note.delay_ms);
                    self.start(container, observed, if ran_well { Duration::ZERO } else { self.backoff.after(delay) });
                }
                // A new sandbox: an init container runs again, a regular one as its restart policy says.
                Some(finish) if attempt.generation != generation && runs_again(finish) => {
                    self.start(container, observed, Duration::ZERO);
                }
                Some(_) if attempt.generation != generation && is_init(self.pod, &container.name) => {
                    self.start(container, observed, Duration::ZERO);
                }
                Some(finish) if runs_again(finish) => {
                    let delay = Duration::from_millis(attempt.note.delay_ms);
                    let due = finish.at + self.backoff.due(delay, between(attempt.started_at, finish.at));
                    if due <= self.now {
                        let ran_well = between(attempt.started_at, finish.at) >= self.backoff.reset_after;
                        self.start(container, observed, if ran_well { Duration::ZERO } else { self.backoff.after(delay) });
                    } else {
                        self.plan.wait(|| format!("the back-off of container {} to end", container.name));
                        self.plan.wake_at(due);
                    }
                }
                Some(_) => {}
            },
        }
    }

    /// A container whose probe or hook failed ends, with the probe's own grace period where it has one.
    fn end_unhealthy(&mut self, container: &k8s::Container, observed: &Container) {
        let unhealthy = observed.unhealthy.unwrap_or(Unhealthy::PostStart);
        let probe = match unhealthy {
            Unhealthy::Liveness => container.liveness_probe.as_ref(),
            Unhealthy::Startup => container.startup_probe.as_ref(),
            Unhealthy::PostStart => None,
        };
        let seconds = probe.and_then(|p| p.termination_grace_period_seconds);
        let grace = seconds.map_or_else(|| self.grace(), |s| Duration::from_secs(s.max(0).unsigned_abs()));
        let why = Why::Unhealthy(unhealthy);
        self.plan.actions.push(Action::Stop { name: container.name.clone(), grace, why });
    }

    fn resize(&mut self, container: &k8s::Container) {
        match &self.observed.resize {
            Some(Resize::InProgress) => {}
            Some(Resize::Failed { retry_at, .. }) if *retry_at > self.now => self.plan.wake_at(*retry_at),
            _ => self.plan.actions.push(Action::Resize(container.name.clone())),
        }
    }

    /// `delay`: what the attempt after the one that starts now would have to wait.
    fn start(&mut self, container: &k8s::Container, observed: &Container, delay: Duration) {
        if self.held && observed.last.is_none() {
            return self.plan.wait(|| format!("the postStart hook of a container before {}", container.name));
        }
        if self.observed.unanswered {
            return self.plan.wait(|| "answers about what the pod refers to".into());
        }
        let delay = if observed.last.is_some() && delay.is_zero() { self.backoff.initial } else { delay };
        if let Some(refused) = &observed.refused
            && refused.retry_at > self.now
        {
            self.plan.wait(|| format!("container {}: {}", container.name, refused.message));
            return self.plan.wake_at(refused.retry_at);
        }
        match &observed.image {
            Image::Ready => self.plan.actions.push(Action::Start { name: container.name.clone(), delay }),
            Image::Pulling => self.plan.wait(|| format!("image {}", container.image.as_deref().unwrap_or_default())),
            Image::Failed { retry_at, message, .. } if *retry_at > self.now => {
                self.plan.wait(|| message.clone());
                self.plan.wake_at(*retry_at);
            }
            Image::Unknown | Image::Failed { .. } => {
                let pull = Action::Pull(container.name.clone());
                if !self.plan.actions.contains(&pull) {
                    self.plan.actions.push(pull);
                }
            }
        }
    }

    // The pod has ended by itself.
    fn complete(&mut self) {
        let deadline = self.observed.failure.as_ref().map(|failure| failure.deadline);
        if self.stop_all(deadline) && self.sandbox_down() {
            self.plan.complete = true;
        }
    }

    // The pod was told to end.
    fn end(&mut self) {
        let deadline = self.observed.ending.as_ref().map(|e| e.deadline);
        if self.stop_all(deadline) && self.sandbox_down() {
            if self.observed.remains {
                self.plan.actions.push(Action::RemoveSandbox);
            } else {
                self.plan.over = true;
            }
        }
    }

    /// Ends regular and init containers at once, then sidecars, the last first. True when none runs any more.
    fn stop_all(&mut self, deadline: Option<Timestamp>) -> bool {
        self.keep_deadlines();
        let observed = self.observed;
        if observed.sandbox == Sandbox::Removing {
            return true;
        }
        if let Some((name, _)) = observed.containers.iter().find(|(_, o)| o.starting) {
            // It is known whether it runs in a moment: then it is stopped.
            self.plan.wait(|| format!("container {name} to start, so that it can be stopped"));
            return false;
        }
        let inits = self.pod.spec().init_containers.as_deref().unwrap_or_default();
        let sidecars: Vec<&str> = inits.iter().filter(|c| is_sidecar(c)).map(|c| c.name.as_str()).rev().collect();
        let mut regular_run = false;
        for (name, container) in &observed.containers {
            if container.running().is_some() && !sidecars.contains(&name.as_str()) {
                regular_run = true;
                self.stop(name, container, deadline, Duration::ZERO);
            }
        }
        // preStop hooks don't wait for their container's turn, signals do.
        for name in &sidecars {
            let hooked = inits.iter().any(|c| c.name == *name && hook::pre_stop(c).is_some());
            let waits = |c: &&Container| c.running().is_some() && c.stopping.is_none();
            if let Some(container) = observed.containers.get(*name).filter(waits).filter(|_| hooked) {
                self.stop(name, container, deadline, MINIMUM_GRACE);
            }
        }
        if regular_run {
            return false;
        }
        for name in sidecars {
            if let Some(container) = observed.containers.get(name).filter(|c| c.running().is_some()) {
                self.stop(name, container, deadline, MINIMUM_GRACE);
                return false;
            }
        }
        true
    }

    fn stop(&mut self, name: &str, container: &Container, deadline: Option<Timestamp>, minimum: Duration) {
        self.plan.wait(|| format!("container {name} to end"));
        let left = deadline.map_or_else(|| self.grace(), |d| between(self.now, d).max(minimum));
        match &container.stopping {
            None => {
                let stop = Action::Stop { name: name.to_owned(), grace: left, why: Why::PodEnds };
                if !self.plan.actions.contains(&stop) {
                    self.plan.actions.push(stop);
                }
            }
            Some(stopping) => self.go_on(name, stopping),
        }
    }

    /// A container whose preStop hook has returned gets its signal.
    fn go_on(&mut self, name: &str, stopping: &Stopping) {
        if stopping.phase == Phase::Due && !stopping.killed {
            self.plan.actions.push(Action::Signal(name.to_owned()));
        }
    }

    fn sandbox_down(&mut self) -> bool {
        match &self.observed.sandbox {
            Sandbox::Absent | Sandbox::Failed { .. } => true,
            Sandbox::Ready { .. } => {
                self.plan.actions.push(Action::RemoveSandbox);
                false
            }
            Sandbox::Creating | Sandbox::Removing => {
                self.plan.wait(|| "the sandbox to be gone".into());
                false
            }
        }
    }

    /// SIGKILL where a grace period is over.
    fn keep_deadlines(&mut self) {
        for (name, container) in &self.observed.containers {
            let Some(stopping) = container.stopping.as_ref().filter(|s| !s.killed && container.running().is_some()) else {
                continue;
            };
            // That one waits for its turn, and gets its signal before it is killed.
            if stopping.phase == Phase::Due {
                continue;
            }
            if stopping.kill_at <= self.now {
                self.plan.actions.push(Action::Kill(name.clone()));
            } else {
                self.plan.wake_at(stopping.kill_at);
            }
        }
    }

    fn grace(&self) -> Duration {
        let seconds = self.pod.spec().termination_grace_period_seconds.unwrap_or(30);
        Duration::from_secs(seconds.max(0).unsigned_abs())
    }
}

fn is_init(pod: &ValidPod, name: &str) -> bool {
    pod.spec().init_containers.iter().flatten().any(|c| c.name == name)
}

/// From `a` to `b`; nothing when `b` is before `a`.
pub fn between(a: Timestamp, b: Timestamp) -> Duration {
    Duration::try_from(b.duration_since(a)).unwrap_or_default()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
