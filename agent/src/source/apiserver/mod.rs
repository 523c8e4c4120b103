//! The pods that the API server has for this node, by one watch; what they refer to is [`needs`]'. Tells the pod manager the same events as
//! the folders do. A pod's containers begin once there were answers about what it refers to; pods don't wait for each other. What was known
//! before the agent's start is [`checkpoint`]'s.

mod checkpoint;
mod claim;
mod needs;
mod services;
mod trust;

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodStatus};
use kube::Api;
use kube::runtime::utils::Backoff;
use kube::runtime::{WatchStreamExt, watcher};
use tokio::sync::{mpsc, oneshot};

use super::Event;
use crate::cluster::mirror::MIRROR;
use crate::cluster::{Cluster, Standing, whole};
use crate::model::{Origin, PodUid, ValidPod, references};
use crate::pod::adoption::Place;
use crate::pod::status::{self, is_others};
use crate::pod::{Node, completed};
use checkpoint::{Checkpoint, Checkpoints};
use needs::{Needs, PATIENCE};
use services::Services;

/// How long the API server may think about its first answer, while pods that it asked for before a reboot wait: it may have given them to
/// others since. A server that can't be reached is known at once, as a rule.
const FIRST_ANSWER_WITHIN: Duration = Duration::from_millis(500);

/// Watches until the manager hangs up.
pub async fn watch(cluster: &Arc<Cluster>, node: &Arc<Node>, manager: &mpsc::Sender<Event>) {
    let pods: Api<Pod> = Api::all(cluster.client());
    let mine = watcher::Config::default().fields(&format!("spec.nodeName={}", cluster.node_name()));
    let mut stream = watcher(pods, mine).backoff(Eager::default()).boxed();
    let (checkpoints, found) = Checkpoints::open(node.clone()).await;
    let mut source = Source {
        cluster,
        node,
        manager,
        listed: Listing::Told,
        needs: Needs::new(cluster.clone(), node.clone(), checkpoints.clone()),
        services: Services::follow(cluster.clone(), node.clone(), checkpoints.clone()),
        checkpoints,
        fetches: FuturesUnordered::new(),
        waiting: HashMap::new(),
        recalled: HashMap::new(),
        begun: HashSet::new(),
        told: HashMap::new(),
        returning: HashSet::new(),
    };
    let (returning, returns) = node.adoptions.returning();
    source.returning.extend(returning);
    if source.recall(found).await.is_err() {
        return;
    }
    let Some(mut returns) = returns else { return };
    let mut first_answer = pin!(tokio::time::sleep(FIRST_ANSWER_WITHIN));
    let mut standing = cluster.standing();
    let mut silent = false;
    loop {
        let stands = *standing.borrow_and_update();
        if stands == Standing::Away && source.begin_recalled().await.is_err() {
            return;
        }
        let told = tokio::select! {
            _ = standing.changed() => Ok(()),
            () = &mut first_answer, if stands != Standing::Taken && !source.recalled.is_empty() => source.begin_recalled().await,
            Some((uid, done)) = returns.recv() => {
                source.returning.insert(uid.clone());
                source.let_go(&uid);
                // Whoever waited has gone.
                let _ = done.send(());
                Ok(())
            }
            Some(uid) = source.fetches.next(), if !source.fetches.is_empty() => source.fetched(&uid).await,
            event = stream.next(), if stands == Standing::Member => match event {
                Some(Ok(event)) => {
                    silent = false;
                    source.event(event).await
                }
                Some(Err(error)) => {
                    if !std::mem::replace(&mut silent, true) {
                        tracing::warn!(
                            error = whole(&error),
                            "the API server's pods can't be watched; pods run on as they are, and it is tried again"
                        );
                    }
                    source.begin_recalled().await
                }
                None => return,
            },
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
    listed: Listing,
    needs: Needs,
    /// End when all that a pod refers to was asked for.
    fetches: FuturesUnordered<BoxFuture<'static, PodUid>>,
    /// Pods that wait for that, as they shall begin.
    waiting: HashMap<PodUid, ValidPod>,
    services: Services,
    checkpoints: Checkpoints,
    /// Pods of before a reboot, which the API server hasn't been asked about yet.
    recalled: HashMap<PodUid, ValidPod>,
    /// Pods that the manager was told of.
    begun: HashSet<PodUid>,
    /// What others had said of them when the manager heard it last.
    told: HashMap<PodUid, Vec<PodCondition>>,
    /// Pods that are files' again, and that the API server still has.
    returning: HashSet<PodUid>,
}

/// How far a list has come.
enum Listing {
    /// Some of it is known.
    Begun(HashSet<PodUid>),
    /// All of it is known, and some of its pods wait to be told.
    Known,
    /// The manager was told all of it.
    Told,
}

/// The manager has hung up.
type Told = Result<(), mpsc::error::SendError<Event>>;

impl Source<'_> {
    /// Takes up what was known before. What runs goes on at once, under this agent; what a reboot ended waits a moment for the API server.
    async fn recall(&mut self, found: Vec<Checkpoint>) -> Told {
        let mut pods = Vec::new();
        for Checkpoint { pod, objects } in found {
            let Some(Place::Own(uid) | Place::Adopted(uid)) = self.place(&pod) else { continue };
            let known = Arc::new(pod);
            self.cluster.learn(&uid, Some(known.clone()));
            self.checkpoints.keep(&known);
            objects.into_iter().for_each(|object| self.node.objects.cluster.put(object));
            pods.push((uid, known));
        }
        for (uid, known) in pods {
            if let Some(deadline) = &known.metadata.deletion_timestamp {
                let left = deadline.0.duration_since(Timestamp::now()).as_secs().max(0);
                self.manager.send(Event::End { pod: unwanted(&known, &uid), grace: Some(left) }).await?;
                continue;
            }
            let pod = wanted(&known, &uid);
            let asked = self.needs.want(&pod);
            if self.has_holder(&uid) {
                // The agent before this one may have ended while it asked.
                if references::of(&pod).iter().any(|key| self.node.objects.cluster.get(key).is_none()) {
                    self.ask_ahead(&uid, asked);
                }
                self.begin(pod).await?;
            } else {
                self.recalled.insert(uid, pod);
            }
        }
        Ok(())
    }

    /// The API server can't be asked: its pods of before the reboot begin as they were.
    async fn begin_recalled(&mut self) -> Told {
        for (_, pod) in std::mem::take(&mut self.recalled) {
            self.begin(pod).await?;
        }
        Ok(())
    }

    async fn begin(&mut self, pod: ValidPod) -> Told {
        let uid = pod.uid().clone();
        let gated = pod.spec().readiness_gates.as_ref().is_some_and(|gates| !gates.is_empty());
        let first = self.begun.insert(uid.clone());
        self.manager.send(Event::Apply(pod)).await?;
        if first {
            // Not before: with the file goes what it said that the pod refers to.
            self.node.adoptions.set_aside(&uid);
        }
        let conditions = self.cluster.pod(&uid).map(|known| of_others(&known)).unwrap_or_default();
        // An agent before this one may have heard of some that are gone: gates are told at the first time, whatever they are.
        let news = match self.told.get(&uid) {
            Some(told) => *told != conditions,
            None => gated || !conditions.is_empty(),
        };
        if !news {
            return Ok(());
        }
        self.told.insert(uid.clone(), conditions.clone());
        self.manager.send(Event::Told { uid, conditions }).await
    }

    async fn event(&mut self, event: watcher::Event<Pod>) -> Told {
        match event {
            watcher::Event::Init => self.listed = Listing::Begun(HashSet::new()),
            watcher::Event::InitApply(pod) => {
                let api = uid(&pod);
                let uid = self.apply(pod).await?;
                if let Listing::Begun(listed) = &mut self.listed {
                    listed.extend(api.into_iter().chain(uid));
                }
            }
            watcher::Event::InitDone => {
                if let Listing::Begun(listed) = std::mem::replace(&mut self.listed, Listing::Known) {
                    self.cluster.mirrors.listed(&listed);
                    self.cluster.listed();
                    for uid in self.cluster.known().into_iter().filter(|uid| !listed.contains(uid)) {
                        self.gone(&uid).await?;
                    }
                    self.returning.retain(|uid| {
                        let there = self.node.adoptions.api_uid(uid).is_some_and(|api| listed.contains(&PodUid::new(&api)));
                        if !there {
                            self.node.adoptions.gone(uid);
                        }
                        there
                    });
                }
                self.tell_listed().await?;
            }
            watcher::Event::Apply(pod) => drop(self.apply(pod).await?),
            watcher::Event::Delete(pod) if is_mirror(&pod) => self.cluster.mirrors.forget(&pod),
            watcher::Event::Delete(pod) => match self.place(&pod) {
                Some(Place::Own(uid) | Place::Adopted(uid)) => self.gone(&uid).await?,
                Some(Place::Returned(uid)) => {
                    self.returning.remove(&uid);
                    self.node.adoptions.gone(&uid);
                }
                None => {}
            },
        }
        Ok(())
    }

    /// What a pod of the API server is here.
    fn place(&self, pod: &Pod) -> Option<Place> {
        Some(self.node.adoptions.place(pod, uid(pod)?))
    }

    /// Returns what it is called here, unless it is none of the manager's.
    async fn apply(&mut self, mut pod: Pod) -> Result<Option<PodUid>, mpsc::error::SendError<Event>> {
        pod.metadata.managed_fields = None;
        if is_mirror(&pod) {
            self.cluster.mirrors.learn(pod);
            return Ok(None);
        }
        match self.place(&pod) {
            Some(Place::Own(uid) | Place::Adopted(uid)) => {
                self.take(pod, &uid).await?;
                Ok(Some(uid))
            }
            Some(Place::Returned(uid)) => {
                self.returning.insert(uid.clone());
                self.let_go(&uid);
                Ok(None)
            }
            None => Ok(None),
        }
    }

    async fn take(&mut self, pod: Pod, uid: &PodUid) -> Told {
        let known = Arc::new(pod);
        let before = self.cluster.learn(uid, Some(known.clone()));
        self.recalled.remove(uid);
        if known.metadata.deletion_timestamp.is_some() {
            self.waiting.remove(uid);
            self.checkpoints.keep(&known);
            let (pod, grace) = (unwanted(&known, uid), known.metadata.deletion_grace_period_seconds);
            return self.manager.send(Event::End { pod, grace }).await;
        }
        let pod = wanted(&known, uid);
        let phase = known.status.as_ref().and_then(|status| status.phase.as_deref());
        let over = matches!(phase, Some("Succeeded" | "Failed"));
        let begun = self.begun.contains(uid);
        if over && completed::read(&self.node.runtime, uid).is_none() {
            // It is never begun again, also after a reboot without the API server.
            self.forget_checkpoint(uid);
            if !begun {
                // Nothing of it is here.
                self.needs.release(uid);
                return Ok(());
            }
        } else {
            self.checkpoints.keep(&known);
        }
        if over && !begun {
            // What is left of it is kept until it is deleted.
            return self.begin(pod).await;
        }
        let asked = self.needs.want(&pod);
        if before.is_some() && !self.waiting.contains_key(uid) {
            // What it refers to is known, or comes when it comes.
            return self.begin(pod).await;
        }
        let misplaced = self.node.admission.is_place_of(&pod).is_err();
        // One that runs already, a file's so far, is to miss nothing.
        let runs = self.node.store.pod(uid).is_some() || self.has_holder(uid);
        if !runs && !misplaced && only_containers_need(&pod) {
            self.ask_ahead(uid, asked);
            return self.begin(pod).await;
        }
        self.waiting.insert(uid.clone(), pod);
        let (cluster, node) = (self.cluster.clone(), self.node.clone());
        self.fetch(uid, async move {
            // A pod may come before the label that it came for.
            let look = async {
                if misplaced {
                    cluster.look_at_node(&node).await;
                }
            };
            futures::future::join(asked, look).await;
        });
        Ok(())
    }

    /// The pod's sandbox is made meanwhile.
    fn ask_ahead(&mut self, uid: &PodUid, asked: impl Future<Output = ()> + Send + 'static) {
        let (answered, wait) = oneshot::channel();
        self.node.objects.ask(uid.clone(), wait);
        self.fetch(uid, asked.map(|()| drop(answered)));
    }

    fn fetch(&mut self, uid: &PodUid, asked: impl Future<Output = ()> + Send + 'static) {
        let uid = uid.clone();
        let mut services = self.services.listed();
        self.fetches.push(Box::pin(async move {
            let listed = async { drop(services.wait_for(|listed| *listed).await.map(drop)) };
            let all = futures::future::join(asked, listed);
            let _ = tokio::time::timeout(PATIENCE, all).await;
            uid
        }));
    }

    fn has_holder(&self, uid: &PodUid) -> bool {
        self.node.runtime.settings().holder_socket(uid).exists()
    }

    async fn fetched(&mut self, uid: &PodUid) -> Told {
        if let Some(pod) = self.waiting.remove(uid) {
            self.begin(pod).await?;
        }
        self.tell_listed().await
    }

    async fn tell_listed(&mut self) -> Told {
        if matches!(self.listed, Listing::Known) && self.waiting.is_empty() {
            self.listed = Listing::Told;
            self.manager.send(Event::Listed).await?;
        }
        Ok(())
    }

    async fn gone(&mut self, uid: &PodUid) -> Told {
        self.drop_all_of(uid);
        self.node.adoptions.gone(uid);
        self.manager.send(Event::Gone(uid.clone())).await
    }

    fn drop_all_of(&mut self, uid: &PodUid) {
        self.cluster.learn(uid, None);
        drop(self.node.objects.take_asked(uid));
        self.waiting.remove(uid);
        self.recalled.remove(uid);
        self.begun.remove(uid);
        self.told.remove(uid);
        self.forget_checkpoint(uid);
        self.needs.release(uid);
    }

    /// It is kept under the name that the API server gave it.
    fn forget_checkpoint(&self, uid: &PodUid) {
        let api = self.node.adoptions.api_uid(uid).map(|api| PodUid::new(&api));
        self.checkpoints.forget(api.as_ref().unwrap_or(uid));
    }

    /// A pod that is a file's again: nothing more of it is the API server's, where it goes.
    fn let_go(&mut self, uid: &PodUid) {
        self.drop_all_of(uid);
        let Some((namespace, name)) = self.node.adoptions.name(uid) else { return };
        let api_uid = self.node.adoptions.api_uid(uid);
        let (cluster, node, uid) = (self.cluster.clone(), self.node.clone(), uid.clone());
        tokio::spawn(async move {
            cluster.member().await;
            if cluster.delete_pod(&namespace, &name, api_uid).await {
                node.adoptions.gone(&uid);
            }
        });
    }
}

/// The waits between tries: the first ones are short, since a pod may be told before the API server lets its node see what it refers to.
#[derive(Debug, Default, Clone)]
pub(super) struct Eager {
    failures: u32,
}

impl Eager {
    const FIRST: Duration = Duration::from_millis(2);
    const MOST: Duration = Duration::from_secs(30);
}

impl Iterator for Eager {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = Self::FIRST.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        Some(wait.min(Self::MOST))
    }
}

impl Backoff for Eager {
    fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Whether the sandbox, and the pulls of images that begin with it, need nothing of what the pod refers to.
fn only_containers_need(pod: &ValidPod) -> bool {
    pod.spec().runtime_class_name.is_none() && pod.spec().image_pull_secrets.iter().flatten().next().is_none()
}

/// The conditions that are not ours to tell.
fn of_others(pod: &Pod) -> Vec<PodCondition> {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.filter(|condition| is_others(&condition.type_)).cloned().collect()
}

/// Of a pod of this node's own files.
fn is_mirror(pod: &Pod) -> bool {
    pod.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(MIRROR))
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

/// The pod as it shall be, as it is called here: without what changes as it runs.
fn wanted(pod: &Pod, uid: &PodUid) -> ValidPod {
    with_status(pod, uid, None)
}

/// The pod that shall be no more, as it is where nothing is left of it.
fn unwanted(pod: &Pod, uid: &PodUid) -> ValidPod {
    with_status(pod, uid, Some(status::gone(pod.status.as_ref())))
}

fn with_status(pod: &Pod, uid: &PodUid, status: Option<PodStatus>) -> ValidPod {
    let mut pod = pod.clone();
    pod.status = status;
    pod.metadata.uid = Some(uid.as_str().into());
    pod.metadata.resource_version = None;
    pod.metadata.deletion_timestamp = None;
    pod.metadata.deletion_grace_period_seconds = None;
    ValidPod::trusted(pod, Origin::Api)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_tries_are_soon_and_later_ones_rare() {
        let waits: Vec<_> = Eager::default().take(15).map(|wait| wait.as_millis()).collect();
        assert_eq!((waits[0], waits[1], waits[2], waits[14]), (2, 4, 8, 30_000));
    }

    #[test]
    fn a_uid_is_a_name_of_a_folder_or_none() {
        let of = |text: &str| {
            let mut pod = Pod::default();
            pod.metadata.uid = Some(text.into());
            uid(&pod).is_some()
        };
        assert!(of("0b0c7a4e-8d4e-4f7e-9b64-6d0a5e4f3c21"));
        assert!(!of("../../etc") && !of("") && !of("a/b"));
    }
}
