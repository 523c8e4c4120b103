//! The pods' range that the cluster gives this node (`spec.podCIDRs`), for the agent's own bridge. It is asked for at starts that no pod
//! runs at, and kept: pods that run keep their addresses. Where the cluster gives another one meanwhile, or gives it late, the node's
//! events say so (`cluster::membership`).

use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::NodeSpec;
use netplug::Range;

use crate::cluster::Cluster;
use crate::config::{self, Ranges, Settings, Wiring};
use crate::durable;

/// How long a new node waits for its range. A cluster that gives none lets it have the default.
const GIVEN_WITHIN: Duration = Duration::from_secs(10);
/// How long one that has a range waits for what the cluster says today.
const SAID_WITHIN: Duration = Duration::from_secs(2);

/// Lets the pods have the cluster's range, unless one was chosen, or pods run already.
pub async fn of_cluster(settings: &mut Settings, cluster: &Cluster) {
    let bridged = super::wiring(&settings.network, super::Belongs::ToACluster) == Wiring::Bridge;
    if !bridged || settings.network.ranges == Ranges::Chosen {
        return;
    }
    let file = settings.paths.lib().join("pod-cidrs");
    let known = read(&file);
    let pods_run = std::fs::read_dir(settings.paths.pods_run()).is_ok_and(|mut pods| pods.next().is_some());
    let given = if pods_run { None } else { ask(settings, cluster, known.as_ref()).await };
    if let Some(ranges) = given.filter(|given| known.as_ref() != Some(given)).filter(|given| keep(&file, given)) {
        settings.network.pod_ranges = ranges;
    } else if let Some(known) = known {
        settings.network.pod_ranges = known;
    }
    cluster.pods_have(settings.network.pod_ranges.iter().map(|range| range.subnet.to_string()).collect());
}

/// What the cluster says; none: nothing, or not in time.
async fn ask(settings: &Settings, cluster: &Cluster, known: Option<&Vec<Range>>) -> Option<Vec<Range>> {
    let labels = crate::machine::object::labels(&settings.node_name, &settings.node_labels);
    let (taints, provider_id) = settings.cluster.as_ref().map(|c| (c.taints.clone(), c.provider_id.clone())).unwrap_or_default();
    let spec = NodeSpec { taints: (!taints.is_empty()).then_some(taints), provider_id, ..NodeSpec::default() };
    let within = if known.is_some() { SAID_WITHIN } else { GIVEN_WITHIN };
    let Ok(given) = tokio::time::timeout(within, cluster.pod_cidrs(labels.labels, spec)).await else {
        let instead = if known.is_some() { "that it gave before" } else { "that is the default" };
        tracing::warn!(
            "the cluster gave this node no range for its pods within {} s: they get the one {instead}",
            within.as_secs()
        );
        return None;
    };
    let ranges: Vec<Range> = given.iter().filter_map(|text| config::plain_range(text).ok()).collect();
    (!ranges.is_empty()).then_some(ranges)
}

/// Whether the next start will find it.
fn keep(file: &Path, ranges: &[Range]) -> bool {
    let text = ranges.iter().map(|range| range.subnet.to_string()).collect::<Vec<_>>().join("\n");
    if let Err(error) = durable::write(file, text.as_bytes()) {
        tracing::warn!(file = %file.display(), %error, "the cluster's range could not be kept: it isn't taken");
        return false;
    }
    tracing::info!(ranges = text.replace('\n', ", "), "pods get addresses of the range that the cluster gives this node");
    true
}

fn read(file: &Path) -> Option<Vec<Range>> {
    let text = std::fs::read_to_string(file).ok()?;
    let ranges: Vec<Range> = text.lines().filter_map(|line| config::plain_range(line).ok()).collect();
    (!ranges.is_empty()).then_some(ranges)
}
