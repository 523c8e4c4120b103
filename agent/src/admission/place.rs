//! Whether this node is a pod's place: its nodeSelector and its required node affinity name it, and no taint keeps the pod out: the kubelet's
//! predicates NodeAffinity and TaintToleration. What a scheduler alone weighs (preferences, other pods, spread, taints of other effects) is
//! nothing to a node that the pod has. Pure.
//! <https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/>
//! <https://kubernetes.io/docs/concepts/scheduling-eviction/taint-and-toleration/>

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Node as NodeObject, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration,
};

use super::Rejection;
use crate::model::{Origin, ValidPod};

/// A node as selectors see it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels {
    /// metadata.name: the one field that `matchFields` knows.
    pub name: String,
    /// metadata.labels.
    pub labels: BTreeMap<String, String>,
}

impl Labels {
    /// Whether a pod may be on a node with these.
    pub fn permit(&self, spec: &PodSpec) -> bool {
        let selector = spec.node_selector.iter().flatten().all(|(key, value)| self.labels.get(key) == Some(value));
        let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
        let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
        selector && required.is_none_or(|selector| self.match_any(selector))
    }

    /// Whether one of the terms names such a node. They are alternatives; one without any requirement matches nothing.
    pub fn match_any(&self, selector: &NodeSelector) -> bool {
        selector.node_selector_terms.iter().any(|term| self.match_term(term))
    }

    fn match_term(&self, term: &NodeSelectorTerm) -> bool {
        let expressions = term.match_expressions.as_deref().unwrap_or_default();
        let fields = term.match_fields.as_deref().unwrap_or_default();
        let name = |r: &NodeSelectorRequirement| Some(self.name.as_str()).filter(|_| r.key == "metadata.name");
        !(expressions.is_empty() && fields.is_empty())
            && expressions.iter().all(|r| matches(r, self.labels.get(&r.key).map(String::as_str)))
            && fields.iter().all(|r| matches(r, name(r)))
    }
}

/// The Node object as it was seen last, as far as it says whose place the node is. Others than the node give it labels and taints.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Place {
    labels: Labels,
    /// Those that end pods.
    taints: Vec<Taint>,
}

impl Place {
    pub(super) fn of(node: &NodeObject) -> Self {
        let (metadata, taints) = (&node.metadata, node.spec.iter().flat_map(|spec| spec.taints.iter().flatten()));
        Self {
            labels: Labels {
                name: metadata.name.clone().unwrap_or_default(),
                labels: metadata.labels.clone().unwrap_or_default(),
            },
            taints: taints.filter(|taint| taint.effect == "NoExecute").cloned().collect(),
        }
    }

    pub(super) fn labels(&self) -> &Labels {
        &self.labels
    }

    /// A file's pod is here whatever the taints, as the kubelet's static pods are.
    pub(super) fn permits(&self, pod: &ValidPod) -> Result<(), Rejection> {
        permits(&self.labels, pod)?;
        let tolerations = pod.spec().tolerations.as_deref().unwrap_or_default();
        let tolerated = |taint: &Taint| tolerations.iter().any(|toleration| tolerates(toleration, taint));
        if *pod.origin() == Origin::Api && !self.taints.iter().all(tolerated) {
            let message = "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate";
            return Err(Rejection::new("TaintToleration", message));
        }
        Ok(())
    }
}

/// Whether a pod's selectors name a node of these labels.
pub(super) fn permits(labels: &Labels, pod: &ValidPod) -> Result<(), Rejection> {
    if labels.permit(pod.spec()) {
        return Ok(());
    }
    let message = "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
    Err(Rejection::new("NodeAffinity", message))
}

/// No effect means all of them, no key with `Exists` all keys.
fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let said = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let (key, value) = (said(&toleration.key), said(&toleration.value));
    let exists = toleration.operator.as_deref() == Some("Exists");
    said(&toleration.effect).is_none_or(|effect| effect == taint.effect)
        && key.map_or(exists, |key| key == taint.key)
        && (exists || value == said(&taint.value))
}

fn matches(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let among = || value.is_some_and(|value| values.iter().any(|v| v == value));
    let beyond = |beyond: fn(i64, i64) -> bool| {
        let bound = values.first().and_then(|v| v.parse().ok());
        value.and_then(|v| v.parse().ok()).zip(bound).is_some_and(|(value, bound)| beyond(value, bound))
    };
    match requirement.operator.as_str() {
        "In" => among(),
        "NotIn" => !among(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => beyond(|value, bound| value > bound),
        "Lt" => beyond(|value, bound| value < bound),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    fn term(key: &str, operator: &str, values: &[&str]) -> Value {
        json!({"nodeSelectorTerms": [{"matchExpressions": [{"key": key, "operator": operator, "values": values}]}]})
    }

    #[rstest]
    #[case::nothing_asked(json!({}), Value::Null, true)]
    #[case::selected(json!({"disk": "ssd"}), Value::Null, true)]
    #[case::another(json!({"disk": "hdd"}), Value::Null, false)]
    #[case::one_of_two(json!({"disk": "ssd", "gpu": "yes"}), Value::Null, false)]
    #[case::among(json!({}), term("disk", "In", &["hdd", "ssd"]), true)]
    #[case::not_among(json!({}), term("disk", "NotIn", &["ssd"]), false)]
    #[case::absent_is_not_among(json!({}), term("gpu", "NotIn", &["yes"]), true)]
    #[case::exists(json!({}), term("disk", "Exists", &[]), true)]
    #[case::does_not_exist(json!({}), term("disk", "DoesNotExist", &[]), false)]
    #[case::greater(json!({}), term("cores", "Gt", &["4"]), true)]
    #[case::not_less(json!({}), term("cores", "Lt", &["8"]), false)]
    #[case::no_number(json!({}), term("disk", "Gt", &["4"]), false)]
    #[case::selector_and_affinity(json!({"disk": "ssd"}), term("disk", "In", &["hdd"]), false)]
    #[case::no_term(json!({}), json!({"nodeSelectorTerms": []}), false)]
    #[case::empty_term(json!({}), json!({"nodeSelectorTerms": [{}]}), false)]
    #[case::alternatives(json!({}), json!({"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "gpu", "operator": "Exists"}]},
        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["edge"]}]},
    ]}), true)]
    fn a_node_is_asked_for_by_its_labels(#[case] selector: Value, #[case] required: Value, #[case] permits: bool) {
        let labels = [("disk", "ssd"), ("cores", "8")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let node = Labels { name: "edge".into(), labels: labels.into() };
        let mut spec = json!({"nodeSelector": selector, "containers": []});
        if !required.is_null() {
            spec["affinity"] = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}});
        }
        assert_eq!(node.permit(&serde_json::from_value(spec).unwrap()), permits);
    }

    #[rstest]
    #[case::nothing(json!([]), false)]
    #[case::all(json!([{"operator": "Exists"}]), true)]
    #[case::all_of_an_effect(json!([{"operator": "Exists", "effect": "NoSchedule"}]), false)]
    #[case::the_key(json!([{"key": "flood", "operator": "Exists"}]), true)]
    #[case::another_key(json!([{"key": "fire", "operator": "Exists"}]), false)]
    #[case::the_value(json!([{"key": "flood", "value": "high", "effect": "NoExecute"}]), true)]
    #[case::another_value(json!([{"key": "flood", "operator": "Equal", "value": "low"}]), false)]
    #[case::for_a_while(json!([{"key": "flood", "operator": "Exists", "tolerationSeconds": 9}]), true)]
    fn a_taint_that_ends_pods_keeps_those_out_who_dont_tolerate_it(#[case] tolerations: Value, #[case] permits: bool) {
        let node = json!({"metadata": {"name": "edge"}, "spec": {"taints": [
            {"key": "flood", "value": "high", "effect": "NoExecute"}, {"key": "full", "effect": "NoSchedule"}]}});
        let place = Place::of(&serde_json::from_value(node).unwrap());
        let pod = json!({"metadata": {"name": "p", "uid": "p"}, "spec": {"tolerations": tolerations, "containers": []}});
        let pod = |origin| ValidPod::trusted(serde_json::from_value(pod.clone()).unwrap(), origin);
        assert_eq!(place.permits(&pod(Origin::Api)).is_ok(), permits);
        assert!(place.permits(&pod(Origin::Stdin)).is_ok(), "a scheduler has nothing to say about it");
    }
}
