//! The agent as it runs: every part made once, in the order in which each needs the next, wired, and ended. Decides nothing itself.

mod instance;
mod kubelet;
mod lock;
mod memory;
mod plugins;
mod ranges;
mod service;
mod services;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node as NodeObject;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::admission::{Admission, Room};
use crate::api::{self, Server};
use crate::cluster::{self, Cluster};
use crate::config::{self, Network, OnStop, Ranges, Settings, Wiring};
use crate::eviction::Signal as Scarce;
use crate::image::provider::Accounts;
use crate::image::{self, Embedded, Images};
use crate::machine;
use crate::model;
use crate::plugin::csi::Csi;
use crate::plugin::csi::growth::Claims;
use crate::plugin::device::Devices;
use crate::pod::Node;
use crate::pod::adoption::Adoptions;
use crate::pod::backoff::Backoff;
use crate::pod::counters::Counters;
use crate::pod::handle::{Handle, Ways};
use crate::pod::manager::{Manager, Order, Whose};
use crate::pod::network::{Plugins, PodNetwork};
use crate::pod::node::{Check, Verdict};
use crate::pod::objects::ObjectSets;
use crate::pod::pressure;
use crate::pod::recorder::{Level, Recorder};
use crate::pod::shutdown::{Cause, end_all, mind as mind_shutdown};
use crate::pod::store::Store;
use crate::runtime::cgroup::Cgroups;
use crate::runtime::{self, Allocatable, Runtime, Sockets};
use crate::shutdown;
use crate::source;
use crate::source::sealed::Keys;
use crate::workload::controller::Controller;

pub use lock::{Lock, LockError};

/// The image that the agent carries, so that the first pods need neither a registry nor a network.
const DEMO_IMAGE: &str = "localhost/nodeagent-demo:latest";
const DEMO: &[u8] = include_bytes!(env!("NODEAGENT_DEMO"));

/// How often the disk is looked at for images that nobody uses; as the kubelet.
const IMAGE_GC_EVERY: Duration = Duration::from_secs(300);
/// Source events that may wait for the manager.
const EVENTS: usize = 256;

/// Why the agent can't run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The machine lacks what no pod can do without.
    #[error("this machine cannot run pods:\n{}", advice(.0))]
    Machine(Vec<Check>),
    /// The keys of sealed manifests.
    #[error("ageIdentityFile: read {}: {source}", .path.display())]
    Keys {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: std::io::Error,
    },
    /// Another agent is here.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A group that isn't there.
    #[error("--socket-group {0}: no such group on this machine")]
    Group(String),
    /// The image store.
    #[error("open the image store: {0}")]
    Images(#[from] image::Error),
    /// The pod network.
    #[error("bring up the pod network: {0}")]
    Network(#[from] netplug::Error),
    /// The results of CNI plugins.
    #[error("look for what CNI plugins did: {0}")]
    Plugins(#[from] netplug::cni::client::Error),
    /// The cluster that the node is to be of.
    #[error(transparent)]
    Cluster(#[from] cluster::ConnectError),
    /// What tells this node from another of its name.
    #[error("keep {}: {source}", .path.display())]
    Instance {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The cluster's CA, for the kubelet API.
    #[error("keep the cluster's CA in {}: {source}", .path.display())]
    ClusterAuthority {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// What is run with.
    #[error("prepare the container runtime: {0}")]
    Runtime(String),
    /// Image credential providers.
    #[error("images.credentialProviderConfig: {0}")]
    Providers(String),
    /// The API.
    #[error(transparent)]
    Api(#[from] api::ServeError),
    /// The kubelet API.
    #[error(transparent)]
    Kubelet(#[from] crate::kubelet::ServeError),
    /// The kubelet API's certificate.
    #[error("the kubelet API's certificate: {0}")]
    Serving(#[from] crate::kubelet::serving::ServingError),
    /// Signals.
    #[error("listen for signals: {0}")]
    Signals(#[from] std::io::Error),
}

fn advice(checks: &[Check]) -> String {
    let lines = checks.iter().map(|c| format!("  {}: {}; {}", c.name, c.found, c.advice));
    lines.collect::<Vec<_>>().join("\n")
}

/// Runs the agent until it is told to stop, or has to begin anew.
pub async fn run(mut settings: Settings) -> Result<Ending, DaemonError> {
    let lib = settings.paths.lib();
    let lacking: Vec<Check> = machine::check::all(&lib).into_iter().filter(|c| c.verdict == Verdict::Bad).collect();
    if !lacking.is_empty() {
        return Err(DaemonError::Machine(lacking));
    }
    let _lock = Lock::take(&settings.paths.lock())?;
    let mut stop = Stop::listen()?;
    let keys = keys(&settings)?;

    let cluster = match &settings.cluster {
        Some(cluster) => Some(Arc::new(Cluster::open(join(&settings, cluster)?).await?)),
        None => None,
    };
    let given = match &cluster {
        Some(cluster) => ranges::of_cluster(&mut settings, cluster).await,
        None => None,
    };

    let (node, services) = node(&settings, cluster.as_ref()).await?;
    let node = Arc::new(node);
    ranges::gate(given.as_ref(), &node);
    let (orders, inbox) = mpsc::unbounded_channel();
    let (events, told) = mpsc::channel(EVENTS);
    let (pods, wanted) = mpsc::channel(EVENTS);
    let workloads = Controller::open(node.clone(), settings.paths.lib().join("workloads"));
    let manager = Manager::new(node.clone()).await;
    let handle = Arc::new(handle(&settings, node.clone(), orders.clone()));
    let server = Server::bind(handle.clone(), &api_options(&settings)?).await?;
    tell_where(&settings, &server);

    let ended = CancellationToken::new();
    let access = cluster.as_deref().map(|cluster| kubelet::of_cluster(&settings, &node.host_ips, cluster)).transpose()?;
    kubelet::serve(&settings, handle.clone(), &node.host_ips, access, ended.clone()).await?;
    let used = server.used();
    tokio::spawn(memory::tidy(node.store.pods().changes, used.clone()));
    let serving = tokio::spawn(server.serve(ended.clone()));
    if let Some((controller, inbox)) = services {
        tokio::spawn(controller.run(inbox));
    }
    plugins::serve(&settings, &node);
    tokio::spawn(mind_links(node.clone(), orders.clone()));
    tokio::spawn(mind_firewalls(node.clone()));
    tokio::spawn(collect_images(node.clone(), thresholds(&settings)));
    tokio::spawn(service::keep_watchdog(orders.clone()));
    tokio::spawn(pressure::watch(node.clone(), settings.eviction.clone(), orders.clone()));
    if !settings.shutdown.is_empty() {
        tokio::spawn(mind_shutdown(node.clone(), settings.shutdown.clone(), orders.clone()));
    }
    let watching = tokio::spawn(watch(settings.manifests.clone(), defaults(&settings), keys, events));
    let other_ranges = ranges::follow(given, cluster.clone(), node.clone());
    if let Some(cluster) = cluster {
        let object = machine_object(&settings, &node);
        tokio::spawn(cluster.run(node.clone(), Box::new(object), pods.clone(), used));
    }
    let controlling = tokio::spawn(workloads.run(told, pods));
    let mut managing = tokio::spawn(manager.run(wanted, inbox));
    service::ready(&format!("Running pods of {}", told_manifests(&settings)));

    tokio::select! {
        () = stop.wait() => {}
        () = other_ranges => {
            // Nobody has the old range; those who wait for the new one are found by the agent that comes now.
            if let Err(error) = node.network.close().await {
                tracing::warn!(%error, "the pod network could not be taken down");
            }
            return Ok(Ending::Again);
        }
    }
    service::stopping(match settings.on_stop {
        OnStop::Drain => "Ending all pods",
        OnStop::Keep => "Leaving the pods to the next agent",
    });
    // Pods that end now are not to be replaced.
    controlling.abort();
    if settings.on_stop == OnStop::Drain {
        tracing::info!("ending all pods; a second signal stops without");
        let drained = async {
            end_all(&node, &orders, &settings.shutdown, Cause::Drain).await;
            let _ = (&mut managing).await;
        };
        tokio::select! {
            () = drained => {}
            () = service::ask_for_time() => {}
            () = stop.wait() => tracing::warn!("stopped before all pods had ended"),
        }
    }
    watching.abort();
    managing.abort();
    ended.cancel();
    let _ = serving.await;
    if settings.on_stop == OnStop::Drain && node.runtime.leftovers().is_empty() {
        leave_as_found(&node).await;
    }
    Ok(Ending::Stopped)
}

/// What is next when the agent has ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Nothing: it was told to stop.
    Stopped,
    /// The same program, to the same words: what it is told once, at its start, is another thing now.
    Again,
}

/// What manifests leave open.
fn defaults(settings: &Settings) -> model::Defaults {
    model::Defaults { node_name: settings.node_name.clone() }
}

/// How the node comes into its cluster.
fn join(settings: &Settings, cluster: &config::Cluster) -> Result<cluster::Join, DaemonError> {
    let serving = cluster.server_tls_bootstrap.then(|| cluster::Serving {
        pair: kubelet::server_pair(settings),
        addresses: machine::addresses(&settings.network.bridge),
    });
    Ok(cluster::Join {
        kubeconfig: cluster.kubeconfig.clone(),
        bootstrap: cluster.bootstrap.clone(),
        certificates: settings.paths.certificates(),
        serving,
        node_name: settings.node_name.clone(),
        instance: instance::of(&settings.paths.lib())?,
    })
}

/// After the last pod: bridge, table and cgroups go too. What can't, the next start finds and uses.
async fn leave_as_found(node: &Node) {
    if let Err(error) = node.network.close().await {
        tracing::warn!(%error, "the pod network could not be taken down");
    }
    if let Err(error) = node.runtime.cgroups().remove().await {
        tracing::warn!(%error, "the agent's cgroups could not be removed");
    }
}

/// All that the pods' workers share.
async fn node(settings: &Settings, cluster: Option<&Arc<Cluster>>) -> Result<(Node, Option<services::Parts>), DaemonError> {
    let accounts = cluster.map(|cluster| cluster.clone() as Arc<dyn Accounts>);
    let claims = cluster.map(|cluster| cluster.clone() as Arc<dyn Claims>);
    let sources = [Whose::Files].into_iter().chain(cluster.map(|_| Whose::Cluster));
    let providers = plugins::providers(settings, accounts.clone())?;
    // The network has a thread of its own: its order is given first.
    let images = async { open_images(settings).await.map_err(DaemonError::from) };
    let (network, images) = tokio::try_join!(pod_network(settings), images)?;
    let host_ips = machine::addresses(&settings.network.bridge);
    let store = Arc::new(Store::default());
    let counters = Arc::new(Counters::default());
    let recorder = Recorder::new(store.clone(), &settings.node_name, counters.clone());
    let names = services::resolver(settings, network.bridge(), &recorder);
    let mut runtime = runtime_settings(settings, &host_ips);
    if names.is_some() {
        runtime.cluster_dns = services::gateways(settings);
    }
    let runtime = Runtime::new(runtime).map_err(|e| DaemonError::Runtime(e.to_string()))?;
    runtime.keep_spare();
    let sockets = Sockets::start().map_err(|e| DaemonError::Runtime(format!("starting a thread: {e}")))?;
    let (services, parts) = services::parts(settings, network.bridge(), &store, &recorder, names);
    let allocatable = runtime.settings().allocatable;
    let devices = Devices::open(&settings.paths.run(), &settings.paths.lib());
    let room = Room {
        cpu_millis: allocatable.cpu_millis,
        memory: allocatable.memory,
        ephemeral_storage: allocatable.ephemeral_storage,
        pods: settings.pods.max.into(),
        huge_pages: runtime::hugepages::of_machine(),
    };
    let node = Node {
        name: settings.node_name.clone(),
        host_ips,
        recorder,
        counters,
        store,
        objects: ObjectSets::default(),
        runtime: Arc::new(runtime),
        sockets: Arc::new(sockets),
        network,
        services,
        images,
        providers,
        accounts,
        claims,
        volume_images: std::sync::Mutex::default(),
        backoff: Backoff {
            initial: settings.backoff.initial,
            max: settings.backoff.max,
            reset_after: settings.backoff.reset_after,
        },
        admission: Admission::new(room, machine::object::labels(&settings.node_name, &settings.node_labels), devices.clone()),
        devices,
        csi: Csi::open(plugins::root(settings), &settings.paths.lib()),
        live: std::sync::RwLock::default(),
        adoptions: Adoptions::open(settings.paths.lib().join("adoptions"), defaults(settings)),
        awaited: tokio::sync::watch::Sender::new(sources.collect()),
        stopped_dir: settings.paths.run().join("stopped"),
    };
    Ok((node, parts))
}

async fn open_images(settings: &Settings) -> Result<Images, image::Error> {
    let mut wanted = image::Settings::at(settings.paths.images());
    wanted.parallel_layers = settings.images.parallel_pulls;
    let conf = &settings.images.registries_conf;
    wanted.registries_conf = vec![conf.clone(), conf.with_extension("conf.d")];
    wanted.auth_files.insert(0, settings.images.auth_file.clone());
    let images = Images::open(wanted)?;
    // With what is mounted on, as builders of images leave it: each container would have to make it for itself.
    let directories = ["dev", "proc", "sys"].map(|name| Embedded::Directory(name.into(), 0o755));
    let covered = ["etc/hostname", "etc/hosts", "etc/resolv.conf"].map(|name| Embedded::File(name.into(), 0o644, b""));
    let files = [Embedded::File("demo".into(), 0o755, DEMO), Embedded::Directory("tmp".into(), 0o1777)];
    let entries: Vec<Embedded<'_>> = directories.into_iter().chain(covered).chain(files).collect();
    let mut config = oci_spec::image::Config::default();
    config.set_entrypoint(Some(vec!["/demo".into()]));
    config.set_cmd(Some(vec!["serve".into()]));
    images.embed(DEMO_IMAGE, &entries, config).await?;
    Ok(images)
}

/// Who wires the pods.
async fn pod_network(settings: &Settings) -> Result<PodNetwork, DaemonError> {
    let cni = &settings.network.cni;
    let plugins = Plugins::open(
        netplug::cni::client::Settings {
            conf_dir: cni.conf_dir.clone(),
            bin_dirs: cni.bin_dirs.clone(),
            cache_dir: cni.cache_dir.clone(),
            patience: cni.timeout,
        },
        &settings.paths.run(),
    )?;
    let belongs = if settings.cluster.is_some() { Belongs::ToACluster } else { Belongs::ToItself };
    match wiring(&settings.network, belongs) {
        Wiring::Bridge => Ok(PodNetwork::bridged(netplug::Network::open_or_wait(network(settings)).await?, plugins).await?),
        Wiring::Cni => Ok(PodNetwork::plugged(plugins)),
    }
}

/// Whether the agent is a node of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Belongs {
    /// Pods come from files alone.
    ToItself,
    /// Pods come from an API server too.
    ToACluster,
}

/// What was said; else in a cluster the network add-on's plugins, if their configuration is there and no range was chosen for the
/// agent's own bridge.
fn wiring(network: &Network, belongs: Belongs) -> Wiring {
    let installed = || netplug::cni::client::Folder { dir: network.cni.conf_dir.clone() }.has_any();
    network.wiring.unwrap_or(match (belongs, network.ranges) {
        (Belongs::ToACluster, Ranges::Default) if installed() => Wiring::Cni,
        _ => Wiring::Bridge,
    })
}

/// What the pods' bridge is to be like.
pub fn network(settings: &Settings) -> netplug::Settings {
    let pods_cgroup = Cgroups::detect(&settings.cgroup_parent).and_then(|cgroups| cgroups.of_all_pods());
    netplug::Settings {
        bridge: settings.network.bridge.clone(),
        ranges: settings.network.pod_ranges.clone(),
        table: settings.network.nft_table.clone(),
        mtu: settings.network.mtu,
        state_dir: settings.paths.net(),
        reuse_after: settings.network.reuse_after,
        probe: settings.network.probe,
        masquerade: settings.network.masquerade,
        masquerade_except: settings.network.masquerade_except.clone(),
        // By the host, where Services and policies see every packet.
        isolation: netplug::Isolation::Routed,
        direct: settings.network.direct_path,
        // The runtime complains where there are none.
        pods_cgroup: pods_cgroup.ok().flatten(),
        resolver: settings.network.dns,
    }
}

fn runtime_settings(settings: &Settings, host_ips: &[std::net::IpAddr]) -> runtime::Settings {
    let userns = settings.userns;
    let capacity = Allocatable::of_machine(&settings.paths.lib());
    let kept = settings.pods.reserved;
    let reserved = Allocatable { cpu_millis: kept.cpu_millis, memory: kept.memory, ephemeral_storage: kept.ephemeral_storage };
    runtime::Settings {
        run: settings.paths.run(),
        lib: settings.paths.lib(),
        log: settings.paths.log(),
        claims: settings.claims.clone().unwrap_or_else(|| settings.paths.lib().join("claims")),
        log_max_size: settings.container_logs.max_size,
        log_max_files: settings.container_logs.max_files,
        node_name: settings.node_name.clone(),
        node_ips: host_ips.to_vec(),
        id_range: (userns.first, userns.per_pod.saturating_mul(userns.pods)),
        ids_per_pod: userns.per_pod,
        resolv_conf: settings.resolv_conf.clone(),
        seccomp_default: settings.security.seccomp_default,
        seccomp_default_profile: settings.security.seccomp_default_profile.clone(),
        seccomp_root: settings.security.seccomp_root.clone().unwrap_or_else(|| settings.paths.lib().join("seccomp")),
        unsafe_sysctls: settings.security.unsafe_sysctls.clone(),
        cluster_dns: settings.security.cluster_dns.clone(),
        cluster_domain: settings.security.cluster_domain.clone(),
        pod_pids: settings.pods.pids_limit,
        memory_throttling: settings.pods.memory_throttling,
        single_process_oom_kill: settings.pods.single_process_oom_kill,
        cdi_spec_dirs: settings.pods.cdi_spec_dirs.clone(),
        enforced: capacity.less(reserved),
        allocatable: capacity.less(reserved).less(kept_free(settings, capacity)),
        ..runtime::Settings::below(settings.paths.root(), &settings.cgroup_parent)
    }
}

/// What the hard thresholds of eviction keep free isn't for pods to ask for.
fn kept_free(settings: &Settings, capacity: Allocatable) -> Allocatable {
    let hard = |signal: Scarce, capacity: u64| {
        let thresholds = settings.eviction.thresholds.iter();
        thresholds.filter(|t| t.grace.is_zero() && t.signal == signal).map(|t| t.value.of(capacity)).max().unwrap_or(0)
    };
    Allocatable {
        cpu_millis: 0,
        memory: hard(Scarce::MemoryAvailable, capacity.memory),
        ephemeral_storage: hard(Scarce::NodefsAvailable, capacity.ephemeral_storage),
    }
}

fn handle(settings: &Settings, node: Arc<Node>, orders: mpsc::UnboundedSender<Order>) -> Handle {
    let object = machine_object(settings, &node);
    let lib = settings.paths.lib();
    let own = network(settings);
    let manifests = settings.manifests.iter().find(|path| path.is_dir()).cloned();
    let ways = Ways { manifests, of_cluster: settings.cluster.is_some() };
    let shutdown = settings.shutdown.clone();
    Handle::new(node, orders, ways, object, move || machine::check::thorough(&lib, &own, &shutdown))
}

/// The Node object, as of whenever it is asked for.
fn machine_object(settings: &Settings, node: &Arc<Node>) -> impl Fn() -> NodeObject + Send + Sync + use<> {
    let facts = machine::object::Facts {
        labels: node.admission.labels().clone(),
        addresses: node.host_ips.clone(),
        pod_cidrs: settings.network.first_subnets().map(|subnet| subnet.to_string()).collect(),
        max_pods: settings.pods.max,
        lib: settings.paths.lib(),
        started: Timestamp::now(),
        provider_id: settings.cluster.as_ref().and_then(|cluster| cluster.provider_id.clone()),
        taints: settings.cluster.iter().flat_map(|cluster| cluster.taints.clone()).collect(),
        kubelet_port: (settings.kubelet.client_ca.is_some() || settings.cluster.is_some())
            .then(|| settings.kubelet.address.port()),
    };
    let (admission, allocatable) = (node.admission.clone(), node.runtime.settings().allocatable);
    let (agent, going_down) = (node.clone(), node.admission.going_down());
    move || {
        let mut object = machine::object::node(&facts, allocatable, &admission.pressures());
        let network = agent.network.problem().map(|problem| machine::object::without_network(&problem));
        let shutdown = going_down.borrow().then(|| shutdown::NOT_READY.to_owned());
        machine::object::not_ready(&mut object, &network.into_iter().chain(shutdown).collect::<Vec<_>>());
        let names = |image: &image::Image| image.repo_digests.iter().chain(image.names.iter()).cloned().collect();
        machine::object::show_volumes(&mut object, agent.csi.in_use());
        machine::object::show_devices(&mut object, agent.devices.amounts());
        machine::object::show_images(&mut object, agent.images.list().iter().map(|image| (names(image), image.size)));
        object
    }
}

fn api_options(settings: &Settings) -> Result<api::Options, DaemonError> {
    let group = settings.api.socket_group.as_deref().map(group).transpose()?;
    Ok(api::Options {
        socket: settings.paths.socket(),
        group,
        listen: settings.api.listen,
        certificates: settings.paths.certificates(),
        spool: settings.paths.lib().join("spool"),
    })
}

/// A group's number, by number or name.
fn group(name: &str) -> Result<u32, DaemonError> {
    let found = name.parse().ok().or_else(|| Some(nix::unistd::Group::from_name(name).ok()??.gid.as_raw()));
    found.ok_or_else(|| DaemonError::Group(name.to_owned()))
}

/// The sources, as a person reads them.
fn told_manifests(settings: &Settings) -> String {
    let manifests: Vec<String> = settings.manifests.iter().map(|m| m.display().to_string()).collect();
    manifests.join(", ")
}

fn tell_where(settings: &Settings, server: &Server) {
    tracing::info!(
        node = settings.node_name,
        manifests = told_manifests(settings),
        socket = %settings.paths.socket().display(),
        "nodeagent {} is ready",
        env!("CARGO_PKG_VERSION")
    );
    if let Some(address) = server.address() {
        tracing::info!("kubectl is served at https://{address}: nodeagent kubeconfig writes what it needs");
    }
}

fn keys(settings: &Settings) -> Result<Keys, DaemonError> {
    let Some(path) = &settings.age_identities else { return Ok(Keys::default()) };
    Keys::read(path).map_err(|source| DaemonError::Keys { path: path.clone(), source })
}

async fn watch(manifests: Vec<PathBuf>, defaults: model::Defaults, keys: Keys, events: mpsc::Sender<source::Event>) {
    if let Err(error) = source::watch(manifests, defaults, keys, events).await {
        tracing::error!(%error, "manifests are not watched any more; pods run on as they are");
    }
}

fn thresholds(settings: &Settings) -> image::Thresholds {
    image::Thresholds {
        high_percent: settings.images.gc_high_percent.into(),
        low_percent: settings.images.gc_low_percent.into(),
        ..image::Thresholds::default()
    }
}

/// Says which other firewalls stand in the way, now and when one comes.
async fn mind_firewalls(node: Arc<Node>) {
    let Some(mut firewalls) = node.network.firewalls().cloned() else { return };
    let mut known = Vec::new();
    loop {
        let found = firewalls.borrow_and_update().clone();
        for obstacle in found.iter().filter(|obstacle| !known.contains(*obstacle)) {
            node.recorder.node(Level::Warning, "NetworkObstacle", &obstacle.to_string());
        }
        known = found;
        if firewalls.changed().await.is_err() {
            return;
        }
    }
}

/// Lets pods whose link somebody deleted have it back.
async fn mind_links(node: Arc<Node>, orders: mpsc::UnboundedSender<Order>) {
    let Some(network) = node.network.bridge() else { return };
    network.up().await;
    let Ok(mut severed) = network.severed().await else { return };
    while let Some(uid) = severed.recv().await {
        let _ = orders.send(Order::Rewire(model::PodUid::new(&uid)));
    }
}

async fn collect_images(node: Arc<Node>, thresholds: image::Thresholds) {
    let mut every = tokio::time::interval(IMAGE_GC_EVERY);
    loop {
        every.tick().await;
        match node.images.gc(thresholds).await {
            Ok(freed) if freed.images.is_empty() => {}
            Ok(freed) => tracing::info!(images = freed.images.join(", "), bytes = freed.bytes, "unused images were removed"),
            Err(error) => tracing::warn!(%error, "unused images could not be removed"),
        }
    }
}

/// The two signals that end the agent.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn listen() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::alone(None, Belongs::ToItself, Ranges::Default, Wiring::Bridge)]
    #[case::said(Some(Wiring::Cni), Belongs::ToItself, Ranges::Chosen, Wiring::Cni)]
    #[case::in_a_cluster(None, Belongs::ToACluster, Ranges::Default, Wiring::Cni)]
    #[case::with_ranges_of_its_own(None, Belongs::ToACluster, Ranges::Chosen, Wiring::Bridge)]
    #[case::said_otherwise(Some(Wiring::Bridge), Belongs::ToACluster, Ranges::Default, Wiring::Bridge)]
    fn who_wires(#[case] said: Option<Wiring>, #[case] belongs: Belongs, #[case] ranges: Ranges, #[case] expected: Wiring) {
        let folder = tempfile::tempdir().unwrap();
        let cni = crate::config::Cni {
            conf_dir: folder.path().into(),
            bin_dirs: Vec::new(),
            cache_dir: folder.path().into(),
            timeout: Duration::from_secs(1),
        };
        let bridge = "nodeagent0".to_owned();
        let network = Network {
            bridge,
            pod_ranges: Vec::new(),
            reuse_after: std::time::Duration::ZERO,
            probe: None,
            masquerade: true,
            direct_path: true,
            masquerade_except: Vec::new(),
            service_cidrs: Vec::new(),
            dns: false,
            nft_table: String::new(),
            mtu: None,
            wiring: said,
            ranges,
            cni,
        };
        let without = said.unwrap_or(Wiring::Bridge);
        assert_eq!(wiring(&network, belongs), without, "no network add-on is installed");
        std::fs::write(folder.path().join("10-addon.conflist"), "{}").unwrap();
        assert_eq!(wiring(&network, belongs), expected);
    }
}
