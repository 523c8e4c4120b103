//! Listening on the node's port: TLS, and bounds on what a client can hold: connections, headers, time. Strangers (no certificate of
//! the client CA) have fewer places than those who are known, and can't take theirs.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::server::ResolvesServerCert;
use tokio_rustls::{TlsAcceptor, rustls};
use tokio_util::sync::CancellationToken;

use super::access::{Access, Policy, Refusal};
use super::authority::{AnyClient, AuthorityError, ClientAuthority};
use super::metrics::Requests;
use super::route;
use super::stats::Rates;
use crate::api::call::Place;
use crate::api::{Response, reply};
use crate::pod::node::Node;
use crate::tls::provider;

/// Connections of those who have a certificate of the client CA.
const KNOWN: usize = 512;
/// Handshakes, and connections of those who have none: they may have tokens.
const STRANGERS: usize = 256;
/// Those of one address.
const PER_ADDRESS: usize = 64;
/// In which a TLS handshake must be done.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// In which a request's headers must have come, and how long a connection may be idle.
const HEADER_TIME: Duration = Duration::from_secs(30);
/// Bytes of headers.
const HEADER_LIMIT: usize = 64 * 1024;
/// After so long a silence the kernel asks whether the client is there; four times, then it is gone.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// A connection's life; the kubelet's.
const LIFE: Duration = Duration::from_secs(4 * 60 * 60);

/// What the port is served with.
pub struct Options {
    /// Where to listen.
    pub address: SocketAddr,
    /// The node's name, for questions about access.
    pub node_name: String,
    /// The file with the CA of clients.
    pub client_ca: PathBuf,
    /// Who decides.
    pub policy: Policy,
    /// The certificate that the port shows.
    pub serving: Arc<dyn ResolvesServerCert>,
    /// What `/logs` shows.
    pub logs: PathBuf,
    /// What `/configz` shows: a KubeletConfiguration.
    pub configuration: Value,
}

/// Why the port can't be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The port.
    #[error("listen on {address} for the kubelet API: {source}")]
    Port {
        /// Its address.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The CA of clients.
    #[error("the CA of the kubelet API's clients: {0}")]
    Authority(#[from] AuthorityError),
    /// TLS.
    #[error("prepare TLS for the kubelet API: {0}")]
    Tls(#[from] rustls::Error),
}

/// What all requests share.
pub struct Shared {
    /// The agent.
    pub node: Arc<dyn Node>,
    /// Who may do what.
    pub access: Access,
    /// What `/logs` shows.
    pub logs: PathBuf,
    /// What `/configz` shows.
    pub configuration: Value,
    /// Counted requests.
    pub requests: Requests,
    /// Of CPU, between one look and the next.
    pub rates: Rates,
}

/// The kubelet API, bound and ready to be served.
pub struct Server {
    shared: Arc<Shared>,
    authority: Arc<ClientAuthority>,
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Server {
    /// Reads the CA of clients and binds the port.
    pub async fn bind(node: Arc<dyn Node>, options: Options) -> Result<Self, ServeError> {
        let authority = Arc::new(ClientAuthority::open(&options.client_ca)?);
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(Arc::new(AnyClient::new()))
            .with_cert_resolver(options.serving);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let address = options.address;
        let listener = TcpListener::bind(address).await.map_err(|source| ServeError::Port { address, source })?;
        let shared = Arc::new(Shared {
            node,
            access: Access::new(options.node_name, authority.clone(), options.policy),
            logs: options.logs,
            configuration: options.configuration,
            requests: Requests::default(),
            rates: Rates::default(),
        });
        Ok(Self { shared, authority, listener, acceptor: TlsAcceptor::from(Arc::new(config)) })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until told to stop. Connections that live then end with the runtime.
    pub async fn serve(self, stop: CancellationToken) {
        tokio::select! {
            () = accept(&self) => {}
            () = follow(self.authority.clone()) => {}
            () = stop.cancelled() => {}
        }
    }
}

/// For ever, also when the CA's file can't be watched.
async fn follow(authority: Arc<ClientAuthority>) {
    authority.follow().await;
    std::future::pending::<()>().await;
}

async fn accept(server: &Server) {
    let (known, strangers) = (Arc::new(Semaphore::new(KNOWN)), Arc::new(Semaphore::new(STRANGERS)));
    let guests = Guests::default();
    // The place comes first: when all are taken, clients wait in the kernel's backlog.
    while let Ok(place) = strangers.clone().acquire_owned().await {
        match server.listener.accept().await {
            Ok((stream, peer)) => {
                // No one address takes all places.
                let Some(guest) = guests.enter(peer.ip()) else { continue };
                prepare(&stream);
                let (shared, authority) = (server.shared.clone(), server.authority.clone());
                let (handshake, known) = (server.acceptor.accept(stream), known.clone());
                tokio::spawn(async move {
                    // A failed handshake is the client's affair; so is one that never ends.
                    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_TIME, handshake).await else { return };
                    let chain: Vec<_> = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
                    let (place, _guest) = if authority.verify(&chain).is_some() {
                        drop((place, guest));
                        (known.acquire_owned().await, None)
                    } else {
                        (Ok(place), Some(guest))
                    };
                    let Ok(place) = place.map(Arc::new) else { return };
                    let _ = tokio::time::timeout(LIFE, connection(shared, stream, chain, peer, place)).await;
                });
            }
            Err(error) => {
                // Out of descriptors: it would fail again at once.
                tracing::warn!("accept a connection of the kubelet API: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// How many connections each address has that no certificate vouches for.
#[derive(Debug, Default, Clone)]
struct Guests(Arc<Mutex<HashMap<IpAddr, usize>>>);

impl Guests {
    /// None: the address has as many as it may.
    fn enter(&self, address: IpAddr) -> Option<Guest> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= PER_ADDRESS {
            return None;
        }
        *count += 1;
        Some(Guest { of: self.clone(), address })
    }
}

/// One of them.
#[derive(Debug)]
struct Guest {
    of: Guests,
    address: IpAddr,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut counts = self.of.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut count) = counts.entry(self.address) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// Keystrokes of an exec don't wait for more, and a client that is gone without a word is noticed, however long a stream is silent.
fn prepare(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let kept = sockopt::set_socket_keepalive(stream, true)
        .and_then(|()| sockopt::set_tcp_keepidle(stream, KEEPALIVE))
        .and_then(|()| sockopt::set_tcp_keepintvl(stream, KEEPALIVE))
        .and_then(|()| sockopt::set_tcp_keepcnt(stream, 4));
    if let Err(error) = kept {
        tracing::debug!(%error, "keep-alive of a connection");
    }
}

async fn connection(
    shared: Arc<Shared>,
    stream: tokio_rustls::server::TlsStream<TcpStream>,
    chain: Vec<CertificateDer<'static>>,
    peer: SocketAddr,
    place: Place,
) {
    let chain = Arc::new(chain);
    let service = service_fn(move |request| {
        let (shared, chain, place) = (shared.clone(), chain.clone(), place.clone());
        async move { Ok::<_, Infallible>(answer(shared, &chain, request, place).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .max_buf_size(HEADER_LIMIT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = served.await {
        tracing::debug!(%peer, "a connection of the kubelet API ended: {error}");
    }
}

/// Counts a request, lets it in, and answers it.
async fn answer(shared: Arc<Shared>, chain: &[CertificateDer<'_>], request: Request<Incoming>, place: Place) -> Response {
    let begun = Instant::now();
    let labels = shared.requests.begin(request.method(), request.uri().path());
    let admitted = shared.access.admit(chain, request.headers(), request.method(), request.uri().path()).await;
    let response = match admitted {
        Ok(_) => route::answer(&shared, request, place).await,
        Err(refusal) => refused(&refusal),
    };
    shared.requests.end(&labels, &response, begun.elapsed());
    response
}

fn refused(refusal: &Refusal) -> Response {
    let mut response = reply::whole("text/plain; charset=utf-8", format!("{refusal}\n"));
    *response.status_mut() = match refusal {
        Refusal::Unauthenticated => StatusCode::UNAUTHORIZED,
        Refusal::Forbidden { .. } => StatusCode::FORBIDDEN,
        Refusal::Unknown { .. } => StatusCode::INTERNAL_SERVER_ERROR,
    };
    if matches!(refusal, Refusal::Unauthenticated) {
        // Nobody's connection keeps no place.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_its_places_and_gives_them_back() {
        let guests = Guests::default();
        let [one, other] = ["192.0.2.1", "192.0.2.2"].map(|address| address.parse().unwrap());
        let mut all: Vec<Guest> = (0..PER_ADDRESS).map(|_| guests.enter(one).unwrap()).collect();
        assert!(guests.enter(one).is_none());
        drop(guests.enter(other).unwrap());
        all.pop();
        let again = guests.enter(one).unwrap();
        assert!(guests.enter(one).is_none());
        drop((all, again));
        assert!(guests.0.lock().unwrap().is_empty(), "nothing is remembered of who left");
    }
}
