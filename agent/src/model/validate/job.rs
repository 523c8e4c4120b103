//! The API server's rules for batch/v1.

use std::collections::BTreeSet;

use k8s_openapi::api::batch::v1::{CronJobSpec, JobSpec, PodFailurePolicyRule, SuccessPolicyRule};

use super::report::{Report, json};
use super::workload::template;
use crate::model::path::Path;
use crate::model::workload::cron::{Schedule, time_zone};
use crate::model::workload::indexes::Indexes;

/// The most that an indexed job may have of both when there are many indexes.
const INDEX_LIMIT: i32 = 100_000;

/// The last of an indexed job's pods must have a host name.
pub(super) fn name(report: &mut Report<'_>, name: &str, spec: &JobSpec) {
    let Some(completions) = spec.completions.filter(|n| *n > 0 && spec.completion_mode.as_deref() == Some("Indexed")) else {
        return;
    };
    let host = format!("{name}-{}", completions - 1);
    if !super::names::dns_label(&host).is_empty() {
        let wrong = format!("will not able to create pod with invalid DNS label: {host}");
        report.invalid(&Path::ROOT.child("metadata").child("name"), name, wrong);
    }
}

pub(super) fn job(report: &mut Report<'_>, at: &Path<'_>, spec: &JobSpec) {
    if spec.manual_selector == Some(true) && spec.selector.is_none() {
        report.required(&at.child("selector"), "");
    }
    job_spec(report, at, spec);
}

pub(super) fn cron_job(report: &mut Report<'_>, at: &Path<'_>, spec: &CronJobSpec) {
    let schedule = at.child("schedule");
    if spec.schedule.is_empty() {
        report.required(&schedule, "");
    } else if spec.schedule.contains("TZ") {
        let wrong = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        report.invalid(&schedule, &spec.schedule, wrong);
    } else if let Err(wrong) = Schedule::parse(&spec.schedule) {
        report.invalid(&schedule, &spec.schedule, wrong);
    }
    if let Some(zone) = &spec.time_zone {
        let at = at.child("timeZone");
        match zone.as_str() {
            "" => report.invalid(&at, zone, "timeZone must be nil or non-empty string"),
            name if name.eq_ignore_ascii_case("local") => {
                report.invalid(&at, zone, "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones");
            }
            name if time_zone(name).is_none() => report.invalid(&at, zone, format!("unknown time zone {zone}")),
            _ => {}
        }
    }
    report.not_negative(&at.child("startingDeadlineSeconds"), spec.starting_deadline_seconds);
    report.one_of(&at.child("concurrencyPolicy"), spec.concurrency_policy.as_deref(), &["Allow", "Forbid", "Replace"]);
    report.not_negative(&at.child("successfulJobsHistoryLimit"), spec.successful_jobs_history_limit.map(i64::from));
    report.not_negative(&at.child("failedJobsHistoryLimit"), spec.failed_jobs_history_limit.map(i64::from));
    let at = at.child("jobTemplate");
    let at = at.child("spec");
    let Some(job) = &spec.job_template.spec else { return report.required(&at, "") };
    if let Some(selector) = &job.selector {
        let shown = json(selector);
        report.say(&at.child("selector"), format!("Invalid value: {shown}: `selector` will be auto-generated"));
    }
    if job.manual_selector == Some(true) {
        report.say(&at.child("manualSelector"), "Unsupported value: true: supported values: \"nil\", \"false\"");
    }
    job_spec(report, &at, job);
}

fn job_spec(report: &mut Report<'_>, at: &Path<'_>, spec: &JobSpec) {
    let numbers = [
        ("parallelism", spec.parallelism.map(i64::from)),
        ("completions", spec.completions.map(i64::from)),
        ("activeDeadlineSeconds", spec.active_deadline_seconds),
        ("backoffLimit", spec.backoff_limit.map(i64::from)),
        ("ttlSecondsAfterFinished", spec.ttl_seconds_after_finished.map(i64::from)),
        ("backoffLimitPerIndex", spec.backoff_limit_per_index.map(i64::from)),
        ("maxFailedIndexes", spec.max_failed_indexes.map(i64::from)),
    ];
    for (name, value) in numbers {
        report.not_negative(&at.child(name), value);
    }
    if let Some(manager) = spec.managed_by.as_deref().filter(|m| *m != "kubernetes.io/job-controller") {
        report.invalid(&at.child("managedBy"), manager, "only this agent runs jobs here: leave it out");
    }
    if spec.scheduling.is_some() {
        report.forbidden(&at.child("scheduling"), "pod groups need a cluster's scheduler");
    }
    indexed(report, at, spec);
    let policies = if spec.pod_failure_policy.is_some() { &["Failed"][..] } else { &["Failed", "TerminatingOrFailed"][..] };
    report.one_of(&at.child("podReplacementPolicy"), spec.pod_replacement_policy.as_deref(), policies);
    restart_policy(report, at, spec);
    if let Some(policy) = &spec.pod_failure_policy {
        let at = at.child("podFailurePolicy");
        let list = at.child("rules");
        if policy.rules.len() > 20 {
            report.say(&list, format!("Too many: {}: must have at most 20 items", policy.rules.len()));
        }
        for (i, rule) in policy.rules.iter().enumerate() {
            failure_rule(report, &list.index(i), rule, spec);
        }
    }
    if let Some(policy) = &spec.success_policy {
        let at = at.child("successPolicy");
        if spec.completion_mode.as_deref() != Some("Indexed") {
            report.say(&at, "Invalid value: requires indexed completion mode");
        }
        let list = at.child("rules");
        match policy.rules.len() {
            0 => report.required(&list, "at least one rules must be specified when the successPolicy is specified"),
            21.. => report.say(&list, format!("Too many: {}: must have at most 20 items", policy.rules.len())),
            _ => {}
        }
        for (i, rule) in policy.rules.iter().enumerate() {
            success_rule(report, &list.index(i), rule, spec.completions.unwrap_or(0));
        }
    }
    template(report, &at.child("template"), &spec.template);
}

fn indexed(report: &mut Report<'_>, at: &Path<'_>, spec: &JobSpec) {
    let mode = spec.completion_mode.as_deref().unwrap_or_default();
    report.one_of(&at.child("completionMode"), spec.completion_mode.as_deref(), &["NonIndexed", "Indexed"]);
    if spec.max_failed_indexes.is_some() && spec.backoff_limit_per_index.is_none() {
        report.required(&at.child("backoffLimitPerIndex"), "when maxFailedIndexes is specified");
    }
    if mode != "Indexed" {
        let only_indexed =
            [("backoffLimitPerIndex", spec.backoff_limit_per_index), ("maxFailedIndexes", spec.max_failed_indexes)];
        for (name, value) in only_indexed.into_iter().filter_map(|(name, value)| Some((name, value?))) {
            report.invalid(&at.child(name), &value, "requires indexed completion mode");
        }
        return;
    }
    match spec.completions {
        None => report.required(&at.child("completions"), "when completion mode is Indexed"),
        Some(completions) => {
            if let Some(parallelism) = spec.parallelism.filter(|wanted| *wanted > INDEX_LIMIT) {
                let wrong = format!("must be less than or equal to {INDEX_LIMIT} when completion mode is Indexed");
                report.invalid(&at.child("parallelism"), &parallelism, wrong);
            }
            if let Some(failed) = spec.max_failed_indexes.filter(|failed| *failed > completions) {
                report.invalid(&at.child("maxFailedIndexes"), &failed, "must be less than or equal to completions");
            }
            if let Some(failed) = spec.max_failed_indexes.filter(|failed| *failed > INDEX_LIMIT) {
                report.invalid(&at.child("maxFailedIndexes"), &failed, format!("must be less than or equal to {INDEX_LIMIT}"));
            }
            if completions > INDEX_LIMIT && spec.backoff_limit_per_index.is_some() {
                many_indexes(report, at, spec);
            }
        }
    }
}

/// Of very many indexes with tries of their own only few may fail, and only few run at a time.
fn many_indexes(report: &mut Report<'_>, at: &Path<'_>, spec: &JobSpec) {
    const FEW: i32 = 10_000;
    if spec.max_failed_indexes.is_none() {
        let wrong = format!("must be specified when completions is above {INDEX_LIMIT}");
        report.required(&at.child("maxFailedIndexes"), wrong);
    }
    for (name, value) in [("parallelism", spec.parallelism), ("maxFailedIndexes", spec.max_failed_indexes)] {
        if let Some(value) = value.filter(|value| *value > FEW) {
            let wrong = format!(
                "must be less than or equal to {FEW} when completions are above {INDEX_LIMIT} and used with backoff limit per index"
            );
            report.invalid(&at.child(name), &value, wrong);
        }
    }
}

fn restart_policy(report: &mut Report<'_>, at: &Path<'_>, spec: &JobSpec) {
    let template = at.child("template");
    let pod = template.child("spec");
    let at_policy = pod.child("restartPolicy");
    match spec.template.spec.as_ref().and_then(|s| s.restart_policy.as_deref()) {
        Some("OnFailure") if spec.pod_failure_policy.is_some() => {
            report.invalid(&at_policy, "OnFailure", "only \"Never\" is supported when podFailurePolicy is specified");
        }
        Some("Always") => report.required(&at_policy, "valid values: \"OnFailure\", \"Never\""),
        _ => {}
    }
}

/// As Go prints a list.
fn valid_values(words: &[&str]) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
    format!("valid values: [{}]", words.join(" "))
}

fn failure_rule(report: &mut Report<'_>, at: &Path<'_>, rule: &PodFailurePolicyRule, spec: &JobSpec) {
    let actions: &[&str] = &["Count", "FailIndex", "FailJob", "Ignore"];
    if rule.action.is_empty() {
        report.required(&at.child("action"), valid_values(actions));
    } else {
        report.one_of(&at.child("action"), Some(&rule.action), actions);
    }
    if rule.action == "FailIndex" && spec.backoff_limit_per_index.is_none() {
        report.invalid(&at.child("action"), "FailIndex", "requires the backoffLimitPerIndex to be set");
    }
    match (&rule.on_exit_codes, rule.on_pod_conditions.as_deref().unwrap_or_default()) {
        (Some(_), [_, ..]) => {
            report.say(at, "Invalid value: specifying both OnExitCodes and OnPodConditions is not supported");
        }
        (None, []) => report.say(at, "Invalid value: specifying one of OnExitCodes and OnPodConditions is required"),
        _ => {}
    }
    if let Some(codes) = &rule.on_exit_codes {
        let at = at.child("onExitCodes");
        if let Some(name) = &codes.container_name {
            let pod = spec.template.spec.as_ref();
            let mut known = pod.into_iter().flat_map(|p| p.containers.iter().chain(p.init_containers.iter().flatten()));
            if !known.any(|c| c.name == *name) {
                report.invalid(
                    &at.child("containerName"),
                    name,
                    "must be one of the container or initContainer names in the pod template",
                );
            }
        }
        match codes.operator.as_str() {
            "" => report.required(&at.child("operator"), valid_values(&["In", "NotIn"])),
            operator => report.one_of(&at.child("operator"), Some(operator), &["In", "NotIn"]),
        }
        let list = at.child("values");
        match codes.values.len() {
            0 => report.say(&list, "Invalid value: []: at least one value is required"),
            256.. => report.say(&list, format!("Too many: {}: must have at most 255 items", codes.values.len())),
            _ => {}
        }
        if !codes.values.is_sorted() {
            let shown = json(&codes.values);
            report.say(&list, format!("Invalid value: {shown}: must be ordered"));
        }
        let mut seen = BTreeSet::new();
        for (i, value) in codes.values.iter().enumerate() {
            if !seen.insert(value) {
                report.duplicate(&list.index(i), value);
            }
            if codes.operator == "In" && *value == 0 {
                report.invalid(&list.index(i), value, "must not be 0 for the In operator");
            }
        }
    }
    let list = at.child("onPodConditions");
    for (i, pattern) in rule.on_pod_conditions.iter().flatten().enumerate() {
        let at = list.index(i);
        report.each_invalid(&at.child("type"), &pattern.type_, super::names::qualified_name(&pattern.type_));
        match pattern.status.as_deref() {
            Some("") => report.required(&at.child("status"), valid_values(&["False", "True", "Unknown"])),
            status => report.one_of(&at.child("status"), status, &["False", "True", "Unknown"]),
        }
    }
}

fn success_rule(report: &mut Report<'_>, at: &Path<'_>, rule: &SuccessPolicyRule, completions: i32) {
    if rule.succeeded_count.is_none() && rule.succeeded_indexes.is_none() {
        return report.required(at, "at least one of succeededCount or succeededIndexes must be specified");
    }
    let mut total = None;
    if let Some(text) = &rule.succeeded_indexes {
        match Indexes::parse_below(text, completions) {
            Ok(indexes) => total = Some(indexes.len() as i64),
            Err(wrong) => report.invalid(&at.child("succeededIndexes"), text, format!("error parsing succeededIndexes: {wrong}")),
        }
    }
    if let Some(count) = rule.succeeded_count {
        let at = at.child("succeededCount");
        report.not_negative(&at, Some(i64::from(count)));
        if count > completions {
            let wrong = format!("must be less than or equal to {completions} (the number of specified completions)");
            report.invalid(&at, &count, wrong);
        }
        if let Some(total) = total.filter(|total| i64::from(count) > *total) {
            let named = "the number of indexes in the specified succeededIndexes field";
            report.invalid(&at, &count, format!("must be less than or equal to {total} ({named})"));
        }
    }
}
