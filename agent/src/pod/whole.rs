//! What a pod as a whole is promised and has, in its status: what it says itself, else what its containers say together. Pure.
//! <https://kubernetes.io/docs/concepts/workloads/pods/pod-level-resources/>

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{self as k8s, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

use super::observed::{Container, Note, Observed};
use crate::model::ValidPod;
use crate::model::quantity::Quantity;
use crate::runtime::resources::together;

type Amounts = BTreeMap<String, Quantity>;

/// Requests or limits.
type Which = fn(&ResourceRequirements) -> Option<&BTreeMap<String, Text>>;

/// Requests and limits of the pod as a whole, as the node has promised them, and as the kernel has been told them; none: nobody says any.
pub fn of(pod: &ValidPod, observed: &Observed) -> (Option<ResourceRequirements>, Option<ResourceRequirements>) {
    let promised = promised(pod, observed);
    // Nearly always: only while a resize is under way they differ.
    let in_force = if is_as_promised(pod, observed) { promised.clone() } else { in_force(pod, observed) };
    (promised, in_force)
}

fn promised(pod: &ValidPod, observed: &Observed) -> Option<ResourceRequirements> {
    let own = |container: &k8s::Container, which: Which| amounts(observed.resources(container).and_then(which));
    total(pod, own, observed.pod_resources(pod.spec()))
}

/// What a running container was told.
fn noted<'a>(container: &k8s::Container, observed: &'a Observed) -> Option<&'a Note> {
    observed.containers.get(&container.name).and_then(Container::running).map(|attempt| &attempt.note)
}

/// Whether every running container was told what is promised.
fn is_as_promised(pod: &ValidPod, observed: &Observed) -> bool {
    let whole = observed.pod_resources(pod.spec());
    pod.all_containers().filter_map(|container| Some((container, noted(container, observed)?))).all(|(container, note)| {
        let own = observed.resources(container).cloned().unwrap_or_default();
        let own = note.resources.as_ref().is_none_or(|had| *had == own);
        own && (note.pod_resources.is_none() || note.pod_resources.as_ref() == whole)
    })
}

fn in_force(pod: &ValidPod, observed: &Observed) -> Option<ResourceRequirements> {
    let own = |container: &k8s::Container, which: Which| {
        let noted = noted(container, observed).and_then(|note| note.resources.as_ref());
        amounts(noted.or_else(|| observed.resources(container)).and_then(which))
    };
    // Each running container notes its pod's, too: as long as one has the old ones, they are in force.
    let wanted = observed.pod_resources(pod.spec());
    let notes = pod.all_containers().filter_map(|container| noted(container, observed)?.pod_resources.as_ref());
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
    use crate::pod::observed::Attempt;

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
        let (promised, in_force) = of(&pod, &Observed::default());
        assert_eq!(promised, in_force);
        let whole = serde_json::to_value(promised.unwrap()).unwrap();
        assert_eq!(whole, json!({"requests": requests, "limits": limits}));
    }

    #[test]
    fn nobody_says_anything() {
        let pod = json!({"metadata": {"name": "web", "uid": "u"}, "spec": {"containers": [{"name": "a", "resources": {}}]}});
        let pod = ValidPod::trusted(serde_json::from_value(pod).unwrap(), Origin::Stdin);
        assert_eq!(of(&pod, &Observed::default()), (None, None));
    }

    #[test]
    fn what_the_kernel_was_told_is_in_force_until_it_is_told_the_rest() {
        let pod = json!({"metadata": {"name": "web", "uid": "u"}, "spec": {
            "resources": {"limits": {"memory": "10Ki"}}, "containers": [{"name": "a", "resources": {}}]}});
        let pod = ValidPod::trusted(serde_json::from_value(pod).unwrap(), Origin::Stdin);
        let mut observed = Observed::default();
        let limit = |whole: Option<ResourceRequirements>| whole.unwrap().limits.unwrap()["memory"].0.clone();
        let limits = |observed: &Observed| {
            let (promised, in_force) = of(&pod, observed);
            (limit(promised), limit(in_force))
        };
        assert_eq!(limits(&observed), ("10Ki".into(), "10Ki".into()));
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
        assert_eq!(limits(&observed), ("10Ki".into(), "1Gi".into()));
    }
}
