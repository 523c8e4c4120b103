//! What a worker knows of its pod at one moment: the input of `plan` and of `status`. Plain data, no I/O.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{self as k8s, ResourceRequirements};
use serde::{Deserialize, Serialize};

/// All that is known of a pod.
#[derive(Debug, Clone)]
pub struct Observed {
    /// Its namespaces and address.
    pub sandbox: Sandbox,
    /// It isn't known that nothing of it is left: volumes, logs and what it said outlive its sandbox.
    pub remains: bool,
    /// Every container that the spec names, and those that ran under an earlier spec.
    pub containers: BTreeMap<String, Container>,
    /// Set once the pod is to end.
    pub ending: Option<Ending>,
    /// Set once the pod as a whole has failed: it ends and doesn't run again.
    pub failure: Option<Failure>,
    /// There were no answers yet about what the pod refers to: no container begins.
    pub unanswered: bool,
    /// An edit of amounts that isn't in force yet.
    pub resize: Option<Resize>,
    /// What others tell of the pod.
    pub conditions: Vec<k8s::PodCondition>,
    /// How often all containers began anew in this sandbox; each time its generation is one more.
    pub resets: u64,
}

impl Default for Observed {
    fn default() -> Self {
        Self {
            sandbox: Sandbox::Absent,
            remains: true,
            containers: BTreeMap::new(),
            ending: None,
            failure: None,
            unanswered: false,
            resize: None,
            conditions: Vec::new(),
            resets: 0,
        }
    }
}

/// What the node has promised.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Allocated {
    /// By container.
    pub containers: BTreeMap<String, ResourceRequirements>,
    /// To the pod as a whole.
    pub pod: Option<ResourceRequirements>,
}

/// An edit of amounts that isn't in force yet.
#[derive(Debug, Clone, PartialEq)]
pub enum Resize {
    /// The node hasn't that much, now or ever: what containers have by name stays promised.
    Pending {
        /// `Deferred` or `Infeasible`.
        reason: String,
        /// The sentence.
        message: String,
        /// What is in force.
        allocated: Allocated,
    },
    /// The kernel is being told.
    InProgress,
    /// The kernel said no.
    Failed {
        /// Its word.
        message: String,
        /// When to try again.
        retry_at: Timestamp,
    },
}

impl Observed {
    /// Whether one of its containers runs, or is about to.
    pub fn has_processes(&self) -> bool {
        self.containers.values().any(|c| c.starting || c.running().is_some())
    }

    /// Whether an attempt ran in this sandbox, before all containers began anew.
    pub fn is_before_reset(&self, attempt: &Attempt) -> bool {
        match &self.sandbox {
            Sandbox::Ready { generation, .. } => {
                (generation.saturating_sub(self.resets)..*generation).contains(&attempt.generation)
            }
            _ => false,
        }
    }

    /// The pod's end is nearer than it was: also for containers that were told to end already.
    pub fn hasten(&mut self, deadline: Timestamp) {
        for stopping in self.containers.values_mut().filter_map(|c| c.stopping.as_mut()) {
            stopping.kill_at = stopping.kill_at.min(deadline);
        }
    }

    /// What a container is to have now: what the spec says, unless the node hasn't that much.
    pub fn resources<'a>(&'a self, container: &'a k8s::Container) -> Option<&'a ResourceRequirements> {
        match &self.resize {
            Some(Resize::Pending { allocated, .. }) => allocated.containers.get(&container.name),
            _ => container.resources.as_ref(),
        }
    }

    /// The same for the pod as a whole.
    pub fn pod_resources<'a>(&'a self, spec: &'a k8s::PodSpec) -> Option<&'a ResourceRequirements> {
        match &self.resize {
            Some(Resize::Pending { allocated, .. }) => allocated.pod.as_ref(),
            _ => spec.resources.as_ref(),
        }
    }
}

/// Why a pod as a whole has failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// Kubernetes' word, such as `Evicted`.
    pub reason: Cow<'static, str>,
    /// The sentence.
    pub message: String,
    /// From then on, SIGKILL.
    pub deadline: Timestamp,
    /// The node ended it, not its own doing: the condition DisruptionTarget.
    #[serde(default)]
    pub disrupted: bool,
}

/// The pod's namespaces and address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sandbox {
    /// There is none, and nothing stands in the way of making one.
    Absent,
    /// Being made.
    Creating,
    /// Containers can join.
    Ready {
        /// Which: an ended container of an earlier sandbox has another number.
        generation: u64,
        /// Its addresses; the node's own with hostNetwork.
        ips: Vec<IpAddr>,
        /// Since when.
        since: Timestamp,
    },
    /// Making it failed; what there was of it is gone.
    Failed {
        /// What went wrong, for the pod's status.
        message: String,
        /// When to try again.
        retry_at: Timestamp,
        /// How long the last wait was.
        delay: Duration,
    },
    /// Being taken down.
    Removing,
}

/// Why and until when a pod ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// When it was asked for.
    pub since: Timestamp,
    /// From then on, SIGKILL.
    pub deadline: Timestamp,
    /// What comes after.
    pub then: Then,
}

/// What comes after a pod's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Nothing: it is gone for good.
    Gone,
    /// It is made again from the spec that is in force by then.
    Again,
}

/// One container.
#[derive(Debug, Clone, Default)]
pub struct Container {
    /// The newest attempt to run it.
    pub last: Option<Attempt>,
    /// The one before.
    pub previous: Option<Attempt>,
    /// Its image.
    pub image: Image,
    /// A start is under way.
    pub starting: bool,
    /// It was told to end.
    pub stopping: Option<Stopping>,
    /// It couldn't be started because of its configuration: reason and message, and when to try again.
    pub refused: Option<Refused>,
    /// Why its newest attempt has to end, or had to.
    pub unhealthy: Option<Unhealthy>,
}

/// Why a container has to end although nobody asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unhealthy {
    /// Its liveness probe failed.
    Liveness,
    /// Its startup probe failed.
    Startup,
    /// Its postStart hook failed.
    PostStart,
}

/// A container that couldn't even be tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Kubernetes' word, such as `CreateContainerConfigError`.
    pub reason: &'static str,
    /// The sentence.
    pub message: String,
    /// When to try again.
    pub retry_at: Timestamp,
}

/// Where a container's image stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Image {
    /// Nobody looked yet.
    #[default]
    Unknown,
    /// Being pulled.
    Pulling,
    /// Here, for the next start.
    Ready,
    /// Not to be had now.
    Failed {
        /// `ErrImagePull` and so on.
        reason: &'static str,
        /// The sentence.
        message: String,
        /// When to try again.
        retry_at: Timestamp,
        /// How long the last wait was.
        delay: Duration,
    },
}

/// A container that was told to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopping {
    /// SIGKILL comes then.
    pub kill_at: Timestamp,
    /// It came.
    pub killed: bool,
    /// How far it is.
    pub phase: Phase,
}

/// How far a container that is to end was told so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Its preStop hook runs.
    Hook,
    /// That has returned: the signal is next, when it is the container's turn.
    Due,
    /// It got its signal.
    Told,
}

/// One run of a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    /// The container's ID.
    pub id: String,
    /// 0, then one more for each restart.
    pub number: u32,
    /// The sandbox that it ran in.
    pub generation: u64,
    /// What the agent keeps with it.
    pub note: Note,
    /// In the host's PID namespace.
    pub pid: i32,
    /// When its command was executed; for a failed start, when that was tried.
    pub started_at: Timestamp,
    /// Unset while it runs.
    pub finish: Option<Finish>,
}

impl Attempt {
    /// It ran, and runs no more.
    pub fn finished(&self) -> Option<&Finish> {
        self.finish.as_ref()
    }
}

/// What the agent keeps with an attempt, in the holder: the memory of an agent that comes after.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Note {
    /// `image` as the spec had it.
    pub image: String,
    /// The image's ID.
    pub image_id: String,
    /// What the next attempt would have to wait after this one's end, in milliseconds.
    pub delay_ms: u64,
    /// The image's stop signal, or the spec's.
    pub stop_signal: i32,
    /// What it was started with, or resized to since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// What the pod as a whole had then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_resources: Option<ResourceRequirements>,
    /// How often all containers had begun anew before it.
    #[serde(skip_serializing_if = "is_zero")]
    pub resets: u64,
    /// What its hook and probes have said so far.
    #[serde(skip_serializing_if = "Health::is_fine")]
    pub health: Health,
    /// When they said that, if it wasn't so from its start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub told: Option<Timestamp>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's own way")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What a running container's postStart hook and probes have said so far. Where there are none, all is fine from the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Health {
    /// The postStart hook has returned.
    pub hooked: bool,
    /// The startup probe has succeeded.
    pub started: bool,
    /// The readiness probe succeeds.
    pub ready: bool,
}

impl Default for Health {
    fn default() -> Self {
        Self { hooked: true, started: true, ready: true }
    }
}

impl Health {
    /// Of a container that starts now.
    pub fn at_start(container: &k8s::Container) -> Self {
        Self {
            hooked: container.lifecycle.as_ref().is_none_or(|l| l.post_start.is_none()),
            started: container.startup_probe.is_none(),
            ready: container.readiness_probe.is_none(),
        }
    }

    /// There is nothing to remember.
    pub fn is_fine(&self) -> bool {
        *self == Self::default()
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finish {
    /// 0..=255.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// When.
    pub at: Timestamp,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, `ContainerStatusUnknown`.
    pub reason: Cow<'static, str>,
    /// The termination message.
    pub message: Option<String>,
}

impl Container {
    /// The running attempt.
    pub fn running(&self) -> Option<&Attempt> {
        self.last.as_ref().filter(|a| a.finish.is_none())
    }
    /// The running attempt, once its postStart hook has returned and its startup probe has succeeded.
    pub fn started(&self) -> Option<&Attempt> {
        self.running().filter(|a| a.note.health.hooked && a.note.health.started)
    }
    /// It takes requests.
    pub fn is_ready(&self) -> bool {
        self.started().is_some_and(|a| a.note.health.ready)
    }
    /// The end of the newest attempt in this sandbox.
    pub fn ended_in(&self, generation: u64) -> Option<&Finish> {
        self.last.as_ref().filter(|a| a.generation == generation).and_then(|a| a.finish.as_ref())
    }
}
