//! What the holder does for each request.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use podholder::protocol::{
    ContainerState, Fault, HolderState, Process, Recipe, Reply, Request, SandboxRecipe, Source, Stage, VERSION,
};
use podholder::sys;
use rustix::fs::{CWD, Gid, Mode, OFlags, Uid};
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::stdio;

use crate::birth::{self, When};
use crate::cgroups::Purpose;
use crate::child::Spawn;
use crate::clock;
use crate::connection::Connection;
use crate::container::{self, Pod};
use crate::exec;
use crate::fault::{OrFault, kernel, refused};
use crate::output::{Log, PIPE_SIZE};
use crate::pod_container::Container;
use crate::poll::Task;
use crate::sandbox::Sandbox;
use crate::server::{Exec, Holder};
use crate::task::{Asker, Live};

/// An answer and the descriptors beside it; none when it comes later.
type Answer = Result<Option<(Reply, Vec<OwnedFd>)>, Fault>;

fn done() -> Option<(Reply, Vec<OwnedFd>)> {
    Some((Reply::Done, Vec::new()))
}

fn descriptor(fd: OwnedFd) -> Option<(Reply, Vec<OwnedFd>)> {
    Some((Reply::Descriptor, vec![fd]))
}

impl Holder {
    /// Does what is asked for and answers, now or when it's decided.
    pub fn call(&mut self, asker: Asker, request: Request, fds: Vec<OwnedFd>) {
        self.untidy |= matches!(request, Request::Sandbox(_) | Request::Start(_) | Request::Exec { .. } | Request::State);
        match self.answer(asker, request, fds) {
            Ok(None) => {}
            Ok(Some((reply, fds))) => self.reply(asker, Ok(reply), fds),
            Err(fault) => self.reply(asker, Err(fault), Vec::new()),
        }
    }

    fn answer(&mut self, asker: Asker, request: Request, fds: Vec<OwnedFd>) -> Answer {
        match request {
            Request::Prepare => self.prepare(),
            Request::Sandbox(recipe) => self.make_sandbox(asker, *recipe),
            Request::Subscribe => {
                if let Some(connection) = self.connections.get_mut(&asker.connection) {
                    connection.subscribed = true;
                }
                Ok(done())
            }
            Request::State => self.state(),
            Request::Start(recipe) => self.start(asker, &recipe).map(|()| None),
            Request::Exec { container, process, cgroups } => {
                self.exec(asker, &container, &process, &cgroups, &fds).map(|()| None)
            }
            Request::Signal { container, signal } => {
                if let Some(live) = &self.container(&container)?.live {
                    ignore_gone(sys::pidfd_signal(live.pidfd.as_fd(), signal))?;
                }
                Ok(done())
            }
            Request::KillExec { exec } => {
                if let Some(exec) = self.execs.get(&exec) {
                    // It is its own session's leader, and not waited for yet: its number is nobody else's.
                    if let Some(pid) = rustix::process::Pid::from_raw(exec.live.pid) {
                        let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
                    }
                    ignore_gone(sys::pidfd_signal(exec.live.pidfd.as_fd(), libc::SIGKILL))?;
                }
                Ok(done())
            }
            Request::Attach { container, stdin, stdout, stderr } => self.attach(&container, stdin, [stdout, stderr], fds),
            Request::CloseStdin { container } => {
                let container = self.container(&container)?;
                // A terminal's master stays open for its output.
                container.stdin = None;
                Ok(done())
            }
            Request::Socket { domain, kind, protocol } => {
                // Before that, it would be one of the host's.
                self.namespaces_are_made()?;
                socket(domain, kind, protocol)
            }
            Request::NetNamespace => {
                self.namespaces_are_made()?;
                let path = "/proc/self/ns/net";
                let namespace = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
                Ok(descriptor(namespace.or_fault(Stage::Namespace, path)?))
            }
            Request::Note(note) => {
                self.note = note;
                Ok(done())
            }
            Request::NoteContainer { container, note } => {
                self.container(&container)?.state.note = note;
                Ok(done())
            }
            Request::Forget { container } => {
                // Of many short runs the holder lets the oldest go unasked.
                let Ok(container) = self.container(&container) else { return Ok(done()) };
                if container.state.exit.is_none() {
                    return Err(Fault { errno: libc::EBUSY, ..refused(Stage::Protocol, &container.state.id, "it still runs") });
                }
                container.forgotten = true;
                Ok(done())
            }
            Request::Shutdown => {
                self.shut_down();
                Ok(done())
            }
        }
    }

    fn container(&mut self, id: &str) -> Result<&mut Container, Fault> {
        let found = self.containers.values_mut().find(|c| c.state.id == id && !c.forgotten);
        found.ok_or_else(|| Fault { errno: libc::ESRCH, ..refused(Stage::Protocol, id, "no such container") })
    }

    /// The first process of a container that runs.
    fn running(&self, id: &str) -> Result<OwnedFd, Fault> {
        let container = self.containers.values().find(|c| c.state.id == id && !c.forgotten);
        let Some(live) = container.and_then(|c| c.live.as_ref()).filter(|l| !l.is_starting()) else {
            return Err(Fault {
                errno: libc::ESRCH,
                ..refused(Stage::Namespace, id, "the container that it is to be beside isn't running")
            });
        };
        live.pidfd.try_clone().or_fault(Stage::Fork, "")
    }

    fn sandbox(&self) -> Result<&Sandbox, Fault> {
        self.sandbox.as_ref().ok_or_else(|| refused(Stage::Protocol, "", "there is no sandbox yet"))
    }

    fn namespaces_are_made(&self) -> Result<(), Fault> {
        if self.prepared { Ok(()) } else { self.sandbox().map(drop) }
    }

    fn prepare(&mut self) -> Answer {
        if self.prepared || self.sandbox.is_some() {
            return Err(refused(Stage::Protocol, "", "the namespaces are made already"));
        }
        crate::sandbox::prepare()?;
        self.hierarchies.find()?;
        self.prepared = true;
        Ok(done())
    }

    fn make_sandbox(&mut self, asker: Asker, recipe: SandboxRecipe) -> Answer {
        if self.sandbox.is_some() {
            return Err(refused(Stage::Protocol, "", "the sandbox is made already"));
        }
        let (mut sandbox, steps) = Sandbox::make(recipe, self.prepared, &mut self.hierarchies)?;
        self.watch_own_children().or_fault(Stage::Fork, "")?;
        if !self.connections.get(&asker.connection).is_some_and(Connection::is_open) {
            // The next agent has looked for what this one left, perhaps before there was anything to find.
            return Err(refused(Stage::Protocol, "", "the agent that wanted it is gone"));
        }
        self.listen(&sandbox.recipe.socket)?;
        self.note = std::mem::take(&mut sandbox.recipe.note);
        let pause_pid = sandbox.pause.as_ref().map(|p| p.pid);
        self.sandbox = Some(sandbox);
        Ok(Some((Reply::Sandbox { version: VERSION, pid: own_pid(), pause_pid, steps }, Vec::new())))
    }

    fn state(&self) -> Answer {
        let sandbox = self.sandbox()?;
        let state = HolderState {
            version: VERSION,
            pid: own_pid(),
            pause_pid: sandbox.pause.as_ref().map(|p| p.pid),
            created_at: sandbox.created_at,
            sandbox: sandbox.recipe.clone(),
            note: self.note.clone(),
            // A start that isn't decided is nothing yet.
            containers: self
                .containers
                .values()
                .filter(|c| !c.forgotten && !c.live.as_ref().is_some_and(Live::is_starting))
                .map(|c| c.state.clone())
                .collect(),
        };
        Ok(Some((Reply::State(Box::new(state)), Vec::new())))
    }

    fn start(&mut self, asker: Asker, recipe: &Recipe) -> Result<(), Fault> {
        if let Some(sandbox) = &mut self.sandbox {
            sandbox.recipe.may_trace |= birth::may_trace(recipe.process.capabilities.bounding);
        }
        self.sandbox()?;
        if self.containers.values().any(|c| c.state.id == recipe.id && !c.forgotten) {
            return Err(Fault { errno: libc::EEXIST, ..refused(Stage::Protocol, &recipe.id, "it was started already") });
        }
        let target = recipe.beside.as_deref().map(|id| self.running(id)).transpose()?;
        let shows_cgroups = recipe.mounts.iter().any(|mount| matches!(mount.source, Source::Cgroup));
        let purpose = if shows_cgroups { Purpose::Show } else { Purpose::Join };
        let cgroups = self.hierarchies.open(&recipe.cgroups, purpose)?;
        let log = recipe.log.as_ref().map(|l| Log::open(l).or_fault(Stage::Log, l.path.display())).transpose()?;
        let sandbox = self.sandbox()?;
        let stdio = Stdio::make(&recipe.process, sandbox)?;
        let target = sandbox.pid_target(recipe.pid, target.as_ref().map(AsFd::as_fd))?;
        let when = match (target, sandbox.birth(recipe.pid)) {
            // Its procfs has to be made from outside.
            (Some(_), When::Last) if container::makes_procfs_of_others() => When::Last,
            _ => When::First,
        };
        let pod = Pod { cgroups: &cgroups, maps: sandbox.recipe.user.as_ref(), shm: sandbox.shm.kept() };
        let mut keep = sandbox.namespaces();
        keep.extend(target.filter(|_| when == When::Last));
        keep.extend(cgroups.iter().map(|group| group.folder.as_fd()));
        let spawn = Spawn {
            flags: container::clone_flags(recipe, &pod),
            cgroups: &cgroups,
            beside: None,
            stdio: [stdio.theirs[0].as_fd(), stdio.theirs[1].as_fd(), stdio.theirs[2].as_fd()],
            keep: &keep,
        };
        let child = sandbox.spawn_in_pid(target, when, &spawn, |parts| container::init(recipe, &pod, parts))?;
        let number = self.number();
        let state = ContainerState {
            id: recipe.id.clone(),
            name: recipe.name.clone(),
            attempt: recipe.attempt,
            note: recipe.note.clone(),
            pid: child.pid,
            started_at: clock::now(),
            exit: None,
        };
        let mut container = Container::new(number, state, recipe.pid, log);
        container.live = Some(Live::new(child, asker, Task::Container(number), &mut self.poll).or_fault(Stage::Fork, "")?);
        container.stdin = stdio.stdin;
        for (index, fd) in stdio.output.into_iter().enumerate() {
            container.add_stream(index, fd, &mut self.poll).or_fault(Stage::Fork, "")?;
        }
        self.containers.insert(number, container);
        Ok(())
    }

    fn exec(&mut self, asker: Asker, id: &str, process: &Process, cgroups: &[PathBuf], fds: &[OwnedFd]) -> Result<(), Fault> {
        let in_user_ns = self.sandbox()?.recipe.user.is_some();
        let container = self.container(id)?;
        let pid_namespace = container.pid_namespace;
        let Some(live) = container.live.as_ref().filter(|l| !l.is_starting()) else {
            return Err(Fault { errno: libc::ESRCH, ..refused(Stage::Protocol, id, "it isn't running") });
        };
        // Of its own, so that the loan of the container ends here.
        let beside = Some(live.pid);
        let target = live.pidfd.try_clone().or_fault(Stage::Fork, "")?;
        let cgroups = self.hierarchies.open(cgroups, Purpose::Join)?;
        let null = [stdio::stdin(), stdio::stdout(), stdio::stderr()];
        let stdio = match fds {
            [stdin, stdout, stderr] if !process.tty => [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()],
            [] => null,
            _ => return Err(refused(Stage::Protocol, id, "exec takes three descriptors, or none with a terminal")),
        };
        let keep = [target.as_fd()];
        let spawn = Spawn { flags: 0, cgroups: &cgroups, beside, stdio, keep: &keep };
        let when = self.sandbox()?.birth(pid_namespace);
        let body = |parts| exec::init(process, in_user_ns, when, parts);
        let child = self.sandbox()?.spawn_in_pid(Some(target.as_fd()), when, &spawn, body)?;
        let number = self.number();
        let live = Live::new(child, asker, Task::Exec(number), &mut self.poll).or_fault(Stage::Fork, "")?;
        self.execs.insert(number, Exec { connection: asker.connection, live });
        Ok(())
    }

    fn attach(&mut self, id: &str, stdin: bool, output: [bool; 2], fds: Vec<OwnedFd>) -> Answer {
        if output.iter().filter(|wanted| **wanted).count() != fds.len() {
            return Err(refused(Stage::Protocol, id, "attach takes one descriptor for each stream that is wanted"));
        }
        let mut fds = fds.into_iter();
        let numbers = [self.number(), self.number()];
        let container = self.container(id)?;
        for (index, number) in numbers.into_iter().enumerate().filter(|(index, _)| output[*index]) {
            if let Some(fd) = fds.next() {
                container.attach(index, number, fd).map_err(|e| kernel(Stage::Protocol, id, e))?;
            }
        }
        let stdin = match &container.stdin {
            Some(fd) if stdin => Some(fd.try_clone().or_fault(Stage::Protocol, id)?),
            _ => None,
        };
        Ok(Some((Reply::Attached { stdin: stdin.is_some() }, stdin.into_iter().collect())))
    }
}

fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

fn ignore_gone(result: std::io::Result<()>) -> Result<(), Fault> {
    match result {
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        result => result.or_fault(Stage::Protocol, "signal"),
    }
}

fn socket(domain: i32, kind: i32, protocol: i32) -> Answer {
    let bad = || refused(Stage::Protocol, "socket", "a number is out of range");
    let domain = AddressFamily::from_raw(u16::try_from(domain).map_err(|_| bad())?);
    let kind = SocketType::from_raw(u32::try_from(kind).map_err(|_| bad())?);
    let protocol = u32::try_from(protocol).ok().and_then(std::num::NonZeroU32::new).map(Protocol::from_raw);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(domain, kind, flags, protocol);
    Ok(descriptor(socket.or_fault(Stage::Protocol, "socket")?))
}

/// The pipes of a container.
struct Stdio {
    theirs: [OwnedFd; 3],
    /// The write end of stdin.
    stdin: Option<OwnedFd>,
    /// The read ends of stdout and stderr; none with a terminal.
    output: Vec<OwnedFd>,
}

impl Stdio {
    fn make(process: &Process, sandbox: &Sandbox) -> Result<Self, Fault> {
        let fault = |e: rustix::io::Errno| kernel(Stage::Fork, "pipe", e);
        let null = || rustix::fs::openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(fault);
        let pipe = || {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(fault)?;
            // In a USER namespace, its root must be able to give the pipe to the container's user.
            if let Some(maps) = &sandbox.recipe.user {
                let (uid, gid) = container::mapped_root(maps);
                rustix::fs::fchown(&write, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).map_err(fault)?;
            }
            Ok::<_, Fault>((read, write))
        };
        if process.tty {
            return Ok(Self { theirs: [null()?, null()?, null()?], stdin: None, output: Vec::new() });
        }
        let (stdin, our_stdin) = if process.stdin { pipe().map(|(r, w)| (r, Some(w)))? } else { (null()?, None) };
        let (our_stdout, stdout) = pipe()?;
        let (our_stderr, stderr) = pipe()?;
        for fd in [&our_stdout, &our_stderr] {
            // Refused where a limit is lower: then it is as large as the kernel made it.
            let _ = rustix::pipe::fcntl_setpipe_size(fd, PIPE_SIZE);
        }
        Ok(Self { theirs: [stdin, stdout, stderr], stdin: our_stdin, output: vec![our_stdout, our_stderr] })
    }
}
