//! Whether a container that ended runs again: its own rules first, then its own policy, then the pod's. Pure.
//! <https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#container-restart-rules>

use k8s_openapi::api::core::v1 as k8s;

use super::observed::{Attempt, Container, Finish, Observed, Sandbox};
use crate::model::ValidPod;
use crate::runtime::resources::is_sidecar;

/// What follows a container's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Nothing: it has done its part, or has failed for good.
    Stays,
    /// It runs again, after its back-off.
    Again,
    /// All of the pod's containers begin anew, init containers first.
    AllAgain,
}

/// What the pod has to say where the container has no policy of its own.
pub fn policy(pod: &ValidPod) -> &str {
    pod.spec().restart_policy.as_deref().unwrap_or("Always")
}

/// Whether failures are answered with another run.
pub fn is_retried(pod: &ValidPod, container: &k8s::Container) -> bool {
    container.restart_policy.as_deref().unwrap_or_else(|| policy(pod)) != "Never"
}

/// What follows the end of this container of this pod.
pub fn fate(pod: &ValidPod, container: &k8s::Container, observed: &Container, finish: &Finish) -> Fate {
    let done = is_regular_init(pod, container) && finish.code == 0;
    if done || pod.ephemeral().iter().any(|c| c.name == container.name) {
        return Fate::Stays;
    }
    match by_rule(container, finish.code) {
        Some("Restart") => return Fate::Again,
        Some("RestartAllContainers") => return Fate::AllAgain,
        _ => {}
    }
    // A program that a probe found wanting may well say 0 when it is told to end.
    if observed.unhealthy.is_some() && is_retried(pod, container) {
        return Fate::Again;
    }
    let again = match container.restart_policy.as_deref().unwrap_or_else(|| policy(pod)) {
        "Never" => false,
        "OnFailure" => finish.code != 0,
        _ => true,
    };
    if again { Fate::Again } else { Fate::Stays }
}

/// The action of the first rule that the exit code meets.
fn by_rule(container: &k8s::Container, code: i32) -> Option<&str> {
    let rules = container.restart_policy_rules.iter().flatten();
    let met = |rule: &&k8s::ContainerRestartRule| {
        rule.exit_codes.as_ref().is_some_and(|codes| {
            let among = codes.values.iter().flatten().any(|value| *value == code);
            match codes.operator.as_str() {
                "In" => among,
                "NotIn" => !among,
                _ => false,
            }
        })
    };
    rules.into_iter().find(met).map(|rule| rule.action.as_str())
}

/// Whether it is an init container that has to end before others begin.
pub fn is_regular_init(pod: &ValidPod, container: &k8s::Container) -> bool {
    !is_sidecar(container) && pod.spec().init_containers.iter().flatten().any(|c| c.name == container.name)
}

/// The run whose end asks that all containers begin anew, if one of this generation does.
pub fn cause_of_reset<'a>(pod: &ValidPod, observed: &'a Observed, generation: u64) -> Option<&'a Attempt> {
    pod.all_containers().find_map(|container| {
        let seen = observed.containers.get(&container.name)?;
        let attempt = seen.last.as_ref().filter(|a| a.generation == generation && !seen.starting)?;
        let finish = attempt.finished()?;
        (fate(pod, container, seen, finish) == Fate::AllAgain).then_some(attempt)
    })
}

/// Whether a container's end asks that all begin anew, and that hasn't been done.
pub fn is_asked_to_reset(pod: &ValidPod, observed: &Observed) -> bool {
    matches!(&observed.sandbox, Sandbox::Ready { generation, .. } if cause_of_reset(pod, observed, *generation).is_some())
}

/// Whether all containers begin anew now: some of them haven't yet.
pub fn is_resetting(pod: &ValidPod, observed: &Observed) -> bool {
    let before = |c: &k8s::Container| {
        let last = observed.containers.get(&c.name).and_then(|seen| seen.last.as_ref());
        last.is_some_and(|attempt| observed.is_before_reset(attempt))
    };
    is_asked_to_reset(pod, observed) || pod.spec().containers.iter().any(before)
}

/// It ended, and that is that.
pub fn has_ended(pod: &ValidPod, container: &k8s::Container, observed: &Container) -> bool {
    let finish = observed.last.as_ref().and_then(Attempt::finished);
    !observed.starting && finish.is_some_and(|finish| fate(pod, container, observed, finish) == Fate::Stays)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;
    use crate::model::Origin;
    use crate::pod::observed::Unhealthy;

    fn rule(action: &str, operator: &str, values: &[i32]) -> Value {
        json!({"action": action, "exitCodes": {"operator": operator, "values": values}})
    }

    fn decide(pod_policy: &str, list: &str, container: Value, code: i32, unhealthy: Option<Unhealthy>) -> Fate {
        let mut spec = json!({"restartPolicy": pod_policy, "containers": [{"name": "other", "image": "i"}]});
        let mut c = container;
        c["name"] = json!("c");
        spec[list] = json!([c]);
        let pod = json!({"metadata": {"name": "web", "uid": "u"}, "spec": spec});
        let pod = ValidPod::trusted(serde_json::from_value(pod).unwrap(), Origin::Stdin);
        let container = pod.all_containers().find(|c| c.name == "c").unwrap();
        let finish = Finish { code, signal: None, at: Timestamp::UNIX_EPOCH, reason: "Error".into(), message: None };
        fate(&pod, container, &Container { unhealthy, ..Container::default() }, &finish)
    }

    #[rstest]
    #[case::pod_always("Always", json!({}), 0, Fate::Again)]
    #[case::pod_on_failure("OnFailure", json!({}), 0, Fate::Stays)]
    #[case::pod_on_failure_failed("OnFailure", json!({}), 1, Fate::Again)]
    #[case::pod_never("Never", json!({}), 1, Fate::Stays)]
    #[case::own_before_the_pods("Never", json!({"restartPolicy": "Always"}), 0, Fate::Again)]
    #[case::own_never("Always", json!({"restartPolicy": "Never"}), 1, Fate::Stays)]
    #[case::own_on_failure("Never", json!({"restartPolicy": "OnFailure"}), 1, Fate::Again)]
    #[case::rule_in("Never", json!({"restartPolicy": "Never", "restartPolicyRules": [rule("Restart", "In", &[42])]}), 42, Fate::Again)]
    #[case::rule_not_met("Never", json!({"restartPolicy": "Never", "restartPolicyRules": [rule("Restart", "In", &[42])]}), 1, Fate::Stays)]
    #[case::rule_not_in("Always", json!({"restartPolicy": "Never", "restartPolicyRules": [rule("Restart", "NotIn", &[0])]}), 3, Fate::Again)]
    #[case::rule_of_success("Always", json!({"restartPolicy": "Never", "restartPolicyRules": [rule("Restart", "In", &[0])]}), 0, Fate::Again)]
    #[case::the_first_that_is_met("Never", json!({"restartPolicy": "Never", "restartPolicyRules":
        [rule("Restart", "In", &[1]), rule("RestartAllContainers", "In", &[1, 2])]}), 1, Fate::Again)]
    #[case::all("Never", json!({"restartPolicy": "Never", "restartPolicyRules": [rule("RestartAllContainers", "In", &[2])]}), 2, Fate::AllAgain)]
    fn rules_then_own_policy_then_the_pods(#[case] pod: &str, #[case] c: Value, #[case] code: i32, #[case] fate: Fate) {
        assert_eq!(decide(pod, "containers", c, code, None), fate);
    }

    #[rstest]
    #[case::done("Always", json!({}), 0, Fate::Stays)]
    #[case::failed("Always", json!({}), 1, Fate::Again)]
    #[case::failed_for_good("Never", json!({}), 1, Fate::Stays)]
    #[case::own("Always", json!({"restartPolicy": "Never"}), 1, Fate::Stays)]
    #[case::own_rule("Always", json!({"restartPolicy": "Never", "restartPolicyRules": [rule("Restart", "In", &[1])]}), 1, Fate::Again)]
    #[case::sidecar("Never", json!({"restartPolicy": "Always"}), 0, Fate::Again)]
    #[case::sidecars_rule("Never", json!({"restartPolicy": "Always", "restartPolicyRules":
        [rule("RestartAllContainers", "In", &[1])]}), 1, Fate::AllAgain)]
    #[case::all("Never", json!({"restartPolicy": "Never", "restartPolicyRules": [rule("RestartAllContainers", "In", &[1])]}), 1, Fate::AllAgain)]
    fn init_containers(#[case] pod: &str, #[case] c: Value, #[case] code: i32, #[case] fate: Fate) {
        assert_eq!(decide(pod, "initContainers", c, code, None), fate);
    }

    #[rstest]
    #[case("Always", Fate::Again)]
    #[case("OnFailure", Fate::Again)]
    #[case("Never", Fate::Stays)]
    fn one_that_a_probe_ended_runs_again_whatever_it_said(#[case] policy: &str, #[case] fate: Fate) {
        assert_eq!(decide(policy, "containers", json!({}), 0, Some(Unhealthy::Liveness)), fate);
    }
}
