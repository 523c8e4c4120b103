//! What the API needs of the running agent beyond its [`Store`]: acts on pods, looks into them, images. The agent implements it,
//! the API and its tests know only this. All futures may be dropped at any point: nothing half-done stays behind.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{EphemeralContainer, Node as NodeObject, Pod, PodCondition};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::model::PodUid;
use crate::pod::counters::Counters;
use crate::pod::network::view::{NetworkView, TraceView};
use crate::pod::objects::Objects;
use crate::pod::store::Store;
use crate::pod::usage::{NodeUsage, Wanted};
use crate::runtime::{LogFolder, Reading};

/// What an act on the node comes to.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, NodeError>>;

/// Why an act came to nothing, sorted as an HTTP client sees it. The text is a whole sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// There is no such pod, container or image.
    #[error("{0}")]
    NotFound(String),
    /// The request can never succeed as it is.
    #[error("{0}")]
    Invalid(String),
    /// Not in the present state: the container isn't running, the image is in use.
    #[error("{0}")]
    Conflict(String),
    /// An exec's command isn't there (127) or can't be executed (126).
    #[error("{message}")]
    Command {
        /// The exit code that a shell would give.
        code: i32,
        /// Which command, and what the kernel said.
        message: String,
    },
    /// All else.
    #[error("{0}")]
    Internal(String),
}

/// Rows and columns of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters a line.
    pub columns: u16,
}

/// Where the bytes of a process come from and go to.
#[derive(Debug)]
pub enum Stdio {
    /// The process gets these three; nobody else keeps them.
    Pipes {
        /// Its stdin.
        stdin: OwnedFd,
        /// Its stdout.
        stdout: OwnedFd,
        /// Its stderr.
        stderr: OwnedFd,
    },
    /// A pty is made; its master comes back.
    Terminal(Option<TerminalSize>),
}

/// One more process in a running container.
#[derive(Debug)]
pub struct ExecRequest {
    /// The container's name.
    pub container: String,
    /// Never empty.
    pub argv: Vec<String>,
    /// Its stdin, stdout and stderr.
    pub stdio: Stdio,
}

/// A process that [`Node::exec`] started.
pub struct ExecProcess {
    /// In the host's PID namespace.
    pub pid: i32,
    /// The master of its pty, for [`Stdio::Terminal`].
    pub terminal: Option<OwnedFd>,
    /// Its exit code: 128 + signal when a signal ended it.
    pub exit: BoxFuture<'static, Result<i32, NodeError>>,
    /// Sends SIGKILL to its process group. Harmless after its end.
    pub kill: Box<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for ExecProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecProcess").field("pid", &self.pid).field("terminal", &self.terminal).finish_non_exhaustive()
    }
}

/// Which streams of a container's first process are wanted.
#[derive(Debug, Clone)]
pub struct AttachRequest {
    /// The container's name.
    pub container: String,
    /// The write end of its stdin.
    pub stdin: bool,
    /// What it writes to stdout from now on.
    pub stdout: bool,
    /// What it writes to stderr from now on; a terminal has none.
    pub stderr: bool,
}

/// The descriptors that were asked for, as far as the container has them.
#[derive(Debug, Default)]
pub struct Attached {
    /// The write end of stdin; of a terminal, its master.
    pub stdin: Option<OwnedFd>,
    /// The read end of a pipe. End of file: the container ended.
    pub stdout: Option<OwnedFd>,
    /// The read end of a pipe.
    pub stderr: Option<OwnedFd>,
    /// Whether the container has a terminal: then `stdin` takes window sizes.
    pub terminal: bool,
    /// `stdinOnce`: to be dropped when no more goes to its stdin, which has its end then.
    pub last: Option<AtEnd>,
}

/// Does something when it is dropped.
pub struct AtEnd(Option<Box<dyn FnOnce() + Send>>);

impl AtEnd {
    /// Does this.
    pub fn new(what: impl FnOnce() + Send + 'static) -> Self {
        Self(Some(Box::new(what)))
    }
}

impl Drop for AtEnd {
    fn drop(&mut self) {
        if let Some(what) = self.0.take() {
            what();
        }
    }
}

impl fmt::Debug for AtEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AtEnd")
    }
}

/// What may be edited of a pod that runs, besides by its manifest.
#[derive(Debug, Clone, PartialEq)]
pub enum Edit {
    /// All its ephemeral containers, with their defaults and checked: what there is and what is new.
    Ephemeral(Vec<EphemeralContainer>),
    /// The conditions that others tell of it, for its readiness gates.
    Conditions(Vec<PodCondition>),
}

/// What a deletion leaves to say.
#[derive(Debug, Clone, Default)]
pub struct Deletion {
    /// For the one who deletes, such as that the manifest still exists and the pod will start again.
    pub warning: Option<String>,
}

/// The running agent. See the module's page.
pub trait Node: Send + Sync + 'static {
    /// Pods and events.
    fn store(&self) -> &Store;
    /// What manifests give beside pods.
    fn objects(&self) -> &Objects;
    /// The Kubernetes Node object, as it is now.
    fn node(&self) -> NodeObject;
    /// The folder with a container's `N.log`, N being the attempt.
    fn log_folder(&self, pod: &Pod, container: &str) -> io::Result<LogFolder>;
    /// Keeps a pod's logs as long as the answer lives, also when the pod is removed meanwhile.
    fn read_logs(&self, uid: &PodUid) -> Reading;
    /// Runs one more process in a container.
    fn exec<'a>(&'a self, uid: &'a PodUid, request: ExecRequest) -> Answer<'a, ExecProcess>;
    /// Joins a container's streams.
    fn attach<'a>(&'a self, uid: &'a PodUid, request: AttachRequest) -> Answer<'a, Attached>;
    /// Connects to a port inside the pod's network namespace: 127.0.0.1, then `::1`.
    fn connect<'a>(&'a self, uid: &'a PodUid, port: u16) -> Answer<'a, TcpStream>;
    /// Edits a running pod; seen in its object when this returns.
    fn edit<'a>(&'a self, uid: &'a PodUid, edit: Edit) -> Answer<'a, ()>;
    /// Begins a pod's end, with its own grace period or this one in seconds. A pod whose manifest still exists starts anew.
    fn delete<'a>(&'a self, uid: &'a PodUid, grace: Option<i64>) -> Answer<'a, Deletion>;
    /// Ends a pod and keeps it ended until its manifest changes.
    fn stop<'a>(&'a self, uid: &'a PodUid) -> Answer<'a, ()>;
    /// Lets a stopped pod begin again. It is named, not identified: the store doesn't have it.
    fn start<'a>(&'a self, namespace: &'a str, name: &'a str) -> Answer<'a, ()>;
    /// What an API server is to create so that a file's pod becomes its own as it runs.
    fn offer<'a>(&'a self, uid: &'a PodUid) -> Answer<'a, Offer>;
    /// Waits until that has happened.
    fn adopted<'a>(&'a self, uid: &'a PodUid) -> Answer<'a, ()>;
    /// Makes a pod of the API server a file's, and says which one.
    fn give_back<'a>(&'a self, uid: &'a PodUid) -> Answer<'a, PathBuf>;
    /// What the pod is on this machine.
    fn inspect<'a>(&'a self, uid: &'a PodUid) -> Answer<'a, Inspection>;
    /// How the pod's start went, and what it waits for.
    fn explain<'a>(&'a self, uid: &'a PodUid) -> Answer<'a, Explanation>;
    /// The node's network.
    fn network(&self) -> Answer<'_, NetworkView>;
    /// What would become of a pod's connection to `HOST:PORT`.
    fn trace<'a>(&'a self, uid: &'a PodUid, to: &'a str, protocol: netplug::Protocol) -> Answer<'a, TraceView>;
    /// The image store.
    fn images(&self) -> &dyn Images;
    /// Whether this machine can run pods.
    fn check(&self) -> Answer<'_, Vec<Check>>;
    /// What the node and its pods use now.
    fn usage(&self, wanted: Wanted) -> Answer<'_, NodeUsage>;
    /// What was counted since the agent's start.
    fn counters(&self) -> &Counters;
    /// Whether the one who manages pods answers.
    fn alive(&self) -> Answer<'_, ()>;
}

/// What becomes the API server's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Offer {
    /// As it is to be created: the node knows it by an annotation.
    pub pod: Pod,
    /// ConfigMaps and Secrets of files that it refers to.
    pub objects: Vec<serde_json::Value>,
}

/// Operations on the image store.
pub trait Images: Send + Sync {
    /// All images.
    fn list(&self) -> Answer<'_, Vec<ImageSummary>>;
    /// Everything about one: reference, digest or unique prefix of a digest of at least 6 hex digits.
    fn inspect<'a>(&'a self, image: &'a str) -> Answer<'a, serde_json::Value>;
    /// Fetches an image. Progress is sent by `try_send`: a slow reader loses steps, never the pull its speed.
    fn pull<'a>(&'a self, image: &'a str, progress: mpsc::Sender<PullProgress>) -> Answer<'a, ImageSummary>;
    /// Takes the images of an archive (docker-archive or OCI, plain or compressed).
    fn load<'a>(&'a self, archive: &'a Path) -> Answer<'a, Vec<ImageSummary>>;
    /// Removes a reference, and the image when it was the last one.
    fn remove<'a>(&'a self, image: &'a str) -> Answer<'a, Reclaimed>;
    /// Removes every image that no pod uses and nobody pinned.
    fn prune(&self) -> Answer<'_, Reclaimed>;
}

/// An image in the store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageSummary {
    /// The config's digest, `sha256:…`.
    pub id: String,
    /// `registry/name:tag`s.
    pub tags: Vec<String>,
    /// `registry/name@sha256:…`s.
    pub digests: Vec<String>,
    /// Bytes on disk, unpacked.
    pub size: u64,
    /// RFC 3339: when it was built.
    #[serde(default)]
    pub created: Option<String>,
    /// Whether garbage collection leaves it alone.
    #[serde(default)]
    pub pinned: bool,
    /// How many containers use it.
    #[serde(default)]
    pub in_use: usize,
}

/// How far a blob of a pull is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PullProgress {
    /// Its digest.
    pub blob: String,
    /// What is being done with it.
    pub phase: PullPhase,
    /// Bytes so far.
    pub done: u64,
    /// Bytes in all; 0 when unknown.
    pub total: u64,
}

/// What is being done with a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PullPhase {
    /// Fetched, and unpacked while it comes.
    Downloading,
    /// Fetched, still being unpacked.
    Unpacking,
    /// Done.
    Complete,
    /// Was there already.
    Exists,
}

/// What a removal freed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reclaimed {
    /// References and IDs that are gone.
    pub removed: Vec<String>,
    /// Bytes.
    pub bytes: u64,
}

/// What a pod is on this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Inspection {
    /// metadata.uid.
    pub uid: String,
    /// Its addresses.
    pub ips: Vec<String>,
    /// The process that holds it.
    pub holder: Holder,
    /// The pod's namespaces: kind (`net`, `ipc`, `uts`, `user`) and inode.
    pub namespaces: BTreeMap<String, u64>,
    /// The pod's cgroup directories.
    pub cgroups: Vec<PathBuf>,
    /// In the spec's order.
    pub containers: Vec<InspectedContainer>,
}

/// The process that holds a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    /// Its PID on the host.
    pub pid: i32,
    /// Its proportional share of memory, bytes.
    pub pss: u64,
}

/// A container on this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InspectedContainer {
    /// Its name in the pod.
    pub name: String,
    /// 64 hex digits.
    pub id: String,
    /// 0 for its first start.
    pub attempt: u32,
    /// `running` or `exited (CODE)`.
    pub state: String,
    /// Kind (`mnt`, `pid`, `cgroup`…) and inode.
    pub namespaces: BTreeMap<String, u64>,
    /// All processes in it.
    pub processes: Vec<InspectedProcess>,
    /// As the container's mountinfo shows them.
    pub mounts: Vec<InspectedMount>,
    /// Its cgroup directories.
    pub cgroups: Vec<PathBuf>,
    /// What `/` is made of.
    pub rootfs: InspectedRootfs,
}

/// A process of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InspectedProcess {
    /// On the host.
    pub pid: i32,
    /// In the container's PID namespace.
    pub container_pid: i32,
    /// Its command line, joined by spaces.
    pub command: String,
}

/// A mount of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InspectedMount {
    /// In the container.
    pub target: String,
    /// `overlay`, `proc`, `tmpfs`…
    pub kind: String,
    /// The device, or the host's path of a bind mount.
    pub source: String,
    /// `ro,nosuid,…`.
    pub options: String,
}

/// overlayfs's directories.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InspectedRootfs {
    /// The uppermost first.
    pub lower: Vec<PathBuf>,
    /// What the container wrote.
    pub upper: PathBuf,
}

/// How a pod's start went.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// In the order of their beginnings.
    pub steps: Vec<ExplainedStep>,
    /// A sentence, unless it waits for nothing.
    #[serde(default)]
    pub waiting_for: Option<String>,
}

/// One step of a start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedStep {
    /// A word or two, such as `overlay`.
    pub name: String,
    /// The container it was done for; unset: the pod.
    #[serde(default)]
    pub container: Option<String>,
    /// Microseconds between the agent's seeing the pod and the step's beginning.
    pub started: u64,
    /// Microseconds that it took.
    pub micros: u64,
}

/// One thing that the machine must have, or had better have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// What was looked at, such as `overlayfs`.
    pub name: String,
    /// How it is.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it; empty when there is nothing.
    #[serde(default)]
    pub advice: String,
}

/// How a [`Check`] came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// Pods run, but some feature doesn't work or some limit isn't kept.
    Limited,
    /// No pod can run.
    Bad,
}
