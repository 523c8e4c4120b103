//! Deployment: from one template's ReplicaSet to the next one's, gated by readiness, and back to the last good one when the new one
//! doesn't become ready in time. Pure. <https://kubernetes.io/docs/concepts/workloads/controllers/deployment/>.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::pods::{Round, after, scaled};
use super::{Steps, TEMPLATE_HASH, template_hash};

/// Counts up with each template that is rolled out.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
/// On a ReplicaSet that once was fully available.
const GOOD: &str = "nodeagent.dev/was-available";
/// On a ReplicaSet that did not become available in time: the Deployment's generation at that time.
const FAILED: &str = "nodeagent.dev/failed-generation";
/// On a Deployment: `"false"` leaves a version that doesn't become ready where it is, as a cluster does.
const ROLLBACK: &str = "nodeagent.dev/rollback";

/// What a Deployment comes to.
#[derive(Debug)]
pub struct Planned {
    /// Its status.
    pub status: DeploymentStatus,
    /// Its ReplicaSets as they are to be. Those without a UID are new, those that are missing are to go.
    pub sets: Vec<ReplicaSet>,
    /// Events, and when to look again.
    pub steps: Steps,
}

/// One step of the way.
pub fn plan(deployment: &Deployment, mut sets: Vec<ReplicaSet>, now: Timestamp) -> Planned {
    let mut steps = Steps::default();
    sets.sort_by_key(|s| (s.metadata.creation_timestamp.clone().map(|t| t.0), s.metadata.name.clone()));
    let mut rollout = Rollout { deployment, sets, now, steps: &mut steps };
    let wanted = template_hash(&deployment.spec.template);
    let paused = deployment.spec.paused == Some(true);
    if !paused && rollout.by_hash(&wanted).is_none() {
        rollout.create(&wanted);
    }
    let target = rollout.target(&wanted);
    if paused {
        rollout.scale_paused(target);
    } else if let Some(target) = target {
        rollout.revise(target);
        rollout.carry_settings();
        match deployment.spec.strategy.as_ref().and_then(|s| s.type_.as_deref()) {
            Some("Recreate") => rollout.recreate(target),
            _ => rollout.roll(target),
        }
    }
    let status = rollout.status(target, &wanted);
    rollout.forget(target);
    let sets = rollout.sets;
    Planned { status, sets, steps }
}

struct Rollout<'a> {
    deployment: &'a Deployment,
    sets: Vec<ReplicaSet>,
    now: Timestamp,
    steps: &'a mut Steps,
}

impl Rollout<'_> {
    fn by_hash(&self, hash: &str) -> Option<usize> {
        self.sets.iter().position(|set| label(set, TEMPLATE_HASH) == Some(hash))
    }

    fn create(&mut self, hash: &str) {
        let spec = &self.deployment.spec;
        let mut template = spec.template.clone();
        template.metadata.get_or_insert_default().labels.get_or_insert_default().insert(TEMPLATE_HASH.into(), hash.into());
        let mut selector = spec.selector.clone();
        selector.match_labels.get_or_insert_default().insert(TEMPLATE_HASH.into(), hash.into());
        let name = format!("{}-{hash}", self.deployment.metadata.name.as_deref().unwrap_or_default());
        self.sets.push(ReplicaSet {
            metadata: ObjectMeta {
                name: Some(name),
                namespace: self.deployment.metadata.namespace.clone(),
                labels: template.metadata.as_ref().and_then(|m| m.labels.clone()),
                annotations: Some(BTreeMap::from([(REVISION.into(), "0".into())])),
                creation_timestamp: Some(Time(self.now)),
                ..ObjectMeta::default()
            },
            spec: ReplicaSetSpec {
                replicas: Some(0),
                selector,
                template: Some(template),
                min_ready_seconds: spec.min_ready_seconds,
            },
            status: None,
        });
    }

    /// The set that is to have all pods: the template's own, or after its failure the last one that was good.
    fn target(&self, wanted: &str) -> Option<usize> {
        let own = self.by_hash(wanted)?;
        let generation = self.deployment.metadata.generation.unwrap_or(0).to_string();
        if annotation(&self.sets[own], FAILED) != Some(&generation) {
            return Some(own);
        }
        self.last_good(own).or(Some(own))
    }

    fn last_good(&self, but: usize) -> Option<usize> {
        let good = (0..self.sets.len()).filter(|i| *i != but && annotation(&self.sets[*i], GOOD).is_some());
        good.max_by_key(|i| revision(&self.sets[*i]))
    }

    /// The target has the highest revision, also one that comes back.
    fn revise(&mut self, target: usize) {
        let others = self.sets.iter().enumerate().filter(|(i, _)| *i != target).map(|(_, s)| revision(s)).max().unwrap_or(0);
        if revision(&self.sets[target]) <= others {
            annotate(&mut self.sets[target], REVISION, &(others + 1).to_string());
        }
    }

    fn carry_settings(&mut self) {
        let desired = desired(self.deployment).to_string();
        for set in &mut self.sets {
            set.spec.min_ready_seconds = self.deployment.spec.min_ready_seconds;
            annotate(set, "deployment.kubernetes.io/desired-replicas", &desired);
        }
    }

    fn scale(&mut self, index: usize, to: i64) {
        let from = replicas(&self.sets[index]);
        if from != to {
            let name = self.sets[index].metadata.name.clone().unwrap_or_default();
            let way = if to > from { "up" } else { "down" };
            self.steps.say("ScalingReplicaSet", format!("Scaled {way} replica set {name} from {from} to {to}"));
            self.sets[index].spec.replicas = Some(i32::try_from(to).unwrap_or(i32::MAX));
        }
    }

    /// Paused: no version changes, but the number of pods may.
    fn scale_paused(&mut self, target: Option<usize>) {
        let alive: Vec<usize> = (0..self.sets.len()).filter(|i| replicas(&self.sets[*i]) > 0).collect();
        match (alive[..].as_ref(), target) {
            ([only], _) => self.scale(*only, desired(self.deployment)),
            ([], Some(target)) => self.scale(target, desired(self.deployment)),
            _ => {}
        }
    }

    fn recreate(&mut self, target: usize) {
        let others: Vec<usize> = (0..self.sets.len()).filter(|i| *i != target).collect();
        let mut empty = true;
        for index in others {
            self.scale(index, 0);
            let status = self.sets[index].status.as_ref();
            empty &= status.is_none_or(|s| s.replicas == 0 && s.terminating_replicas.unwrap_or(0) == 0);
        }
        if empty {
            self.scale(target, desired(self.deployment));
        }
    }

    fn roll(&mut self, target: usize) {
        let desired = desired(self.deployment);
        let (surge, unavailable) = allowances(self.deployment);
        let total: i64 = self.sets.iter().map(replicas).sum();
        let own = replicas(&self.sets[target]);
        if own > desired {
            self.scale(target, desired);
        } else if total < desired + surge {
            self.scale(target, own + (desired + surge - total).min(desired - own));
        }
        self.shrink_old(target, desired - unavailable);
    }

    /// Takes from the old sets what may be missed: those that aren't available first, then as many as keeps the minimum.
    fn shrink_old(&mut self, target: usize, minimum: i64) {
        let old: Vec<usize> = (0..self.sets.len()).filter(|i| *i != target && replicas(&self.sets[*i]) > 0).collect();
        let total: i64 = self.sets.iter().map(replicas).sum();
        let missing = replicas(&self.sets[target]) - available(&self.sets[target]);
        let mut spare = total - minimum - missing;
        for index in &old {
            let (has, good) = (replicas(&self.sets[*index]), available(&self.sets[*index]));
            let take = spare.min(has - good).max(0);
            self.scale(*index, has - take);
            spare -= take;
        }
        let mut spare = self.sets.iter().map(available).sum::<i64>() - minimum;
        for index in old {
            let has = replicas(&self.sets[index]);
            let take = spare.min(has).max(0);
            self.scale(index, has - take);
            spare -= take;
        }
    }

    fn status(&mut self, target: Option<usize>, wanted: &str) -> DeploymentStatus {
        let old = self.deployment.status.clone().unwrap_or_default();
        let desired = desired(self.deployment);
        let sum = |of: &dyn Fn(&ReplicaSet) -> i64| self.sets.iter().map(of).sum::<i64>();
        let (total, ready, good) = (sum(&actual), sum(&ready), sum(&available));
        let ending = sum(&|s| s.status.as_ref().and_then(|s| s.terminating_replicas).unwrap_or(0).into());
        let updated = target.map_or(0, |i| actual(&self.sets[i]));
        let number = |count: i64| i32::try_from(count).unwrap_or(i32::MAX);
        let some = |count: i64| Some(number(count)).filter(|n| *n > 0);
        let mut status = DeploymentStatus {
            observed_generation: self.deployment.metadata.generation,
            replicas: some(total),
            updated_replicas: some(updated),
            ready_replicas: some(ready),
            available_replicas: some(good),
            unavailable_replicas: some(desired.max(total) - good),
            terminating_replicas: Some(number(ending)),
            collision_count: old.collision_count,
            conditions: old.conditions.clone(),
        };
        let (_, unavailable) = allowances(self.deployment);
        let (is, reason, message) = if good >= desired - unavailable {
            ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
        } else {
            ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
        };
        self.set_condition(&mut status, "Available", is, reason, message);
        if let Some(target) = target {
            self.progress(&mut status, &old, target, wanted);
        }
        status
    }

    /// The condition Progressing, and what follows when its time is over.
    fn progress(&mut self, status: &mut DeploymentStatus, old: &DeploymentStatus, target: usize, wanted: &str) {
        let desired = desired(self.deployment);
        let name = self.sets[target].metadata.name.clone().unwrap_or_default();
        let own = self.by_hash(wanted) == Some(target);
        let total: i64 = self.sets.iter().map(actual).sum();
        let complete = actual(&self.sets[target]) == desired && total == desired && available(&self.sets[target]) >= desired;
        if complete {
            annotate(&mut self.sets[target], GOOD, "true");
            if own {
                let message = format!("ReplicaSet \"{name}\" has successfully progressed.");
                self.set_condition(status, "Progressing", "True", "NewReplicaSetAvailable", &message);
            }
            return;
        }
        if !own {
            return;
        }
        let before = condition(old, "Progressing");
        let was = before.and_then(|c| c.reason.as_deref()).unwrap_or_default();
        if before.is_some_and(|c| c.message.as_deref().is_some_and(|m| m.contains(&format!("\"{name}\"")))) {
            let advanced = status.updated_replicas > old.updated_replicas
                || status.ready_replicas > old.ready_replicas
                || status.available_replicas > old.available_replicas
                || total - actual(&self.sets[target]) < i64::from(old.replicas.unwrap_or(0) - old.updated_replicas.unwrap_or(0));
            let since = before.and_then(|c| c.last_update_time.as_ref().map(|t| t.0)).unwrap_or(self.now);
            let limit = i64::from(self.deployment.spec.progress_deadline_seconds.unwrap_or(600));
            let deadline = after(since, limit).filter(|_| limit < i64::from(i32::MAX));
            if advanced {
                let message = format!("ReplicaSet \"{name}\" is progressing.");
                self.set_condition(status, "Progressing", "True", "ReplicaSetUpdated", &message);
                self.touch(status);
                self.steps.at(after(self.now, limit).unwrap_or(Timestamp::MAX));
            } else if was == "NewReplicaSetAvailable" {
                // It was complete: pods that end later are the ReplicaSet's matter, not a rollout's.
            } else if was != "ProgressDeadlineExceeded" {
                match deadline {
                    Some(deadline) if deadline <= self.now => self.give_up(status, target, &name),
                    Some(deadline) => self.steps.at(deadline),
                    None => {}
                }
            }
            return;
        }
        let new = self.sets[target].metadata.uid.is_none();
        let (reason, what) = if new { ("NewReplicaSetCreated", "Created new") } else { ("FoundNewReplicaSet", "Found new") };
        self.set_condition(status, "Progressing", "True", reason, &format!("{what} replica set \"{name}\""));
        self.touch(status);
        if let Some(deadline) = after(self.now, i64::from(self.deployment.spec.progress_deadline_seconds.unwrap_or(600))) {
            self.steps.at(deadline);
        }
    }

    fn give_up(&mut self, status: &mut DeploymentStatus, target: usize, name: &str) {
        let mut message = format!("ReplicaSet \"{name}\" has timed out progressing.");
        let annotations = self.deployment.metadata.annotations.as_ref();
        let wanted = annotations.and_then(|a| a.get(ROLLBACK)).is_none_or(|v| v != "false");
        if let Some(good) = self.last_good(target).filter(|_| wanted) {
            let generation = self.deployment.metadata.generation.unwrap_or(0).to_string();
            annotate(&mut self.sets[target], FAILED, &generation);
            let good = self.sets[good].metadata.name.clone().unwrap_or_default();
            message = format!("{message} Rolled back to \"{good}\", which was the last to become available.");
            self.steps.warn("DeploymentRollback", message.clone());
            self.steps.at(self.now);
        } else {
            self.steps.warn("ProgressDeadlineExceeded", message.clone());
        }
        self.set_condition(status, "Progressing", "False", "ProgressDeadlineExceeded", &message);
    }

    fn set_condition(&self, status: &mut DeploymentStatus, kind: &str, is: &str, reason: &str, message: &str) {
        let conditions = status.conditions.get_or_insert_default();
        let now = Some(Time(self.now));
        let new = DeploymentCondition {
            type_: Some(kind.into()),
            status: Some(is.into()),
            reason: Some(reason.into()),
            message: Some(message.into()),
            last_transition_time: now.clone(),
            last_update_time: now,
        };
        match conditions.iter_mut().find(|c| c.type_.as_deref() == Some(kind)) {
            Some(old) if old.status == new.status && old.reason == new.reason && old.message == new.message => {}
            Some(old) => {
                let kept = if old.status == new.status { old.last_transition_time.clone() } else { None };
                *old = DeploymentCondition { last_transition_time: kept.or(new.last_transition_time.clone()), ..new };
            }
            None => conditions.push(new),
        }
    }

    /// Progress was made: the deadline counts from now.
    fn touch(&self, status: &mut DeploymentStatus) {
        let conditions = status.conditions.iter_mut().flatten();
        for progressing in conditions.filter(|c| c.type_.as_deref() == Some("Progressing")) {
            progressing.last_update_time = Some(Time(self.now));
        }
    }

    /// Old sets without pods, beyond the limit; the last good one stays.
    fn forget(&mut self, target: Option<usize>) {
        let keep = usize::try_from(self.deployment.spec.revision_history_limit.unwrap_or(10)).unwrap_or(0);
        let good = target.and_then(|t| self.last_good(t));
        let idle = |set: &ReplicaSet| {
            let ending = set.status.as_ref().and_then(|s| s.terminating_replicas).unwrap_or(0);
            replicas(set) == 0 && actual(set) == 0 && ending == 0 && set.metadata.uid.is_some()
        };
        let mut old: Vec<usize> =
            (0..self.sets.len()).filter(|i| Some(*i) != target && Some(*i) != good && idle(&self.sets[*i])).collect();
        old.sort_by_key(|i| std::cmp::Reverse(revision(&self.sets[*i])));
        let gone: Vec<Option<String>> = old.iter().skip(keep).map(|i| self.sets[*i].metadata.uid.clone()).collect();
        self.sets.retain(|set| set.metadata.uid.is_none() || !gone.contains(&set.metadata.uid));
    }
}

fn desired(deployment: &Deployment) -> i64 {
    deployment.spec.replicas.unwrap_or(1).into()
}

/// How many more, and how many fewer than desired there may be.
fn allowances(deployment: &Deployment) -> (i64, i64) {
    let desired = deployment.spec.replicas.unwrap_or(1);
    let Some(rolling) = deployment.spec.strategy.as_ref().and_then(|s| s.rolling_update.as_ref()) else { return (0, 0) };
    let surge = scaled(rolling.max_surge.as_ref(), desired, Round::Up);
    let unavailable = scaled(rolling.max_unavailable.as_ref(), desired, Round::Down).min(desired);
    // Both rounded to nothing would stand still.
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge.into(), unavailable.into()) }
}

fn replicas(set: &ReplicaSet) -> i64 {
    set.spec.replicas.unwrap_or(0).into()
}

fn actual(set: &ReplicaSet) -> i64 {
    set.status.as_ref().map_or(0, |s| s.replicas.into())
}

fn ready(set: &ReplicaSet) -> i64 {
    set.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0).into()
}

fn available(set: &ReplicaSet) -> i64 {
    set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0).into()
}

fn revision(set: &ReplicaSet) -> i64 {
    annotation(set, REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn label<'a>(set: &'a ReplicaSet, key: &str) -> Option<&'a str> {
    set.metadata.labels.as_ref()?.get(key).map(String::as_str)
}

fn annotation<'a>(set: &'a ReplicaSet, key: &str) -> Option<&'a str> {
    set.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

fn annotate(set: &mut ReplicaSet, key: &str, value: &str) {
    set.metadata.annotations.get_or_insert_default().insert(key.into(), value.into());
}

fn condition<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.as_ref()?.iter().find(|c| c.type_.as_deref() == Some(kind))
}
