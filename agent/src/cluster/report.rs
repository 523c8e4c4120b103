//! What has become of the cluster's pods, told to the API server: each pod's newest status, when it has changed, and its deletion once
//! nothing is left of it. Of one pod one request is on its way at a time, so that nothing older overtakes what is newer. What somebody else
//! writes over it there is put back, as the kubelet's status manager does, but no more often than that does.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodStatus};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;

use super::{Cluster, Failure, answer, delete_at_once};
use crate::model::PodUid;
use crate::pod::Node;
use crate::pod::status::is_others;
use crate::pod::store::{Change, Verb};

/// Requests that are on their way at the same time.
const AT_ONCE: usize = 16;

/// Between two repairs of a pod's state at least: whoever writes over it again and again has the last word in between. The kubelet looks as
/// often.
pub(super) const REPAIR: Duration = Duration::from_secs(10);

/// How long a pod may be about to run before that is told. Most run sooner: then the API server hears of it once, and what would keep it
/// busy for some ten milliseconds is not in the way of what the pod needs of it.
const BEGINS_WITHIN: Duration = Duration::from_millis(50);

/// Follows the pods' states; never returns.
pub(super) async fn follow(cluster: &Arc<Cluster>, node: &Node) {
    let mut report = Report {
        cluster: cluster.clone(),
        news: HashMap::new(),
        sent: HashMap::new(),
        busy: HashSet::new(),
        requests: FuturesUnordered::new(),
        later: FuturesUnordered::new(),
    };
    let mut heard = cluster.heard.subscribe();
    cluster.member().await;
    let mut changes = report.look(node);
    loop {
        report.send();
        let due = report.next_due();
        tokio::select! {
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            uid = heard.recv() => match uid {
                Ok(uid) => report.compare(&uid, node),
                Err(RecvError::Lagged(_)) => {
                    for uid in report.sent.keys().cloned().collect::<Vec<_>>() {
                        report.compare(&uid, node);
                    }
                }
                Err(RecvError::Closed) => return,
            },
            Some(uid) = report.later.next(), if !report.later.is_empty() => {
                if let Some(sent) = report.sent.get_mut(&uid) {
                    sent.waits = false;
                }
                report.compare(&uid, node);
            }
            change = changes.recv() => match change {
                Ok(change) => report.changed(&change),
                Err(RecvError::Lagged(_)) => changes = report.look(node),
                Err(RecvError::Closed) => return,
            },
            Some(done) = report.requests.next(), if !report.requests.is_empty() => {
                let uid = done.uid.clone();
                report.done(done);
                // What was heard meanwhile.
                report.compare(&uid, node);
            }
        }
    }
}

/// What a pod has come to and the API server doesn't know.
#[derive(Debug, Clone)]
struct News {
    pod: Arc<Pod>,
    gone: bool,
    failures: u32,
    /// Not before.
    due: Instant,
}

impl News {
    fn of(pod: Arc<Pod>) -> Self {
        Self { pod, gone: false, failures: 0, due: Instant::now() }
    }

    /// With what was to be told of the pod before.
    fn after(self, untold: Option<&News>) -> Self {
        let phase = self.pod.status.as_ref().and_then(|status| status.phase.as_deref());
        if self.gone || phase != Some("Pending") {
            return self;
        }
        Self { due: untold.map_or(self.due + BEGINS_WITHIN, |untold| untold.due), ..self }
    }
}

/// What came of a request.
struct Done {
    uid: PodUid,
    news: News,
    /// The pod as the API server has it then, if it was told something.
    result: Result<Option<There>, Failure>,
}

/// What the API server was told last of a pod.
struct Sent {
    status: PodStatus,
    /// What it made of it; none: it is to be told again.
    there: Option<There>,
    /// When somebody else's word was last written over.
    repaired: Option<Instant>,
    /// A later comparison is coming.
    waits: bool,
}

/// A pod's state as the API server has it.
pub(super) struct There {
    version: Option<u64>,
    status: PodStatus,
}

impl There {
    pub(super) fn of(pod: &Pod) -> Self {
        let version = pod.metadata.resource_version.as_deref().and_then(|version| version.parse().ok());
        let status = pod.status.clone().unwrap_or_default();
        // The scheduler's and the controllers'.
        let status = PodStatus {
            nominated_node_name: None,
            resource_claim_statuses: None,
            extended_resource_claim_status: None,
            ..status
        };
        Self { version, status }
    }

    /// Whether somebody else has changed what is ours of a pod since: of what the API server said before, nothing follows. It may have made
    /// something else of our words, which is then as good as ours.
    pub(super) fn is_written_over(&self, known: &Pod) -> bool {
        let known = Self::of(known);
        known.version > self.version && !same(&self.status, &known.status)
    }
}

struct Report {
    cluster: Arc<Cluster>,
    news: HashMap<PodUid, News>,
    sent: HashMap<PodUid, Sent>,
    busy: HashSet<PodUid>,
    requests: FuturesUnordered<BoxFuture<'static, Done>>,
    /// Pods that are compared once more, since they were repaired a moment ago.
    later: FuturesUnordered<BoxFuture<'static, PodUid>>,
}

impl Report {
    fn look(&mut self, node: &Node) -> tokio::sync::broadcast::Receiver<Change<Pod>> {
        let snapshot = node.store.pods();
        for pod in snapshot.objects {
            self.hear(pod, false);
        }
        snapshot.changes
    }

    fn changed(&mut self, change: &Change<Pod>) {
        self.hear(change.object.clone(), matches!(change.verb, Verb::Deleted));
    }

    fn hear(&mut self, pod: Arc<Pod>, gone: bool) {
        let uid = PodUid::new(pod.metadata.uid.as_deref().unwrap_or_default());
        if self.cluster.pod(&uid).is_none() {
            // Of a file, or gone from the API server.
            self.sent.remove(&uid);
            return;
        }
        let news = News { gone, ..News::of(pod) }.after(self.news.get(&uid));
        self.news.insert(uid, news);
    }

    /// Whether the API server has a pod's state as it was told; else it is told again.
    fn compare(&mut self, uid: &PodUid, node: &Node) {
        if self.busy.contains(uid) || self.news.contains_key(uid) {
            return;
        }
        let (Some(sent), Some(known)) = (self.sent.get_mut(uid), self.cluster.pod(uid)) else { return };
        if sent.waits || !sent.there.as_ref().is_some_and(|there| there.is_written_over(&known)) {
            return;
        }
        let Some(pod) = node.store.pod(uid) else { return };
        let now = Instant::now();
        if let Some(next) = sent.repaired.map(|at| at + REPAIR).filter(|next| *next > now) {
            sent.waits = true;
            let uid = uid.clone();
            return self.later.push(Box::pin(async move {
                tokio::time::sleep_until(next).await;
                uid
            }));
        }
        tracing::info!(
            pod = known.metadata.name,
            "somebody else has changed the pod's state at the API server; it is told again"
        );
        (sent.repaired, sent.there) = (Some(now), None);
        self.news.insert(uid.clone(), News::of(pod));
    }

    /// When the next is to be told, as soon as there is room for its request.
    fn next_due(&self) -> Option<Instant> {
        let idle = self.news.iter().filter(|(uid, _)| !self.busy.contains(*uid));
        idle.map(|(_, news)| news.due).min().filter(|_| self.busy.len() < AT_ONCE)
    }

    fn send(&mut self) {
        let now = Instant::now();
        while self.busy.len() < AT_ONCE {
            let next = self.news.iter().find(|(uid, news)| news.due <= now && !self.busy.contains(*uid));
            let Some((uid, _)) = next else { return };
            let uid = uid.clone();
            let Some(news) = self.news.remove(&uid) else { return };
            let Some(known) = self.cluster.pod(&uid) else { continue };
            let status = news.pod.status.clone().unwrap_or_default();
            let sent = self.sent.get(&uid).filter(|sent| sent.there.is_some()).map(|sent| &sent.status);
            let told = sent.or(known.status.as_ref());
            let unchanged = told.is_some_and(|told| same(told, &status));
            if unchanged && !news.gone {
                let there = || Sent { status, there: Some(There::of(&known)), repaired: None, waits: false };
                self.sent.entry(uid).or_insert_with(there);
                continue;
            }
            let there = known.metadata.uid.as_deref().unwrap_or_default();
            let patch = (!unchanged).then(|| patch(there, known.status.as_ref(), sent, &status));
            self.busy.insert(uid.clone());
            self.requests.push(Box::pin(tell(self.cluster.clone(), uid, news, patch)));
        }
    }

    fn done(&mut self, Done { uid, mut news, result }: Done) {
        self.busy.remove(&uid);
        match result {
            Ok(_) if news.gone => {
                self.sent.remove(&uid);
            }
            Ok(there) => {
                let before = self.sent.remove(&uid);
                let (repaired, waits) = before.map_or((None, false), |sent| (sent.repaired, sent.waits));
                self.sent.insert(uid, Sent { status: news.pod.status.clone().unwrap_or_default(), there, repaired, waits });
            }
            // The pod of this UID is gone: nobody wants to know any more.
            Err(failure) if failure.code == 404 || self.cluster.pod(&uid).is_none() => {
                tracing::debug!(%uid, %failure, "the pod is gone from the API server");
            }
            Err(failure) => {
                tracing::warn!(pod = news.pod.metadata.name, %failure, "the pod's state could not be told to the API server; it is tried again");
                news.failures = news.failures.saturating_add(1);
                self.news.entry(uid).or_insert(news);
            }
        }
    }
}

async fn tell(cluster: Arc<Cluster>, uid: PodUid, news: News, patch: Option<Value>) -> Done {
    if news.failures > 0 {
        cluster.pause(news.failures).await;
    }
    let meta = &news.pod.metadata;
    let (namespace, name) = (meta.namespace.as_deref().unwrap_or("default"), meta.name.as_deref().unwrap_or_default());
    let pods: Api<Pod> = Api::namespaced(cluster.client(), namespace);
    let mut result = Ok(None);
    if let Some(patch) = patch {
        result = answer(pods.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)))
            .await
            .map(|pod| Some(There::of(&pod)));
    }
    // Only what is asked to go is taken away: a pod that was evicted is there until somebody deletes it.
    let asked = cluster.pod(&uid).filter(|pod| pod.metadata.deletion_timestamp.is_some());
    if let Some(known) = asked.filter(|_| news.gone && result.is_ok()) {
        result = delete_at_once(&pods, name, known.metadata.uid.clone()).await.map(|()| None);
    }
    Done { uid, news, result }
}

/// Whether the API server knows all of `new`, as it is written: there, times have no parts of seconds. What others tell of a pod is theirs.
pub(super) fn same(told: &PodStatus, new: &PodStatus) -> bool {
    let ours = |status: &PodStatus| {
        let mut status = status.clone();
        if let Some(conditions) = &mut status.conditions {
            conditions.retain(|c| !is_others(&c.type_));
            conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
            conditions.iter_mut().for_each(|c| {
                c.last_transition_time = None;
                c.last_probe_time = None;
            });
        }
        json!(status)
    };
    ours(told) == ours(new)
}

/// A strategic merge patch from `known` (as the API server told it) and `sent` (as we told it) to `new`.
pub(super) fn patch(uid: &str, known: Option<&PodStatus>, sent: Option<&PodStatus>, new: &PodStatus) -> Value {
    let mut status = json!(new);
    let old = || known.into_iter().chain(sent);
    if let Some(fields) = status.as_object_mut() {
        // What was said once and isn't true any more.
        for name in old().filter_map(|old| json!(old).as_object().map(|o| o.keys().cloned().collect::<Vec<_>>())).flatten() {
            if OURS.contains(&name.as_str()) {
                fields.entry(name).or_insert(Value::Null);
            }
        }
        for name in ["podIPs", "hostIPs"] {
            if let Some(list) = fields.get_mut(name).and_then(Value::as_array_mut) {
                list.insert(0, json!({"$patch": "replace"}));
            }
        }
        if let Some(conditions) = fields.get_mut("conditions").and_then(Value::as_array_mut) {
            conditions.retain(|c| !c["type"].as_str().is_some_and(is_others));
            conditions.iter_mut().for_each(|new| take_back(new, old().flat_map(|old| old.conditions.iter().flatten())));
            let now: Vec<Value> = conditions.iter().map(|c| c["type"].clone()).collect();
            let before = old().flat_map(|old| old.conditions.iter().flatten()).map(|c| c.type_.as_str());
            let mut ended: Vec<&str> = before.filter(|type_| !is_others(type_) && !now.contains(&json!(type_))).collect();
            ended.dedup();
            conditions.extend(ended.into_iter().map(|type_| json!({"$patch": "delete", "type": type_})));
        }
    }
    json!({"metadata": {"uid": uid}, "status": status})
}

/// What was said of a condition and is not said any more: a patch leaves it there unless it is told.
fn take_back<'a>(new: &mut Value, old: impl Iterator<Item = &'a PodCondition>) {
    let type_ = new["type"].clone();
    let Some(fields) = new.as_object_mut() else { return };
    for old in old.filter(|old| old.type_ == type_) {
        for (name, said) in [("reason", &old.reason), ("message", &old.message)] {
            if said.as_ref().is_some_and(|said| !said.is_empty()) {
                fields.entry(name).or_insert(Value::Null);
            }
        }
    }
}

/// Fields of a status that can end.
const OURS: [&str; 7] =
    ["message", "reason", "podIP", "podIPs", "initContainerStatuses", "ephemeralContainerStatuses", "resources"];

#[cfg(test)]
mod tests {
    use super::*;

    fn status(json: Value) -> PodStatus {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn what_begins_is_told_a_moment_later_and_all_else_at_once() {
        let news = |phase: &str| News::of(Arc::new(Pod { status: Some(status(json!({"phase": phase}))), ..Pod::default() }));
        let first = news("Pending").after(None);
        assert!(first.due > Instant::now());
        let due = first.due;
        assert_eq!(news("Pending").after(Some(&first)).due, due, "whatever else becomes of it meanwhile");
        assert!(news("Running").after(Some(&first)).due <= Instant::now());
        let gone = News { gone: true, ..news("Pending") }.after(Some(&first));
        assert!(gone.due <= Instant::now());
    }

    #[test]
    fn a_patch_replaces_what_is_ours_and_leaves_what_is_others() {
        let known = status(json!({
            "phase": "Pending", "message": "waits", "podIPs": [{"ip": "10.0.0.1"}], "nominatedNodeName": "n",
            "conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "unready"},
                {"type": "PodResizePending", "status": "True"}, {"type": "example.com/gate", "status": "True"}],
        }));
        let new = status(json!({
            "phase": "Running", "podIPs": [{"ip": "10.0.0.2"}],
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "example.com/gate", "status": "False"}],
        }));
        let patch = patch("u", Some(&known), None, &new);
        assert_eq!(
            patch,
            json!({"metadata": {"uid": "u"}, "status": {
                "phase": "Running", "message": null, "podIPs": [{"$patch": "replace"}, {"ip": "10.0.0.2"}],
                "conditions": [{"type": "Ready", "status": "True", "reason": null, "message": null},
                    {"$patch": "delete", "type": "PodResizePending"}],
            }})
        );
    }

    #[test]
    fn only_what_is_ours_and_newer_is_written_over() {
        let pod = |version: &str, status: Value| -> Pod {
            serde_json::from_value(json!({"metadata": {"resourceVersion": version}, "status": status})).unwrap()
        };
        let ready = json!([{"type": "Ready", "status": "True"}]);
        let there = pod("9", json!({"phase": "Running", "conditions": ready}));
        let now = |version: &str, status: Value| There::of(&there).is_written_over(&pod(version, status));
        assert!(!now("10", json!({"phase": "Running", "conditions": ready})));
        assert!(now("10", json!({"phase": "Running", "conditions": []})), "as numbers, not as words");
        assert!(now("10", json!({"phase": "Failed", "conditions": ready})));
        assert!(!now("8", json!({"phase": "Pending"})), "the watch is behind");
        let others = json!([{"type": "example.com/gate", "status": "True"}, {"type": "Ready", "status": "True"}]);
        assert!(!now("10", json!({"phase": "Running", "conditions": others, "nominatedNodeName": "n"})));
    }

    #[test]
    fn what_others_tell_and_when_it_changed_is_no_news() {
        let told = status(json!({"phase": "Running", "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}, {"type": "example.com/gate", "status": "True"}]}));
        let mut new = status(json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}));
        assert!(same(&told, &new));
        new.phase = Some("Succeeded".into());
        assert!(!same(&told, &new));
    }
}
