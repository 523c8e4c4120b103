//! StatefulSet: pods with names and claims that stay, one after the other. Pure.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/statefulset/>.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, PodTemplateSpec, Volume};

use super::pods::{Owned, Round, scaled};
use super::rollout::{self, Progress};
use super::{History, Name, NewPod, Revision, Steps, room};

/// Which template a pod was made from.
pub const REVISION: &str = "controller-revision-hash";

/// What a StatefulSet comes to.
#[derive(Debug)]
pub struct Planned {
    /// Its status.
    pub status: StatefulSetStatus,
    /// What else is to be remembered.
    pub history: History,
    /// What is to be done with its pods.
    pub steps: Steps,
}

/// One look.
pub fn plan(set: &StatefulSet, history: &History, pods: &[Owned], now: Timestamp) -> Planned {
    let mut history = history.clone();
    let update = rollout::target(&mut history, &set.spec.template, &set.metadata);
    let status = set.status.clone().unwrap_or_default();
    let name = set.metadata.name.as_deref().unwrap_or_default();
    let current = status.current_revision.as_deref().and_then(|r| r.strip_prefix(name)?.strip_prefix('-'));
    let current = history.revisions.iter().find(|r| Some(r.hash.as_str()) == current).cloned().unwrap_or_else(|| update.clone());
    let by_ordinal = pods.iter().filter(|p| !p.gone).filter_map(|p| Some((ordinal(set, p)?, p))).collect();
    let mut look = Look { set, update, current, pods: by_ordinal, now, room: room(pods), steps: Steps::default() };
    look.run();
    let status = look.status(&mut history);
    Planned { status, history, steps: look.steps }
}

struct Look<'a> {
    set: &'a StatefulSet,
    update: Revision,
    current: Revision,
    pods: BTreeMap<i32, &'a Owned>,
    now: Timestamp,
    /// Pods that may be made at this look.
    room: usize,
    steps: Steps,
}

/// Whether what comes later in the order may be looked at now.
#[derive(PartialEq, Eq)]
enum Next {
    GoOn,
    Wait,
}

impl Look<'_> {
    fn run(&mut self) {
        self.replace_broken();
        let mut next = Next::GoOn;
        for ordinal in self.wanted() {
            if self.one(ordinal) == Next::Wait {
                let full = self.steps.create.len() >= self.room;
                next = if self.ordered() || full { Next::Wait } else { next };
                if next == Next::Wait {
                    break;
                }
            }
        }
        if next == Next::GoOn && self.condemn() == Next::GoOn && self.rolls() {
            self.roll();
        }
    }

    fn first(&self) -> i32 {
        self.set.spec.ordinals.as_ref().and_then(|o| o.start).unwrap_or(0)
    }

    fn wanted(&self) -> std::ops::Range<i32> {
        let first = self.first();
        first..first.saturating_add(self.set.spec.replicas.unwrap_or(1))
    }

    fn ordered(&self) -> bool {
        self.set.spec.pod_management_policy.as_deref() != Some("Parallel")
    }

    fn rolls(&self) -> bool {
        self.set.spec.update_strategy.as_ref().and_then(|s| s.type_.as_deref()) != Some("OnDelete")
    }

    fn partition(&self) -> i32 {
        let rolling = self.set.spec.update_strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
        self.first().saturating_add(rolling.and_then(|r| r.partition).unwrap_or(0))
    }

    fn min_ready(&self) -> i32 {
        self.set.spec.min_ready_seconds.unwrap_or(0)
    }

    fn is_updated(&self, pod: &Owned) -> bool {
        pod.label(REVISION) == Some(&revision_name(self.set, &self.update.hash))
    }

    fn available(&self, pod: &Owned) -> bool {
        pod.active() && pod.available(self.min_ready(), self.now)
    }

    /// A pod that isn't ready and is of a template that isn't wanted any more stands in its successor's way.
    fn replace_broken(&mut self) {
        if !self.rolls() {
            return;
        }
        let partition = self.partition();
        let broken = self.pods.range(partition..).filter(|(_, p)| p.active() && !p.ready() && !self.is_updated(p));
        let broken: Vec<_> = broken.map(|(_, p)| (p.uid(), p.name().to_owned())).collect();
        for (uid, name) in broken {
            self.delete(uid, &name);
        }
    }

    fn one(&mut self, ordinal: i32) -> Next {
        let Some(pod) = self.pods.get(&ordinal).copied() else {
            if self.steps.create.len() < self.room {
                self.create(ordinal);
            }
            return Next::Wait;
        };
        if pod.finished() && !pod.terminating() {
            self.delete(pod.uid(), pod.name());
            return Next::Wait;
        }
        if self.steps.delete.contains(&pod.uid()) || pod.terminating() || !pod.ready() {
            return Next::Wait;
        }
        match pod.available_at(self.min_ready()).filter(|at| *at > self.now) {
            Some(at) => {
                self.steps.at(at);
                Next::Wait
            }
            None => Next::GoOn,
        }
    }

    /// Those above the wanted ones go, the highest first.
    fn condemn(&mut self) -> Next {
        let wanted = self.wanted();
        let surplus: Vec<&Owned> = self.pods.iter().rev().filter(|(o, _)| !wanted.contains(o)).map(|(_, p)| *p).collect();
        for pod in &surplus {
            if !pod.terminating() {
                self.delete(pod.uid(), pod.name());
            }
            if self.ordered() {
                return Next::Wait;
            }
        }
        if surplus.is_empty() { Next::GoOn } else { Next::Wait }
    }

    /// Pods of another template go, the highest first, as many as may be missing.
    fn roll(&mut self) {
        let rolling = self.set.spec.update_strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
        let replicas = self.set.spec.replicas.unwrap_or(1);
        let limit = match rolling.and_then(|r| r.max_unavailable.as_ref()) {
            None => 1,
            value => scaled(value, replicas, Round::Up).max(1),
        };
        let missing = self.wanted().filter(|o| !self.pods.get(o).is_some_and(|p| self.available(p))).count();
        let mut spare = limit.saturating_sub(i32::try_from(missing).unwrap_or(i32::MAX));
        let partition = self.partition();
        let old = self.pods.range(partition..).rev().filter(|(_, p)| p.active() && !self.is_updated(p));
        let old: Vec<&Owned> = old.map(|(_, p)| *p).collect();
        for pod in old.into_iter().filter(|p| !self.steps.delete.contains(&p.uid())).collect::<Vec<_>>() {
            if spare <= 0 {
                return;
            }
            spare -= 1;
            self.delete(pod.uid(), pod.name());
        }
    }

    fn delete(&mut self, uid: crate::model::PodUid, name: &str) {
        if !self.steps.delete.contains(&uid) {
            let set = self.set.metadata.name.as_deref().unwrap_or_default();
            self.steps.say("SuccessfulDelete", format!("delete Pod {name} in StatefulSet {set} successful"));
            self.steps.delete.push(uid);
        }
    }

    fn create(&mut self, ordinal: i32) {
        let revision = if self.rolls() && ordinal < self.partition() { &self.current } else { &self.update };
        let template = template(self.set, revision, ordinal);
        self.steps.create.push(NewPod { name: Name::Exactly(pod_name(self.set, ordinal)), template });
    }

    fn status(&mut self, history: &mut History) -> StatefulSetStatus {
        let alive: Vec<&Owned> = self.pods.values().copied().filter(|p| !p.finished()).collect();
        let staying: Vec<&&Owned> = alive.iter().filter(|p| p.active() && !self.steps.delete.contains(&p.uid())).collect();
        let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
        let with = |hash: &str| {
            let name = revision_name(self.set, hash);
            number(staying.iter().filter(|p| p.label(REVISION) == Some(&name)).count())
        };
        let ready = number(staying.iter().filter(|p| p.ready()).count());
        let available = number(staying.iter().filter(|p| self.available(p)).count());
        let good = number(staying.iter().filter(|p| self.is_updated(p) && self.available(p)).count());
        let updated = with(&self.update.hash);
        let replicas = self.set.spec.replicas.unwrap_or(1);
        let to_update = (self.wanted().end - self.partition()).clamp(0, replicas);
        let complete = good >= to_update && available == replicas && number(alive.len()) == replicas;
        rollout::judge(
            history,
            &self.update.hash,
            Progress { available: good, complete },
            &self.set.metadata,
            self.now,
            &mut self.steps,
        );
        if complete && updated == replicas {
            self.current = self.update.clone();
        }
        rollout::forget(history, self.set.spec.revision_history_limit, &[&self.update.hash, &self.current.hash]);
        let some = |number: i32| Some(number).filter(|n| *n > 0);
        StatefulSetStatus {
            replicas: number(alive.len()) + number(self.steps.create.len()),
            ready_replicas: some(ready),
            available_replicas: Some(available),
            current_replicas: some(with(&self.current.hash)),
            updated_replicas: some(updated),
            current_revision: Some(revision_name(self.set, &self.current.hash)),
            update_revision: Some(revision_name(self.set, &self.update.hash)),
            observed_generation: self.set.metadata.generation,
            collision_count: Some(0),
            conditions: None,
        }
    }
}

fn revision_name(set: &StatefulSet, hash: &str) -> String {
    format!("{}-{hash}", set.metadata.name.as_deref().unwrap_or_default())
}

fn pod_name(set: &StatefulSet, ordinal: i32) -> String {
    format!("{}-{ordinal}", set.metadata.name.as_deref().unwrap_or_default())
}

fn ordinal(set: &StatefulSet, pod: &Owned) -> Option<i32> {
    let name = set.metadata.name.as_deref().unwrap_or_default();
    pod.name().strip_prefix(name)?.strip_prefix('-')?.parse().ok()
}

fn template(set: &StatefulSet, revision: &Revision, ordinal: i32) -> PodTemplateSpec {
    let name = pod_name(set, ordinal);
    let mut template = revision.template.clone();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(REVISION.into(), revision_name(set, &revision.hash));
    labels.insert("statefulset.kubernetes.io/pod-name".into(), name.clone());
    labels.insert("apps.kubernetes.io/pod-index".into(), ordinal.to_string());
    let Some(spec) = &mut template.spec else { return template };
    spec.hostname = Some(name);
    spec.subdomain = set.spec.service_name.clone().filter(|service| !service.is_empty());
    let volumes = spec.volumes.get_or_insert_default();
    for claim in set.spec.volume_claim_templates.iter().flatten() {
        let name = claim.metadata.name.clone().unwrap_or_default();
        volumes.retain(|volume| volume.name != name);
        let source = PersistentVolumeClaimVolumeSource { claim_name: claim_name(set, &name, ordinal), read_only: None };
        volumes.push(Volume { name, persistent_volume_claim: Some(source), ..Volume::default() });
    }
    if volumes.is_empty() {
        spec.volumes = None;
    }
    template
}

fn claim_name(set: &StatefulSet, template: &str, ordinal: i32) -> String {
    format!("{template}-{}", pod_name(set, ordinal))
}

/// The claims of the pods of these names.
pub fn claims(set: &StatefulSet, pods: &[String]) -> Vec<PersistentVolumeClaim> {
    let templates = set.spec.volume_claim_templates.as_deref().unwrap_or_default();
    let made = pods.iter().flat_map(|pod| {
        templates.iter().map(move |template| {
            let mut claim = template.clone();
            let name = claim.metadata.name.take().unwrap_or_default();
            claim.metadata.name = Some(format!("{name}-{pod}"));
            claim.metadata.namespace.clone_from(&set.metadata.namespace);
            let labels = claim.metadata.labels.get_or_insert_default();
            labels.extend(set.spec.selector.match_labels.clone().unwrap_or_default());
            claim
        })
    });
    made.collect()
}

/// Whether a claim is of a pod that the set wants.
pub fn wants_claim(set: &StatefulSet, claim: &str) -> bool {
    let first = set.spec.ordinals.as_ref().and_then(|o| o.start).unwrap_or(0);
    let ordinals = first..first.saturating_add(set.spec.replicas.unwrap_or(1));
    let ordinal = claim.rsplit_once('-').and_then(|(_, ordinal)| ordinal.parse::<i32>().ok());
    ordinal.is_some_and(|ordinal| ordinals.contains(&ordinal))
}

/// Whether claims go: with the set, and with pods that it wants no more.
pub fn retention(set: &StatefulSet) -> (bool, bool) {
    let policy = set.spec.persistent_volume_claim_retention_policy.as_ref();
    let goes = |word: Option<&String>| word.is_some_and(|w| w == "Delete");
    (goes(policy.and_then(|p| p.when_deleted.as_ref())), goes(policy.and_then(|p| p.when_scaled.as_ref())))
}
