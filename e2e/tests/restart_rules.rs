//! A container's own restartPolicy and restartPolicyRules, from the user's side.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use e2e::{NodeBox, SHARED, assert_eventually, pod};

const QUICK: &str =
    "apiVersion: nodeagent.dev/v1\nkind: NodeAgentConfiguration\ncrashLoopBackOff: {initial: 100ms, max: 400ms}\n";

fn quick() -> NodeBox {
    NodeBox::builder().config(QUICK).start()
}

fn rule(action: &str, operator: &str, codes: &str) -> String {
    format!(
        "restartPolicy: Never\nrestartPolicyRules: [{{action: {action}, exitCodes: {{operator: {operator}, values: {codes}}}}}]"
    )
}

#[test]
fn a_container_has_its_own_policy_and_rules() {
    let node = quick();
    // The pod's policy, the container's fields, the exit code, and whether it runs again.
    let rows = [
        ("own-always", "Never", "restartPolicy: Always".to_owned(), 0, true),
        ("own-never", "Always", "restartPolicy: Never".to_owned(), 1, false),
        ("own-on-failure", "Never", "restartPolicy: OnFailure".to_owned(), 1, true),
        ("met", "Never", rule("Restart", "In", "[42]"), 42, true),
        ("not-met", "Always", rule("Restart", "In", "[42]"), 41, false),
        ("not-in", "Never", rule("Restart", "NotIn", "[0, 42]"), 1, true),
        ("not-in-not-met", "Always", rule("Restart", "NotIn", "[0, 42]"), 42, false),
    ];
    let pods = rows.map(|(name, policy, fields, code, again)| {
        let manifest = pod(name)
            .spec(&format!("restartPolicy: {policy}"))
            .runs_with("main", &format!("exit {code}"), &fields)
            .runs("beside", "sleep");
        (node.put(&manifest), code, again)
    });
    for (pod, code, again) in &pods {
        if *again {
            pod.container("main").was_restarted(2);
        } else {
            let ended = pod.container("main").exited_with(*code);
            let state = pod.container("main").status(&pod.get().unwrap())["state"].clone();
            assert_eq!(state["terminated"]["exitCode"], ended["exitCode"], "{state}");
            assert_eq!(pod.container("main").restarts(), 0);
        }
        pod.container("beside").is_running();
    }
}

#[test]
fn a_pod_completes_when_no_rule_and_no_policy_has_a_container_run_again() {
    let node = quick();
    let done = node.put(&pod("done").runs_with("main", "exit 0", "restartPolicy: Never"));
    done.becomes("Succeeded");
    let failed = node.put(&pod("failed").first_runs("init", "exit 3", "restartPolicy: Never").runs("main", "sleep"));
    failed.becomes("Failed");
    failed.container("init").exited_with(3);
}

#[test]
fn a_rule_may_have_all_containers_begin_anew() {
    let node = quick();
    let manifest = pod("anew")
        .shares_a_folder()
        .spec("restartPolicy: Never")
        .first_runs("init", "append /shared/inits x", SHARED)
        .first_runs("side", "sleep", &format!("restartPolicy: Always\n{SHARED}"))
        // Ends with 42 until the test says that it is enough.
        .runs_with("main", "fail-until /shared/enough 42", &format!("{SHARED}\n{}", rule("RestartAllContainers", "In", "[42]")))
        .runs_with("beside", "sleep", SHARED);
    let anew = node.put(&manifest);
    let ip = anew.ip();
    for name in ["init", "main", "beside", "side"] {
        anew.container(name).was_restarted(2);
    }
    // The sandbox and its volumes stay: each run of init is still noted there.
    assert_eq!(anew.ip(), ip);
    anew.tells(&["RestartAllContainers"]);
    anew.tells(&["Killing", "Container beside is ended because all containers of the pod begin anew"]);
    // From the host: no container lives long enough for an exec to be sure of it.
    let shared = node.root().join("var/lib/nodeagent/pods").join(anew.uid()).join("volumes/empty-dir/shared");
    let inits = || std::fs::read_to_string(shared.join("inits")).unwrap_or_default();
    assert_eventually!(inits().lines().count() >= 3, "init ran again");
    node.kill_agent();
    node.start_agent();
    std::fs::write(shared.join("enough"), "yes").unwrap();
    anew.container("main").is_running();
    anew.is_ready();
    let conditions = anew.get().unwrap()["status"]["conditions"].to_string();
    assert!(!conditions.contains("AllContainersRestarting"), "{conditions}");
}

#[test]
fn a_sidecars_rule_has_all_containers_begin_anew_though_none_would_run_again() {
    let node = quick();
    let rule = rule("RestartAllContainers", "In", "[42]").replace("restartPolicy: Never", "restartPolicy: Always");
    let manifest = pod("anew")
        .shares_a_folder()
        .spec("restartPolicy: Never")
        .first_runs("init", "append /shared/inits x", SHARED)
        .first_runs("side", "fail-until /shared/enough 42", &format!("{SHARED}\n{rule}"))
        .runs_with("main", "sleep", SHARED);
    let anew = node.put(&manifest);
    for name in ["init", "side", "main"] {
        anew.container(name).was_restarted(2);
    }
    let shared = node.root().join("var/lib/nodeagent/pods").join(anew.uid()).join("volumes/empty-dir/shared");
    std::fs::write(shared.join("enough"), "yes").unwrap();
    anew.is_ready();
}
