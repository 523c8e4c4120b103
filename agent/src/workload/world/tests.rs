//! The world with a manager that does at once what it is told, and a clock that moves when the test says so.

use std::path::Path;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use rstest::rstest;
use serde_json::{Value, json};

use super::*;
use crate::model::{Defaults, load};

/// How a pod comes to be.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Ready,
    Unready,
}

struct Sim {
    world: World,
    now: Timestamp,
    pods: BTreeMap<String, Pod>,
    objects: BTreeMap<String, Workload>,
    files: BTreeMap<String, Vec<u8>>,
    said: Vec<String>,
    /// The most pods that there were at a time, and the fewest ready ones.
    most: usize,
    fewest_ready: usize,
    claims: BTreeSet<String>,
    fate: fn(&Pod) -> Fate,
}

fn counting() -> Chance {
    let mut count = 0_u64;
    Box::new(move |bytes| {
        count += 1;
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = (count >> (8 * (i % 8))) as u8;
        }
    })
}

impl Sim {
    fn new() -> Self {
        Self {
            world: World::new("node", counting()),
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            pods: BTreeMap::new(),
            objects: BTreeMap::new(),
            files: BTreeMap::new(),
            said: Vec::new(),
            most: 0,
            fewest_ready: usize::MAX,
            claims: BTreeSet::new(),
            fate: |_| Fate::Ready,
        }
    }

    fn with(yaml: &str) -> Self {
        let mut sim = Self::new();
        sim.world.told(&Event::InitDone, sim.now);
        sim.apply(yaml);
        sim
    }

    fn apply(&mut self, yaml: &str) {
        let loaded = load(Path::new("w.yaml"), yaml.as_bytes(), &Defaults { node_name: "node".into() });
        assert_eq!(loaded.errors, []);
        for workload in loaded.workloads {
            self.world.told(&Event::ApplyWorkload(workload), self.now);
        }
        self.settle();
    }

    /// Until nothing follows any more.
    fn settle(&mut self) {
        for _ in 0..1000 {
            let effects = self.world.settle(self.now);
            let quiet = effects.events.is_empty();
            for workload in effects.removed {
                self.objects.remove(workload.uid());
            }
            for workload in effects.changed {
                self.objects.insert(workload.uid().to_owned(), workload);
            }
            for (uid, bytes) in effects.saves {
                match bytes {
                    Some(bytes) => self.files.insert(uid, bytes),
                    None => self.files.remove(&uid),
                };
            }
            self.said.extend(effects.said.into_iter().map(|(_, said)| format!("{}: {}", said.reason, said.message)));
            effects.events.into_iter().for_each(|event| self.follow(event));
            if quiet {
                return;
            }
        }
        panic!("it never comes to rest: {:?}", self.said);
    }

    fn follow(&mut self, event: Event) {
        match event {
            Event::Apply(pod) => {
                let mut pod = Pod::clone(pod.object());
                let name = pod.metadata.name.clone().unwrap();
                let ready = (self.fate)(&pod) == Fate::Ready;
                pod.metadata.creation_timestamp.get_or_insert(Time(self.now));
                self.pods.insert(name.clone(), pod);
                self.most = self.most.max(self.pods.len());
                self.becomes(&name, "Running", ready);
            }
            Event::Delete(uid) => {
                let found = self.pods.iter().find(|(_, p)| p.metadata.uid.as_deref() == Some(uid.as_str()));
                let Some(name) = found.map(|(name, _)| name.clone()) else { return };
                let mut pod = self.pods.remove(&name).unwrap();
                pod.metadata.deletion_timestamp = Some(Time(self.now));
                self.fewest_ready = self.fewest_ready.min(self.ready());
                self.world.seen(&Change { version: 0, verb: Verb::Deleted, object: Arc::new(pod) });
            }
            Event::ApplyObject(object) => {
                self.claims.insert(object.key().name.clone());
            }
            Event::DeleteObject(key) => {
                self.claims.remove(&key.name);
            }
            other => panic!("{other:?}"),
        }
    }

    fn becomes(&mut self, name: &str, phase: &str, ready: bool) {
        let pod = self.pods.get_mut(name).unwrap();
        let condition =
            json!({"type": "Ready", "status": if ready { "True" } else { "False" }, "lastTransitionTime": self.now.to_string()});
        pod.status = Some(serde_json::from_value(json!({"phase": phase, "conditions": [condition]})).unwrap());
        let object = Arc::new(pod.clone());
        self.world.seen(&Change { version: 0, verb: Verb::Modified, object });
    }

    fn running(&self) -> Vec<String> {
        let running = |p: &&Pod| p.status.as_ref().is_some_and(|s| s.phase.as_deref() == Some("Running"));
        self.pods.values().filter(running).map(|p| p.metadata.name.clone().unwrap()).collect()
    }

    fn ends(&mut self, name: &str, code: i32) {
        self.becomes(name, if code == 0 { "Succeeded" } else { "Failed" }, false);
        let pod = self.pods.get_mut(name).unwrap();
        let state = json!({"terminated": {"exitCode": code, "finishedAt": self.now.to_string()}});
        let container = json!({"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state});
        pod.status.as_mut().unwrap().container_statuses = serde_json::from_value(json!([container])).unwrap();
        let object = Arc::new(pod.clone());
        self.world.seen(&Change { version: 0, verb: Verb::Modified, object });
        self.settle();
    }

    /// Time passes, with a stop at each moment that the world asked for.
    fn pass(&mut self, seconds: u64) {
        let end = self.now.checked_add(Duration::from_secs(seconds)).unwrap();
        for _ in 0..10_000 {
            match self.world.next_due().filter(|due| *due <= end) {
                Some(due) => self.now = self.now.max(due),
                None => break,
            }
            self.settle();
        }
        self.now = end;
        self.settle();
    }

    fn ready(&self) -> usize {
        let ready = |p: &&Pod| {
            let status = p.status.as_ref().and_then(|s| s.conditions.as_ref());
            status.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
        };
        self.pods.values().filter(ready).count()
    }

    fn names(&self) -> Vec<&str> {
        self.pods.keys().map(String::as_str).collect()
    }

    fn uids(&self) -> BTreeSet<String> {
        self.pods.values().filter_map(|p| p.metadata.uid.clone()).collect()
    }

    fn deployment(&self) -> Deployment {
        self.objects.values().find_map(|o| if let Workload::Deployment(o) = o { Some((**o).clone()) } else { None }).unwrap()
    }

    fn job(&self) -> Job {
        self.objects.values().find_map(|o| if let Workload::Job(o) = o { Some((**o).clone()) } else { None }).unwrap()
    }

    fn condition(&self, kind: &str) -> Option<String> {
        let conditions = self.job().status?.conditions?;
        conditions.into_iter().find(|c| c.type_ == kind && c.status == "True")?.reason
    }

    fn status(&self) -> Value {
        serde_json::to_value(self.job().status).unwrap()
    }

    fn images(&self) -> BTreeSet<String> {
        self.pods.values().filter_map(|p| p.spec.as_ref()?.containers[0].image.clone()).collect()
    }

    /// The agent dies; the next one reads the files, and finds the pods that still run.
    fn restart(&mut self) {
        self.settle();
        let mut world = World::new("node", counting());
        for bytes in self.files.values() {
            assert!(world.recall(bytes));
        }
        // Chance is another in each life.
        for _ in 0..1000 {
            (world.chance)(&mut [0; 8]);
        }
        self.world = world;
    }
}

fn deployment(more: &str, image: &str) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec:\n  selector: {{matchLabels: {{app: web}}}}\n{more}\n  template:\n    \
         metadata: {{labels: {{app: web}}}}\n    spec:\n      containers: [{{name: c, image: {image}}}]\n"
    )
}

fn job(more: &str) -> String {
    format!(
        "apiVersion: batch/v1\nkind: Job\nmetadata: {{name: j}}\nspec:\n{more}\n  template:\n    spec:\n      restartPolicy: Never\n      containers: \
         [{{name: c, image: i}}]\n"
    )
}

fn set(kind: &str, more: &str, image: &str) -> String {
    deployment(more, image).replace("kind: Deployment", &format!("kind: {kind}"))
}

#[rstest]
#[case::default("  replicas: 4", 5, 3)]
#[case::no_surge("  replicas: 4\n  strategy: {rollingUpdate: {maxSurge: 0, maxUnavailable: 1}}", 4, 3)]
#[case::only_surge("  replicas: 4\n  strategy: {rollingUpdate: {maxSurge: 2, maxUnavailable: 0}}", 6, 4)]
#[case::at_once("  replicas: 4\n  strategy: {rollingUpdate: {maxSurge: 100%, maxUnavailable: 0}}", 8, 4)]
#[case::recreate("  replicas: 4\n  strategy: {type: Recreate}", 4, 0)]
#[case::slow("  replicas: 4\n  minReadySeconds: 5\n  strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}", 5, 4)]
#[case::one("  replicas: 1", 2, 1)]
fn a_rollout_keeps_within_its_bounds(#[case] spec: &str, #[case] most: usize, #[case] fewest: usize) {
    let mut sim = Sim::with(&deployment(spec, "one"));
    sim.pass(60);
    (sim.most, sim.fewest_ready) = (0, usize::MAX);
    sim.apply(&deployment(spec, "two"));
    sim.pass(60);
    assert_eq!(sim.images(), ["two".to_owned()].into());
    assert!(sim.most <= most, "{} pods at a time", sim.most);
    assert!(sim.fewest_ready >= fewest, "{} ready pods", sim.fewest_ready);
    let status = sim.deployment().status.unwrap();
    assert_eq!(status.updated_replicas, status.available_replicas);
    assert_eq!(sim.deployment().metadata.annotations.unwrap()[crate::workload::deployment::REVISION], "2");
    assert!(sim.said.iter().any(|s| s.starts_with("ScalingReplicaSet: Scaled up replica set web-")), "{:?}", sim.said);
}

#[test]
fn a_deployment_grows_shrinks_pauses_and_goes() {
    let mut sim = Sim::with(&deployment("  replicas: 2", "one"));
    let first = sim.uids();
    sim.apply(&deployment("  replicas: 5", "one"));
    assert!(sim.pods.len() == 5 && first.is_subset(&sim.uids()));
    sim.apply(&deployment("  replicas: 1\n  paused: true", "two"));
    assert_eq!((sim.pods.len(), sim.images()), (1, ["one".to_owned()].into()));
    sim.apply(&deployment("  replicas: 1", "two"));
    assert_eq!(sim.images(), ["two".to_owned()].into());
    let key = sim.deployment();
    let key = Workload::Deployment(Arc::new(key)).key();
    sim.world.told(&Event::DeleteWorkload(key), sim.now);
    sim.settle();
    assert!(sim.pods.is_empty() && sim.objects.is_empty() && sim.files.is_empty());
}

#[test]
fn a_version_that_does_not_become_ready_is_rolled_back_unless_it_is_told_not_to() {
    for (note, image) in [("", "good"), ("  annotations: {nodeagent.dev/rollback: \"false\"}\n", "bad")] {
        let spec = "  replicas: 2\n  progressDeadlineSeconds: 30\n  strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 1}}";
        let yaml =
            |image: &str| deployment(spec, image).replace("metadata: {name: web}\n", &format!("metadata:\n  name: web\n{note}"));
        let mut sim = Sim::with(&yaml("good"));
        sim.fate = |pod| {
            if pod.spec.as_ref().unwrap().containers[0].image.as_deref() == Some("bad") { Fate::Unready } else { Fate::Ready }
        };
        sim.apply(&yaml("bad"));
        assert!(sim.ready() >= 1);
        sim.pass(29);
        assert!(!sim.said.iter().any(|s| s.contains("timed out")));
        sim.pass(2);
        assert!(sim.said.iter().any(|s| s.contains("timed out")), "{:?}", sim.said);
        sim.pass(100);
        assert!(sim.images().contains(image) && (image == "bad" || sim.images().len() == 1), "{:?}", sim.images());
        let conditions = serde_json::to_string(&sim.deployment().status.unwrap().conditions).unwrap();
        assert!(conditions.contains("ProgressDeadlineExceeded"), "{conditions}");
        // The good version again, by the author's own hand.
        sim.apply(&yaml("good"));
        sim.pass(100);
        assert_eq!((sim.images(), sim.ready()), (["good".to_owned()].into(), 2));
    }
}

#[test]
fn old_replica_sets_are_kept_up_to_the_limit() {
    let mut sim = Sim::with(&deployment("  revisionHistoryLimit: 2", "v0"));
    for version in 1..6 {
        sim.apply(&deployment("  revisionHistoryLimit: 2", &format!("v{version}")));
    }
    let sets = sim.objects.values().filter(|o| matches!(o, Workload::ReplicaSet(_))).count();
    assert!((3..=4).contains(&sets), "{sets}");
    // Back to one that is still there: its set has the pods again, under a new revision.
    sim.apply(&deployment("  revisionHistoryLimit: 2", "v4"));
    assert_eq!(sim.images(), ["v4".to_owned()].into());
    assert_eq!(sim.deployment().metadata.annotations.unwrap()[crate::workload::deployment::REVISION], "7");
}

#[test]
fn another_agent_goes_on_where_the_last_one_stopped() {
    let mut sim = Sim::with(&deployment("  replicas: 3", "one"));
    let before = sim.uids();
    let pods = sim.pods.clone();
    sim.restart();
    // Nothing is decided before the pods were seen.
    sim.pods.clear();
    sim.fate = |_| Fate::Ready;
    sim.apply(&deployment("  replicas: 3", "one"));
    sim.world.told(&Event::InitDone, sim.now);
    sim.settle();
    assert_eq!((sim.uids(), sim.pods.len()), (before, pods.len()));
    assert_eq!(sim.deployment().status.unwrap().available_replicas, Some(3));

    // A file that is at fault: its last good version runs on, until it is mended without it.
    sim.restart();
    let fault = Event::Fault { file: "w.yaml".into(), errors: Vec::new() };
    sim.world.told(&fault, sim.now);
    sim.world.told(&Event::InitDone, sim.now);
    sim.settle();
    assert_eq!(sim.pods.len(), 3);
    sim.world.told(&Event::Mended { file: "w.yaml".into() }, sim.now);
    sim.settle();
    assert!(sim.pods.is_empty() && sim.files.is_empty());
}

#[test]
fn a_job_counts_its_pods_once() {
    let mut sim = Sim::with(&job("  completions: 3\n  parallelism: 2"));
    assert_eq!(sim.pods.len(), 2);
    let first = sim.names()[0].to_owned();
    sim.ends(&first, 0);
    assert_eq!((sim.status()["succeeded"].clone(), sim.status()["active"].clone()), (json!(1), json!(2)));
    sim.restart();
    sim.apply(&job("  completions: 3\n  parallelism: 2"));
    // The next agent's manager shows the one that ended as it ended.
    sim.ends(&first, 0);
    assert_eq!(sim.status()["succeeded"], 1);
    for name in sim.names().iter().map(|n| (*n).to_owned()).filter(|n| *n != first).collect::<Vec<_>>() {
        sim.ends(&name, 0);
    }
    assert_eq!(sim.condition("Complete").as_deref(), Some("CompletionsReached"));
    assert_eq!((sim.status()["succeeded"].clone(), sim.pods.len()), (json!(3), 3));
    assert!(sim.said.contains(&"Completed: Job completed".to_owned()));
}

#[rstest]
#[case::of_a_deployment(&deployment("  replicas: 2", "i:1"))]
#[case::of_a_job(&job("  parallelism: 2\n  completions: 2\n  backoffLimit: 0"))]
fn a_pod_that_ends_with_the_node_is_neither_replaced_nor_counted(#[case] yaml: &str) {
    let mut sim = Sim::with(yaml);
    let names: Vec<String> = sim.names().into_iter().map(str::to_owned).collect();
    for reason in ["Terminated", "NodeShutdown"] {
        let pod = sim.pods.get_mut(&names[0]).unwrap();
        pod.status = Some(serde_json::from_value(json!({"phase": "Failed", "reason": reason})).unwrap());
        let object = Arc::new(pod.clone());
        sim.world.seen(&Change { version: 0, verb: Verb::Modified, object });
        sim.pass(3600);
        assert_eq!(sim.names(), names);
    }
    sim.becomes(&names[0], "Running", true);
    sim.pass(3600);
    assert_eq!(sim.names(), names);
    assert!(!sim.said.iter().any(|said| said.contains("Failed")), "{:?}", sim.said);
}

#[test]
fn pods_after_failures_come_later_and_later_until_the_limit() {
    let mut sim = Sim::with(&job("  backoffLimit: 2"));
    for (wait, expected) in [(10, true), (20, true)] {
        let name =
            sim.pods.iter().find(|(_, p)| p.status.as_ref().unwrap().phase.as_deref() == Some("Running")).unwrap().0.clone();
        let before = sim.pods.len();
        sim.ends(&name, 1);
        sim.pass(wait - 1);
        assert_eq!(sim.pods.len(), before, "no pod before {wait} s");
        sim.pass(1);
        assert_eq!(sim.pods.len() > before, expected);
    }
    let name = sim.pods.iter().find(|(_, p)| p.status.as_ref().unwrap().phase.as_deref() == Some("Running")).unwrap().0.clone();
    sim.ends(&name, 1);
    assert_eq!(sim.condition("Failed").as_deref(), Some("BackoffLimitExceeded"));
    assert_eq!(sim.status()["failed"], 3);
}

#[test]
fn a_job_is_suspended_and_resumed_without_a_failure() {
    let mut sim = Sim::with(&job("  parallelism: 2\n  completions: 2"));
    sim.apply(&job("  parallelism: 2\n  completions: 2\n  suspend: true"));
    assert!(sim.pods.is_empty());
    assert_eq!((sim.condition("Suspended").as_deref(), sim.status()["failed"].clone()), (Some("JobSuspended"), Value::Null));
    assert_eq!(sim.status()["startTime"], Value::Null);
    sim.apply(&job("  parallelism: 2\n  completions: 2"));
    assert_eq!((sim.pods.len(), sim.condition("Suspended")), (2, None));
    sim.apply(&job("  parallelism: 1\n  completions: 2"));
    assert_eq!((sim.pods.len(), sim.status()["failed"].clone()), (1, Value::Null));
}

#[test]
fn an_index_that_is_done_as_its_job_is_suspended_is_done() {
    let spec = "  completions: 2\n  parallelism: 2\n  completionMode: Indexed";
    let mut sim = Sim::with(&job(spec));
    let done = sim.names().into_iter().find(|n| n.starts_with("j-1-")).unwrap().to_owned();
    // Both are news at the same moment, as for an agent that was away.
    sim.becomes(&done, "Succeeded", false);
    sim.apply(&job(&format!("{spec}\n  suspend: true")));
    assert_eq!((&sim.status()["completedIndexes"], &sim.status()["succeeded"]), (&json!("1"), &json!(1)));
    sim.apply(&job(spec));
    let again = sim.names().iter().filter(|n| n.starts_with("j-1-")).count();
    assert_eq!((sim.pods.len(), again), (2, 1), "only the other index runs again");
}

#[test]
fn a_job_that_is_edited_beyond_what_may_be_begins_anew() {
    let mut sim = Sim::with(&job("  completions: 1"));
    let first = sim.names()[0].to_owned();
    sim.ends(&first, 0);
    let uid = sim.job().metadata.uid;
    sim.apply(&job("  completions: 1").replace("image: i", "image: other"));
    assert_ne!(sim.job().metadata.uid, uid);
    assert_eq!((sim.images(), sim.status()["succeeded"].clone()), (["other".to_owned()].into(), Value::Null));
}

#[rstest]
#[case::deadline("  activeDeadlineSeconds: 30", 31, "Failed", "DeadlineExceeded")]
#[case::no_completions("  completions: 0", 0, "Complete", "CompletionsReached")]
fn jobs_that_end_without_an_end_of_a_pod(#[case] spec: &str, #[case] after: u64, #[case] kind: &str, #[case] reason: &str) {
    let mut sim = Sim::with(&job(spec));
    sim.pass(after);
    assert_eq!(sim.condition(kind).as_deref(), Some(reason), "{:#}", sim.status());
    assert!(sim.pods.is_empty());
}

#[rstest]
#[case::fail_job("FailJob", 42, Some("PodFailurePolicy"), 1)]
#[case::ignore("Ignore", 42, None, 0)]
#[case::count("Count", 42, None, 1)]
#[case::other_code("FailJob", 1, None, 1)]
fn a_failure_policy_decides(#[case] action: &str, #[case] code: i32, #[case] expected: Option<&str>, #[case] failed: i32) {
    let rule = format!("{{action: {action}, onExitCodes: {{operator: In, values: [42]}}}}");
    let mut sim = Sim::with(&job(&format!("  podFailurePolicy: {{rules: [{rule}]}}")));
    let name = sim.names()[0].to_owned();
    sim.ends(&name, code);
    assert_eq!(sim.condition("Failed").as_deref(), expected, "{:#}", sim.status());
    assert_eq!(sim.status()["failed"].as_i64().unwrap_or(0), i64::from(failed));
    if let Some(reason) = expected {
        let wanted =
            format!("{reason}: Container c for pod default/{name} failed with exit code 42 matching FailJob rule at index 0");
        assert!(sim.said.contains(&wanted), "{:?}", sim.said);
    }
}

#[test]
fn each_index_has_failures_of_its_own() {
    let spec = "  completions: 3\n  parallelism: 3\n  completionMode: Indexed\n  backoffLimitPerIndex: 1\n  maxFailedIndexes: 2";
    let mut sim = Sim::with(&job(spec));
    let of = |sim: &Sim, index: u32| {
        let running = |p: &&Pod| p.status.as_ref().unwrap().phase.as_deref() == Some("Running");
        let names = sim.pods.values().filter(running).map(|p| p.metadata.name.clone().unwrap());
        names.filter(|n| n.starts_with(&format!("j-{index}-"))).collect::<Vec<_>>()
    };
    let zero = sim.pods[&of(&sim, 0)[0]].clone();
    assert_eq!(zero.spec.as_ref().unwrap().hostname.as_deref(), Some("j-0"));
    let env = serde_json::to_value(&zero.spec.unwrap().containers[0].env).unwrap();
    assert_eq!(env[0]["name"], "JOB_COMPLETION_INDEX");
    let one = of(&sim, 1)[0].clone();
    sim.ends(&one, 1);
    assert!(of(&sim, 1).is_empty());
    sim.pass(10);
    let one = of(&sim, 1)[0].clone();
    sim.ends(&one, 1);
    sim.pass(100);
    assert!(of(&sim, 1).is_empty(), "the index is given up");
    assert_eq!(sim.status()["failedIndexes"], "1");
    for index in [0, 2] {
        let name = of(&sim, index)[0].clone();
        sim.ends(&name, 0);
    }
    assert_eq!(sim.status()["completedIndexes"], "0,2");
    assert_eq!(sim.condition("Failed").as_deref(), Some("FailedIndexes"));
}

const IGNORE_42: &str = "  podFailurePolicy: {rules: [{action: Ignore, onExitCodes: {operator: In, values: [42]}}]}";

#[test]
fn what_is_ignored_counts_for_no_limit_but_the_next_pod_waits() {
    let mut sim = Sim::with(&job(&format!("  backoffLimit: 0\n{IGNORE_42}")));
    for wait in [10, 20, 40] {
        let running = sim.running();
        assert_eq!(running.len(), 1);
        sim.ends(&running[0], 42);
        sim.pass(wait - 1);
        assert!(sim.running().is_empty(), "the next one waits {wait} s");
        sim.pass(1);
    }
    assert_eq!((sim.condition("Failed"), sim.status()["failed"].clone()), (None, Value::Null));
}

#[test]
fn an_index_is_not_given_up_for_what_is_ignored() {
    let spec = "  completions: 1\n  completionMode: Indexed\n  backoffLimitPerIndex: 1";
    let mut sim = Sim::with(&job(&format!("{spec}\n{IGNORE_42}")));
    let note = |sim: &Sim, which: &str| {
        let pod = &sim.pods[&sim.running()[0]];
        pod.metadata.annotations.as_ref().unwrap().get(&format!("batch.kubernetes.io/job-index-{which}-count")).cloned()
    };
    for (code, failures, ignored) in [(42, "0", Some("1")), (1, "1", Some("1")), (42, "1", Some("2"))] {
        let name = sim.running()[0].clone();
        sim.ends(&name, code);
        sim.pass(600);
        assert_eq!(note(&sim, "failure").as_deref(), Some(failures));
        assert_eq!(note(&sim, "ignored-failure").as_deref(), ignored);
    }
    let last = sim.running()[0].clone();
    sim.ends(&last, 1);
    assert_eq!(sim.condition("Failed").as_deref(), Some("FailedIndexes"));
}

#[test]
fn a_success_policy_ends_the_rest() {
    let policy = "  successPolicy: {rules: [{succeededIndexes: \"0-1\", succeededCount: 1}]}";
    let mut sim = Sim::with(&job(&format!("  completions: 4\n  parallelism: 4\n  completionMode: Indexed\n{policy}")));
    let name = sim.names().into_iter().find(|n| n.starts_with("j-1-")).unwrap().to_owned();
    sim.ends(&name, 0);
    assert_eq!(sim.condition("Complete").as_deref(), Some("SuccessPolicy"));
    assert_eq!(sim.names(), [name]);
}

#[test]
fn a_job_outlives_its_end_by_its_time_to_live() {
    let mut sim = Sim::with(&job("  ttlSecondsAfterFinished: 60"));
    let name = sim.names()[0].to_owned();
    sim.ends(&name, 0);
    sim.pass(59);
    assert_eq!(sim.objects.len(), 1);
    sim.pass(1);
    assert!(sim.objects.is_empty() && sim.pods.is_empty());
    sim.restart();
    sim.apply(&job("  ttlSecondsAfterFinished: 60"));
    sim.world.told(&Event::InitDone, sim.now);
    sim.settle();
    assert!(sim.objects.is_empty() && sim.pods.is_empty(), "its file alone doesn't run it again");
}

#[test]
fn a_queue_ends_when_one_says_that_it_is_empty() {
    let mut sim = Sim::with(&job("  parallelism: 3"));
    let names: Vec<String> = sim.names().into_iter().map(str::to_owned).collect();
    assert_eq!(names.len(), 3);
    sim.ends(&names[0], 0);
    assert_eq!((sim.pods.len(), sim.condition("Complete")), (3, None), "the others finish, nobody new begins");
    sim.ends(&names[1], 0);
    sim.ends(&names[2], 0);
    assert_eq!(sim.condition("Complete").as_deref(), Some("CompletionsReached"));
}

fn stateful(more: &str, image: &str) -> String {
    set("StatefulSet", &format!("  serviceName: web\n{more}"), image)
}

impl Sim {
    fn stateful(&self) -> StatefulSet {
        self.objects.values().find_map(|o| if let Workload::StatefulSet(o) = o { Some((**o).clone()) } else { None }).unwrap()
    }
    fn daemon(&self) -> DaemonSet {
        self.objects.values().find_map(|o| if let Workload::DaemonSet(o) = o { Some((**o).clone()) } else { None }).unwrap()
    }
    fn image(&self, pod: &str) -> &str {
        self.pods[pod].spec.as_ref().unwrap().containers[0].image.as_deref().unwrap()
    }
}

#[test]
fn a_stateful_set_goes_in_order() {
    let mut sim = Sim::new();
    sim.fate = |_| Fate::Unready;
    sim.world.told(&Event::InitDone, sim.now);
    sim.apply(&stateful("  replicas: 3", "one"));
    assert_eq!(sim.names(), ["web-0"], "the second waits for the first");
    sim.becomes("web-0", "Running", true);
    sim.settle();
    assert_eq!(sim.names(), ["web-0", "web-1"]);
    sim.fate = |_| Fate::Ready;
    sim.becomes("web-1", "Running", true);
    sim.settle();
    assert_eq!(sim.names(), ["web-0", "web-1", "web-2"]);
    let labels = sim.pods["web-2"].metadata.labels.clone().unwrap();
    assert_eq!(
        (labels["apps.kubernetes.io/pod-index"].as_str(), labels["statefulset.kubernetes.io/pod-name"].as_str()),
        ("2", "web-2")
    );
    assert_eq!(sim.pods["web-2"].spec.as_ref().unwrap().subdomain.as_deref(), Some("web"));
    sim.apply(&stateful("  replicas: 1", "one"));
    assert_eq!(sim.names(), ["web-0"]);
    sim.apply(&stateful("  replicas: 3\n  podManagementPolicy: Parallel", "one"));
    assert_eq!(sim.pods.len(), 3);
}

#[test]
fn a_partition_keeps_the_lower_ones_as_they_are() {
    let mut sim = Sim::with(&stateful("  replicas: 3", "one"));
    let partition = "  replicas: 3\n  updateStrategy: {rollingUpdate: {partition: 2}}";
    sim.apply(&stateful(partition, "two"));
    assert_eq!(["web-0", "web-1", "web-2"].map(|pod| sim.image(pod).to_owned()), ["one", "one", "two"]);
    let status = sim.stateful().status.unwrap();
    assert_eq!((status.updated_replicas, status.current_replicas), (Some(1), Some(2)));
    assert_ne!(status.current_revision, status.update_revision);
    // One of the lower ones that is made again is as it was.
    let pod = sim.pods.remove("web-0").unwrap();
    sim.world.seen(&Change { version: 0, verb: Verb::Deleted, object: Arc::new(pod) });
    sim.settle();
    assert_eq!(sim.image("web-0"), "one");
    sim.apply(&stateful("  replicas: 3", "two"));
    assert_eq!(sim.images(), ["two".to_owned()].into());
    let status = sim.stateful().status.unwrap();
    assert_eq!(status.current_revision, status.update_revision);
    assert!(sim.fewest_ready >= 2, "one at a time");
}

#[test]
fn on_delete_waits_for_somebody_to_delete() {
    let spec = "  replicas: 2\n  updateStrategy: {type: OnDelete}";
    let mut sim = Sim::with(&stateful(spec, "one"));
    sim.apply(&stateful(spec, "two"));
    assert_eq!(sim.images(), ["one".to_owned()].into());
    let pod = sim.pods.remove("web-1").unwrap();
    sim.world.seen(&Change { version: 0, verb: Verb::Deleted, object: Arc::new(pod) });
    sim.settle();
    assert_eq!((sim.image("web-0"), sim.image("web-1")), ("one", "two"));
}

#[test]
fn a_stateful_set_rolls_back_and_a_broken_version_can_be_replaced() {
    let mut sim = Sim::with(&stateful("  replicas: 2", "good"));
    sim.fate =
        |pod| if pod.spec.as_ref().unwrap().containers[0].image.as_deref() == Some("bad") { Fate::Unready } else { Fate::Ready };
    sim.apply(&stateful("  replicas: 2", "bad"));
    sim.pass(60);
    assert_eq!((sim.image("web-0"), sim.image("web-1")), ("good", "bad"));
    sim.pass(600);
    assert_eq!(sim.images(), ["good".to_owned()].into());
    assert!(sim.said.iter().any(|s| s.starts_with("RolledBack: ")), "{:?}", sim.said);
    sim.apply(&stateful("  replicas: 2\n  minReadySeconds: 1", "bad"));
    sim.pass(10);
    sim.apply(&stateful("  replicas: 2\n  minReadySeconds: 1", "better"));
    sim.pass(10);
    assert_eq!(sim.images(), ["better".to_owned()].into());
}

#[test]
fn claims_are_made_kept_and_dropped_as_the_set_says() {
    let claims = "  volumeClaimTemplates: [{metadata: {name: data}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}]";
    let mut sim = Sim::with(&stateful(&format!("  replicas: 2\n{claims}"), "one"));
    assert_eq!(sim.claims, ["data-web-0".to_owned(), "data-web-1".to_owned()].into());
    let volume = &sim.pods["web-1"].spec.as_ref().unwrap().volumes.as_ref().unwrap()[0];
    assert_eq!(volume.persistent_volume_claim.as_ref().unwrap().claim_name, "data-web-1");
    sim.apply(&stateful(&format!("  replicas: 1\n{claims}"), "one"));
    assert_eq!(sim.claims.len(), 2, "they stay");
    let retention = "  persistentVolumeClaimRetentionPolicy: {whenScaled: Delete, whenDeleted: Delete}";
    sim.apply(&stateful(&format!("  replicas: 1\n{retention}\n{claims}"), "one"));
    assert_eq!(sim.claims, ["data-web-0".to_owned()].into());
    let key = Workload::StatefulSet(Arc::new(sim.stateful())).key();
    sim.world.told(&Event::DeleteWorkload(key), sim.now);
    sim.settle();
    assert!(sim.claims.is_empty() && sim.pods.is_empty());
}

#[rstest]
#[case::one_after_the_other("", 1, 0)]
#[case::surge("  updateStrategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}", 2, 1)]
fn a_daemon_set_updates_its_pod(#[case] spec: &str, #[case] most: usize, #[case] fewest: usize) {
    let mut sim = Sim::with(&set("DaemonSet", spec, "one"));
    assert_eq!(sim.pods.len(), 1);
    assert!(sim.pods.values().next().unwrap().spec.as_ref().unwrap().tolerations.as_ref().unwrap().len() >= 6);
    (sim.most, sim.fewest_ready) = (0, usize::MAX);
    sim.apply(&set("DaemonSet", spec, "two"));
    assert_eq!((sim.images(), sim.pods.len()), (["two".to_owned()].into(), 1));
    assert_eq!((sim.most, sim.fewest_ready), (most, fewest));
    let status = sim.daemon().status.unwrap();
    assert_eq!(
        (status.desired_number_scheduled, status.number_available, status.updated_number_scheduled),
        (1, Some(1), Some(1))
    );
}

#[test]
fn pods_that_fail_as_a_whole_are_tried_later_and_few_are_kept() {
    let mut sim = Sim::with(&deployment("  replicas: 1", "one"));
    for round in 0..12 {
        let running = |p: &&Pod| p.status.as_ref().unwrap().phase.as_deref() == Some("Running");
        let name =
            sim.pods.values().find(running).and_then(|p| p.metadata.name.clone()).unwrap_or_else(|| panic!("round {round}"));
        sim.ends(&name, 1);
        let failed = sim.pods.values().filter(|p| p.status.as_ref().unwrap().phase.as_deref() == Some("Failed")).count();
        assert!(failed <= 6, "{failed}");
        sim.pass(301);
    }
}

#[rstest]
#[case("Deployment", "  replicas: 2147483647\n  strategy: {rollingUpdate: {maxSurge: 2147483647, maxUnavailable: 2147483647}}")]
#[case("ReplicaSet", "  replicas: 2147483647")]
#[case(
    "StatefulSet",
    "  serviceName: s\n  podManagementPolicy: Parallel\n  replicas: 2147483647\n  ordinals: {start: 2147483647}"
)]
#[case("StatefulSet", "  serviceName: s\n  podManagementPolicy: Parallel\n  replicas: 2147483647")]
fn a_manifest_asks_for_too_much(#[case] kind: &str, #[case] spec: &str) {
    let mut world = World::new("node", counting());
    let mut told = |yaml: &str| {
        let loaded = load(Path::new("w.yaml"), yaml.as_bytes(), &Defaults::default());
        assert_eq!(loaded.errors, []);
        world.told(&Event::ApplyWorkload(loaded.workloads[0].clone()), Timestamp::UNIX_EPOCH);
        world.settle(Timestamp::UNIX_EPOCH).events.len()
    };
    assert!(told(&set(kind, spec, "one")) <= 500);
    assert!(told(&set(kind, spec, "two")) <= 1500);
}

#[test]
fn a_job_asks_for_too_much() {
    let spec = "  completions: 2147483647\n  parallelism: 100000\n  completionMode: Indexed";
    let mut world = World::new("node", counting());
    let loaded = load(Path::new("w.yaml"), job(spec).as_bytes(), &Defaults::default());
    assert_eq!(loaded.errors, []);
    world.told(&Event::ApplyWorkload(loaded.workloads[0].clone()), Timestamp::UNIX_EPOCH);
    assert_eq!(world.settle(Timestamp::UNIX_EPOCH).events.len(), 500);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    /// Whatever is edited while whatever becomes of the pods: in the end there are as many as are wanted, of the last template.
    #[test]
    fn every_history_ends_where_the_last_edit_wants_it(
        kind in proptest::sample::select(vec!["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet"]),
        edits in proptest::collection::vec((0usize..4, 0usize..3, 0u64..40, proptest::bool::ANY), 1..8),
    ) {
        let yaml = |replicas: usize, image: usize| {
            let more = match kind {
                "DaemonSet" => String::new(),
                "StatefulSet" => format!("  serviceName: s\n  replicas: {replicas}"),
                _ => format!("  replicas: {replicas}"),
            };
            set(kind, &more, &format!("v{image}"))
        };
        let mut sim = Sim::new();
        sim.world.told(&Event::InitDone, sim.now);
        let mut last = (0, 0);
        for (replicas, image, seconds, unready) in edits {
            sim.fate = if unready { |_| Fate::Unready } else { |_| Fate::Ready };
            sim.apply(&yaml(replicas, image));
            sim.pass(seconds);
            last = (replicas, image);
        }
        sim.fate = |_| Fate::Ready;
        for _ in 0..40 {
            let names: Vec<String> = sim.pods.keys().cloned().collect();
            for name in names {
                if sim.pods.contains_key(&name) && sim.ready() < sim.pods.len() {
                    sim.becomes(&name, "Running", true);
                    sim.settle();
                }
            }
            sim.pass(1);
        }
        let wanted = if kind == "DaemonSet" { 1 } else { last.0 };
        proptest::prop_assert_eq!(sim.pods.len(), wanted);
        if kind != "ReplicaSet" && wanted > 0 {
            proptest::prop_assert_eq!(sim.images(), BTreeSet::from([format!("v{}", last.1)]));
        }
    }
}
