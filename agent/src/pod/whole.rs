//! What a pod as a whole is promised and has, in its status: what it says itself, else what its containers say together. Pure.
//! <https://kubernetes.io/docs/concepts/workloads/pods/pod-level-resources/>

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{self as k8s, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

use super::observed::{Container, Observed};
use crate::model::ValidPod;
use crate::model::quantity::Quantity;
use crate::runtime::resources::together;

type Amounts = BTreeMap<String, Quantity>;

/// Requests or limits.
type Which = fn(&ResourceRequirements) -> Option<&BTreeMap<String, Text>>;

/// Requests and limits of the pod as a whole, as the node has promised them; none: nobody says any.
pub fn promised(pod: &ValidPod, observed: &Observed) -> Option<ResourceRequirements> {
    let own = |container: &k8s::Container, which: Which| amounts(observed.resources(container).and_then(which));
    total(pod, own, observed.pod_resources(pod.spec()))
}

/// As the kernel has been told them.
pub fn in_force(pod: &ValidPod, observed: &Observed) -> Option<ResourceRequirements> {
    let noted = |name: &str| observed.containers.get(name).and_then(Container::running).map(|attempt| &attempt.note);
    let own = |container: &k8s::Container, which: Which| {
        let noted = noted(&container.name).and_then(|note| note.resources.as_ref());
        amounts(noted.or_else(|| observed.resources(container)).and_then(which))
    };
    // Each running container notes its pod's, too: as long as one has the old ones, they are in force.
    let wanted = observed.pod_resources(pod.spec());
    let notes = pod.all_containers().filter_map(|container| noted(&container.name)?.pod_resources.as_ref());
    let whole = notes.map(Some).find(|noted| *noted != wanted).unwrap_or(wanted);
    total(pod, own, whole)
}

fn total(
    pod: &ValidPod,
    own: impl Fn(&k8s::Container, Which) -> Amounts,
    whole: Option<&ResourceRequirements>,
) -> Option<ResourceRequirements> {
    let sum = |which: Which| {
        let mut total = together(pod.spec(), |container| own(container, which), Quantity::plus);
        total.extend(amounts(whole.and_then(which)));
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
    use crate::pod::observed::{Attempt, Note};

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
        let whole = serde_json::to_value(promised(&pod, &Observed::default()).unwrap()).unwrap();
        assert_eq!(whole, json!({"requests": requests, "limits": limits}));
    }

    #[test]
    fn nobody_says_anything() {
        let pod = json!({"metadata": {"name": "web", "uid": "u"}, "spec": {"containers": [{"name": "a", "resources": {}}]}});
        let pod = ValidPod::trusted(serde_json::from_value(pod).unwrap(), Origin::Stdin);
        assert_eq!(promised(&pod, &Observed::default()), None);
    }

    #[test]
    fn what_the_kernel_was_told_is_in_force_until_it_is_told_the_rest() {
        let pod = json!({"metadata": {"name": "web", "uid": "u"}, "spec": {
            "resources": {"limits": {"memory": "10Ki"}}, "containers": [{"name": "a", "resources": {}}]}});
        let pod = ValidPod::trusted(serde_json::from_value(pod).unwrap(), Origin::Stdin);
        let mut observed = Observed::default();
        let limit = |whole: Option<ResourceRequirements>| whole.unwrap().limits.unwrap()["memory"].0.clone();
        assert_eq!(limit(in_force(&pod, &observed)), "10Ki");
        let had = serde_json::from_value(json!({"limits": {"memory": "1Gi"}})).unwrap();
        let attempt = Attempt {
            id: "id".into(),
            number: 0,
            generation: 1,
            note: Note { resources: Some(ResourceRequirements::default()), pod_resources: Some(had), ..Note::default() },
            pid: 7,
            started_at: jiff::Timestamp::UNIX_EPOCH,
            finish: None,
        };
        observed.containers.insert("a".into(), Container { last: Some(attempt), ..Container::default() });
        assert_eq!((limit(promised(&pod, &observed)), limit(in_force(&pod, &observed))), ("10Ki".into(), "1Gi".into()));
    }
}
