//! Jobs, Deployments and their kin from files, on one node.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::Command;

use e2e::{NodeBox, Output, eventually, run, workspace};
use serde_json::Value;

/// An object as the API has it; null while there is none.
fn get(node: &NodeBox, kind: &str, name: &str) -> Value {
    let output = node.run(&["get", kind, name, "-o", "json"]);
    serde_json::from_str(&output.stdout).unwrap_or(Value::Null)
}

#[track_caller]
fn until(node: &NodeBox, kind: &str, name: &str, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
    eventually(&format!("{kind} {name} {what}"), || {
        let object = get(node, kind, name);
        if fits(&object) { Ok(object) } else { Err(format!("{object:#}\n{}", node.run(&["get", "pods", "-A"]))) }
    })
}

/// Names of the pods with this label that aren't ending.
fn pods(node: &NodeBox, label: &str) -> Vec<String> {
    let list: Value = serde_json::from_str(&node.run(&["get", "pods", "-l", label, "-o", "json"]).ok()).unwrap();
    let alive = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null();
    let items = list["items"].as_array().unwrap().iter().filter(alive);
    items.map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

fn kubectl(node: &NodeBox, words: &[&str]) -> Output {
    assert!(Command::new("kubectl").arg("version").arg("--client").output().is_ok(), "kubectl is missing: install it");
    let mut command = node.command("kubectl");
    command.arg("--kubeconfig").arg(node.folder().join("kubeconfig")).args(words);
    run(&mut command)
}

fn with_kubectl() -> NodeBox {
    let node = NodeBox::builder().argument("--listen").argument("127.0.0.1:16444").start();
    node.run(&["kubeconfig", "--output", node.folder().join("kubeconfig").to_str().unwrap()]).ok();
    node
}

fn deployment(name: &str, replicas: u32, more: &str, args: &str) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}}}\nspec:\n  replicas: {replicas}\n{more}  selector: {{matchLabels: \
         {{app: {name}}}}}\n  template:\n    metadata: {{labels: {{app: {name}}}}}\n    spec:\n      terminationGracePeriodSeconds: 2\n      \
         containers:\n      - name: app\n        image: localhost/nodeagent-demo:latest\n        imagePullPolicy: Never\n        args: \
         [{args}]\n"
    )
}

fn job(name: &str, spec: &str, args: &str) -> String {
    format!(
        "apiVersion: batch/v1\nkind: Job\nmetadata: {{name: {name}}}\nspec:\n{spec}  template:\n    spec:\n      restartPolicy: Never\n      \
         terminationGracePeriodSeconds: 1\n      containers:\n      - name: app\n        image: localhost/nodeagent-demo:latest\n        \
         imagePullPolicy: Never\n        args: [{args}]\n"
    )
}

fn available(count: u64) -> impl Fn(&Value) -> bool {
    move |o| {
        o["status"]["availableReplicas"] == count && o["status"]["updatedReplicas"] == count && o["status"]["replicas"] == count
    }
}

#[test]
fn a_deployment_keeps_its_pods_rolls_and_goes_with_its_file() {
    let node = with_kubectl();
    let yaml = std::fs::read_to_string(workspace().join("manifests/workloads/deployment.yaml")).unwrap();
    node.apply("web.yaml", &yaml);
    until(&node, "deployment", "web", "is available", available(3));
    let first = pods(&node, "app=web");
    assert_eq!(first.len(), 3);
    let table = kubectl(&node, &["get", "deploy,rs", "-o", "wide"]).ok();
    assert!(table.contains("deployment.apps/web") && table.contains("3/3") && table.contains("replicaset.apps/web-"), "{table}");
    assert!(kubectl(&node, &["rollout", "status", "deployment/web"]).ok().contains("successfully rolled out"));
    assert!(kubectl(&node, &["describe", "deployment", "web"]).ok().contains("Scaled up replica set"), "events are told");

    // A pod that somebody deletes is replaced.
    kubectl(&node, &["delete", "pod", &first[0]]).ok();
    eventually("another pod is there", || {
        let now = pods(&node, "app=web");
        if now.len() == 3 && !now.contains(&first[0]) { Ok(()) } else { Err(format!("{now:?}")) }
    });

    // Another template: another ReplicaSet takes over, one pod after the other.
    node.apply("web.yaml", &yaml.replace("terminationGracePeriodSeconds: 5", "terminationGracePeriodSeconds: 4"));
    until(&node, "deployment", "web", "is updated", |o| {
        o["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "2" && available(3)(o)
    });
    let second = pods(&node, "app=web");
    assert!(first.iter().all(|name| !second.contains(name)), "{first:?} {second:?}");
    assert_eq!(kubectl(&node, &["get", "rs", "-l", "app=web", "-o", "name"]).ok().lines().count(), 2);

    // The agent dies: the next one has the same pods.
    node.kill_agent();
    node.start_agent();
    until(&node, "deployment", "web", "is available", available(3));
    assert_eq!(pods(&node, "app=web"), second);

    node.remove("web.yaml");
    eventually("all is gone", || {
        let left = node.run(&["get", "deployments,replicasets,pods", "-o", "name"]).stdout;
        if left.trim().is_empty() { Ok(()) } else { Err(left) }
    });
}

#[test]
fn a_version_that_does_not_become_ready_is_rolled_back() {
    let node = NodeBox::start();
    let more =
        "  progressDeadlineSeconds: 3\n  minReadySeconds: 1\n  strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}\n";
    node.apply("api.yaml", &deployment("api", 2, more, "sleep"));
    until(&node, "deployment", "api", "is available", available(2));
    let good = pods(&node, "app=api");
    node.apply("api.yaml", &deployment("api", 2, more, "exit, \"1\""));
    let after = until(&node, "deployment", "api", "is rolled back", |o| {
        let told =
            |c: &Value| c["reason"] == "ProgressDeadlineExceeded" && c["message"].as_str().unwrap().contains("Rolled back");
        o["status"]["conditions"].as_array().is_some_and(|all| all.iter().any(told)) && available(2)(o)
    });
    assert_eq!(pods(&node, "app=api"), good, "{after:#}");
    node.tells(&["DeploymentRollback", "timed out progressing"]);

    // The next edit is tried again.
    node.apply("api.yaml", &deployment("api", 2, more, "sleep, \"1000\""));
    until(&node, "deployment", "api", "is available", |o| o["metadata"]["generation"] == 3 && available(2)(o));
    eventually("the new version runs", || {
        let now = pods(&node, "app=api");
        if now.len() == 2 && now.iter().all(|name| !good.contains(name)) { Ok(()) } else { Err(format!("{now:?}")) }
    });
}

#[test]
fn a_job_runs_each_index_once_and_not_again() {
    let node = with_kubectl();
    let yaml = std::fs::read_to_string(workspace().join("manifests/workloads/job.yaml")).unwrap();
    node.apply("job.yaml", &yaml);
    let done = until(&node, "job", "numbers", "is complete", |o| o["status"]["completionTime"].is_string());
    assert_eq!(done["status"]["succeeded"], 4);
    assert_eq!(done["status"]["completedIndexes"], "0-3");
    let table = kubectl(&node, &["get", "jobs"]).ok();
    assert!(table.contains("numbers   Complete   4/4"), "{table}");
    assert_eq!(kubectl(&node, &["wait", "--for=condition=complete", "job/numbers"]).ok(), "job.batch/numbers condition met\n");
    let before = pods(&node, "job-name=numbers");
    assert_eq!(before.len(), 4);
    node.stop_agent();
    node.start_agent();
    until(&node, "job", "numbers", "is still complete", |o| o["status"]["succeeded"] == 4);
    assert_eq!(pods(&node, "job-name=numbers"), before);
    node.remove("job.yaml");
    eventually("all is gone", || {
        let left = node.run(&["get", "jobs,pods", "-o", "name"]).stdout;
        if left.trim().is_empty() { Ok(()) } else { Err(left) }
    });
}

#[test]
fn a_job_that_fails_too_often_has_failed_and_its_time_to_live_ends_it() {
    let node = NodeBox::start();
    node.apply("bad.yaml", &job("bad", "  backoffLimit: 0\n", "exit, \"3\""));
    let failed = until(&node, "job", "bad", "has failed", |o| {
        o["status"]["conditions"].as_array().is_some_and(|all| all.iter().any(|c| c["type"] == "Failed"))
    });
    assert_eq!(failed["status"]["failed"], 1);
    assert!(failed["status"]["conditions"].to_string().contains("BackoffLimitExceeded"), "{failed:#}");
    node.apply("brief.yaml", &job("brief", "  ttlSecondsAfterFinished: 0\n", "exit, \"0\""));
    node.tells(&["Completed", "Job completed"]);
    eventually("it is gone with its pods", || {
        let left = node.run(&["get", "jobs,pods", "-o", "name"]).stdout;
        if left.contains("brief") { Err(left) } else { Ok(()) }
    });
    // Its file is still there: it doesn't run again, not even for the next agent.
    node.stop_agent();
    node.start_agent();
    until(&node, "job", "bad", "is there", |o| o["status"]["failed"] == 1);
    assert_eq!(get(&node, "job", "brief"), Value::Null);
}

#[test]
fn a_job_past_its_deadline_is_ended() {
    let node = NodeBox::start();
    node.apply("slow.yaml", &job("slow", "  activeDeadlineSeconds: 1\n", "sleep"));
    until(&node, "job", "slow", "has failed", |o| o["status"]["conditions"].to_string().contains("\"type\":\"Failed\""));
    node.tells(&["DeadlineExceeded", "Job was active longer than specified deadline"]);
    assert_eq!(pods(&node, "job-name=slow"), Vec::<String>::new());
}
