//! This node as one of a cluster's: registered with the API server, its pods from there and their state told there. Nothing on the node
//! waits for the API server but what is new from it.

mod accounts;
mod claims;
mod clock;
mod connect;
mod csi_node;
mod events;
mod identity;
mod membership;
pub(crate) mod mirror;
mod pair;
mod report;
mod signing;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node as NodeObject, NodeSpec, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, Preconditions};
use kube::{Api, Client};
use tokio::sync::{Notify, broadcast, mpsc, watch};

pub(crate) use accounts::Token;
use clock::Clock;
pub use connect::ConnectError;
use connect::Transport;
use identity::Identity;
pub use pair::Pair;
use signing::Wish;

use crate::model::PodUid;
use crate::pod::Node;
use crate::source;

/// Longer than any answer of the API server takes that is not a watch.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// Between two tries of what failed, at most.
const RETRY_AT_MOST: Duration = Duration::from_secs(30);

/// The connection to the API server, and what it said last of this node's pods.
pub struct Cluster {
    client: Client,
    transport: Transport,
    clock: Clock,
    identity: Identity,
    serving: Option<Serving>,
    authorities: Vec<Vec<u8>>,
    node_name: String,
    instance: String,
    standing: watch::Sender<Standing>,
    node_uid: watch::Sender<String>,
    /// Those of the Node object; none: it has none yet.
    ranges: watch::Sender<Vec<String>>,
    pub(crate) mirrors: mirror::Mirrors,
    /// Pods of which the API server has said something.
    heard: broadcast::Sender<PodUid>,
    /// How often the API server has listed the node's pods: it is there again.
    listings: watch::Sender<u64>,
    pods: RwLock<HashMap<PodUid, Arc<Pod>>>,
}

/// How the node comes into the cluster.
#[derive(Debug)]
pub struct Join {
    /// Who it is there.
    pub kubeconfig: PathBuf,
    /// By what it asks for that, if it isn't known.
    pub bootstrap: Option<PathBuf>,
    /// Where certificates go that the cluster signs.
    pub certificates: PathBuf,
    /// The certificate of the kubelet API that the cluster is to sign, and the addresses in it.
    pub serving: Option<Serving>,
    /// The node's name.
    pub node_name: String,
    /// What this agent's node differs by from another one of the same name, for as long as its disk lives.
    pub instance: String,
}

/// The kubelet API's certificate.
#[derive(Debug)]
pub struct Serving {
    /// Where it goes.
    pub pair: Pair,
    /// Where that port is reached.
    pub addresses: Vec<IpAddr>,
}

/// What the node is to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nobody knows yet.
    Asking,
    /// The API server can't be asked, or says no.
    Away,
    /// One of its nodes.
    Member,
    /// Another machine is this node, and alive.
    Taken,
}

/// Makes the Node object, as of now.
pub type NodeNow = Box<dyn Fn() -> NodeObject + Send + Sync>;

impl Cluster {
    /// Reads the kubeconfig; speaks to nobody yet.
    pub async fn open(join: Join) -> Result<Self, ConnectError> {
        let Join { kubeconfig, bootstrap, certificates: folder, serving, node_name, instance } = join;
        let identity = Identity { kubeconfig, bootstrap, folder, node_name: node_name.clone() };
        let (config, _) = identity.config().await?;
        let clock = Clock::default();
        let (client, transport) = connect::client(&config, clock.clone())
            .map_err(|source| ConnectError::Client { path: identity.kubeconfig.clone(), source: Box::new(source) })?;
        let authorities = config.root_cert.iter().flatten().cloned().collect();
        let standing = watch::Sender::new(Standing::Asking);
        let (node_uid, pods, mirrors) = (watch::Sender::default(), RwLock::default(), mirror::Mirrors::default());
        let listings = watch::Sender::new(0);
        Ok(Self {
            client,
            transport,
            clock,
            identity,
            serving,
            authorities,
            node_name,
            instance,
            standing,
            node_uid,
            ranges: watch::Sender::default(),
            mirrors,
            heard: broadcast::Sender::new(1024),
            listings,
            pods,
        })
    }

    /// The certificates, in DER, that the API server's is one of; they sign its clients' too, where a cluster has one CA. Empty: the
    /// machine's.
    pub fn authorities(&self) -> &[Vec<u8>] {
        &self.authorities
    }

    /// The client, with the node's rights.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The node's name in the cluster.
    pub fn node_name(&self) -> &str {
        &self.node_name
    }

    /// Until the agent ends: the node is registered and its lease renewed, its pods told to the manager and their state to the API server.
    /// `used` hears of work that leaves memory behind.
    pub async fn run(self: Arc<Self>, node: Arc<Node>, object: NodeNow, manager: mpsc::Sender<source::Event>, used: Arc<Notify>) {
        tokio::join!(
            self.be_known(&node, &object),
            source::apiserver::watch(&self, &node, &manager),
            report::follow(&self, &node),
            events::follow(&self, &node, &used),
            mirror::follow(&self, &node),
            csi_node::follow(&self, &node),
            clock::follow(&self, &node),
        );
    }

    /// What needs no more than an identity.
    async fn be_known(&self, node: &Node, object: &NodeNow) {
        self.identity.establish(&self.transport, &self.clock).await;
        tokio::join!(
            connect::follow(&self.identity.kubeconfig, &self.transport),
            self.identity.renew(&self.client, &self.transport, &self.clock),
            self.keep_serving(),
            membership::keep(self, node, object),
            membership::follow(self, node),
        );
    }

    /// The ranges that the cluster gives the node's pods, if it is a new node of the cluster's, within moments; empty: it has none, or the API
    /// server can't be asked. May take for ever.
    pub async fn pod_cidrs(&self, labels: BTreeMap<String, String>, spec: NodeSpec) -> Vec<String> {
        match self.identity.try_establish(&self.transport, &self.clock).await {
            Ok(()) => membership::pod_cidrs(self, labels, spec).await,
            Err(_) => Vec::new(),
        }
    }

    /// Waits until the cluster gives the node's pods ranges, and others than these.
    pub async fn other_pod_cidrs(&self, than: &[String]) -> Vec<String> {
        let mut ranges = self.ranges.subscribe();
        match ranges.wait_for(|given| !given.is_empty() && given != than).await {
            Ok(given) => given.clone(),
            // The cluster's own end.
            Err(_) => std::future::pending().await,
        }
    }

    /// Looks at the Node object now.
    pub(crate) async fn look_at_node(&self, node: &Node) {
        membership::look(self, node).await;
    }

    async fn keep_serving(&self) {
        let Some(Serving { pair, addresses }) = &self.serving else { return };
        self.member().await;
        let wish = Wish::server(&self.node_name, addresses);
        let mut failures = 0;
        loop {
            signing::until_due(pair).await;
            match signing::obtain(self.client(), &wish, pair).await {
                Ok(()) => {
                    failures = 0;
                    tracing::info!(certificate = %pair.current().display(), "the cluster has signed the kubelet API's certificate");
                }
                Err(failure) => {
                    failures += 1;
                    tracing::warn!(%failure, "the kubelet API's certificate is not signed; it is tried again");
                    tokio::time::sleep(pause(failures)).await;
                }
            }
        }
    }

    /// What the node is to the cluster, and what it becomes.
    pub(crate) fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// The Node object as an owner.
    fn owner(&self) -> OwnerReference {
        OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: self.node_name.clone(),
            uid: self.node_uid(),
            ..OwnerReference::default()
        }
    }

    /// The Node object's; empty before it is registered.
    fn node_uid(&self) -> String {
        self.node_uid.borrow().clone()
    }

    fn registered(&self, node: &NodeObject) {
        let uid = node.metadata.uid.clone().unwrap_or_default();
        self.node_uid.send_if_modified(|now| std::mem::replace(now, uid.clone()) != uid);
    }

    fn stand(&self, standing: Standing) {
        self.standing.send_if_modified(|now| std::mem::replace(now, standing) != standing);
    }

    /// Waits until the node is one of the cluster's.
    pub(crate) async fn member(&self) {
        let _ = self.standing().wait_for(|standing| *standing == Standing::Member).await.map(drop);
    }

    /// The API server has listed all pods of this node.
    pub(crate) fn listed(&self) {
        self.listings.send_modify(|times| *times = times.wrapping_add(1));
    }

    /// Waits as long as after the nth failure in a row, or until the API server is there again.
    async fn pause(&self, failures: u32) {
        let mut listings = self.listings.subscribe();
        let _ = tokio::time::timeout(pause(failures), listings.changed()).await;
    }

    /// A pod as the API server has it, if it is one of this node's.
    pub fn pod(&self, uid: &PodUid) -> Option<Arc<Pod>> {
        self.pods.read().unwrap_or_else(PoisonError::into_inner).get(uid).cloned()
    }

    /// What the API server says of a pod; none: it is gone. Returns what it said before.
    pub(crate) fn learn(&self, uid: &PodUid, pod: Option<Arc<Pod>>) -> Option<Arc<Pod>> {
        let before = {
            let mut pods = self.pods.write().unwrap_or_else(PoisonError::into_inner);
            match pod {
                Some(pod) => pods.insert(uid.clone(), pod),
                None => pods.remove(uid),
            }
        };
        let _ = self.heard.send(uid.clone());
        before
    }

    /// Deletes a pod of this UID at once; false: it is for the watch to tell that it is gone. Tried until there is an answer.
    pub(crate) async fn delete_pod(&self, namespace: &str, name: &str, uid: Option<String>) -> bool {
        let pods: Api<Pod> = Api::namespaced(self.client(), namespace);
        let mut failures = 0;
        loop {
            match delete_at_once(&pods, name, uid.clone()).await {
                Ok(()) => return false,
                // There is none, or another one.
                Err(failure) if matches!(failure.code, 404 | 409) => return true,
                Err(failure) => {
                    failures += 1;
                    tracing::warn!(namespace, pod = name, %failure, "a pod that is a file's again is not deleted at the API server; it is tried again");
                    self.pause(failures).await;
                }
            }
        }
    }

    /// All that are known.
    pub(crate) fn known(&self) -> Vec<PodUid> {
        self.pods.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("node_name", &self.node_name).finish_non_exhaustive()
    }
}

/// An answer within its time. None of a request's errors shows a secret: they are the server's words, or the connection's.
pub(crate) async fn answer<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
    match tokio::time::timeout(ANSWER_WITHIN, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) => Err(Failure { code: status.code, message: status.message.clone() }),
        Ok(Err(error)) => Err(Failure { code: 0, message: whole(&error) }),
        Err(_) => Err(Failure { code: 0, message: format!("no answer within {} s", ANSWER_WITHIN.as_secs()) }),
    }
}

/// Why a request came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The HTTP status; 0: there was no answer.
    pub code: u16,
    /// What the server or the connection said.
    pub message: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.code == 0 { f.write_str(&self.message) } else { write!(f, "{} ({})", self.message, self.code) }
    }
}

/// `failure`, with what the clock may have to do with it.
fn suspected(failure: &Failure, clock: &Clock) -> String {
    clock.suspicion().map_or_else(|| failure.to_string(), |suspicion| format!("{failure}; {suspicion}"))
}

/// Deletes the pod of that name and UID, without grace; another one of the name is refused.
async fn delete_at_once(pods: &Api<Pod>, name: &str, uid: Option<String>) -> Result<(), Failure> {
    let preconditions = Some(Preconditions { uid, resource_version: None });
    let parameters = DeleteParams { grace_period_seconds: Some(0), preconditions, ..DeleteParams::default() };
    answer(pods.delete(name, &parameters)).await.map(drop)
}

/// A client with the rights that a kubeconfig gives.
pub(crate) async fn client_of(kubeconfig: &Path) -> Result<Client, ConnectError> {
    let config = connect::read(kubeconfig, "--kubeconfig").await?;
    let wrong = |source| ConnectError::Client { path: kubeconfig.into(), source: Box::new(source) };
    connect::client(&config, Clock::default()).map(|(client, _)| client).map_err(wrong)
}

/// A certificate as text.
pub(crate) fn pem(der: &[u8]) -> String {
    let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// An error with its causes.
pub(crate) fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// The wait after the nth failure in a row, from 1: 1 s, doubled up to [`RETRY_AT_MOST`].
pub(crate) fn pause(failures: u32) -> Duration {
    Duration::from_secs(1 << failures.saturating_sub(1).min(5)).min(RETRY_AT_MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_half_a_minute() {
        assert_eq!([1, 2, 3, 6, 100].map(|n| pause(n).as_secs()), [1, 2, 4, 30, 30]);
    }
}
