//! What a scheduler would weigh. A file's pod has its node already; what is wrong is told all the same, as the API server tells it.

use k8s_openapi::api::core::v1::{
    Affinity, NodeSelectorRequirement, NodeSelectorTerm, PodAffinityTerm, PodSchedulingGate, TopologySpreadConstraint,
    WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::names;
use super::report::{Report, Unique};
use super::workload::expression;
use crate::model::path::Path;

pub(super) fn affinity(report: &mut Report<'_>, at: &Path<'_>, affinity: &Affinity) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    if let Some(node) = &affinity.node_affinity {
        let at = at.child("nodeAffinity");
        if let Some(required) = &node.required_during_scheduling_ignored_during_execution {
            let at = at.child(REQUIRED);
            let list = at.child("nodeSelectorTerms");
            if required.node_selector_terms.is_empty() {
                report.required(&list, "must have at least one node selector term");
            }
            required.node_selector_terms.iter().enumerate().for_each(|(i, term)| node_term(report, &list.index(i), term));
        }
        for (i, term) in node.preferred_during_scheduling_ignored_during_execution.iter().flatten().enumerate() {
            let list = at.child(PREFERRED);
            let at = list.index(i);
            weight(report, &at, term.weight);
            node_term(report, &at.child("preference"), &term.preference);
        }
    }
    let pods = [
        (
            "podAffinity",
            affinity.pod_affinity.as_ref().map(|a| {
                (&a.required_during_scheduling_ignored_during_execution, &a.preferred_during_scheduling_ignored_during_execution)
            }),
        ),
        (
            "podAntiAffinity",
            affinity.pod_anti_affinity.as_ref().map(|a| {
                (&a.required_during_scheduling_ignored_during_execution, &a.preferred_during_scheduling_ignored_during_execution)
            }),
        ),
    ];
    for (name, lists) in pods {
        let Some((required, preferred)) = lists else { continue };
        let at = at.child(name);
        for (i, term) in required.iter().flatten().enumerate() {
            pod_term(report, &at.child(REQUIRED).index(i), term);
        }
        for (i, term) in preferred.iter().flatten().enumerate() {
            weighted(report, &at.child(PREFERRED).index(i), term);
        }
    }
}

fn weight(report: &mut Report<'_>, at: &Path<'_>, weight: i32) {
    if !(1..=100).contains(&weight) {
        report.invalid(&at.child("weight"), &weight, "must be in the range 1-100");
    }
}

fn node_term(report: &mut Report<'_>, at: &Path<'_>, term: &NodeSelectorTerm) {
    for (i, requirement) in term.match_expressions.iter().flatten().enumerate() {
        node_requirement(report, &at.child("matchExpressions").index(i), requirement);
    }
    for (i, requirement) in term.match_fields.iter().flatten().enumerate() {
        node_field(report, &at.child("matchFields").index(i), requirement);
    }
}

fn node_requirement(report: &mut Report<'_>, at: &Path<'_>, requirement: &NodeSelectorRequirement) {
    let values = requirement.values.as_deref().unwrap_or_default();
    let at_values = at.child("values");
    match (requirement.operator.as_str(), values.len()) {
        ("In" | "NotIn", 0) => report.required(&at_values, "must be specified when `operator` is 'In' or 'NotIn'"),
        ("Exists" | "DoesNotExist", 1..) => {
            report.forbidden(&at_values, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
        }
        ("Gt" | "Lt", 0 | 2..) => {
            report.required(&at_values, "must be specified single value when `operator` is 'Lt' or 'Gt'");
        }
        ("In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt", _) => {}
        (other, _) => report.invalid(&at.child("operator"), other, "not a valid selector operator"),
    }
    report.each_invalid(&at.child("key"), &requirement.key, names::qualified_name(&requirement.key));
    for (i, value) in values.iter().enumerate() {
        report.each_invalid(&at_values.index(i), value, names::label_value(value));
    }
}

fn node_field(report: &mut Report<'_>, at: &Path<'_>, requirement: &NodeSelectorRequirement) {
    let values = requirement.values.as_deref().unwrap_or_default();
    match requirement.operator.as_str() {
        "In" | "NotIn" if values.len() != 1 => {
            let wrong = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            report.required(&at.child("values"), wrong);
        }
        "In" | "NotIn" => {}
        other => report.invalid(&at.child("operator"), other, "not a valid selector operator"),
    }
    if requirement.key != "metadata.name" {
        return report.invalid(&at.child("key"), &requirement.key, "not a valid field selector key");
    }
    for (i, value) in values.iter().enumerate() {
        report.each_invalid(&at.child("values").index(i), value, names::dns_subdomain(value));
    }
}

fn weighted(report: &mut Report<'_>, at: &Path<'_>, term: &WeightedPodAffinityTerm) {
    weight(report, at, term.weight);
    pod_term(report, &at.child("podAffinityTerm"), &term.pod_affinity_term);
}

fn pod_term(report: &mut Report<'_>, at: &Path<'_>, term: &PodAffinityTerm) {
    selector(report, &at.child("labelSelector"), term.label_selector.as_ref());
    selector(report, &at.child("namespaceSelector"), term.namespace_selector.as_ref());
    for (i, name) in term.namespaces.iter().flatten().enumerate() {
        report.each_invalid(&at.child("namespaces").index(i), name, names::dns_label(name));
    }
    if term.topology_key.is_empty() {
        report.required(&at.child("topologyKey"), "can not be empty");
    }
    report.each_invalid(&at.child("topologyKey"), &term.topology_key, names::qualified_name(&term.topology_key));
}

pub(super) fn selector(report: &mut Report<'_>, at: &Path<'_>, selector: Option<&LabelSelector>) {
    let Some(selector) = selector else { return };
    for (key, value) in selector.match_labels.iter().flatten() {
        report.each_invalid(&at.child("matchLabels"), key, names::qualified_name(key));
        report.each_invalid(&at.child("matchLabels").key(key), value, names::label_value(value));
    }
    for (i, requirement) in selector.match_expressions.iter().flatten().enumerate() {
        expression(report, &at.child("matchExpressions").index(i), requirement);
    }
}

pub(super) fn spread(report: &mut Report<'_>, at: &Path<'_>, constraints: &[TopologySpreadConstraint]) {
    for (i, constraint) in constraints.iter().enumerate() {
        let at = at.index(i);
        let action = constraint.when_unsatisfiable.as_str();
        let positive = |report: &mut Report<'_>, at: &Path<'_>, value: i32| {
            if value <= 0 {
                report.invalid(at, &value, "must be greater than zero");
            }
        };
        positive(report, &at.child("maxSkew"), constraint.max_skew);
        if constraint.topology_key.is_empty() {
            report.required(&at.child("topologyKey"), "can not be empty");
        }
        report.one_of(&at.child("whenUnsatisfiable"), Some(action), &["DoNotSchedule", "ScheduleAnyway"]);
        let same = |other: &TopologySpreadConstraint| {
            (&other.topology_key, &other.when_unsatisfiable) == (&constraint.topology_key, &constraint.when_unsatisfiable)
        };
        if constraints.iter().skip(i + 1).any(same) {
            let pair = format!("{{{}, {action}}}", constraint.topology_key);
            report.duplicate(&at.child("{topologyKey, whenUnsatisfiable}"), &pair);
        }
        if let Some(domains) = constraint.min_domains {
            positive(report, &at.child("minDomains"), domains);
            if action != "DoNotSchedule" {
                let wrong = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}");
                report.invalid(&at.child("minDomains"), &domains, wrong);
            }
        }
        for (name, policy) in
            [("nodeAffinityPolicy", &constraint.node_affinity_policy), ("nodeTaintsPolicy", &constraint.node_taints_policy)]
        {
            report.one_of(&at.child(name), policy.as_deref(), &["Honor", "Ignore"]);
        }
        selector(report, &at.child("labelSelector"), constraint.label_selector.as_ref());
    }
}

pub(super) fn gates(report: &mut Report<'_>, at: &Path<'_>, gates: &[PodSchedulingGate]) {
    let mut seen = Unique::default();
    for (i, gate) in gates.iter().enumerate() {
        report.each_invalid(&at.index(i), &gate.name, names::qualified_name(&gate.name));
        seen.check(report, &at.index(i), gate.name.as_str());
    }
}
