//! Workloads: what keeps Jobs, Deployments and the like at what they ask for. A pure core a kind (objects, owned pods and the clock →
//! pods to make and to end, status, when to look again), [`world`] that runs them over the whole tree, and one task, [`controller`],
//! which stands between the sources and the pod manager. Knows model, source's events and pod's store.

mod clock;
pub mod controller;
pub mod cron_job;
pub mod daemon_set;
pub mod deployment;
pub mod diff;
pub mod file;
pub mod job;
pub mod pods;
pub mod replica_set;
pub mod rollout;
pub mod stateful_set;
pub mod world;

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use ring::digest;
use serde::{Deserialize, Serialize};

use crate::model::PodUid;
use crate::pod::recorder::Level;

/// A pod to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct NewPod {
    /// Its name.
    pub name: Name,
    /// What it is made from, with what is this pod's own.
    pub template: PodTemplateSpec,
}

/// How a new pod is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// Like this.
    Exactly(String),
    /// With five characters after this.
    Starting(String),
}

/// An event to be written about the object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// How loud.
    pub level: Level,
    /// One word.
    pub reason: &'static str,
    /// The sentence.
    pub message: String,
}

/// What a core wants done with pods.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Steps {
    /// To be made.
    pub create: Vec<NewPod>,
    /// To be ended.
    pub delete: Vec<PodUid>,
    /// Whose end is in the status now, and is not to be counted again.
    pub counted: Vec<PodUid>,
    /// Events.
    pub said: Vec<Said>,
    /// When something changes by time alone.
    pub again: Option<Timestamp>,
}

impl Steps {
    /// Looks again at that time, or earlier.
    pub fn at(&mut self, time: Timestamp) {
        self.again = Some(self.again.map_or(time, |other| other.min(time)));
    }

    /// Something expected.
    pub fn say(&mut self, reason: &'static str, message: impl Into<String>) {
        self.said.push(Said { level: Level::Normal, reason, message: message.into() });
    }

    /// Something that somebody should look at.
    pub fn warn(&mut self, reason: &'static str, message: impl Into<String>) {
        self.said.push(Said { level: Level::Warning, reason, message: message.into() });
    }
}

/// What must be known of an object beside its status.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct History {
    /// A Job's pods that failed since the last that succeeded.
    pub failures: u32,
    /// When the last of them did.
    pub last_failure: Option<Timestamp>,
    /// A Job whose time to live after its end is over: gone for all but its file.
    pub expired: bool,
    /// Templates of a StatefulSet or DaemonSet, oldest first.
    pub revisions: Vec<Revision>,
    /// How far their rollout is.
    pub rollout: rollout::Rollout,
    /// Claims that a StatefulSet has made.
    pub claims: BTreeSet<String>,
}

/// A template that pods were made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Revision {
    /// Of the template.
    pub hash: String,
    /// Counts up.
    pub number: i64,
    /// The template.
    pub template: PodTemplateSpec,
}

/// Pods of one owner that may be on their way at a time: more would only wait, whatever a manifest asks for.
const BURST: usize = 500;

/// How many more pods may be made now.
fn room(pods: &[pods::Owned]) -> usize {
    let unshown = pods.iter().filter(|pod| pod.pod.status.is_none() && !pod.gone).count();
    BURST.saturating_sub(unshown)
}

/// The characters that Kubernetes makes names of: no vowels, so no words.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Letters from bytes.
pub fn letters(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()])).collect()
}

/// `pod-template-hash`: the same template has the same, whatever order its maps were written in.
pub fn template_hash(template: &PodTemplateSpec) -> String {
    let mut template = template.clone();
    if let Some(labels) = template.metadata.as_mut().and_then(|m| m.labels.as_mut()) {
        labels.remove(TEMPLATE_HASH);
    }
    let text = serde_json::to_vec(&template).unwrap_or_default();
    letters(&digest::digest(&digest::SHA256, &text).as_ref()[..10])
}

/// The label that tells a Deployment's ReplicaSets apart.
pub const TEMPLATE_HASH: &str = "pod-template-hash";
