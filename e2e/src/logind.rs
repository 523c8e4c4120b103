//! A system bus and a logind of the tests' own: the machine goes down when the test says so.

use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use zbus::blocking::{Connection, connection, fdo::DBusProxy};
use zbus::zvariant;

use crate::{NodeBox, Running, eventually};

const LOGIND: &str = "/org/freedesktop/login1";

/// A system bus.
#[derive(Debug)]
pub struct Bus {
    address: String,
    _daemon: Running,
}

impl Bus {
    /// Listens in this folder.
    #[track_caller]
    pub fn start(folder: &Path) -> Self {
        let socket = folder.join("bus");
        let address = format!("unix:path={}", socket.display());
        let configuration = folder.join("bus.conf");
        let text = format!(
            "<busconfig><listen>{address}</listen><auth>EXTERNAL</auth><policy context=\"default\">\
             <allow send_destination=\"*\"/><allow receive_sender=\"*\"/><allow own=\"*\"/><allow user=\"*\"/></policy></busconfig>"
        );
        std::fs::write(&configuration, text).unwrap();
        let _ = std::fs::remove_file(&socket);
        let mut command = Command::new("dbus-daemon");
        command.args(["--nofork", "--nopidfile", "--config-file"]).arg(&configuration);
        let mut daemon = Running::start(&mut command);
        eventually("the bus listens", || {
            assert!(daemon.is_alive(), "dbus-daemon has ended:\n{}", daemon.output());
            UnixStream::connect(&socket).map(drop).map_err(|error| format!("{error}\n{}", daemon.output()))
        });
        Self { address, _daemon: daemon }
    }

    /// What an agent's environment has to say for it to be found.
    pub fn variable(&self) -> String {
        format!("DBUS_SYSTEM_BUS_ADDRESS={}", self.address)
    }

    /// How many are connected beside who asks.
    pub fn connections(&self) -> usize {
        let connection = connection::Builder::address(self.address.as_str()).unwrap().build().unwrap();
        let names = DBusProxy::new(&connection).unwrap().list_names().unwrap();
        names.iter().filter(|name| name.starts_with(':') && **name != connection.unique_name().unwrap().as_str()).count()
    }
}

/// What the stand-in knows.
#[derive(Debug, Default)]
struct State {
    delay: u64,
    /// Another file of its settings, which wins, says how long it waits.
    overruled: bool,
    going_down: bool,
    /// What was asked for, and the end of the pipe that tells when the lock is released.
    locks: Vec<(String, std::io::PipeReader)>,
}

/// logind's part of the bus.
struct Manager(Arc<Mutex<State>>);

#[zbus::interface(name = "org.freedesktop.login1.Manager")]
impl Manager {
    fn inhibit(&self, what: &str, who: &str, why: &str, mode: &str) -> zvariant::OwnedFd {
        assert!(!why.is_empty());
        let (told, lock) = std::io::pipe().unwrap();
        nix::fcntl::fcntl(&told, nix::fcntl::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
        self.0.lock().unwrap().locks.push((format!("{what} {who} {mode}"), told));
        OwnedFd::from(lock).into()
    }

    #[zbus(property, name = "InhibitDelayMaxUSec")]
    fn inhibit_delay_max(&self) -> u64 {
        self.0.lock().unwrap().delay
    }

    #[zbus(property)]
    fn preparing_for_shutdown(&self) -> bool {
        self.0.lock().unwrap().going_down
    }
}

/// systemd's part: it tells logind to read its settings.
struct Systemd(Arc<Mutex<State>>, PathBuf);

#[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
impl Systemd {
    fn kill_unit(&self, unit: &str, whom: &str, signal: i32) {
        assert_eq!((unit, whom, signal), ("systemd-logind.service", "all", 1));
        let settings = std::fs::read_to_string(self.1.join("logind.conf.d/99-nodeagent.conf")).unwrap();
        let (head, seconds) = settings.trim().rsplit_once('=').unwrap();
        assert!(head.ends_with("[Login]\nInhibitDelayMaxSec"), "{settings}");
        let mut state = self.0.lock().unwrap();
        if !state.overruled {
            state.delay = seconds.parse::<u64>().unwrap() * 1_000_000;
        }
    }
}

/// A stand-in for systemd's logind, and for what of systemd tells it to read its settings.
#[derive(Debug)]
pub struct Logind {
    connection: Connection,
    state: Arc<Mutex<State>>,
}

impl Logind {
    /// On this bus; what is in /etc/systemd for it is in `settings`.
    pub fn on(bus: &Bus, settings: &Path) -> Self {
        let state = Arc::new(Mutex::new(State { delay: 5_000_000, ..State::default() }));
        let connection = connection::Builder::address(bus.address.as_str()).unwrap();
        let connection = connection
            .serve_at(LOGIND, Manager(state.clone()))
            .and_then(|c| c.serve_at("/org/freedesktop/systemd1", Systemd(state.clone(), settings.into())))
            .and_then(|c| c.name("org.freedesktop.login1"))
            .and_then(|c| c.name("org.freedesktop.systemd1"))
            .unwrap();
        Self { connection: connection.build().unwrap(), state }
    }

    /// Tells all that the machine goes down, or that it doesn't.
    pub fn says(&self, going_down: bool) {
        self.knows(going_down);
        self.connection
            .emit_signal(None::<()>, LOGIND, "org.freedesktop.login1.Manager", "PrepareForShutdown", &going_down)
            .unwrap();
    }

    /// Says so to who asks.
    pub fn knows(&self, going_down: bool) {
        self.state.lock().unwrap().going_down = going_down;
    }

    /// Seconds that it waits for locks.
    pub fn waits(&self) -> u64 {
        self.state.lock().unwrap().delay / 1_000_000
    }

    /// Waits as long as it does, whatever the agent writes.
    pub fn is_overruled(&self) {
        self.state.lock().unwrap().overruled = true;
    }

    /// Leaves the bus, as a logind that ends.
    pub fn leaves(&self) {
        self.connection.clone().close().unwrap();
    }

    /// How many locks were taken, and how many of them are held.
    pub fn locks(&self) -> (usize, usize) {
        let state = self.state.lock().unwrap();
        let is_held = |mut pipe: &std::io::PipeReader| match pipe.read(&mut [0]) {
            Ok(0) => false,
            Err(error) if error.kind() == ErrorKind::WouldBlock => true,
            other => panic!("{other:?}"),
        };
        assert!(state.locks.iter().all(|(asked, _)| asked == "shutdown nodeagent delay"));
        (state.locks.len(), state.locks.iter().filter(|(_, pipe)| is_held(pipe)).count())
    }

    /// Waits until it has given so many locks, and the last one is held.
    #[track_caller]
    pub fn has_given(&self, locks: usize) {
        eventually(&format!("lock {locks} is held"), || match self.locks() {
            (given, 1) if given == locks => Ok(()),
            other => Err(format!("{other:?}: given, held")),
        });
    }
}

impl NodeBox {
    /// What the agent writes to /etc/systemd goes into this folder.
    #[track_caller]
    pub fn keeps_systemd_in(&self, settings: &Path) {
        std::fs::create_dir_all(settings).expect("the folder can be made");
        self.inside("mount", &["--bind", settings.to_str().expect("a path in UTF-8"), "/etc/systemd"]).ok();
    }
}
