//! One pod's task: observes, plans, acts. All decisions are `plan`'s; here is the I/O. Actions run side by side as futures of this
//! one task, and each tells what came of it as an [`Outcome`]; nothing else changes what is observed.

mod admit;
mod deadline;
mod edit;
mod health;
mod hooks;
mod network;
mod resize;
mod words;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as k8s;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use super::completed::{self, Completed};
use super::hook;
use super::node::Edit;
use super::objects::Watch;
use super::observed::{
    Attempt, Container, Ending, Failure, Finish, Health, Image, Note, Observed, Phase, Refused, Sandbox as SandboxState,
    Stopping, Then, Unhealthy,
};
use super::plan::{self, Action, Why, plan};
use super::recorder::Level;
use super::restart;
use super::status;
use super::trace::Trace;
use super::volumes::Turn;
use super::{Ends, Node, SandboxNote};
use crate::admission::Lease;
use crate::image;
use crate::model::{Origin, ValidPod, change, references};
use crate::plugin::device::ledger;
use crate::runtime::recipe::process::stop_signal;
use crate::runtime::resources::Qos;
use crate::runtime::volumes::usage;
use crate::runtime::{self, Sandbox, StartInput};
use crate::shutdown;
use podholder::protocol::{ContainerState, Event, Exit, HolderState};

/// What a worker can be told.
#[derive(Debug)]
pub enum Command {
    /// The pod's spec is now this.
    Update(ValidPod),
    /// An edit besides its manifest's.
    Edit {
        /// What.
        edit: Edit,
        /// Hears when it is done, or why it isn't.
        done: oneshot::Sender<Result<(), String>>,
    },
    /// Somebody deleted its link: it gets a new one, with the same address.
    Rewire,
    /// The node can't bear it any longer.
    Evict {
        /// The kubelet's sentences.
        message: String,
        /// From SIGTERM to SIGKILL, if the pod's own isn't less.
        grace: Duration,
    },
    /// The machine goes down.
    GoDown {
        /// From SIGTERM to SIGKILL.
        grace: Duration,
    },
    /// End it.
    End {
        /// Seconds; unset: the spec's.
        grace: Option<i64>,
        /// What comes after.
        then: Then,
    },
}

/// What others may see of a worker, now.
#[derive(Debug, Clone, Default)]
pub struct Live {
    /// It is a file's, not the API server's.
    pub of_file: bool,
    /// The sandbox, while there is one.
    pub sandbox: Option<Sandbox>,
    /// The pod's addresses.
    pub ips: Vec<IpAddr>,
    /// Newest attempts: name, ID, number, PID and exit code.
    pub attempts: Vec<(String, Attempt)>,
    /// The steps of its start.
    pub trace: Trace,
}

/// Shared with the API.
pub type LiveRef = Arc<Mutex<Live>>;

/// What came of an action.
enum Outcome {
    Allocated { since: Timestamp, result: Result<(), String> },
    Sandbox(Result<(Sandbox, Vec<IpAddr>), String>),
    Removed { ends: Ends, result: Result<(), String> },
    Image { name: String, reference: String, took: Duration, pulled: bool, result: Result<image::Image, image::Error> },
    Started { name: String, note: Note, number: u32, result: Result<runtime::Started, runtime::Error> },
    Told { name: String, result: Result<(), String> },
    Noted { name: String, result: Result<(), String> },
    Hooked { name: String, id: String, moment: hooks::Moment, result: Result<(), String> },
    Rewired(Result<(), String>),
    Resized { name: String, id: String, wanted: resize::Wanted, result: Result<(), String> },
    Measured { over: Option<String>, took: Duration },
    Refreshed(Vec<runtime::Error>),
    RefreshAgain,
    Answered,
}

/// See the module's page.
pub struct Worker {
    node: Arc<Node>,
    pod: ValidPod,
    pending: Option<ValidPod>,
    observed: Observed,
    sandbox: Option<Sandbox>,
    events: Option<broadcast::Receiver<Event>>,
    /// Images that its containers use: not to be collected.
    images: BTreeMap<String, (image::Image, image::Pin)>,
    /// Containers whose image was pulled for their next start, which was told.
    pulled: HashSet<String>,
    outcomes: FuturesUnordered<BoxFuture<'static, Outcome>>,
    /// Exits of containers whose start isn't answered yet, by ID.
    early: HashMap<String, Exit>,
    start_time: Timestamp,
    deletion: Option<(Timestamp, i64)>,
    removal_delay: Duration,
    live: LiveRef,
    trace: Trace,
    /// The objects that the pod refers to.
    needs: Watch,
    /// What the pod was promised of the node.
    lease: Option<Lease>,
    /// Its devices are being made ready: it begins when they are.
    allocating: bool,
    /// Since when it was turned away: heard when something became better.
    turned_away: Option<watch::Receiver<u64>>,
    /// The same of a resize that there is no room for.
    deferred: Option<watch::Receiver<u64>>,
    /// Heard when a pod that could not be wired should be tried again.
    wiring: Option<watch::Receiver<u64>>,
    /// Who works on its volumes.
    volumes: Turn,
    /// Volumes that a disk had no room for are tried again later.
    refreshes_again: bool,
    /// Its containers' probes.
    probes: health::Probes,
    /// Hooks that run.
    hooks: hooks::Hooks,
}

impl Worker {
    fn new(node: Arc<Node>, pod: ValidPod, live: LiveRef) -> Self {
        let trace = live.lock().unwrap_or_else(PoisonError::into_inner).trace.clone();
        let asked = node.objects.take_asked(pod.uid());
        let mut worker = Self {
            node,
            pod,
            pending: None,
            observed: Observed::default(),
            sandbox: None,
            events: None,
            images: BTreeMap::new(),
            pulled: HashSet::new(),
            outcomes: FuturesUnordered::new(),
            early: HashMap::new(),
            start_time: Timestamp::now(),
            deletion: None,
            removal_delay: Duration::ZERO,
            live,
            trace,
            needs: Watch::default(),
            lease: None,
            allocating: false,
            turned_away: None,
            deferred: None,
            wiring: None,
            volumes: Turn::default(),
            refreshes_again: false,
            probes: health::Probes::default(),
            hooks: hooks::Hooks::default(),
        };
        if let Some(asked) = asked {
            worker.observed.unanswered = true;
            worker.outcomes.push(Box::pin(asked.map(|_| Outcome::Answered)));
        }
        worker
    }

    /// A pod that no sandbox was found for: new, completed, or cut short by a crash or reboot.
    pub fn begin(node: Arc<Node>, pod: ValidPod, live: LiveRef) -> Self {
        let mut worker = Self::new(node, pod, live);
        // A file's comes back with the machine, since nobody makes another in its place.
        if !worker.recall() && *worker.pod.origin() == Origin::Api {
            worker.assume_ends();
        }
        worker.begun()
    }

    /// A pod whose holder has ended while no agent looked. `new` is what it shall be now.
    pub fn bereft(node: Arc<Node>, pod: ValidPod, new: ValidPod, live: LiveRef) -> Self {
        let mut worker = Self::new(node, pod, live);
        if !worker.recall() {
            worker.assume_ends();
        }
        worker.update(new);
        worker.begun()
    }

    fn begun(mut self) -> Self {
        self.admit();
        if self.node.has_leftovers(self.pod.uid()) {
            self.remove_sandbox();
        }
        self
    }

    /// A pod that an agent before this one left running.
    pub fn adopt(node: Arc<Node>, pod: ValidPod, live: LiveRef, sandbox: Sandbox, state: &HolderState) -> Self {
        let mut worker = Self::new(node, pod, live);
        if state.note.is_null() {
            // That agent died before it had wired the sandbox; no container runs in it.
            worker.sandbox = Some(sandbox);
            worker.admit();
            worker.remove_sandbox();
            return worker;
        }
        worker.lease = Some(worker.node.admission.take(&worker.pod));
        let generation = state.created_at;
        let since = timestamp(generation);
        let note: SandboxNote = serde_json::from_value(state.note.clone()).unwrap_or_default();
        let ips = note.ips;
        worker.start_time = note.start_time.unwrap_or(since);
        worker.observed.conditions = note.conditions;
        worker.events = Some(sandbox.holder.all_events());
        worker.observed.sandbox = SandboxState::Ready { generation, ips, since };
        worker.sandbox = Some(sandbox);
        worker.measure(Duration::ZERO);
        for container in &state.containers {
            worker.adopt_container(container, generation);
        }
        // It was to end, whatever has become of its containers since.
        worker.observed.failure = completed::read(&worker.node.runtime, worker.pod.uid()).and_then(|record| record.failure);
        worker.recall_resets();
        worker.probe_all();
        worker
    }

    fn adopt_container(&mut self, state: &ContainerState, generation: u64) {
        let note: Note = serde_json::from_value(state.note.clone()).unwrap_or_default();
        let finish = state.exit.map(|exit| self.finish(&state.id, &state.name, state.attempt, exit));
        let container = self.observed.containers.entry(state.name.clone()).or_default();
        container.previous = container.last.take();
        container.last = Some(Attempt {
            id: state.id.clone(),
            number: state.attempt,
            generation: generation.saturating_add(note.resets),
            note,
            pid: state.pid,
            started_at: timestamp(state.started_at),
            finish,
        });
    }

    /// A pod that had completed stays so, also over a reboot. What it shall be by now is an edit like any other. Says whether it had.
    fn recall(&mut self) -> bool {
        let Some(record) = completed::read(&self.node.runtime, self.pod.uid()) else { return false };
        let old = ValidPod::trusted(k8s::Pod::clone(record.pod.object()), self.pod.origin().clone());
        let new = std::mem::replace(&mut self.pod, old);
        self.start_time = record.start_time;
        self.observed.failure = record.failure;
        let mut previous = record.previous;
        for (name, mut last) in record.attempts {
            let previous = previous.remove(&name);
            // The machine went down as it was being ended.
            last.finish.get_or_insert_with(|| unseen_end(Timestamp::now()));
            self.observed.containers.insert(name, Container { last: Some(last), previous, ..Container::default() });
        }
        self.update(new);
        true
    }

    /// What ran once, by its logs, runs no more, and nobody saw its end: what follows from that is the same as if somebody had.
    fn assume_ends(&mut self) {
        let now = Timestamp::now();
        let ran = |container: &k8s::Container| {
            let number = self.node.runtime.next_attempt(&self.pod, &container.name).checked_sub(1)?;
            let note = Note { image: container.image.clone().unwrap_or_default(), ..Note::default() };
            let (finish, id) = (unseen_end(now), String::new());
            let attempt = Attempt { id, number, generation: 0, note, pid: 0, started_at: now, finish: Some(finish) };
            Some((container.name.clone(), Container { last: Some(attempt), ..Container::default() }))
        };
        self.observed.containers = self.pod.all_containers().chain(self.pod.ephemeral()).filter_map(ran).collect();
    }

    /// The pod's life. Returns once nothing is left of the pod.
    pub async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        loop {
            self.drain_outcomes();
            let deadline = self.keep_active_deadline();
            let plan = plan(&self.pod, &self.observed, &self.node.backoff, Timestamp::now());
            self.trace.waits_for(plan.waiting_for);
            if plan.complete {
                self.lease = None;
                if self.has_completed() {
                    self.remember_completion();
                }
            }
            if plan.over && !self.begin_again() {
                self.publish();
                return;
            } else if plan.over {
                continue;
            }
            // An image that is there is had at once, and nothing would tell us so later.
            let look_again = plan.actions.iter().any(|action| matches!(action, Action::Pull(_) | Action::Reset));
            for action in plan.actions {
                if !(self.allocating && matches!(action, Action::CreateSandbox)) {
                    self.act(action);
                }
            }
            if look_again {
                continue;
            }
            self.publish();
            self.node.objects.of(&self.pod).watch(&mut self.needs, references::of(&self.pod));
            tokio::select! {
                biased;
                Some(outcome) = self.outcomes.next(), if !self.outcomes.is_empty() => self.absorb(outcome),
                event = next_event(&mut self.events) => self.event(event).await,
                () = holder_gone(self.sandbox.as_ref()) => self.holder_ended().await,
                command = commands.recv() => match command {
                    Some(command) => self.command(command),
                    // The agent stops; the pod goes on without it.
                    None => return,
                },
                report = self.probes.next() => self.probed(report),
                () = self.needs.changed() => self.objects_changed(),
                () = admit::better(&mut self.turned_away) => self.ask_again(),
                () = admit::better(&mut self.deferred) => self.resize_again(),
                () = admit::better(&mut self.wiring), if matches!(self.observed.sandbox, SandboxState::Failed { .. }) => self.wire_again(),
                () = until(plan.wake.into_iter().chain(deadline).min()) => {}
            }
        }
    }

    fn drain_outcomes(&mut self) {
        while let Some(Some(outcome)) = self.outcomes.next().now_or_never() {
            self.absorb(outcome);
        }
    }

    // What the worker is told.

    fn command(&mut self, command: Command) {
        match command {
            Command::Update(new) => self.update(new),
            Command::Rewire => self.rewire(),
            Command::Edit { edit, done } => self.edit(edit, done),
            Command::Evict { message, grace } => {
                let own = self.pod.spec().termination_grace_period_seconds.unwrap_or(30).max(0).unsigned_abs();
                self.evict(message, grace.min(Duration::from_secs(own)), true);
            }
            Command::GoDown { grace } => self.go_down(grace),
            Command::End { grace, then } => self.end(grace, then),
        }
    }

    fn update(&mut self, new: ValidPod) {
        if self.observed.ending.as_ref().is_some_and(|e| e.then == Then::Gone) {
            // Deleted and made again before the end: a new pod after this one.
            self.pending = Some(new);
            self.observed.ending = self.observed.ending.take().map(|e| Ending { then: Then::Again, ..e });
            return;
        }
        if self.observed.ending.is_some() {
            self.pending = Some(new);
            return;
        }
        let declared = new;
        let new = self.with_what_was_added(&declared);
        if self.pod.object() == new.object() {
            // What an agent that adopts is told of every pod.
            self.pod = new;
            return;
        }
        let change = match self.change_to(&new) {
            // Of what has completed nothing can be restarted.
            change::Change::RestartContainers(_) if self.begins_anew() => change::Change::Recreate,
            change => change,
        };
        match change {
            change::Change::Recreate => {
                self.pending = Some(declared);
                self.end(None, Then::Again);
            }
            kept @ (change::Change::Keep | change::Change::RestartContainers(_)) => {
                let old = std::mem::replace(&mut self.pod, new);
                if self.turned_away.is_some() {
                    // Perhaps it fits now.
                    return self.ask_again();
                }
                self.resize_from(&old);
                if let change::Change::RestartContainers(names) = kept {
                    self.take_new_images(&names);
                }
                if self.sandbox.is_some()
                    && let Err(error) = self.node.runtime.save_pod(&self.pod)
                {
                    tracing::warn!(pod = %self.pod, %error, "the pod's new spec could not be noted: an agent that starts now takes the old one");
                }
                // Labels and annotations are in downwardAPI volumes.
                self.refresh_volumes();
            }
        }
    }

    /// It has completed, and nobody else makes another in its place when its manifest is another.
    fn begins_anew(&self) -> bool {
        *self.pod.origin() != Origin::Api && self.turned_away.is_none() && plan::is_complete(&self.pod, &self.observed)
    }

    /// Whatever is known of their old images is nothing to the new ones. The old ones stay pinned while they run.
    fn take_new_images(&mut self, names: &[String]) {
        for name in names {
            if let Some(container) = self.observed.containers.get_mut(name) {
                container.image = Image::Unknown;
                container.refused = None;
            }
        }
    }

    fn rewire(&mut self) {
        let Some(sandbox) = self.sandbox.clone().filter(|_| matches!(self.observed.sandbox, SandboxState::Ready { .. })) else {
            return;
        };
        self.say(
            None,
            Level::Warning,
            "NetworkRepaired",
            "The pod's network link was deleted or changed by another program; it is put back.",
        );
        let (node, pod, trace, start_time) = (self.node.clone(), self.pod.clone(), self.trace.clone(), self.start_time);
        self.outcomes.push(Box::pin(async move {
            let wired = node.wire(&pod, (&sandbox, None), None, start_time, &trace).await;
            Outcome::Rewired(wired.map(drop))
        }));
    }

    fn end(&mut self, grace: Option<i64>, then: Then) {
        let now = Timestamp::now();
        let seconds = grace.or(self.pod.spec().termination_grace_period_seconds).unwrap_or(30).max(0);
        let deadline = now.checked_add(Duration::from_secs(seconds.unsigned_abs())).unwrap_or(Timestamp::MAX);
        // A second request can only shorten the time, and Gone is final.
        let (deadline, then) = match &self.observed.ending {
            Some(e) => (e.deadline.min(deadline), if e.then == Then::Gone { Then::Gone } else { then }),
            None => (deadline, then),
        };
        if then == Then::Gone {
            self.pending = None;
        }
        self.deletion = Some((deadline, seconds));
        self.observed.hasten(deadline);
        self.observed.ending = Some(Ending { since: now, deadline, then });
        self.probes.pod_ends();
    }

    /// After the end of a pod that is to live on: a new one in its place.
    fn begin_again(&mut self) -> bool {
        let Some(ending) = self.observed.ending.take() else { return false };
        if ending.then == Then::Gone {
            self.observed.ending = Some(ending);
            return false;
        }
        // Whoever watches sees one pod go and another come, under the same UID.
        self.node.store.remove_pod(self.pod.uid());
        // What was added to the old one isn't the new one's.
        self.pod = self.pending.take().unwrap_or_else(|| self.pod.with_ephemeral(None));
        self.observed = Observed::default();
        self.images.clear();
        self.start_time = Timestamp::now();
        self.deletion = None;
        self.trace.restart();
        self.turned_away = None;
        self.deferred = None;
        self.admit();
        true
    }

    // What happens unasked.

    async fn event(&mut self, event: Option<Event>) {
        match event {
            Some(Event::Exited { container, exit }) => self.exited(&container, exit),
            Some(Event::ExecExited { .. }) => {}
            None => self.holder_ended().await,
        }
    }

    /// An object that the pod refers to is another, new or gone: volumes follow, and what waited for it is tried at once.
    fn objects_changed(&mut self) {
        for container in self.observed.containers.values_mut() {
            container.refused = None;
        }
        self.refresh_volumes();
    }

    fn refresh_volumes(&mut self) {
        let SandboxState::Ready { ips, .. } = &self.observed.sandbox else { return };
        // Of a pod of which nothing has started yet, the first start makes them.
        if self.observed.containers.values().all(|c| c.last.is_none()) {
            return;
        }
        let refreshed = self.node.clone().refresh_volumes(self.pod.clone(), ips.clone(), self.volumes.clone());
        self.outcomes.push(Box::pin(async move { Outcome::Refreshed(refreshed.await) }));
    }

    fn refreshed(&mut self, errors: Vec<runtime::Error>) {
        if errors.iter().any(runtime::Error::may_pass) && !self.refreshes_again {
            self.refreshes_again = true;
            self.outcomes.push(Box::pin(async {
                tokio::time::sleep(REFRESH_AGAIN).await;
                Outcome::RefreshAgain
            }));
        }
        for error in errors {
            // What is gone stays as it was in the volumes that have it.
            tracing::info!(pod = %self.pod, "{}", error.message());
            self.say(None, Level::Warning, error.event(), &error.message());
        }
    }

    /// Looks after a while whether an emptyDir is beyond its sizeLimit: the kernel tells nobody. Costs at most a hundredth of a CPU.
    fn measure(&mut self, pause: Duration) {
        if !usage::is_limited(&self.pod) || !matches!(self.observed.sandbox, SandboxState::Ready { .. }) {
            return;
        }
        let (node, pod) = (self.node.clone(), self.pod.clone());
        self.outcomes.push(Box::pin(async move {
            tokio::time::sleep(pause.clamp(MEASURE_AT_LEAST, MEASURE_AT_MOST)).await;
            let begun = Instant::now();
            let over = tokio::task::spawn_blocking(move || node.runtime.volume_over_limit(&pod)).await.unwrap_or_default();
            Outcome::Measured { over, took: begun.elapsed() }
        }));
    }

    /// The pod as a whole has failed. One that has completed meanwhile has not.
    fn evict(&mut self, message: String, grace: Duration, disrupted: bool) {
        if self.observed.ending.is_some() || plan::is_complete(&self.pod, &self.observed) {
            return;
        }
        self.say(None, Level::Warning, "Evicted", &message);
        let deadline = Timestamp::now().checked_add(grace).unwrap_or(Timestamp::MAX);
        self.observed.failure = Some(Failure { reason: "Evicted".into(), message, deadline, disrupted });
        self.remember_completion();
    }

    /// The pod ends with the node, and as a pod of a file comes back with it. The API server's are their controllers' to replace.
    fn go_down(&mut self, grace: Duration) {
        if let Some(then) = self.observed.ending.as_ref().map(|ending| ending.then) {
            return self.end(i64::try_from(grace.as_secs()).ok(), then);
        }
        let deadline = Timestamp::now().checked_add(grace).unwrap_or(Timestamp::MAX);
        if let Some(failure) = &mut self.observed.failure {
            failure.deadline = failure.deadline.min(deadline);
        } else if plan::is_complete(&self.pod, &self.observed) {
            return;
        } else {
            let (reason, message) = (shutdown::REASON.into(), shutdown::MESSAGE.into());
            self.observed.failure = Some(Failure { reason, message, deadline, disrupted: true });
            self.turned_away = (*self.pod.origin() != Origin::Api).then(|| self.node.admission.better());
        }
        self.observed.hasten(deadline);
        self.probes.pod_ends();
    }

    fn exited(&mut self, id: &str, exit: Exit) {
        let Some(name) =
            self.observed.containers.iter().find(|(_, c)| c.last.as_ref().is_some_and(|a| a.id == id)).map(|(n, _)| n.clone())
        else {
            // It ended before the answer to its start was taken.
            self.early.insert(id.to_owned(), exit);
            return;
        };
        let number = self.observed.containers.get(&name).and_then(|c| c.last.as_ref()).map_or(0, |a| a.number);
        let finish = self.finish(id, &name, number, exit);
        if let Some(container) = self.observed.containers.get_mut(&name) {
            container.stopping = None;
            if let Some(attempt) = &mut container.last {
                attempt.finish.get_or_insert(finish);
            }
        }
        self.probes.stop(&name);
        self.hooks.stop(&name);
    }

    fn finish(&self, id: &str, name: &str, number: u32, exit: Exit) -> Finish {
        let oom = exit.code == 137 && self.sandbox.as_ref().is_some_and(|s| self.node.runtime.oom_killed(s, id));
        let reason = match exit.code {
            _ if oom => "OOMKilled",
            0 => "Completed",
            _ => "Error",
        };
        Finish {
            code: exit.code,
            signal: exit.signal,
            at: timestamp(exit.finished_at),
            reason: reason.into(),
            message: self.node.runtime.termination_message(&self.pod, name, number, exit.code),
        }
    }

    /// The holder is gone, and with it its containers: what it left is cleared away and the pod gets a new sandbox.
    async fn holder_ended(&mut self) {
        // Exits that it still told come first; it may also be the connection alone that broke.
        self.events = None;
        let Some(sandbox) = self.sandbox.clone() else { return };
        if matches!(self.observed.sandbox, SandboxState::Removing) {
            return;
        }
        if !sandbox.holder.is_gone() {
            // The connection alone broke, or events came too fast: the holder is asked for all it knows.
            if let Ok(again) = self.node.runtime.adopt_pod(&self.pod).await {
                self.take_state(again);
                return;
            }
        }
        let now = Timestamp::now();
        self.probes = health::Probes::default();
        self.hooks = hooks::Hooks::default();
        for container in self.observed.containers.values_mut() {
            container.stopping = None;
            if let Some(attempt) = container.last.as_mut().filter(|a| a.finish.is_none()) {
                attempt.finish = Some(unseen_end(now));
            }
        }
        self.say(
            None,
            Level::Warning,
            "SandboxChanged",
            "The pod's holder ended unexpectedly: its containers were ended, and the pod sandbox will be re-created.",
        );
        self.remove_sandbox();
    }

    fn take_state(&mut self, (sandbox, state): (Sandbox, HolderState)) {
        self.events = Some(sandbox.holder.all_events());
        self.sandbox = Some(sandbox);
        for container in &state.containers {
            if let Some(exit) = container.exit {
                self.exited(&container.id, exit);
            }
        }
    }

    // What is done.

    fn act(&mut self, action: Action) {
        match action {
            Action::CreateSandbox => self.create_sandbox(),
            Action::RemoveSandbox => self.remove_sandbox(),
            Action::Pull(name) => self.pull(&name),
            Action::Start { name, delay } => self.start(&name, delay),
            Action::Stop { name, grace, why } => self.stop(&name, grace, why),
            Action::Signal(name) => self.signal(&name),
            Action::Kill(name) => self.kill(&name),
            Action::Resize(name) => self.resize(&name),
            Action::Reset => self.reset(),
        }
    }

    fn create_sandbox(&mut self) {
        if let SandboxState::Failed { delay, .. } = self.observed.sandbox {
            self.removal_delay = delay;
        }
        self.observed.sandbox = SandboxState::Creating;
        self.wiring = self.node.network.changes(&self.pod);
        let (node, pod, trace, start_time) = (self.node.clone(), self.pod.clone(), self.trace.clone(), self.start_time);
        let first = self.first_to_start();
        self.outcomes.push(Box::pin(async move { Outcome::Sandbox(node.create_sandbox(&pod, start_time, first, &trace).await) }));
    }

    /// The containers that will start as soon as there is a sandbox, with their attempts' numbers.
    fn first_to_start(&self) -> Vec<(k8s::Container, u32)> {
        let spec = self.pod.spec();
        let first = match spec.init_containers.as_deref() {
            Some([first, ..]) => std::slice::from_ref(first),
            _ => &spec.containers,
        };
        // Devices come with the recipe, and are to be allowed before the cgroup is made.
        let named = crate::runtime::cdi::names(&self.pod).is_ok_and(|names| !names.is_empty());
        if named || ledger::asks(spec) {
            return Vec::new();
        }
        first.iter().map(|container| (self.as_promised(container), self.next_number(&container.name))).collect()
    }

    /// A container with the resources that the node has promised it.
    fn as_promised(&self, container: &k8s::Container) -> k8s::Container {
        k8s::Container { resources: self.observed.resources(container).cloned(), ..container.clone() }
    }

    fn next_number(&self, name: &str) -> u32 {
        match self.observed.containers.get(name).and_then(|container| container.last.as_ref()) {
            Some(attempt) => attempt.number.saturating_add(1),
            None => self.node.runtime.next_attempt(&self.pod, name),
        }
    }

    fn remove_sandbox(&mut self) {
        self.observed.sandbox = SandboxState::Removing;
        let sandbox = self.sandbox.take();
        self.events = None;
        let (node, pod, volumes) = (self.node.clone(), self.pod.clone(), self.volumes.clone());
        let ends = Ends::of(&self.pod, &self.observed);
        if ends == Ends::Work && self.has_completed() {
            // While the holder still knows it: an agent that dies meanwhile is followed by one that asks nobody else.
            self.remember_completion();
        }
        self.outcomes.push(Box::pin(async move {
            let _turn = volumes.take().await;
            Outcome::Removed { ends, result: node.remove_sandbox(&pod, sandbox, ends).await }
        }));
    }

    fn pull(&mut self, name: &str) {
        let Some(container) = self.container(name) else { return };
        let reference = container.image.clone().unwrap_or_default();
        let policy = pull_policy(container);
        let observed = self.observed.containers.entry(name.to_owned()).or_default();
        // The usual case costs no task and no round of the loop: the image is there.
        if policy != image::PullPolicy::Always
            && let Some(image) = self.node.images.resolve(&reference)
        {
            observed.image = Image::Ready;
            let pin = self.node.images.pin(&image);
            self.images.insert(name.to_owned(), (image, pin));
            return;
        }
        if policy != image::PullPolicy::Never {
            self.say(Some(name), Level::Normal, "Pulling", &format!("Pulling image \"{reference}\""));
        }
        let observed = self.observed.containers.entry(name.to_owned()).or_default();
        if !matches!(observed.image, Image::Failed { .. }) {
            observed.image = Image::Pulling;
        } else if let Image::Failed { retry_at, .. } = &mut observed.image {
            // Shown as it was until it is known whether this try did better.
            *retry_at = Timestamp::MAX;
        }
        let (node, name, pod) = (self.node.clone(), name.to_owned(), self.pod.clone());
        self.outcomes.push(Box::pin(async move {
            let begun = Instant::now();
            let result = node.ensure_image(&pod, &reference, policy).await;
            Outcome::Image { name, reference, took: begun.elapsed(), pulled: policy != image::PullPolicy::Never, result }
        }));
    }

    fn start(&mut self, name: &str, delay: Duration) {
        let (Some(sandbox), Some(container), Some((image, _))) =
            (self.sandbox.clone(), self.container(name).map(|container| self.as_promised(container)), self.images.get(name))
        else {
            // The image was let go: it is asked for again.
            self.observed.containers.entry(name.to_owned()).or_default().image = Image::Unknown;
            return;
        };
        let image = image.clone();
        let number = self.next_number(name);
        let observed = self.observed.containers.entry(name.to_owned()).or_default();
        observed.starting = true;
        observed.refused = None;
        observed.unhealthy = None;
        let note = Note {
            image: container.image.clone().unwrap_or_default(),
            image_id: image.repo_digests.first().cloned().unwrap_or_else(|| image.id.clone()),
            delay_ms: u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
            stop_signal: stop_signal(&container, &image.config),
            resources: Some(container.resources.clone().unwrap_or_default()),
            pod_resources: self.observed.pod_resources(self.pod.spec()).cloned(),
            resets: self.observed.resets,
            health: Health::at_start(&container),
            told: None,
        };
        let ips = match &self.observed.sandbox {
            SandboxState::Ready { ips, .. } => ips.clone(),
            _ => Vec::new(),
        };
        let beside = self.target_of(name);
        let (node, pod, name, trace) = (self.node.clone(), self.pod.clone(), name.to_owned(), self.trace.clone());
        let turn = self.volumes.clone();
        self.outcomes.push(Box::pin(async move {
            let begun = Instant::now();
            let volumes = match node.make_volumes(&pod, &ips, &turn).await {
                Ok(volumes) => volumes,
                Err(error) => return Outcome::Started { name, note, number, result: Err(error) },
            };
            let grant = node.devices.grant(pod.uid(), &name);
            if grant.is_some()
                && let Err(why) = node.devices.pre_start(pod.uid(), &name).await
            {
                return Outcome::Started { result: Err(runtime::Error::container(&pod, &name, why)), name, note, number };
            }
            let input = StartInput {
                pod: &pod,
                container: &container,
                attempt: number,
                image: &image.config,
                layers: &image.layers,
                pod_ips: &ips,
                volumes: &volumes,
                objects: node.objects.of(&pod),
                beside: beside.clone(),
                grant: grant.as_ref(),
                note: serde_json::to_value(&note).unwrap_or_default(),
            };
            let result = node.runtime.start_container(&sandbox, input).await;
            if let Ok(started) = &result {
                trace.protocol_steps(Some(&name), begun, &started.steps);
            }
            Outcome::Started { name, note, number, result }
        }));
    }

    fn stop(&mut self, name: &str, grace: Duration, why: Why) {
        let Some(attempt) = self.observed.containers.get(name).and_then(Container::running).cloned() else { return };
        let Some(sandbox) = self.sandbox.clone() else { return };
        let again = self.container(name).is_some_and(|c| restart::is_retried(&self.pod, c));
        let because = match why {
            Why::PodEnds => None,
            Why::Unhealthy(Unhealthy::PostStart) => Some("FailedPostStartHook".to_owned()),
            Why::Unhealthy(Unhealthy::Liveness) => Some(format!("Container {name} failed liveness probe")),
            Why::Unhealthy(Unhealthy::Startup) => Some(format!("Container {name} failed startup probe")),
            Why::Edited => Some(format!("Container {name} definition changed")),
            Why::Reset => Some(format!("Container {name} is ended because all containers of the pod begin anew")),
        };
        let message = match because {
            None => format!("Stopping container {name}"),
            Some(because) if again && !matches!(why, Why::Unhealthy(Unhealthy::PostStart)) => {
                format!("{because}, will be restarted")
            }
            Some(because) => because,
        };
        self.say(Some(name), Level::Normal, "Killing", &message);
        let hooked = !grace.is_zero() && why != Why::Reset && self.container(name).is_some_and(|c| hook::pre_stop(c).is_some());
        let (phase, last) = if hooked { (Phase::Hook, plan::MINIMUM_GRACE) } else { (Phase::Told, Duration::ZERO) };
        let kill_at = Timestamp::now().checked_add(grace.saturating_add(last)).unwrap_or(Timestamp::MAX);
        if let Some(container) = self.observed.containers.get_mut(name) {
            container.stopping = Some(Stopping { kill_at, killed: false, phase });
        }
        match phase {
            Phase::Hook => self.hook(name, hooks::Moment::PreStop, grace),
            _ if grace.is_zero() => self.kill(name),
            _ => self.tell_to_end(name.to_owned(), sandbox, attempt),
        }
    }

    fn tell_to_end(&mut self, name: String, sandbox: Sandbox, attempt: Attempt) {
        self.outcomes.push(Box::pin(async move {
            let result = sandbox.holder.signal(&attempt.id, attempt.note.stop_signal).await.map_err(|e| e.to_string());
            Outcome::Told { name, result }
        }));
    }

    fn kill(&mut self, name: &str) {
        let Some(container) = self.observed.containers.get_mut(name) else { return };
        let Some(attempt) = container.running().cloned() else { return };
        container.stopping = Some(Stopping { kill_at: Timestamp::now(), killed: true, phase: Phase::Told });
        let Some(sandbox) = self.sandbox.clone() else { return };
        let (node, name) = (self.node.clone(), name.to_owned());
        self.outcomes.push(Box::pin(async move {
            let killed = tokio::task::spawn_blocking(move || node.runtime.kill_container(&sandbox, &attempt.id)).await;
            let result = killed.map_err(|e| e.to_string()).and_then(|r| r.map_err(|e| e.to_string()));
            Outcome::Told { name, result }
        }));
    }

    // What came of it.

    fn absorb(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Allocated { since, result } => self.allocated(since, result),
            Outcome::Sandbox(result) => self.sandbox_made(result),
            Outcome::Removed { ends, result } => self.sandbox_removed(ends, result),
            // Of an image that an edit has replaced since, nobody wants to know any more.
            Outcome::Image { name, reference, .. } if self.image_of(&name) != reference => {}
            Outcome::Image { name, took, pulled, result, .. } => self.image_came(&name, took, pulled, result),
            Outcome::Started { name, note, number, result } => self.started(&name, note, number, result),
            Outcome::Measured { over: Some(message), .. } => self.evict(message, EVICTION_GRACE, false),
            Outcome::Measured { over: None, took } => self.measure(took * 100),
            Outcome::Refreshed(errors) => self.refreshed(errors),
            Outcome::RefreshAgain => {
                self.refreshes_again = false;
                self.refresh_volumes();
            }
            Outcome::Answered => self.observed.unanswered = false,
            Outcome::Rewired(Ok(())) => {}
            Outcome::Resized { name, id, wanted, result } => self.resized(&name, &id, wanted, result),
            Outcome::Rewired(Err(error)) => self.say(None, Level::Warning, "NetworkNotReady", &error),
            Outcome::Hooked { name, id, moment, result } => self.hooked(&name, &id, moment, result),
            Outcome::Noted { result: Ok(()), .. } => {}
            // Of an older holder, or of a container that has just ended.
            Outcome::Noted { name, result: Err(error) } => {
                tracing::debug!(pod = %self.pod, container = name, error, "what its probes found could not be noted");
            }
            Outcome::Told { name, result } => {
                if let Err(error) = result {
                    tracing::warn!(pod = %self.pod, container = name, error, "a container could not be told to end");
                }
            }
        }
    }

    fn sandbox_made(&mut self, result: Result<(Sandbox, Vec<IpAddr>), String>) {
        match result {
            Ok((sandbox, ips)) => {
                let since = Timestamp::now();
                self.events = Some(sandbox.holder.all_events());
                self.observed.sandbox = SandboxState::Ready { generation: generation(since), ips, since };
                self.sandbox = Some(sandbox);
                self.removal_delay = Duration::ZERO;
                self.wiring = None;
                self.measure(Duration::ZERO);
            }
            Err(message) => {
                let delay = if self.removal_delay.is_zero() {
                    Duration::from_secs(1)
                } else {
                    (self.removal_delay * 2).min(Duration::from_secs(60))
                };
                self.say(None, Level::Warning, "FailedCreatePodSandBox", &message);
                let retry_at = Timestamp::now().checked_add(delay).unwrap_or(Timestamp::MAX);
                self.observed.sandbox = SandboxState::Failed { message, retry_at, delay };
            }
        }
    }

    fn sandbox_removed(&mut self, ends: Ends, result: Result<(), String>) {
        match result {
            Ok(()) => {
                self.observed.sandbox = SandboxState::Absent;
                self.observed.remains = ends != Ends::Pod;
            }
            Err(error) => {
                // Goes on until clean: something may still be busy.
                self.say(None, Level::Warning, "FailedKillPod", &format!("error killing pod: {error}"));
                let (node, pod, ends) = (self.node.clone(), self.pod.clone(), Ends::of(&self.pod, &self.observed));
                self.outcomes.push(Box::pin(async move {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    Outcome::Removed { ends, result: node.remove_sandbox(&pod, None, ends).await }
                }));
            }
        }
    }

    fn image_came(&mut self, name: &str, took: Duration, pulled: bool, result: Result<image::Image, image::Error>) {
        let reference = self.image_of(name).to_owned();
        let (backoff, now) = (self.node.backoff, Timestamp::now());
        match result {
            Ok(image) => {
                self.trace.step("image", Some(name), Instant::now().checked_sub(took).unwrap_or_else(Instant::now));
                if pulled {
                    self.say(Some(name), Level::Normal, "Pulled", &words::pulled(&reference, took, image.size));
                    self.pulled.insert(name.to_owned());
                }
                let pin = self.node.images.pin(&image);
                self.images.insert(name.to_owned(), (image, pin));
                self.observed.containers.entry(name.to_owned()).or_default().image = Image::Ready;
            }
            Err(error) => {
                let message = error.to_string();
                let reason = error.reason();
                if matches!(error, image::Error::NotPresentNever { .. }) {
                    self.say(Some(name), Level::Warning, reason, &words::not_present(&reference));
                } else {
                    self.say(Some(name), Level::Warning, "Failed", &format!("Failed to pull image \"{reference}\": {message}"));
                }
                let container = self.observed.containers.entry(name.to_owned()).or_default();
                let delay = match &container.image {
                    Image::Failed { delay, .. } => backoff.after(*delay),
                    _ => Duration::ZERO,
                };
                let wait = if delay.is_zero() { backoff.initial } else { delay };
                let retry_at = now.checked_add(wait).unwrap_or(Timestamp::MAX);
                container.image = Image::Failed { reason, message, retry_at, delay: wait };
                self.say(Some(name), Level::Warning, "Failed", &format!("Error: {reason}"));
            }
        }
    }

    fn started(&mut self, name: &str, note: Note, number: u32, result: Result<runtime::Started, runtime::Error>) {
        let generation = match &self.observed.sandbox {
            SandboxState::Ready { generation, .. } => *generation,
            _ => 0,
        };
        self.tell_start(name, result.as_ref().err());
        let always = self.container(name).is_some_and(|c| pull_policy(c) == image::PullPolicy::Always);
        let backoff = self.node.backoff;
        let container = self.observed.containers.entry(name.to_owned()).or_default();
        container.starting = false;
        if always {
            // The registry is asked again before the next start.
            container.image = Image::Unknown;
        }
        let now = Timestamp::now();
        let error = match result {
            Ok(started) => {
                let attempt = Attempt {
                    id: started.id,
                    number,
                    generation,
                    note,
                    pid: started.pid,
                    started_at: timestamp(started.started_at),
                    finish: None,
                };
                self.attempted(name, attempt);
                self.post_start(name);
                self.catch_up(name);
                return;
            }
            Err(error) => error,
        };
        let (message, event) = (error.message(), error.event());
        match error.reason() {
            // The command couldn't be executed: a run that ended at once.
            "StartError" => {
                let finish = Finish {
                    code: error.exit_code(),
                    signal: None,
                    at: now,
                    reason: "StartError".into(),
                    message: Some(message.clone()),
                };
                let id = String::new();
                self.attempted(name, Attempt { id, number, generation, note, pid: 0, started_at: now, finish: Some(finish) });
            }
            // It couldn't even be tried.
            reason => {
                let retry_at = now.checked_add(backoff.initial).unwrap_or(Timestamp::MAX);
                container.refused = Some(Refused { reason, message: message.clone(), retry_at });
            }
        }
        match event {
            // About the pod, not the container.
            "FailedMount" => self.say(None, Level::Warning, event, &message),
            _ => self.say(Some(name), Level::Warning, event, &format!("Error: {message}")),
        }
    }

    /// A container has run once more, or was tried to. Of its runs two are known, and of all before nothing is kept.
    fn attempted(&mut self, name: &str, attempt: Attempt) {
        let container = self.observed.containers.entry(name.to_owned()).or_default();
        let before = container.last.replace(attempt);
        if let Some(old) = std::mem::replace(&mut container.previous, before) {
            self.forget(name, &old);
        }
    }

    /// A start in the kubelet's words, once it is known how it went: it waits for none of them.
    fn tell_start(&mut self, name: &str, error: Option<&runtime::Error>) {
        if error.is_some_and(|error| error.event() == "FailedMount") {
            return;
        }
        if !self.pulled.remove(name) {
            self.say(Some(name), Level::Normal, "Pulled", &words::present(self.image_of(name)));
        }
        if error.is_none_or(|error| error.reason() == "StartError") {
            self.say(Some(name), Level::Normal, "Created", words::CREATED);
        }
        if error.is_none() {
            self.say(Some(name), Level::Normal, "Started", words::STARTED);
        }
    }

    /// An exit that came before the start's answer was taken.
    fn catch_up(&mut self, name: &str) {
        let Some(id) = self.observed.containers.get(name).and_then(Container::running).map(|a| a.id.clone()) else { return };
        if let Some(exit) = self.early.remove(&id) {
            self.exited(&id, exit);
        }
    }

    fn forget(&mut self, name: &str, old: &Attempt) {
        let Some(sandbox) = self.sandbox.clone() else { return };
        let (node, pod, id, name, number) = (self.node.clone(), self.pod.clone(), old.id.clone(), name.to_owned(), old.number);
        self.outcomes.push(Box::pin(async move {
            node.runtime.trim_logs(&pod, &name, number.saturating_add(KEPT));
            let mut result = node.runtime.remove_container(&sandbox, &name, number, &id).await.map_err(|e| e.to_string());
            if let (Ok(()), false) = (&result, id.is_empty()) {
                result = sandbox.holder.forget(&id).await.map_err(|e| e.to_string());
            }
            Outcome::Told { name, result }
        }));
    }

    /// Neither was it turned away, nor did it end with the node: both may come back.
    fn has_completed(&self) -> bool {
        let went_down = self.observed.failure.as_ref().is_some_and(|failure| failure.reason == shutdown::REASON);
        self.turned_away.is_none() && !went_down
    }

    fn remember_completion(&mut self) {
        let of = |which: fn(&Container) -> Option<&Attempt>| {
            self.observed.containers.iter().filter_map(|(n, c)| Some((n.clone(), which(c)?.clone()))).collect()
        };
        let record = Completed {
            pod: self.pod.clone(),
            start_time: self.start_time,
            attempts: of(|container| container.last.as_ref()),
            previous: of(|container| container.previous.as_ref()),
            failure: self.observed.failure.clone(),
        };
        if let Err(error) = completed::write(&self.node.runtime, &record) {
            tracing::warn!(pod = %self.pod, %error, "the pod's completion could not be noted: it would run again after a reboot");
        }
    }

    // What others see.

    fn publish(&self) {
        let old = self.node.store.pod(self.pod.uid());
        let context = status::Context {
            host_ips: &self.node.host_ips,
            start_time: self.start_time,
            now: Timestamp::now(),
            qos: Qos::of(self.pod.spec()).as_str(),
        };
        let mut object = k8s::Pod::clone(self.pod.object());
        object.status = Some(status::status(&self.pod, &self.observed, &context, old.as_ref().and_then(|o| o.status.as_ref())));
        self.tell_backoffs(old.as_ref().and_then(|o| o.status.as_ref()), object.status.as_ref());
        // The API server knows how old its pods are.
        if *self.pod.origin() != Origin::Api {
            object.metadata.creation_timestamp = Some(Time(self.start_time));
        }
        self.show_networks(&mut object);
        if let Some((deadline, grace)) = self.deletion {
            object.metadata.deletion_timestamp = Some(Time(deadline));
            object.metadata.deletion_grace_period_seconds = Some(grace);
        }
        if let Some(spec) = &mut object.spec {
            spec.node_name = Some(self.node.name.clone());
        }
        // Whoever reads in the status that a container runs may join it at once.
        self.show_live();
        self.node.store.put_pod(self.pod.uid(), object);
    }

    fn show_live(&self) {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.of_file = *self.pod.origin() != Origin::Api;
        live.sandbox.clone_from(&self.sandbox);
        live.ips = match &self.observed.sandbox {
            SandboxState::Ready { ips, .. } => ips.clone(),
            _ => Vec::new(),
        };
        live.attempts = self.observed.containers.iter().filter_map(|(n, c)| Some((n.clone(), c.last.clone()?))).collect();
    }

    /// A container that begins to wait for its next try says so, once a wait.
    fn tell_backoffs(&self, old: Option<&k8s::PodStatus>, new: Option<&k8s::PodStatus>) {
        let before = status::waits(old);
        for (name, reason) in status::waits(new).into_iter().filter(|wait| !before.contains(wait)) {
            match reason {
                "CrashLoopBackOff" => {
                    let message = format!("Back-off restarting failed container {name} in pod {}({})", self.pod, self.pod.uid());
                    self.say(Some(name), Level::Warning, "BackOff", &message);
                }
                "ImagePullBackOff" => {
                    let message = format!("Back-off pulling image \"{}\"", self.image_of(name));
                    self.say(Some(name), Level::Normal, "BackOff", &message);
                    self.say(Some(name), Level::Warning, "Failed", &format!("Error: {reason}"));
                }
                _ => {}
            }
        }
    }

    fn say(&self, container: Option<&str>, level: Level, reason: &str, message: &str) {
        self.node.recorder.pod(&self.pod, container, level, reason, message);
    }

    fn image_of(&self, name: &str) -> &str {
        self.container(name).and_then(|c| c.image.as_deref()).unwrap_or_default()
    }

    fn container(&self, name: &str) -> Option<&k8s::Container> {
        self.pod.container(name)
    }
}

fn pull_policy(container: &k8s::Container) -> image::PullPolicy {
    image::PullPolicy::named(container.image_pull_policy.as_deref())
}

/// Between two tries at volumes that a disk had no room for.
const REFRESH_AGAIN: Duration = Duration::from_secs(5);
/// Between two measurements of a pod's volumes.
const MEASURE_AT_LEAST: Duration = Duration::from_secs(1);
const MEASURE_AT_MOST: Duration = Duration::from_secs(60);
/// What an evicted container has from SIGTERM to SIGKILL, as the kubelet's hard evictions.
const EVICTION_GRACE: Duration = Duration::from_secs(1);

/// Attempts of which the log is kept: the present one, the one before.
const KEPT: u32 = 2;

/// Of a container that ended with its pod's holder.
fn unseen_end(at: Timestamp) -> Finish {
    Finish {
        code: 137,
        signal: Some(9),
        at,
        reason: "ContainerStatusUnknown".into(),
        message: Some("The pod's holder ended, and its containers with it.".into()),
    }
}

/// A sandbox's number: when it was made.
fn generation(since: Timestamp) -> u64 {
    u64::try_from(since.as_nanosecond()).unwrap_or(0)
}

/// Unix time in nanoseconds.
pub fn timestamp(nanos: u64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The next event of the holder; none: its connection ended. Never, without a holder.
async fn next_event(events: &mut Option<broadcast::Receiver<Event>>) -> Option<Event> {
    let Some(receiver) = events else { return std::future::pending().await };
    // Events that came too fast count as a broken connection: everything is asked anew.
    receiver.recv().await.ok()
}

/// Never, without a holder.
async fn holder_gone(sandbox: Option<&Sandbox>) {
    match sandbox {
        Some(sandbox) => sandbox.holder.gone().await,
        None => std::future::pending().await,
    }
}

async fn until(at: Option<Timestamp>) {
    match at {
        Some(at) => tokio::time::sleep(plan::between(Timestamp::now(), at)).await,
        None => std::future::pending().await,
    }
}
