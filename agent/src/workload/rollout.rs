//! Revisions of a StatefulSet's or DaemonSet's template: which one is wanted, and back to the last good one when it doesn't become
//! ready in time. Pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

use super::pods::after;
use super::{History, Revision, Steps, template_hash};

/// In seconds, as a Deployment's progressDeadlineSeconds, which these kinds lack. `"0"`: wait for ever, as a cluster does.
const DEADLINE: &str = "nodeagent.dev/progress-deadline-seconds";
/// A Deployment's default.
const DEFAULT_DEADLINE: i64 = 600;

/// How far the pods are on their way to a template.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rollout {
    /// The last template of which all pods became available.
    pub good: Option<String>,
    /// The template on the way, how many of its pods were available, and since when.
    pub on_the_way: Option<(String, i32, Timestamp)>,
    /// The object's generation whose template did not become available in time.
    pub failed: Option<i64>,
}

/// The template that pods are to have: the object's own, or after its failure the last good one.
pub fn target(history: &mut History, template: &PodTemplateSpec, metadata: &ObjectMeta) -> Revision {
    let own = remember(history, template);
    if history.rollout.failed.is_none() || history.rollout.failed != metadata.generation {
        return own;
    }
    let good = history.rollout.good.as_ref().and_then(|good| history.revisions.iter().find(|r| r.hash == *good));
    good.cloned().unwrap_or(own)
}

fn remember(history: &mut History, template: &PodTemplateSpec) -> Revision {
    let hash = template_hash(template);
    let highest = history.revisions.iter().map(|r| r.number).max().unwrap_or(0);
    if let Some(known) = history.revisions.iter_mut().find(|r| r.hash == hash) {
        if known.number < highest {
            known.number = highest + 1;
        }
        return known.clone();
    }
    let new = Revision { hash, number: highest + 1, template: template.clone() };
    history.revisions.push(new.clone());
    new
}

/// How many of the target's pods are available, and whether these are all that are wanted.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Available pods of the target.
    pub available: i32,
    /// Whether the rollout is done.
    pub complete: bool,
}

/// Notes progress; gives a template up that makes none.
pub fn judge(history: &mut History, target: &str, progress: Progress, metadata: &ObjectMeta, now: Timestamp, steps: &mut Steps) {
    let rollout = &mut history.rollout;
    if progress.complete {
        rollout.good = Some(target.to_owned());
        rollout.on_the_way = None;
        return;
    }
    if rollout.good.as_deref() == Some(target) {
        return;
    }
    let since = match &rollout.on_the_way {
        Some((hash, before, since)) if hash == target && progress.available <= *before => *since,
        _ => now,
    };
    rollout.on_the_way = Some((target.to_owned(), progress.available, since));
    let asked = metadata.annotations.as_ref().and_then(|a| a.get(DEADLINE)?.parse().ok());
    let (Some(good), limit @ 1..) = (&rollout.good, asked.unwrap_or(DEFAULT_DEADLINE)) else { return };
    match after(since, limit) {
        Some(deadline) if deadline > now => steps.at(deadline),
        _ => {
            steps.warn("RolledBack", format!("revision {target} has timed out progressing: rolled back to {good}"));
            rollout.failed = metadata.generation;
            rollout.on_the_way = None;
            steps.at(now);
        }
    }
}

/// Forgets templates that no pod has, beyond the limit.
pub fn forget(history: &mut History, limit: Option<i32>, used: &[&str]) {
    let keep = usize::try_from(limit.unwrap_or(10)).unwrap_or(0);
    let good = history.rollout.good.clone();
    let unused = |r: &Revision| !used.contains(&r.hash.as_str()) && Some(&r.hash) != good.as_ref();
    history.revisions.sort_by_key(|r| r.number);
    let mut surplus = history.revisions.iter().filter(|r| unused(r)).count().saturating_sub(keep);
    history.revisions.retain(|r| {
        let drop = surplus > 0 && unused(r);
        surplus -= usize::from(drop);
        !drop
    });
}
