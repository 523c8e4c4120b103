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

    let page = node.run(&["describe", "deployment", "web"]).ok();
    for text in [
        "Replicas:           3",
        "Progress Deadline Seconds: 600",
        "MinimumReplicasAvailable",
        "(revision 1, 3/3 replicas created)",
        "(Running)",
        "ScalingReplicaSet",
    ] {
        assert!(page.contains(text), "{text:?} is not in {page}");
    }
    let everything = node.run(&["get", "all"]).ok();
    assert!(
        everything.contains("deployment.apps/web") && everything.contains("pod/web-") && !everything.contains("job"),
        "{everything}"
    );
    assert!(node.run(&["stop", &first[0]]).fails_with(1).contains("is one of ReplicaSet web-"), "it would be replaced");

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

fn example(name: &str) -> String {
    std::fs::read_to_string(workspace().join("manifests/workloads").join(name)).unwrap()
}

#[test]
fn a_cron_job_begins_jobs_and_keeps_few_of_them() {
    let node = with_kubectl();
    let often = example("cronjob.yaml").replace("*/5 * * * *", "@every 1s");
    node.apply("tick.yaml", &often);
    until(&node, "cronjob", "tick", "has succeeded", |o| o["status"]["lastSuccessfulTime"].is_string());
    node.tells(&["SuccessfulCreate", "Created job tick-"]);
    node.tells(&["SuccessfulDelete", "Deleted job tick-"]);
    let table = kubectl(&node, &["get", "cronjobs,jobs"]).ok();
    assert!(table.contains("cronjob.batch/tick   @every 1s   Europe/Berlin   False"), "{table}");
    assert!(table.contains("job.batch/tick-"), "{table}");
    // Suspended: what has begun ends, nothing begins.
    node.apply("tick.yaml", &often.replace("concurrencyPolicy", "suspend: true\n  concurrencyPolicy"));
    until(&node, "cronjob", "tick", "is suspended", |o| o["spec"]["suspend"] == true && o["status"]["active"].is_null());
    let left = node.run(&["get", "jobs", "-o", "name"]).ok().lines().count();
    assert!((1..=2).contains(&left), "{left} jobs are kept");
    node.remove("tick.yaml");
    eventually("all is gone", || {
        let left = node.run(&["get", "cronjobs,jobs,pods", "-o", "name"]).stdout;
        if left.trim().is_empty() { Ok(()) } else { Err(left) }
    });
}

#[test]
fn a_stateful_set_has_names_and_claims_that_stay() {
    let node = with_kubectl();
    let yaml = example("statefulset.yaml");
    node.apply("db.yaml", &yaml);
    until(&node, "statefulset", "db", "is ready", |o| o["status"]["readyReplicas"] == 2);
    assert!(kubectl(&node, &["get", "sts"]).ok().contains("db     2/2"));
    let (first, second) = (node.pod("db-0"), node.pod("db-1"));
    assert_eq!(second.container("db").demo("hostname"), "db-1");
    assert_eq!(second.get().unwrap()["metadata"]["labels"]["apps.kubernetes.io/pod-index"], "1");
    let created = |pod: &Value| pod["status"]["startTime"].as_str().unwrap().to_owned();
    assert!(created(&first.get().unwrap()) <= created(&second.get().unwrap()));
    second.container("db").demo("write /data/kept yes");

    // Another template: the last one first, its data still there.
    let uids = (first.uid(), second.uid());
    node.apply("db.yaml", &yaml.replace("args: [sleep]", "args: [sleep, \"9999\"]"));
    until(&node, "statefulset", "db", "is updated", |o| {
        o["status"]["observedGeneration"] == 2
            && o["status"]["updatedReplicas"] == 2
            && o["status"]["readyReplicas"] == 2
            && o["status"]["currentRevision"] == o["status"]["updateRevision"]
    });
    assert!(first.uid() != uids.0 && second.uid() != uids.1);
    assert_eq!(second.container("db").demo("read /data/kept"), "yes");
    assert!(kubectl(&node, &["rollout", "status", "sts/db"]).ok().contains("roll out complete"));

    // Fewer and more again: the claim stayed.
    node.apply("db.yaml", &yaml.replace("replicas: 2", "replicas: 1"));
    second.is_gone();
    node.apply("db.yaml", &yaml);
    until(&node, "statefulset", "db", "is ready", |o| o["status"]["readyReplicas"] == 2 && o["status"]["replicas"] == 2);
    eventually("the data is there", || second.container("db").exec(&["/demo", "read", "/data/kept"]).result());
    node.remove("db.yaml");
    eventually("all is gone", || {
        let left = node.run(&["get", "sts,pods", "-o", "name"]).stdout;
        if left.trim().is_empty() { Ok(()) } else { Err(left) }
    });
    assert!(node.root().join("var/lib/nodeagent/claims/default/data-db-1/kept").exists(), "the data stays");
}

#[test]
fn claims_go_where_the_set_says_so() {
    let node = NodeBox::start();
    let retention = "serviceName: db\n  persistentVolumeClaimRetentionPolicy: {whenDeleted: Delete, whenScaled: Delete}";
    let yaml = example("statefulset.yaml").replace("serviceName: db", retention);
    let claim = |n: u32| node.root().join(format!("var/lib/nodeagent/claims/default/data-db-{n}"));
    node.apply("db.yaml", &yaml);
    until(&node, "sts", "db", "is ready", |o| o["status"]["readyReplicas"] == 2);
    assert!(claim(1).exists());
    node.apply("db.yaml", &yaml.replace("replicas: 2", "replicas: 1"));
    eventually("the second claim is gone", || if claim(1).exists() { Err("it is there".to_owned()) } else { Ok(()) });
    assert!(claim(0).exists());
    node.remove("db.yaml");
    eventually("the first claim is gone", || if claim(0).exists() { Err("it is there".to_owned()) } else { Ok(()) });
}

#[test]
fn a_daemon_set_has_one_pod_and_its_successor_before_it_ends() {
    let node = with_kubectl();
    let yaml = example("daemonset.yaml");
    node.apply("agent.yaml", &yaml);
    until(&node, "daemonset", "agent", "is available", |o| o["status"]["numberAvailable"] == 1);
    let first = pods(&node, "app=agent");
    assert!(kubectl(&node, &["get", "ds"]).ok().contains("agent   1         1         1       1            1"));
    node.apply("agent.yaml", &yaml.replace("args: [sleep]", "args: [sleep, \"9999\"]"));
    eventually("another pod is there", || {
        let now = pods(&node, "app=agent");
        if now.len() == 1 && now != first { Ok(()) } else { Err(format!("{now:?}")) }
    });
    until(&node, "daemonset", "agent", "is available", |o| {
        o["status"]["numberAvailable"] == 1 && o["status"]["updatedNumberScheduled"] == 1
    });
    kubectl(&node, &["delete", "pod", &pods(&node, "app=agent")[0]]).ok();
    until(&node, "daemonset", "agent", "is available again", |o| o["status"]["numberAvailable"] == 1);
}

#[test]
fn a_job_is_suspended_by_its_file_and_its_failure_policy_ends_it() {
    let node = NodeBox::start();
    node.apply("wait.yaml", &job("wait", "  suspend: true\n", "sleep"));
    until(&node, "job", "wait", "is suspended", |o| o["status"]["conditions"][0]["type"] == "Suspended");
    assert_eq!(pods(&node, "job-name=wait"), Vec::<String>::new());
    node.apply("wait.yaml", &job("wait", "  suspend: false\n", "sleep"));
    until(&node, "job", "wait", "is ready", |o| o["status"]["ready"] == 1);
    node.apply("wait.yaml", &job("wait", "  suspend: true\n", "sleep"));
    until(&node, "job", "wait", "is suspended again", |o| o["status"]["active"].is_null() && o["status"]["terminating"] == 0);
    assert_eq!(get(&node, "job", "wait")["status"]["failed"], Value::Null);

    let policy =
        "  backoffLimit: 5\n  podFailurePolicy: {rules: [{action: FailJob, onExitCodes: {operator: In, values: [42]}}]}\n";
    node.apply("fatal.yaml", &job("fatal", policy, "exit, \"42\""));
    let failed =
        until(&node, "job", "fatal", "has failed", |o| o["status"]["conditions"].to_string().contains("\"type\":\"Failed\""));
    assert!(
        failed["status"]["conditions"].to_string().contains("failed with exit code 42 matching FailJob rule at index 0"),
        "{failed:#}"
    );
    assert_eq!(failed["status"]["failed"], 1);
}

#[test]
fn an_index_knows_its_number() {
    let node = NodeBox::start();
    let spec = "  completions: 2\n  parallelism: 2\n  completionMode: Indexed\n";
    node.apply("num.yaml", &job("num", spec, "env"));
    until(&node, "job", "num", "is complete", |o| o["status"]["completedIndexes"] == "0,1");
    for name in pods(&node, "job-name=num") {
        let index = name.split('-').nth(1).unwrap().to_owned();
        let log = node.pod(&name).container("app").logs(&[]);
        assert!(
            log.contains(&format!("JOB_COMPLETION_INDEX={index}")) && log.contains(&format!("HOSTNAME=num-{index}")),
            "{log}"
        );
    }
}

#[test]
fn stateful_and_daemon_sets_go_back_to_the_last_good_version() {
    let node = NodeBox::start();
    let deadline = |yaml: &str, name: &str| {
        let note = format!("  name: {name}\n  annotations: {{nodeagent.dev/progress-deadline-seconds: \"3\"}}\n");
        yaml.replacen(&format!("  name: {name}\n"), &note, 1).replace("spec:\n  se", "spec:\n  minReadySeconds: 1\n  se")
    };
    let (db, agent) = (deadline(&example("statefulset.yaml"), "db"), deadline(&example("daemonset.yaml"), "agent"));
    let broken = |yaml: &str| yaml.replace("args: [sleep]", "args: [exit, \"1\"]");
    node.apply("db.yaml", &db);
    node.apply("agent.yaml", &agent);
    until(&node, "sts", "db", "is available", |o| o["status"]["availableReplicas"] == 2);
    until(&node, "ds", "agent", "is available", |o| o["status"]["numberAvailable"] == 1);
    node.apply("db.yaml", &broken(&db));
    node.apply("agent.yaml", &broken(&agent));
    node.tells(&["RolledBack", "timed out progressing"]);
    until(&node, "sts", "db", "is available again", |o| {
        o["metadata"]["generation"] == 2
            && o["status"]["availableReplicas"] == 2
            && o["status"]["currentRevision"] == o["status"]["updateRevision"]
    });
    until(&node, "ds", "agent", "is available again", |o| {
        o["metadata"]["generation"] == 2 && o["status"]["numberAvailable"] == 1 && o["status"]["updatedNumberScheduled"] == 1
    });
}

#[test]
fn a_reboot_brings_them_back() {
    let node = NodeBox::start();
    node.apply("web.yaml", &deployment("web", 2, "", "sleep"));
    node.apply("db.yaml", &example("statefulset.yaml"));
    node.apply("once.yaml", &job("once", "", "exit, \"0\""));
    until(&node, "deployment", "web", "is available", available(2));
    until(&node, "sts", "db", "is ready", |o| o["status"]["readyReplicas"] == 2);
    until(&node, "job", "once", "is complete", |o| o["status"]["succeeded"] == 1);
    let before = (pods(&node, "app=web"), pods(&node, "job-name=once"));
    node.reboot();
    node.start_agent();
    until(&node, "deployment", "web", "is available", available(2));
    until(&node, "sts", "db", "is ready", |o| o["status"]["readyReplicas"] == 2);
    until(&node, "job", "once", "is still complete", |o| o["status"]["succeeded"] == 1 && o["status"]["active"].is_null());
    assert_eq!((pods(&node, "app=web"), pods(&node, "job-name=once")), before);
}

#[test]
fn an_agent_that_is_killed_again_and_again_ends_where_it_should() {
    let node = NodeBox::start();
    let more = "  strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}\n";
    node.apply("web.yaml", &deployment("web", 3, more, "sleep, \"1000\""));
    node.apply("sum.yaml", &job("sum", "  completions: 6\n  parallelism: 2\n  completionMode: Indexed\n", "echo, hello"));
    for round in 1..6 {
        node.apply("web.yaml", &deployment("web", 3, more, &format!("sleep, \"{}\"", 1000 + round)));
        node.kill_agent();
        node.start_agent();
    }
    until(&node, "deployment", "web", "is updated", |o| {
        o["spec"]["template"]["spec"]["containers"][0]["args"][1] == "1005"
            && o["status"]["terminatingReplicas"] == 0
            && available(3)(o)
    });
    let list: Value = serde_json::from_str(&node.run(&["get", "pods", "-l", "app=web", "-o", "json"]).ok()).unwrap();
    let args: Vec<&Value> = list["items"].as_array().unwrap().iter().map(|p| &p["spec"]["containers"][0]["args"][1]).collect();
    assert_eq!(args, ["1005"; 3]);
    let done = until(&node, "job", "sum", "is complete", |o| o["status"]["completionTime"].is_string());
    assert_eq!((&done["status"]["succeeded"], &done["status"]["completedIndexes"]), (&Value::from(6), &Value::from("0-5")));
    // One pod an index, none ran twice.
    assert_eq!(pods(&node, "job-name=sum").len(), 6);
    node.remove("web.yaml");
    node.remove("sum.yaml");
    eventually("nothing is left", || {
        let left = node.run(&["get", "all", "-o", "name"]).stdout;
        if left.trim().is_empty() { Ok(()) } else { Err(left) }
    });
    eventually("no state is left", || {
        let kept = std::fs::read_dir(node.root().join("var/lib/nodeagent/workloads")).unwrap().count();
        if kept == 0 { Ok(()) } else { Err(format!("{kept} files")) }
    });
}
