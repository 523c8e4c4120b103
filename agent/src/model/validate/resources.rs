//! Requests, limits and how they may change.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ContainerResizePolicy, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use super::names;
use super::report::{Report, Unique};
use crate::model::path::Path;
use crate::model::quantity::{Quantity, QuantityError};

type Amounts = BTreeMap<String, ApiQuantity>;

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
    let standard = |name: &str| OF_CONTAINERS.contains(&name) || is_huge(name);
    amounts(report, at, resources, standard, "must be a standard resource for containers");
    claims(report, at, resources, spec);
}

/// `spec.resources`: what all containers of the pod share.
pub(super) fn of_pod(report: &mut Report<'_>, at: &Path<'_>, resources: &ResourceRequirements, spec: &PodSpec) {
    let supported = |name: &str| matches!(name, "cpu" | "memory") || is_huge(name);
    amounts(report, at, resources, supported, "must be a standard resource for pods");
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
}

fn amounts(report: &mut Report<'_>, at: &Path<'_>, resources: &ResourceRequirements, known: fn(&str) -> bool, unknown: &str) {
    let empty = Amounts::new();
    let limits = resources.limits.as_ref().unwrap_or(&empty);
    let requests = resources.requests.as_ref().unwrap_or(&empty);
    each(report, &at.child("limits"), limits, known, unknown);
    each(report, &at.child("requests"), requests, known, unknown);
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

fn each(report: &mut Report<'_>, at: &Path<'_>, amounts: &Amounts, known: fn(&str) -> bool, unknown: &str) {
    for (name, text) in amounts {
        let at = at.key(name);
        if name.contains('/') {
            report.each_invalid(&at, name, names::qualified_name(name));
        } else if !known(name) {
            report.invalid(&at, name, unknown);
        }
        if is_huge(name) {
            huge_page_size(report, &at, name);
        }
        let Some(value) = quantity(report, &at, &text.0) else { continue };
        if !value.is_whole() && (name.contains('/') || is_huge(name)) {
            report.invalid(&at, &text.0, "must be an integer");
        }
    }
}

fn huge_page_size(report: &mut Report<'_>, at: &Path<'_>, name: &str) {
    let size = name.trim_start_matches("hugepages-").parse::<Quantity>();
    match size {
        Ok(size) if size.value() > 0 => {}
        Ok(_) => report.invalid(at, name, "the page size must be greater than 0"),
        Err(QuantityError) => report.invalid(at, name, QuantityError),
    }
}

fn claims(report: &mut Report<'_>, at: &Path<'_>, resources: &ResourceRequirements, spec: &PodSpec) {
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
                format!("Not found: {:?}: must be one of the names in pod.spec.resourceClaims", claim.name),
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
