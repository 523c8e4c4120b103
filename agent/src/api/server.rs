//! Listening: the unix socket, and with TLS a loopback port. Bounds what a client can hold: connections, headers, time.

use std::convert::Infallible;
use std::fs::{self, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Notify, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::call::Place;
use super::{ApiError, route, tls};
use crate::pod::node::Node;

/// Connections at a time.
const CONNECTIONS: usize = 512;
/// In which a request's headers must have come.
const HEADER_TIME: Duration = Duration::from_secs(20);
/// In which a TLS handshake must be done.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// Bytes of headers.
const HEADER_LIMIT: usize = 64 * 1024;

/// Where to listen, and what to keep where.
#[derive(Debug, Clone)]
pub struct Options {
    /// The unix socket: mode 0660.
    pub socket: PathBuf,
    /// The group that may use it beside root.
    pub group: Option<u32>,
    /// A loopback address for TLS.
    pub listen: Option<SocketAddr>,
    /// Keeps the certificates, 0600.
    pub certificates: PathBuf,
    /// Archives of `image load` lie here while they are loaded.
    pub spool: PathBuf,
}

/// What all requests share.
pub struct Shared {
    /// The agent.
    pub node: Arc<dyn Node>,
    /// Versions of the store below this are of an earlier life.
    pub oldest: u64,
    /// For archives.
    pub spool: PathBuf,
    /// The TLS port.
    pub address: Option<SocketAddr>,
    /// Of the TLS port.
    pub certificates: PathBuf,
    /// Told of each connection's end.
    pub used: Arc<Notify>,
}

/// Why the API can't be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket.
    #[error("listen on {}: {source}", path.display())]
    Socket {
        /// Its path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The port.
    #[error("listen on {address}: {source}")]
    Port {
        /// Its address.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// Anyone on the network could try.
    #[error("listen on {0}: only loopback addresses are served; use 127.0.0.1 or [::1], and a tunnel from elsewhere")]
    NotLoopback(SocketAddr),
    /// The certificates.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
}

/// The API, bound and ready to be served.
pub struct Server {
    shared: Arc<Shared>,
    unix: UnixListener,
    socket: PathBuf,
    tcp: Option<(TcpListener, TlsAcceptor)>,
}

impl Server {
    /// Binds the sockets. Takes the unix socket over from an agent that is gone: whoever calls holds the root's lock.
    pub async fn bind(node: Arc<dyn Node>, options: &Options) -> Result<Self, ServeError> {
        let unix = bind_unix(options).map_err(|source| ServeError::Socket { path: options.socket.clone(), source })?;
        let tcp = match options.listen {
            Some(address) if !address.ip().is_loopback() => return Err(ServeError::NotLoopback(address)),
            Some(address) => {
                let acceptor = tls::acceptor(&options.certificates)?;
                let listener = TcpListener::bind(address).await.map_err(|source| ServeError::Port { address, source })?;
                Some((listener, acceptor))
            }
            None => None,
        };
        // What an agent before this one was loading when it ended.
        let _ = std::fs::remove_dir_all(&options.spool);
        let oldest = node.store().pods().version;
        let address = tcp.as_ref().and_then(|(listener, _)| listener.local_addr().ok());
        let (spool, certificates) = (options.spool.clone(), options.certificates.clone());
        let shared = Arc::new(Shared { node, oldest, spool, address, certificates, used: Arc::default() });
        Ok(Self { shared, unix, socket: options.socket.clone(), tcp })
    }

    /// Told of each connection's end.
    pub fn used(&self) -> Arc<Notify> {
        self.shared.used.clone()
    }

    /// The TLS port's address.
    pub fn address(&self) -> Option<SocketAddr> {
        self.shared.address
    }

    /// Serves until told to stop. Connections that live then end with the runtime.
    pub async fn serve(self, stop: CancellationToken) {
        tokio::select! {
            () = serve_unix(&self.shared, &self.unix) => {}
            () = serve_tcp(&self.shared, self.tcp.as_ref()) => {}
            () = stop.cancelled() => {}
        }
        let _ = fs::remove_file(&self.socket);
    }
}

async fn serve_unix(shared: &Arc<Shared>, listener: &UnixListener) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    // The slot comes first: when all are taken, clients wait in the kernel's backlog.
    while let Ok(slot) = slots.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let shared = shared.clone();
                tokio::spawn(async move {
                    connection(shared, stream, Caller::Known, Arc::new(slot)).await;
                });
            }
            Err(error) => pause(&error).await,
        }
    }
}

/// Its slots are its own: any user of this machine can connect here, and must not keep root from the socket.
async fn serve_tcp(shared: &Arc<Shared>, tcp: Option<&(TcpListener, TlsAcceptor)>) {
    let Some((listener, acceptor)) = tcp else { return std::future::pending().await };
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    while let Ok(slot) = slots.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Keystrokes of an exec: no waiting for more.
                let _ = stream.set_nodelay(true);
                let (shared, handshake) = (shared.clone(), acceptor.accept(stream));
                tokio::spawn(async move {
                    // A failed handshake is the client's affair; so is one that never ends.
                    if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_TIME, handshake).await {
                        let caller = if tls::is_known(&stream) { Caller::Known } else { Caller::Unknown };
                        connection(shared, stream, caller, Arc::new(slot)).await;
                    }
                });
            }
            Err(error) => pause(&error).await,
        }
    }
}

/// Whose connection it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caller {
    /// Root, its group, or the holder of a certificate.
    Known,
    /// Anyone.
    Unknown,
}

fn bind_unix(options: &Options) -> io::Result<UnixListener> {
    if let Some(folder) = options.socket.parent() {
        fs::create_dir_all(folder)?;
    }
    // Made under another name and renamed once its mode is right: nobody finds it open too wide or not listening.
    let fresh = options.socket.with_extension("new");
    let _ = fs::remove_file(&fresh);
    let listener = UnixListener::bind(&fresh)?;
    fs::set_permissions(&fresh, Permissions::from_mode(0o660))?;
    if options.group.is_some() {
        chown(&fresh, None, options.group)?;
    }
    fs::rename(&fresh, &options.socket)?;
    Ok(listener)
}

/// Out of descriptors: accept would fail again at once.
async fn pause(error: &io::Error) {
    tracing::warn!("accept a connection of the API: {error}");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

async fn connection(
    shared: Arc<Shared>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    caller: Caller,
    place: Place,
) {
    let used = shared.used.clone();
    let service = service_fn(move |request| {
        let (shared, place) = (shared.clone(), place.clone());
        async move {
            Ok::<_, Infallible>(match caller {
                Caller::Known => route::answer(shared, request, place).await,
                Caller::Unknown => ApiError::unauthorized().into_response(),
            })
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .max_buf_size(HEADER_LIMIT)
        .keep_alive(caller == Caller::Known)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = served.await {
        tracing::debug!("a connection of the API ended: {error}");
    }
    used.notify_one();
}
