//! The pods' range that the cluster gives this node (`spec.podCIDRs`), for the agent's own bridge. It is asked for at the node's first start in a
//! cluster, and kept. One that comes later, or is another one since somebody deleted the Node, is taken as soon as no pod has an address of what
//! there was before: addresses of pods that run can't change. Then the agent begins anew.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{NodeSpec, Pod};
use netplug::Range;
use tokio::sync::broadcast::error::RecvError;

use crate::cluster::Cluster;
use crate::config::{self, Ranges, Settings, Wiring};
use crate::durable;
use crate::model::PodUid;
use crate::pod::Node;
use crate::pod::network::Gate;
use crate::pod::recorder::Level;

/// How long the agent's start waits for a new node's range.
const GIVEN_WITHIN: Duration = Duration::from_secs(10);
/// How long the pods of a new node wait for it then. A cluster that gives none lets them have the default.
const AWAITED: Duration = Duration::from_secs(60);
/// Whether a pod is gone from the machine is looked at again so often, while that is waited for.
const LOOK: Duration = Duration::from_secs(5);

/// Ranges that are the cluster's to say.
#[derive(Debug)]
pub struct Given {
    /// Where they are kept.
    file: PathBuf,
    /// Those that the pods have.
    have: Vec<String>,
    /// The node is new, and the cluster has said nothing yet.
    awaited: bool,
}

/// Lets the pods have the cluster's range, unless one was chosen, or pods run already. None: it is not the cluster's to say.
pub async fn of_cluster(settings: &mut Settings, cluster: &Cluster) -> Option<Given> {
    let bridged = super::wiring(&settings.network, super::Belongs::ToACluster) == Wiring::Bridge;
    if !bridged || settings.network.ranges == Ranges::Chosen {
        return None;
    }
    let file = settings.paths.lib().join("pod-cidrs");
    let mut awaited = false;
    if let Some(known) = read(&file) {
        settings.network.pod_ranges = known;
    } else if std::fs::read_dir(settings.paths.pods_run()).is_ok_and(|mut pods| pods.next().is_some()) {
        tracing::warn!(
            "pods run already, in the range that the node had before: the cluster's range is taken once they are gone"
        );
    } else {
        let given = ask(settings, cluster).await;
        awaited = given.is_none();
        let ranges = given.as_deref().map(parse).unwrap_or_default();
        if !ranges.is_empty() && keep(&file, &ranges) {
            settings.network.pod_ranges = ranges;
        }
    }
    Some(Given { file, have: texts(&settings.network.pod_ranges), awaited })
}

/// None: not in time.
async fn ask(settings: &Settings, cluster: &Cluster) -> Option<Vec<String>> {
    let labels = crate::machine::object::labels(&settings.node_name, &settings.node_labels);
    let (taints, provider_id) = settings.cluster.as_ref().map(|c| (c.taints.clone(), c.provider_id.clone())).unwrap_or_default();
    let spec = NodeSpec { taints: (!taints.is_empty()).then_some(taints), provider_id, ..NodeSpec::default() };
    tokio::time::timeout(GIVEN_WITHIN, cluster.pod_cidrs(labels.labels, spec)).await.ok()
}

/// Returns when the agent is to begin anew, with what the cluster gives by now; with none, never.
pub async fn follow(given: Option<Given>, cluster: Option<Arc<Cluster>>, node: Arc<Node>) {
    let (Some(given), Some(cluster)) = (given, cluster) else { return std::future::pending().await };
    let mut told = cluster.other_pod_cidrs(&given.have).await;
    if given.awaited {
        tracing::info!(ranges = told.join(", "), "the cluster has given this node a range for its pods");
    }
    loop {
        let ranges = parse(&told);
        // It may be the same in other words.
        if !ranges.is_empty() && texts(&ranges) != given.have {
            wait_for_pods(&given, &told, &node).await;
            if keep(&given.file, &ranges) {
                return;
            }
            node.network.set_gate(Gate::Open);
        }
        told = cluster.other_pod_cidrs(&told).await;
    }
}

/// Lets the cluster's pods wait for their range, if they are to, for as long as new nodes get one.
pub fn gate(given: Option<&Given>, node: &Arc<Node>) {
    if !given.is_some_and(|given| given.awaited) {
        return;
    }
    let why = "the cluster has not given this node a range for its pods (spec.podCIDR) yet: kube-controller-manager does that with \
               --allocate-node-cidrs; --pod-cidr chooses one here";
    tracing::warn!("{why}");
    node.network.set_gate(Gate::Files(why.into()));
    let node = node.clone();
    tokio::spawn(async move {
        tokio::time::sleep(AWAITED).await;
        if !matches!(node.network.gate(), Gate::Files(_)) {
            return;
        }
        let message =
            format!("the cluster gave this node no range for its pods within {} s: they get the default", AWAITED.as_secs());
        tracing::warn!("{message}");
        node.recorder.node(Level::Warning, "CIDRNotAvailable", &message);
        node.network.set_gate(Gate::Open);
    });
}

/// Until no pod is wired, and none is any more.
async fn wait_for_pods(given: &Given, told: &[String], node: &Node) {
    let mut changes = node.store.pods().changes;
    let mut said = false;
    loop {
        let mut wired = self::wired(node);
        if wired.is_empty() {
            // Nobody may come in between.
            let why = format!("the pods' range becomes {}, which the cluster gives this node", told.join(", "));
            node.network.set_gate(Gate::Closed(why));
            wired = self::wired(node);
            if wired.is_empty() {
                return;
            }
            node.network.set_gate(Gate::Open);
        }
        if !std::mem::replace(&mut said, true) {
            let message = format!(
                "the cluster gives the pods of this node {}, but {} have addresses of {}, where the cluster doesn't look for them: it is taken \
                 when no pod has one, so drain the node",
                told.join(", "),
                wired.join(", "),
                given.have.join(", ")
            );
            tracing::warn!("{message}");
            node.recorder.node(Level::Warning, "PodCIDRMismatch", &message);
        }
        let _ = tokio::time::timeout(LOOK, async {
            while matches!(changes.recv().await, Ok(_) | Err(RecvError::Lagged(_))) && !self::wired(node).is_empty() {}
        })
        .await;
    }
}

/// Pods with something in the network, or that may have: those on the host's own have not.
fn wired(node: &Node) -> Vec<String> {
    let on_host = |pod: &Pod| pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true));
    let here = std::fs::read_dir(node.runtime.settings().run.join("pods")).into_iter().flatten().flatten();
    let name = |uid: String| match node.store.pod(&PodUid::new(&uid)) {
        Some(pod) if on_host(&pod) => None,
        Some(pod) => pod.metadata.name.clone(),
        None => Some(uid),
    };
    here.filter_map(|entry| entry.file_name().into_string().ok()).filter_map(name).collect()
}

fn parse(texts: &[String]) -> Vec<Range> {
    texts.iter().filter_map(|text| config::plain_range(text).ok()).collect()
}

fn texts(ranges: &[Range]) -> Vec<String> {
    ranges.iter().map(|range| range.subnet.to_string()).collect()
}

/// Whether the next start will find it.
fn keep(file: &Path, ranges: &[Range]) -> bool {
    let text = texts(ranges).join("\n");
    if let Err(error) = durable::write(file, text.as_bytes()) {
        tracing::warn!(file = %file.display(), %error, "the cluster's range could not be kept: it isn't taken");
        return false;
    }
    tracing::info!(ranges = text.replace('\n', ", "), "pods get addresses of the range that the cluster gave this node");
    true
}

fn read(file: &Path) -> Option<Vec<Range>> {
    let text = std::fs::read_to_string(file).ok()?;
    let ranges: Vec<Range> = text.lines().filter_map(|line| config::plain_range(line).ok()).collect();
    (!ranges.is_empty()).then_some(ranges)
}
