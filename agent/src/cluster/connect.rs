//! The way to the API server: all requests and watches share one HTTP/2 connection, as those of client-go do. When the kubeconfig says
//! another way (the node's certificate or token, the server's address), the next request goes by a new connection. Watches of the old one end
//! in their time; where the server is at another address, at once.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use hyper::body::{Bytes, Frame, Incoming, SizeHint};
use hyper::{Request, Response, Uri};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{Body, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use tokio::sync::Notify;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tower::util::BoxCloneSyncService;
use tower::{BoxError, Service, ServiceBuilder, ServiceExt as _};

use super::clock::Clock;
use crate::kubelet::authority::on_change;

/// In which a TCP connection must be there.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// After so long without a frame the server is asked whether it is there; client-go's.
const PING_EVERY: Duration = Duration::from_secs(30);
/// In which it must say so.
const PONG_WITHIN: Duration = Duration::from_secs(15);

/// Why there is no way to the API server. That it doesn't answer is no reason: it may come back.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The file isn't a kubeconfig, or what it refers to isn't there.
    #[error("{flag} {}: {source}", .path.display())]
    Kubeconfig {
        /// How it was named: `--kubeconfig`.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<KubeconfigError>,
    },
    /// Its certificates or keys can't be used.
    #[error("--kubeconfig {}: {source}", .path.display())]
    Client {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: Box<kube::Error>,
    },
}

/// Reads a kubeconfig, which was named by this flag.
pub(super) async fn read(kubeconfig: &Path, flag: &'static str) -> Result<Config, ConnectError> {
    let wrong = |source| ConnectError::Kubeconfig { flag, path: kubeconfig.into(), source: Box::new(source) };
    let file = Kubeconfig::read_from(kubeconfig).map_err(wrong)?;
    Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(wrong)
}

/// The files that a kubeconfig's identity is in: itself, and the certificate and key that it names.
fn files(kubeconfig: &Path, config: Option<&Config>) -> Vec<PathBuf> {
    let auth = config.map(|config| &config.auth_info);
    let named = auth.map(|auth| [&auth.client_certificate, &auth.client_key]).into_iter().flatten().flatten().map(PathBuf::from);
    std::iter::once(kubeconfig.to_owned()).chain(named).collect()
}

/// Reads the kubeconfig again when it, or the certificate that it names, has changed, for ever: certificates are renewed, servers move.
pub(super) async fn follow(kubeconfig: &Path, transport: &Transport) {
    let mut now = read(kubeconfig, "--kubeconfig").await.ok();
    loop {
        let known = Contents::of(files(kubeconfig, now.as_ref()));
        known.changed().await;
        let renewed = match read(kubeconfig, "--kubeconfig").await {
            Ok(config) => transport.renew(now.insert(config)).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match renewed {
            Ok(()) => tracing::info!(kubeconfig = %kubeconfig.display(), "the way to the API server was read again"),
            Err(error) => tracing::warn!(error, "the way to the API server stays as it was"),
        }
    }
}

/// Files as they were read.
#[derive(PartialEq)]
struct Contents(Vec<(PathBuf, Option<Vec<u8>>)>);

impl Contents {
    fn of(files: impl IntoIterator<Item = PathBuf>) -> Self {
        let read = |file: PathBuf| {
            let content = std::fs::read(&file).ok();
            (file, content)
        };
        Self(files.into_iter().map(read).collect())
    }

    /// Waits until one of them is another.
    async fn changed(&self) {
        let files = || self.0.iter().map(|(file, _)| file.clone());
        let hint = Notify::new();
        let watch = async |file: PathBuf| {
            if let Err(error) = on_change(&file, || hint.notify_one()).await {
                tracing::warn!(file = %file.display(), %error, "changes of the way to the API server go unnoticed until the next start");
            }
            std::future::pending::<()>().await;
        };
        let comparing = async {
            while *self == Self::of(files()) {
                hint.notified().await;
            }
        };
        tokio::select! {
            () = comparing => {}
            _ = futures::future::join_all(files().map(watch)) => {}
        }
    }
}

/// A client of that API server, and what replaces its connection. Speaks to nobody yet; what the server says of the time goes to `clock`.
pub(super) fn client(config: &Config, clock: Clock) -> kube::Result<(Client, Transport)> {
    let way = Way { service: service(config)?, server: config.cluster_url.clone(), moved: CancellationToken::new() };
    let transport = Transport { current: Arc::new(RwLock::new(way)), clock };
    Ok((Client::new(transport.clone(), config.default_namespace.clone()), transport))
}

/// To which server, as whom, by which connection.
#[derive(Clone)]
struct Way {
    service: BoxCloneSyncService<Request<Body>, Response<Incoming>, BoxError>,
    server: Uri,
    /// The server is at another address.
    moved: CancellationToken,
}

fn service(config: &Config) -> kube::Result<BoxCloneSyncService<Request<Body>, Response<Incoming>, BoxError>> {
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http(config)?);
    Ok(BoxCloneSyncService::new(service))
}

type Http = legacy::Client<HttpsConnector<HttpConnector>, Body>;

fn http(config: &Config) -> kube::Result<Http> {
    let tls = config.rustls_client_config()?;
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_WITHIN));
    let mut connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
    if let Some(name) = config.tls_server_name.clone().and_then(|name| ServerName::try_from(name).ok()) {
        connector = connector.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    let connector = connector.enable_all_versions().wrap_connector(tcp);
    Ok(legacy::Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .http2_keep_alive_interval(PING_EVERY)
        .http2_keep_alive_timeout(PONG_WITHIN)
        .http2_keep_alive_while_idle(true)
        .build(connector))
}

/// Sends requests by the way that is in force.
#[derive(Clone)]
pub(super) struct Transport {
    current: Arc<RwLock<Way>>,
    clock: Clock,
}

impl Transport {
    /// Requests from now on go where this configuration says, as whom it says, by a new connection.
    pub(super) fn renew(&self, config: &Config) -> kube::Result<()> {
        let service = service(config)?;
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if current.server != config.cluster_url {
            current.server = config.cluster_url.clone();
            std::mem::take(&mut current.moved).cancel();
        }
        current.service = service;
        Ok(())
    }
}

impl Service<Request<Body>> for Transport {
    type Response = Response<Answer>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Way { service, moved, .. } = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        let clock = self.clock.clone();
        Box::pin(async move {
            let response = tokio::select! {
                response = service.oneshot(request) => response?,
                () = moved.cancelled() => return Err(MOVED.into()),
            };
            clock.hear(response.headers());
            Ok(response.map(|body| Answer { body, moved: Box::pin(moved.cancelled_owned()) }))
        })
    }
}

/// What becomes of a request to a server that is elsewhere now: the client asks again.
const MOVED: &str = "the kubeconfig names another server now";

/// The body of an answer, as long as the server is where it was.
pub(super) struct Answer {
    body: Incoming,
    moved: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.moved.as_mut().poll(context).is_ready() {
            return Poll::Ready(Some(Err(MOVED.into())));
        }
        Pin::new(&mut self.body).poll_frame(context).map_err(BoxError::from)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
