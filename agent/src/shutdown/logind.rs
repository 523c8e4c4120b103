//! systemd's logind, as far as it lets a service delay the machine's shutdown: <https://systemd.io/INHIBITOR_LOCKS/> and
//! org.freedesktop.login1(5), by the system bus. Knows nothing of pods.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use netplug::whole::{self, Outlives};
use zbus::proxy::{self, CacheProperties, OwnerChangedStream, Proxy, SignalStream};
use zbus::zvariant::OwnedFd;
use zbus::{Address, Connection, connection};

/// Longer than anything on the bus takes to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// In which logind reads its settings anew.
const RELOADED_WITHIN: Duration = Duration::from_secs(5);
/// Where its settings may be added to; see logind.conf(5).
const DROP_INS: &str = "/etc/systemd/logind.conf.d";
/// After the kubelet's, which is 99-kubelet.conf: the last one counts.
const DROP_IN: &str = "99-nodeagent.conf";
/// SIGHUP, as the bus has it.
const HANGUP: i32 = 1;

/// The connection to it.
pub struct Logind {
    manager: Proxy<'static>,
    systemd: Proxy<'static>,
    shutdowns: SignalStream<'static>,
    owners: OwnerChangedStream<'static>,
}

/// As long as it is open, logind waits with the shutdown, up to its `InhibitDelayMaxSec`.
pub type Lock = OwnedFd;

/// What there is to hear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// The machine is about to go down: as soon as all locks are released.
    GoingDown,
    /// It was thought better of.
    StayingUp,
    /// logind is another process.
    Another,
}

/// Why there is no lock.
#[derive(Debug, thiserror::Error)]
pub enum LogindError {
    /// No bus.
    #[error("no system bus at {address}: {source}")]
    Bus {
        /// Where it was looked for.
        address: String,
        /// What came of it.
        source: zbus::Error,
    },
    /// It was asked in vain.
    #[error("ask systemd's logind {what}: {source}")]
    Asked {
        /// What for.
        what: &'static str,
        /// What came of it.
        source: zbus::Error,
    },
    /// The bus has hung up.
    #[error("the system bus has hung up")]
    HungUp,
}

fn asked(what: &'static str) -> impl FnOnce(zbus::Error) -> LogindError {
    move |source| LogindError::Asked { what, source }
}

/// Why logind doesn't wait long enough.
#[derive(Debug, thiserror::Error)]
pub enum DelayError {
    /// It was asked in vain.
    #[error(transparent)]
    Logind(#[from] LogindError),
    /// Its settings can't be added to.
    #[error("write {}: {source}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Another file of settings wins.
    #[error("it goes on to wait for {is:?}, though {} says otherwise: a later file there, or its configuration, may say less", .path.display())]
    Overruled {
        /// The file.
        path: PathBuf,
        /// What counts.
        is: Duration,
    },
}

impl Logind {
    /// By the system bus, or the one that `DBUS_SYSTEM_BUS_ADDRESS` names.
    pub async fn connect() -> Result<Self, LogindError> {
        let bus = bus().await?;
        let manager = proxy(&bus, ("org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager"));
        let systemd = proxy(&bus, ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"));
        let (manager, systemd) = futures::future::try_join(manager, systemd).await.map_err(asked("who it is"))?;
        // Before anything is asked, so that nothing is missed in between.
        let shutdowns = manager.receive_signal("PrepareForShutdown").await.map_err(asked("to tell of shutdowns"))?;
        let owners = manager.receive_owner_changed().await.map_err(asked("to tell of its restarts"))?;
        Ok(Self { manager, systemd, shutdowns, owners })
    }

    /// How long it waits for those who hold locks, at most.
    pub async fn delay(&self) -> Result<Duration, LogindError> {
        let micros: u64 = self.manager.get_property("InhibitDelayMaxUSec").await.map_err(asked("how long it waits"))?;
        Ok(Duration::from_micros(micros))
    }

    /// Whether a shutdown has begun.
    pub async fn is_going_down(&self) -> Result<bool, LogindError> {
        self.manager.get_property("PreparingForShutdown").await.map_err(asked("whether the machine shuts down"))
    }

    /// Takes a lock that delays shutdowns.
    pub async fn hold(&self) -> Result<Lock, LogindError> {
        let order = ("shutdown", "nodeagent", "Pods end in the order of their priorities", "delay");
        self.manager.call("Inhibit", &order).await.map_err(asked("to wait with a shutdown"))
    }

    /// Lets it wait so long, by a file of its settings if it would wait less.
    pub async fn allow(&self, needed: Duration) -> Result<(), DelayError> {
        if self.delay().await? >= needed {
            return Ok(());
        }
        let path = add_settings(needed).map_err(|(path, source)| DelayError::Write { path, source })?;
        let order = ("systemd-logind.service", "all", HANGUP);
        let told: zbus::Result<()> = self.systemd.call("KillUnit", &order).await;
        told.map_err(asked("to read its settings (by systemd)"))?;
        tracing::info!(file = %path.display(), "logind is allowed to wait {needed:?} with a shutdown");
        let takes_effect = async {
            while self.delay().await? < needed {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Ok(())
        };
        match tokio::time::timeout(RELOADED_WITHIN, takes_effect).await {
            Ok(done) => done,
            Err(_) => Err(DelayError::Overruled { path, is: self.delay().await? }),
        }
    }

    /// Waits for the next. May be dropped at any point.
    pub async fn news(&mut self) -> Result<News, LogindError> {
        loop {
            tokio::select! {
                signal = self.shutdowns.next() => {
                    let signal = signal.ok_or(LogindError::HungUp)?;
                    let begins: bool = signal.body().deserialize().map_err(asked("to tell of shutdowns"))?;
                    return Ok(if begins { News::GoingDown } else { News::StayingUp });
                }
                owner = self.owners.next() => match owner {
                    Some(Some(_)) => return Ok(News::Another),
                    Some(None) => {}
                    None => return Err(LogindError::HungUp),
                }
            }
        }
    }
}

impl std::fmt::Debug for Logind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Logind").finish_non_exhaustive()
    }
}

async fn bus() -> Result<Connection, LogindError> {
    let address = Address::system().map_err(|source| LogindError::Bus { address: "DBUS_SYSTEM_BUS_ADDRESS".into(), source })?;
    let shown = address.to_string();
    let connected = async { connection::Builder::address(address)?.method_timeout(ANSWER_WITHIN).build().await };
    let connected = tokio::time::timeout(ANSWER_WITHIN, connected).await;
    let timed_out = |_| Err(zbus::Error::InputOutput(std::sync::Arc::new(std::io::ErrorKind::TimedOut.into())));
    connected.unwrap_or_else(timed_out).map_err(|source| LogindError::Bus { address: shown, source })
}

async fn proxy(
    bus: &Connection,
    (name, path, interface): (&'static str, &'static str, &'static str),
) -> zbus::Result<Proxy<'static>> {
    let builder = proxy::Builder::<Proxy<'static>>::new(bus).destination(name)?.path(path)?.interface(interface)?;
    builder.cache_properties(CacheProperties::No).build().await
}

/// Adds to logind's settings, as the kubelet does. Returns the file, also of an error.
fn add_settings(delay: Duration) -> Result<PathBuf, (PathBuf, std::io::Error)> {
    let folder = Path::new(DROP_INS);
    let path = folder.join(DROP_IN);
    let seconds = delay.as_secs() + u64::from(delay.subsec_nanos() > 0);
    let text =
        format!("# Of nodeagent: what its pods need to end (shutdownGracePeriod).\n[Login]\nInhibitDelayMaxSec={seconds}\n");
    let written = std::fs::create_dir_all(folder).and_then(|()| whole::write(&path, text.as_bytes(), 0o644, Outlives::Power));
    match written {
        Ok(()) => Ok(path),
        Err(error) => Err((path, error)),
    }
}
