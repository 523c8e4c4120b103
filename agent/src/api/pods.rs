//! Pods as the API serves them: fields, and the table's cells by the API server's own rules.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::ApiError;
use super::human;
use super::list::{Changes, Served};
use super::table::{Column, column, wide};
use crate::pod::node::Node;
use crate::pod::store::{Change, Expired, Snapshot};

impl Served for Pod {
    const RESOURCE: &'static str = "pods";
    const KIND: &'static str = "Pod";
    const API_VERSION: &'static str = "v1";
    const COLUMNS: &'static [Column] = &[
        column("Name"),
        column("Ready"),
        column("Status"),
        column("Restarts"),
        column("Age"),
        wide("IP"),
        wide("Node"),
        wide("Nominated Node"),
        wide("Readiness Gates"),
    ];
    const FIELDS: &'static [&'static str] = &[
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.podIPs",
        "status.nominatedNodeName",
    ];

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn field(&self, name: &str) -> String {
        let spec = self.spec.as_ref();
        let status = self.status.as_ref();
        let found = match name {
            "spec.nodeName" => spec.and_then(|s| s.node_name.clone()),
            "spec.restartPolicy" => spec.and_then(|s| s.restart_policy.clone()),
            "spec.schedulerName" => spec.and_then(|s| s.scheduler_name.clone()),
            "spec.serviceAccountName" => spec.and_then(|s| s.service_account_name.clone()),
            "spec.hostNetwork" => Some(spec.and_then(|s| s.host_network).unwrap_or(false).to_string()),
            "status.phase" => status.and_then(|s| s.phase.clone()),
            "status.podIP" | "status.podIPs" => status.and_then(|s| s.pod_ip.clone()),
            "status.nominatedNodeName" => status.and_then(|s| s.nominated_node_name.clone()),
            _ => None,
        };
        found.unwrap_or_default()
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let summary = summarize(self, now);
        let spec = self.spec.as_ref();
        let status = self.status.as_ref();
        let or_none = |text: Option<String>| text.filter(|t| !t.is_empty()).unwrap_or_else(|| "<none>".to_owned());
        let created = self.metadata.creation_timestamp.as_ref().map(|t| t.0);
        vec![
            json!(self.metadata.name),
            json!(format!("{}/{}", summary.ready, summary.total)),
            json!(summary.reason),
            json!(summary.restarts),
            json!(human::since(created, now)),
            json!(or_none(status.and_then(|s| s.pod_ip.clone()))),
            json!(or_none(spec.and_then(|s| s.node_name.clone()))),
            json!(or_none(status.and_then(|s| s.nominated_node_name.clone()))),
            json!(gates(self)),
        ]
    }

    async fn snapshot(node: &dyn Node) -> Result<Snapshot<Self>, ApiError> {
        Ok(node.store().pods())
    }

    fn since(node: &dyn Node, version: u64) -> Result<(Vec<Change<Self>>, Changes<Self>), Expired> {
        node.store().pods_since(version)
    }
}

/// What a table tells of a pod.
#[derive(Debug, PartialEq, Eq)]
pub struct Summary {
    /// Ready containers, sidecars counted.
    pub ready: usize,
    /// Containers and sidecars.
    pub total: usize,
    /// The most telling word for its state.
    pub reason: String,
    /// How many, and when the last.
    pub restarts: String,
}

/// Finds the word: what an init container hangs at, else what a container hangs at or ended with, else the phase.
pub fn summarize(pod: &Pod, now: Timestamp) -> Summary {
    static NO_STATUS: std::sync::LazyLock<PodStatus> = std::sync::LazyLock::new(PodStatus::default);
    let status = pod.status.as_ref().unwrap_or(&NO_STATUS);
    let inits = status.init_container_statuses.as_deref().unwrap_or_default();
    let mains = status.container_statuses.as_deref().unwrap_or_default();
    let sidecar = |status: &ContainerStatus| is_sidecar(pod, &status.name);
    let sidecars = inits.iter().filter(|s| sidecar(s));

    let mut counted: Vec<&ContainerStatus> = mains.iter().chain(sidecars.clone()).collect();
    let mut reason = status.reason.clone().or_else(|| status.phase.clone()).unwrap_or_else(|| "Pending".to_owned());
    if condition(status, "PodScheduled").is_some_and(|c| c.1 == Some("SchedulingGated")) {
        "SchedulingGated".clone_into(&mut reason);
    }
    match initializing(pod, inits) {
        Some(word) if condition(status, "Initialized").is_none_or(|c| c.0 != "True") => {
            reason = word;
            // While they run, the restarts that matter are the init containers' own.
            counted = inits.iter().collect();
        }
        _ => {
            let mut words = mains.iter().filter_map(|s| s.state.as_ref().and_then(container_word));
            reason = words.next().unwrap_or(reason);
            let running = mains.iter().any(|s| s.ready && s.state.as_ref().is_some_and(|state| state.running.is_some()));
            if reason == "Completed" && running {
                let ready = condition(status, "Ready").is_some_and(|c| c.0 == "True");
                (if ready { "Running" } else { "NotReady" }).clone_into(&mut reason);
            }
        }
    }
    if pod.metadata.deletion_timestamp.is_some() {
        let ended = matches!(status.phase.as_deref(), Some("Failed" | "Succeeded"));
        if status.reason.as_deref() == Some("NodeLost") {
            "Unknown".clone_into(&mut reason);
        } else if !ended {
            "Terminating".clone_into(&mut reason);
        }
    }
    let runs = |s: &&ContainerStatus| s.ready && s.state.as_ref().is_some_and(|state| state.running.is_some());
    let spec = pod.spec.as_ref();
    let all_inits = spec.and_then(|s| s.init_containers.as_deref()).unwrap_or_default();
    Summary {
        ready: mains.iter().chain(sidecars).filter(runs).count(),
        total: spec.map_or(0, |s| s.containers.len()) + all_inits.iter().filter(|c| is_sidecar(pod, &c.name)).count(),
        reason,
        restarts: restarts(&counted, now),
    }
}

/// `Init:1/3`, `Init:ExitCode:1`, `Init:CrashLoopBackOff`…: of the first init container that isn't done.
fn initializing(pod: &Pod, inits: &[ContainerStatus]) -> Option<String> {
    let total = pod.spec.as_ref().and_then(|s| s.init_containers.as_ref()).map_or(0, Vec::len);
    let done = |s: &ContainerStatus| {
        let succeeded = s.state.as_ref().and_then(|st| st.terminated.as_ref()).is_some_and(|t| t.exit_code == 0);
        succeeded || (is_sidecar(pod, &s.name) && s.started == Some(true))
    };
    let (index, status) = inits.iter().enumerate().find(|(_, s)| !done(s))?;
    let state = status.state.as_ref();
    let terminated = state.and_then(|s| s.terminated.as_ref());
    let waiting = state.and_then(|s| s.waiting.as_ref()).and_then(|w| w.reason.as_deref());
    Some(match (terminated, waiting) {
        (Some(t), _) => format!("Init:{}", ended_word(t.reason.as_deref(), t.signal, t.exit_code)),
        (None, Some(reason)) if reason != "PodInitializing" && !reason.is_empty() => format!("Init:{reason}"),
        _ => format!("Init:{index}/{total}"),
    })
}

fn container_word(state: &ContainerState) -> Option<String> {
    let waiting = state.waiting.as_ref().and_then(|w| w.reason.clone()).filter(|r| !r.is_empty());
    waiting.or_else(|| state.terminated.as_ref().map(|t| ended_word(t.reason.as_deref(), t.signal, t.exit_code)))
}

fn ended_word(reason: Option<&str>, signal: Option<i32>, code: i32) -> String {
    match (reason.filter(|r| !r.is_empty()), signal.filter(|s| *s != 0)) {
        (Some(reason), _) => reason.to_owned(),
        (None, Some(signal)) => format!("Signal:{signal}"),
        (None, None) => format!("ExitCode:{code}"),
    }
}

fn restarts(counted: &[&ContainerStatus], now: Timestamp) -> String {
    let count: i32 = counted.iter().map(|s| s.restart_count).sum();
    let finished = |s: &&ContainerStatus| s.last_state.as_ref()?.terminated.as_ref()?.finished_at.as_ref().map(|t| t.0);
    match counted.iter().filter_map(finished).max() {
        Some(last) if count > 0 => format!("{count} ({} ago)", human::since(Some(last), now)),
        _ => count.to_string(),
    }
}

fn is_sidecar(pod: &Pod, name: &str) -> bool {
    let inits = pod.spec.as_ref().and_then(|s| s.init_containers.as_deref()).unwrap_or_default();
    inits.iter().any(|c| c.name == name && c.restart_policy.as_deref() == Some("Always"))
}

/// Status and reason of a condition.
fn condition<'a>(status: &'a PodStatus, kind: &str) -> Option<(&'a str, Option<&'a str>)> {
    let found = status.conditions.iter().flatten().find(|c| c.type_ == kind)?;
    Some((&found.status, found.reason.as_deref()))
}

fn gates(pod: &Pod) -> String {
    let gates = pod.spec.as_ref().and_then(|s| s.readiness_gates.as_deref()).unwrap_or_default();
    if gates.is_empty() {
        return "<none>".to_owned();
    }
    let passed = |kind: &str| pod.status.as_ref().and_then(|s| condition(s, kind)).is_some_and(|c| c.0 == "True");
    format!("{}/{}", gates.iter().filter(|g| passed(&g.condition_type)).count(), gates.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const NOW: &str = "2026-01-01T01:00:00Z";

    fn pod(status: &Value) -> Pod {
        let spec = json!({
            "initContainers": [{ "name": "first" }, { "name": "proxy", "restartPolicy": "Always" }],
            "containers": [{ "name": "app" }, { "name": "log" }],
        });
        serde_json::from_value(json!({ "metadata": { "name": "web" }, "spec": spec, "status": status })).unwrap()
    }

    fn running(name: &str) -> Value {
        json!({ "name": name, "image": "", "imageID": "", "ready": true, "restartCount": 0, "started": true, "state": { "running": {} } })
    }

    fn state(name: &str, state: &Value) -> Value {
        json!({ "name": name, "image": "", "imageID": "", "ready": false, "restartCount": 2, "state": state,
                "lastState": { "terminated": { "exitCode": 1, "finishedAt": "2026-01-01T00:55:00Z" } } })
    }

    fn done(name: &str) -> Value {
        json!({ "name": name, "image": "", "imageID": "", "ready": true, "restartCount": 0,
                "state": { "terminated": { "exitCode": 0, "reason": "Completed" } } })
    }

    #[rstest]
    #[case::fresh(json!({ "phase": "Pending" }), "0/3", "Pending", "0")]
    #[case::no_status(json!({}), "0/3", "Pending", "0")]
    #[case::running(
        json!({ "phase": "Running", "initContainerStatuses": [done("first"), running("proxy")], "containerStatuses": [running("app"), running("log")] }),
        "3/3", "Running", "0")]
    #[case::init(
        json!({ "phase": "Pending", "initContainerStatuses": [state("first", &json!({ "waiting": { "reason": "PodInitializing" } }))] }),
        "0/3", "Init:0/2", "2 (5m ago)")]
    #[case::second_init(
        json!({ "phase": "Pending", "initContainerStatuses": [done("first"), state("proxy", &json!({ "running": {} }))] }),
        "0/3", "Init:1/2", "2 (5m ago)")]
    #[case::init_failed(
        json!({ "phase": "Pending", "initContainerStatuses": [state("first", &json!({ "terminated": { "exitCode": 3 } }))] }),
        "0/3", "Init:ExitCode:3", "2 (5m ago)")]
    #[case::init_image(
        json!({ "phase": "Pending", "initContainerStatuses": [state("first", &json!({ "waiting": { "reason": "ErrImagePull" } }))] }),
        "0/3", "Init:ErrImagePull", "2 (5m ago)")]
    #[case::crash_loop(
        json!({ "phase": "Running", "initContainerStatuses": [done("first"), running("proxy")],
                "containerStatuses": [state("app", &json!({ "waiting": { "reason": "CrashLoopBackOff" } })), running("log")] }),
        "2/3", "CrashLoopBackOff", "2 (5m ago)")]
    #[case::signal(
        json!({ "phase": "Failed", "containerStatuses": [state("app", &json!({ "terminated": { "exitCode": 137, "signal": 9 } }))] }),
        "0/3", "Signal:9", "2 (5m ago)")]
    #[case::one_completed(
        json!({ "phase": "Running", "conditions": [{ "type": "Ready", "status": "False" }],
                "containerStatuses": [done("app"), running("log")] }),
        "1/3", "NotReady", "0")]
    #[case::evicted(json!({ "phase": "Failed", "reason": "Evicted" }), "0/3", "Evicted", "0")]
    #[case::gated(
        json!({ "phase": "Pending", "conditions": [{ "type": "PodScheduled", "status": "False", "reason": "SchedulingGated" }] }),
        "0/3", "SchedulingGated", "0")]
    fn cells(#[case] status: Value, #[case] ready: &str, #[case] reason: &str, #[case] restarts: &str) {
        let cells = pod(&status).cells(NOW.parse().unwrap());
        assert_eq!(cells[1..4], [json!(ready), json!(reason), json!(restarts)]);
    }

    #[rstest]
    #[case("Running", "Terminating")]
    #[case("Succeeded", "Succeeded")]
    fn ending(#[case] phase: &str, #[case] reason: &str) {
        let mut pod = pod(&json!({ "phase": phase }));
        pod.metadata.deletion_timestamp = Some(serde_json::from_value(json!(NOW)).unwrap());
        assert_eq!(summarize(&pod, NOW.parse().unwrap()).reason, reason);
    }
}
