//! Since when a pod's condition holds, of which nobody has said anything before: whoever comes after the agent that saw it reads it from what
//! has happened. Pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as k8s;

use super::observed::{Attempt, Observed, Sandbox};
use super::restart::is_regular_init;
use crate::model::ValidPod;

/// The time of what has made a condition what it is; `begun`: when the pod came.
pub fn since(condition: &k8s::PodCondition, pod: &ValidPod, observed: &Observed, begun: Timestamp) -> Timestamp {
    let holds = condition.status == "True";
    let event = match condition.type_.as_str() {
        "PodReadyToStartContainers" if holds => match &observed.sandbox {
            Sandbox::Ready { since, .. } => Some(*since),
            _ => None,
        },
        "PodReadyToStartContainers" => newest(observed, ended),
        "Initialized" if holds => initialised(pod, observed),
        "Ready" | "ContainersReady" if holds => newest(observed, told),
        "Ready" | "ContainersReady" => newest(observed, |attempt| ended(attempt).or(attempt.note.told)),
        _ => None,
    };
    event.map_or(begun, |at| at.max(begun))
}

fn newest(observed: &Observed, of: impl Fn(&Attempt) -> Option<Timestamp>) -> Option<Timestamp> {
    observed.containers.values().filter_map(|container| of(container.last.as_ref()?)).max()
}

fn ended(attempt: &Attempt) -> Option<Timestamp> {
    attempt.finish.as_ref().map(|finish| finish.at)
}

/// Since when a running container's hook and probes say of it what they say.
fn told(attempt: &Attempt) -> Option<Timestamp> {
    attempt.finish.is_none().then(|| attempt.note.told.unwrap_or(attempt.started_at))
}

/// When the last init container was done, or the last sidecar had started.
fn initialised(pod: &ValidPod, observed: &Observed) -> Option<Timestamp> {
    let done = |container: &k8s::Container| {
        let attempt = observed.containers.get(&container.name)?.last.as_ref()?;
        if is_regular_init(pod, container) { ended(attempt) } else { told(attempt) }
    };
    pod.spec().init_containers.iter().flatten().filter_map(done).max()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rstest::rstest;
    use serde_json::json;

    use super::*;
    use crate::model::Origin;
    use crate::pod::observed::{Container, Finish, Note};

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    fn container(started: i64, told: Option<i64>, ended: Option<i64>) -> Container {
        let finish = ended.map(|end| Finish { code: 0, signal: None, at: at(end), reason: "Completed".into(), message: None });
        let note = Note { told: told.map(at), ..Note::default() };
        let last = Attempt { id: "id".into(), number: 0, generation: 1, note, pid: 1, started_at: at(started), finish };
        Container { last: Some(last), ..Container::default() }
    }

    #[rstest]
    #[case::it_came("PodScheduled", true, None, 0)]
    #[case::a_sandbox("PodReadyToStartContainers", true, None, 1)]
    #[case::its_end("PodReadyToStartContainers", false, Some(9), 9)]
    #[case::init_containers("Initialized", true, None, 3)]
    #[case::runs_and_says_so("ContainersReady", true, None, 6)]
    #[case::has_ended("Ready", false, Some(9), 9)]
    #[case::says_no_more_that_it_is("Ready", false, None, 6)]
    fn what_happened_says_when(#[case] type_: &str, #[case] holds: bool, #[case] end: Option<i64>, #[case] seconds: i64) {
        let spec = json!({"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]});
        let pod =
            ValidPod::trusted(serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap(), Origin::Stdin);
        let containers = [("i", container(2, None, Some(3))), ("a", container(4, None, end)), ("b", container(5, Some(6), end))];
        let observed = Observed {
            sandbox: Sandbox::Ready { generation: 1, ips: Vec::new(), since: at(1) },
            containers: containers.into_iter().map(|(name, c)| (name.to_owned(), c)).collect::<BTreeMap<_, _>>(),
            ..Observed::default()
        };
        let status = if holds { "True" } else { "False" };
        let condition = k8s::PodCondition { type_: type_.into(), status: status.into(), ..k8s::PodCondition::default() };
        assert_eq!(since(&condition, &pod, &observed, at(0)), at(seconds));
        assert_eq!(since(&condition, &pod, &Observed::default(), at(0)), at(0), "nothing has happened");
    }
}
