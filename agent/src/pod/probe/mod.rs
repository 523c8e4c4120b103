//! A running container's probes: one task a container, which says only what changes. It ends with the attempt that it was made for.
//!
//! First the startup probe alone, until it succeeds; then readiness and liveness side by side. What failures count for is
//! [`state`]'s; what a probe does, [`handler`](super::handler)'s.

pub mod state;

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as k8s;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use super::counters;
use super::handler::{self, Caller, Commands, HttpGet, Subject, Verdict};
use super::observed::Health;
use super::recorder::Level;
use crate::runtime::Redaction;
use state::{Counter, Finding, Kind, Schedule, in_step};

/// What probes found: of which attempt of which container.
#[derive(Debug)]
pub struct Report {
    /// The container's name.
    pub name: String,
    /// The attempt's ID.
    pub id: String,
    /// What is new.
    pub news: News,
}

/// What is new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// The startup probe succeeded.
    Started,
    /// The readiness probe's word is another.
    Ready(bool),
    /// The liveness or startup probe failed as often as it may.
    Failed(Kind),
}

/// Probes a container for as long as this lives.
#[derive(Debug)]
pub struct Prober {
    task: tokio::task::JoinHandle<()>,
    ending: CancellationToken,
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Prober {
    /// Probes a container that runs since `since`, if it has probes. `health` is what earlier lives of the agent found.
    pub fn start(subject: Subject, since: Timestamp, health: Health, reports: mpsc::UnboundedSender<Report>) -> Option<Self> {
        let container = &subject.container;
        if container.liveness_probe.is_none() && container.readiness_probe.is_none() && container.startup_probe.is_none() {
            return None;
        }
        let ending = CancellationToken::new();
        let watch = Watch { subject, since, reports, ending: ending.clone() };
        Some(Self { task: tokio::spawn(watch.run(health)), ending })
    }

    /// The pod ends: whether its containers live is no question any more, whether they are ready is.
    pub fn pod_ends(&self) {
        self.ending.cancel();
    }
}

struct Watch {
    subject: Subject,
    since: Timestamp,
    reports: mpsc::UnboundedSender<Report>,
    ending: CancellationToken,
}

impl Watch {
    async fn run(self, health: Health) {
        let startup = Kind::Startup.of(&self.subject.container).filter(|_| !health.started);
        let mut since = self.since;
        if let Some(probe) = startup {
            let decided = tokio::select! {
                decided = self.decide(Kind::Startup, probe) => decided,
                () = self.ending.cancelled() => return,
            };
            if decided == Finding::Failure {
                return self.tell(News::Failed(Kind::Startup));
            }
            self.tell(News::Started);
            since = Timestamp::now();
        }
        tokio::join!(self.readiness(health.ready, since, startup.is_some()), self.liveness(since, startup.is_some()));
    }

    async fn decide(&self, kind: Kind, probe: &k8s::Probe) -> Finding {
        let mut row = Row::new(self, kind, probe, Schedule::of(probe).first(self.since, Timestamp::now()));
        loop {
            if let Some(decided) = row.next().await {
                return decided;
            }
        }
    }

    async fn readiness(&self, mut ready: bool, since: Timestamp, just_started: bool) {
        let Some(probe) = Kind::Readiness.of(&self.subject.container) else { return };
        let first = self.first(probe, since, just_started);
        let mut row = Row::new(self, Kind::Readiness, probe, first);
        loop {
            let new = row.counter.is_new();
            let decided = row.next().await;
            if let Some(now) = decided.map(|finding| finding == Finding::Success).filter(|now| *now != ready) {
                ready = now;
                self.tell(News::Ready(ready));
            }
            // A program that wasn't up in its first instant is asked again soon, not after a whole period: the kubelet does so, too,
            // when it hears of a container's start.
            if new && !ready && row.schedule.period > SOON {
                row.after(SOON);
            }
        }
    }

    async fn liveness(&self, since: Timestamp, just_started: bool) {
        let Some(probe) = Kind::Liveness.of(&self.subject.container) else { return };
        let mut row = Row::new(self, Kind::Liveness, probe, self.first(probe, since, just_started));
        let failed = async { while row.next().await != Some(Finding::Failure) {} };
        tokio::select! {
            () = failed => self.tell(News::Failed(Kind::Liveness)),
            () = self.ending.cancelled() => {}
        }
    }

    /// After a startup probe, initialDelaySeconds have mostly passed by then: it counts from the container's start.
    fn first(&self, probe: &k8s::Probe, since: Timestamp, just_started: bool) -> Duration {
        let schedule = Schedule::of(probe);
        if just_started {
            return schedule.delay.saturating_sub(super::plan::between(self.since, since));
        }
        schedule.first(self.since, since.max(Timestamp::now()))
    }

    fn tell(&self, news: News) {
        let (name, id) = (self.subject.container.name.clone(), self.subject.id.clone());
        // Nobody hears it: the agent ends.
        let _ = self.reports.send(Report { name, id, news });
    }

    fn say(&self, reason: &str, message: &str) {
        let (pod, name) = (&self.subject.pod, &self.subject.container.name);
        // A command may print what it was given.
        let message = Redaction::of(pod, self.subject.node.objects.of(pod)).hide(message.to_owned());
        self.subject.node.recorder.pod(pod, Some(name), Level::Warning, reason, &message);
    }
}

/// The second try of a readiness probe whose first found nobody.
const SOON: Duration = Duration::from_secs(1);

/// One probe, again and again.
struct Row<'a> {
    watch: &'a Watch,
    kind: Kind,
    probe: &'a k8s::Probe,
    schedule: Schedule,
    counter: Counter,
    ticks: tokio::time::Interval,
    /// Whether the first beat, which isn't to wait for others, is over.
    in_step: bool,
    commands: Commands,
    request: Option<HttpGet>,
    /// For monitoring.
    label: counters::Probe,
}

impl Drop for Row<'_> {
    fn drop(&mut self) {
        self.watch.subject.node.counters.forget(&self.label);
    }
}

impl<'a> Row<'a> {
    fn new(watch: &'a Watch, kind: Kind, probe: &'a k8s::Probe, first: Duration) -> Self {
        let schedule = Schedule::of(probe);
        let mut ticks = interval_at(Instant::now() + first, schedule.period);
        // A probe that takes longer than a period costs beats, and makes none up.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        Self {
            watch,
            kind,
            probe,
            schedule,
            counter: Counter::new(probe),
            ticks,
            in_step: false,
            commands: Commands::default(),
            request: None,
            label: label(&watch.subject, kind),
        }
    }

    fn after(&mut self, pause: Duration) {
        self.ticks.reset_after(in_step(Timestamp::now(), pause));
    }

    /// Waits for the next beat, probes, and says what is certain by now.
    async fn next(&mut self) -> Option<Finding> {
        self.ticks.tick().await;
        if !std::mem::replace(&mut self.in_step, true) {
            self.after(self.schedule.period);
        }
        let title = self.kind.title();
        let begun = Instant::now();
        let verdict = self.attempt().await;
        self.watch.subject.node.counters.probed(&self.label, result(&verdict), begun.elapsed());
        let finding = match verdict {
            Verdict::Success => Finding::Success,
            Verdict::Warning(message) => {
                self.watch.say("ProbeWarning", &format!("{title} probe warning: {message}"));
                Finding::Success
            }
            Verdict::Failure(message) => {
                self.watch.say("Unhealthy", &format!("{title} probe failed: {message}"));
                Finding::Failure
            }
            // Nothing was found out: it counts for nothing.
            Verdict::Unknown(message) => {
                self.watch.say("Unhealthy", &format!("{title} probe errored and resulted in unknown state: {message}"));
                return None;
            }
        };
        self.counter.count(finding)
    }

    async fn attempt(&mut self) -> Verdict {
        let (subject, limit) = (&self.watch.subject, self.schedule.timeout);
        if let Some(action) = &self.probe.exec {
            self.commands.probe(subject, action.command.as_deref().unwrap_or_default(), limit).await
        } else if let Some(action) = &self.probe.http_get {
            match http_get(&mut self.request, subject, action) {
                Ok(request) => handler::judge(request.ask(limit).await),
                Err(error) => handler::judge(Err(error)),
            }
        } else if let Some(action) = &self.probe.tcp_socket {
            handler::tcp(subject, action, limit).await
        } else if let Some(action) = &self.probe.grpc {
            handler::grpc(subject, action, limit).await
        } else {
            Verdict::Unknown("missing probe handler".into())
        }
    }
}

/// Made once, asked often.
fn http_get<'a>(
    made: &'a mut Option<HttpGet>,
    subject: &Subject,
    action: &k8s::HTTPGetAction,
) -> Result<&'a HttpGet, handler::HttpError> {
    match made {
        Some(made) => Ok(made),
        None => Ok(made.insert(HttpGet::new(subject, action, Caller::Probe)?)),
    }
}

fn label(subject: &Subject, kind: Kind) -> counters::Probe {
    counters::Probe {
        probe_type: kind.title().to_owned(),
        container: subject.container.name.clone(),
        pod: subject.pod.metadata.name.clone().unwrap_or_default(),
        namespace: subject.pod.namespace().to_owned(),
        pod_uid: subject.pod.uid().to_string(),
    }
}

/// The kubelet's words for the metric.
fn result(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Success | Verdict::Warning(_) => "successful",
        Verdict::Failure(_) => "failed",
        Verdict::Unknown(_) => "unknown",
    }
}
