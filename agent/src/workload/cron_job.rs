//! CronJob: a Job at each of a schedule's moments. Pure.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/>.

use std::cmp::Reverse;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::Steps;
use super::job::{Finish, finished};
use super::pods::after;
use crate::model::workload::cron::{Schedule, time_zone};

/// Missed moments that are worth a warning: the clock, or the deadline, is hardly meant so.
const MANY: usize = 100;
/// When a Job was meant to begin.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

/// What a CronJob comes to.
#[derive(Debug, Default)]
pub struct Planned {
    /// Its status.
    pub status: CronJobStatus,
    /// To be made, without UID.
    pub create: Option<Job>,
    /// Jobs to go, by UID.
    pub delete: Vec<String>,
    /// Events, and when to look again.
    pub steps: Steps,
}

/// One look.
pub fn plan(cron: &CronJob, jobs: &[Job], now: Timestamp) -> Planned {
    let mut planned = Planned { status: cron.status.clone().unwrap_or_default(), ..Planned::default() };
    clean_up(cron, jobs, &mut planned);
    let running: Vec<&Job> = jobs.iter().filter(|j| finished(j).is_none()).collect();
    note_ends(jobs, &running, &mut planned);
    if cron.spec.suspend != Some(true) {
        schedule(cron, jobs, &running, now, &mut planned);
    }
    planned.status.active = planned.status.active.take().filter(|active| !active.is_empty());
    planned
}

/// Ended Jobs beyond the limits, oldest first.
fn clean_up(cron: &CronJob, jobs: &[Job], planned: &mut Planned) {
    let limits =
        [(Finish::Complete, cron.spec.successful_jobs_history_limit), (Finish::Failed, cron.spec.failed_jobs_history_limit)];
    for (finish, limit) in limits {
        let mut ended: Vec<&Job> = jobs.iter().filter(|j| finished(j).is_some_and(|(f, _)| f == finish)).collect();
        ended.sort_by_key(|j| Reverse((started(j), j.metadata.name.clone())));
        for job in ended.into_iter().skip(usize::try_from(limit.unwrap_or(1)).unwrap_or(0)) {
            planned.delete.push(uid(job));
            planned.steps.say("SuccessfulDelete", format!("Deleted job {}", name(job)));
        }
    }
}

fn note_ends(jobs: &[Job], running: &[&Job], planned: &mut Planned) {
    let mut active = planned.status.active.take().unwrap_or_default();
    active.retain(|reference| {
        let uid = reference.uid.as_deref().unwrap_or_default();
        if running.iter().any(|j| self::uid(j) == uid) {
            return true;
        }
        let name = reference.name.as_deref().unwrap_or_default();
        let ended = jobs.iter().find(|j| self::uid(j) == uid).and_then(finished);
        match ended {
            Some((finish, _)) => {
                let word = if finish == Finish::Complete { "Complete" } else { "Failed" };
                planned.steps.say("SawCompletedJob", format!("Saw completed job: {name}, condition: {word}"));
            }
            None => planned.steps.say("MissingJob", format!("Active job went missing: {name}")),
        }
        false
    });
    let successes = jobs.iter().filter(|j| finished(j).is_some_and(|(f, _)| f == Finish::Complete));
    let last = successes.filter_map(|j| j.status.as_ref()?.completion_time.as_ref().map(|t| t.0)).max();
    let before = planned.status.last_successful_time.as_ref().map(|t| t.0);
    planned.status.last_successful_time = last.max(before).map(Time);
    planned.status.active = Some(active);
}

fn schedule(cron: &CronJob, jobs: &[Job], running: &[&Job], now: Timestamp, planned: &mut Planned) {
    let Ok(schedule) = Schedule::parse(&cron.spec.schedule) else {
        return planned.steps.warn("UnparseableSchedule", format!("unparseable schedule: {:?}", cron.spec.schedule));
    };
    let zone = match cron.spec.time_zone.as_deref() {
        None => TimeZone::system(),
        Some(name) => match time_zone(name) {
            Some(zone) => zone,
            None => return planned.steps.warn("UnknownTimeZone", format!("unknown time zone {name:?}")),
        },
    };
    let deadline = cron.spec.starting_deadline_seconds;
    let created = cron.metadata.creation_timestamp.as_ref().map_or(now, |t| t.0);
    let last = planned.status.last_schedule_time.as_ref().map(|t| t.0);
    let earliest = last.unwrap_or(created);
    let window = deadline.and_then(|seconds| now.checked_sub(SignedDuration::from_secs(seconds)).ok());
    let since = window.map_or(earliest, |window| window.max(earliest));
    let next = match &schedule {
        // Counted from the last one, not from whenever somebody looks.
        Schedule::Every(_) => missed(&schedule, &zone, earliest, now).next,
        Schedule::Fields(_) => schedule.next(now, &zone),
    };
    if let Some(next) = next {
        planned.steps.at(next);
    }
    let Missed { latest: Some(latest), many, .. } = missed(&schedule, &zone, since, now) else { return };
    if many {
        let advice = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
        planned.steps.warn("TooManyMissedTimes", advice);
    }
    if last.is_some_and(|last| last >= latest) {
        return;
    }
    if deadline.is_some_and(|seconds| after(latest, seconds).is_some_and(|end| end < now)) {
        return planned.steps.warn("MissSchedule", format!("Missed scheduled time to start a job: {latest}"));
    }
    // By the minute, as all schedules are but the shortest `@every`.
    let unit = if matches!(&schedule, Schedule::Every(pause) if pause.as_secs() < 60) { 1 } else { 60 };
    let job_name = format!("{}-{}", cron.metadata.name.as_deref().unwrap_or_default(), latest.as_second() / unit);
    if jobs.iter().any(|j| name(j) == job_name) {
        planned.status.last_schedule_time = Some(Time(latest));
        return;
    }
    match cron.spec.concurrency_policy.as_deref() {
        Some("Forbid") if !running.is_empty() => {
            let why = "Not starting job because prior execution is running and concurrency policy is Forbid";
            return planned.steps.say("JobAlreadyActive", why);
        }
        Some("Replace") => {
            for job in running {
                planned.delete.push(uid(job));
                planned.steps.say("SuccessfulDelete", format!("Deleted job {}", name(job)));
            }
            planned.status.active = None;
        }
        _ => {}
    }
    planned.steps.say("SuccessfulCreate", format!("Created job {job_name}"));
    planned.status.last_schedule_time = Some(Time(latest));
    planned.create = Some(job(cron, job_name, latest, &zone, now));
}

struct Missed {
    /// The last moment that has come.
    latest: Option<Timestamp>,
    /// Whether more than a few have.
    many: bool,
    /// The one after it.
    next: Option<Timestamp>,
}

/// The moments after `since` that have come by `now`. However long the agent was away, this takes few steps.
fn missed(schedule: &Schedule, zone: &TimeZone, since: Timestamp, now: Timestamp) -> Missed {
    let mut missed = Missed { latest: None, many: false, next: schedule.next(since, zone) };
    for _ in 0..=MANY {
        match missed.next {
            Some(moment) if moment <= now => {
                missed.latest = Some(moment);
                missed.next = schedule.next(moment, zone);
            }
            _ => return missed,
        }
    }
    missed.many = true;
    match schedule {
        Schedule::Every(pause) => {
            let (seconds, pause) = (now.as_second() - since.as_second(), pause.as_secs().max(1));
            missed.latest = after(since, seconds / pause * pause);
            missed.next = missed.latest.and_then(|latest| schedule.next(latest, zone));
        }
        Schedule::Fields(_) => {
            // Back from now, in steps that double, to where one is found; then forward to the last.
            let mut span = 60;
            let mut from = since;
            while let Ok(earlier) = now.checked_sub(SignedDuration::from_secs(span)) {
                if earlier <= since {
                    break;
                }
                if schedule.next(earlier, zone).is_some_and(|moment| moment <= now) {
                    from = earlier;
                    break;
                }
                span *= 2;
            }
            while let Some(moment) = schedule.next(from, zone).filter(|moment| *moment <= now) {
                missed.latest = Some(moment);
                from = moment;
            }
            missed.next = schedule.next(now, zone);
        }
    }
    missed
}

fn job(cron: &CronJob, name: String, scheduled: Timestamp, zone: &TimeZone, now: Timestamp) -> Job {
    let template = cron.spec.job_template.metadata.clone().unwrap_or_default();
    let mut annotations = template.annotations.unwrap_or_default();
    let local = scheduled.to_zoned(zone.clone());
    annotations.insert(SCHEDULED.into(), local.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string().replace("+00:00", "Z"));
    Job {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: cron.metadata.namespace.clone(),
            labels: template.labels,
            annotations: Some(annotations),
            creation_timestamp: Some(Time(now)),
            generation: Some(1),
            ..ObjectMeta::default()
        },
        spec: cron.spec.job_template.spec.clone(),
        status: None,
    }
}

/// How the status names a Job that runs.
pub fn reference(job: &Job) -> ObjectReference {
    ObjectReference {
        api_version: Some("batch/v1".into()),
        kind: Some("Job".into()),
        name: job.metadata.name.clone(),
        namespace: job.metadata.namespace.clone(),
        uid: job.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

fn started(job: &Job) -> Option<Timestamp> {
    job.status.as_ref()?.start_time.as_ref().map(|t| t.0)
}

fn name(job: &Job) -> &str {
    job.metadata.name.as_deref().unwrap_or_default()
}

fn uid(job: &Job) -> String {
    job.metadata.uid.clone().unwrap_or_default()
}

#[cfg(test)]
mod tests;
