//! The Node object and its lease. The status is told when it has changed, else every five minutes; the lease says every ten seconds that
//! the node is alive. <https://kubernetes.io/docs/reference/node/node-status/>

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{Node, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{Cluster, Failure, NodeNow, answer, pause};

/// The kubelet's: a quarter of the lease's duration.
const RENEW_EVERY: Duration = Duration::from_secs(10);
/// Seconds after which the node counts as lost.
const LEASE_SECONDS: i32 = 40;
/// A status that hasn't changed is told this often.
const TELL_EVERY: Duration = Duration::from_secs(300);
/// Where leases of nodes are.
const LEASES: &str = "kube-node-lease";

/// Registers the node, then keeps it; never returns.
pub(super) async fn keep(cluster: &Cluster, object: &NodeNow) {
    let mut failures = 0;
    let registered = loop {
        match register(cluster, &object()).await {
            Ok(node) => break node,
            Err(failure) => {
                failures += 1;
                tracing::warn!(node = cluster.node_name, %failure, "the node could not be registered with the API server; it is tried again");
                tokio::time::sleep(pause(failures)).await;
            }
        }
    };
    tracing::info!(node = cluster.node_name, "registered with the API server");
    let mut told = Told { status: None, at: Instant::now(), lease: None, uid: registered.metadata.uid.unwrap_or_default() };
    let mut every = interval(RENEW_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        if let Err(failure) = told.renew(cluster).await {
            tracing::warn!(node = cluster.node_name, %failure, "the node's lease could not be renewed");
        }
        match told.tell(cluster, &object()).await {
            Ok(()) => {}
            Err(failure) if failure.code == 404 => {
                // Somebody deleted the node: it comes back, as a kubelet's does when it restarts.
                tracing::warn!(node = cluster.node_name, "the Node object was deleted; it is registered again");
                if let Ok(node) = register(cluster, &object()).await {
                    told.uid = node.metadata.uid.unwrap_or_default();
                }
            }
            Err(failure) => tracing::warn!(node = cluster.node_name, %failure, "the node's status could not be told"),
        }
    }
}

/// Creates the Node object, or brings the labels of the one that is there up to date.
async fn register(cluster: &Cluster, node: &Node) -> Result<Node, Failure> {
    let nodes: Api<Node> = Api::all(cluster.client());
    let mut new = node.clone();
    new.metadata.uid = None;
    new.metadata.creation_timestamp = None;
    // The ranges are the cluster's to give.
    if let Some(spec) = &mut new.spec {
        spec.pod_cidr = None;
        spec.pod_cidrs = None;
    }
    match answer(nodes.create(&PostParams::default(), &new)).await {
        Err(failure) if failure.code == 409 => {
            let labels = json!({"metadata": {"labels": new.metadata.labels}});
            answer(nodes.patch(&cluster.node_name, &PatchParams::default(), &Patch::Strategic(labels))).await
        }
        created => created,
    }
}

/// What the API server knows from us.
struct Told {
    status: Option<NodeStatus>,
    at: Instant,
    lease: Option<Lease>,
    uid: String,
}

impl Told {
    async fn tell(&mut self, cluster: &Cluster, node: &Node) -> Result<(), Failure> {
        let Some(status) = &node.status else { return Ok(()) };
        let same = self.status.as_ref().is_some_and(|told| same(told, status));
        if same && self.at.elapsed() < TELL_EVERY {
            return Ok(());
        }
        let nodes: Api<Node> = Api::all(cluster.client());
        let patch = Patch::Strategic(patch(status));
        answer(nodes.patch_status(&cluster.node_name, &PatchParams::default(), &patch)).await?;
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
                None => answer(leases.create(&PostParams::default(), &self.new_lease(cluster))).await?,
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

    fn new_lease(&self, cluster: &Cluster) -> Lease {
        let owner = OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: cluster.node_name.clone(),
            uid: self.uid.clone(),
            ..OwnerReference::default()
        };
        Lease {
            metadata: ObjectMeta {
                name: Some(cluster.node_name.clone()),
                namespace: Some(LEASES.into()),
                owner_references: Some(vec![owner]),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec::default()),
        }
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
    json!({"status": status})
}
