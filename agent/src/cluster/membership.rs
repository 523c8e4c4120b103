//! The Node object and its lease. The status is told when it has changed, else every five minutes; the lease says every ten seconds that
//! the node is alive. <https://kubernetes.io/docs/reference/node/node-status/>

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{Node, NodeCondition, NodeSpec, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::watcher::watch_object;
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{Cluster, Failure, NodeNow, Standing, answer, pause, suspected};
use crate::pod::Node as Agent;
use crate::pod::recorder::Level;

/// The kubelet's: a quarter of the lease's duration.
const RENEW_EVERY: Duration = Duration::from_secs(10);
/// Seconds after which the node counts as lost.
const LEASE_SECONDS: i32 = 40;
/// A status that hasn't changed is told this often.
const TELL_EVERY: Duration = Duration::from_secs(300);
/// Seconds in which a cluster that gives nodes ranges has given one.
const NEW: i64 = 60;
/// Where leases of nodes are.
const LEASES: &str = "kube-node-lease";
/// Which machine a Node is of, where two have the same name.
const INSTANCE: &str = "nodeagent.dev/instance";
/// Volumes are attached to this node by the controller, as to every kubelet's.
const ATTACHED: &str = "volumes.kubernetes.io/controller-managed-attach-detach";

/// Registers the node, then keeps it; never returns.
pub(super) async fn keep(cluster: &Cluster, node: &Agent, object: &NodeNow) {
    let mut told = join(cluster, node, object).await;
    let mut every = interval(RENEW_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut going_down = node.admission.going_down();
    loop {
        let renews = tokio::select! {
            _ = every.tick() => true,
            // Told at once: the scheduler sends pods here as long as it doesn't know.
            Ok(()) = going_down.changed() => false,
        };
        if !told.keep(cluster, node, object, renews).await && is_deleted(cluster).await {
            // It comes back, with the pods that it had: a kubelet's does when that restarts.
            tracing::warn!(node = cluster.node_name, "the Node object was deleted; it is registered again");
            told = join(cluster, node, object).await;
            told.keep(cluster, node, object, true).await;
        }
    }
}

/// Registers the node; nothing has been told of it.
async fn join(cluster: &Cluster, node: &Agent, object: &NodeNow) -> Told {
    let registered = claim(cluster, node, object).await;
    tell_reboot(node, &registered, &object());
    cluster.registered(&registered);
    see(cluster, node, &registered);
    cluster.stand(Standing::Member);
    tracing::info!(node = cluster.node_name, "registered with the API server");
    Told { status: None, at: Instant::now(), lease: None }
}

/// Whether the cluster has no such Node any more, or another one of the name.
async fn is_deleted(cluster: &Cluster) -> bool {
    let nodes: Api<Node> = Api::all(cluster.client());
    match answer(nodes.get_opt(&cluster.node_name)).await {
        Ok(there) => there.is_none_or(|there| there.metadata.uid.is_some_and(|uid| uid != cluster.node_uid())),
        Err(_) => false,
    }
}

/// The ranges of a node that is new to the cluster, which gives them within moments. A Node without a status is enough for that.
pub(super) async fn pod_cidrs(cluster: &Cluster, labels: BTreeMap<String, String>, spec: NodeSpec) -> Vec<String> {
    let metadata = ObjectMeta { name: Some(cluster.node_name.clone()), labels: Some(labels), ..ObjectMeta::default() };
    let node = Node { metadata, spec: Some(spec), status: None };
    let Ok(Claim::Ours(registered)) = register(cluster, &node, &mut None).await else { return Vec::new() };
    let nodes: Api<Node> = Api::all(cluster.client());
    let created = registered.metadata.creation_timestamp.clone().map(|time| time.0);
    let mut there = *registered;
    loop {
        let given = there.spec.take().and_then(|spec| spec.pod_cidrs).unwrap_or_default();
        let new = created.is_some_and(|created| Timestamp::now().duration_since(created).as_secs() < NEW);
        if !given.is_empty() || !new {
            return given;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        match answer(nodes.get(&cluster.node_name)).await {
            Ok(node) => there = node,
            Err(_) => return Vec::new(),
        }
    }
}

/// Follows the Node object, to which others give ranges, labels and taints; never returns.
pub(super) async fn follow(cluster: &Cluster, agent: &Agent) {
    cluster.member().await;
    let nodes: Api<Node> = Api::all(cluster.client());
    let mut failures = 0;
    loop {
        let mut stream = watch_object(nodes.clone(), &cluster.node_name).boxed();
        while let Some(Ok(there)) = stream.next().await {
            failures = 0;
            if let Some(there) = there {
                see(cluster, agent, &there);
            }
        }
        failures += 1;
        tokio::time::sleep(pause(failures)).await;
    }
}

/// Looks at the Node object now: what is followed may come later than what was done because of it.
pub(super) async fn look(cluster: &Cluster, agent: &Agent) {
    let nodes: Api<Node> = Api::all(cluster.client());
    match answer(nodes.get(&cluster.node_name)).await {
        Ok(there) => see(cluster, agent, &there),
        Err(failure) => tracing::debug!(node = cluster.node_name, %failure, "the Node object could not be looked at"),
    }
}

fn see(cluster: &Cluster, agent: &Agent, there: &Node) {
    agent.admission.node_is(there);
    let given = there.spec.as_ref().and_then(|spec| spec.pod_cidrs.clone()).unwrap_or_default();
    cluster.ranges.send_if_modified(|now| std::mem::replace(now, given.clone()) != given);
}

/// Tries until the node is this machine.
async fn claim(cluster: &Cluster, node: &Agent, object: &NodeNow) -> Node {
    let (mut failures, mut rival, mut said) = (0, None, false);
    loop {
        match register(cluster, &object(), &mut rival).await {
            Ok(Claim::Ours(node)) => return *node,
            Ok(Claim::Taken(message)) => {
                failures = 0;
                cluster.stand(Standing::Taken);
                if !std::mem::replace(&mut said, true) {
                    tracing::error!(node = cluster.node_name, "{message}");
                    node.recorder.node(Level::Warning, "NodeNameTaken", &message);
                }
                tokio::time::sleep(RENEW_EVERY).await;
            }
            Err(failure) => {
                failures += 1;
                cluster.stand(Standing::Away);
                let failure = suspected(&failure, &cluster.clock);
                tracing::warn!(
                    node = cluster.node_name,
                    failure,
                    "the node could not be registered with the API server; it is tried again"
                );
                tokio::time::sleep(pause(failures)).await;
            }
        }
    }
}

/// Whose the name is.
enum Claim {
    Ours(Box<Node>),
    Taken(String),
}

/// Another machine of this name: its lease when it was last seen to be another, and when that was. Its clock and ours may differ: what
/// counts is that the lease changes.
type Rival = Option<(Option<MicroTime>, Instant)>;

/// Creates the Node object, or brings what of it is ours up to date; unless it is another machine's that is alive.
async fn register(cluster: &Cluster, node: &Node, rival: &mut Rival) -> Result<Claim, Failure> {
    let nodes: Api<Node> = Api::all(cluster.client());
    let mut new = node.clone();
    new.metadata.uid = None;
    new.metadata.creation_timestamp = None;
    let annotations = new.metadata.annotations.get_or_insert_default();
    annotations.insert(INSTANCE.into(), cluster.instance.clone());
    annotations.insert(ATTACHED.into(), "true".into());
    // The ranges are the cluster's to give.
    if let Some(spec) = &mut new.spec {
        spec.pod_cidr = None;
        spec.pod_cidrs = None;
    }
    match answer(nodes.create(&PostParams::default(), &new)).await {
        Err(failure) if failure.code == 409 => {}
        created => return Ok(Claim::Ours(Box::new(created?))),
    }
    let there = answer(nodes.get(&cluster.node_name)).await?;
    if !is_ours(&there, &new)
        && let Some(message) = lives(cluster, &there, rival).await?
    {
        return Ok(Claim::Taken(message));
    }
    let ours = json!({"metadata": {"labels": new.metadata.labels, "annotations": new.metadata.annotations}});
    answer(nodes.patch(&cluster.node_name, &PatchParams::default(), &Patch::Strategic(ours))).await.map(Box::new).map(Claim::Ours)
}

/// Whether the Node is of this agent, or of a kubelet that was on this machine before.
fn is_ours(there: &Node, new: &Node) -> bool {
    let instance = |node: &Node| node.metadata.annotations.as_ref().and_then(|a| a.get(INSTANCE)).cloned();
    let machine = |node: &Node| node.status.as_ref().and_then(|s| s.node_info.as_ref()).map(|info| info.machine_id.clone());
    match instance(there) {
        Some(there) => instance(new).is_some_and(|new| new == there),
        None => machine(there).is_none_or(|there| there.is_empty()) || machine(there) == machine(new),
    }
}

/// Whether the one who has the name renews its lease; and what to say then.
async fn lives(cluster: &Cluster, there: &Node, rival: &mut Rival) -> Result<Option<String>, Failure> {
    let leases: Api<Lease> = Api::namespaced(cluster.client(), LEASES);
    let Some(lease) = answer(leases.get_opt(&cluster.node_name)).await? else { return Ok(None) };
    let renewed = lease.spec.and_then(|spec| spec.renew_time);
    match rival {
        Some((known, since)) if *known == renewed => {
            if since.elapsed() >= Duration::from_secs(LEASE_SECONDS.unsigned_abs().into()) {
                return Ok(None);
            }
        }
        _ => *rival = Some((renewed, Instant::now())),
    }
    let addresses = there.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let addresses: Vec<&str> = addresses.map(|address| address.address.as_str()).collect();
    Ok(Some(format!(
        "the cluster has another node of the name {} ({}), which may be alive: this one takes no pods until that one's lease has not been renewed for {LEASE_SECONDS} s; \
         give one of them another name (--node-name), or delete the Node object of one that is gone: kubectl delete node {}",
        cluster.node_name,
        addresses.join(", "),
        cluster.node_name
    )))
}

/// What the API server knows from us.
struct Told {
    status: Option<NodeStatus>,
    at: Instant,
    lease: Option<Lease>,
}

impl Told {
    /// Renews the lease, if that is due, and tells what of the status is news. False: what it is about may be gone.
    async fn keep(&mut self, cluster: &Cluster, agent: &Agent, object: &NodeNow, renews: bool) -> bool {
        let mut there = true;
        if renews && let Err(failure) = self.renew(cluster).await {
            tracing::warn!(node = cluster.node_name, %failure, "the node's lease could not be renewed");
            there = !matches!(failure.code, 404 | 409);
        }
        if let Err(failure) = self.tell(cluster, agent, &object()).await {
            tracing::warn!(node = cluster.node_name, %failure, "the node's status could not be told");
            there &= failure.code != 404;
        }
        there
    }

    async fn tell(&mut self, cluster: &Cluster, agent: &Agent, node: &Node) -> Result<(), Failure> {
        let Some(mut status) = node.status.clone() else { return Ok(()) };
        date(&mut status, self.status.as_ref());
        let status = &status;
        let same = self.status.as_ref().is_some_and(|told| same(told, status));
        if same && self.at.elapsed() < TELL_EVERY {
            return Ok(());
        }
        let nodes: Api<Node> = Api::all(cluster.client());
        let patch = Patch::Strategic(patch(status));
        answer(nodes.patch_status(&cluster.node_name, &PatchParams::default(), &patch)).await?;
        for reason in turns(self.status.as_ref(), status) {
            agent.recorder.node(Level::Normal, reason, &format!("Node {} status is now: {reason}", cluster.node_name));
        }
        self.status = Some(status.clone());
        self.at = Instant::now();
        Ok(())
    }

    async fn renew(&mut self, cluster: &Cluster) -> Result<(), Failure> {
        let leases: Api<Lease> = Api::namespaced(cluster.client(), LEASES);
        let mut lease = match self.lease.take() {
            Some(lease) => lease,
            None => match answer(leases.get_opt(&cluster.node_name)).await? {
                Some(lease) => lease,
                None => answer(leases.create(&PostParams::default(), &new_lease(cluster))).await?,
            },
        };
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(cluster.node_name.clone());
        spec.lease_duration_seconds = Some(LEASE_SECONDS);
        spec.renew_time = Some(MicroTime(Timestamp::now()));
        lease.metadata.managed_fields = None;
        self.lease = Some(answer(leases.replace(&cluster.node_name, &PostParams::default(), &lease)).await?);
        Ok(())
    }
}

fn new_lease(cluster: &Cluster) -> Lease {
    Lease {
        metadata: ObjectMeta {
            name: Some(cluster.node_name.clone()),
            namespace: Some(LEASES.into()),
            owner_references: Some(vec![cluster.owner()]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec::default()),
    }
}

/// A condition that is as it was is so since then; one that is another, since now.
fn date(status: &mut NodeStatus, told: Option<&NodeStatus>) {
    let before = |type_: &str| told?.conditions.iter().flatten().find(|c| c.type_ == type_);
    for condition in status.conditions.iter_mut().flatten() {
        if let Some(before) = before(&condition.type_) {
            condition.last_transition_time = if before.status == condition.status {
                before.last_transition_time.clone()
            } else {
                condition.last_heartbeat_time.clone()
            };
        }
    }
}

/// The kubelet's events of the conditions that are another than before, or that are told first.
fn turns(told: Option<&NodeStatus>, now: &NodeStatus) -> Vec<&'static str> {
    let before = |type_: &str| Some(told?.conditions.iter().flatten().find(|c| c.type_ == type_)?.status.as_str());
    let turned = now.conditions.iter().flatten().filter(|c| before(&c.type_) != Some(&c.status));
    let reason = |condition: &NodeCondition| match (condition.type_.as_str(), condition.status.as_str()) {
        ("Ready", "True") => Some("NodeReady"),
        ("Ready", _) => Some("NodeNotReady"),
        ("MemoryPressure", "False") => Some("NodeHasSufficientMemory"),
        ("MemoryPressure", _) => Some("NodeHasInsufficientMemory"),
        ("DiskPressure", "False") => Some("NodeHasNoDiskPressure"),
        ("DiskPressure", _) => Some("NodeHasDiskPressure"),
        ("PIDPressure", "False") => Some("NodeHasSufficientPID"),
        ("PIDPressure", _) => Some("NodeHasInsufficientPID"),
        _ => None,
    };
    turned.filter_map(reason).collect()
}

/// What the API server still has of the boot before.
fn tell_reboot(agent: &Agent, registered: &Node, now: &Node) {
    let boot = |node: &Node| Some(node.status.as_ref()?.node_info.as_ref()?.boot_id.clone()).filter(|id| !id.is_empty());
    if let (Some(before), Some(id)) = (boot(registered), boot(now))
        && before != id
    {
        let message = format!("Node {} has been rebooted, boot id: {id}", agent.name);
        agent.recorder.node(Level::Warning, "Rebooted", &message);
    }
}

/// Whether nothing but the heartbeats differs.
fn same(a: &NodeStatus, b: &NodeStatus) -> bool {
    let still = |status: &NodeStatus| {
        let mut status = status.clone();
        status.conditions.iter_mut().flatten().for_each(|c| c.last_heartbeat_time = None);
        status
    };
    still(a) == still(b)
}

/// Addresses are replaced as a whole; conditions of others stay.
fn patch(status: &NodeStatus) -> Value {
    let mut status = json!(status);
    if let Some(addresses) = status.get_mut("addresses").and_then(Value::as_array_mut) {
        addresses.insert(0, json!({"$patch": "replace"}));
    }
    // What isn't named stays: none is named, so that the last one is detached.
    if let Some(fields) = status.as_object_mut() {
        fields.entry("volumesInUse").or_insert(Value::Null);
    }
    json!({"status": status})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(ready: &str, heartbeat: &str, since: &str) -> NodeStatus {
        let ready = json!({"type": "Ready", "status": ready, "lastHeartbeatTime": heartbeat, "lastTransitionTime": since});
        serde_json::from_value(json!({"conditions": [ready]})).unwrap()
    }

    #[test]
    fn a_condition_is_dated_by_its_change_and_a_heartbeat_is_no_news() {
        let (one, two, three) = ("2026-01-01T00:00:01Z", "2026-01-01T00:00:02Z", "2026-01-01T00:00:03Z");
        let told = status("True", one, one);
        let mut now = status("True", two, two);
        date(&mut now, Some(&told));
        assert_eq!(now, status("True", two, one));
        assert!(same(&told, &now) && turns(Some(&told), &now).is_empty());
        assert_eq!(turns(None, &now), ["NodeReady"]);
        let mut now = status("False", three, one);
        date(&mut now, Some(&told));
        assert_eq!(now, status("False", three, three));
        assert!(!same(&told, &now));
        assert_eq!(turns(Some(&told), &now), ["NodeNotReady"]);
    }

    #[test]
    fn a_node_is_ours_by_its_instance_or_by_the_machine_that_a_kubelet_left() {
        let node = |instance: Option<&str>, machine: &str| -> Node {
            let annotations = instance.map(|instance| json!({INSTANCE: instance}));
            serde_json::from_value(json!({"metadata": {"annotations": annotations}, "status": {"nodeInfo": {
                "machineID": machine, "architecture": "", "bootID": "", "containerRuntimeVersion": "", "kernelVersion": "",
                "kubeProxyVersion": "", "kubeletVersion": "", "operatingSystem": "", "osImage": "", "systemUUID": ""}}}))
            .unwrap()
        };
        let ours = node(Some("a"), "m");
        assert!(is_ours(&node(Some("a"), "other"), &ours));
        assert!(!is_ours(&node(Some("b"), "m"), &ours));
        assert!(is_ours(&node(None, "m"), &ours) && is_ours(&node(None, ""), &ours));
        assert!(!is_ours(&node(None, "other"), &ours));
    }
}
