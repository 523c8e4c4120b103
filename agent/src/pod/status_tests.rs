//! Tables: what is observed, and how Kubernetes calls it.

use rstest::rstest;
use serde_json::{Value, json};

use super::*;
use crate::model::Origin;
use crate::pod::observed::{Finish, Note};
use std::time::Duration;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + seconds).unwrap()
}

fn pod(policy: &str) -> ValidPod {
    let pod = json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "u1"},
        "spec": {
            "restartPolicy": policy,
            "initContainers": [{"name": "init", "image": "i"}, {"name": "side", "image": "i", "restartPolicy": "Always"}],
            "containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "i"}]
        }
    });
    ValidPod::trusted(serde_json::from_value(pod).unwrap(), Origin::Stdin)
}

fn attempt(number: u32, delay_ms: u64, finish: Option<(i32, &'static str)>) -> Attempt {
    Attempt {
        id: "abc".into(),
        number,
        generation: 1,
        note: Note { image: "i".into(), image_id: "sha256:1".into(), delay_ms, stop_signal: 15, ..Note::default() },
        pid: 7,
        started_at: at(0),
        finish: finish.map(|(code, reason)| Finish { code, signal: None, at: at(5), reason: reason.into(), message: None }),
    }
}

fn seen(last: Option<Attempt>) -> Container {
    Container { last, image: Image::Ready, ..Container::default() }
}
fn running() -> Container {
    seen(Some(attempt(0, 0, None)))
}
fn ended(code: i32) -> Container {
    seen(Some(attempt(0, 10_000, Some((code, if code == 0 { "Completed" } else { "Error" })))))
}

fn observe(containers: &[(&str, Container)]) -> Observed {
    Observed {
        sandbox: Sandbox::Ready { generation: 1, ips: vec![IpAddr::from([10, 85, 0, 2])], since: at(0) },
        containers: containers.iter().map(|(n, c)| ((*n).to_owned(), c.clone())).collect(),
        ..Observed::default()
    }
}

fn write(policy: &str, observed: &Observed) -> Value {
    let context = Context { host_ips: &[IpAddr::from([192, 0, 2, 1])], start_time: at(0), now: at(9), qos: "BestEffort" };
    serde_json::to_value(status(&pod(policy), observed, &context, None)).unwrap()
}

#[rstest]
#[case::nothing("Always", &[], "Pending")]
#[case::initialising("Always", &[("init", running())], "Pending")]
#[case::half("Always", &[("init", ended(0)), ("side", running()), ("a", running())], "Pending")]
#[case::all("Always", &[("init", ended(0)), ("side", running()), ("a", running()), ("b", running())], "Running")]
#[case::crashed("Always", &[("init", ended(0)), ("side", running()), ("a", ended(1)), ("b", running())], "Running")]
#[case::succeeded("OnFailure", &[("init", ended(0)), ("a", ended(0)), ("b", ended(0))], "Succeeded")]
#[case::retried("OnFailure", &[("init", ended(0)), ("a", ended(1)), ("b", ended(0))], "Running")]
#[case::failed("Never", &[("init", ended(0)), ("a", ended(1)), ("b", ended(0))], "Failed")]
#[case::init_failed("Never", &[("init", ended(1))], "Failed")]
fn phase_is_as_the_kubelet_tells_it(#[case] policy: &str, #[case] containers: &[(&str, Container)], #[case] phase: &str) {
    assert_eq!(write(policy, &observe(containers))["phase"], phase);
}

fn asked_to_end(containers: &[(&str, Container)], then: Then) -> Observed {
    let ending = super::super::observed::Ending { since: at(6), deadline: at(9), then };
    Observed { ending: Some(ending), ..observe(containers) }
}

#[rstest]
#[case::runs("Always", &[("a", running()), ("b", running())], "Running")]
#[case::one_runs("Always", &[("a", ended(137)), ("b", running())], "Running")]
#[case::a_sidecar_runs("Always", &[("side", running()), ("a", ended(0)), ("b", ended(0))], "Running")]
#[case::one_starts("Always", &[("a", ended(0)), ("b", Container { starting: true, ..ended(0) })], "Running")]
#[case::killed("OnFailure", &[("a", ended(137)), ("b", ended(0))], "Failed")]
#[case::killed_always("Always", &[("a", ended(137)), ("b", ended(0))], "Failed")]
#[case::ended_well("Always", &[("init", ended(0)), ("side", ended(137)), ("a", ended(0)), ("b", ended(0))], "Succeeded")]
#[case::never_ran("Always", &[], "Failed")]
#[case::initialised_half("Always", &[("init", ended(0)), ("a", ended(0))], "Failed")]
fn a_pod_that_was_asked_to_end_is_over_once_nothing_runs(
    #[case] policy: &str,
    #[case] containers: &[(&str, Container)],
    #[case] phase: &str,
) {
    assert_eq!(write(policy, &asked_to_end(containers, Then::Gone))["phase"], phase);
}

/// A file's pod that is made again has no last word, as a kubelet's static pod.
#[test]
fn a_pod_that_comes_again_is_not_over() {
    let ended = [("a", ended(1)), ("b", ended(0))];
    assert_eq!(write("Always", &asked_to_end(&ended, Then::Again))["phase"], "Running");
}

#[rstest]
#[case::runs(&[("a", running()), ("b", ended(1))], "Running", Value::Null)]
#[case::ended(&[("a", ended(0)), ("b", ended(1))], "Failed", json!("Evicted"))]
fn an_evicted_pod_has_failed_once_nothing_runs(
    #[case] containers: &[(&str, Container)],
    #[case] phase: &str,
    #[case] reason: Value,
) {
    let failure =
        super::super::observed::Failure { reason: "Evicted".into(), message: "m".into(), deadline: at(9), disrupted: true };
    let status = write("Always", &Observed { failure: Some(failure), ..observe(containers) });
    assert_eq!((&status["phase"], &status["reason"]), (&json!(phase), &reason));
    assert_eq!((condition(&status, "DisruptionTarget").0, condition(&status, "Ready").0), ("True".into(), "False".into()));
}

/// Init containers that end well don't count, sidecars neither.
#[test]
fn a_job_is_done_when_its_sidecar_has_ended() {
    let done =
        |side: Container| write("Never", &observe(&[("init", ended(0)), ("side", side), ("a", ended(0)), ("b", ended(0))]));
    assert_eq!(done(running())["phase"], "Running");
    assert_eq!(done(ended(143))["phase"], "Succeeded");
}

#[rstest]
#[case::over(json!({"phase": "Succeeded", "podIP": "10.0.0.1"}), json!({"phase": "Succeeded", "podIP": "10.0.0.1"}))]
#[case::nothing_known(json!({}), json!({"phase": "Failed"}))]
#[case::never_ran(json!({"phase": "Pending", "containerStatuses": [{"name": "a", "state": {"waiting": {"reason": "ContainerCreating"}}}]}),
    json!({"phase": "Failed", "containerStatuses": [{"name": "a", "state": {"waiting": {"reason": "ContainerCreating"}}}]}))]
#[case::ran_well(json!({"phase": "Running", "containerStatuses": [{"name": "a", "state": {"terminated": {"exitCode": 0}}}]}),
    json!({"phase": "Succeeded", "containerStatuses": [{"name": "a", "state": {"terminated": {"exitCode": 0}}, "started": false}]}))]
#[case::ran(json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}, {"type": "Initialized", "status": "True"}],
        "containerStatuses": [{"name": "a", "ready": true, "started": true, "state": {"running": {}}}]}),
    json!({"phase": "Failed",
        "conditions": [{"type": "Ready", "status": "False", "reason": "PodFailed"}, {"type": "Initialized", "status": "True"}],
        "containerStatuses": [{"name": "a", "started": false, "state": {"terminated": {"exitCode": 137,
            "reason": "ContainerStatusUnknown", "message": "The container was gone when its pod was asked to end"}}}]}))]
fn of_a_pod_that_is_gone_is_told_what_is_known(#[case] told: Value, #[case] expected: Value) {
    let read = |value: Value| -> k8s::PodStatus {
        let mut value = value;
        for container in value["containerStatuses"].as_array_mut().into_iter().flatten() {
            for (name, default) in
                [("ready", json!(false)), ("image", json!("")), ("imageID", json!("")), ("restartCount", json!(0))]
            {
                container.as_object_mut().unwrap().entry(name).or_insert(default);
            }
        }
        serde_json::from_value(value).unwrap()
    };
    assert_eq!(gone(Some(&read(told))), read(expected));
}

fn condition(status: &Value, type_: &str) -> (String, String) {
    let found = status["conditions"].as_array().unwrap().iter().find(|c| c["type"] == type_).unwrap();
    (found["status"].as_str().unwrap().into(), found["message"].as_str().unwrap_or_default().into())
}

#[test]
fn conditions_follow_the_containers() {
    let status = write("Always", &observe(&[("init", running())]));
    assert_eq!(condition(&status, "Initialized"), ("False".into(), "containers with incomplete status: [init side]".into()));
    assert_eq!(condition(&status, "Ready"), ("False".into(), "containers with unready status: [side a b]".into()));
    assert_eq!(condition(&status, "PodReadyToStartContainers").0, "True");

    let status = write("Always", &observe(&[("init", ended(0)), ("side", running()), ("a", running()), ("b", running())]));
    for type_ in ["Initialized", "Ready", "ContainersReady", "PodScheduled", "PodReadyToStartContainers"] {
        assert_eq!(condition(&status, type_).0, "True", "{type_}");
    }
}

#[test]
fn transition_times_stay_while_a_condition_does() {
    let context = Context { host_ips: &[], start_time: at(0), now: at(9), qos: "BestEffort" };
    let pod = pod("Always");
    let first = status(&pod, &observe(&[]), &context, None);
    let later = Context { now: at(60), ..context };
    let all = observe(&[("init", ended(0)), ("side", running()), ("a", running()), ("b", running())]);
    let second = status(&pod, &all, &later, Some(&first));
    let time = |s: &k8s::PodStatus, t: &str| {
        s.conditions.iter().flatten().find(|c| c.type_ == t).and_then(|c| c.last_transition_time.clone()).unwrap().0
    };
    // Of what nobody has told before, the time is when it came to be.
    assert_eq!(time(&second, "PodScheduled"), at(0));
    assert_eq!(time(&second, "Ready"), at(60));
}

#[rstest]
#[case::no_image(
    Container { image: Image::Failed { reason: "ErrImagePull", message: "no".into(), retry_at: at(20), delay: Duration::from_secs(10) },
        ..Container::default() },
    json!({"waiting": {"reason": "ImagePullBackOff", "message": "no"}}))]
#[case::crashing(seen(Some(attempt(3, 40_000, Some((1, "Error"))))), json!({"waiting": {"reason": "CrashLoopBackOff"}}))]
#[case::restarting(Container { starting: true, ..ended(1) }, json!({"waiting": {"reason": "ContainerCreating"}}))]
#[case::running(running(), json!({"running": {"startedAt": "1970-01-12T13:46:40Z"}}))]
fn a_container_says_what_it_is_at(#[case] container: Container, #[case] expected: Value) {
    let observed = observe(&[("init", ended(0)), ("side", running()), ("a", container), ("b", running())]);
    let mut state = write("Always", &observed)["containerStatuses"][0]["state"].clone();
    if state["waiting"]["reason"] == "CrashLoopBackOff" {
        let message = state["waiting"]["message"].take();
        assert!(
            message.as_str().unwrap().starts_with("back-off 40s restarting failed container=a pod=web_default(u1)"),
            "{message}"
        );
        state["waiting"].as_object_mut().unwrap().remove("message");
    }
    assert_eq!(state, expected);
}

#[test]
fn whoever_has_not_run_initialises_where_there_are_init_containers() {
    let refused = |reason| {
        let refused = super::super::observed::Refused { reason, message: "no".into(), retry_at: at(0) };
        Container { refused: Some(refused), ..Container::default() }
    };
    let mounts =
        observe(&[("init", ended(0)), ("side", refused("ContainerCreating")), ("a", refused("CreateContainerConfigError"))]);
    let status = write("Always", &mounts);
    let reason = |list: &str, i: usize| status[list][i]["state"]["waiting"]["reason"].clone();
    assert_eq!(reason("initContainerStatuses", 1), "PodInitializing");
    assert_eq!(reason("containerStatuses", 0), "CreateContainerConfigError");
    assert_eq!(reason("containerStatuses", 1), "PodInitializing");
}

#[test]
fn the_end_before_stays_as_last_state() {
    let container = Container { previous: ended(7).last, last: Some(attempt(1, 10_000, None)), ..Container::default() };
    let status = write("Always", &observe(&[("a", container)]));
    let a = &status["containerStatuses"][0];
    assert_eq!(a["lastState"]["terminated"]["exitCode"], 7);
    assert_eq!(a["restartCount"], 1);
    assert_eq!(a["containerID"], "nodeagent://abc");
}

#[test]
fn termination_messages_share_the_room_that_a_status_has() {
    let long = |text: &str| {
        let mut seen = ended(1);
        if let Some(finish) = seen.last.as_mut().and_then(|a| a.finish.as_mut()) {
            finish.message = Some(text.repeat(4096 / text.len()));
        }
        seen
    };
    let status = write("Never", &observe(&[("init", ended(0)), ("side", ended(0)), ("a", long("x")), ("b", long("äö"))]));
    let length = |i: usize| status["containerStatuses"][i]["state"]["terminated"]["message"].as_str().unwrap().len();
    assert_eq!((length(0), length(1)), (3072, 3072));
}

#[rstest]
#[case(15, Some("SIGTERM"))]
#[case(3, Some("SIGQUIT"))]
#[case(34, Some("SIGRTMIN"))]
#[case(37, Some("SIGRTMIN+3"))]
#[case(0, None)]
#[case(-1, None)]
fn signals_have_names(#[case] number: i32, #[case] name: Option<&str>) {
    assert_eq!(signal_name(number).as_deref(), name);
}

fn with_health(hooked: bool, started: bool, ready: bool) -> Container {
    let mut seen = running();
    if let Some(last) = &mut seen.last {
        last.note.health = crate::pod::observed::Health { hooked, started, ready };
    }
    seen
}

/// `state`, `started`, `ready` of the container, and the pod's Ready.
#[rstest]
#[case::no_probes(with_health(true, true, true), ("running", true, true, "True"))]
#[case::not_ready(with_health(true, true, false), ("running", true, false, "False"))]
#[case::not_started(with_health(true, false, true), ("running", false, false, "False"))]
#[case::hook_runs(with_health(false, true, true), ("waiting", false, false, "False"))]
fn hooks_and_probes_gate(#[case] a: Container, #[case] expected: (&str, bool, bool, &str)) {
    let status = write("Always", &observe(&[("init", ended(0)), ("side", running()), ("a", a), ("b", running())]));
    let a = &status["containerStatuses"][0];
    let state = a["state"].as_object().unwrap().keys().next().unwrap().clone();
    let ready = condition(&status, "Ready").0;
    assert_eq!((state.as_str(), a["started"].as_bool().unwrap(), a["ready"].as_bool().unwrap(), ready.as_str()), expected);
}
