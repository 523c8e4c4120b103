//! Job: pods until enough of them have ended well. Pure. <https://kubernetes.io/docs/concepts/workloads/controllers/job/>.

mod indexed;
mod policy;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::pods::{Owned, after, worth};
use super::{History, Name, NewPod, Steps, room};
use indexed::Indexed;
use policy::Verdict;

/// The wait before the next pod after one that failed, in seconds; doubled with each.
const BACKOFF: i64 = 10;
/// The longest such wait.
const LONGEST_BACKOFF: i64 = 600;

/// What a Job comes to.
#[derive(Debug, PartialEq)]
pub struct Planned {
    /// Its status.
    pub status: JobStatus,
    /// What else is to be remembered.
    pub history: History,
    /// What is to be done with its pods.
    pub steps: Steps,
}

/// One look at a Job.
pub fn plan(job: &Job, history: &History, pods: &[Owned], now: Timestamp) -> Planned {
    let spec = job.spec.clone().unwrap_or_default();
    let status = job.status.clone().unwrap_or_default();
    let mut look = Look { job, spec: &spec, pods, now, status, history: history.clone(), steps: Steps::default() };
    look.run();
    Planned { status: look.status, history: look.history, steps: look.steps }
}

/// Whether it has ended, and when.
pub fn finished(job: &Job) -> Option<(Finish, Timestamp)> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().filter(|c| c.status == "True").find_map(|c| {
        let finish = match c.type_.as_str() {
            "Complete" => Finish::Complete,
            "Failed" => Finish::Failed,
            _ => return None,
        };
        Some((finish, c.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0)))
    })
}

/// How a Job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// Well.
    Complete,
    /// Not.
    Failed,
}

struct Look<'a> {
    job: &'a Job,
    spec: &'a JobSpec,
    pods: &'a [Owned],
    now: Timestamp,
    status: JobStatus,
    history: History,
    steps: Steps,
}

/// Why a Job ends.
struct End {
    reason: &'static str,
    message: String,
}

impl Look<'_> {
    fn run(&mut self) {
        if self.history.expired {
            self.steps.delete = self.pods.iter().filter(|p| !p.terminating()).map(Owned::uid).collect();
            return;
        }
        if let Some((_, at)) = finished(self.job) {
            return self.outlived(at);
        }
        if self.spec.suspend == Some(true) {
            return self.suspend();
        }
        self.resume();
        let indexed = self.count_ends();
        if self.condition("FailureTarget").is_none() && self.condition("SuccessCriteriaMet").is_none() {
            if let Some(end) = self.failure(indexed.as_ref()) {
                self.steps.warn(end.reason, end.message.clone());
                self.set_condition("FailureTarget", "True", end.reason, &end.message);
            } else if let Some(end) = self.success(indexed.as_ref()) {
                self.set_condition("SuccessCriteriaMet", "True", end.reason, &end.message);
            }
        }
        if self.condition("FailureTarget").is_some() || self.condition("SuccessCriteriaMet").is_some() {
            self.wind_down();
        } else {
            self.keep_going(indexed.as_ref());
        }
        self.tally();
    }

    /// A Job that ended is kept for its time to live.
    fn outlived(&mut self, at: Timestamp) {
        self.tally();
        let Some(ttl) = self.spec.ttl_seconds_after_finished else { return };
        let Some(end) = after(at, i64::from(ttl)) else { return };
        if end > self.now {
            return self.steps.at(end);
        }
        self.history.expired = true;
        self.steps.delete = self.pods.iter().filter(|p| !p.terminating()).map(Owned::uid).collect();
    }

    fn suspend(&mut self) {
        // Pods that are ended for this have not failed.
        for pod in self.pods.iter().filter(|p| p.active()) {
            self.steps.delete.push(pod.uid());
            self.steps.counted.push(pod.uid());
        }
        self.count_ends();
        if self.condition("Suspended").is_none_or(|c| c.status != "True") {
            self.steps.say("Suspended", "Job suspended");
            self.set_condition("Suspended", "True", "JobSuspended", "Job suspended");
        }
        self.status.start_time = None;
        self.tally();
    }

    fn resume(&mut self) {
        if self.condition("Suspended").is_some_and(|c| c.status == "True") {
            self.set_condition("Suspended", "False", "JobResumed", "Job resumed");
            self.steps.say("Resumed", "Job resumed");
        }
        self.status.start_time.get_or_insert(Time(self.now));
    }

    /// Takes the ends that no status has yet, and says how far the indexes are, if it has any.
    fn count_ends(&mut self) -> Option<Indexed> {
        let mut indexed = (self.spec.completion_mode.as_deref() == Some("Indexed")).then(|| Indexed::of(self.spec, &self.status));
        self.count(indexed.as_mut());
        if let Some(indexed) = &indexed {
            self.status.succeeded = positive(i32::try_from(indexed.completed.len()).unwrap_or(i32::MAX));
            self.status.completed_indexes = Some(indexed.completed.to_string()).filter(|text| !text.is_empty());
            if self.spec.backoff_limit_per_index.is_some() {
                self.status.failed_indexes = Some(indexed.failed.to_string());
            }
        }
        indexed
    }

    fn count(&mut self, mut indexed: Option<&mut Indexed>) {
        let new = self.pods.iter().filter(|p| !p.counted && !self.steps.counted.contains(&p.uid()));
        let mut ended: Vec<&Owned> = new.filter(|p| p.succeeded() || self.counts_as_failed(p)).collect();
        ended.sort_by_key(|p| p.finished_at().unwrap_or(self.now));
        for pod in ended {
            self.steps.counted.push(pod.uid());
            if pod.succeeded() {
                match &mut indexed {
                    Some(indexed) => indexed.complete(pod),
                    None => self.status.succeeded = Some(self.status.succeeded.unwrap_or(0) + 1),
                }
                self.history.failures = 0;
                self.history.last_failure = None;
                continue;
            }
            // The next pod waits for it, whether it counts or not.
            self.history.failures += 1;
            self.history.last_failure =
                Some(pod.finished_at().unwrap_or(self.now).max(self.history.last_failure.unwrap_or(Timestamp::MIN)));
            if policy::ignores(self.spec, pod) {
                continue;
            }
            self.status.failed = Some(self.status.failed.unwrap_or(0) + 1);
            if let Some(indexed) = &mut indexed {
                indexed.fail(pod, self.spec);
            }
        }
    }

    fn counts_as_failed(&self, pod: &Owned) -> bool {
        let replaced_at_once = self.spec.pod_replacement_policy.as_deref() != Some("Failed");
        pod.failed() || (!pod.succeeded() && (pod.gone || (replaced_at_once && pod.terminating())))
    }

    fn failure(&self, indexed: Option<&Indexed>) -> Option<End> {
        let end = |reason, message: &str| Some(End { reason, message: message.into() });
        for pod in self.pods.iter().filter(|p| p.failed()) {
            if let Some((Verdict::FailJob, message)) = policy::verdict(self.spec, pod) {
                return Some(End { reason: "PodFailurePolicy", message });
            }
        }
        let failed = self.status.failed.unwrap_or(0);
        let limit = self.spec.backoff_limit.unwrap_or(6);
        if failed > limit || self.restarted_too_often(limit) {
            return end("BackoffLimitExceeded", "Job has reached the specified backoff limit");
        }
        if self.deadline().is_some_and(|deadline| deadline <= self.now) {
            return end("DeadlineExceeded", "Job was active longer than specified deadline");
        }
        let indexed = indexed.filter(|_| self.spec.backoff_limit_per_index.is_some())?;
        let limit = self.spec.max_failed_indexes.and_then(|max| usize::try_from(max).ok());
        if limit.is_some_and(|max| indexed.failed.len() > max) {
            return end("MaxFailedIndexesExceeded", "Job has exceeded the specified maximal number of failed indexes");
        }
        if !indexed.failed.is_empty() && indexed.all_decided() {
            return end("FailedIndexes", "Job has failed indexes");
        }
        None
    }

    /// With `restartPolicy: OnFailure` it is the same pods that try again.
    fn restarted_too_often(&self, limit: i32) -> bool {
        let policy = self.spec.template.spec.as_ref().and_then(|s| s.restart_policy.as_deref());
        if policy != Some("OnFailure") {
            return false;
        }
        let restarts: i32 = self.pods.iter().filter(|p| p.active()).map(Owned::restarts).sum();
        if limit == 0 { restarts > 0 } else { restarts >= limit }
    }

    fn deadline(&self) -> Option<Timestamp> {
        after(self.status.start_time.as_ref()?.0, self.spec.active_deadline_seconds?)
    }

    fn success(&self, indexed: Option<&Indexed>) -> Option<End> {
        if let (Some(indexed), Some(policy)) = (indexed, &self.spec.success_policy) {
            let met = policy.rules.iter().position(|rule| indexed.satisfies(rule));
            if let Some(at) = met {
                return Some(End { reason: "SuccessPolicy", message: format!("Matched rules at index {at}") });
            }
        }
        let succeeded = self.status.succeeded.unwrap_or(0);
        let active = self.pods.iter().any(Owned::active);
        let complete = match self.spec.completions {
            Some(completions) => succeeded >= completions && (completions > 0 || !active),
            // A queue that its pods know the end of: one that ends well says that it is empty.
            None => succeeded > 0 && !active,
        };
        complete.then(|| End { reason: "CompletionsReached", message: "Reached expected number of succeeded pods".into() })
    }

    /// Ends what still runs; once nothing does, the Job has ended.
    fn wind_down(&mut self) {
        let running: Vec<&Owned> = self.pods.iter().filter(|p| p.active()).collect();
        self.steps.delete.extend(running.iter().map(|p| p.uid()));
        let ending = self.pods.iter().any(|p| p.terminating() && !p.finished() && !p.gone);
        if ending || !running.is_empty() {
            return;
        }
        let (kind, because) = if let Some(target) = self.condition("FailureTarget") {
            ("Failed", target.clone())
        } else if let Some(met) = self.condition("SuccessCriteriaMet") {
            ("Complete", met.clone())
        } else {
            return;
        };
        let (reason, message) = (because.reason.unwrap_or_default(), because.message.unwrap_or_default());
        self.set_condition(kind, "True", &reason, &message);
        if kind == "Complete" {
            self.status.completion_time = Some(Time(self.now));
            self.steps.say("Completed", "Job completed");
        }
        if let Some(end) = self.spec.ttl_seconds_after_finished.and_then(|ttl| after(self.now, i64::from(ttl))) {
            self.steps.at(end);
        }
    }

    /// Neither done nor failed: as many pods as there may be.
    fn keep_going(&mut self, indexed: Option<&Indexed>) {
        if let Some(deadline) = self.deadline() {
            self.steps.at(deadline);
        }
        let mut active: Vec<&Owned> = self.pods.iter().filter(|p| p.active()).collect();
        let ending = self.pods.iter().filter(|p| p.terminating() && !p.finished() && !p.gone).count();
        let parallelism = usize::try_from(self.spec.parallelism.unwrap_or(1)).unwrap_or(0);
        let succeeded = usize::try_from(self.status.succeeded.unwrap_or(0)).unwrap_or(0);
        let wanted = match self.spec.completions {
            None if succeeded > 0 => active.len().min(parallelism),
            None => parallelism,
            Some(completions) => {
                let open = match indexed {
                    Some(indexed) => indexed.open(),
                    None => usize::try_from(completions).unwrap_or(0).saturating_sub(succeeded),
                };
                open.min(parallelism)
            }
        };
        if active.len() > wanted {
            active.sort_by(|a, b| worth(a, b));
            for pod in &active[..active.len() - wanted] {
                self.steps.delete.push(pod.uid());
                // One too many is no failure.
                self.steps.counted.push(pod.uid());
                self.steps.say("SuccessfulDelete", format!("Deleted pod: {}", pod.name()));
            }
            return;
        }
        let replaces_ended = self.spec.pod_replacement_policy.as_deref() == Some("Failed");
        let taken = active.len() + if replaces_ended { ending } else { 0 };
        let count = wanted.saturating_sub(taken).min(room(self.pods));
        if count > 0 {
            self.create(count, indexed);
        }
    }

    fn create(&mut self, count: usize, indexed: Option<&Indexed>) {
        let name = self.job.metadata.name.clone().unwrap_or_default();
        if let Some(indexed) = indexed {
            let (new, again) = indexed.create(&name, count, self.spec, self.pods, (self.pause_end(), self.now));
            self.steps.create = new;
            if let Some(again) = again {
                self.steps.at(again);
            }
            return;
        }
        if let Some(end) = self.pause_end().filter(|end| *end > self.now) {
            return self.steps.at(end);
        }
        let new = || NewPod { name: Name::Starting(format!("{name}-")), template: self.spec.template.clone() };
        self.steps.create.extend(std::iter::repeat_with(new).take(count));
    }

    /// After failures, when the next pod may be made.
    fn pause_end(&self) -> Option<Timestamp> {
        pause_end(self.history.failures, self.history.last_failure)
    }

    fn tally(&mut self) {
        let deleted = |pod: &&Owned| self.steps.delete.contains(&pod.uid());
        let active: Vec<&Owned> = self.pods.iter().filter(|p| p.active() && !deleted(p)).collect();
        let ending = self.pods.iter().filter(|p| !p.gone && !p.finished() && (p.terminating() || deleted(p))).count();
        let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
        self.status.active = positive(number(active.len() + self.steps.create.len()));
        self.status.ready = Some(number(active.iter().filter(|p| p.ready()).count()));
        self.status.terminating = Some(number(ending));
        self.status.uncounted_terminated_pods.get_or_insert_default();
    }

    fn condition(&self, kind: &str) -> Option<&JobCondition> {
        self.status.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
    }

    fn set_condition(&mut self, kind: &str, is: &str, reason: &str, message: &str) {
        let conditions = self.status.conditions.get_or_insert_default();
        conditions.retain(|c| c.type_ != kind);
        conditions.push(JobCondition {
            type_: kind.into(),
            status: is.into(),
            reason: Some(reason.into()),
            message: Some(message.into()),
            last_probe_time: Some(Time(self.now)),
            last_transition_time: Some(Time(self.now)),
        });
    }
}

/// Ten seconds after the first failure, twenty after the second, ten minutes at most.
fn pause_end(failures: u32, last: Option<Timestamp>) -> Option<Timestamp> {
    let wait = BACKOFF.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(LONGEST_BACKOFF);
    after(last.filter(|_| failures > 0)?, wait)
}

fn positive(number: i32) -> Option<i32> {
    Some(number).filter(|n| *n > 0)
}
