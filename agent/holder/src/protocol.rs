//! What the agent and a holder say to each other: types only, no I/O, no policy.
//!
//! # Transport
//! A `SOCK_SEQPACKET` unix socket; one packet is one message: JSON, with file descriptors beside it as `SCM_RIGHTS`. A body
//! over [`PACKET_LIMIT`] bytes travels in a memfd that is the last descriptor of a packet whose body is empty.
//! The agent sends [`Call`]s; the holder sends [`Message`]s: one reply a call, in any order, and events at any time. Events go
//! to every connection that said [`Request::Subscribe`].
//!
//! # Versions
//! Agents outlive no holder and holders outlive agents, so both sides must understand the other's age: fields are added, never
//! changed or removed; an added field has `#[serde(default)]`; an unknown request is answered with [`Fault`] stage
//! [`Stage::Protocol`].

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The protocol's version, in [`Reply::Sandbox`] and [`HolderState`].
pub const VERSION: u32 = 1;

/// The largest body, in bytes, that travels in the packet itself.
pub const PACKET_LIMIT: usize = 64 * 1024;

/// The descriptor on which a new holder finds its first connection, made by the agent that spawned it.
pub const FIRST_CONNECTION_FD: i32 = 3;

/// Agent → holder.
#[derive(Debug, Serialize, Deserialize)]
pub struct Call {
    /// Chosen by the agent; the reply carries it back.
    pub id: u64,
    /// What to do.
    pub request: Request,
}

/// Holder → agent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Message {
    /// The answer to the call with this id.
    Reply {
        /// The call's id.
        id: u64,
        /// What came of it.
        result: Result<Reply, Fault>,
    },
    /// Something happened, asked for by [`Request::Subscribe`].
    Event(Event),
}

/// What an agent can ask of a holder.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    /// The first request of a holder's life: make the namespaces, listen on the socket. → [`Reply::Sandbox`]
    Sandbox(Box<SandboxRecipe>),
    /// Make the namespaces of a pod that isn't known yet: NET, IPC and UTS. [`Request::Sandbox`] must then want just these.
    /// → [`Reply::Done`]
    Prepare,
    /// Events are wanted on this connection. → [`Reply::Done`]
    Subscribe,
    /// Everything the holder knows. → [`Reply::State`]
    State,
    /// Run a container. Answered once its command was exec'd. → [`Reply::Started`]
    Start(Box<Recipe>),
    /// Run one more process in a running container. With `process.tty` unset, three descriptors come along: its stdin, stdout
    /// and stderr. With it set, none comes and the reply carries the pty's master. → [`Reply::Exec`]
    Exec {
        /// The container's id.
        container: String,
        /// The process; `cgroups`, capabilities and seccomp as the container's own.
        process: Box<Process>,
        /// As [`Recipe::cgroups`].
        cgroups: Vec<PathBuf>,
    },
    /// Send a signal to a container's first process. → [`Reply::Done`], also when it has ended already.
    Signal {
        /// The container's id.
        container: String,
        /// The signal's number.
        signal: i32,
    },
    /// SIGKILL to the process of an exec and its process group. → [`Reply::Done`]
    KillExec {
        /// From [`Reply::Exec`].
        exec: u64,
    },
    /// Copy a container's output, from now on, into the descriptors that come along: stdout, then stderr (a tty has stdout
    /// alone). The reply carries the write end of its stdin (a tty: the master), if the container has one and `stdin` is set.
    /// → [`Reply::Attached`]
    Attach {
        /// The container's id.
        container: String,
        /// Whether the stdin is wanted.
        stdin: bool,
        /// Whether a descriptor for stdout comes along.
        stdout: bool,
        /// Whether a descriptor for stderr comes along.
        stderr: bool,
    },
    /// Close the holder's own write end of a container's stdin (`stdinOnce`). → [`Reply::Done`]
    CloseStdin {
        /// The container's id.
        container: String,
    },
    /// A new socket inside the pod's network namespace, for probes, port-forward and netlink. → [`Reply::Descriptor`]
    Socket {
        /// `AF_INET`, `AF_INET6`, `AF_NETLINK`.
        domain: i32,
        /// `SOCK_STREAM`, `SOCK_DGRAM`, `SOCK_RAW`; the holder adds `SOCK_CLOEXEC | SOCK_NONBLOCK`.
        kind: i32,
        /// 0, or such as `NETLINK_ROUTE`.
        protocol: i32,
    },
    /// The pod's network namespace. → [`Reply::Descriptor`]
    NetNamespace,
    /// Replace the note that [`HolderState::note`] gives back. → [`Reply::Done`]
    Note(serde_json::Value),
    /// Replace the note that [`ContainerState::note`] gives back. → [`Reply::Done`]
    NoteContainer {
        /// The container's id.
        container: String,
        /// The new note.
        note: serde_json::Value,
    },
    /// An ended container's record isn't needed any more. → [`Reply::Done`], also when there is none.
    Forget {
        /// The container's id.
        container: String,
    },
    /// SIGKILL to all that is left, then exit. → [`Reply::Done`], then end of file.
    Shutdown,
}

/// What came of a [`Request`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    /// Nothing to tell.
    Done,
    /// The namespaces stand.
    Sandbox {
        /// [`VERSION`] of the holder.
        version: u32,
        /// The holder's own process.
        pid: i32,
        /// PID 1 of the pod's PID namespace, with `share_pid`.
        #[serde(default)]
        pause_pid: Option<i32>,
        /// How long each step took.
        #[serde(default)]
        steps: Vec<Step>,
    },
    /// All that the holder knows.
    State(Box<HolderState>),
    /// The command runs.
    Started {
        /// The first process's PID in the host's PID namespace.
        pid: i32,
        /// Unix time in nanoseconds.
        started_at: u64,
        /// How long each step took.
        #[serde(default)]
        steps: Vec<Step>,
    },
    /// The process runs. Its end comes as [`Event::ExecExited`], to this connection only. With a tty, the master comes along.
    Exec {
        /// The holder's number for it.
        exec: u64,
        /// In the host's PID namespace.
        pid: i32,
    },
    /// Output flows. A descriptor comes along if `stdin`.
    Attached {
        /// The write end of stdin, or a tty's master, comes along.
        stdin: bool,
    },
    /// One descriptor comes along.
    Descriptor,
}

/// What happened unasked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Event {
    /// A container's first process ended. Its output is in the log by then.
    Exited {
        /// The container's id.
        container: String,
        /// How.
        exit: Exit,
    },
    /// A process of [`Request::Exec`] ended.
    ExecExited {
        /// The holder's number for it.
        exec: u64,
        /// How.
        exit: Exit,
    },
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// 0..=255; 128 + signal when a signal ended it, as shells and the kubelet count.
    pub code: i32,
    /// The signal that ended it.
    #[serde(default)]
    pub signal: Option<i32>,
    /// Unix time in nanoseconds.
    pub finished_at: u64,
}

/// A step of a start and what it took, for `nodeagent explain`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// A word or two, such as `overlay`.
    pub name: String,
    /// Microseconds.
    pub micros: u64,
}

/// All that the holder knows: the truth from which a new agent goes on.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HolderState {
    /// [`VERSION`] of the holder.
    pub version: u32,
    /// The holder's own process.
    pub pid: i32,
    /// PID 1 of the pod's PID namespace, with `share_pid`.
    #[serde(default)]
    pub pause_pid: Option<i32>,
    /// Unix time in nanoseconds at which the namespaces stood.
    pub created_at: u64,
    /// The recipe as it was given, less `sysctls`.
    pub sandbox: SandboxRecipe,
    /// What the agent left by [`Request::Note`]; first [`SandboxRecipe::note`].
    pub note: serde_json::Value,
    /// In the order of their starts; ended ones until [`Request::Forget`].
    pub containers: Vec<ContainerState>,
}

/// One container, running or ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerState {
    /// [`Recipe::id`].
    pub id: String,
    /// [`Recipe::name`].
    pub name: String,
    /// [`Recipe::attempt`].
    pub attempt: u32,
    /// What the agent left by [`Request::NoteContainer`]; first [`Recipe::note`].
    pub note: serde_json::Value,
    /// In the host's PID namespace; of an ended one, what it was.
    pub pid: i32,
    /// Unix time in nanoseconds.
    pub started_at: u64,
    /// Unset while it runs.
    pub exit: Option<Exit>,
}

/// Why a request came to nothing: it travels as data, and the agent makes the sentence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fault {
    /// What was being done.
    pub stage: Stage,
    /// What it was done to: a path, a capability, a user's name. Empty when there is no such thing.
    #[serde(default)]
    pub subject: String,
    /// The kernel's error number; 0 when it wasn't the kernel that said no.
    #[serde(default)]
    pub errno: i32,
    /// What the kernel didn't say, such as `no such user`.
    #[serde(default)]
    pub detail: String,
}

/// The stages of a sandbox's or a container's start, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stage {
    /// The request itself: unknown, of another version, for a container that isn't there.
    Protocol,
    /// Making or joining a namespace.
    Namespace,
    /// Writing uid_map or gid_map.
    IdMap,
    /// Writing a sysctl.
    Sysctl,
    /// Listening on the holder's socket.
    Listen,
    /// clone3.
    Fork,
    /// Opening or writing the log.
    Log,
    /// Joining a cgroup.
    Cgroup,
    /// Mounting the overlay.
    Rootfs,
    /// A mount of the recipe.
    Mount,
    /// A device node.
    Device,
    /// pivot_root and what follows it.
    PivotRoot,
    /// A masked or read-only path.
    Mask,
    /// Making or attaching the terminal.
    Terminal,
    /// Finding the user or group in the image.
    User,
    /// The working directory.
    WorkingDir,
    /// rlimits, OOM score, keyring and such.
    Limits,
    /// Setting IDs and capabilities.
    Credentials,
    /// AppArmor or SELinux.
    Label,
    /// Loading the seccomp filter.
    Seccomp,
    /// Finding and executing the command: `ENOENT` → 127, `EACCES` and others → 126.
    Exec,
}

/// What a pod's namespaces are made from.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxRecipe {
    /// Where the holder listens, mode 0600.
    pub socket: PathBuf,
    /// A NET namespace of the pod's own; else the host's.
    pub net: bool,
    /// An IPC namespace of the pod's own; else the host's.
    pub ipc: bool,
    /// A UTS namespace with this hostname; else the host's.
    pub hostname: Option<String>,
    /// The NIS domain name of that UTS namespace.
    #[serde(default)]
    pub domainname: Option<String>,
    /// A USER namespace that owns the three above.
    #[serde(default)]
    pub user: Option<IdMaps>,
    /// One PID namespace for all containers, with a pause process as PID 1.
    #[serde(default)]
    pub share_pid: bool,
    /// One of its containers will have CAP_SYS_PTRACE.
    #[serde(default)]
    pub may_trace: bool,
    /// cgroup directories that the holder (and pause) joins.
    #[serde(default)]
    pub cgroups: Vec<PathBuf>,
    /// Written in the pod's namespaces: name (`net.ipv4.ip_unprivileged_port_start`) and value.
    #[serde(default)]
    pub sysctls: Vec<(String, String)>,
    /// Size limit in bytes of the pod's /dev/shm, a tmpfs that its containers share; 0: the default of 64 MiB.
    #[serde(default)]
    pub shm_size: u64,
    /// What the process list shows, e.g. `podholder default/web`.
    #[serde(default)]
    pub title: String,
    /// The agent's own, kept and given back.
    #[serde(default)]
    pub note: serde_json::Value,
}

/// user_namespaces(7): what inside maps to what outside.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMaps {
    /// Lines of uid_map.
    pub uids: Vec<IdMap>,
    /// Lines of gid_map.
    pub gids: Vec<IdMap>,
}

/// One line of a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// First ID inside.
    pub inside: u32,
    /// First ID outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// All that a container is made from. Applying it needs no decision: what Kubernetes, the image and the node have to say is in it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Recipe {
    /// 64 hex digits, new for each attempt.
    pub id: String,
    /// The container's name in its pod.
    pub name: String,
    /// 0, then one more for each restart.
    pub attempt: u32,
    /// The first process.
    pub process: Process,
    /// cgroup directories that it joins (v2: one; v1: one a controller).
    pub cgroups: Vec<PathBuf>,
    /// `/`.
    pub rootfs: Rootfs,
    /// After `/`, in order.
    pub mounts: Vec<Mount>,
    /// Device nodes below /dev; in a USER namespace bind-mounted from the host.
    #[serde(default)]
    pub devices: Vec<Device>,
    /// Hidden: a file by /dev/null, a folder by an empty read-only tmpfs. Absent ones are skipped.
    #[serde(default)]
    pub masked_paths: Vec<PathBuf>,
    /// Mounted on themselves read-only. Absent ones are skipped.
    #[serde(default)]
    pub read_only_paths: Vec<PathBuf>,
    /// Which PID namespace.
    pub pid: PidNamespace,
    /// The id of a running container whose PID namespace it is to be instead (targetContainerName).
    #[serde(default)]
    pub beside: Option<String>,
    /// Where the output goes; unset: nowhere.
    pub log: Option<LogFile>,
    /// The agent's own, kept and given back.
    #[serde(default)]
    pub note: serde_json::Value,
}

/// Which PID namespace a container lives in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PidNamespace {
    /// One of its own.
    #[default]
    Own,
    /// The pod's ([`SandboxRecipe::share_pid`]).
    Pod,
    /// The host's.
    Host,
}

impl SandboxRecipe {
    /// Whether what [`Request::Prepare`] makes will do: NET, IPC and UTS of its own, and no USER namespace to own them.
    pub fn takes_prepared(&self) -> bool {
        self.net && self.ipc && self.hostname.is_some() && self.user.is_none()
    }
}

impl Recipe {
    /// Whether the container is PID 1 of a namespace that is made for it.
    pub fn makes_pid_namespace(&self) -> bool {
        self.pid == PidNamespace::Own && self.beside.is_none()
    }
}

/// A process: the first of a container, or one more by exec.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// argv\[0\] is looked up in the PATH of `env`, inside the container. Never empty.
    pub argv: Vec<String>,
    /// `NAME=value`. HOME is added from the image's passwd file when it isn't there.
    pub env: Vec<String>,
    /// Absolute; made (root, 0755) if it isn't there.
    pub cwd: PathBuf,
    /// Whose process.
    pub user: User,
    /// Octal; 0: 0022.
    #[serde(default)]
    pub umask: u32,
    /// The five sets.
    pub capabilities: Capabilities,
    /// prctl(PR_SET_NO_NEW_PRIVS).
    pub no_new_privs: bool,
    /// A classic BPF program: `struct sock_filter`s in memory order, base64; empty: none.
    #[serde(default)]
    pub seccomp: String,
    /// Flags of seccomp(SECCOMP_SET_MODE_FILTER).
    #[serde(default)]
    pub seccomp_flags: u32,
    /// Resource number, soft, hard.
    #[serde(default)]
    pub rlimits: Vec<(u32, u64, u64)>,
    /// Where the machine doesn't permit it (lowering needs CAP_SYS_RESOURCE), the nearest that it does.
    #[serde(default)]
    pub oom_score_adj: Option<i32>,
    /// AppArmor profile; unset: none.
    #[serde(default)]
    pub apparmor: Option<String>,
    /// SELinux label; unset: none.
    #[serde(default)]
    pub selinux: Option<String>,
    /// A pty of the container's own devpts as stdin, stdout, stderr and controlling terminal.
    #[serde(default)]
    pub tty: bool,
    /// Rows and columns of that pty at its start.
    #[serde(default)]
    pub tty_size: Option<(u16, u16)>,
    /// Keep a pipe open as stdin; else /dev/null.
    #[serde(default)]
    pub stdin: bool,
}

/// Whose process. Names are looked up in the container's own /etc/passwd and /etc/group, which are not trusted: read up to
/// 1 MiB, beneath the root.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct User {
    /// As an image's `User`: empty, `uid`, `name`, `uid:gid`, `name:group` and so on.
    pub spec: String,
    /// runAsGroup: overrules what `spec` gives.
    #[serde(default)]
    pub gid: Option<u32>,
    /// Groups beside those that /etc/group names.
    #[serde(default)]
    pub groups: Vec<u32>,
    /// supplementalGroupsPolicy Strict: /etc/group isn't asked.
    #[serde(default)]
    pub strict_groups: bool,
}

/// capabilities(7): bit n of each is capability n. A process of a user other than root gets what ambient says after exec.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// What exec can ever give.
    pub bounding: u64,
    /// In force and permitted (of root; a user other than root starts with `ambient`).
    pub effective: u64,
    /// Kept across exec for files that inherit.
    pub inheritable: u64,
    /// Kept across exec by any user.
    pub ambient: u64,
}

/// How `/` is made.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rootfs {
    /// Unpacked layers, the uppermost first. Never empty.
    pub lower: Vec<PathBuf>,
    /// What the container writes.
    pub upper: PathBuf,
    /// overlayfs's work directory, beside `upper`.
    pub work: PathBuf,
    /// An empty directory on which `/` is mounted, in the container's own mount namespace only.
    pub target: PathBuf,
    /// readOnlyRootFilesystem.
    pub read_only: bool,
    /// Propagation of `/`: `rslave` when a mount asks for HostToContainer or Bidirectional, else private.
    #[serde(default)]
    pub shared: bool,
}

/// One mount.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mount {
    /// Absolute, inside the container; links in it are resolved beneath its root. What isn't there is made.
    pub target: PathBuf,
    /// What is mounted.
    pub source: Source,
    /// Read-only.
    #[serde(default)]
    pub read_only: bool,
    /// Read-only with all that is mounted below (recursiveReadOnly).
    #[serde(default)]
    pub recursive_read_only: bool,
    /// MS_NOSUID.
    #[serde(default)]
    pub nosuid: bool,
    /// MS_NODEV.
    #[serde(default)]
    pub nodev: bool,
    /// MS_NOEXEC.
    #[serde(default)]
    pub noexec: bool,
    /// mountPropagation.
    #[serde(default)]
    pub propagation: Propagation,
}

/// mountPropagation of a mount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Propagation {
    /// Kubernetes' None: rprivate.
    #[default]
    Private,
    /// HostToContainer: rslave.
    Slave,
    /// Bidirectional: rshared.
    Shared,
}

/// What a mount mounts.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// A file or folder of the host.
    Bind {
        /// Trusted: made by the agent or named by the pod's author.
        path: PathBuf,
        /// Below `path` and not trusted (subPath): openat2 with RESOLVE_IN_ROOT.. no link leads out. Empty: `path` itself.
        #[serde(default)]
        beneath: PathBuf,
        /// With all that is mounted below it.
        #[serde(default)]
        recursive: bool,
        /// Owners are mapped as the pod's USER namespace maps them; ignored without one.
        #[serde(default)]
        idmap: bool,
    },
    /// A tmpfs with these mount options, e.g. `mode=755,size=65536k`.
    Tmpfs {
        /// Comma-separated.
        options: String,
    },
    /// The pod's /dev/shm, shared by its containers.
    Shm,
    /// procfs of the container's PID namespace.
    Proc,
    /// sysfs of the pod's NET namespace.
    Sysfs,
    /// devpts, an instance of its own, ptmxmode=0666, gid 5 where it's mapped.
    Devpts,
    /// mqueue of the pod's IPC namespace.
    Mqueue,
    /// The cgroup tree as the container's CGROUP namespace shows it.
    Cgroup,
}

/// A device node.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    /// Inside the container, below /dev.
    pub path: PathBuf,
    /// `c` or `b`.
    pub kind: char,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits, e.g. 0o666.
    pub mode: u32,
    /// Owner.
    #[serde(default)]
    pub uid: u32,
    /// Group.
    #[serde(default)]
    pub gid: u32,
}

/// Where a container's output goes: CRI log format,
/// <https://github.com/kubernetes/design-proposals-archive/blob/main/node/kubelet-cri-logging.md>.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogFile {
    /// Its folder is there. Rotated files get `.YYYYMMDD-HHMMSS` appended, as the kubelet's.
    pub path: PathBuf,
    /// A folder above it, from which on no link is followed: what is in it may be others' to write. Empty: its own folder is it.
    #[serde(default)]
    pub within: PathBuf,
    /// Rotate at this many bytes; 0: never.
    pub max_size: u64,
    /// Files kept, the current one counted; at least 2.
    pub max_files: u32,
}
