//! The way to the API server: all requests and watches share one HTTP/2 connection, as those of client-go do. When the node's certificate
//! is another, the next request makes a new connection; watches of the old one end in their time.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{self, ResponseFuture};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{Body, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use tokio::sync::Notify;
use tokio_rustls::rustls::pki_types::ServerName;
use tower::{BoxError, Service, ServiceBuilder};

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
fn files(kubeconfig: &Path, config: &Config) -> Vec<PathBuf> {
    let auth = &config.auth_info;
    let named = [&auth.client_certificate, &auth.client_key].into_iter().flatten().map(PathBuf::from);
    std::iter::once(kubeconfig.to_owned()).chain(named).collect()
}

/// Reads the kubeconfig again when it, or the certificate that it names, has changed, for ever: certificates are renewed.
pub(super) async fn follow(kubeconfig: &Path, transport: &Transport) {
    let Ok(first) = read(kubeconfig, "--kubeconfig").await else { return };
    let watched = files(kubeconfig, &first);
    let contents = || watched.iter().map(|file| std::fs::read(file).ok()).collect::<Vec<_>>();
    let changed = Notify::new();
    let mut known = contents();
    let looks = watched.iter().map(|file| on_change(file, || changed.notify_one()));
    let watching = futures::future::join_all(looks);
    let renewing = async {
        loop {
            changed.notified().await;
            let now = contents();
            if std::mem::replace(&mut known, now.clone()) == now {
                continue;
            }
            let renewed = match read(kubeconfig, "--kubeconfig").await {
                Ok(config) => transport.renew(&config).map_err(|e| e.to_string()),
                Err(error) => Err(error.to_string()),
            };
            match renewed {
                Ok(()) => tracing::info!(kubeconfig = %kubeconfig.display(), "the way to the API server was read again"),
                Err(error) => tracing::warn!(error, "the way to the API server stays as it was"),
            }
        }
    };
    tokio::join!(watching, renewing);
}

/// A client of that API server, and what replaces its connection. Speaks to nobody yet.
pub(super) fn client(config: &Config) -> kube::Result<(Client, Transport)> {
    let transport = Transport { current: Arc::new(RwLock::new(http(config)?)) };
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(transport.clone());
    Ok((Client::new(service, config.default_namespace.clone()), transport))
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

/// Sends requests over the connection that is in force.
#[derive(Clone)]
pub(super) struct Transport {
    current: Arc<RwLock<Http>>,
}

impl Transport {
    /// Requests from now on go by a new connection, with this configuration's certificate.
    pub(super) fn renew(&self, config: &Config) -> kube::Result<()> {
        let fresh = http(config)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }
}

impl Service<Request<Body>> for Transport {
    type Response = Response<Incoming>;
    type Error = legacy::Error;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.current.read().unwrap_or_else(PoisonError::into_inner).request(request)
    }
}
