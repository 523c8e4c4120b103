//! The pods' range that the cluster gives this node (`spec.podCIDRs`), for the agent's own bridge. It is asked for once, at the node's first
//! start in a cluster, and kept: pods that run keep their addresses.

use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::NodeSpec;
use netplug::Range;

use crate::cluster::Cluster;
use crate::config::{self, Ranges, Settings, Wiring};
use crate::durable;

/// How long a new node waits for its range. A cluster that gives none lets it have the default.
const GIVEN_WITHIN: Duration = Duration::from_secs(10);

/// Lets the pods have the cluster's range, unless one was chosen, or pods run already.
pub async fn of_cluster(settings: &mut Settings, cluster: &Cluster) {
    let bridged = super::wiring(&settings.network, super::Belongs::ToACluster) == Wiring::Bridge;
    if !bridged || settings.network.ranges == Ranges::Chosen {
        return;
    }
    let file = settings.paths.lib().join("pod-cidrs");
    if let Some(known) = read(&file) {
        settings.network.pod_ranges = known;
        return;
    }
    if std::fs::read_dir(settings.paths.pods_run()).is_ok_and(|mut pods| pods.next().is_some()) {
        tracing::warn!(
            "pods run already, in the range that the node had before: the cluster's range is taken once they are gone and the agent starts again"
        );
        return;
    }
    let labels = crate::machine::object::labels(&settings.node_name, &settings.node_labels);
    let (taints, provider_id) = settings.cluster.as_ref().map(|c| (c.taints.clone(), c.provider_id.clone())).unwrap_or_default();
    let spec = NodeSpec { taints: (!taints.is_empty()).then_some(taints), provider_id, ..NodeSpec::default() };
    let Ok(given) = tokio::time::timeout(GIVEN_WITHIN, cluster.pod_cidrs(labels.labels, spec)).await else {
        tracing::warn!(
            "the cluster gave this node no range for its pods within {} s: they get the default",
            GIVEN_WITHIN.as_secs()
        );
        return;
    };
    let ranges: Vec<Range> = given.iter().filter_map(|text| config::plain_range(text).ok()).collect();
    if ranges.is_empty() {
        return;
    }
    let text = ranges.iter().map(|range| range.subnet.to_string()).collect::<Vec<_>>().join("\n");
    if let Err(error) = durable::write(&file, text.as_bytes()) {
        tracing::warn!(file = %file.display(), %error, "the cluster's range could not be kept: pods get the default");
        return;
    }
    tracing::info!(ranges = text.replace('\n', ", "), "pods get addresses of the range that the cluster gave this node");
    settings.network.pod_ranges = ranges;
}

fn read(file: &Path) -> Option<Vec<Range>> {
    let text = std::fs::read_to_string(file).ok()?;
    let ranges: Vec<Range> = text.lines().filter_map(|line| config::plain_range(line).ok()).collect();
    (!ranges.is_empty()).then_some(ranges)
}
