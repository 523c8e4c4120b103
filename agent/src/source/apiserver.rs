//! The pods that the API server has for this node, by one watch, and what they refer to: each object by a watch of its own, as long as a
//! pod needs it. Tells the pod manager the same events as the folders do.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount, ServiceAccountTokenProjection};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::Event;
use crate::cluster::{Cluster, Failure, answer, pause, whole};
use crate::model::{Body, ObjectKind, ObjectRef, Origin, PodUid, ValidObject, ValidPod, references};
use crate::pod::Node;
use crate::runtime::volumes::payload::TOKEN;

/// A pod that the API server asks this node to show, and which a file of this node made.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Watches until the manager hangs up.
pub async fn watch(cluster: &Arc<Cluster>, node: &Arc<Node>, manager: &mpsc::Sender<Event>) {
    let pods: Api<Pod> = Api::all(cluster.client());
    let mine = watcher::Config::default().fields(&format!("spec.nodeName={}", cluster.node_name())).any_semantic();
    let mut stream = watcher(pods, mine).default_backoff().boxed();
    let mut source = Source { cluster, node, manager, listed: HashSet::new(), needs: HashMap::new(), watched: HashMap::new() };
    let mut silent = false;
    while let Some(event) = stream.next().await {
        let told = match event {
            Ok(event) => {
                silent = false;
                source.event(event).await
            }
            Err(error) => {
                if !std::mem::replace(&mut silent, true) {
                    tracing::warn!(
                        error = whole(&error),
                        "the API server's pods can't be watched; pods run on as they are, and it is tried again"
                    );
                }
                Ok(())
            }
        };
        if told.is_err() {
            return;
        }
    }
}

struct Source<'a> {
    cluster: &'a Arc<Cluster>,
    node: &'a Arc<Node>,
    manager: &'a mpsc::Sender<Event>,
    /// Of a list that is being told.
    listed: HashSet<PodUid>,
    /// What each pod refers to.
    needs: HashMap<PodUid, BTreeSet<ObjectRef>>,
    watched: HashMap<ObjectRef, AbortHandle>,
}

/// The manager has hung up.
type Told = Result<(), mpsc::error::SendError<Event>>;

impl Source<'_> {
    async fn event(&mut self, event: watcher::Event<Pod>) -> Told {
        match event {
            watcher::Event::Init => self.listed.clear(),
            watcher::Event::InitApply(pod) => {
                if let Some(uid) = uid(&pod) {
                    self.listed.insert(uid);
                }
                self.apply(pod).await?;
            }
            watcher::Event::InitDone => {
                for uid in self.cluster.known() {
                    if !self.listed.contains(&uid) {
                        self.gone(&uid).await?;
                    }
                }
                self.manager.send(Event::Listed).await?;
            }
            watcher::Event::Apply(pod) => self.apply(pod).await?,
            watcher::Event::Delete(pod) => {
                if let Some(uid) = uid(&pod) {
                    self.gone(&uid).await?;
                }
            }
        }
        Ok(())
    }

    async fn apply(&mut self, mut pod: Pod) -> Told {
        pod.metadata.managed_fields = None;
        let Some(uid) = uid(&pod) else { return Ok(()) };
        if pod.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(MIRROR)) {
            return Ok(());
        }
        let known = Arc::new(pod);
        self.cluster.learn(&uid, Some(known.clone()));
        let pod = wanted(&known);
        if known.metadata.deletion_timestamp.is_some() {
            return self.manager.send(Event::End { pod, grace: known.metadata.deletion_grace_period_seconds }).await;
        }
        let phase = known.status.as_ref().and_then(|status| status.phase.as_deref());
        let over = matches!(phase, Some("Succeeded" | "Failed"));
        // Of one that is over, what is left here is kept until it is deleted; it is not begun again.
        if over && !self.node.runtime.has_leftovers(&uid) {
            return Ok(());
        }
        if !over {
            self.fetch(&pod).await?;
        }
        self.manager.send(Event::Apply(pod)).await
    }

    async fn gone(&mut self, uid: &PodUid) -> Told {
        self.cluster.learn(uid, None);
        self.manager.send(Event::Delete(uid.clone())).await?;
        self.needs.remove(uid);
        let needed = |key: &ObjectRef| self.needs.values().any(|keys| keys.contains(key));
        let ended: Vec<_> = self.watched.extract_if(|key, _| !needed(key)).collect();
        for (key, watch) in ended {
            watch.abort();
            self.manager.send(Event::DeleteObject(key)).await?;
        }
        Ok(())
    }

    /// What the pod refers to is had before the pod begins, where it is there; what comes later, its watch tells.
    async fn fetch(&mut self, pod: &ValidPod) -> Told {
        let keys = references::of(pod);
        let new: Vec<ObjectRef> = keys.iter().filter(|key| !self.watched.contains_key(*key)).cloned().collect();
        self.needs.insert(pod.uid().clone(), keys);
        let mut first = Vec::new();
        for key in new {
            let (told, hears) = tokio::sync::oneshot::channel();
            let (cluster, manager, of) = (self.cluster.clone(), self.manager.clone(), key.clone());
            let token = references::tokens(pod).find(|token| references::token_secret(pod, token) == key).cloned();
            let task = match (token, key.kind) {
                (Some(token), _) => tokio::spawn(keep_token(cluster, manager, pod.clone(), token, told)),
                (None, ObjectKind::ConfigMap) => tokio::spawn(keep::<ConfigMap>(cluster, manager, of, Body::ConfigMap, told)),
                (None, ObjectKind::Secret) => tokio::spawn(keep::<Secret>(cluster, manager, of, Body::Secret, told)),
                (None, _) => continue,
            };
            self.watched.insert(key, task.abort_handle());
            first.push(hears);
        }
        // Each has been asked for once, whatever came of it.
        futures::future::join_all(first).await;
        Ok(())
    }
}

/// Tells an object, and its changes, until it is aborted.
async fn keep<T>(
    cluster: Arc<Cluster>,
    manager: mpsc::Sender<Event>,
    key: ObjectRef,
    body: fn(Arc<T>) -> Body,
    told: tokio::sync::oneshot::Sender<()>,
) where
    T: Resource<Scope = kube::core::NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
    T::DynamicType: Default,
{
    let api: Api<T> = Api::namespaced(cluster.client(), &key.namespace);
    let one = watcher::Config::default().fields(&format!("metadata.name={}", key.name));
    let mut stream = watcher(api, one).default_backoff().boxed();
    let mut told = Some(told);
    let mut there = false;
    while let Some(event) = stream.next().await {
        let event = match event {
            Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => {
                there = true;
                let mut object = object;
                object.meta_mut().managed_fields = None;
                Some(Event::ApplyObject(ValidObject::trusted(body(Arc::new(object)), Origin::Api)))
            }
            Ok(watcher::Event::Delete(_)) => Some(Event::DeleteObject(key.clone())),
            Ok(watcher::Event::Init) => {
                there = false;
                None
            }
            Ok(watcher::Event::InitDone) => {
                let gone = (!there).then(|| Event::DeleteObject(key.clone()));
                if let Some(gone) = gone {
                    let _ = manager.send(gone).await;
                }
                told.take().map(|told| told.send(()));
                None
            }
            Err(error) => {
                if told.take().map(|told| told.send(())).is_some() {
                    tracing::warn!(object = %key, error = whole(&error), "what a pod refers to can't be had of the API server; it is tried again");
                }
                None
            }
        };
        if let Some(event) = event
            && manager.send(event).await.is_err()
        {
            return;
        }
    }
}

/// Tells a token, and a new one at four fifths of its time, until it is aborted.
async fn keep_token(
    cluster: Arc<Cluster>,
    manager: mpsc::Sender<Event>,
    pod: ValidPod,
    token: ServiceAccountTokenProjection,
    told: tokio::sync::oneshot::Sender<()>,
) {
    let key = references::token_secret(&pod, &token);
    let mut told = Some(told);
    let mut failures = 0;
    loop {
        match request(&cluster, &pod, &token).await {
            Ok((text, seconds)) => {
                failures = 0;
                if manager.send(Event::ApplyObject(secret(&key, text))).await.is_err() {
                    return;
                }
                told.take().map(|told| told.send(()));
                tokio::time::sleep(std::time::Duration::from_secs(seconds.max(10) * 4 / 5)).await;
            }
            Err(failure) => {
                failures += 1;
                tracing::warn!(%pod, %failure, "the API server gives no service account token; it is tried again");
                told.take().map(|told| told.send(()));
                tokio::time::sleep(pause(failures)).await;
            }
        }
    }
}

/// A token that is bound to the pod, and how many seconds it lasts.
async fn request(cluster: &Cluster, pod: &ValidPod, token: &ServiceAccountTokenProjection) -> Result<(Vec<u8>, u64), Failure> {
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client(), pod.namespace());
    let account = pod.spec().service_account_name.as_deref().filter(|name| !name.is_empty()).unwrap_or("default");
    let seconds = token.expiration_seconds.unwrap_or(3600);
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: token.audience.clone().filter(|audience| !audience.is_empty()).map(|audience| vec![audience]),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: Some(pod.name().into()),
                uid: Some(pod.uid().as_str().into()),
            }),
            expiration_seconds: Some(seconds),
            ..TokenRequestSpec::default()
        }),
        ..TokenRequest::default()
    };
    let answered: TokenRequest = answer(accounts.create_subresource("token", account, &PostParams::default(), &request)).await?;
    let token = answered.status.and_then(|status| status.token).ok_or_else(|| Failure { code: 0, message: "the answer has no token".into() })?;
    Ok((token.into_bytes(), u64::try_from(seconds).unwrap_or(3600)))
}

fn secret(key: &ObjectRef, token: Vec<u8>) -> ValidObject {
    let secret = Secret {
        metadata: ObjectMeta { name: Some(key.name.clone()), namespace: Some(key.namespace.clone()), ..ObjectMeta::default() },
        data: Some([(TOKEN.to_owned(), ByteString(token))].into()),
        ..Secret::default()
    };
    ValidObject::trusted(Body::Secret(Arc::new(secret)), Origin::Api)
}

/// A UID that is safe as a path's component; the API server gives no other.
fn uid(pod: &Pod) -> Option<PodUid> {
    let uid = pod.metadata.uid.as_deref()?;
    let safe = (1..=63).contains(&uid.len()) && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if !safe {
        tracing::warn!(uid, "a pod of the API server has a UID that is none; it is not run");
    }
    safe.then(|| PodUid::new(uid))
}

/// The pod as it shall be: without what changes as it runs.
fn wanted(pod: &Pod) -> ValidPod {
    let mut pod = pod.clone();
    pod.status = None;
    pod.metadata.resource_version = None;
    pod.metadata.deletion_timestamp = None;
    pod.metadata.deletion_grace_period_seconds = None;
    ValidPod::trusted(pod, Origin::Api)
}
