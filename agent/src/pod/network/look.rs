//! Answers to who looks at the network: the pods' views with what the store knows, and the trace of a connection.

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::Pod;
use netplug::{Flow, Hook, Protocol, Step};

use super::target::{Found, Target, find};
use super::view::{NetworkView, PodView, TraceView};
use crate::model::namespaced_name;
use crate::pod::Node;
use crate::pod::node::NodeError;
use crate::service::facts::addresses;

/// Aliases that lead to aliases, as far as the resolver goes.
const ALIASES: usize = 8;

/// The whole network.
pub async fn view(node: &Node) -> Result<NetworkView, NodeError> {
    let mut view = node.network.view().await.map_err(|e| NodeError::Internal(e.to_string()))?;
    if node.network.bridge().is_none() {
        let pods = node.store.pods().objects;
        let own = pods.iter().filter(|pod| pod.spec.as_ref().is_some_and(|spec| spec.host_network != Some(true)));
        view.pods = own.map(|pod| plugged(pod)).collect();
    }
    Ok(view)
}

/// Of a pod that plugins wired, its addresses are known.
fn plugged(pod: &Pod) -> PodView {
    PodView {
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        pod: namespaced_name(&pod.metadata),
        addresses: addresses(pod),
        ..PodView::default()
    }
}

/// What would become of a connection. See [`crate::pod::node::Node::trace`].
pub async fn trace(node: &Node, pod: &Pod, to: &str, protocol: Protocol) -> Result<TraceView, NodeError> {
    let Some(network) = node.network.bridge() else {
        let why = "CNI plugins wire this node's pods: what they let pass, only they know";
        return Err(NodeError::Conflict(why.into()));
    };
    let target = Target::parse(to).map_err(NodeError::Invalid)?;
    let found = resolve(node, pod, &target).await?;
    let sources = addresses(pod);
    if sources.is_empty() {
        return Err(NodeError::Conflict(format!("pod {} has no address yet", namespaced_name(&pod.metadata))));
    }
    let pair = found.iter().find_map(|to| Some((*sources.iter().find(|from| from.is_ipv4() == to.is_ipv4())?, *to)));
    let Some((source, ip)) = pair else {
        let (found, own) = (list(&found), list(&sources));
        let why = format!(
            "{} is {found}, and pod {} has {own} alone: of another IP family",
            target.host,
            namespaced_name(&pod.metadata)
        );
        return Err(NodeError::Conflict(why));
    };
    let destination = SocketAddr::new(ip, target.port);
    let failed = |e: netplug::Error| NodeError::Internal(e.to_string());
    let ways = network.trace(Flow { source, destination, protocol }, node.host_ips.clone()).await.map_err(failed)?;
    let obstacles = network.obstacles().await.map_err(failed)?;
    Ok(TraceView {
        pod: namespaced_name(&pod.metadata),
        source: source.to_string(),
        to: to.to_owned(),
        destination: destination.to_string(),
        protocol: protocol.to_string(),
        obstacles: obstacles.iter().filter(|it| ways.iter().any(|way| passes(way, it.hook))).map(ToString::to_string).collect(),
        ways,
    })
}

/// Whether a hook's chains see what goes that way.
fn passes(way: &[Step], hook: Hook) -> bool {
    let has = |chain: &str| way.iter().any(|step| step.chain == chain);
    match hook {
        Hook::Input => has("input"),
        Hook::Forward => !["input", "direct", "loopback"].into_iter().any(has),
    }
}

/// Names of this node first, as the pods' resolver has it, then those of the world.
async fn resolve(node: &Node, pod: &Pod, target: &Target<'_>) -> Result<Vec<IpAddr>, NodeError> {
    if let Some(ip) = target.address() {
        return Ok(vec![ip]);
    }
    let zone = node.services.names();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let names = target.names(namespace, &node.runtime.settings().cluster_domain);
    let mut found = names.iter().find_map(|name| find(&zone, name));
    let mut world = target.host.to_owned();
    for _ in 0..ALIASES {
        match found {
            Some(Found::Addresses(ips)) => return Ok(ips),
            Some(Found::Alias(other)) => {
                found = find(&zone, &other);
                world = other;
            }
            None => break,
        }
    }
    let found = tokio::net::lookup_host((world.as_str(), target.port)).await;
    let why = |e: std::io::Error| NodeError::NotFound(format!("{}: no Service or pod of that name here, and {e}", target.host));
    Ok(found.map_err(why)?.map(|address| address.ip()).collect())
}

fn list(ips: &[IpAddr]) -> String {
    ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
