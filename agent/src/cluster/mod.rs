//! This node as one of a cluster's: registered with the API server, its pods from there and their state told there. Nothing on the node
//! waits for the API server but what is new from it.

mod connect;
mod events;
mod membership;
mod report;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node as NodeObject, Pod};
use kube::Client;
use tokio::sync::mpsc;

pub use connect::ConnectError;
use connect::Transport;

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
    kubeconfig: PathBuf,
    authorities: Vec<Vec<u8>>,
    node_name: String,
    pods: RwLock<HashMap<PodUid, Arc<Pod>>>,
}

/// Makes the Node object, as of now.
pub type NodeNow = Box<dyn Fn() -> NodeObject + Send + Sync>;

impl Cluster {
    /// Reads the kubeconfig; speaks to nobody yet.
    pub async fn connect(kubeconfig: &Path, node_name: &str) -> Result<Self, ConnectError> {
        let config = connect::read(kubeconfig).await?;
        let (client, transport) = connect::client(&config)
            .map_err(|source| ConnectError::Client { path: kubeconfig.into(), source: Box::new(source) })?;
        let authorities = config.root_cert.iter().flatten().cloned().collect();
        let kubeconfig = kubeconfig.to_owned();
        Ok(Self { client, transport, kubeconfig, authorities, node_name: node_name.into(), pods: RwLock::default() })
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
    pub async fn run(self: Arc<Self>, node: Arc<Node>, object: NodeNow, manager: mpsc::Sender<source::Event>) {
        tokio::join!(
            connect::follow(&self.kubeconfig, &self.transport),
            membership::keep(&self, &object),
            source::apiserver::watch(&self, &node, &manager),
            report::follow(&self, &node),
            events::follow(&self, &node),
        );
    }

    /// A pod as the API server has it, if it is one of this node's.
    pub fn pod(&self, uid: &PodUid) -> Option<Arc<Pod>> {
        self.pods.read().unwrap_or_else(PoisonError::into_inner).get(uid).cloned()
    }

    /// What the API server says of a pod; none: it is gone. Returns what it said before.
    pub(crate) fn learn(&self, uid: &PodUid, pod: Option<Arc<Pod>>) -> Option<Arc<Pod>> {
        let mut pods = self.pods.write().unwrap_or_else(PoisonError::into_inner);
        match pod {
            Some(pod) => pods.insert(uid.clone(), pod),
            None => pods.remove(uid),
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
