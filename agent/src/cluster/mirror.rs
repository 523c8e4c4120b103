//! Mirror pods: the pods of this node's files, shown by the API server as `NAME-NODE`, read-only, as the kubelet shows its static pods.
//! <https://kubernetes.io/docs/tasks/configure-pod-container/static-pod/>. What is made of a file's pod is [`mirrored`]; who deletes one
//! there gets it again, and the pod runs on.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, EmptyDirVolumeSource, EnvVar, Pod, PodSpec, PodStatus, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::report::{REPAIR, There, patch, same};
use super::{Cluster, Failure, answer, delete_at_once};
use crate::image::Digest;
use crate::model::PodUid;
use crate::pod::Node;
use crate::pod::manager::Whose;
use crate::pod::store::Verb;

/// What makes a pod of the API server a mirror; its value says of which version of the file's pod.
pub(crate) const MIRROR: &str = "kubernetes.io/config.mirror";
/// Before what the API server refused is tried again.
const REFUSED: Duration = Duration::from_secs(300);
/// Before what it could not be asked is.
const AWAY: Duration = Duration::from_secs(10);

/// `(namespace, name)` of a mirror.
type Key = (String, String);

/// The mirrors that the API server has.
#[derive(Debug, Default)]
pub(crate) struct Mirrors {
    there: Mutex<HashMap<Key, Arc<Pod>>>,
    changed: Mutex<HashSet<Key>>,
    heard: Notify,
    listed: watch::Sender<bool>,
}

impl Mirrors {
    /// This is one.
    pub(crate) fn learn(&self, pod: Pod) {
        let key = key(&pod);
        lock(&self.there).insert(key.clone(), Arc::new(pod));
        self.tell(key);
    }

    /// This one is gone.
    pub(crate) fn forget(&self, pod: &Pod) {
        let key = key(pod);
        let gone = {
            let mut there = lock(&self.there);
            let same = there.get(&key).is_some_and(|known| known.metadata.uid == pod.metadata.uid);
            if same { there.remove(&key) } else { None }
        };
        if gone.is_some() {
            self.tell(key);
        }
    }

    /// These are all.
    pub(crate) fn listed(&self, uids: &HashSet<PodUid>) {
        let known: Vec<Arc<Pod>> = lock(&self.there).values().cloned().collect();
        for pod in known {
            if !pod.metadata.uid.as_deref().is_some_and(|uid| uids.contains(&PodUid::new(uid))) {
                self.forget(&pod);
            }
        }
        self.listed.send_replace(true);
    }

    fn tell(&self, key: Key) {
        lock(&self.changed).insert(key);
        self.heard.notify_one();
    }

    fn get(&self, key: &Key) -> Option<Arc<Pod>> {
        lock(&self.there).get(key).cloned()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn key(pod: &Pod) -> Key {
    let name = |text: &Option<String>| text.clone().unwrap_or_default();
    (name(&pod.metadata.namespace), name(&pod.metadata.name))
}

/// Follows the files' pods; never returns.
pub(super) async fn follow(cluster: &Cluster, node: &Node) {
    cluster.member().await;
    let mirrors = &cluster.mirrors;
    // Who is not wanted, is known once all that is wanted was told.
    let _ = mirrors.listed.subscribe().wait_for(|listed| *listed).await.map(drop);
    let _ = node.awaited.subscribe().wait_for(|awaited| !awaited.contains(&Whose::Files)).await.map(drop);
    let mut task = Task { cluster, node_name: &node.name, wanted: HashMap::new(), sent: HashMap::new(), due: BTreeMap::new() };
    let mut registered = cluster.node_uid.subscribe();
    let mut changes = task.look(node);
    task.due.extend(lock(&mirrors.there).keys().map(|key| (key.clone(), Instant::now())));
    loop {
        let due = task.due.values().min().copied();
        tokio::select! {
            change = changes.recv() => match change {
                Ok(change) => task.hear(change.object, matches!(change.verb, Verb::Deleted)),
                Err(RecvError::Lagged(_)) => changes = task.look(node),
                Err(RecvError::Closed) => return,
            },
            // As another Node: the mirrors of the one before went with it, or were refused since it was gone.
            Ok(()) = registered.changed() => task.due.extend(task.wanted.keys().map(|key| (key.clone(), Instant::now()))),
            () = mirrors.heard.notified() => {
                let changed = std::mem::take(&mut *lock(&mirrors.changed));
                task.due.extend(changed.into_iter().map(|key| (key, Instant::now())));
            }
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => task.settle().await,
        }
    }
}

struct Task<'a> {
    cluster: &'a Cluster,
    node_name: &'a str,
    /// The files' pods by the names of their mirrors.
    wanted: HashMap<Key, Arc<Pod>>,
    /// What was told.
    sent: HashMap<Key, Sent>,
    /// What is to be looked at, and when.
    due: BTreeMap<Key, Instant>,
}

/// What the API server was told last of a mirror.
struct Sent {
    /// Of which of the name.
    uid: Option<String>,
    status: PodStatus,
    /// What it made of it.
    there: There,
    /// When somebody else's word was last written over.
    repaired: Option<Instant>,
}

impl Task<'_> {
    fn look(&mut self, node: &Node) -> tokio::sync::broadcast::Receiver<crate::pod::store::Change<Pod>> {
        let snapshot = node.store.pods();
        let before: Vec<Key> = self.wanted.drain().map(|(key, _)| key).collect();
        self.due.extend(before.into_iter().map(|key| (key, Instant::now())));
        for pod in snapshot.objects {
            self.hear(pod, false);
        }
        snapshot.changes
    }

    fn hear(&mut self, pod: Arc<Pod>, gone: bool) {
        let uid = PodUid::new(pod.metadata.uid.as_deref().unwrap_or_default());
        if pod.metadata.owner_references.iter().flatten().any(|owner| owner.kind == "Node") {
            return;
        }
        let key = (key(&pod).0, name_of(&pod, self.node_name));
        // The API server's own; perhaps it was a file's until now.
        let theirs = self.cluster.pod(&uid).is_some();
        if theirs && self.wanted.get(&key).is_none_or(|wanted| wanted.metadata.uid != pod.metadata.uid) {
            return;
        }
        if pod.metadata.deletion_timestamp.is_some() && !self.wanted.contains_key(&key) {
            // One of the API server's that it has no more: nobody needs to see its end.
            return;
        }
        if gone || theirs {
            self.wanted.remove(&key)
        } else {
            self.wanted.insert(key.clone(), pod)
        };
        self.due.insert(key, Instant::now());
    }

    /// Does what is due, one after another: nobody waits for a mirror.
    async fn settle(&mut self) {
        let now = Instant::now();
        let due: Vec<Key> = self.due.iter().filter(|(_, at)| **at <= now).map(|(key, _)| key.clone()).collect();
        for key in due {
            self.due.remove(&key);
            let Err(failure) = self.act(&key).await else { continue };
            let refused = failure.code != 0 && failure.code != 409;
            if refused {
                tracing::warn!(namespace = key.0, pod = key.1, %failure, "a file's pod can't be shown by the API server; it runs all the same");
            }
            self.due.insert(key, now + if refused { REFUSED } else { AWAY });
        }
    }

    async fn act(&mut self, key: &Key) -> Result<(), Failure> {
        let pods: Api<Pod> = Api::namespaced(self.cluster.client(), &key.0);
        let there = self.cluster.mirrors.get(key);
        let Some(wanted) = self.wanted.get(key) else {
            self.sent.remove(key);
            return match there {
                Some(there) => delete(&pods, &there).await,
                None => Ok(()),
            };
        };
        let wish = mirrored(wanted, &key.1, self.cluster);
        let Some(there) = there else {
            return answer(pods.create(&PostParams::default(), &wish)).await.map(drop);
        };
        let version = |pod: &Pod| pod.metadata.annotations.as_ref().and_then(|a| a.get(MIRROR)).cloned();
        if there.metadata.deletion_timestamp.is_some() || version(&there) != version(&wish) {
            return delete(&pods, &there).await;
        }
        let status = wanted.status.clone().unwrap_or_default();
        let known = self.sent.get(key).filter(|sent| sent.uid == there.metadata.uid);
        let (written_over, mut repaired) =
            known.map_or((false, None), |sent| (sent.there.is_written_over(&there), sent.repaired));
        if written_over {
            let (now, next) = (Instant::now(), repaired.map(|at| at + REPAIR));
            if let Some(next) = next.filter(|next| *next > now) {
                self.due.insert(key.clone(), next);
                return Ok(());
            }
            repaired = Some(now);
        }
        let sent = known.filter(|_| !written_over).map(|sent| &sent.status);
        if sent.or(there.status.as_ref()).is_some_and(|told| same(told, &status)) {
            return Ok(());
        }
        let uid = there.metadata.uid.as_deref().unwrap_or_default();
        let patch = Patch::Strategic(patch(uid, there.status.as_ref(), sent, &status));
        let told = answer(pods.patch_status(&key.1, &PatchParams::default(), &patch)).await?;
        let sent = Sent { uid: there.metadata.uid.clone(), status, there: There::of(&told), repaired };
        self.sent.insert(key.clone(), sent);
        Ok(())
    }
}

async fn delete(pods: &Api<Pod>, there: &Pod) -> Result<(), Failure> {
    match delete_at_once(pods, there.metadata.name.as_deref().unwrap_or_default(), there.metadata.uid.clone()).await {
        Err(failure) if failure.code == 404 => Ok(()),
        deleted => deleted,
    }
}

fn name_of(pod: &Pod, node_name: &str) -> String {
    format!("{}-{node_name}", pod.metadata.name.as_deref().unwrap_or_default())
}

/// What the mirror of a file's pod is called, and of which version it is.
pub(super) fn identity(pod: &Pod, cluster: &Cluster) -> (String, String) {
    let name = name_of(pod, &cluster.node_name);
    let version = mirrored(pod, &name, cluster).metadata.annotations.and_then(|mut annotations| annotations.remove(MIRROR));
    (name, version.unwrap_or_default())
}

/// The mirror of a file's pod. A node may create no pod that refers to objects of the API server, and what a file's pod refers to is in files:
/// such volumes are shown empty, such variables not at all.
fn mirrored(pod: &Pod, name: &str, cluster: &Cluster) -> Pod {
    let mut spec = pod.spec.clone().unwrap_or_default();
    strip(&mut spec);
    spec.node_name = Some(cluster.node_name.clone());
    let owner = OwnerReference { controller: Some(true), ..cluster.owner() };
    let mut mirror = Pod {
        metadata: ObjectMeta {
            name: Some(name.into()),
            namespace: pod.metadata.namespace.clone(),
            labels: pod.metadata.labels.clone(),
            annotations: Some(pod.metadata.annotations.clone().unwrap_or_default()),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    };
    let version = Digest::of(&serde_json::to_vec(&mirror).unwrap_or_default()).hex().get(..32).unwrap_or_default().to_owned();
    let annotations = mirror.metadata.annotations.get_or_insert_default();
    annotations.insert("kubernetes.io/config.source".into(), "file".into());
    annotations.insert("kubernetes.io/config.hash".into(), version.clone());
    annotations.insert(MIRROR.into(), version);
    mirror
}

fn strip(spec: &mut PodSpec) {
    (spec.service_account_name, spec.service_account, spec.image_pull_secrets, spec.resource_claims) = (None, None, None, None);
    spec.automount_service_account_token = Some(false);
    // They come by a subresource.
    spec.ephemeral_containers = None;
    for volume in spec.volumes.iter_mut().flatten() {
        if !is_of_the_node(volume) {
            *volume = Volume {
                name: std::mem::take(&mut volume.name),
                empty_dir: Some(EmptyDirVolumeSource::default()),
                ..Volume::default()
            };
        }
    }
    let containers = spec.init_containers.iter_mut().flatten().chain(&mut spec.containers);
    for container in containers {
        strip_environment(container);
    }
}

fn is_of_the_node(volume: &Volume) -> bool {
    volume.empty_dir.is_some()
        || volume.host_path.is_some()
        || volume.downward_api.is_some()
        || volume.image.is_some()
        || volume.nfs.is_some()
}

fn strip_environment(container: &mut Container) {
    container.env_from = None;
    let refers = |var: &EnvVar| {
        var.value_from.as_ref().is_some_and(|from| from.secret_key_ref.is_some() || from.config_map_key_ref.is_some())
    };
    container.env.iter_mut().for_each(|env| env.retain(|var| !refers(var)));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_mirror_refers_to_nothing_of_the_api_servers() {
        let spec = json!({
            "serviceAccountName": "a", "imagePullSecrets": [{"name": "s"}],
            "volumes": [
                {"name": "kept", "hostPath": {"path": "/"}}, {"name": "c", "configMap": {"name": "c"}},
                {"name": "p", "projected": {"sources": [{"secret": {"name": "s"}}]}}, {"name": "v", "persistentVolumeClaim": {"claimName": "v"}},
            ],
            "initContainers": [{"name": "i", "envFrom": [{"secretRef": {"name": "s"}}]}],
            "containers": [{"name": "m", "env": [
                {"name": "A", "value": "a"}, {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                {"name": "C", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            ]}],
        });
        let mut spec: PodSpec = serde_json::from_value(spec).unwrap();
        strip(&mut spec);
        let volumes: Vec<_> = spec.volumes.iter().flatten().map(|v| (v.name.as_str(), v.empty_dir.is_some())).collect();
        assert_eq!(volumes, [("kept", false), ("c", true), ("p", true), ("v", true)]);
        let env: Vec<_> = spec.containers[0].env.iter().flatten().map(|e| e.name.as_str()).collect();
        assert_eq!(env, ["A", "C"]);
        let text = json!(spec).to_string();
        assert!(!text.contains("ecret") && !text.contains("configMap") && !text.contains("serviceAccountName"), "{text}");
    }
}
