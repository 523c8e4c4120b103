//! A pod's holder as the agent sees it: calls with answers, events, and the news of its death.
//! Many calls share one socket and none waits for another; a holder that hangs costs its own callers a timeout and nobody else.

mod error;
mod spare;
mod spawn;
mod wire;

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::libc;
use podholder::protocol::{
    Call, Event, Exit, HolderState, Message, PACKET_LIMIT, Process, Recipe, Reply, Request, SandboxRecipe, Step,
};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{broadcast, oneshot, watch};
use tokio_util::task::AbortOnDropHandle;

pub use error::{CallError, sentence};
pub use spare::{Spare, Spares};
pub use spawn::Program;

/// Answers that need no disk come in microseconds; this is for a machine that swaps.
const SOON: Duration = Duration::from_secs(15);
/// A start touches disks and whatever a volume is mounted from.
const START: Duration = Duration::from_secs(120);
/// Events that a receiver may fall behind by. One that lags reads the state again. Each has its place in every pod's queue: 90 bytes
/// that are there also when nothing happens.
const EVENTS: usize = 16;

/// What a new holder says of itself.
#[derive(Debug)]
pub struct SandboxReply {
    /// The holder.
    pub pid: i32,
    /// PID 1 of a shared PID namespace.
    pub pause_pid: Option<i32>,
    /// How long each step took.
    pub steps: Vec<Step>,
    /// The way into its network namespace, if it has one of its own.
    pub wires: Option<Wires>,
}

/// What a pod's network is made with.
#[derive(Debug)]
pub struct Wires {
    /// The network namespace.
    pub netns: OwnedFd,
    /// A route netlink socket in it.
    pub netlink: OwnedFd,
}

/// A container that runs.
#[derive(Debug, Clone)]
pub struct StartedReply {
    /// The first process, in the host's PID namespace.
    pub pid: i32,
    /// Unix time in nanoseconds.
    pub started_at: u64,
    /// How long each step took.
    pub steps: Vec<Step>,
}

/// A process that runs by [`Holder::exec`].
#[derive(Debug)]
pub struct Exec {
    /// The holder's number, for [`Holder::kill_exec`].
    pub id: u64,
    /// In the host's PID namespace.
    pub pid: i32,
    /// The pty's master, if one was asked for.
    pub master: Option<OwnedFd>,
    /// Its end; an error when the holder died first.
    pub exit: oneshot::Receiver<Exit>,
}

/// Which streams an attach wants, and where output goes.
#[derive(Debug, Default)]
pub struct AttachStreams {
    /// The write end of stdin is wanted.
    pub stdin: bool,
    /// Takes stdout (with a tty: all output).
    pub stdout: Option<OwnedFd>,
    /// Takes stderr.
    pub stderr: Option<OwnedFd>,
}

/// A holder. Clones share the connection, which closes with the last of them: the holder itself lives on.
#[derive(Debug, Clone)]
pub struct Holder {
    shared: Arc<Shared>,
    _reader: Arc<AbortOnDropHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    socket: AsyncFd<OwnedFd>,
    /// Once its sandbox is made it stays what it is.
    pid: AtomicI32,
    /// The same.
    process: Mutex<Arc<OwnedFd>>,
    next_call: AtomicU64,
    waiting: Mutex<Waiting>,
    events: broadcast::Sender<Event>,
    /// What nobody has heard yet: see [`Holder::all_events`].
    unheard: Mutex<Option<broadcast::Receiver<Event>>>,
    gone: watch::Receiver<bool>,
}

/// Who waits for what. `None` for calls: the connection is at its end, nobody may begin to wait.
#[derive(Debug)]
struct Waiting {
    calls: Option<HashMap<u64, oneshot::Sender<Answer>>>,
    /// Hears which process the holder is, once it says so.
    settled: Option<oneshot::Sender<Pid>>,
    execs: HashMap<u64, oneshot::Sender<Exit>>,
}

#[derive(Debug)]
struct Answer {
    result: Result<Reply, CallError>,
    fds: Vec<OwnedFd>,
    exit: Option<oneshot::Receiver<Exit>>,
}

impl Holder {
    /// Starts a holder and has it make the pod's namespaces. Whatever fails, no process is left behind.
    pub async fn spawn(program: &Program, recipe: &SandboxRecipe) -> Result<(Self, SandboxReply), CallError> {
        let (pid, socket) = program.spawn(&recipe.title)?;
        let holder = Self::over(socket, pid, Parent::Us)?;
        let made = holder.begin(Request::Sandbox(Box::new(recipe.clone())), recipe.net).await;
        holder.unless_failed(made.and_then(|(made, wires)| made.sandbox(wires)))
    }

    /// The first words to a new holder: what makes its namespaces, and what an agent always wants then.
    async fn begin(&self, first: Request, own_network: bool) -> Result<(Answered, Option<Wires>), CallError> {
        // Sent one after the other without waiting for an answer: the holder takes requests in their order.
        let made = self.ask(first, Vec::new()).await?;
        let subscribed = self.ask(Request::Subscribe, Vec::new()).await?;
        let wires = if own_network {
            Some((self.ask(Request::NetNamespace, Vec::new()).await?, self.ask(ROUTE_SOCKET, Vec::new()).await?))
        } else {
            None
        };
        let made = made.answer().await?;
        subscribed.answer().await?;
        let wires = match wires {
            Some((netns, netlink)) => {
                Some(Wires { netns: netns.answer().await?.descriptor()?, netlink: netlink.answer().await?.descriptor()? })
            }
            None => None,
        };
        Ok((made, wires))
    }

    /// With what was made of it; else it is of no use, and ends.
    fn unless_failed<T>(self, made: Result<T, CallError>) -> Result<(Self, T), CallError> {
        match made {
            Ok(made) => Ok((self, made)),
            Err(error) => {
                self.kill();
                Err(error)
            }
        }
    }

    /// Connects to a holder that another life of the agent started.
    pub async fn connect(path: &Path) -> Result<(Self, HolderState), CallError> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).map_err(io::Error::from)?;
        connect(&socket, path).map_err(io::Error::from)?;
        let pid = rustix::net::sockopt::socket_peercred(&socket).map_err(io::Error::from)?.pid;
        let holder = Self::over(socket, pid, Parent::Another)?;
        let (subscribed, state) = tokio::join!(holder.subscribe(), holder.state());
        subscribed?;
        Ok((holder, state?))
    }

    fn over(socket: OwnedFd, pid: Pid, parent: Parent) -> Result<Self, CallError> {
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK).map_err(io::Error::from)?;
        let process = Mutex::new(Arc::new(pidfd.try_clone()?));
        let (tell_gone, gone) = watch::channel(false);
        let (settled, successor) = oneshot::channel();
        // Of a holder that another agent began, nothing is to come.
        let settled = Some(settled).filter(|_| parent == Parent::Us);
        tokio::spawn(wait_for_death(registered(pidfd, Interest::READABLE)?, (pid, parent), successor, tell_gone));
        let waiting = Mutex::new(Waiting { calls: Some(HashMap::new()), settled, execs: HashMap::new() });
        let socket = registered(socket, Interest::READABLE | Interest::WRITABLE)?;
        let (events, unheard) = broadcast::channel(EVENTS);
        let shared = Arc::new(Shared {
            socket,
            pid: AtomicI32::new(pid.as_raw_nonzero().get()),
            process,
            next_call: AtomicU64::new(1),
            waiting,
            events,
            unheard: Mutex::new(Some(unheard)),
            gone,
        });
        let reader = Arc::new(AbortOnDropHandle::new(tokio::spawn(read_all(shared.clone()))));
        Ok(Self { shared, _reader: reader })
    }

    /// The holder's process.
    pub fn pid(&self) -> i32 {
        self.shared.pid()
    }

    /// What has happened since the connection was made, for the first who asks: between an agent's finding a holder and somebody's
    /// minding its pod, containers may end. For others, as [`Holder::events`].
    pub fn all_events(&self) -> broadcast::Receiver<Event> {
        let unheard = self.shared.unheard.lock().unwrap_or_else(PoisonError::into_inner).take();
        unheard.unwrap_or_else(|| self.events())
    }

    /// What happens from now on. On `Lagged`, read [`Holder::state`].
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    /// Whether the process has ended.
    pub fn is_gone(&self) -> bool {
        *self.shared.gone.borrow()
    }

    /// Returns when the holder is dead: its containers are, or will be at once.
    pub async fn gone(&self) {
        let mut gone = self.shared.gone.clone();
        // An error means that the waiting task ended, which it does after it has told.
        let _ = gone.wait_for(|gone| *gone).await;
    }

    /// Everything the holder knows.
    pub async fn state(&self) -> Result<HolderState, CallError> {
        match self.call(Request::State, Vec::new()).await?.reply {
            Reply::State(state) => Ok(*state),
            _ => Err(CallError::Unexpected("state")),
        }
    }

    /// Runs a container; returns once its command was exec'd.
    pub async fn start(&self, recipe: Recipe) -> Result<StartedReply, CallError> {
        match self.call(Request::Start(Box::new(recipe)), Vec::new()).await?.reply {
            Reply::Started { pid, started_at, steps } => Ok(StartedReply { pid, started_at, steps }),
            _ => Err(CallError::Unexpected("start")),
        }
    }

    /// Runs one more process in a container. Without `process.tty`, `stdio` has three descriptors; with it, none.
    pub async fn exec(
        &self,
        container: &str,
        process: Process,
        cgroups: Vec<std::path::PathBuf>,
        stdio: Vec<OwnedFd>,
    ) -> Result<Exec, CallError> {
        let request = Request::Exec { container: container.into(), process: Box::new(process), cgroups };
        let mut answer = self.call(request, stdio).await?;
        match (answer.reply, answer.exit) {
            (Reply::Exec { exec, pid }, Some(exit)) => Ok(Exec { id: exec, pid, master: answer.fds.pop(), exit }),
            _ => Err(CallError::Unexpected("exec")),
        }
    }

    /// Sends a signal to a container's first process.
    pub async fn signal(&self, container: &str, signal: i32) -> Result<(), CallError> {
        self.order(Request::Signal { container: container.into(), signal }).await
    }

    /// SIGKILL to an exec's process and its group.
    pub async fn kill_exec(&self, exec: u64) -> Result<(), CallError> {
        self.order(Request::KillExec { exec }).await
    }

    /// Copies output from now on; gives stdin's write end, if wanted and there is one.
    pub async fn attach(&self, container: &str, streams: AttachStreams) -> Result<Option<OwnedFd>, CallError> {
        let (stdout, stderr) = (streams.stdout.is_some(), streams.stderr.is_some());
        let request = Request::Attach { container: container.into(), stdin: streams.stdin, stdout, stderr };
        let mut answer = self.call(request, streams.stdout.into_iter().chain(streams.stderr).collect()).await?;
        match answer.reply {
            Reply::Attached { .. } => Ok(answer.fds.pop()),
            _ => Err(CallError::Unexpected("attach")),
        }
    }

    /// The container's program reads end of file next (`stdinOnce`).
    pub async fn close_stdin(&self, container: &str) -> Result<(), CallError> {
        self.order(Request::CloseStdin { container: container.into() }).await
    }

    /// The holder's process, by descriptor: it is in the pod's network namespace.
    pub fn process(&self) -> Arc<OwnedFd> {
        self.shared.process.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the pod's network is made with.
    pub async fn wires(&self) -> Result<Wires, CallError> {
        let (netns, netlink) = tokio::try_join!(self.net_namespace(), self.descriptor(ROUTE_SOCKET))?;
        Ok(Wires { netns, netlink })
    }

    /// The pod's network namespace.
    pub async fn net_namespace(&self) -> Result<OwnedFd, CallError> {
        self.descriptor(Request::NetNamespace).await
    }

    /// Leaves a note for a later life of the agent. Doesn't wait for the answer, which has nothing to tell: the holder takes requests
    /// in their order, so that the note is there before what is asked for next.
    pub async fn note(&self, note: serde_json::Value) -> Result<(), CallError> {
        let id = self.shared.next_call.fetch_add(1, Ordering::Relaxed);
        let body = serde_json::to_vec(&Call { id, request: Request::Note(note) }).map_err(io::Error::from)?;
        self.shared.send(&body, &[]).await
    }

    /// Replaces the note of a container.
    pub async fn note_container(&self, container: &str, note: serde_json::Value) -> Result<(), CallError> {
        self.order(Request::NoteContainer { container: container.into(), note }).await
    }

    /// An ended container's record isn't needed any more.
    pub async fn forget(&self, container: &str) -> Result<(), CallError> {
        self.order(Request::Forget { container: container.into() }).await
    }

    /// Kills what is left in the pod and ends the holder. A holder that is gone already has done so.
    pub async fn shutdown(&self) -> Result<(), CallError> {
        match self.order(Request::Shutdown).await {
            Err(CallError::Gone(_)) => Ok(()),
            done => done,
        }
    }

    /// SIGKILL to the holder itself, by pidfd: for one that doesn't answer.
    pub fn kill(&self) {
        if let Some(pid) = Pid::from_raw(self.shared.pid())
            && let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty())
            && !*self.shared.gone.borrow()
        {
            // An error means that it has died by itself.
            let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
        }
    }

    async fn subscribe(&self) -> Result<(), CallError> {
        self.order(Request::Subscribe).await
    }

    async fn order(&self, request: Request) -> Result<(), CallError> {
        let name = name(&request);
        match self.call(request, Vec::new()).await?.reply {
            Reply::Done => Ok(()),
            _ => Err(CallError::Unexpected(name)),
        }
    }

    async fn descriptor(&self, request: Request) -> Result<OwnedFd, CallError> {
        self.call(request, Vec::new()).await?.descriptor()
    }

    async fn call(&self, request: Request, fds: Vec<OwnedFd>) -> Result<Answered, CallError> {
        self.ask(request, fds).await?.answer().await
    }

    /// Sends a request. What is asked after this has returned comes after it for the holder too.
    async fn ask(&self, request: Request, fds: Vec<OwnedFd>) -> Result<Asked<'_>, CallError> {
        let (name, patience) = (name(&request), patience(&request));
        let id = self.shared.next_call.fetch_add(1, Ordering::Relaxed);
        let (tell, told) = oneshot::channel();
        self.shared.expect(id, tell)?;
        let asked = Asked { name, patience, told, forget: ForgetOnDrop { shared: &self.shared, id } };
        let body = serde_json::to_vec(&Call { id, request }).map_err(io::Error::from)?;
        tokio::time::timeout(patience, self.shared.send(&body, &fds)).await.map_err(|_| asked.late())??;
        Ok(asked)
    }
}

/// What gives a route netlink socket in the pod's network namespace.
const ROUTE_SOCKET: Request = Request::Socket { domain: libc::AF_NETLINK, kind: libc::SOCK_RAW, protocol: libc::NETLINK_ROUTE };

/// A request that was sent.
struct Asked<'a> {
    name: &'static str,
    patience: Duration,
    told: oneshot::Receiver<Answer>,
    forget: ForgetOnDrop<'a>,
}

impl Asked<'_> {
    async fn answer(mut self) -> Result<Answered, CallError> {
        let told = tokio::time::timeout(self.patience, &mut self.told).await;
        let answer = told.map_err(|_| self.late())?.map_err(|_| CallError::Gone(self.pid()))?;
        Ok(Answered { request: self.name, reply: answer.result?, fds: answer.fds, exit: answer.exit })
    }

    fn late(&self) -> CallError {
        CallError::Timeout { request: self.name, pid: self.pid(), after: self.patience }
    }

    fn pid(&self) -> i32 {
        self.forget.shared.pid()
    }
}

struct Answered {
    request: &'static str,
    reply: Reply,
    fds: Vec<OwnedFd>,
    exit: Option<oneshot::Receiver<Exit>>,
}

impl Answered {
    fn sandbox(self, wires: Option<Wires>) -> Result<SandboxReply, CallError> {
        match self.reply {
            Reply::Sandbox { pid, pause_pid, steps, .. } => Ok(SandboxReply { pid, pause_pid, steps, wires }),
            _ => Err(CallError::Unexpected(self.request)),
        }
    }

    fn descriptor(mut self) -> Result<OwnedFd, CallError> {
        self.fds.pop().ok_or(CallError::Unexpected(self.request))
    }
}

/// A call that was given up, by timeout or by its caller, is waited for by nobody.
struct ForgetOnDrop<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for ForgetOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(calls) = &mut self.shared.waiting().calls {
            calls.remove(&self.id);
        }
    }
}

impl Shared {
    fn pid(&self) -> i32 {
        self.pid.load(Ordering::Relaxed)
    }

    /// The holder with a sandbox may be another process than the one that was started, in its pod's control group.
    fn settle(&self, pid: i32) {
        let before = self.pid.swap(pid, Ordering::Relaxed);
        let Some(process) = Pid::from_raw(pid) else { return };
        // It has just said so. If it died since, then whoever asks for its process gets one that has ended.
        if before != pid
            && let Ok(pidfd) = rustix::process::pidfd_open(process, PidfdFlags::NONBLOCK)
        {
            *self.process.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(pidfd);
        }
        if let Some(settled) = self.waiting().settled.take() {
            // An error means that the waiting task ended, as it does when the holder is dead.
            let _ = settled.send(process);
        }
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expect(&self, id: u64, tell: oneshot::Sender<Answer>) -> Result<(), CallError> {
        match &mut self.waiting().calls {
            Some(calls) => {
                calls.insert(id, tell);
                Ok(())
            }
            None => Err(CallError::Gone(self.pid())),
        }
    }

    async fn send(&self, body: &[u8], fds: &[OwnedFd]) -> Result<(), CallError> {
        let spilled = wire::spill(body)?;
        let packet = wire::Packet::new(body, spilled.as_ref(), fds);
        let sent = self.socket.async_io(Interest::WRITABLE, |socket| packet.send(socket.as_fd())).await;
        sent.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => CallError::Gone(self.pid()),
            _ => CallError::Io(error),
        })
    }

    /// Gives a message to the one who waits for it. Descriptors that nobody waits for are closed.
    fn deliver(&self, message: Message, fds: Vec<OwnedFd>) {
        match message {
            Message::Reply { id, result } => {
                if let Ok(Reply::Sandbox { pid, .. }) = &result {
                    self.settle(*pid);
                }
                let mut waiting = self.waiting();
                let Some(tell) = waiting.calls.as_mut().and_then(|calls| calls.remove(&id)) else { return };
                // Registered before the next packet is read: the exit can't come too early to be heard.
                let exit = if let Ok(Reply::Exec { exec, .. }) = &result {
                    let (tell_exit, exit) = oneshot::channel();
                    waiting.execs.insert(*exec, tell_exit);
                    Some(exit)
                } else {
                    None
                };
                drop(waiting);
                // An error means that the caller gave up in this instant.
                let _ = tell.send(Answer { result: result.map_err(CallError::Fault), fds, exit });
            }
            Message::Event(event) => {
                if let Event::ExecExited { exec, exit } = &event
                    && let Some(tell) = self.waiting().execs.remove(exec)
                {
                    let _ = tell.send(*exit);
                }
                // No receiver is no error.
                let _ = self.events.send(event);
            }
        }
    }
}

thread_local! {
    /// One buffer a thread, not one a pod: reading and decoding never waits in between.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; PACKET_LIMIT + 1]);
}

/// Reads until the holder is gone; then everybody who waits hears of it, because the senders are dropped.
async fn read_all(shared: Arc<Shared>) {
    loop {
        let received = shared.socket.async_io(Interest::READABLE, |socket| {
            BUFFER.with_borrow_mut(|buffer| wire::receive(socket.as_fd(), buffer, |b| Ok(serde_json::from_slice(b))))
        });
        match received.await {
            Ok(Some((Ok(message), fds))) => shared.deliver(message, fds),
            Ok(Some((Err(error), _))) => {
                tracing::warn!(holder = shared.pid(), "a message that isn't one: {error}");
            }
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(holder = shared.pid(), "reading from a holder: {error}");
                break;
            }
        }
    }
    let mut waiting = shared.waiting();
    waiting.calls = None;
    waiting.settled = None;
    waiting.execs.clear();
}

/// Whose child a holder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parent {
    /// Ours: we reap it.
    Us,
    /// Of an agent that is dead; init reaps it.
    Another,
}

async fn wait_for_death(
    pidfd: AsyncFd<OwnedFd>,
    (pid, parent): (Pid, Parent),
    successor: oneshot::Receiver<Pid>,
    tell: watch::Sender<bool>,
) {
    ended(pidfd, parent).await;
    // Perhaps it only made way for the process that has the sandbox. If it didn't, the end of the conversation says so.
    if let Ok(next) = successor.await
        && next != pid
        && let Ok(pidfd) = rustix::process::pidfd_open(next, PidfdFlags::NONBLOCK)
        && let Ok(pidfd) = registered(pidfd, Interest::READABLE)
    {
        ended(pidfd, parent).await;
    }
    let _ = tell.send(true);
}

/// Waits for a process's end, and reaps it if it is ours.
async fn ended(pidfd: AsyncFd<OwnedFd>, parent: Parent) {
    // A pidfd stays readable once the process has ended. An error of epoll itself: nothing to wait by, so it's told as an end.
    let _ = pidfd.readable().await;
    if parent == Parent::Us {
        let _ = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
    }
}

/// An address has room for 107 bytes: a longer path is gone by way of its folder's descriptor.
fn connect(socket: &OwnedFd, path: &Path) -> rustix::io::Result<()> {
    if let Ok(address) = SocketAddrUnix::new(path) {
        return rustix::net::connect(socket, &address);
    }
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::INVAL) };
    let folder = rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let short = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
    rustix::net::connect(socket, &SocketAddrUnix::new(short)?)
}

/// Tells tokio's epoll of a descriptor.
#[expect(deprecated, reason = "its successor is unsafe, for types that may lie about their descriptor; an OwnedFd can't")]
fn registered(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, interest)
}

fn name(request: &Request) -> &'static str {
    match request {
        Request::Prepare => "prepare",
        Request::Sandbox(_) => "sandbox",
        Request::Subscribe => "subscribe",
        Request::State => "state",
        Request::Start(_) => "start",
        Request::Exec { .. } => "exec",
        Request::Signal { .. } => "signal",
        Request::KillExec { .. } => "kill-exec",
        Request::Attach { .. } => "attach",
        Request::CloseStdin { .. } => "close-stdin",
        Request::Socket { .. } => "socket",
        Request::NetNamespace => "net-namespace",
        Request::Note(_) => "note",
        Request::NoteContainer { .. } => "note-container",
        Request::Forget { .. } => "forget",
        Request::Shutdown => "shutdown",
    }
}

fn patience(request: &Request) -> Duration {
    match request {
        Request::Start(_) | Request::Exec { .. } | Request::Prepare | Request::Sandbox(_) => START,
        _ => SOON,
    }
}
