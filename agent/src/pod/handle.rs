//! The running agent as the API knows it: [`node::Node`] over the workers, the runtime and the image store.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::FutureExt;
use k8s_openapi::api::core::v1::{self as k8s, Pod};
use podholder::protocol::{Event, Fault, Request, Stage};
use tokio::net::TcpStream;
use tokio::sync::{broadcast, mpsc};

use super::manager::Order;
use super::node::{
    self, Answer, AttachRequest, Attached, Check, Deletion, ExecProcess, ExecRequest, Explanation, Images, ImageSummary, Inspection,
    NodeError, PullPhase, PullProgress, Reclaimed, Stdio,
};
use super::observed::Attempt;
use super::store::Store;
use super::worker::Live;
use super::Node;
use crate::image;
use crate::model::{PodUid, ValidPod};
use crate::runtime::{CallError, Holder, Sandbox};

/// See the module's page.
pub struct Handle {
    node: Arc<Node>,
    orders: mpsc::UnboundedSender<Order>,
    object: Box<dyn Fn() -> k8s::Node + Send + Sync>,
    check: Box<dyn Fn() -> Vec<Check> + Send + Sync>,
}

impl Handle {
    /// `object` makes the Node object, `check` looks at the machine.
    pub fn new(
        node: Arc<Node>,
        orders: mpsc::UnboundedSender<Order>,
        object: impl Fn() -> k8s::Node + Send + Sync + 'static,
        check: impl Fn() -> Vec<Check> + Send + Sync + 'static,
    ) -> Self {
        Self { node, orders, object: Box::new(object), check: Box::new(check) }
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

    fn order(&self, order: Order) -> Result<(), NodeError> {
        self.orders.send(order).map_err(|_| NodeError::Internal("the agent is stopping".into()))
    }
}

impl node::Node for Handle {
    fn store(&self) -> &Store {
        &self.node.store
    }

    fn node(&self) -> k8s::Node {
        (self.object)()
    }

    fn log_dir(&self, pod: &Pod, container: &str) -> PathBuf {
        self.node.runtime.log_dir(pod, container)
    }

    fn exec<'a>(&'a self, uid: &'a PodUid, request: ExecRequest) -> Answer<'a, ExecProcess> {
        async move {
            let (sandbox, attempt) = self.running(uid, &request.container)?;
            let pod = self.pod(uid)?;
            let mut fds = Vec::new();
            let mut size = None;
            let tty = match request.stdio {
                Stdio::Pipes { stdin, stdout, stderr } => {
                    fds.extend([stdin, stdout, stderr]);
                    false
                }
                Stdio::Terminal(wanted) => {
                    size = wanted;
                    true
                }
            };
            let (mut process, cgroups) = self
                .node
                .runtime
                .exec_process(&pod, &request.container, &attempt.id, request.argv.clone(), tty)
                .map_err(|e| NodeError::Internal(e.to_string()))?;
            process.tty_size = size.map(|s| (s.rows, s.columns));
            let holder = sandbox.holder.clone();
            // Subscribed before the start, so that no exit can be missed.
            let events = holder.events();
            let (exec, pid, terminal) =
                holder.exec(&attempt.id, process, cgroups, fds).await.map_err(|e| exec_error(&request.container, &request.argv, e))?;
            let killer = holder.clone();
            Ok(ExecProcess {
                pid,
                terminal,
                exit: exec_exit(events, exec).boxed(),
                kill: Box::new(move || {
                    let holder = killer.clone();
                    tokio::spawn(async move { holder.call(Request::KillExec { exec }, Vec::new()).await });
                }),
            })
        }
        .boxed()
    }

    fn attach<'a>(&'a self, uid: &'a PodUid, request: AttachRequest) -> Answer<'a, Attached> {
        async move {
            let (sandbox, attempt) = self.running(uid, &request.container)?;
            let pod = self.pod(uid)?;
            let terminal = pod.all_containers().any(|c| c.name == request.container && c.tty == Some(true));
            let pipe = |wanted: bool| -> Result<Option<(OwnedFd, OwnedFd)>, NodeError> {
                if !wanted {
                    return Ok(None);
                }
                let pipe = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
                pipe.map(Some).map_err(|e| NodeError::Internal(format!("making a pipe: {e}")))
            };
            let (stdout, stderr) = (pipe(request.stdout)?, pipe(request.stderr && !terminal)?);
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            for (read, write) in [stdout, stderr].into_iter().map(Option::unzip) {
                ours.push(read);
                theirs.extend(write);
            }
            let stdin = sandbox
                .holder
                .attach(&attempt.id, request.stdin, request.stdout, request.stderr && !terminal, theirs)
                .await
                .map_err(|e| NodeError::Internal(e.to_string()))?;
            let stderr = ours.pop().flatten();
            Ok(Attached { stdin, stdout: ours.pop().flatten(), stderr, terminal })
        }
        .boxed()
    }

    fn connect<'a>(&'a self, uid: &'a PodUid, port: u16) -> Answer<'a, TcpStream> {
        async move {
            let sandbox = self.sandbox(uid)?;
            let mut last = String::new();
            for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
                match connect_in(&sandbox.holder, SocketAddr::new(ip, port)).await {
                    Ok(stream) => return Ok(stream),
                    Err(error) if last.is_empty() => last = error,
                    Err(_) => {}
                }
            }
            Err(NodeError::Conflict(format!("connecting to port {port} inside the pod: {last}")))
        }
        .boxed()
    }

    fn delete<'a>(&'a self, uid: &'a PodUid, grace: Option<i64>) -> Answer<'a, Deletion> {
        async move {
            self.live(uid)?;
            self.order(Order::Delete { uid: uid.clone(), grace })?;
            let warning = "the pod's manifest is still there: the pod starts again. Remove the file to be rid of it, or use `nodeagent stop`";
            Ok(Deletion { warning: Some(warning.into()) })
        }
        .boxed()
    }

    fn stop<'a>(&'a self, uid: &'a PodUid) -> Answer<'a, ()> {
        async move {
            self.live(uid)?;
            self.order(Order::Stop { uid: uid.clone() })
        }
        .boxed()
    }

    fn inspect<'a>(&'a self, uid: &'a PodUid) -> Answer<'a, Inspection> {
        async move {
            let live = self.live(uid)?;
            let pod = self.pod(uid)?;
            let sandbox = self.sandbox(uid)?;
            let runtime = self.node.runtime.clone();
            let inspected = tokio::task::spawn_blocking(move || runtime.inspect(&pod, &sandbox, &live.attempts, &live.ips)).await;
            inspected.map_err(|e| NodeError::Internal(e.to_string()))
        }
        .boxed()
    }

    fn explain<'a>(&'a self, uid: &'a PodUid) -> Answer<'a, Explanation> {
        async move { Ok(self.live(uid)?.trace.explanation()) }.boxed()
    }

    fn images(&self) -> &dyn Images {
        self
    }

    fn check(&self) -> Answer<'_, Vec<Check>> {
        async move { Ok((self.check)()) }.boxed()
    }
}

/// A connection from inside the pod's network namespace: the holder, which is in it, opens the socket.
async fn connect_in(holder: &Holder, to: SocketAddr) -> Result<TcpStream, String> {
    let domain = if to.is_ipv4() { nix::libc::AF_INET } else { nix::libc::AF_INET6 };
    let socket = holder.socket(domain, nix::libc::SOCK_STREAM, 0).await.map_err(|e| e.to_string())?;
    let socket = tokio::net::TcpSocket::from_std_stream(std::net::TcpStream::from(socket));
    socket.connect(to).await.map_err(|e| e.to_string())
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

fn exec_error(container: &str, argv: &[String], error: CallError) -> NodeError {
    let message = format!("container {container}: {error}");
    match error.fault() {
        Some(Fault { stage: Stage::Exec, errno, .. }) => {
            let code = if *errno == nix::libc::ENOENT { 127 } else { 126 };
            NodeError::Command { code, message: format!("{message} (command {:?})", argv.first().map_or("", String::as_str)) }
        }
        Some(_) => NodeError::Command { code: 126, message },
        None => NodeError::Internal(message),
    }
}

// Images.

impl Handle {
    fn summary(image: &image::Image, uses: &HashMap<String, usize>) -> ImageSummary {
        ImageSummary {
            id: image.id.clone(),
            tags: image.names.clone(),
            digests: image.repo_digests.clone(),
            size: image.size,
            created: image.created.clone(),
            pinned: image.pinned,
            in_use: uses.get(&image.id).copied().unwrap_or(0),
        }
    }
}

fn image_error(error: &image::Error) -> NodeError {
    let message = error.to_string();
    match error {
        image::Error::NotFound { .. } => NodeError::NotFound(message),
        image::Error::InvalidName { .. } => NodeError::Invalid(message),
        image::Error::InUse { .. } => NodeError::Conflict(message),
        _ => NodeError::Internal(message),
    }
}

impl Images for Handle {
    fn list(&self) -> Answer<'_, Vec<ImageSummary>> {
        async move {
            let uses = self.node.images.uses();
            Ok(self.node.images.list().iter().map(|i| Self::summary(i, &uses)).collect())
        }
        .boxed()
    }

    fn inspect<'a>(&'a self, image: &'a str) -> Answer<'a, serde_json::Value> {
        async move { self.node.images.inspect(image).map_err(|e| image_error(&e)) }.boxed()
    }

    fn pull<'a>(&'a self, image: &'a str, progress: mpsc::Sender<PullProgress>) -> Answer<'a, ImageSummary> {
        async move {
            let tell = move |p: image::Progress| {
                // A slow reader loses steps, never the pull its speed.
                let _ = progress.try_send(pull_progress(p));
            };
            let image = self.node.images.ensure(image, image::PullPolicy::Always, &[], &tell).await.map_err(|e| image_error(&e))?;
            Ok(Self::summary(&image, &self.node.images.uses()))
        }
        .boxed()
    }

    fn load<'a>(&'a self, archive: &'a Path) -> Answer<'a, Vec<ImageSummary>> {
        async move {
            let images = self.node.images.load(archive, &|_| ()).await.map_err(|e| image_error(&e))?;
            let uses = self.node.images.uses();
            Ok(images.iter().map(|i| Self::summary(i, &uses)).collect())
        }
        .boxed()
    }

    fn remove<'a>(&'a self, image: &'a str) -> Answer<'a, Reclaimed> {
        async move { self.node.images.remove(image).await.map(reclaimed).map_err(|e| image_error(&e)) }.boxed()
    }

    fn prune(&self) -> Answer<'_, Reclaimed> {
        async move { self.node.images.prune().await.map(reclaimed).map_err(|e| image_error(&e)) }.boxed()
    }
}

fn reclaimed(freed: image::Freed) -> Reclaimed {
    Reclaimed { removed: freed.images, bytes: freed.bytes }
}

fn pull_progress(p: image::Progress) -> PullProgress {
    let phase = match p.phase {
        image::Phase::Downloading => PullPhase::Downloading,
        image::Phase::Unpacking => PullPhase::Unpacking,
        image::Phase::Complete => PullPhase::Complete,
        image::Phase::Exists => PullPhase::Exists,
    };
    PullProgress { blob: p.digest, phase, done: p.done, total: p.total }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").field("node", &self.node).finish_non_exhaustive()
    }
}
