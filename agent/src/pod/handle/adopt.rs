//! What `nodeagent adopt` asks of the agent.

use std::path::PathBuf;
use std::time::Duration;

use super::super::adoption::{document, for_the_api_server, manifest};
use super::super::node::{NodeError, Offer};
use super::{Handle, controller};
use crate::model::{ObjectKind, Origin, PodUid, ValidPod, references};

/// In which the node must have seen what was created at the API server.
const SEEN_WITHIN: Duration = Duration::from_secs(60);

/// The pod as its sandbox was made from, or edited to since, with where it is from.
fn running(handle: &Handle, uid: &PodUid) -> Result<ValidPod, NodeError> {
    let ended = || NodeError::Conflict("the pod doesn't run: only one that does is adopted".into());
    handle.live(uid)?.sandbox.ok_or_else(ended)?;
    let stored = handle.node.store.pod(uid).ok_or_else(ended)?;
    if stored.metadata.deletion_timestamp.is_some() {
        return Err(NodeError::Conflict("the pod ends: only one that runs is adopted".into()));
    }
    handle.node.runtime.load_pod(uid).map_err(|error| NodeError::Internal(error.to_string()))
}

/// Notes the offer, and says what is to be created.
pub(super) fn offer(handle: &Handle, uid: &PodUid) -> Result<Offer, NodeError> {
    let refuse = |why: String| Err(NodeError::Conflict(why));
    if !handle.ways.of_cluster {
        return refuse("this agent is no cluster's node: start it with --kubeconfig".into());
    }
    let pod = running(handle, uid)?;
    let file = match pod.origin() {
        Origin::File { path, .. } => path.clone(),
        Origin::Stdin => return refuse("the pod is of standard input, not of a file".into()),
        Origin::Api => return refuse("the pod is the API server's already".into()),
    };
    if let Some(owner) = controller(&pod) {
        let (kind, name) = (&owner.kind, &owner.name);
        return refuse(format!(
            "the pod is one of {kind} {name}: give {kind} {name} to the API server, whose controllers make pods"
        ));
    }
    if references::tokens(&pod).next().is_some() {
        return refuse("the pod has a token of a service account: a running one can't get the API server's".into());
    }
    let mut objects = Vec::new();
    for key in references::of(&pod) {
        if key.kind == ObjectKind::PersistentVolumeClaim {
            return refuse(format!(
                "the pod has claim {}, which is a folder of this node: an API server's is bound to a volume",
                key.name
            ));
        }
        objects.extend(handle.node.objects.files.get(&key).as_ref().and_then(document));
    }
    let internal = |error: std::io::Error| NodeError::Internal(format!("note the offer: {error}"));
    let ticket = handle.node.adoptions.offer(uid, &pod, &file).map_err(internal)?;
    Ok(Offer { pod: for_the_api_server(&pod, &ticket, &handle.node.name), objects })
}

/// Until the API server's pod is the one that runs.
pub(super) async fn adopted(handle: &Handle, uid: &PodUid) -> Result<(), NodeError> {
    let late = |_| NodeError::Conflict(format!("the pod was not seen at the API server within {} s", SEEN_WITHIN.as_secs()));
    tokio::time::timeout(SEEN_WITHIN, handle.node.adoptions.joined(uid)).await.map_err(late)
}

/// Writes the manifest, from which on the file counts; the API server's pod is deleted by its source.
pub(super) async fn give_back(handle: &Handle, uid: &PodUid) -> Result<PathBuf, NodeError> {
    let refuse = |why: String| NodeError::Conflict(why);
    let pod = running(handle, uid)?;
    if *pod.origin() != Origin::Api {
        return Err(refuse("the pod is not the API server's".into()));
    }
    if let Some(owner) = controller(&pod) {
        let (kind, name) = (&owner.kind, &owner.name);
        return Err(refuse(format!(
            "the pod is one of {kind} {name}, which would replace it: orphan it first (kubectl delete --cascade=orphan)"
        )));
    }
    let Some(folder) = &handle.ways.manifests else {
        return Err(refuse("this agent follows no folder of manifests: start it with --manifests DIR".into()));
    };
    let mut objects = Vec::new();
    for key in references::of(&pod) {
        match key.kind {
            ObjectKind::ConfigMap | ObjectKind::Secret => objects.extend(handle.node.objects.cluster.get(&key)),
            ObjectKind::RuntimeClass => {}
            kind => return Err(refuse(format!("the pod has {} {}, which no file can give", kind.as_str(), key.name))),
        }
    }
    let adoptions = &handle.node.adoptions;
    let original = adoptions.original(uid);
    let in_place = original.as_ref().is_some_and(|original| !original.aside);
    let manifest = manifest(&pod, &objects, original, folder, adoptions.defaults()).map_err(|error| refuse(error.to_string()))?;
    if !in_place && manifest.path.exists() {
        return Err(refuse(format!("{} is there already: it would be the pod's manifest", manifest.path.display())));
    }
    let path = manifest.path.clone();
    adoptions.give_back(uid, &pod, manifest).await.map_err(NodeError::Internal)?;
    Ok(path)
}
