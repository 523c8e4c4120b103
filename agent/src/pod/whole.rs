//! What a pod as a whole is promised and has, in its status: what it says itself, else what its containers say together. Pure.
//! <https://kubernetes.io/docs/concepts/workloads/pods/pod-level-resources/>

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{self as k8s, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

use super::observed::Observed;
use crate::model::ValidPod;
use crate::model::quantity::Quantity;
use crate::runtime::resources::together;

type Amounts = BTreeMap<String, Quantity>;

/// Requests and limits of the pod as a whole, as the node has promised them; none: nobody says any.
pub fn resources(pod: &ValidPod, observed: &Observed) -> Option<ResourceRequirements> {
    let sum = |which: fn(&ResourceRequirements) -> Option<&BTreeMap<String, Text>>| {
        let of = |container: &k8s::Container| amounts(observed.resources(container).and_then(which));
        let mut total = together(pod.spec(), of, Quantity::plus);
        total.extend(amounts(observed.pod_resources(pod.spec()).and_then(which)));
        let total: BTreeMap<String, Text> = total.into_iter().map(|(name, amount)| (name, Text(amount.to_string()))).collect();
        (!total.is_empty()).then_some(total)
    };
    let whole = ResourceRequirements { claims: None, limits: sum(|r| r.limits.as_ref()), requests: sum(|r| r.requests.as_ref()) };
    (whole != ResourceRequirements::default()).then_some(whole)
}

fn amounts(texts: Option<&BTreeMap<String, Text>>) -> Amounts {
    texts.into_iter().flatten().filter_map(|(name, text)| Some((name.clone(), text.0.parse().ok()?))).collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;
    use crate::model::Origin;

    fn container(name: &str, cpu: &str) -> Value {
        json!({"name": name, "resources": {"requests": {"cpu": cpu, "example.com/thing": "1"}, "limits": {"cpu": cpu}}})
    }

    #[rstest]
    #[case::containers(json!({"containers": [container("a", "10m"), container("b", "15m")]}), json!({"cpu": "25m", "example.com/thing": "2"}), json!({"cpu": "25m"}))]
    #[case::a_greedy_init(json!({"initContainers": [container("i", "1")], "containers": [container("a", "10m")]}), json!({"cpu": "1", "example.com/thing": "1"}), json!({"cpu": "1"}))]
    #[case::the_pod_itself(json!({"resources": {"requests": {"cpu": "2"}}, "containers": [container("a", "10m")]}), json!({"cpu": "2", "example.com/thing": "1"}), json!({"cpu": "10m"}))]
    fn a_pod_has_what_it_says_or_its_containers_together(#[case] spec: Value, #[case] requests: Value, #[case] limits: Value) {
        let pod = json!({"metadata": {"name": "web", "uid": "u"}, "spec": spec});
        let pod = ValidPod::trusted(serde_json::from_value(pod).unwrap(), Origin::Stdin);
        let whole = serde_json::to_value(resources(&pod, &Observed::default()).unwrap()).unwrap();
        assert_eq!(whole, json!({"requests": requests, "limits": limits}));
    }

    #[test]
    fn nobody_says_anything() {
        let pod = json!({"metadata": {"name": "web", "uid": "u"}, "spec": {"containers": [{"name": "a", "resources": {}}]}});
        let pod = ValidPod::trusted(serde_json::from_value(pod).unwrap(), Origin::Stdin);
        assert_eq!(resources(&pod, &Observed::default()), None);
    }
}
