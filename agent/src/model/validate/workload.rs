//! The API server's rules for the kinds that make pods: apps/v1 and batch/v1.

use k8s_openapi::api::apps::v1::{
    DaemonSetSpec, DaemonSetUpdateStrategy, DeploymentSpec, DeploymentStrategy, ReplicaSetSpec, StatefulSetSpec,
};
use k8s_openapi::api::core::v1::{PersistentVolumeClaimVolumeSource, PodTemplateSpec, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::report::{Report, Unique, json};
use super::{job, names, object, pod};
use crate::model::error::Problem;
use crate::model::path::Path;
use crate::model::workload::Workload;
use crate::model::yaml::Node;

/// Checks a workload that has its defaults against the text that it came from.
pub fn workload(workload: &Workload, root: &Node) -> Vec<Problem> {
    let mut report = Report::new(root);
    pod::metadata(&mut report, workload.metadata());
    let at = Path::ROOT.child("spec");
    match workload {
        Workload::Job(o) => match &o.spec {
            Some(spec) => {
                job::name(&mut report, o.metadata.name.as_deref().unwrap_or_default(), spec);
                job::job(&mut report, &at, spec);
            }
            None => report.required(&at, ""),
        },
        Workload::CronJob(o) => {
            let name = o.metadata.name.as_deref().unwrap_or_default();
            if name.len() > 52 {
                report.invalid(&Path::ROOT.child("metadata").child("name"), name, "must be no more than 52 characters");
            }
            job::cron_job(&mut report, &at, &o.spec);
        }
        Workload::Deployment(o) => deployment(&mut report, &at, &o.spec),
        Workload::ReplicaSet(o) => replica_set(&mut report, &at, &o.spec),
        Workload::StatefulSet(o) => stateful_set(&mut report, &at, &o.spec),
        Workload::DaemonSet(o) => daemon_set(&mut report, &at, &o.spec),
    }
    report.finish()
}

fn deployment(report: &mut Report<'_>, at: &Path<'_>, spec: &DeploymentSpec) {
    report.not_negative(&at.child("replicas"), spec.replicas.map(i64::from));
    selector(report, at, &spec.selector, "deployment", Some(&spec.template));
    template(report, &at.child("template"), &spec.template);
    lives_on(report, &at.child("template"), &spec.template, "ReplicaSet");
    if let Some(strategy) = &spec.strategy {
        deployment_strategy(report, &at.child("strategy"), strategy);
    }
    report.not_negative(&at.child("minReadySeconds"), spec.min_ready_seconds.map(i64::from));
    report.not_negative(&at.child("revisionHistoryLimit"), spec.revision_history_limit.map(i64::from));
    let deadline = at.child("progressDeadlineSeconds");
    report.not_negative(&deadline, spec.progress_deadline_seconds.map(i64::from));
    if let (Some(seconds), minimum) = (spec.progress_deadline_seconds, spec.min_ready_seconds.unwrap_or(0))
        && seconds <= minimum
    {
        report.invalid(&deadline, &seconds, "must be greater than minReadySeconds");
    }
}

fn deployment_strategy(report: &mut Report<'_>, at: &Path<'_>, strategy: &DeploymentStrategy) {
    report.one_of(&at.child("type"), strategy.type_.as_deref(), &["Recreate", "RollingUpdate"]);
    let Some(rolling) = &strategy.rolling_update else { return };
    if strategy.type_.as_deref() == Some("Recreate") {
        return report.forbidden(&at.child("rollingUpdate"), "may not be specified when strategy `type` is 'Recreate'");
    }
    let at = at.child("rollingUpdate");
    rolling_pair(report, &at, rolling.max_unavailable.as_ref(), rolling.max_surge.as_ref());
    if is_zero(rolling.max_unavailable.as_ref()) && is_zero(rolling.max_surge.as_ref()) {
        report.say(&at.child("maxUnavailable"), "Invalid value: 0: may not be 0 when `maxSurge` is 0");
    }
}

fn rolling_pair(report: &mut Report<'_>, at: &Path<'_>, unavailable: Option<&IntOrString>, surge: Option<&IntOrString>) {
    for (name, value) in [("maxUnavailable", unavailable), ("maxSurge", surge)] {
        if let Some(value) = value {
            count_or_percent(report, &at.child(name), value);
        }
    }
    if percent(unavailable).is_some_and(|p| p > 100) {
        let shown = match unavailable {
            Some(IntOrString::String(text)) => text.clone(),
            _ => String::new(),
        };
        report.invalid(&at.child("maxUnavailable"), &shown, "must not be greater than 100%");
    }
}

fn is_zero(value: Option<&IntOrString>) -> bool {
    match value {
        Some(IntOrString::Int(number)) => *number == 0,
        Some(IntOrString::String(_)) => percent(value) == Some(0),
        None => false,
    }
}

fn percent(value: Option<&IntOrString>) -> Option<u32> {
    match value {
        Some(IntOrString::String(text)) => text.strip_suffix('%')?.parse().ok(),
        _ => None,
    }
}

fn count_or_percent(report: &mut Report<'_>, at: &Path<'_>, value: &IntOrString) {
    match value {
        IntOrString::Int(number) => report.not_negative(at, Some(i64::from(*number))),
        IntOrString::String(text) if percent(Some(value)).is_none() => {
            let wrong = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used \
                         for validation is '[0-9]+%')";
            report.invalid(at, text, wrong);
        }
        IntOrString::String(_) => {}
    }
}

fn replica_set(report: &mut Report<'_>, at: &Path<'_>, spec: &ReplicaSetSpec) {
    report.not_negative(&at.child("replicas"), spec.replicas.map(i64::from));
    report.not_negative(&at.child("minReadySeconds"), spec.min_ready_seconds.map(i64::from));
    selector(report, at, &spec.selector, "replica set", spec.template.as_ref());
    match &spec.template {
        Some(template) => {
            self::template(report, &at.child("template"), template);
            lives_on(report, &at.child("template"), template, "ReplicaSet");
        }
        None => report.required(&at.child("template"), ""),
    }
}

fn stateful_set(report: &mut Report<'_>, at: &Path<'_>, spec: &StatefulSetSpec) {
    if let Some(service) = spec.service_name.as_deref().filter(|name| !name.is_empty()) {
        report.each_invalid(&at.child("serviceName"), service, names::dns_label(service));
    }
    if let Some(policy) = spec.pod_management_policy.as_deref().filter(|p| !["OrderedReady", "Parallel"].contains(p)) {
        report.invalid(&at.child("podManagementPolicy"), policy, "must be 'OrderedReady' or 'Parallel'");
    }
    if let Some(strategy) = &spec.update_strategy {
        let at = at.child("updateStrategy");
        match (strategy.type_.as_deref(), &strategy.rolling_update) {
            (Some("OnDelete"), Some(_)) => {
                report.say(&at.child("rollingUpdate"), "Invalid value: only allowed for updateStrategy 'RollingUpdate'");
            }
            (Some("RollingUpdate"), Some(rolling)) => {
                let at = at.child("rollingUpdate");
                report.not_negative(&at.child("partition"), rolling.partition.map(i64::from));
                rolling_pair(report, &at, rolling.max_unavailable.as_ref(), None);
                if is_zero(rolling.max_unavailable.as_ref()) {
                    report.say(&at.child("maxUnavailable"), "Invalid value: 0: cannot be 0");
                }
            }
            (Some("OnDelete" | "RollingUpdate"), None) => {}
            (other, _) => {
                report.invalid(&at, other.unwrap_or_default(), "must be 'RollingUpdate' or 'OnDelete'");
            }
        }
    }
    if let Some(retention) = &spec.persistent_volume_claim_retention_policy {
        let at = at.child("persistentVolumeClaimRetentionPolicy");
        report.one_of(&at.child("whenDeleted"), retention.when_deleted.as_deref(), &["Retain", "Delete"]);
        report.one_of(&at.child("whenScaled"), retention.when_scaled.as_deref(), &["Retain", "Delete"]);
    }
    report.not_negative(&at.child("replicas"), spec.replicas.map(i64::from));
    report.not_negative(&at.child("minReadySeconds"), spec.min_ready_seconds.map(i64::from));
    report.not_negative(&at.child("revisionHistoryLimit"), spec.revision_history_limit.map(i64::from));
    if let Some(ordinals) = &spec.ordinals {
        report.not_negative(&at.child("ordinals").child("start"), ordinals.start.map(i64::from));
    }
    selector(report, at, &spec.selector, "statefulset", Some(&spec.template));
    claims(report, &at.child("volumeClaimTemplates"), spec);
    template(report, &at.child("template"), &with_claims(spec));
    lives_on(report, &at.child("template"), &spec.template, "StatefulSet");
}

/// Containers may mount what the claim templates give.
fn with_claims(spec: &StatefulSetSpec) -> PodTemplateSpec {
    let mut template = spec.template.clone();
    let names = spec.volume_claim_templates.iter().flatten().filter_map(|claim| claim.metadata.name.clone());
    let volumes = template.spec.get_or_insert_default().volumes.get_or_insert_default();
    for name in names.filter(|name| names::dns_label(name).is_empty()) {
        volumes.retain(|volume| volume.name != name);
        let source = PersistentVolumeClaimVolumeSource { claim_name: name.clone(), read_only: None };
        volumes.push(Volume { name, persistent_volume_claim: Some(source), ..Volume::default() });
    }
    template
}

fn claims(report: &mut Report<'_>, at: &Path<'_>, spec: &StatefulSetSpec) {
    let mut seen = Unique::default();
    for (i, claim) in spec.volume_claim_templates.iter().flatten().enumerate() {
        let at = at.index(i);
        let metadata = at.child("metadata");
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        report.name(&metadata.child("name"), name, names::dns_label);
        seen.check(report, &metadata.child("name"), name);
        labels(report, &metadata, &claim.metadata);
        object::claim_spec(report, &at.child("spec"), claim.spec.as_ref());
    }
}

fn daemon_set(report: &mut Report<'_>, at: &Path<'_>, spec: &DaemonSetSpec) {
    report.not_negative(&at.child("minReadySeconds"), spec.min_ready_seconds.map(i64::from));
    report.not_negative(&at.child("revisionHistoryLimit"), spec.revision_history_limit.map(i64::from));
    selector(report, at, &spec.selector, "daemonset", Some(&spec.template));
    template(report, &at.child("template"), &spec.template);
    lives_on(report, &at.child("template"), &spec.template, "DaemonSet");
    if let Some(strategy) = &spec.update_strategy {
        daemon_strategy(report, &at.child("updateStrategy"), strategy);
    }
}

fn daemon_strategy(report: &mut Report<'_>, at: &Path<'_>, strategy: &DaemonSetUpdateStrategy) {
    report.one_of(&at.child("type"), strategy.type_.as_deref(), &["RollingUpdate", "OnDelete"]);
    let Some(rolling) = strategy.rolling_update.as_ref().filter(|_| strategy.type_.as_deref() == Some("RollingUpdate")) else {
        return;
    };
    let at = at.child("rollingUpdate");
    rolling_pair(report, &at, rolling.max_unavailable.as_ref(), rolling.max_surge.as_ref());
    match (is_zero(rolling.max_unavailable.as_ref()), is_zero(rolling.max_surge.as_ref())) {
        (true, true) => report.required(&at.child("maxUnavailable"), "cannot be 0 when maxSurge is 0"),
        (false, false) if rolling.max_surge.is_some() => {
            let shown = match &rolling.max_surge {
                Some(IntOrString::Int(number)) => number.to_string(),
                Some(IntOrString::String(text)) => format!("{text:?}"),
                None => String::new(),
            };
            report.say(&at.child("maxSurge"), format!("Invalid value: {shown}: may not be set when maxUnavailable is non-zero"));
        }
        _ => {}
    }
}

/// The template's pods are replaced when they end, so they must not want to stay ended.
fn lives_on(report: &mut Report<'_>, at: &Path<'_>, template: &PodTemplateSpec, kind: &str) {
    let Some(spec) = &template.spec else { return };
    let at = at.child("spec");
    if let Some(policy) = spec.restart_policy.as_deref().filter(|p| *p != "Always") {
        report.unsupported(&at.child("restartPolicy"), policy, &["Always"]);
    }
    if spec.active_deadline_seconds.is_some() {
        let wrong = format!("activeDeadlineSeconds in {kind} is not Supported");
        report.forbidden(&at.child("activeDeadlineSeconds"), wrong);
    }
}

pub(super) fn template(report: &mut Report<'_>, at: &Path<'_>, template: &PodTemplateSpec) {
    if let Some(metadata) = &template.metadata {
        labels(report, &at.child("metadata"), metadata);
    }
    match &template.spec {
        Some(spec) => pod::spec(report, &at.child("spec"), spec, ""),
        None => report.required(&at.child("spec"), ""),
    }
}

pub(super) fn labels(report: &mut Report<'_>, at: &Path<'_>, metadata: &ObjectMeta) {
    for (key, value) in metadata.labels.iter().flatten() {
        report.each_invalid(&at.child("labels"), key, names::qualified_name(key));
        report.each_invalid(&at.child("labels"), value, names::label_value(value));
    }
    pod::annotations(report, &at.child("annotations"), metadata);
}

/// `kind`: as the server's sentence has it. Given a template, its labels must be what is selected.
fn selector(report: &mut Report<'_>, at: &Path<'_>, selector: &LabelSelector, kind: &str, template: Option<&PodTemplateSpec>) {
    let own = at.child("selector");
    if selector.match_labels.iter().flatten().next().is_none() && selector.match_expressions.iter().flatten().next().is_none() {
        if report.has(&own) {
            report.say(&own, format!("Invalid value: {{}}: empty selector is invalid for {kind}"));
        } else {
            report.required(&own, "");
        }
        return;
    }
    let before = report.count();
    label_selector(report, &own, selector);
    if report.count() > before {
        let shown = json(selector);
        report.say(&own, format!("Invalid value: {shown}: invalid label selector"));
    }
    let none = std::collections::BTreeMap::new();
    let Some(template) = template.filter(|_| report.count() == before) else { return };
    let labels = template.metadata.as_ref().and_then(|m| m.labels.as_ref()).unwrap_or(&none);
    if !selects(selector, labels) {
        let shown = json(labels);
        let at = at.child("template");
        let metadata = at.child("metadata");
        report.say(&metadata.child("labels"), format!("Invalid value: {shown}: `selector` does not match template `labels`"));
    }
}

/// A selector, empty or not.
pub(super) fn label_selector(report: &mut Report<'_>, own: &Path<'_>, selector: &LabelSelector) {
    for (key, value) in selector.match_labels.iter().flatten() {
        report.each_invalid(&own.child("matchLabels"), key, names::qualified_name(key));
        report.each_invalid(&own.child("matchLabels").key(key), value, names::label_value(value));
    }
    for (i, requirement) in selector.match_expressions.iter().flatten().enumerate() {
        expression(report, &own.child("matchExpressions").index(i), requirement);
    }
}

pub(super) fn expression(report: &mut Report<'_>, at: &Path<'_>, requirement: &LabelSelectorRequirement) {
    let values = requirement.values.as_deref().unwrap_or_default();
    match requirement.operator.as_str() {
        "In" | "NotIn" if values.is_empty() => {
            report.required(&at.child("values"), "must be specified when `operator` is 'In' or 'NotIn'");
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            report.forbidden(&at.child("values"), "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        other => report.invalid(&at.child("operator"), other, "not a valid selector operator"),
    }
    report.each_invalid(&at.child("key"), &requirement.key, names::qualified_name(&requirement.key));
    for (i, value) in values.iter().enumerate() {
        report.each_invalid(&at.child("values").index(i), value, names::label_value(value));
    }
}

/// Whether a selector fits these labels. An empty one fits all.
pub fn selects(selector: &LabelSelector, labels: &std::collections::BTreeMap<String, String>) -> bool {
    let equal = selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let fits = |r: &LabelSelectorRequirement| {
        let within = labels.get(&r.key).is_some_and(|value| r.values.iter().flatten().any(|v| v == value));
        match r.operator.as_str() {
            "In" => within,
            "NotIn" => !within,
            "Exists" => labels.contains_key(&r.key),
            _ => !labels.contains_key(&r.key),
        }
    };
    equal && selector.match_expressions.iter().flatten().all(fits)
}
