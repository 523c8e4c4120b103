//! The kubelet API as the daemon serves it: from settings to what it needs, and what `/configz` says.

use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio_rustls::rustls::server::ResolvesServerCert;
use tokio_util::sync::CancellationToken;

use super::DaemonError;
use crate::cluster;
use crate::config::Settings;
use crate::kubelet::serving::Serving;
use crate::kubelet::{Options, Policy, Server};
use crate::pod::node::Node;

/// What a cluster gives.
pub struct Cluster {
    /// Asks its API server.
    pub policy: Policy,
    /// The certificate that it has signed, if the settings name none.
    pub serving: Arc<dyn ResolvesServerCert>,
    /// The CA of clients, if the settings name none, and the kubeconfig has one.
    pub client_ca: Option<std::path::PathBuf>,
}

/// What this cluster gives. Its CA is written where the kubelet API can follow it.
pub fn of_cluster(settings: &Settings, addresses: &[IpAddr], cluster: &cluster::Cluster) -> Result<Cluster, DaemonError> {
    let client_ca = settings.paths.certificates().join("cluster-ca.crt");
    let pem: String = cluster.authorities().iter().map(|der| cluster::pem(der)).collect();
    let write = || {
        std::fs::create_dir_all(settings.paths.certificates())?;
        std::fs::write(&client_ca, pem)
    };
    write().map_err(|source| DaemonError::ClusterAuthority { path: client_ca.clone(), source })?;
    let mut serving = Serving::self_signed(&settings.node_name, addresses)?;
    if settings.cluster.as_ref().is_some_and(|cluster| cluster.server_tls_bootstrap) {
        serving = serving.until(&server_pair(settings).current());
    }
    let known = !cluster.authorities().is_empty();
    Ok(Cluster {
        policy: Policy::Reviews(Arc::new(cluster.client())),
        serving: follow(serving),
        client_ca: known.then_some(client_ca),
    })
}

/// The kubelet API's certificate that the cluster signs.
pub fn server_pair(settings: &Settings) -> cluster::Pair {
    cluster::Pair::new(&settings.paths.certificates(), "kubelet-server")
}

/// Begins to serve, where there is somebody to serve: with a cluster, or with a CA of clients. Tells whether it does.
pub async fn serve(
    settings: &Settings,
    node: Arc<dyn Node>,
    addresses: &[IpAddr],
    cluster: Option<Cluster>,
    stop: CancellationToken,
) -> Result<bool, DaemonError> {
    let (policy, signed, given_ca) = match cluster {
        Some(Cluster { policy, serving, client_ca }) => (policy, Some(serving), client_ca),
        None => (Policy::Certificates, None, None),
    };
    let Some(client_ca) = settings.kubelet.client_ca.clone().or(given_ca) else {
        if settings.cluster.is_some() {
            tracing::warn!(
                "the kubeconfig names no CA: kubectl logs and exec reach this node only with authentication.x509.clientCAFile, the CA of the API server's own certificate as a client"
            );
        }
        return Ok(false);
    };
    let serving: Arc<dyn ResolvesServerCert> = match (&settings.kubelet.certificate, signed) {
        (Some((certificate, key)), _) => follow(Serving::open(certificate, key)?),
        (None, Some(signed)) => signed,
        (None, None) => follow(Serving::self_signed(&settings.node_name, addresses)?),
    };
    let options = Options {
        address: settings.kubelet.address,
        node_name: settings.node_name.clone(),
        client_ca,
        policy,
        serving,
        logs: settings.paths.root().join("var/log"),
        configuration: configuration(settings),
    };
    let server = Server::bind(node, options).await?;
    if let Ok(address) = server.address() {
        tracing::info!("the kubelet API is served at https://{address}");
    }
    tokio::spawn(server.serve(stop));
    Ok(true)
}

fn follow(serving: Serving) -> Arc<Serving> {
    let serving = Arc::new(serving);
    tokio::spawn(serving.clone().follow());
    serving
}

/// The settings as a KubeletConfiguration, as far as both have them.
fn configuration(settings: &Settings) -> Value {
    let pods = &settings.pods;
    json!({
        "kind": "KubeletConfiguration",
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "address": settings.kubelet.address.ip(),
        "port": settings.kubelet.address.port(),
        "readOnlyPort": 0,
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true, "cacheTTL": "2m0s" },
            "x509": { "clientCAFile": settings.kubelet.client_ca },
        },
        "authorization": { "mode": "Webhook", "webhook": { "cacheAuthorizedTTL": "5m0s", "cacheUnauthorizedTTL": "30s" } },
        "staticPodPath": settings.manifests.first(),
        "cgroupRoot": format!("/{}", settings.cgroup_parent),
        "cgroupDriver": "cgroupfs",
        "clusterDNS": settings.security.cluster_dns,
        "clusterDomain": settings.security.cluster_domain,
        "resolvConf": settings.resolv_conf,
        "maxPods": pods.max,
        "podPidsLimit": pods.pids_limit.map_or(-1, |limit| i64::try_from(limit).unwrap_or(i64::MAX)),
        "seccompDefault": settings.security.seccomp_default,
        "allowedUnsafeSysctls": settings.security.unsafe_sysctls,
        "shutdownGracePeriodByPodPriority": settings.shutdown.iter().map(|period| json!({
            "priority": period.priority,
            "shutdownGracePeriodSeconds": period.grace.as_secs(),
        })).collect::<Vec<_>>(),
        "containerLogMaxSize": settings.container_logs.max_size.to_string(),
        "containerLogMaxFiles": settings.container_logs.max_files,
        "imageGCHighThresholdPercent": settings.images.gc_high_percent,
        "imageGCLowThresholdPercent": settings.images.gc_low_percent,
        "maxParallelImagePulls": settings.images.parallel_pulls,
        "enableDebuggingHandlers": true,
        "enableSystemLogHandler": true,
        "enableProfilingHandler": false,
        "enableDebugFlagsHandler": false,
    })
}
