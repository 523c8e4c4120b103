//! Environment variables and where they come from; also what the downward API can tell.

use k8s_openapi::api::core::v1::{EnvFromSource, EnvVar, EnvVarSource, ObjectFieldSelector, ResourceFieldSelector};

use super::container::Context;
use super::names;
use super::report::Report;
use crate::model::path::Path;
use crate::model::quantity::Quantity;

/// Fields of a pod that exist by such a path, but that neither variables nor files can have.
const OTHER_FIELDS: [&str; 4] = ["spec.host", "spec.restartPolicy", "spec.schedulerName", "status.phase"];
const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const FILE_FIELDS: [&str; 5] = ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
const RESOURCES: [&str; 6] =
    ["limits.cpu", "limits.ephemeral-storage", "limits.memory", "requests.cpu", "requests.ephemeral-storage", "requests.memory"];

/// Where the downward API writes to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    Env,
    File,
}

pub(super) fn variables(report: &mut Report<'_>, at: &Path<'_>, env: &[EnvVar], context: &Context<'_>) {
    for (i, variable) in env.iter().enumerate() {
        let at = at.index(i);
        report.name(&at.child("name"), &variable.name, names::env_name);
        if let Some(from) = &variable.value_from {
            let at = at.child("valueFrom");
            if variable.value.as_deref().is_some_and(|v| !v.is_empty()) {
                report.invalid(&at, "", "may not be specified when `value` is not empty");
            }
            value_from(report, &at, from, context);
        }
    }
}

fn value_from(report: &mut Report<'_>, at: &Path<'_>, from: &EnvVarSource, context: &Context<'_>) {
    let mut sources = 0;
    if let Some(field) = &from.field_ref {
        sources += 1;
        field_ref(report, &at.child("fieldRef"), field, Target::Env);
    }
    if let Some(resource) = &from.resource_field_ref {
        sources += 1;
        resource_field_ref(report, &at.child("resourceFieldRef"), resource, Target::Env);
    }
    if let Some(selector) = &from.config_map_key_ref {
        sources += 1;
        key_ref(report, &at.child("configMapKeyRef"), &selector.name, &selector.key);
    }
    if let Some(selector) = &from.secret_key_ref {
        sources += 1;
        key_ref(report, &at.child("secretKeyRef"), &selector.name, &selector.key);
    }
    if let Some(file) = &from.file_key_ref {
        sources += 1;
        let at = at.child("fileKeyRef");
        report.name(&at.child("key"), &file.key, names::env_name);
        report.name(&at.child("volumeName"), &file.volume_name, names::dns_label);
        match (file.volume_name.as_str(), context.volumes.get(file.volume_name.as_str())) {
            (name, None) => report.not_found(&at.child("volumeName"), name),
            (name, Some(v)) if v.empty_dir.is_none() => {
                report.invalid(&at.child("volumeName"), name, "referenced volume must be of type emptyDir");
            }
            _ => {}
        }
        if file.path.is_empty() {
            report.required(&at.child("path"), "");
        }
        report.descending(&at.child("path"), &file.path);
    }
    match sources {
        0 => report.invalid(
            at,
            "",
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        ),
        1 => {}
        _ => report.invalid(at, "", "may not have more than one field specified at a time"),
    }
}

fn key_ref(report: &mut Report<'_>, at: &Path<'_>, name: &str, key: &str) {
    // Here the API server calls a name that isn't there a wrong one.
    report.each_invalid(&at.child("name"), name, names::dns_subdomain(name));
    report.name(&at.child("key"), key, names::config_key);
}

pub(super) fn field_ref(report: &mut Report<'_>, at: &Path<'_>, field: &ObjectFieldSelector, target: Target) {
    let path = at.child("fieldPath");
    let value = field.field_path.as_str();
    if value.is_empty() {
        return report.required(&path, "");
    }
    if let Some(version) = field.api_version.as_deref().filter(|version| *version != "v1") {
        let wrong = format!("error converting fieldPath: unsupported pod version: {version}");
        return report.invalid(&path, value, wrong);
    }
    if let Some((map, key)) = subscript(value) {
        match map {
            "metadata.annotations" => {
                let key = key.to_lowercase();
                report.each_invalid(&path, &key, names::qualified_name(&key));
            }
            "metadata.labels" => report.each_invalid(&path, key, names::qualified_name(key)),
            _ => {
                let wrong = format!("error converting fieldPath: field label does not support subscript: {value}");
                report.invalid(&path, value, wrong);
            }
        }
        return;
    }
    let known: &[&str] = if target == Target::Env { &ENV_FIELDS } else { &FILE_FIELDS };
    if [&ENV_FIELDS[..], &FILE_FIELDS, &OTHER_FIELDS].iter().any(|fields| fields.contains(&value)) {
        report.one_of(&path, Some(value), known);
    } else {
        report.invalid(&path, value, format!("error converting fieldPath: field label not supported: {value}"));
    }
}

/// `metadata.labels['key']` → its two parts.
fn subscript(path: &str) -> Option<(&str, &str)> {
    path.strip_suffix("']")?.split_once("['")
}

/// What a number of bytes may be divided by.
const BYTES: &str = "1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei";

pub(super) fn resource_field_ref(report: &mut Report<'_>, at: &Path<'_>, field: &ResourceFieldSelector, target: Target) {
    let resource = field.resource.as_str();
    let huge = ["limits.hugepages-", "requests.hugepages-"].iter().any(|p| resource.starts_with(p));
    if target == Target::File && field.container_name.as_deref().unwrap_or_default().is_empty() {
        report.required(&at.child("containerName"), "");
    } else if resource.is_empty() {
        report.required(&at.child("resource"), "");
    } else if !huge {
        report.one_of(&at.child("resource"), Some(resource), &RESOURCES);
    }
    let Some(divisor) = field.divisor.as_ref().map(|d| d.0.as_str()) else { return };
    let Ok(value) = divisor.parse::<Quantity>() else {
        return report.invalid(&at.child("divisor"), divisor, crate::model::quantity::QuantityError);
    };
    let (kind, known) = match resource.split_once('.').map(|(_, r)| r) {
        Some("cpu") => ("cpu", "1m and 1"),
        Some("memory") => ("memory", BYTES),
        Some("ephemeral-storage") => ("local ephemeral storage", BYTES),
        Some(_) if huge => ("hugepages", BYTES),
        _ => return,
    };
    if !value.is_zero() && !known.split([',', ' ']).any(|k| k.parse::<Quantity>() == Ok(value)) {
        let detail = format!("only divisor's values {known} are supported with the {kind} resource");
        // As the API server has it, whose message names the resource where the divisor is wrong.
        report.invalid(&at.child("divisor"), resource, detail);
    }
}

pub(super) fn sources(report: &mut Report<'_>, at: &Path<'_>, sources: &[EnvFromSource]) {
    for (i, source) in sources.iter().enumerate() {
        let at = at.index(i);
        if let Some(prefix) = source.prefix.as_deref().filter(|p| !p.is_empty()) {
            report.each_invalid(&at.child("prefix"), prefix, names::env_name(prefix));
        }
        if let Some(map) = &source.config_map_ref {
            report.name(&at.child("configMapRef").child("name"), &map.name, names::dns_subdomain);
        }
        if let Some(secret) = &source.secret_ref {
            report.name(&at.child("secretRef").child("name"), &secret.name, names::dns_subdomain);
        }
        match (source.config_map_ref.is_some(), source.secret_ref.is_some()) {
            (false, false) => report.invalid(&at, "", "must specify one of: `configMapRef` or `secretRef`"),
            (true, true) => report.invalid(&at, "", "may not have more than one field specified at a time"),
            _ => {}
        }
    }
}
