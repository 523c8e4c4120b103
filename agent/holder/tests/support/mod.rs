//! A pod on the real kernel: the built holder, a busybox image, and a client that speaks the protocol as the agent does.
#![allow(dead_code, unused_imports, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cgroups;

use std::collections::VecDeque;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use podholder::protocol::{
    Call, Capabilities, Device, Event, Exit, Fault, HolderState, IdMap, IdMaps, LogFile, Message, Mount, Process, Propagation,
    Recipe, Reply, Request, Rootfs, SandboxRecipe, Source, Step, VERSION,
};
use podholder::{sys, wire};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tempfile::TempDir;

pub use cgroups::Cgroups;

const BUSYBOX: &str = "/bin/busybox";
/// For anything to happen: no test measures time, this only turns a hang into a failure.
const LIMIT: Duration = Duration::from_secs(60);
const APPLETS: &[&str] = &[
    "sh", "cat", "echo", "env", "head", "hostname", "id", "ipcmk", "ipcs", "kill", "ls", "mkdir", "mount", "ps", "pwd",
    "readlink", "rm", "seq", "sleep", "stat", "stty", "touch", "tty", "true", "umount", "wc", "dd", "grep", "find", "chmod",
    "ln", "yes", "tr", "date", "df", "nice",
];

pub const DEFAULT_CAPABILITIES: u64 = 0xa804_25fb;
pub const SYS_PTRACE: u64 = 1 << 19;
pub const ALL_CAPABILITIES: u64 = (1 << 41) - 1;

/// A pod and the connection to its holder. Dropping it kills everything.
pub struct Pod {
    pub dir: TempDir,
    pub holder: Child,
    connection: Option<Connection>,
    pub pid: i32,
    pub pause_pid: Option<i32>,
    pub steps: Vec<Step>,
    started: u32,
}

/// PODHOLDER in the environment names another: the static one of a release, to measure it or to test what is shipped.
fn holder_program() -> std::ffi::OsString {
    std::env::var_os("PODHOLDER").unwrap_or_else(|| env!("CARGO_BIN_EXE_podholder").into())
}

/// One connection to a holder.
pub struct Connection {
    socket: OwnedFd,
    next: u64,
    events: VecDeque<Event>,
}

impl Connection {
    pub fn open(path: &Path) -> Self {
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        rustix::net::connect(&socket, &rustix::net::SocketAddrUnix::new(path).unwrap()).expect("connect to the holder");
        Self::new(socket)
    }

    pub fn new(socket: OwnedFd) -> Self {
        Self { socket, next: 0, events: VecDeque::new() }
    }

    pub fn send(&mut self, request: Request, fds: &[BorrowedFd<'_>]) -> u64 {
        self.next += 1;
        let body = wire::encode(&Call { id: self.next, request }).unwrap();
        wire::send(self.socket.as_fd(), &body, fds).expect("send to the holder");
        self.next
    }

    /// The next message; none at end of file.
    pub fn receive(&mut self) -> Option<(Message, Vec<OwnedFd>)> {
        let deadline = Instant::now() + LIMIT;
        loop {
            assert!(Instant::now() < deadline, "the holder says nothing");
            let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
            let _ = rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 1, tv_nsec: 0 }));
            match wire::receive(self.socket.as_fd()) {
                Ok(None) => return None,
                Ok(Some(packet)) => return Some((packet.decode().unwrap(), packet.fds)),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) => panic!("receive: {e}"),
            }
        }
    }

    pub fn answer(&mut self, wanted: u64) -> Result<(Reply, Vec<OwnedFd>), Fault> {
        loop {
            match self.receive().expect("the holder hung up") {
                (Message::Reply { id, result }, fds) if id == wanted => return result.map(|reply| (reply, fds)),
                (Message::Reply { .. }, _) => {}
                (Message::Event(event), _) => self.events.push_back(event),
            }
        }
    }

    pub fn call(&mut self, request: Request, fds: &[BorrowedFd<'_>]) -> Result<(Reply, Vec<OwnedFd>), Fault> {
        let id = self.send(request, fds);
        self.answer(id)
    }

    /// Waits for an event that `pick` likes.
    pub fn event<T>(&mut self, pick: impl Fn(&Event) -> Option<T>) -> T {
        if let Some((n, found)) = self.events.iter().enumerate().find_map(|(n, e)| pick(e).map(|t| (n, t))) {
            self.events.remove(n);
            return found;
        }
        loop {
            if let (Message::Event(event), _) = self.receive().expect("the holder hung up") {
                match pick(&event) {
                    Some(found) => return found,
                    None => self.events.push_back(event),
                }
            }
        }
    }
}

/// What `Pod::run` saw.
#[derive(Debug)]
pub struct Ran {
    pub exit: Exit,
    pub stdout: String,
    pub stderr: String,
}

impl Pod {
    /// With NET, IPC and UTS of its own.
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with_user_namespace() -> Self {
        Self::with(|recipe| {
            let map = vec![IdMap { inside: 0, outside: 200_000, count: 65_536 }];
            recipe.user = Some(IdMaps { uids: map.clone(), gids: map });
        })
    }

    pub fn with(change: impl FnOnce(&mut SandboxRecipe)) -> Self {
        Self::try_with(change).expect("sandbox")
    }

    pub fn try_with(change: impl FnOnce(&mut SandboxRecipe)) -> Result<Self, Fault> {
        assert!(Path::new(BUSYBOX).exists(), "{BUSYBOX} is missing: apt-get install busybox-static");
        assert!(rustix::process::geteuid().is_root(), "these tests make namespaces and mounts: run them as root");
        let dir = tempfile::tempdir().unwrap();
        make_image(&dir.path().join("image"));
        let mut recipe = SandboxRecipe {
            socket: dir.path().join("holder.sock"),
            net: true,
            ipc: true,
            hostname: Some("pod".into()),
            title: "podholder test/pod".into(),
            note: serde_json::json!({"from": "test"}),
            ..SandboxRecipe::default()
        };
        change(&mut recipe);
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        // As standard input, then moved: the child of a threaded test may hold no descriptor by accident.
        let holder = Command::new(BUSYBOX)
            .args(["sh", "-c", "exec 3<&0 </dev/null; exec \"$0\""])
            .arg(holder_program())
            .stdin(Stdio::from(theirs))
            .spawn()
            .unwrap();
        let mut pod =
            Self { dir, holder, connection: Some(Connection::new(ours)), pid: 0, pause_pid: None, steps: Vec::new(), started: 0 };
        // A request that comes too early gets nothing: least of all a way into the host's network.
        let early = [Request::NetNamespace, Request::Socket { domain: libc::AF_INET, kind: libc::SOCK_STREAM, protocol: 0 }];
        early.into_iter().for_each(|request| assert!(pod.call(request).is_err()));
        let (reply, _) = pod.call(Request::Sandbox(Box::new(recipe)))?;
        let Reply::Sandbox { version, pid, pause_pid, steps } = reply else { panic!("{reply:?}") };
        assert_eq!((version, pid), (VERSION, pod.holder.id() as i32));
        (pod.pid, pod.pause_pid, pod.steps) = (pid, pause_pid, steps);
        pod.call(Request::Subscribe)?;
        Ok(pod)
    }

    pub fn connection(&mut self) -> &mut Connection {
        self.connection.as_mut().expect("disconnected")
    }

    pub fn call(&mut self, request: Request) -> Result<(Reply, Vec<OwnedFd>), Fault> {
        self.connection().call(request, &[])
    }

    /// As an agent that was killed.
    pub fn disconnect(&mut self) {
        self.connection = None;
    }

    pub fn reconnect(&mut self) {
        self.connection = Some(Connection::open(&self.dir.path().join("holder.sock")));
        self.call(Request::Subscribe).unwrap();
    }

    pub fn state(&mut self) -> HolderState {
        match self.call(Request::State).unwrap() {
            (Reply::State(state), _) => *state,
            other => panic!("{other:?}"),
        }
    }

    /// What a plain container of Kubernetes has.
    pub fn recipe(&mut self, name: &str, argv: &[&str]) -> Recipe {
        self.started += 1;
        let attempt = self.started;
        let base = self.dir.path().join(format!("containers/{name}-{attempt}"));
        for part in ["upper", "work", "root"] {
            std::fs::create_dir_all(base.join(part)).unwrap();
        }
        let mount = |target: &str, source| Mount {
            target: target.into(),
            source,
            read_only: false,
            recursive_read_only: false,
            nosuid: true,
            nodev: !target.starts_with("/dev"),
            noexec: true,
            propagation: Propagation::Private,
        };
        let device = |name: &str, minor| Device {
            path: format!("/dev/{name}").into(),
            kind: 'c',
            major: if name == "tty" { 5 } else { 1 },
            minor,
            mode: 0o666,
            uid: 0,
            gid: 0,
        };
        let strings = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        Recipe {
            id: format!("{name}-{attempt}"),
            name: name.into(),
            attempt,
            process: Process {
                argv: strings(argv),
                env: strings(&["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"]),
                cwd: "/".into(),
                capabilities: Capabilities {
                    bounding: DEFAULT_CAPABILITIES,
                    effective: DEFAULT_CAPABILITIES,
                    inheritable: 0,
                    ambient: 0,
                },
                no_new_privs: true,
                ..Process::default()
            },
            rootfs: Rootfs {
                lower: vec![self.dir.path().join("image")],
                upper: base.join("upper"),
                work: base.join("work"),
                target: base.join("root"),
                ..Rootfs::default()
            },
            mounts: vec![
                mount("/proc", Source::Proc),
                mount("/dev", Source::Tmpfs { options: "mode=755,size=65536k".into() }),
                mount("/dev/pts", Source::Devpts),
                mount("/dev/shm", Source::Shm),
                mount("/dev/mqueue", Source::Mqueue),
                Mount { read_only: true, ..mount("/sys", Source::Sysfs) },
            ],
            devices: vec![
                device("null", 3),
                device("zero", 5),
                device("full", 7),
                device("random", 8),
                device("urandom", 9),
                device("tty", 0),
            ],
            masked_paths: ["/proc/kcore", "/proc/keys", "/proc/acpi", "/sys/firmware", "/proc/not/there"]
                .iter()
                .map(PathBuf::from)
                .collect(),
            read_only_paths: ["/proc/sys", "/proc/bus", "/proc/sysrq-trigger"].iter().map(PathBuf::from).collect(),
            log: Some(LogFile { path: base.join("0.log"), max_size: 0, max_files: 5, ..LogFile::default() }),
            ..Recipe::default()
        }
    }

    pub fn shell(&mut self, name: &str, script: &str) -> Recipe {
        self.recipe(name, &["/bin/sh", "-c", script])
    }

    /// Starts a container: its PID on the host.
    pub fn start(&mut self, recipe: &Recipe) -> Result<i32, Fault> {
        match self.call(Request::Start(Box::new(recipe.clone())))? {
            (Reply::Started { pid, .. }, _) => Ok(pid),
            other => panic!("{other:?}"),
        }
    }

    pub fn exit_of(&mut self, id: &str) -> Exit {
        self.connection().event(|event| match event {
            Event::Exited { container, exit } if container == id => Some(*exit),
            _ => None,
        })
    }

    /// Starts, waits for the end, reads the log.
    pub fn run(&mut self, recipe: &Recipe) -> Ran {
        self.start(recipe).unwrap_or_else(|f| panic!("start of {}: {f:?}", recipe.id));
        let exit = self.exit_of(&recipe.id);
        Ran { exit, stdout: text(&log_of(recipe), "stdout"), stderr: text(&log_of(recipe), "stderr") }
    }

    /// A shell script in a plain container: its standard output.
    pub fn sh(&mut self, script: &str) -> String {
        let recipe = self.shell("sh", script);
        let ran = self.run(&recipe);
        assert_eq!(ran.exit.code, 0, "{script}: {ran:?}");
        ran.stdout
    }

    /// A process beside the container's own: exit code, standard output, standard error.
    pub fn exec(&mut self, container: &Recipe, process: Process) -> Result<(i32, String, String), Fault> {
        let null = std::fs::File::open("/dev/null").unwrap();
        let (out_read, out) = pipe();
        let (err_read, err) = pipe();
        let request =
            Request::Exec { container: container.id.clone(), process: Box::new(process), cgroups: container.cgroups.clone() };
        let reply = self.connection().call(request, &[null.as_fd(), out.as_fd(), err.as_fd()]);
        drop((out, err));
        let (Reply::Exec { exec, .. }, _) = reply? else { panic!("not an exec") };
        let (stdout, stderr) = (read_all(out_read), read_all(err_read));
        Ok((self.exec_exit(exec).code, stdout, stderr))
    }

    pub fn exec_exit(&mut self, number: u64) -> Exit {
        self.connection().event(|event| match event {
            Event::ExecExited { exec, exit } if *exec == number => Some(*exit),
            _ => None,
        })
    }

    pub fn signal(&mut self, id: &str, signal: i32) {
        self.call(Request::Signal { container: id.into(), signal }).unwrap();
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn make_image(dir: &Path) {
    for folder in ["bin", "etc", "proc", "dev", "sys", "tmp", "run", "var", "root"] {
        std::fs::create_dir_all(dir.join(folder)).unwrap();
    }
    std::fs::copy(BUSYBOX, dir.join("bin/busybox")).unwrap();
    for applet in APPLETS {
        symlink("busybox", dir.join("bin").join(applet)).unwrap();
    }
    symlink("/run", dir.join("var/run")).unwrap();
    std::fs::write(dir.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/var/www:\n").unwrap();
    std::fs::write(dir.join("etc/group"), "root:x:0:\nweb:x:34:\nstaff:x:50:web\n").unwrap();
    std::fs::set_permissions(dir.join("tmp"), std::fs::Permissions::from_mode(0o1777)).unwrap();
}

pub fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
}

pub fn read_all(fd: OwnedFd) -> String {
    let mut bytes = Vec::new();
    // A terminal's master ends with EIO.
    let _ = std::fs::File::from(fd).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

pub fn log_of(recipe: &Recipe) -> String {
    std::fs::read_to_string(&recipe.log.as_ref().unwrap().path).unwrap()
}

/// What a reader makes of a CRI log: the text of one stream.
pub fn text(log: &str, stream: &str) -> String {
    let mut out = String::new();
    for line in log.lines() {
        let mut fields = line.splitn(4, ' ');
        let (_, name, tag, text) =
            (fields.next().unwrap(), fields.next().unwrap(), fields.next().unwrap(), fields.next().unwrap());
        if name == stream {
            out.push_str(text);
            if tag == "F" {
                out.push('\n');
            }
        }
    }
    out
}

/// Until it's so.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn is_alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// A bind mount of the recipe.
pub fn bind(path: &Path, target: &str) -> Mount {
    Mount {
        target: target.into(),
        source: Source::Bind { path: path.into(), beneath: PathBuf::new(), recursive: false, idmap: false },
        read_only: false,
        recursive_read_only: false,
        nosuid: false,
        nodev: false,
        noexec: false,
        propagation: Propagation::Private,
    }
}

/// Kills a process by its number.
pub fn kill(pid: i32) {
    let pidfd =
        rustix::process::pidfd_open(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::PidfdFlags::empty()).unwrap();
    sys::pidfd_signal(pidfd.as_fd(), libc::SIGKILL).unwrap();
}

impl Connection {
    /// Bytes that a `Call` can't hold.
    pub fn raw(&mut self, body: &[u8], id: u64) -> Result<(Reply, Vec<OwnedFd>), Fault> {
        wire::send(self.socket.as_fd(), body, &[]).unwrap();
        self.answer(id)
    }
}

/// What busybox lacks, in a container: the host's program with its libraries.
pub fn host_program(pod: &mut Pod, argv: &[&str]) -> Recipe {
    let mut recipe = pod.recipe("tool", argv);
    for name in ["lib", "lib64"] {
        symlink(format!("usr/{name}"), recipe.rootfs.upper.join(name)).unwrap();
    }
    recipe.mounts.push(bind(Path::new("/usr"), "/usr"));
    recipe
}
