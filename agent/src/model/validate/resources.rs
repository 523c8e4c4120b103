//! Requests, limits and how they may change.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ContainerResizePolicy, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use super::names;
use super::report::{Report, Unique};
use crate::model::path::Path;
use crate::model::quantity::Quantity;

type Amounts = BTreeMap<String, ApiQuantity>;

/// Of all kinds of objects: names without a prefix that mean something somewhere.
const STANDARD: [&str; 20] = [
    "configmaps",
    "cpu",
    "ephemeral-storage",
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "memory",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
    "requests.storage",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
    "storage",
];
const OF_CONTAINERS: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

fn is_huge(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// Whether more may be promised than there is.
fn may_overcommit(name: &str) -> bool {
    !name.contains('/') && !is_huge(name)
}

/// A quantity that must be one.
pub(super) fn quantity(report: &mut Report<'_>, at: &Path<'_>, text: &str) -> Option<Quantity> {
    match text.parse::<Quantity>() {
        Ok(value) if value.is_negative() => {
            report.invalid(at, text, "must be greater than or equal to 0");
            None
        }
        Ok(value) => Some(value),
        Err(error) => {
            report.invalid(at, text, error);
            None
        }
    }
}

pub(super) fn of_container(report: &mut Report<'_>, at: &Path<'_>, resources: &ResourceRequirements, spec: &PodSpec) {
    amounts(report, at, resources, container_resource);
    claims(report, at, resources, spec);
}

/// What the pod itself takes beside its containers: judged as one's limits.
pub(super) fn overhead(report: &mut Report<'_>, at: &Path<'_>, overhead: &Amounts) {
    let resources = ResourceRequirements { limits: Some(overhead.clone()), ..ResourceRequirements::default() };
    amounts(report, at, &resources, container_resource);
}

/// Tells of a name that no resource has; whether one may have it.
fn resource_name(report: &mut Report<'_>, at: &Path<'_>, name: &str) -> bool {
    let wrong = names::qualified_name(name);
    let standard = name.contains('/') || STANDARD.contains(&name) || is_huge(name.trim_start_matches("requests."));
    if wrong.is_empty() && !standard {
        report.invalid(at, name, "must be a standard resource type or fully qualified");
    }
    let fine = wrong.is_empty() && standard;
    report.each_invalid(at, name, wrong);
    fine
}

fn container_resource(report: &mut Report<'_>, at: &Path<'_>, name: &str) {
    resource_name(report, at, name);
    if !name.contains('/') {
        if !OF_CONTAINERS.contains(&name) && !is_huge(name) {
            report.invalid(at, name, "must be a standard resource for containers");
        }
    } else if !name.contains("kubernetes.io/") && !names::is_extended_resource(name) {
        report.invalid(at, name, "doesn't follow extended resource name standard");
    }
}

fn pod_resource(report: &mut Report<'_>, at: &Path<'_>, name: &str) {
    if resource_name(report, at, name) && !matches!(name, "cpu" | "memory") && !is_huge(name) {
        report.unsupported(at, name, &["cpu", "hugepages-", "memory"]);
    }
}

/// `spec.resources`: what all containers of the pod share.
pub(super) fn of_pod(report: &mut Report<'_>, at_spec: &Path<'_>, resources: &ResourceRequirements, spec: &PodSpec) {
    let at = &at_spec.child("resources");
    amounts(report, at, resources, pod_resource);
    claims(report, at, resources, spec);
    if resources.claims.as_ref().is_some_and(|c| !c.is_empty()) {
        report.forbidden(&at.child("claims"), "claims may not be set for Resources at pod-level");
    }
    let list = at.child("requests");
    for (name, text) in resources.requests.iter().flatten() {
        let Ok(pod) = text.0.parse::<Quantity>() else { continue };
        let requested = spec.containers.iter().filter_map(|c| c.resources.as_ref()?.requests.as_ref()?.get(name));
        let sum = requested.filter_map(|q| q.0.parse::<Quantity>().ok()).fold(Quantity::units(0), Quantity::plus);
        if sum > pod {
            let wrong = format!("must be greater than or equal to aggregate container requests of {sum}");
            report.invalid(&list.key(name), &text.0, wrong);
        }
    }
    container_limits(report, at_spec, resources, spec);
}

/// No container may have more than its pod. The sentence is the API server's, at the place that it means.
fn container_limits(report: &mut Report<'_>, at: &Path<'_>, resources: &ResourceRequirements, spec: &PodSpec) {
    let list = at.child("containers");
    for (i, container) in spec.containers.iter().enumerate() {
        let at = list.index(i);
        let at = at.child("resources");
        for (name, text) in container.resources.iter().flat_map(|r| r.limits.iter().flatten()) {
            let Some(most) = resources.limits.as_ref().and_then(|limits| limits.get(name)) else { continue };
            let (Ok(limit), Ok(most)) = (text.0.parse::<Quantity>(), most.0.parse::<Quantity>()) else { continue };
            if limit > most {
                let wrong = format!("must be less than or equal to pod limits of {most}");
                report.invalid(&at.child("limits").key(name), &limit.to_string(), wrong);
            }
        }
    }
}

/// Tells what is wrong with a resource's name.
type CheckName = fn(&mut Report<'_>, &Path<'_>, &str);

fn amounts(report: &mut Report<'_>, at: &Path<'_>, resources: &ResourceRequirements, check: CheckName) {
    let empty = Amounts::new();
    let limits = resources.limits.as_ref().unwrap_or(&empty);
    let requests = resources.requests.as_ref().unwrap_or(&empty);
    each(report, &at.child("limits"), limits, check);
    each(report, &at.child("requests"), requests, check);
    let parsed = |map: &Amounts, name: &str| map.get(name).and_then(|q| q.0.parse::<Quantity>().ok());
    for name in requests.keys() {
        let Some(request) = parsed(requests, name) else { continue };
        match parsed(limits, name) {
            Some(limit) if may_overcommit(name) && request > limit => {
                let wrong = format!("must be less than or equal to {name} limit of {limit}");
                report.invalid(&at.child("requests"), &request.to_string(), wrong);
            }
            Some(limit) if !may_overcommit(name) && request != limit => {
                let wrong = format!("must be equal to {name} limit of {limit}");
                report.invalid(&at.child("requests"), &request.to_string(), wrong);
            }
            None if !may_overcommit(name) && !limits.contains_key(name) => {
                report.required(&at.child("limits"), "Limit must be set for non overcommitable resources");
            }
            _ => {}
        }
    }
    let any = |test: fn(&str) -> bool| limits.keys().chain(requests.keys()).any(|n| test(n));
    if any(is_huge) && !any(|n| matches!(n, "cpu" | "memory")) {
        report.forbidden(at, "HugePages require cpu or memory");
    }
}

fn each(report: &mut Report<'_>, at: &Path<'_>, amounts: &Amounts, check: CheckName) {
    for (name, text) in amounts {
        let at = at.key(name);
        check(report, &at, name);
        let Some(value) = quantity(report, &at, &text.0) else { continue };
        if !value.is_whole() && (name.contains('/') || is_huge(name)) {
            report.invalid(&at, &text.0, "must be an integer");
        }
        if is_huge(name) && !pages(name, value) {
            let wrong = format!("{value} is not positive integer multiple of {name}");
            report.invalid(&at, &value.to_string(), wrong);
        }
    }
}

/// Whether an amount of huge pages is one of whole pages.
fn pages(name: &str, amount: Quantity) -> bool {
    let size = name.trim_start_matches("hugepages-").parse::<Quantity>().map_or(0, Quantity::value);
    size > 0 && amount.value() % size == 0
}

fn claims(report: &mut Report<'_>, at: &Path<'_>, resources: &ResourceRequirements, spec: &PodSpec) {
    let none = if spec.resource_claims.as_ref().is_none_or(Vec::is_empty) { " which is empty" } else { "" };
    let mut seen = Unique::default();
    for (i, claim) in resources.claims.iter().flatten().enumerate() {
        let list = at.child("claims");
        let at = list.index(i);
        if claim.name.is_empty() {
            report.required(&at.child("name"), "");
            continue;
        }
        let key = format!("{}/{}", claim.name, claim.request.as_deref().unwrap_or_default());
        seen.check(report, &at, key.trim_end_matches('/').to_owned());
        if !spec.resource_claims.iter().flatten().any(|c| c.name == claim.name) {
            report.say(
                &at.child("name"),
                format!("Not found: {:?}: must be one of the names in pod.spec.resourceClaims{none}", claim.name),
            );
        }
    }
}

pub(super) fn resize_policy(report: &mut Report<'_>, at: &Path<'_>, policies: &[ContainerResizePolicy]) {
    let mut seen = Unique::default();
    for (i, policy) in policies.iter().enumerate() {
        let at = at.index(i);
        match policy.resource_name.as_str() {
            "" => report.required(&at.child("resourceName"), ""),
            name => {
                report.one_of(&at.child("resourceName"), Some(name), &["cpu", "memory"]);
                seen.check(report, &at, name);
            }
        }
        match policy.restart_policy.as_str() {
            "" => report.required(&at.child("restartPolicy"), ""),
            policy => report.one_of(&at.child("restartPolicy"), Some(policy), &["NotRequired", "RestartContainer"]),
        }
    }
}
