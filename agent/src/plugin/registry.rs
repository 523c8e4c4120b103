//! The folder in which plugins register (`plugins_registry`): each has a socket there, at which it says what it is and hears whether it was
//! taken. The kernel tells when sockets come and go.
//! <https://github.com/kubernetes/kubelet/blob/master/pkg/apis/pluginregistration/v1/api.proto>

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use tokio::task::AbortHandle;

use crate::follow::{self, Followed};
use crate::grpc::Channel;

/// The kubelet's, for each question.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two tries; doubled each time.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// At most.
const LAST_WAIT: Duration = Duration::from_secs(122);

/// A plugin, as it tells of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plugin {
    /// Unique among its kind.
    pub name: String,
    /// The socket that it serves at.
    pub endpoint: String,
    /// Of its kind's API.
    pub versions: Vec<String>,
}

/// Who takes plugins of a kind.
pub trait Handler: Send + Sync {
    /// Takes one; an error is told to it, and it is asked again.
    fn register<'a>(&'a self, plugin: &'a Plugin) -> BoxFuture<'a, Result<(), String>>;
    /// One that was taken is gone.
    fn deregister(&self, plugin: &Plugin);
}

/// Kinds of plugins: `DevicePlugin`.
pub type Handlers = BTreeMap<&'static str, Box<dyn Handler>>;

/// Follows the folder until the task is ended.
pub async fn follow(folder: PathBuf, handlers: Handlers) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o750).create(&folder)?;
    let registry = Arc::new(Registry { handlers, sockets: Mutex::default() });
    let followed = Followed::new(vec![folder.clone()])?;
    follow::follow(followed, || {
        registry.clone().look(&folder);
        std::future::ready(Some(None))
    })
    .await;
    Ok(())
}

struct Registry {
    handlers: Handlers,
    sockets: Mutex<BTreeMap<PathBuf, Socket>>,
}

/// A socket that somebody minds.
struct Socket {
    identity: Identity,
    minded: AbortHandle,
    taken: Arc<Mutex<Option<(String, Plugin)>>>,
}

/// Of a file that may be made again under its name.
type Identity = (u64, Option<SystemTime>);

impl Registry {
    /// Begins with sockets that are new, ends with those that are gone.
    fn look(self: Arc<Self>, folder: &Path) {
        let found = sockets(folder);
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.retain(|path, socket| {
            let stays = found.get(path) == Some(&socket.identity);
            if !stays {
                self.end(socket);
            }
            stays
        });
        for (path, identity) in found {
            sockets.entry(path.clone()).or_insert_with(|| {
                let taken = Arc::default();
                let minded = tokio::spawn(self.clone().mind(path, Arc::clone(&taken))).abort_handle();
                Socket { identity, minded, taken }
            });
        }
    }

    fn end(&self, socket: &Socket) {
        socket.minded.abort();
        let taken = socket.taken.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((kind, plugin)) = taken {
            tracing::info!(kind, name = plugin.name, "a plugin is gone");
            self.handlers.get(kind.as_str()).into_iter().for_each(|handler| handler.deregister(&plugin));
        }
    }

    /// Until it is taken.
    async fn mind(self: Arc<Self>, socket: PathBuf, taken: Arc<Mutex<Option<(String, Plugin)>>>) {
        let mut wait = FIRST_WAIT;
        loop {
            match self.take(&socket, &taken).await {
                Ok(()) => return,
                Err(why) => {
                    tracing::warn!(socket = %socket.display(), why, "a plugin could not be registered; it is tried again");
                }
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LAST_WAIT);
        }
    }

    async fn take(&self, socket: &Path, taken: &Mutex<Option<(String, Plugin)>>) -> Result<(), String> {
        let connected = tokio::time::timeout(PATIENCE, Channel::connect(socket)).await;
        let channel = connected.map_err(|_| "nobody answers".to_owned())?.map_err(|error| error.to_string())?;
        let info = channel.unary::<PluginInfo>("pluginregistration.Registration/GetInfo", &InfoRequest {}, PATIENCE).await;
        let PluginInfo { kind, name, endpoint, versions } =
            info.map_err(|status| format!("failed to get plugin info: {status}"))?;
        let endpoint = if endpoint.is_empty() { socket.display().to_string() } else { endpoint };
        let plugin = Plugin { name, endpoint, versions };
        let registered = match self.handlers.get(kind.as_str()) {
            Some(handler) => handler.register(&plugin).await,
            None => Err(format!("no handler registered for plugin type: {kind} at socket path {}", socket.display())),
        };
        let status = RegistrationStatus { registered: registered.is_ok(), error: registered.clone().err().unwrap_or_default() };
        if registered.is_ok() {
            *taken.lock().unwrap_or_else(PoisonError::into_inner) = Some((kind, plugin));
        }
        let method = "pluginregistration.Registration/NotifyRegistrationStatus";
        let told = channel.unary::<StatusResponse>(method, &status, PATIENCE).await;
        registered?;
        told.map(drop).map_err(|status| format!("failed to send registration status: {status}"))
    }
}

/// Those in the folder, but for hidden ones.
fn sockets(folder: &Path) -> BTreeMap<PathBuf, Identity> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let visible = entries.filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."));
    visible
        .filter_map(|entry| {
            let metadata = entry.metadata().ok().filter(|metadata| metadata.file_type().is_socket())?;
            Some((entry.path(), (metadata.ino(), metadata.created().ok())))
        })
        .collect()
}

#[derive(Clone, PartialEq, prost::Message)]
struct InfoRequest {}

#[derive(Clone, PartialEq, prost::Message)]
struct PluginInfo {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    endpoint: String,
    #[prost(string, repeated, tag = "4")]
    versions: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RegistrationStatus {
    #[prost(bool, tag = "1")]
    registered: bool,
    #[prost(string, tag = "2")]
    error: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusResponse {}
