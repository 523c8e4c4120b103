//! Indexed Jobs: each index has to end well once. Pure.

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{JobSpec, JobStatus, SuccessPolicyRule};
use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, PodTemplateSpec};

use super::pause_end;
use super::policy::{self, Verdict};
use crate::model::workload::indexes::Indexes;
use crate::workload::pods::Owned;
use crate::workload::{Name, NewPod};

/// Which index a pod is for.
pub(super) const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// How often the pods before this one failed at its index.
pub(super) const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// And how often in a way that the Job's policy ignores.
const IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

/// How far the indexes are.
pub(super) struct Indexed {
    pub(super) completed: Indexes,
    pub(super) failed: Indexes,
    completions: i32,
}

impl Indexed {
    pub(super) fn of(spec: &JobSpec, status: &JobStatus) -> Self {
        Self {
            completed: Indexes::read(status.completed_indexes.as_deref().unwrap_or_default()),
            failed: Indexes::read(status.failed_indexes.as_deref().unwrap_or_default()),
            completions: spec.completions.unwrap_or(0),
        }
    }

    pub(super) fn complete(&mut self, pod: &Owned) {
        if let Some(index) = index(pod).filter(|index| (0..self.completions).contains(index)) {
            self.completed.insert(index);
        }
    }

    /// An index that failed more often than it may is given up, where the Job says how often that is.
    pub(super) fn fail(&mut self, pod: &Owned, spec: &JobSpec) {
        let (Some(index), Some(limit)) = (index(pod), spec.backoff_limit_per_index) else { return };
        let told = matches!(policy::verdict(spec, pod), Some((Verdict::FailIndex, _)));
        if told || counted(pod, FAILURES) >= limit {
            self.failed.insert(index);
        }
    }

    /// How many indexes are neither done nor given up.
    pub(super) fn open(&self) -> usize {
        usize::try_from(self.completions).unwrap_or(0).saturating_sub(self.completed.len() + self.failed.len())
    }

    pub(super) fn all_decided(&self) -> bool {
        self.open() == 0
    }

    pub(super) fn satisfies(&self, rule: &SuccessPolicyRule) -> bool {
        let (done, wanted) = match &rule.succeeded_indexes {
            Some(text) => {
                let named = Indexes::read(text);
                (self.completed.common(&named), named.len())
            }
            None => (self.completed.len(), usize::MAX),
        };
        let needed = rule.succeeded_count.and_then(|count| usize::try_from(count).ok()).unwrap_or(wanted);
        done >= needed
    }

    /// Pods for the first indexes that have none; and when one that has to wait may be made.
    pub(super) fn create(
        &self,
        name: &str,
        count: usize,
        spec: &JobSpec,
        pods: &[Owned],
        (pause, now): (Option<Timestamp>, Timestamp),
    ) -> (Vec<NewPod>, Option<Timestamp>) {
        let waits_for_end = spec.pod_replacement_policy.as_deref() == Some("Failed");
        let busy: Vec<i32> = pods
            .iter()
            .filter(|p| p.active() || (waits_for_end && p.terminating() && !p.finished() && !p.gone))
            .filter_map(index)
            .collect();
        let mut again: Option<Timestamp> = None;
        let mut new = Vec::new();
        let mut next = 0;
        loop {
            let index = self.next_open(next);
            if index >= self.completions || new.len() == count {
                break;
            }
            next = index + 1;
            if busy.contains(&index) {
                continue;
            }
            let tries = spec.backoff_limit_per_index.map(|_| Tries::of(index, pods, spec));
            let pause = tries.as_ref().map_or(pause, |tries| pause_end(tries.failures + tries.ignored, tries.last));
            if let Some(end) = pause.filter(|end| *end > now) {
                again = Some(again.map_or(end, |other| other.min(end)));
                continue;
            }
            new.push(NewPod {
                name: Name::Starting(format!("{name}-{index}-")),
                template: template(name, spec, index, tries.as_ref()),
            });
        }
        (new, again)
    }

    /// The first index from this on that is neither done nor given up. Steps over ranges, however long they are.
    fn next_open(&self, from: i32) -> i32 {
        let mut index = from;
        loop {
            let next = self.failed.next_missing(self.completed.next_missing(index));
            if next == index {
                return index;
            }
            index = next;
        }
    }
}

/// How often an index has failed, and when last: as its last pod says.
#[derive(Debug, Default)]
struct Tries {
    failures: u32,
    ignored: u32,
    last: Option<Timestamp>,
}

impl Tries {
    fn of(wanted: i32, pods: &[Owned], spec: &JobSpec) -> Self {
        let failed =
            pods.iter().filter(|p| index(p) == Some(wanted) && !p.succeeded() && (p.finished() || p.terminating() || p.gone));
        let Some(last) = failed.max_by_key(|p| p.created()) else { return Self::default() };
        let before = |name| u32::try_from(counted(last, name)).unwrap_or(0);
        let ignored = u32::from(policy::ignores(spec, last));
        Self {
            failures: before(FAILURES) + 1 - ignored,
            ignored: before(IGNORED) + ignored,
            last: Some(last.finished_at().unwrap_or_else(|| last.created())),
        }
    }
}

fn index(pod: &Owned) -> Option<i32> {
    pod.annotation(INDEX)?.parse().ok()
}

fn counted(pod: &Owned, annotation: &str) -> i32 {
    pod.annotation(annotation).and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn template(name: &str, spec: &JobSpec, index: i32, tries: Option<&Tries>) -> PodTemplateSpec {
    let mut template = spec.template.clone();
    let metadata = template.metadata.get_or_insert_default();
    metadata.labels.get_or_insert_default().insert(INDEX.into(), index.to_string());
    let annotations = metadata.annotations.get_or_insert_default();
    annotations.insert(INDEX.into(), index.to_string());
    if let Some(tries) = tries {
        annotations.insert(FAILURES.into(), tries.failures.to_string());
        if tries.ignored > 0 {
            annotations.insert(IGNORED.into(), tries.ignored.to_string());
        }
    }
    if let Some(pod) = &mut template.spec {
        pod.hostname.get_or_insert_with(|| format!("{name}-{index}"));
        for container in pod.init_containers.iter_mut().flatten().chain(&mut pod.containers) {
            let env = container.env.get_or_insert_default();
            if !env.iter().any(|var| var.name == "JOB_COMPLETION_INDEX") {
                env.push(index_variable());
            }
        }
    }
    template
}

fn index_variable() -> EnvVar {
    let field_path = format!("metadata.annotations['{INDEX}']");
    EnvVar {
        name: "JOB_COMPLETION_INDEX".into(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector { api_version: Some("v1".into()), field_path }),
            ..EnvVarSource::default()
        }),
    }
}
