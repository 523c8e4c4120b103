//! DaemonSet: one pod on each node, and here is one node. Pure.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/daemonset/>.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{PodTemplateSpec, Toleration};

use super::pods::{Owned, Round, scaled};
use super::replica_set::replacement_time;
use super::rollout::{self, Progress};
use super::stateful_set::REVISION;
use super::{History, Name, NewPod, Revision, Steps};

/// What nodes may suffer from and a daemon stays for.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];

/// What a DaemonSet comes to.
#[derive(Debug)]
pub struct Planned {
    /// Its status.
    pub status: DaemonSetStatus,
    /// What else is to be remembered.
    pub history: History,
    /// What is to be done with its pods.
    pub steps: Steps,
}

/// One look.
pub fn plan(set: &DaemonSet, history: &History, pods: &[Owned], now: Timestamp) -> Planned {
    let mut history = history.clone();
    let update = rollout::target(&mut history, &set.spec.template, &set.metadata);
    let pods: Vec<&Owned> = pods.iter().filter(|p| !p.gone).collect();
    let mut look = Look { set, update, pods, now, steps: Steps::default() };
    look.run();
    let status = look.status(&mut history);
    rollout::forget(&mut history, set.spec.revision_history_limit, &[&look.update.hash]);
    Planned { status, history, steps: look.steps }
}

struct Look<'a> {
    set: &'a DaemonSet,
    update: Revision,
    pods: Vec<&'a Owned>,
    now: Timestamp,
    steps: Steps,
}

impl Look<'_> {
    fn run(&mut self) {
        let failed: Vec<&Owned> = self.pods.iter().copied().filter(|p| p.finished() && !p.terminating()).collect();
        let failed_before: Vec<Owned> = failed.iter().map(|p| (*p).clone()).collect();
        if let Some(at) = replacement_time(&failed_before).filter(|at| *at > self.now) {
            self.steps.at(at);
            return;
        }
        for pod in failed {
            self.steps.warn("FailedDaemonPod", format!("Found failed daemon pod {} on node, will try to kill it", pod.name()));
            self.delete(pod);
        }
        let new: Vec<&Owned> = self.pods.iter().copied().filter(|p| p.active() && self.is_updated(p)).collect();
        let old: Vec<&Owned> = self.pods.iter().copied().filter(|p| p.active() && !self.is_updated(p)).collect();
        let ending = self.pods.iter().any(|p| p.terminating() && !p.finished());
        for pod in new.iter().skip(1).chain(old.iter().skip(1)) {
            self.delete(pod);
        }
        let strategy = self.set.spec.update_strategy.as_ref();
        let surge = self.surge() > 0;
        match (new.first(), old.first()) {
            (None, None) if ending && !surge => {}
            (None, None) => self.create(),
            (_, Some(_)) if strategy.and_then(|s| s.type_.as_deref()) == Some("OnDelete") => {}
            (None, Some(old)) if surge => {
                self.create();
                // One that isn't ready is no loss.
                if !self.available(old) {
                    self.delete(old);
                }
            }
            (Some(new), Some(old)) if surge && !self.available(new) && self.available(old) => {
                if let Some(at) = new.available_at(self.min_ready()).filter(|at| *at > self.now) {
                    self.steps.at(at);
                }
            }
            (_, Some(old)) => self.delete(old),
            (Some(new), None) => {
                if let Some(at) = new.available_at(self.min_ready()).filter(|at| *at > self.now) {
                    self.steps.at(at);
                }
            }
        }
    }

    fn surge(&self) -> i32 {
        let rolling = self.set.spec.update_strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
        scaled(rolling.and_then(|r| r.max_surge.as_ref()), 1, Round::Up)
    }

    fn min_ready(&self) -> i32 {
        self.set.spec.min_ready_seconds.unwrap_or(0)
    }

    fn available(&self, pod: &Owned) -> bool {
        pod.active() && pod.available(self.min_ready(), self.now)
    }

    fn is_updated(&self, pod: &Owned) -> bool {
        pod.label(REVISION) == Some(&self.update.hash)
    }

    fn delete(&mut self, pod: &Owned) {
        if !self.steps.delete.contains(&pod.uid()) {
            self.steps.say("SuccessfulDelete", format!("Deleted pod: {}", pod.name()));
            self.steps.delete.push(pod.uid());
        }
    }

    fn create(&mut self) {
        let name = self.set.metadata.name.as_deref().unwrap_or_default();
        let template = template(&self.update);
        self.steps.create.push(NewPod { name: Name::Starting(format!("{name}-")), template });
    }

    fn status(&mut self, history: &mut History) -> DaemonSetStatus {
        let staying: Vec<&&Owned> = self.pods.iter().filter(|p| p.active() && !self.steps.delete.contains(&p.uid())).collect();
        let any = |fits: &dyn Fn(&Owned) -> bool| i32::from(staying.iter().any(|p| fits(p)));
        let created = i32::from(!self.steps.create.is_empty());
        let available = any(&|p| self.available(p));
        let good = any(&|p| self.available(p) && self.is_updated(p));
        let updated = any(&|p| self.is_updated(p)).max(created);
        let current = any(&|_| true).max(created);
        let ready = any(&Owned::ready);
        let progress = Progress { available: good, complete: good == 1 && staying.len() == 1 };
        rollout::judge(history, &self.update.hash, progress, &self.set.metadata, self.now, &mut self.steps);
        let some = |number: i32| Some(number).filter(|n| *n > 0);
        DaemonSetStatus {
            desired_number_scheduled: 1,
            current_number_scheduled: current,
            number_misscheduled: 0,
            number_ready: ready,
            number_available: some(available),
            number_unavailable: some(1 - available),
            updated_number_scheduled: some(updated),
            observed_generation: self.set.metadata.generation,
            collision_count: None,
            conditions: None,
        }
    }
}

fn template(revision: &Revision) -> PodTemplateSpec {
    let mut template = revision.template.clone();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(REVISION.into(), revision.hash.clone());
    labels.insert("pod-template-generation".into(), revision.number.to_string());
    if let Some(spec) = &mut template.spec {
        let tolerations = spec.tolerations.get_or_insert_default();
        tolerations.extend(TOLERATED.map(|(key, effect)| toleration(key, effect)));
        if spec.host_network == Some(true) {
            tolerations.push(toleration("node.kubernetes.io/network-unavailable", "NoSchedule"));
        }
    }
    template
}

fn toleration(key: &str, effect: &str) -> Toleration {
    Toleration { key: Some(key.into()), operator: Some("Exists".into()), effect: Some(effect.into()), ..Toleration::default() }
}
