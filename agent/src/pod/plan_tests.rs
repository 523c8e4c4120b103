//! Tables: a pod, what is observed, and what is to be done next.

use std::collections::BTreeMap;

use rstest::rstest;
use serde_json::{Value, json};

use super::*;
use crate::model::Origin;
use crate::pod::observed::{Ending, Finish, Health, Note, Stopping, Then};

const NOW: i64 = 1_000_000;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(NOW + seconds).unwrap()
}

fn pod(spec: Value) -> ValidPod {
    let pod = json!({"metadata": {"name": "web", "namespace": "default", "uid": "u1"}, "spec": spec});
    ValidPod::trusted(serde_json::from_value(pod).unwrap(), Origin::Stdin)
}

fn two() -> Value {
    json!({"containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "i"}]})
}

fn with_init() -> Value {
    json!({
        "initContainers": [
            {"name": "first", "image": "i"},
            {"name": "side", "image": "i", "restartPolicy": "Always"},
            {"name": "second", "image": "i"},
            {"name": "log", "image": "i", "restartPolicy": "Always"}],
        "containers": [{"name": "a", "image": "i"}]
    })
}

fn ready() -> Sandbox {
    Sandbox::Ready { generation: 1, ips: Vec::new(), since: at(-100) }
}

fn attempt(finish: Option<Finish>) -> Attempt {
    Attempt {
        id: "id".into(),
        number: 0,
        generation: 1,
        note: Note { image: "i".into(), delay_ms: 10_000, ..Note::default() },
        pid: 7,
        started_at: at(-60),
        finish,
    }
}

fn idle() -> Container {
    Container { image: Image::Ready, ..Container::default() }
}
fn running() -> Container {
    Container { last: Some(attempt(None)), ..idle() }
}
fn exited(code: i32, seconds: i64) -> Container {
    let finish = Finish { code, signal: None, at: at(seconds), reason: "Error".into(), message: None };
    Container { last: Some(attempt(Some(finish))), ..idle() }
}
fn stopping(container: Container, kill_at: i64) -> Container {
    Container { stopping: Some(Stopping { kill_at: at(kill_at), killed: false, phase: Phase::Told }), ..container }
}
fn starting(container: Container) -> Container {
    Container { starting: true, ..container }
}

fn observe(sandbox: Sandbox, containers: &[(&str, Container)]) -> Observed {
    let containers: BTreeMap<_, _> = containers.iter().map(|(n, c)| ((*n).to_owned(), c.clone())).collect();
    Observed { sandbox, containers, ..Observed::default() }
}

fn next(spec: Value, observed: &Observed) -> Plan {
    plan(&pod(spec), observed, &Backoff::default(), at(0))
}

fn words(plan: &Plan) -> Vec<String> {
    plan.actions
        .iter()
        .map(|a| match a {
            Action::CreateSandbox => "create".into(),
            Action::RemoveSandbox => "remove".into(),
            Action::Pull(n) => format!("pull {n}"),
            Action::Start { name, delay } => format!("start {name} {}", delay.as_secs()),
            Action::Stop { name, grace, .. } => format!("stop {name} {}", grace.as_secs()),
            Action::Signal(n) => format!("signal {n}"),
            Action::Kill(n) => format!("kill {n}"),
            Action::Resize(n) => format!("resize {n}"),
            Action::Reset => "reset".into(),
        })
        .collect()
}

#[rstest]
#[case::nothing_yet(Sandbox::Absent, &[], &["pull a", "pull b", "create"])]
#[case::images_there(Sandbox::Absent, &[("a", idle()), ("b", idle())], &["create"])]
#[case::sandbox_comes(Sandbox::Creating, &[("a", idle()), ("b", idle())], &[])]
#[case::both_start(ready(), &[("a", idle()), ("b", idle())], &["start a 0", "start b 0"])]
#[case::one_runs(ready(), &[("a", running()), ("b", idle())], &["start b 0"])]
#[case::one_is_starting(ready(), &[("a", starting(idle())), ("b", running())], &[])]
#[case::all_run(ready(), &[("a", running()), ("b", running())], &[])]
#[case::ended_long_ago(ready(), &[("a", exited(0, -10)), ("b", running())], &["start a 20"])]
#[case::ended_just_now(ready(), &[("a", exited(1, -9)), ("b", running())], &[])]
#[case::grace_over(ready(), &[("a", stopping(running(), -1)), ("b", running())], &["kill a"])]
fn a_pod_is_kept_running(#[case] sandbox: Sandbox, #[case] seen: &[(&str, Container)], #[case] expected: &[&str]) {
    assert_eq!(words(&next(two(), &observe(sandbox, seen))), expected);
}

/// What it refers to isn't known yet.
#[test]
fn an_unanswered_pod_has_its_sandbox_and_no_container_and_ends_at_once() {
    let unanswered = |sandbox, seen: &[(&str, Container)]| Observed { unanswered: true, ..observe(sandbox, seen) };
    assert_eq!(words(&next(two(), &unanswered(Sandbox::Absent, &[]))), ["pull a", "pull b", "create"]);
    let waiting = next(two(), &unanswered(ready(), &[("a", idle()), ("b", running())]));
    assert_eq!((words(&waiting), waiting.wake), (vec![], None));
    assert_eq!(waiting.waiting_for.as_deref(), Some("answers about what the pod refers to"));
    let ending = Some(Ending { since: at(0), deadline: at(30), then: Then::Gone });
    let told = Observed { ending, ..unanswered(ready(), &[("a", idle()), ("b", idle())]) };
    assert_eq!(words(&next(two(), &told)), ["remove"]);
}

#[rstest]
#[case::always("Always", 0, true)]
#[case::always_failed("Always", 1, true)]
#[case::on_failure("OnFailure", 0, false)]
#[case::on_failure_failed("OnFailure", 1, true)]
#[case::never("Never", 0, false)]
#[case::never_failed("Never", 1, false)]
fn restart_policy(#[case] policy: &str, #[case] code: i32, #[case] again: bool) {
    let mut spec = two();
    spec["restartPolicy"] = json!(policy);
    let plan = next(spec, &observe(ready(), &[("a", exited(code, -60)), ("b", running())]));
    assert_eq!(words(&plan), if again { vec!["start a 20"] } else { vec![] });
}

#[rstest]
#[case::first(&[], &["start first 0"])]
#[case::first_runs(&[("first", running())], &[])]
#[case::first_failed(&[("first", exited(1, -60))], &["start first 20"])]
#[case::sidecar(&[("first", exited(0, -1))], &["start side 0"])]
#[case::second(&[("first", exited(0, -1)), ("side", running())], &["start second 0"])]
#[case::sidecar_back(&[("first", exited(0, -1)), ("side", exited(1, -60)), ("second", running())], &["start side 20"])]
#[case::last_sidecar(&[("first", exited(0, -1)), ("side", running()), ("second", exited(0, -1))], &["start log 0"])]
#[case::regular(
    &[("first", exited(0, -1)), ("side", running()), ("second", exited(0, -1)), ("log", running())], &["start a 0"])]
#[case::never_again(
    &[("first", exited(1, -1)), ("side", running()), ("second", exited(0, -1)), ("log", running()), ("a", running())], &[])]
fn init_containers_come_in_order(#[case] seen: &[(&str, Container)], #[case] expected: &[&str]) {
    let mut observed = observe(ready(), seen);
    for name in ["first", "side", "second", "log", "a"] {
        observed.containers.entry(name.into()).or_insert_with(idle);
    }
    assert_eq!(words(&next(with_init(), &observed)), expected);
}

#[rstest]
#[case::regular_first(&[("side", running()), ("log", running()), ("a", running())], &["stop a 30"])]
#[case::then_the_last_sidecar(&[("side", running()), ("log", running()), ("a", exited(0, 0))], &["stop log 30"])]
#[case::then_the_first(&[("side", running()), ("log", exited(0, 0)), ("a", exited(0, 0))], &["stop side 30"])]
#[case::then_the_sandbox(&[("side", exited(0, 0)), ("log", exited(0, 0)), ("a", exited(0, 0))], &["remove"])]
#[case::waits(&[("a", stopping(running(), 5))], &[])]
#[case::kills(&[("a", stopping(running(), -5))], &["kill a"])]
#[case::is_not_overtaken_by_a_start(&[("a", starting(idle()))], &[])]
fn a_pod_ends(#[case] seen: &[(&str, Container)], #[case] expected: &[&str]) {
    let mut observed = observe(ready(), seen);
    observed.ending = Some(Ending { since: at(0), deadline: at(30), then: Then::Gone });
    assert_eq!(words(&next(with_init(), &observed)), expected);
}

#[test]
fn a_pod_that_ended_is_over_once_its_sandbox_is_gone() {
    let mut observed = observe(Sandbox::Removing, &[]);
    observed.ending = Some(Ending { since: at(0), deadline: at(30), then: Then::Gone });
    assert!(!next(two(), &observed).over);
    observed.sandbox = Sandbox::Absent;
    // What it wrote outlived its sandbox: it had completed before.
    assert_eq!(words(&next(two(), &observed)), ["remove"]);
    observed.remains = false;
    assert!(next(two(), &observed).over);
}

#[test]
fn a_shorter_grace_period_brings_the_kill_forward() {
    let mut observed = observe(ready(), &[("a", stopping(running(), 30))]);
    observed.ending = Some(Ending { since: at(0), deadline: at(0), then: Then::Gone });
    observed.hasten(at(0));
    assert_eq!(words(&next(two(), &observed)), ["kill a"]);
}

#[test]
fn a_completed_pod_stops_its_sidecars_and_frees_its_sandbox() {
    let mut spec = with_init();
    spec["restartPolicy"] = json!("Never");
    let done: &[(&str, Container)] =
        &[("first", exited(0, -9)), ("second", exited(0, -9)), ("side", running()), ("log", running()), ("a", exited(0, 0))];
    let mut observed = observe(ready(), done);
    assert_eq!(words(&next(spec.clone(), &observed)), ["stop log 30"]);
    observed.containers.insert("log".into(), exited(0, 0));
    observed.containers.insert("side".into(), exited(0, 0));
    assert_eq!(words(&next(spec.clone(), &observed)), ["remove"]);
    observed.sandbox = Sandbox::Absent;
    let plan = next(spec, &observed);
    assert!(plan.complete && plan.actions.is_empty(), "{plan:?}");
}

#[test]
fn a_failed_init_container_fails_a_pod_that_never_restarts() {
    let mut spec = with_init();
    spec["restartPolicy"] = json!("Never");
    let plan = next(spec, &observe(ready(), &[("first", exited(3, 0))]));
    assert_eq!(words(&plan), ["remove"]);
}

#[test]
fn an_edited_image_restarts_one_container() {
    let mut spec = two();
    spec["containers"][0]["image"] = json!("other");
    let observed = observe(ready(), &[("a", running()), ("b", running())]);
    assert_eq!(words(&next(spec.clone(), &observed)), ["stop a 30"]);
    let observed = observe(ready(), &[("a", exited(143, 0)), ("b", running())]);
    assert_eq!(words(&next(spec, &observed)), ["start a 10"]);
}

#[test]
fn a_new_sandbox_runs_init_containers_again() {
    let mut observed = observe(Sandbox::Ready { generation: 2, ips: Vec::new(), since: at(0) }, &[("a", exited(137, 0))]);
    observed.containers.insert("first".into(), exited(0, -50));
    for name in ["side", "second", "log"] {
        observed.containers.insert(name.into(), exited(0, -50));
    }
    assert_eq!(words(&next(with_init(), &observed)), ["start first 10"]);
}

#[test]
fn a_pod_says_when_time_itself_changes_the_plan() {
    let plan = next(two(), &observe(ready(), &[("a", exited(1, -4)), ("b", running())]));
    assert_eq!(plan.wake, Some(at(6)));
    assert_eq!(plan.waiting_for.as_deref(), Some("the back-off of container a to end"));
}

fn hooks() -> Value {
    let hook = json!({"exec": {"command": ["x"]}});
    json!({
        "initContainers": [
            {"name": "side", "image": "i", "restartPolicy": "Always", "lifecycle": {"preStop": hook}},
            {"name": "log", "image": "i", "restartPolicy": "Always"}],
        "containers": [
            {"name": "a", "image": "i", "lifecycle": {"postStart": hook, "preStop": hook}},
            {"name": "b", "image": "i"}]
    })
}

fn in_phase(container: Container, phase: Phase) -> Container {
    Container { stopping: Some(Stopping { kill_at: at(20), killed: false, phase }), ..container }
}

fn unhooked(container: Container) -> Container {
    with_health(container, Health { hooked: false, started: true, ready: true })
}

fn with_health(mut container: Container, health: Health) -> Container {
    if let Some(last) = &mut container.last {
        last.note.health = health;
    }
    container
}

fn failed(container: Container, unhealthy: Unhealthy) -> Container {
    Container { unhealthy: Some(unhealthy), ..container }
}

#[rstest]
#[case::one_by_one(&[], &["start a 0"])]
#[case::while_it_starts(&[("a", starting(idle()))], &[])]
#[case::while_its_hook_runs(&[("a", unhooked(running()))], &[])]
#[case::then_the_next(&[("a", running())], &["start b 0"])]
#[case::also_when_it_failed(&[("a", failed(unhooked(running()), Unhealthy::PostStart))], &["stop a 30", "start b 0"])]
#[case::a_restart_holds_up_nobody_who_ran(&[("a", unhooked(running())), ("b", exited(1, -60))], &["start b 20"])]
fn a_post_start_hook_holds_up_the_next(#[case] seen: &[(&str, Container)], #[case] expected: &[&str]) {
    let mut observed = observe(ready(), seen);
    for name in ["side", "log"] {
        observed.containers.insert(name.into(), running());
    }
    for name in ["a", "b"] {
        observed.containers.entry(name.into()).or_insert_with(idle);
    }
    assert_eq!(words(&next(hooks(), &observed)), expected);
}

#[rstest]
#[case::hooks_at_once(&[("side", running()), ("log", running()), ("a", running())], &["stop a 30", "stop side 30"])]
#[case::hook_runs(&[("side", in_phase(running(), Phase::Hook)), ("a", in_phase(running(), Phase::Hook))], &[])]
#[case::signal(&[("side", in_phase(running(), Phase::Hook)), ("a", in_phase(running(), Phase::Due))], &["signal a"])]
#[case::a_sidecar_waits_for_its_turn(&[("side", in_phase(running(), Phase::Due)), ("log", running()), ("a", in_phase(running(), Phase::Told))], &[])]
#[case::the_last_sidecar_first(&[("side", in_phase(running(), Phase::Due)), ("log", running())], &["stop log 30"])]
#[case::its_turn(&[("side", in_phase(running(), Phase::Due)), ("log", exited(0, 0))], &["signal side"])]
fn pre_stop_hooks_come_before_signals(#[case] seen: &[(&str, Container)], #[case] expected: &[&str]) {
    let mut observed = observe(ready(), seen);
    observed.ending = Some(Ending { since: at(0), deadline: at(30), then: Then::Gone });
    assert_eq!(words(&next(hooks(), &observed)), expected);
}

#[test]
fn a_hook_that_returned_is_followed_by_the_signal_also_in_a_restart() {
    let observed = observe(ready(), &[("a", failed(in_phase(running(), Phase::Due), Unhealthy::Liveness)), ("b", running())]);
    assert_eq!(words(&next(two(), &observed)), ["signal a"]);
}

fn probed() -> Value {
    let probe = json!({"exec": {"command": ["x"]}, "terminationGracePeriodSeconds": 7});
    json!({"containers": [{"name": "a", "image": "i", "livenessProbe": probe, "startupProbe": {"exec": {"command": ["x"]}}}]})
}

#[rstest]
#[case::liveness_with_its_own_grace(failed(running(), Unhealthy::Liveness), &["stop a 7"])]
#[case::startup_with_the_pods(failed(running(), Unhealthy::Startup), &["stop a 30"])]
#[case::told_already(failed(stopping(running(), 5), Unhealthy::Liveness), &[])]
#[case::ended_well(failed(exited(0, -60), Unhealthy::Liveness), &["start a 20"])]
fn what_a_probe_found_wanting_ends_and_runs_again(#[case] a: Container, #[case] expected: &[&str]) {
    for policy in ["Always", "OnFailure"] {
        let mut spec = probed();
        spec["restartPolicy"] = json!(policy);
        assert_eq!(words(&next(spec, &observe(ready(), &[("a", a.clone())]))), expected, "{policy}");
    }
}

#[rstest]
#[case::runs_only(Health { hooked: true, started: false, ready: false }, &[])]
#[case::started(Health { hooked: true, started: true, ready: false }, &["start second 0"])]
#[case::its_hook_runs(Health { hooked: false, started: true, ready: true }, &[])]
fn a_sidecar_that_has_started_lets_the_next_begin(#[case] health: Health, #[case] expected: &[&str]) {
    let mut observed = observe(ready(), &[("first", exited(0, -1)), ("side", with_health(running(), health))]);
    for name in ["second", "log", "a"] {
        observed.containers.insert(name.into(), idle());
    }
    assert_eq!(words(&next(with_init(), &observed)), expected);
}

#[test]
fn grace_periods_may_be_huge() {
    let mut spec = two();
    spec["terminationGracePeriodSeconds"] = json!(i64::MAX);
    let mut observed = observe(ready(), &[("a", running())]);
    observed.ending = Some(Ending { since: at(0), deadline: Timestamp::MAX, then: Then::Gone });
    assert!(matches!(next(spec.clone(), &observed).actions[..], [Action::Stop { .. }]));
    observed.ending = None;
    observed.failure = Some(crate::pod::observed::Failure {
        reason: "Evicted".into(),
        message: String::new(),
        deadline: Timestamp::MIN,
        disrupted: false,
    });
    assert_eq!(words(&next(spec, &observed)), ["stop a 0"]);
}

fn with_rule() -> Value {
    let rule = json!({"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}});
    let hook = json!({"preStop": {"exec": {"command": ["x"]}}});
    json!({
        "restartPolicy": "Never",
        "initContainers": [{"name": "first", "image": "i"}, {"name": "side", "image": "i", "restartPolicy": "Always", "lifecycle": hook}],
        "containers": [
            {"name": "a", "image": "i", "restartPolicy": "Never", "restartPolicyRules": [rule]},
            {"name": "b", "image": "i"}]
    })
}

#[rstest]
#[case::another_code(&[("a", exited(1, -60)), ("b", running())], &[])]
#[case::ends_all(&[("a", exited(42, -60)), ("b", running())], &["stop b 30", "stop side 30"])]
#[case::waits_for_their_end(&[("a", exited(42, -60)), ("b", stopping(running(), 5)), ("side", exited(0, -1))], &[])]
#[case::and_for_the_back_off(&[("a", exited(42, -5)), ("b", exited(0, -50)), ("side", exited(0, -1))], &[])]
#[case::then(&[("a", exited(42, -60)), ("b", exited(0, -50)), ("side", exited(0, -1))], &["reset"])]
fn a_rule_may_have_all_begin_anew(#[case] seen: &[(&str, Container)], #[case] expected: &[&str]) {
    let mut observed = observe(ready(), &[("first", exited(0, -60)), ("side", running())]);
    observed.containers.extend(seen.iter().map(|(name, c)| ((*name).to_owned(), c.clone())));
    assert_eq!(words(&next(with_rule(), &observed)), expected);
}

#[rstest]
#[case::init_containers_first(&[], &["start first 20"])]
#[case::then_all_others(&["first", "side"], &["start a 20", "start b 20"])]
fn what_begins_anew_does_so_in_its_order(#[case] done: &[&str], #[case] expected: &[&str]) {
    let sandbox = Sandbox::Ready { generation: 2, ips: Vec::new(), since: at(-100) };
    let ended = [("first", exited(0, -60)), ("side", exited(0, -1)), ("a", exited(42, -60)), ("b", exited(0, -50))];
    let mut observed = Observed { resets: 1, ..observe(sandbox, &ended) };
    for name in done {
        let mut seen = if *name == "side" { running() } else { exited(0, -1) };
        seen.last.as_mut().unwrap().generation = 2;
        observed.containers.insert((*name).into(), seen);
    }
    assert_eq!(words(&next(with_rule(), &observed)), expected);
}

/// A pod that runs nothing twice of its own accord, with a sidecar whose end has all begin anew: those that were ended for it aren't done.
#[rstest]
#[case::ends_all(1, &[("first", exited(0, -60)), ("side", exited(42, -60)), ("a", running())], &["stop a 30"])]
#[case::then(1, &[("first", exited(0, -60)), ("side", exited(42, -60)), ("a", exited(137, -50))], &["reset"])]
#[case::also_in_the_midst_of_init(1, &[("first", exited(137, -50)), ("side", exited(42, -60))], &["reset"])]
#[case::begins_anew(2, &[("first", exited(0, -60)), ("side", exited(42, -60)), ("a", exited(137, -50))], &["start side 20"])]
fn a_sidecar_may_have_all_begin_anew(#[case] generation: u64, #[case] seen: &[(&str, Container)], #[case] expected: &[&str]) {
    let rule = json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]);
    let spec = json!({
        "restartPolicy": "Never",
        "initContainers": [
            {"name": "side", "image": "i", "restartPolicy": "Always", "restartPolicyRules": rule}, {"name": "first", "image": "i"}],
        "containers": [{"name": "a", "image": "i"}]
    });
    let sandbox = Sandbox::Ready { generation, ips: Vec::new(), since: at(-100) };
    let mut observed = Observed { resets: generation - 1, ..observe(sandbox, seen) };
    observed.containers.entry("a".into()).or_insert_with(idle);
    assert_eq!(words(&next(spec, &observed)), expected);
}

#[rstest]
#[case::beside_the_others(&[("a", running())], &["pull e"])]
#[case::during_init(&[("first", running()), ("e", idle())], &["start e 0"])]
#[case::once(&[("a", running()), ("e", exited(1, -60))], &[])]
#[case::it_keeps_no_pod_alive(&[("a", exited(0, -60)), ("e", running())], &["stop e 30"])]
fn an_ephemeral_container_runs_once(#[case] seen: &[(&str, Container)], #[case] expected: &[&str]) {
    let spec = json!({
        "restartPolicy": "Never",
        "initContainers": [{"name": "first", "image": "i"}],
        "containers": [{"name": "a", "image": "i"}],
        "ephemeralContainers": [{"name": "e", "image": "i"}]
    });
    let mut observed = observe(ready(), seen);
    for name in ["first", "a"] {
        observed.containers.entry(name.into()).or_insert_with(idle);
    }
    assert_eq!(words(&next(spec, &observed)), expected);
}
