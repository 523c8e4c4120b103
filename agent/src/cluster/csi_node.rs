//! What the cluster is told of the node's CSI drivers: the CSINode object, and labels and an annotation of the Node.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::{CSINode, CSINodeDriver, CSINodeSpec, VolumeNodeResources};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::{Cluster, Failure, answer};
use crate::plugin::csi::driver::Driver;
use crate::pod::Node as Agent;

/// The drivers' names for the node, as JSON.
const NODE_ID: &str = "csi.volume.kubernetes.io/nodeid";

/// What is told of a driver.
#[derive(Debug, Clone, PartialEq)]
struct Told {
    entry: CSINodeDriver,
    labels: BTreeMap<String, String>,
}

/// Never returns. A Node that is another one than before, since somebody deleted it, is told all of it anew.
pub(super) async fn follow(cluster: &Cluster, agent: &Agent) {
    cluster.member().await;
    let (mut changed, mut node) = (agent.csi.changed(), cluster.node_uid.subscribe());
    let (mut told, mut failures) = ((node.borrow().clone(), BTreeMap::new()), 0);
    loop {
        changed.borrow_and_update();
        let drivers = agent.csi.drivers();
        let drivers: BTreeMap<_, _> = drivers.iter().map(|(name, driver)| (name.clone(), of_driver(name, driver))).collect();
        let now = (node.borrow_and_update().clone(), drivers);
        if now != told {
            match tell(cluster, &told.1, &now.1).await {
                Ok(()) => (told, failures) = (now, 0),
                Err(failure) => {
                    failures += 1;
                    tracing::warn!(%failure, "the cluster could not be told of the node's CSI drivers; it is tried again");
                    cluster.pause(failures).await;
                    continue;
                }
            }
        }
        let ended = tokio::select! {
            ended = changed.changed() => ended,
            ended = node.changed() => ended,
        };
        if ended.is_err() {
            return;
        }
    }
}

fn of_driver(name: &str, driver: &Driver) -> Told {
    let labels = driver.topology();
    let count = i32::try_from(driver.info.max_volumes_per_node).ok().filter(|count| *count > 0);
    let entry = CSINodeDriver {
        name: name.to_owned(),
        node_id: driver.info.node_id.clone(),
        topology_keys: (!labels.is_empty()).then(|| labels.keys().cloned().collect()),
        allocatable: count.map(|count| VolumeNodeResources { count: Some(count) }),
    };
    Told { entry, labels }
}

async fn tell(cluster: &Cluster, before: &BTreeMap<String, Told>, now: &BTreeMap<String, Told>) -> Result<(), Failure> {
    // The Node first: who reads the CSINode expects its labels.
    let nodes: Api<Node> = Api::all(cluster.client());
    let patch = Patch::Strategic(json!({"metadata": node_metadata(now)}));
    answer(nodes.patch(cluster.node_name(), &PatchParams::default(), &patch)).await?;
    let all: Api<CSINode> = Api::all(cluster.client());
    if let Some(mut object) = answer(all.get_opt(cluster.node_name())).await? {
        merge(&mut object.spec.drivers, before, now);
        object.metadata.managed_fields = None;
        return answer(all.replace(cluster.node_name(), &PostParams::default(), &object)).await.map(drop);
    }
    let metadata = ObjectMeta {
        name: Some(cluster.node_name().to_owned()),
        owner_references: Some(vec![cluster.owner()]),
        ..ObjectMeta::default()
    };
    let drivers = now.values().map(|told| told.entry.clone()).collect();
    let object = CSINode { metadata, spec: CSINodeSpec { drivers }, ..CSINode::default() };
    answer(all.create(&PostParams::default(), &object)).await.map(drop)
}

/// Drivers of this life are as they are now; of those before, nothing is known to be otherwise.
fn merge(entries: &mut Vec<CSINodeDriver>, before: &BTreeMap<String, Told>, now: &BTreeMap<String, Told>) {
    entries.retain(|entry| !before.contains_key(&entry.name) && !now.contains_key(&entry.name));
    entries.extend(now.values().map(|told| told.entry.clone()));
}

fn node_metadata(now: &BTreeMap<String, Told>) -> Value {
    let ids: BTreeMap<&String, &String> = now.iter().map(|(name, told)| (name, &told.entry.node_id)).collect();
    let labels: BTreeMap<&String, &String> = now.values().flat_map(|told| &told.labels).collect();
    let ids = if ids.is_empty() { Value::Null } else { json!(ids).to_string().into() };
    json!({"labels": labels, "annotations": {NODE_ID: ids}})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(name: &str, id: &str) -> (String, Told) {
        let entry = CSINodeDriver { name: name.into(), node_id: id.into(), ..CSINodeDriver::default() };
        (name.into(), Told { entry, labels: [("zone".to_owned(), "z".to_owned())].into() })
    }

    #[test]
    fn drivers_of_this_life_come_and_go_and_others_stay() {
        let mut entries: Vec<_> = [told("other", "1"), told("old", "2"), told("gone", "3")].map(|(_, t)| t.entry).into();
        merge(&mut entries, &[told("gone", "3"), told("old", "2")].into(), &[told("old", "9"), told("new", "4")].into());
        let names: Vec<_> = entries.iter().map(|e| (e.name.as_str(), e.node_id.as_str())).collect();
        assert_eq!(names, [("other", "1"), ("new", "4"), ("old", "9")]);
    }

    #[test]
    fn the_node_is_labelled_and_known_by_the_drivers_names() {
        assert_eq!(
            node_metadata(&[told("d", "id")].into()),
            json!({"labels": {"zone": "z"}, "annotations": {NODE_ID: "{\"d\":\"id\"}"}})
        );
        assert_eq!(node_metadata(&BTreeMap::new())["annotations"][NODE_ID], Value::Null);
    }
}
