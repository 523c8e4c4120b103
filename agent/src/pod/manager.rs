//! Which pods there are: takes what the sources say, keeps one worker a pod, adopts what an agent before this one left.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::Node;
use super::completed;
use super::node::Edit;
use super::observed::Then;
use super::recorder::Level;
use super::shutdown::Cause;
use super::worker::{Command, Live, LiveRef, Worker};
use crate::model::{ObjectKind, ObjectRef, Origin, PodUid, ValidObject, ValidPod, references};
use crate::runtime::{self, Adopted, Sandbox, remove_tree};
use crate::shutdown::Candidate;
use crate::source;
use podholder::protocol::HolderState;

/// What the API asks of the manager.
#[derive(Debug)]
pub enum Order {
    /// End a pod; one whose manifest is still there begins again.
    Delete {
        /// Which.
        uid: PodUid,
        /// Seconds; unset: the spec's.
        grace: Option<i64>,
        /// Hears whether the pod begins again: its manifest is still there.
        again: oneshot::Sender<bool>,
    },
    /// End a pod and keep it so until its manifest changes.
    Stop {
        /// Which.
        uid: PodUid,
    },
    /// Let a stopped pod begin again.
    Start {
        /// metadata.namespace.
        namespace: String,
        /// metadata.name.
        name: String,
        /// Hears what comes of it.
        found: oneshot::Sender<Start>,
    },
    /// Edit a running pod.
    Edit {
        /// Which.
        uid: PodUid,
        /// What.
        edit: Edit,
        /// Hears when it is done, or why it isn't.
        done: oneshot::Sender<Result<(), String>>,
    },
    /// Somebody deleted the pod's link.
    Rewire(PodUid),
    /// The node can't bear a pod any longer.
    Evict {
        /// Which.
        uid: PodUid,
        /// The kubelet's sentences.
        message: String,
        /// From SIGTERM to SIGKILL, at most.
        grace: Duration,
    },
    /// All pods are going to end. For a drain, nothing new begins; a shutdown has admission see to that.
    Close {
        /// Why.
        cause: Cause,
        /// Hears which pods there are: each is told by an order of its own.
        pods: oneshot::Sender<Vec<Candidate>>,
    },
    /// One of them has its turn.
    End {
        /// Which.
        uid: PodUid,
        /// From SIGTERM to SIGKILL.
        grace: Duration,
        /// Why.
        cause: Cause,
    },
    /// Say that orders are still followed.
    Answer(oneshot::Sender<()>),
}

/// What came of [`Order::Start`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// It begins.
    Begins,
    /// It was not stopped.
    NotStopped,
    /// No manifest has such a pod.
    Unknown,
}

/// A running worker.
struct Running {
    commands: mpsc::UnboundedSender<Command>,
    live: LiveRef,
    candidate: Candidate,
}

/// See the module's page.
pub struct Manager {
    node: Arc<Node>,
    workers: JoinSet<PodUid>,
    running: HashMap<PodUid, Running>,
    /// What the sources want, by UID.
    wanted: HashMap<PodUid, ValidPod>,
    adopted: HashMap<PodUid, Adopted>,
    /// Pods of which nothing is known but what they left; it is being cleared away.
    clearing: HashSet<PodUid>,
    /// Files that are wrong now.
    faults: HashSet<PathBuf>,
    /// Pods of an agent before this one that no source named while a file was wrong: perhaps it is theirs. They run on, or stay completed.
    in_doubt: HashSet<PodUid>,
    /// Claims that were deleted and ask that their data go too, as soon as no pod uses them.
    reclaim: Vec<ObjectRef>,
    draining: bool,
}

/// The sources, as far as what they don't name any more is theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Whose {
    /// Folders, files, standard input.
    Files,
    /// The API server.
    Cluster,
}

impl Whose {
    fn of(pod: &ValidPod) -> Self {
        if *pod.origin() == Origin::Api { Self::Cluster } else { Self::Files }
    }
}

impl Manager {
    /// Finds what an agent before this one left; its pods go on as soon as the sources name them.
    pub async fn new(node: Arc<Node>) -> Self {
        let adopted = node.runtime.adopt().await.into_iter().map(|a| (a.uid.clone(), a)).collect();
        Self {
            node,
            workers: JoinSet::new(),
            running: HashMap::new(),
            wanted: HashMap::new(),
            adopted,
            clearing: HashSet::new(),
            faults: HashSet::new(),
            in_doubt: HashSet::new(),
            reclaim: Vec::new(),
            draining: false,
        }
    }

    /// Until the sources and the API have hung up, or all pods are drained.
    pub async fn run(mut self, mut source: mpsc::Receiver<source::Event>, mut orders: mpsc::UnboundedReceiver<Order>) {
        let mut sourced = true;
        loop {
            if self.draining && self.running.is_empty() && self.clearing.is_empty() {
                return;
            }
            tokio::select! {
                event = source.recv(), if sourced => match event {
                    Some(event) => self.source(event),
                    None => sourced = false,
                },
                order = orders.recv() => match order {
                    Some(order) => self.order(order),
                    None => return,
                },
                Some(ended) = self.workers.join_next() => self.ended(ended),
            }
        }
    }

    fn source(&mut self, event: source::Event) {
        match event {
            // Workloads are the workload controller's, which makes pods of them.
            source::Event::Init | source::Event::ApplyWorkload(_) | source::Event::DeleteWorkload(_) => {}
            source::Event::Apply(pod) => self.apply(pod),
            source::Event::ApplyObject(object) => {
                let (object, wrong) = self.node.services.admit(object);
                for wrong in wrong {
                    self.node.recorder.node(Level::Warning, "InvalidService", &wrong);
                }
                self.reclaim.retain(|claim| claim != object.key());
                self.put(object);
                self.serve_again();
            }
            source::Event::DeleteObject(key) => {
                self.node.services.forget(&key);
                self.node.store.remove_object(&key);
                self.serve_again();
                if self.node.objects.files.remove(&key).is_some_and(|old| asks_deletion(&old)) {
                    self.reclaim.push(key);
                    self.reclaim_unused();
                }
            }
            source::Event::InitDone => {
                self.told(Whose::Files);
                self.node.services.all_told();
                self.serve_again();
            }
            source::Event::Listed => self.told(Whose::Cluster),
            source::Event::End { pod, grace } => self.end(pod, grace),
            source::Event::Told { uid, conditions } => {
                // Of one that ends nothing more is heard; nobody waits for the answer.
                let (done, _) = oneshot::channel();
                self.tell(&uid, Command::Edit { edit: Edit::Conditions(conditions), done });
            }
            source::Event::Delete(uid) => self.delete(&uid, Whose::Files),
            source::Event::Gone(uid) => self.delete(&uid, Whose::Cluster),
            source::Event::Fault { file, errors } => {
                for error in errors {
                    self.node.recorder.node(Level::Warning, "InvalidManifest", &error.to_string());
                }
                tracing::warn!(file = %file.display(), "the manifest is not as it should be: its last good version runs on");
                self.faults.insert(file);
            }
            source::Event::Mended { file } => {
                self.faults.remove(&file);
                if self.faults.is_empty() {
                    for uid in std::mem::take(&mut self.in_doubt) {
                        self.tell(&uid, Command::End { grace: None, then: Then::Gone });
                    }
                }
                self.node.recorder.node(Level::Normal, "ManifestMended", &format!("{} is as it should be again", file.display()));
            }
        }
    }

    fn put(&self, object: ValidObject) {
        self.node.store.put_object(&object);
        self.node.objects.files.put(object);
    }

    /// Addresses and node ports that somebody let go are others' who ask for them.
    fn serve_again(&self) {
        for service in self.node.services.again() {
            self.put(service);
        }
    }

    fn apply(&mut self, pod: ValidPod) {
        let uid = pod.uid().clone();
        if self.is_anothers(&uid, Whose::of(&pod)) {
            return;
        }
        let edited = self.wanted.insert(uid.clone(), pod.clone()).is_some_and(|old| old.object() != pod.object());
        self.in_doubt.remove(&uid);
        if self.draining {
            return;
        }
        if self.node.is_stopped(&uid) {
            if !edited {
                return;
            }
            self.node.stopped(&uid, false);
        }
        match self.running.get_mut(&uid) {
            Some(running) => {
                running.candidate = Candidate::of(&pod);
                let _ = running.commands.send(Command::Update(pod));
            }
            // It begins once nothing of its predecessor is left.
            None if self.clearing.contains(&uid) => {}
            None => self.begin(pod),
        }
    }

    fn begin(&mut self, pod: ValidPod) {
        let uid = pod.uid().clone();
        let adopted = self.adopted.remove(&uid);
        let candidate = Candidate::of(&pod);
        let live = self.live(&pod);
        let node = self.node.clone();
        let (commands, inbox) = mpsc::unbounded_channel();
        let worker = match adopted {
            // The worker begins with the spec that the containers were made from; the new one is an update like any other.
            Some(Adopted { pod: old, sandbox: Ok((sandbox, state)), .. }) => {
                let _ = commands.send(Command::Update(pod.clone()));
                Worker::adopt(node, old.unwrap_or(pod), live.clone(), sandbox, &state)
            }
            Some(Adopted { pod: old, sandbox: Err(error), .. }) => {
                self.node.recorder.pod(
                    &pod,
                    None,
                    Level::Warning,
                    "SandboxChanged",
                    &format!("Pod sandbox changed, it will be killed and re-created: {error}"),
                );
                Worker::bereft(node, old.unwrap_or_else(|| pod.clone()), pod, live.clone())
            }
            None => Worker::begin(node, pod, live.clone()),
        };
        self.spawn(candidate, worker, live, commands, inbox);
    }

    /// What others see of a pod's worker, before it says its first word.
    fn live(&self, pod: &ValidPod) -> LiveRef {
        let live = Arc::new(Mutex::new(Live { of_file: Whose::of(pod) == Whose::Files, ..Live::default() }));
        self.node.live.write().unwrap_or_else(PoisonError::into_inner).insert(pod.uid().clone(), live.clone());
        live
    }

    fn spawn(
        &mut self,
        candidate: Candidate,
        worker: Worker,
        live: LiveRef,
        commands: mpsc::UnboundedSender<Command>,
        inbox: mpsc::UnboundedReceiver<Command>,
    ) {
        let uid = candidate.uid.clone();
        if *self.node.admission.going_down().borrow() {
            // One of an agent before this one, which is met when its turn may have been.
            let _ = commands.send(Command::GoDown { grace: candidate.grace });
        }
        self.running.insert(uid.clone(), Running { commands, live, candidate });
        self.workers.spawn(async move {
            worker.run(inbox).await;
            uid
        });
    }

    fn delete(&mut self, uid: &PodUid, whose: Whose) {
        if self.is_anothers(uid, whose) {
            return;
        }
        self.wanted.remove(uid);
        self.node.stopped(uid, false);
        self.tell(uid, Command::End { grace: None, then: Then::Gone });
    }

    /// Of an adopted pod one of the sources alone is heard.
    fn is_anothers(&self, uid: &PodUid, whose: Whose) -> bool {
        self.node.adoptions.whose(uid).is_some_and(|owner| owner != whose)
    }

    fn told(&mut self, whose: Whose) {
        let mut awaited = self.node.awaited.borrow().clone();
        awaited.remove(&whose);
        self.forget_unwanted(&awaited);
        self.node.awaited.send_replace(awaited);
    }

    /// A pod of the API server: it is told of its end, and seen to be gone, also where nothing runs of it.
    fn end(&mut self, pod: ValidPod, grace: Option<i64>) {
        let uid = pod.uid().clone();
        self.wanted.remove(&uid);
        self.node.stopped(&uid, false);
        if !self.running.contains_key(&uid) {
            match self.adopted.remove(&uid) {
                Some(adopted) => self.end_orphan(adopted, grace),
                None if self.clearing.contains(&uid) => {}
                None if self.node.has_leftovers(&uid) => {
                    self.node.store.put_pod(&uid, Pod::clone(pod.object()));
                    self.clear(uid);
                }
                None => {
                    self.node.store.put_pod(&uid, Pod::clone(pod.object()));
                    self.node.store.remove_pod(&uid);
                }
            }
            return;
        }
        self.tell(&uid, Command::End { grace, then: Then::Gone });
    }

    /// The sources, but those awaited, have named all that they want: what else runs is to end. So is what was told to stay stopped, where
    /// an agent before this one didn't see to it.
    fn forget_unwanted(&mut self, awaited: &HashSet<Whose>) {
        let whose = |pod: &ValidPod| self.node.adoptions.whose(pod.uid()).unwrap_or_else(|| Whose::of(pod));
        let theirs = |a: &Adopted| a.pod.as_ref().is_none_or(|pod| !awaited.contains(&whose(pod)));
        let adopted = std::mem::take(&mut self.adopted);
        let (orphans, others): (HashMap<_, _>, HashMap<_, _>) =
            adopted.into_iter().filter(|(uid, _)| !self.is_to_run(uid)).partition(|(_, a)| theirs(a));
        self.adopted = others;
        for orphan in orphans.into_values() {
            match orphan {
                Adopted { uid, pod: Some(pod), sandbox } if self.is_in_doubt(&pod) => {
                    self.in_doubt.insert(uid.clone());
                    self.take_over(pod, sandbox, None);
                }
                orphan => self.end_orphan(orphan, None),
            }
        }
        if !awaited.is_empty() {
            return;
        }
        for uid in self.node.runtime.leftovers().into_iter().chain(self.node.csi.pods()) {
            let known = self.is_to_run(&uid) || self.running.contains_key(&uid) || self.clearing.contains(&uid);
            if known {
                continue;
            }
            match completed::read(&self.node.runtime, &uid).filter(|completed| self.is_in_doubt(&completed.pod)) {
                Some(completed) => {
                    self.in_doubt.insert(uid);
                    self.begin(completed.pod);
                }
                None => self.clear(uid),
            }
        }
        // What a file that is wrong now, or is not asked any more, says of its pods may hold again.
        if self.faults.is_empty() && !self.draining {
            self.node.forget_stopped(|uid| self.wanted.contains_key(uid));
        }
        self.node.retain(self.running.keys());
    }

    fn is_to_run(&self, uid: &PodUid) -> bool {
        self.wanted.contains_key(uid) && !self.node.is_stopped(uid)
    }

    /// The file that it is of is wrong now.
    fn is_in_doubt(&self, pod: &ValidPod) -> bool {
        matches!(pod.origin(), Origin::File { path, .. } if self.faults.contains(path)) && !self.node.is_stopped(pod.uid())
    }

    fn end_orphan(&mut self, orphan: Adopted, grace: Option<i64>) {
        // In a drain its turn comes as the others'; what has to be made before it ends has none.
        let at_once = !self.draining || orphan.sandbox.is_err();
        let end = at_once.then_some(Command::End { grace, then: Then::Gone });
        match orphan.pod {
            Some(pod) => self.take_over(pod, orphan.sandbox, end),
            None => self.clear(orphan.uid),
        }
    }

    /// A worker for a pod of an agent before this one that no source names; `first` is what it is told.
    fn take_over(&mut self, pod: ValidPod, sandbox: Result<(Sandbox, HolderState), runtime::Error>, first: Option<Command>) {
        let live = self.live(&pod);
        let (commands, inbox) = mpsc::unbounded_channel();
        let candidate = Candidate::of(&pod);
        let worker = match sandbox {
            Ok((sandbox, state)) => Worker::adopt(self.node.clone(), pod, live.clone(), sandbox, &state),
            Err(_) => Worker::bereft(self.node.clone(), pod.clone(), pod, live.clone()),
        };
        first.into_iter().for_each(|command| drop(commands.send(command)));
        self.spawn(candidate, worker, live, commands, inbox);
    }

    /// Removes what is left of a pod that nobody knows any more.
    fn clear(&mut self, uid: PodUid) {
        let node = self.node.clone();
        self.clearing.insert(uid.clone());
        self.workers.spawn(async move {
            if let Err(error) = node.clear(&uid).await {
                tracing::warn!(%uid, %error, "what is left of a pod could not be cleared away; the next start of the agent tries again");
            }
            uid
        });
    }

    fn order(&mut self, order: Order) {
        match order {
            Order::Delete { uid, grace, again } => {
                // A workload's pod is replaced by another one: its controller sees that it is gone.
                if self.wanted.get(&uid).is_some_and(|pod| controller(pod).is_some()) {
                    self.wanted.remove(&uid);
                }
                let wanted = self.wanted.contains_key(&uid) && !self.draining;
                let _ = again.send(wanted);
                let then = if wanted { Then::Again } else { Then::Gone };
                self.tell(&uid, Command::End { grace, then });
            }
            Order::Stop { uid } => {
                self.node.stopped(&uid, true);
                self.tell(&uid, Command::End { grace: None, then: Then::Gone });
            }
            Order::Start { namespace, name, found } => {
                let _ = found.send(self.start(&namespace, &name));
            }
            Order::Edit { uid, edit, done } => self.tell(&uid, Command::Edit { edit, done }),
            Order::Rewire(uid) => self.tell(&uid, Command::Rewire),
            Order::Evict { uid, message, grace } => self.tell(&uid, Command::Evict { message, grace }),
            Order::Answer(alive) => {
                let _ = alive.send(());
            }
            Order::Close { cause, pods } => {
                if cause == Cause::Drain {
                    self.drain();
                }
                // Who asked has thought better of it.
                let _ = pods.send(self.running.values().map(|running| running.candidate.clone()).collect());
            }
            Order::End { uid, grace, cause: Cause::Drain } => {
                self.tell(&uid, Command::End { grace: i64::try_from(grace.as_secs()).ok(), then: Then::Gone });
            }
            Order::End { uid, grace, cause: Cause::Shutdown } => self.tell(&uid, Command::GoDown { grace }),
        }
    }

    /// Nothing begins any more. What the sources hadn't come to yet is there to be ended, too.
    fn drain(&mut self) {
        self.draining = true;
        self.wanted.clear();
        self.faults.clear();
        self.forget_unwanted(&HashSet::new());
    }

    fn start(&mut self, namespace: &str, name: &str) -> Start {
        let wanted = self.wanted.values().find(|pod| pod.name() == name && pod.namespace() == namespace && !self.draining);
        let Some(pod) = wanted.cloned() else { return Start::Unknown };
        if !self.node.is_stopped(pod.uid()) {
            return Start::NotStopped;
        }
        self.node.stopped(pod.uid(), false);
        // One that still ends begins again when it has.
        if !self.running.contains_key(pod.uid()) {
            self.begin(pod);
        }
        Start::Begins
    }

    fn tell(&self, uid: &PodUid, command: Command) {
        if let Some(running) = self.running.get(uid) {
            let _ = running.commands.send(command);
        }
    }

    /// Deletes the data of claims that asked for it and that no pod uses any more.
    fn reclaim_unused(&mut self) {
        if self.reclaim.is_empty() {
            return;
        }
        let pods = self.running.keys().filter_map(|uid| self.node.store.pod(uid));
        let used: HashSet<ObjectRef> =
            pods.flat_map(|pod| references::of(&ValidPod::trusted(Pod::clone(&pod), Origin::Stdin))).collect();
        let (wait, free): (Vec<_>, Vec<_>) = std::mem::take(&mut self.reclaim).into_iter().partition(|c| used.contains(c));
        self.reclaim = wait;
        for claim in free {
            let folder = self.node.runtime.settings().claim_dir(&claim.namespace, &claim.name);
            tracing::info!(claim = %claim, folder = %folder.display(), "the claim's data is deleted, as it asks");
            tokio::task::spawn_blocking(move || {
                if let Err(error) = remove_tree(&folder) {
                    tracing::warn!(folder = %folder.display(), %error, "the claim's data could not be deleted");
                }
            });
        }
    }

    fn ended(&mut self, ended: Result<PodUid, tokio::task::JoinError>) {
        let uid = match ended {
            Ok(uid) => uid,
            Err(error) => {
                tracing::error!(%error, "a pod's worker failed: this is a bug. Its pod is adopted anew when the agent restarts");
                self.running.retain(|_, r| !r.commands.is_closed());
                return;
            }
        };
        self.running.remove(&uid);
        self.clearing.remove(&uid);
        self.node.live.write().unwrap_or_else(PoisonError::into_inner).remove(&uid);
        self.node.store.remove_pod(&uid);
        self.reclaim_unused();
        // Made again while it ended.
        if let Some(pod) = self.wanted.get(&uid).filter(|_| !self.draining && self.is_to_run(&uid)).cloned() {
            self.begin(pod);
        }
    }
}

/// The workload that made the pod.
pub(super) fn controller(pod: &Pod) -> Option<&OwnerReference> {
    pod.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// What a claim says for its data to go with it; else they stay.
const RECLAIM: &str = "nodeagent.dev/reclaim-policy";

fn asks_deletion(object: &ValidObject) -> bool {
    let annotations = object.body().metadata().annotations.as_ref();
    object.key().kind == ObjectKind::PersistentVolumeClaim
        && annotations.and_then(|a| a.get(RECLAIM)).is_some_and(|policy| policy == "Delete")
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running")
            .field("live", &self.live.lock().map(|l: std::sync::MutexGuard<'_, Live>| l.ips.clone()).ok())
            .finish_non_exhaustive()
    }
}
