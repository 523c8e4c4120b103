//! The holder's loop: waits for agents, children and output, and does what each event asks for.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use podholder::protocol::{Call, Event, Fault, Message, Reply, Stage};
use podholder::sys;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{WaitId, WaitIdOptions, waitid};

use crate::cgroups::Hierarchies;
use crate::clock;
use crate::connection::Connection;
use crate::fault::{OrFault, refused};
use crate::pod_container::Container;
use crate::poll::{Interest, Poll, Task, Token};
use crate::sandbox::Sandbox;
use crate::task::{Asker, Live, Outcome};

/// How long what was killed may take to die before the holder leaves it to the kernel.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(10);
/// Records of ended containers that are kept of one name, if nobody forgets them.
const ENDED_PER_NAME: usize = 2;

/// A process of `Request::Exec`, and the connection that hears of its end.
pub struct Exec {
    pub connection: u64,
    pub live: Live,
}

/// See the module's page.
pub struct Holder {
    pub poll: Poll,
    pub sandbox: Option<Sandbox>,
    /// This process is in namespaces that a sandbox can have.
    pub prepared: bool,
    pub note: serde_json::Value,
    pub hierarchies: Hierarchies,
    pub containers: BTreeMap<u64, Container>,
    pub execs: BTreeMap<u64, Exec>,
    pub connections: BTreeMap<u64, Connection>,
    listener: Option<(OwnedFd, PathBuf)>,
    /// Processes that only need a wait: pidfd and key.
    helpers: BTreeMap<u64, (OwnedFd, u64)>,
    next: u64,
    closing: Option<Instant>,
    /// Readable when a child ended; its key.
    children: OwnedFd,
    children_key: u64,
    /// A request was done that took much memory for a moment.
    pub untidy: bool,
}

impl Holder {
    pub fn new(first: OwnedFd) -> io::Result<Self> {
        let mut holder = Self {
            poll: Poll::new()?,
            sandbox: None,
            prepared: false,
            note: serde_json::Value::Null,
            hierarchies: Hierarchies::default(),
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            connections: BTreeMap::new(),
            listener: None,
            helpers: BTreeMap::new(),
            next: 1,
            closing: None,
            children: sys::child_events()?,
            children_key: 0,
            untidy: false,
        };
        holder.children_key = holder.poll.add(&holder.children, Interest::IN, Token::Children)?;
        holder.connect(first)?;
        Ok(holder)
    }

    /// Until all is over.
    pub fn run(&mut self) -> io::Result<()> {
        while !self.is_over() {
            let now = Instant::now();
            let containers = self.containers.values().filter_map(Container::deadline);
            let deadline = containers.chain(self.closing).min();
            for (key, flags) in self.poll.wait(deadline.map(|d| d.saturating_duration_since(now)))? {
                if let Some(token) = self.poll.token(key) {
                    self.handle(key, token, flags);
                }
            }
            self.tick();
            self.reap_strangers();
            if std::mem::take(&mut self.untidy) {
                sys::give_memory_back();
            }
        }
        if let Some((_, path)) = &self.listener {
            let _ = std::fs::remove_file(path);
        }
        Ok(())
    }

    /// Nobody made a sandbox and nobody can any more; or all that had to be killed is dead, or takes too long.
    fn is_over(&self) -> bool {
        if self.sandbox.is_none() && self.connections.is_empty() {
            return true;
        }
        let dead = self.helpers.is_empty() && self.execs.is_empty() && self.containers.values().all(|c| c.live.is_none());
        self.closing.is_some_and(|limit| dead || limit <= Instant::now())
    }

    /// This process is another now: who watches for ended children watches for those of the process that began to.
    pub fn watch_own_children(&mut self) -> io::Result<()> {
        self.poll.remove(&self.children, self.children_key);
        self.children = sys::child_events()?;
        self.children_key = self.poll.add(&self.children, Interest::IN, Token::Children)?;
        Ok(())
    }

    pub fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn handle(&mut self, key: u64, token: Token, flags: Interest) {
        match token {
            Token::Listener => self.accept(),
            Token::Connection(id) => self.converse(id, flags),
            Token::Status(task) => self.progress(task),
            Token::Exit(task) => self.exited(task),
            Token::Stream(container, index) => {
                if let Some(container) = self.containers.get_mut(&container) {
                    container.pump(index, false, &mut self.poll);
                }
            }
            Token::Attachment(container, id) => {
                self.poll.forget(key);
                if let Some(container) = self.containers.get_mut(&container) {
                    container.flush_attachment(id, &mut self.poll);
                }
            }
            Token::Children => sys::drain(self.children.as_fd()),
            Token::Helper(id) => self.reap_helper(id),
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        for container in self.containers.values_mut().filter(|c| c.deadline().is_some_and(|d| d <= now)) {
            container.tick(now, &mut self.poll);
        }
        let poll = &mut self.poll;
        self.containers.retain(|_, c| {
            let gone = c.forgotten && c.is_idle();
            if gone {
                c.close(poll);
            }
            !gone
        });
    }

    fn connect(&mut self, socket: OwnedFd) -> io::Result<()> {
        let id = self.number();
        let connection = Connection::new(socket, id, &mut self.poll)?;
        self.connections.insert(id, connection);
        Ok(())
    }

    /// Listens, for root alone.
    pub fn listen(&mut self, path: &Path) -> Result<(), Fault> {
        let fault = |e: rustix::io::Errno| crate::fault::kernel(Stage::Listen, path.display(), e);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).map_err(fault)?;
        // A socket that is there already is that of a holder which came after this one: an agent clears away what it finds, first.
        // The socket's mode comes from the umask: at no moment may another user connect.
        let old = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let bound = bind(&socket, path);
        rustix::process::umask(old);
        bound.map_err(fault)?;
        rustix::net::listen(&socket, 16).map_err(fault)?;
        self.poll.add(&socket, Interest::IN, Token::Listener).or_fault(Stage::Listen, path.display())?;
        self.listener = Some((socket, path.to_owned()));
        Ok(())
    }

    fn accept(&mut self) {
        let Some((listener, _)) = &self.listener else { return };
        let Ok(socket) = rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) else { return };
        if rustix::net::sockopt::socket_peercred(&socket).is_ok_and(|peer| peer.uid.is_root()) {
            // Without a place in the epoll set it is closed, and the agent tries again.
            let _ = self.connect(socket);
        }
    }

    fn converse(&mut self, id: u64, flags: Interest) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if flags.contains(Interest::OUT) {
            connection.flush(&mut self.poll);
        }
        while let Some(packet) = self.connections.get_mut(&id).and_then(Connection::receive) {
            match packet.decode::<Call>() {
                Ok(call) => self.call(Asker { connection: id, call: call.id }, call.request, packet.fds),
                Err(e) => {
                    #[derive(serde::Deserialize)]
                    struct Id {
                        id: u64,
                    }
                    // A newer agent's request: it learns that this holder doesn't know it.
                    let call = packet.decode::<Id>().map_or(0, |i| i.id);
                    let fault = refused(Stage::Protocol, "request", e);
                    self.reply(Asker { connection: id, call }, Err(fault), Vec::new());
                }
            }
        }
        self.drop_broken();
    }

    fn drop_broken(&mut self) {
        let broken: Vec<u64> = self.connections.iter().filter(|(_, c)| c.is_broken()).map(|(id, _)| *id).collect();
        for id in broken {
            if let Some(connection) = self.connections.remove(&id) {
                connection.close(&mut self.poll);
            }
        }
    }

    pub fn reply(&mut self, asker: Asker, result: Result<Reply, Fault>, fds: Vec<OwnedFd>) {
        if let Some(connection) = self.connections.get_mut(&asker.connection) {
            connection.send(&Message::Reply { id: asker.call, result }, fds, &mut self.poll);
        }
    }

    fn publish(&mut self, event: &Event) {
        for connection in self.connections.values_mut().filter(|c| c.subscribed) {
            connection.send(&Message::Event(event.clone()), Vec::new(), &mut self.poll);
        }
        self.drop_broken();
    }

    fn live(&mut self, task: Task) -> Option<&mut Live> {
        match task {
            Task::Container(number) => self.containers.get_mut(&number)?.live.as_mut(),
            Task::Exec(number) => self.execs.get_mut(&number).map(|e| &mut e.live),
        }
    }

    /// A child that starts has something to say.
    fn progress(&mut self, task: Task) {
        let mut moved = Vec::new();
        let live = match task {
            Task::Container(number) => self.containers.get_mut(&number).and_then(|c| c.live.as_mut()),
            Task::Exec(number) => self.execs.get_mut(&number).map(|e| &mut e.live),
        };
        let Some(live) = live else { return };
        let outcome = live.progress(task, &mut self.poll, |_, pidfd| moved.push(pidfd));
        for pidfd in moved {
            self.reap_later(pidfd);
        }
        self.conclude(task, outcome);
    }

    /// Answers who asked for a start, once it is decided.
    fn conclude(&mut self, task: Task, outcome: Option<Outcome>) {
        match (outcome, task) {
            (None, _) => {}
            (Some(Outcome::Failed { asker, fault }), _) => {
                self.discard(task);
                self.reply(asker, Err(fault), Vec::new());
            }
            (Some(Outcome::Running { asker, steps, pty }), Task::Container(number)) => {
                if let Some(container) = self.containers.get_mut(&number) {
                    container.state.started_at = clock::now();
                    container.state.pid = container.live.as_ref().map_or(0, |l| l.pid);
                    if let Some(pty) = pty {
                        container.stdin = pty.master.try_clone().ok();
                        container.slave = Some(pty.slave);
                        let _ = container.add_stream(0, pty.master, &mut self.poll);
                    }
                    let (pid, started_at) = (container.state.pid, container.state.started_at);
                    self.reply(asker, Ok(Reply::Started { pid, started_at, steps }), Vec::new());
                }
            }
            (Some(Outcome::Running { asker, pty, .. }), Task::Exec(exec)) => {
                let pid = self.execs.get(&exec).map_or(0, |e| e.live.pid);
                let master = pty.map(|p| p.master).into_iter().collect();
                self.reply(asker, Ok(Reply::Exec { exec, pid }), master);
            }
        }
    }

    fn decide(&mut self, task: Task) -> Option<Outcome> {
        let live = match task {
            Task::Container(number) => self.containers.get_mut(&number).and_then(|c| c.live.as_mut()),
            Task::Exec(number) => self.execs.get_mut(&number).map(|e| &mut e.live),
        };
        live?.decide(&mut self.poll)
    }

    /// A start that failed leaves nothing.
    fn discard(&mut self, task: Task) {
        let live = match task {
            Task::Container(number) => self.containers.remove(&number).and_then(|mut c| {
                c.close(&mut self.poll);
                c.live.take()
            }),
            Task::Exec(number) => self.execs.remove(&number).map(|e| e.live),
        };
        if let Some(live) = live {
            let pidfd = live.release(&mut self.poll);
            let _ = sys::pidfd_signal(pidfd.as_fd(), libc::SIGKILL);
            self.reap_later(pidfd);
        }
    }

    fn exited(&mut self, task: Task) {
        let Some(live) = self.live(task) else { return };
        if live.is_starting() {
            let ended = live.pid;
            // What it said before it ended decides whether it ever ran.
            self.progress(task);
            let Some(live) = self.live(task).filter(|live| live.pid == ended) else {
                // It made way for another, whose own end will be heard of. Or it came to nothing.
                return;
            };
            if live.is_starting() {
                let outcome = self.decide(task);
                self.conclude(task, outcome);
            }
        }
        let Some(exit) = self.live(task).and_then(|l| l.reap()) else { return };
        match task {
            Task::Container(number) => {
                let Some(container) = self.containers.get_mut(&number) else { return };
                container.ended(exit, &mut self.poll);
                let (id, name) = (container.state.id.clone(), container.state.name.clone());
                self.forget_old(&name);
                self.publish(&Event::Exited { container: id, exit });
            }
            Task::Exec(number) => {
                let Some(exec) = self.execs.remove(&number) else { return };
                exec.live.release(&mut self.poll);
                if let Some(connection) = self.connections.get_mut(&exec.connection) {
                    let event = Event::ExecExited { exec: number, exit };
                    connection.send(&Message::Event(event), Vec::new(), &mut self.poll);
                }
            }
        }
    }

    fn forget_old(&mut self, name: &str) {
        let ended = self.containers.values_mut().rev().filter(|c| c.state.name == name && c.state.exit.is_some() && !c.forgotten);
        for container in ended.skip(ENDED_PER_NAME) {
            container.forgotten = true;
        }
    }

    fn reap_later(&mut self, pidfd: OwnedFd) {
        let id = self.number();
        if let Ok(key) = self.poll.add(&pidfd, Interest::IN, Token::Helper(id)) {
            self.helpers.insert(id, (pidfd, key));
        }
    }

    fn reap_helper(&mut self, id: u64) {
        let Some((pidfd, key)) = self.helpers.remove(&id) else { return };
        let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
        self.poll.remove(&pidfd, key);
    }

    /// A container's process can give this one children that it never made (CLONE_PARENT) and have its threads traced by it
    /// (PTRACE_TRACEME). They would stay as zombies; a thread would even hide the end of its process for as long.
    fn reap_strangers(&self) {
        let mut live = self.containers.values().filter_map(|c| c.live.as_ref()).chain(self.execs.values().map(|e| &e.live));
        // Who goes on in place of a child that starts isn't known before it says so.
        if live.any(Live::is_starting) {
            return;
        }
        while let Ok(Some(pid)) = sys::ended_child() {
            // That one has an event of its own, and what it left is read first.
            let known = |live: &Live| live.pid == pid;
            if self.containers.values().filter_map(|c| c.live.as_ref()).any(known) || self.execs.values().any(|e| known(&e.live))
            {
                return;
            }
            if sys::forget_child(pid).is_err() {
                return;
            }
        }
    }

    /// Kills all that there is. The loop ends when it's dead.
    pub fn shut_down(&mut self) {
        self.closing.get_or_insert_with(|| Instant::now() + SHUTDOWN_LIMIT);
        let live = self.containers.values().filter_map(|c| c.live.as_ref()).chain(self.execs.values().map(|e| &e.live));
        for live in live {
            let _ = sys::pidfd_signal(live.pidfd.as_fd(), libc::SIGKILL);
        }
        if let Some(pause) = self.sandbox.as_mut().and_then(|s| s.pause.take()) {
            let _ = sys::pidfd_signal(pause.pidfd.as_fd(), libc::SIGKILL);
            self.reap_later(pause.pidfd);
        }
    }
}

/// An address has room for 107 bytes: a longer path is gone by way of its folder's descriptor.
fn bind(socket: &OwnedFd, path: &Path) -> rustix::io::Result<()> {
    if let Ok(address) = SocketAddrUnix::new(path) {
        return rustix::net::bind(socket, &address);
    }
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::INVAL) };
    let folder = rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name);
    rustix::net::bind(socket, &SocketAddrUnix::new(short)?)
}
