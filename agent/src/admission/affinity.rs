//! Whether a pod's nodeSelector and its required node affinity name this node: the kubelet's predicate NodeAffinity. What a scheduler
//! alone weighs (preferences, other pods, spread) is nothing to a node that the pod has. Pure.
//! <https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/>

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, PodSpec};

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
        // Terms are alternatives; one without any requirement matches nothing.
        selector && required.is_none_or(|selector| selector.node_selector_terms.iter().any(|term| self.match_term(term)))
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
}
