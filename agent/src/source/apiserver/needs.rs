//! What pods of the API server refer to: each object by a watch of its own, each token by itself, as long as a pod needs it. A node may
//! see no others.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, ServiceAccountTokenProjection};
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::api::storage::v1::CSIDriver;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::checkpoint::Checkpoints;
use super::{Eager, trust};
use crate::cluster::{Cluster, Failure, Token, answer, whole};
use crate::model::{Body, ObjectKind, ObjectRef, Origin, PodUid, Subject, ValidObject, ValidPod, references};
use crate::pod::objects::Objects;
use crate::pod::{Node, claims};
use crate::runtime::volumes::payload::TOKEN;

/// How long a pod's containers wait for the first answers about what it refers to; then they begin, and say what they lack.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// A token is renewed after this part of its life at the latest, as the kubelet does.
const RENEW_AT_LATEST: Duration = Duration::from_secs(24 * 3600);

/// See the module's page.
pub(super) struct Needs {
    cluster: Arc<Cluster>,
    node: Arc<Node>,
    of: HashMap<PodUid, BTreeSet<ObjectRef>>,
    kept: HashMap<ObjectRef, Kept>,
    checkpoints: Checkpoints,
}

struct Kept {
    /// Ends with this value.
    _task: AbortOnDropHandle<()>,
    /// Whether there was an answer: the object, or that there is none.
    answered: watch::Receiver<bool>,
}

impl Needs {
    pub(super) fn new(cluster: Arc<Cluster>, node: Arc<Node>, checkpoints: Checkpoints) -> Self {
        Self { cluster, node, of: HashMap::new(), kept: HashMap::new(), checkpoints }
    }

    /// Begins to keep all that the pod refers to. What is returned ends when there was an answer about each.
    pub(super) fn want(&mut self, pod: &ValidPod) -> impl Future<Output = ()> + Send + use<> {
        let keys = references::of(pod);
        let mut answers = Vec::new();
        for key in &keys {
            if !self.kept.contains_key(key)
                && let Some(kept) = self.keep(pod, key)
            {
                self.kept.insert(key.clone(), kept);
            }
            answers.extend(self.kept.get(key).map(|kept| kept.answered.clone()));
        }
        if self.of.get(pod.uid()) != Some(&keys) && self.of.insert(pod.uid().clone(), keys).is_some() {
            self.forget_unneeded();
        }
        async move {
            for answered in &mut answers {
                let _ = answered.wait_for(|is| *is).await.map(drop);
            }
        }
    }

    /// The pod is gone.
    pub(super) fn release(&mut self, uid: &PodUid) {
        if self.of.remove(uid).is_some() {
            self.forget_unneeded();
        }
    }

    fn forget_unneeded(&mut self) {
        let needed: BTreeSet<&ObjectRef> = self.of.values().flatten().collect();
        let objects = &self.node.objects.cluster;
        self.kept.retain(|key, _| {
            let stays = needed.contains(key);
            if !stays {
                forget(objects, key, &self.node.name);
            }
            stays
        });
    }

    fn keep(&self, pod: &ValidPod, key: &ObjectRef) -> Option<Kept> {
        let (told, answered) = watch::channel(false);
        let (cluster, node, checkpoints) = (self.cluster.clone(), self.node.clone(), self.checkpoints.clone());
        let keeper = Keeper { cluster, node, checkpoints, key: key.clone(), told };
        let token = references::tokens(pod).find(|token| references::token_secret(pod, token) == *key).cloned();
        let anchors = references::trusts(pod).find(|source| references::trust_map(source) == *key).cloned();
        let task = match (token, key.kind) {
            (None, ObjectKind::ConfigMap) if anchors.is_some() => tokio::spawn(trust::follow(keeper, anchors?)),
            (Some(token), _) => tokio::spawn(keeper.token(pod.clone(), token)),
            (None, ObjectKind::ConfigMap) => tokio::spawn(keeper.object::<ConfigMap>(Body::ConfigMap)),
            (None, ObjectKind::Secret) => tokio::spawn(keeper.object::<Secret>(Body::Secret)),
            (None, ObjectKind::PersistentVolumeClaim) => tokio::spawn(keeper.claim()),
            (None, ObjectKind::RuntimeClass) => tokio::spawn(keeper.fixed::<RuntimeClass>(Body::RuntimeClass)),
            (None, ObjectKind::CsiDriver) => tokio::spawn(keeper.fixed::<CSIDriver>(Body::CsiDriver)),
            (None, _) => return None,
        };
        Some(Kept { _task: AbortOnDropHandle::new(task), answered })
    }
}

/// An object, and what is behind it; but a driver is many volumes'.
fn forget(objects: &Objects, key: &ObjectRef, node: &str) {
    let behind = objects.get(key).map(|claim| claims::behind(objects, &claim, node));
    let gone = behind.into_iter().flatten().chain([key.clone()]);
    gone.filter(|key| key.kind != ObjectKind::CsiDriver).for_each(|key| objects.forget(&key));
}

/// Keeps one object.
pub(super) struct Keeper {
    pub cluster: Arc<Cluster>,
    pub node: Arc<Node>,
    checkpoints: Checkpoints,
    pub key: ObjectRef,
    /// Whether there was an answer about it.
    pub told: watch::Sender<bool>,
}

impl Keeper {
    pub fn put(&self, object: ValidObject) {
        self.node.objects.cluster.put(object);
        self.checkpoints.changed(&self.key);
    }

    pub fn remove(&self) {
        if self.node.objects.cluster.remove(&self.key).is_some() {
            self.checkpoints.changed(&self.key);
        }
    }

    fn take<T: Resource>(&self, mut object: T, body: fn(Arc<T>) -> Body) {
        object.meta_mut().managed_fields = None;
        self.put(ValidObject::trusted(body(Arc::new(object)), Origin::Api));
    }

    /// For ever.
    async fn object<T>(self, body: fn(Arc<T>) -> Body)
    where
        T: Resource<Scope = kube::core::NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug
            + Send
            + Sync
            + 'static,
        T::DynamicType: Default,
    {
        let api: Api<T> = Api::namespaced(self.cluster.client(), &self.key.namespace);
        // From the API server's cache: a list of what is certainly the newest waits a tenth of a second for that. With a page's size kube's
        // client would ask for the newest all the same.
        let one = watcher::Config {
            page_size: None,
            ..watcher::Config::default().fields(&format!("metadata.name={}", self.key.name)).any_semantic()
        };
        let mut stream = watcher(api.clone(), one).backoff(Eager::default()).boxed();
        let (mut there, mut failures) = (false, 0_u32);
        while let Some(event) = stream.next().await {
            match event {
                Ok(watcher::Event::Init) => there = false,
                Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => {
                    (there, failures) = (true, 0);
                    self.take(object, body);
                }
                Ok(watcher::Event::Delete(_)) => self.remove(),
                Ok(watcher::Event::InitDone) => {
                    failures = 0;
                    if !there {
                        // The cache may be behind what there is. If nobody says, its word holds until the watch says something else.
                        match answer(api.get_opt(&self.key.name)).await {
                            Ok(Some(object)) => self.take(object, body),
                            Ok(None) | Err(_) => self.remove(),
                        }
                    }
                    self.told.send_replace(true);
                }
                // That it can't be reached is told once, by who watches pods.
                Err(error) if !is_answer(&error) => {}
                Err(error) => {
                    failures = failures.saturating_add(1);
                    self.complain(failures, &whole(&error));
                }
            }
        }
    }

    /// An object of the cluster, into the set of objects.
    pub async fn fetch<T>(&self, name: &str, body: fn(Arc<T>) -> Body) -> Result<Option<Arc<T>>, Failure>
    where
        T: Resource<Scope = kube::core::ClusterResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
        T::DynamicType: Default,
    {
        let Some(mut object) = answer(Api::<T>::all(self.cluster.client()).get_opt(name)).await? else { return Ok(None) };
        object.meta_mut().managed_fields = None;
        let object = Arc::new(object);
        self.node.objects.cluster.put(ValidObject::trusted(body(object.clone()), Origin::Api));
        Ok(Some(object))
    }

    /// Until it is there: what matters of it doesn't change.
    async fn fixed<T>(self, body: fn(Arc<T>) -> Body)
    where
        T: Resource<Scope = kube::core::ClusterResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
        T::DynamicType: Default,
    {
        let mut failures = 0_u32;
        let mut waits = Eager::default();
        loop {
            match self.fetch(&self.key.name, body).await {
                Ok(there) => {
                    self.told.send_replace(true);
                    if there.is_some() {
                        return self.checkpoints.changed(&self.key);
                    }
                    self.remove();
                }
                Err(failure) => {
                    failures = failures.saturating_add(u32::from(failure.code != 0));
                    self.complain(failures, &failure.to_string());
                }
            }
            tokio::time::sleep(waits.next().unwrap_or(Eager::MOST)).await;
        }
    }

    /// For ever: a token, and a new one at four fifths of its life.
    async fn token(self, pod: ValidPod, token: ServiceAccountTokenProjection) {
        let mut waits = Eager::default();
        let mut failures = 0_u32;
        loop {
            let wait = match request(&self.cluster, &pod, &token).await {
                Ok(Token { text, life, .. }) => {
                    (waits, failures) = (Eager::default(), 0);
                    self.put(secret(&self.key, text.into_bytes()));
                    self.told.send_replace(true);
                    renew_in(life)
                }
                Err(failure) => {
                    failures = failures.saturating_add(u32::from(failure.code != 0));
                    self.complain(failures, &failure.to_string());
                    waits.next().unwrap_or(Eager::MOST)
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// Once, when it isn't the API server's being a moment behind itself: after a quarter of a second.
    pub fn complain(&self, failures: u32, error: &str) {
        if failures == 8 {
            let key = &self.key;
            let what = match key.name.split_once('/') {
                Some(("trust", _)) => "a ClusterTrustBundle".to_owned(),
                Some(_) => "a service account token".to_owned(),
                None => key.to_string(),
            };
            tracing::warn!(
                namespace = key.namespace,
                error,
                "{what}, which a pod needs, can't be had of the API server; it is tried again"
            );
        }
    }
}

/// Whether the API server said so itself.
pub(super) fn is_answer(error: &watcher::Error) -> bool {
    use watcher::Error::{InitialListFailed, NoResourceVersion, WatchError, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(error) | WatchStartFailed(error) | WatchFailed(error) => matches!(error, kube::Error::Api(_)),
        WatchError(_) | NoResourceVersion => true,
    }
}

/// Four fifths of a life, at most a day. When it ends is by the API server's clock, which may not be this machine's.
fn renew_in(life: Duration) -> Duration {
    (life * 4 / 5).clamp(Duration::from_secs(5), RENEW_AT_LATEST)
}

/// A token that is bound to the pod.
async fn request(cluster: &Cluster, pod: &ValidPod, token: &ServiceAccountTokenProjection) -> Result<Token, Failure> {
    cluster.token(&Subject::of(pod), token.audience.as_deref(), token.expiration_seconds).await
}

fn secret(key: &ObjectRef, token: Vec<u8>) -> ValidObject {
    let secret = Secret {
        metadata: ObjectMeta { name: Some(key.name.clone()), namespace: Some(key.namespace.clone()), ..ObjectMeta::default() },
        data: Some([(TOKEN.to_owned(), ByteString(token))].into()),
        ..Secret::default()
    };
    ValidObject::trusted(Body::Secret(Arc::new(secret)), Origin::Api)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_renewed_at_four_fifths_and_once_a_day() {
        let seconds = |life: u64| renew_in(Duration::from_secs(life)).as_secs();
        assert_eq!((seconds(3600), seconds(600), seconds(365 * 24 * 3600)), (2880, 480, 24 * 3600));
        assert_eq!(seconds(1), 5);
    }
}
