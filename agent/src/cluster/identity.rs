//! Who this node is to the API server: the client certificate of its kubeconfig. With a bootstrap kubeconfig the node asks for its first
//! certificate by that one's token, writes its own kubeconfig, and renews from then on. <https://kubernetes.io/docs/reference/access-authn-authz/kubelet-tls-bootstrapping/>

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use kube::config::{AuthInfo, Cluster as ClusterInfo, Context, Kubeconfig, NamedAuthInfo, NamedCluster, NamedContext};
use kube::{Client, Config};

use super::clock::Clock;
use super::connect::{self, ConnectError, Transport};
use super::pair::{Life, Pair};
use super::signing::{self, Wish};
use super::{Failure, pause, suspected};
use crate::durable;

/// Where the identity is, or comes from.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub kubeconfig: PathBuf,
    pub bootstrap: Option<PathBuf>,
    /// Where the first certificate goes.
    pub folder: PathBuf,
    pub node_name: String,
}

/// Whether there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// The kubeconfig has it.
    Already,
    /// It is to be asked for.
    NotYet,
}

impl Identity {
    /// The way to the API server; without an identity, if that must be asked for first.
    pub(super) async fn config(&self) -> Result<(Config, Known), ConnectError> {
        let own = connect::read(&self.kubeconfig, "--kubeconfig").await;
        let Some(bootstrap) = &self.bootstrap else {
            let config = own?;
            if let Some(life) = life(&config).filter(|life| life.is_over(Timestamp::now())) {
                tracing::warn!(
                    kubeconfig = %self.kubeconfig.display(), expired = %life.until(),
                    "the node's client certificate has expired: the API server will refuse it until the kubeconfig has another, or --bootstrap-kubeconfig lets the node ask for one"
                );
            }
            return Ok((config, Known::Already));
        };
        if let Ok(config) = own
            && life(&config).is_none_or(|life| !life.is_over(Timestamp::now()))
        {
            return Ok((config, Known::Already));
        }
        let mut config = connect::read(bootstrap, "--bootstrap-kubeconfig").await?;
        config.auth_info = AuthInfo::default();
        Ok((config, Known::NotYet))
    }

    /// Asks until the node has its first certificate; not at all, if it has one.
    pub(super) async fn establish(&self, transport: &Transport, clock: &Clock) {
        let mut failures = 0;
        while let Err(failure) = self.try_establish(transport, clock).await {
            failures += 1;
            tracing::warn!(
                bootstrap_kubeconfig = ?self.bootstrap, failure = suspected(&failure, clock),
                "the node has no client certificate of the cluster yet; it is tried again"
            );
            tokio::time::sleep(pause(failures)).await;
        }
    }

    /// Asks once.
    pub(super) async fn try_establish(&self, transport: &Transport, clock: &Clock) -> Result<(), Failure> {
        let Some(bootstrap) = &self.bootstrap else { return Ok(()) };
        if matches!(self.config().await, Ok((_, Known::Already))) {
            return Ok(());
        }
        self.first(bootstrap, transport, clock).await?;
        tracing::info!(kubeconfig = %self.kubeconfig.display(), "the cluster has signed the node's client certificate");
        Ok(())
    }

    async fn first(&self, bootstrap: &Path, transport: &Transport, clock: &Clock) -> Result<(), Failure> {
        let failed = |message: String| Failure { code: 0, message };
        let config = connect::read(bootstrap, "--bootstrap-kubeconfig").await.map_err(|error| failed(error.to_string()))?;
        let (client, _) = connect::client(&config, clock.clone()).map_err(|error| failed(error.to_string()))?;
        let pair = Pair::new(&self.folder, "kubelet-client");
        signing::obtain(client, &Wish::client(&self.node_name), &pair).await?;
        let text = serde_yaml::to_string(&kubeconfig(&config, &pair)).map_err(|error| failed(error.to_string()))?;
        let written = durable::write(&self.kubeconfig, text.as_bytes());
        written.map_err(|error| failed(format!("write --kubeconfig {}: {error}", self.kubeconfig.display())))?;
        let own = connect::read(&self.kubeconfig, "--kubeconfig").await.map_err(|error| failed(error.to_string()))?;
        transport.renew(&own).map_err(|error| failed(error.to_string()))
    }

    /// Renews the certificate for ever, if it is one that the kubelet's manner of keeping lets be renewed: others are their maker's. What is
    /// written is noticed by [`connect::follow`].
    pub(super) async fn renew(&self, client: &Client, transport: &Transport, clock: &Clock) {
        let Ok(config) = connect::read(&self.kubeconfig, "--kubeconfig").await else { return };
        let Some(pair) = config.auth_info.client_certificate.as_deref().and_then(|path| Pair::of_link(Path::new(path))) else {
            return;
        };
        let wish = Wish::client(&self.node_name);
        let mut failures = 0;
        loop {
            signing::until_due(&pair).await;
            let over = pair.life().is_none_or(|life| life.is_over(Timestamp::now()));
            if over && self.bootstrap.is_some() {
                // As at the beginning: the API server doesn't know this node any more.
                self.establish(transport, clock).await;
                continue;
            }
            match signing::obtain(client.clone(), &wish, &pair).await {
                Ok(()) => {
                    failures = 0;
                    tracing::info!(certificate = %pair.current().display(), "the node's client certificate was renewed");
                }
                Err(failure) => {
                    failures += 1;
                    let until = pair.life().map(|life| life.until().to_string());
                    tracing::warn!(%failure, until, "the node's client certificate could not be renewed; it is tried again");
                    tokio::time::sleep(pause(failures)).await;
                }
            }
        }
    }
}

/// Of the client certificate in a configuration; none: it has none, such as one with a token.
fn life(config: &Config) -> Option<Life> {
    let auth = &config.auth_info;
    if let Some(path) = &auth.client_certificate {
        return Life::of_pem(&std::fs::read(path).ok()?);
    }
    let encoded = auth.client_certificate_data.as_deref()?;
    let pem = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, encoded).ok()?;
    Life::of_pem(&pem)
}

/// The cluster of one configuration, by the certificate of the pair.
fn kubeconfig(config: &Config, pair: &Pair) -> Kubeconfig {
    let authority: String = config.root_cert.iter().flatten().map(|der| super::pem(der)).collect();
    let cluster = ClusterInfo {
        server: Some(config.cluster_url.to_string()),
        certificate_authority_data: (!authority.is_empty())
            .then(|| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, authority)),
        insecure_skip_tls_verify: config.accept_invalid_certs.then_some(true),
        proxy_url: config.proxy_url.as_ref().map(ToString::to_string),
        tls_server_name: config.tls_server_name.clone(),
        ..ClusterInfo::default()
    };
    let link = pair.current().display().to_string();
    let user = AuthInfo { client_certificate: Some(link.clone()), client_key: Some(link), ..AuthInfo::default() };
    let context = Context { cluster: "cluster".into(), user: Some("node".into()), ..Context::default() };
    Kubeconfig {
        kind: Some("Config".into()),
        api_version: Some("v1".into()),
        clusters: vec![NamedCluster { name: "cluster".into(), cluster: Some(cluster), ..NamedCluster::default() }],
        auth_infos: vec![NamedAuthInfo { name: "node".into(), auth_info: Some(user), ..NamedAuthInfo::default() }],
        contexts: vec![NamedContext { name: "node".into(), context: Some(context), ..NamedContext::default() }],
        current_context: Some("node".into()),
        ..Kubeconfig::default()
    }
}
