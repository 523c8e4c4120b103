//! The running agent as the API knows it: [`node::Node`] over the workers, the runtime and the image store.

mod adopt;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use k8s_openapi::api::core::v1::{self as k8s, Pod};
use podholder::protocol::{Event, Fault, Process, Stage};
use tokio::net::TcpStream;
use tokio::sync::{broadcast, mpsc, oneshot};

use super::Node;
use super::counters::Counters;
use super::handler::Inside;
use super::image_api::ImageApi;
use super::manager::{Order, Start, controller};
use super::network::look;
use super::network::view::{NetworkView, TraceView};
use super::node::{
    self, Answer, AtEnd, AttachRequest, Attached, Check, Deletion, Edit, ExecProcess, ExecRequest, Explanation,
    Holder as HolderInfo, Images, InspectedContainer, InspectedMount, InspectedProcess, InspectedRootfs, Inspection, NodeError,
    Offer, Stdio,
};
use super::objects::Objects;
use super::observed::Attempt;
use super::store::Store;
use super::usage::{self, NodeUsage, Seen, Wanted};
use super::worker::Live;
use crate::model::{PodUid, ValidPod};
use crate::runtime::holder::{AttachStreams, CallError};
use crate::runtime::{LogFolder, Reading, Redaction, Sandbox, inspect as kernel};

/// See the module's page.
pub struct Handle {
    node: Arc<Node>,
    images: ImageApi,
    orders: mpsc::UnboundedSender<Order>,
    ways: Ways,
    object: Box<dyn Fn() -> k8s::Node + Send + Sync>,
    check: Box<dyn Fn() -> Vec<Check> + Send + Sync>,
    seen: Arc<Seen>,
}

/// Where pods may come from.
#[derive(Debug, Clone, Default)]
pub struct Ways {
    /// The first folder of manifests.
    pub manifests: Option<PathBuf>,
    /// Also from an API server.
    pub of_cluster: bool,
}

/// In which the manager must say that it is there.
const ALIVE: Duration = Duration::from_secs(30);

impl Handle {
    /// `object` makes the Node object, `check` looks at the machine.
    pub fn new(
        node: Arc<Node>,
        orders: mpsc::UnboundedSender<Order>,
        ways: Ways,
        object: impl Fn() -> k8s::Node + Send + Sync + 'static,
        check: impl Fn() -> Vec<Check> + Send + Sync + 'static,
    ) -> Self {
        Self {
            images: ImageApi::new(node.clone()),
            node,
            orders,
            ways,
            object: Box::new(object),
            check: Box::new(check),
            seen: Arc::default(),
        }
    }

    fn live(&self, uid: &PodUid) -> Result<Live, NodeError> {
        self.node.live(uid).ok_or_else(|| NodeError::NotFound(format!("pod with uid {uid} not found on this node")))
    }

    fn sandbox(&self, uid: &PodUid) -> Result<Sandbox, NodeError> {
        let waits = "the pod has no sandbox now: its containers don't run";
        self.live(uid)?.sandbox.ok_or_else(|| NodeError::Conflict(waits.into()))
    }

    fn running(&self, uid: &PodUid, container: &str) -> Result<(Sandbox, Attempt), NodeError> {
        let live = self.live(uid)?;
        let attempt = live.attempts.iter().find(|(n, _)| n == container).map(|(_, a)| a);
        match (live.sandbox.clone(), attempt) {
            (Some(sandbox), Some(attempt)) if attempt.finish.is_none() => Ok((sandbox, attempt.clone())),
            _ => Err(NodeError::Conflict(format!("container {container} is not running"))),
        }
    }

    fn pod(&self, uid: &PodUid) -> Result<ValidPod, NodeError> {
        let object = self.node.store.pod(uid).ok_or_else(|| NodeError::NotFound(format!("pod with uid {uid} not found")))?;
        Ok(ValidPod::trusted(Pod::clone(&object), crate::model::Origin::Stdin))
    }

    fn exec_process(
        &self,
        sandbox: &Sandbox,
        pod: &ValidPod,
        (name, argv): (&str, &[String]),
        attempt: &Attempt,
        tty: bool,
    ) -> Result<(Process, Vec<PathBuf>), NodeError> {
        let container = pod.container(name);
        let container = container.ok_or_else(|| NodeError::NotFound(format!("container {name} not found")))?;
        let identity = (container, attempt.number, attempt.id.as_str());
        let made = self.node.runtime.exec_process(sandbox, identity, argv.to_vec(), tty);
        made.map_err(|e| NodeError::Internal(e.to_string()))
    }

    fn order(&self, order: Order) -> Result<(), NodeError> {
        self.orders.send(order).map_err(|_| stopping())
    }
}

impl node::Node for Handle {
    fn store(&self) -> &Store {
        &self.node.store
    }

    fn objects(&self) -> &Objects {
        &self.node.objects.files
    }

    fn node(&self) -> k8s::Node {
        (self.object)()
    }

    fn log_folder(&self, pod: &Pod, container: &str) -> io::Result<LogFolder> {
        self.node.runtime.log_folder(&ValidPod::trusted(pod.clone(), crate::model::Origin::Stdin), container)
    }

    fn read_logs(&self, uid: &PodUid) -> Reading {
        self.node.runtime.read_logs(uid)
    }

    fn exec<'a>(&'a self, uid: &'a PodUid, request: ExecRequest) -> Answer<'a, ExecProcess> {
        async move {
            let (sandbox, attempt) = self.running(uid, &request.container)?;
            let pod = self.pod(uid)?;
            let mut fds = Vec::new();
            let mut size = None;
            let ExecRequest { container, argv, stdio } = request;
            let tty = match stdio {
                Stdio::Pipes { stdin, stdout, stderr } => {
                    fds.extend([stdin, stdout, stderr]);
                    false
                }
                Stdio::Terminal(wanted) => {
                    size = wanted;
                    true
                }
            };
            let mut process = self.exec_process(&sandbox, &pod, (&container, &argv), &attempt, tty)?;
            process.0.tty_size = size.map(|s| (s.rows, s.columns));
            let holder = sandbox.holder.clone();
            // Subscribed before the start, so that no exit can be missed.
            let events = holder.events();
            let started = holder.exec(&attempt.id, process.0, process.1, fds).await.map_err(|e| exec_error(&container, &e))?;
            let (exec, killer) = (started.id, holder.clone());
            Ok(ExecProcess {
                pid: started.pid,
                terminal: started.master,
                exit: exec_exit(events, exec).boxed(),
                kill: Box::new(move || {
                    let holder = killer.clone();
                    tokio::spawn(async move { holder.kill_exec(exec).await });
                }),
            })
        }
        .boxed()
    }

    fn attach<'a>(&'a self, uid: &'a PodUid, request: AttachRequest) -> Answer<'a, Attached> {
        async move {
            let (sandbox, attempt) = self.running(uid, &request.container)?;
            let pod = self.pod(uid)?;
            let container = pod.container(&request.container);
            let terminal = container.is_some_and(|c| c.tty == Some(true));
            let once = request.stdin && !terminal && container.is_some_and(|c| c.stdin_once == Some(true));
            let pipe = |wanted: bool| -> Result<Option<(OwnedFd, OwnedFd)>, NodeError> {
                if !wanted {
                    return Ok(None);
                }
                let pipe = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
                pipe.map(Some).map_err(|e| NodeError::Internal(format!("making a pipe: {e}")))
            };
            let (stdout, stderr) = (pipe(request.stdout)?, pipe(request.stderr && !terminal)?);
            let ((stdout, their_stdout), (stderr, their_stderr)) = (stdout.unzip(), stderr.unzip());
            let streams = AttachStreams { stdin: request.stdin, stdout: their_stdout, stderr: their_stderr };
            let stdin = sandbox.holder.attach(&attempt.id, streams).await.map_err(|e| NodeError::Internal(e.to_string()))?;
            let last = once.then(|| {
                let (holder, id) = (sandbox.holder.clone(), attempt.id.clone());
                AtEnd::new(move || drop(tokio::spawn(async move { holder.close_stdin(&id).await })))
            });
            Ok(Attached { stdin, stdout, stderr, terminal, last })
        }
        .boxed()
    }

    fn connect<'a>(&'a self, uid: &'a PodUid, port: u16) -> Answer<'a, TcpStream> {
        async move {
            let sandbox = self.sandbox(uid)?;
            let inside = Inside::new(&self.node.sockets, &sandbox.holder);
            let mut last = String::new();
            for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
                match inside.connect(SocketAddr::new(ip, port)).await {
                    Ok(stream) => return Ok(stream),
                    Err(error) if last.is_empty() => last = error.to_string(),
                    Err(_) => {}
                }
            }
            Err(NodeError::Conflict(format!("connecting to port {port} inside the pod: {last}")))
        }
        .boxed()
    }

    fn edit<'a>(&'a self, uid: &'a PodUid, edit: Edit) -> Answer<'a, ()> {
        async move {
            self.live(uid)?;
            let (done, answer) = oneshot::channel();
            self.order(Order::Edit { uid: uid.clone(), edit, done })?;
            answer.await.map_err(|_| stopping())?.map_err(NodeError::Conflict)
        }
        .boxed()
    }

    fn delete<'a>(&'a self, uid: &'a PodUid, grace: Option<i64>) -> Answer<'a, Deletion> {
        async move {
            self.live(uid)?;
            let (again, answer) = oneshot::channel();
            self.order(Order::Delete { uid: uid.clone(), grace, again })?;
            let again = answer.await.map_err(|_| stopping())?;
            let warning = "the pod's manifest is still there: the pod starts again. Remove the file to be rid of it, or use `nodeagent stop`";
            Ok(Deletion { warning: again.then(|| warning.into()) })
        }
        .boxed()
    }

    fn start<'a>(&'a self, namespace: &'a str, name: &'a str) -> Answer<'a, ()> {
        async move {
            let (found, answer) = oneshot::channel();
            self.order(Order::Start { namespace: namespace.to_owned(), name: name.to_owned(), found })?;
            match answer.await.map_err(|_| stopping())? {
                Start::Begins => Ok(()),
                Start::NotStopped => Err(NodeError::Conflict(format!("pod {namespace}/{name} was not stopped"))),
                Start::Unknown => Err(NodeError::NotFound(format!("no manifest has a pod {namespace}/{name}"))),
            }
        }
        .boxed()
    }

    fn stop<'a>(&'a self, uid: &'a PodUid) -> Answer<'a, ()> {
        async move {
            if !self.live(uid)?.of_file {
                let message = "the pod is the API server's, to which a pod that has ended never begins again: delete it there";
                return Err(NodeError::Conflict(message.into()));
            }
            if let Some(owner) = self.node.store.pod(uid).as_deref().and_then(controller) {
                let (kind, name) = (&owner.kind, &owner.name);
                let message = format!(
                    "the pod is one of {kind} {name}, which would replace it: remove the file, or ask for fewer replicas"
                );
                return Err(NodeError::Conflict(message));
            }
            self.order(Order::Stop { uid: uid.clone() })
        }
        .boxed()
    }

    fn offer<'a>(&'a self, uid: &'a PodUid) -> Answer<'a, Offer> {
        async move { adopt::offer(self, uid) }.boxed()
    }

    fn adopted<'a>(&'a self, uid: &'a PodUid) -> Answer<'a, ()> {
        adopt::adopted(self, uid).boxed()
    }

    fn give_back<'a>(&'a self, uid: &'a PodUid) -> Answer<'a, PathBuf> {
        adopt::give_back(self, uid).boxed()
    }

    fn inspect<'a>(&'a self, uid: &'a PodUid) -> Answer<'a, Inspection> {
        async move {
            let live = self.live(uid)?;
            let pod = self.pod(uid)?;
            let sandbox = self.sandbox(uid)?;
            let node = self.node.clone();
            let inspected = tokio::task::spawn_blocking(move || inspection(&node, &pod, &sandbox, &live)).await;
            inspected.map_err(|e| NodeError::Internal(e.to_string()))
        }
        .boxed()
    }

    fn explain<'a>(&'a self, uid: &'a PodUid) -> Answer<'a, Explanation> {
        async move { Ok(self.live(uid)?.trace.explanation()) }.boxed()
    }

    fn network(&self) -> Answer<'_, NetworkView> {
        look::view(&self.node).boxed()
    }

    fn trace<'a>(&'a self, uid: &'a PodUid, to: &'a str, protocol: netplug::Protocol) -> Answer<'a, TraceView> {
        async move {
            let pod = self.node.store.pod(uid).ok_or_else(|| NodeError::NotFound(format!("pod with uid {uid} not found")))?;
            look::trace(&self.node, &pod, to, protocol).await
        }
        .boxed()
    }

    fn images(&self) -> &dyn Images {
        &self.images
    }

    fn check(&self) -> Answer<'_, Vec<Check>> {
        async move { Ok((self.check)()) }.boxed()
    }

    fn usage(&self, wanted: Wanted) -> Answer<'_, NodeUsage> {
        let (node, seen) = (self.node.clone(), self.seen.clone());
        async move {
            let read = tokio::task::spawn_blocking(move || usage::of_node(&node, &seen, wanted)).await;
            read.map_err(|e| NodeError::Internal(e.to_string()))
        }
        .boxed()
    }

    fn counters(&self) -> &Counters {
        &self.node.counters
    }

    fn alive(&self) -> Answer<'_, ()> {
        async move {
            let (alive, answer) = oneshot::channel();
            self.order(Order::Answer(alive))?;
            let late = |_| NodeError::Internal(format!("the pods' manager did not answer within {} s", ALIVE.as_secs()));
            tokio::time::timeout(ALIVE, answer).await.map_err(late)?.map_err(|_| stopping())
        }
        .boxed()
    }
}

fn stopping() -> NodeError {
    NodeError::Internal("the agent is stopping".into())
}

async fn exec_exit(mut events: broadcast::Receiver<Event>, exec: u64) -> Result<i32, NodeError> {
    loop {
        match events.recv().await {
            Ok(Event::ExecExited { exec: ended, exit }) if ended == exec => return Ok(exit.code),
            Ok(_) => {}
            Err(_) => return Err(NodeError::Internal("the pod's holder ended, and the process with it".into())),
        }
    }
}

fn exec_error(container: &str, error: &CallError) -> NodeError {
    let message = format!("container {container}: {error}");
    match error.fault() {
        Some(Fault { stage: Stage::Exec, errno, .. }) => {
            let code = if *errno == nix::libc::ENOENT { 127 } else { 126 };
            NodeError::Command { code, message }
        }
        Some(_) => NodeError::Command { code: 126, message },
        None => NodeError::Internal(message),
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").field("node", &self.node).finish_non_exhaustive()
    }
}

fn inspection(node: &Node, pod: &ValidPod, sandbox: &Sandbox, live: &Live) -> Inspection {
    let holder = sandbox.holder.pid();
    Inspection {
        uid: pod.uid().to_string(),
        ips: live.ips.iter().map(IpAddr::to_string).collect(),
        holder: HolderInfo { pid: holder, pss: kernel::pss(holder) },
        namespaces: kernel::namespaces(holder)
            .into_iter()
            .filter(|(kind, _)| ["net", "ipc", "uts", "user"].contains(&kind.as_str()))
            .collect(),
        cgroups: sandbox.group.dirs(),
        containers: pod
            .all_containers()
            .chain(pod.ephemeral())
            .filter_map(|c| live.attempts.iter().find(|(name, _)| *name == c.name))
            .map(|(name, attempt)| inspect_container(node, pod, sandbox, name, attempt))
            .collect(),
    }
}

fn inspect_container(node: &Node, pod: &ValidPod, sandbox: &Sandbox, name: &str, attempt: &Attempt) -> InspectedContainer {
    let seen = node.runtime.inspect(sandbox, attempt.pid, Some(&attempt.id));
    // A Secret may be a word of its command.
    let hidden = Redaction::of(pod, node.objects.of(pod));
    let image = node.images.resolve(&attempt.note.image_id).or_else(|| node.images.resolve(&attempt.note.image));
    InspectedContainer {
        name: name.to_owned(),
        id: attempt.id.clone(),
        attempt: attempt.number,
        state: attempt.finish.as_ref().map_or_else(|| "running".into(), |f| format!("exited ({})", f.code)),
        namespaces: seen.namespaces.into_iter().collect(),
        processes: seen
            .processes
            .into_iter()
            .map(|p| InspectedProcess {
                pid: p.host_pid,
                container_pid: p.container_pids.last().copied().unwrap_or(p.host_pid),
                command: hidden.hide(p.command),
            })
            .collect(),
        mounts: seen.mounts.iter().filter_map(|line| inspect_mount(&hidden.hide(line.clone()))).collect(),
        cgroups: sandbox.group.child(&attempt.id).dirs(),
        rootfs: InspectedRootfs {
            lower: image.map(|i| i.layers.iter().rev().cloned().collect()).unwrap_or_default(),
            upper: node.runtime.settings().container_dir(pod.uid(), name, attempt.number).join("upper"),
        },
    }
}

/// A line of mountinfo: <https://docs.kernel.org/filesystems/proc.html> section 3.5.
fn inspect_mount(line: &str) -> Option<InspectedMount> {
    let (left, right) = line.split_once(" - ")?;
    let left: Vec<&str> = left.split(' ').collect();
    let mut right = right.split(' ');
    let kind = right.next()?.to_owned();
    let device = right.next().unwrap_or_default();
    let root = *left.get(3)?;
    let source = if root == "/" { device.to_owned() } else { root.to_owned() };
    Some(InspectedMount { target: (*left.get(4)?).to_owned(), kind, source, options: (*left.get(5)?).to_owned() })
}
