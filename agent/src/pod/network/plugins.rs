//! Pods wired by CNI plugins: what a pod is to the plugins, its namespace's path, and how the node learns that they can work again.
//! [`netplug::cni::client`] executes them, on threads for blocking work.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use netplug::cni::client::{self, Attachment, Client, Conflist, is_namespace};
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use crate::follow::{self, Followed};
use crate::model::network::{Asks, Selection};
use crate::model::{PodUid, ValidPod};

/// The pod's own interface, as Kubernetes has it.
const ETH0: &str = "eth0";

/// See the module's page. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Plugins {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    client: Client,
    /// Bind mounts of the pods' namespaces.
    namespaces: PathBuf,
    /// Who has what.
    attached: Mutex<HashMap<PodUid, Vec<NetworkStatus>>>,
    /// Why no pod can be wired, if so.
    problem: Mutex<Option<String>>,
    /// Counts what may have become better.
    changes: watch::Sender<u64>,
    minded: AtomicBool,
}

/// One interface of a pod, as the annotation `k8s.v1.cni.cncf.io/network-status` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetworkStatus {
    /// The network.
    pub name: String,
    /// The interface in the pod.
    pub interface: String,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Its MAC, where the plugin told it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Whether it is the pod's own.
    pub default: bool,
}

impl NetworkStatus {
    fn new(network: &str, interface: &str, attached: client::Attached) -> Self {
        let client::Attached { ips, mac, .. } = attached;
        Self { name: network.into(), interface: interface.into(), ips, mac, default: interface == ETH0 }
    }
}

/// What wiring came to.
#[derive(Debug, Default)]
pub struct Wired {
    /// The pod's addresses.
    pub ips: Vec<IpAddr>,
    /// What it asked for and nobody does, for an event.
    pub unheard: Vec<String>,
}

impl Plugins {
    /// `run`: where the pods' namespaces get their paths. What is in the cache is taken for attached.
    pub fn open(settings: client::Settings, run: &Path) -> Result<Self, client::Error> {
        let client = Client::open(settings)?;
        let mut attached: HashMap<PodUid, Vec<NetworkStatus>> = HashMap::new();
        for entry in client.attachments()? {
            let uid = PodUid::new(&entry.container_id);
            let status = NetworkStatus::new(&entry.network_name, &entry.if_name, entry.attached());
            attached.entry(uid).or_default().push(status);
        }
        let shared = Shared {
            client,
            namespaces: run.join("netns"),
            attached: Mutex::new(attached),
            problem: Mutex::default(),
            changes: watch::channel(0).0,
            minded: AtomicBool::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Wires a pod's own interface: the first network of the folder.
    pub async fn attach(&self, pod: &ValidPod, asks: &Asks, netns: OwnedFd, dns: Value) -> Result<Wired, String> {
        let (this, pod, asks) = (self.clone(), pod.clone(), asks.clone());
        blocking(move || {
            let list = this.shared.client.folder().first().map_err(|e| e.to_string())?;
            let path = this.shared.bind(&pod, &netns)?;
            let capabilities = capabilities(&pod, &asks, dns);
            let unheard = unheard(&list, &asks, &capabilities)?;
            let attachment = attachment(&pod, ETH0, path, capabilities);
            let ips = this.shared.add(&pod, &list, &attachment)?;
            Ok(Wired { ips, unheard })
        })
        .await
    }

    /// Wires the further interfaces.
    pub async fn attach_more(&self, pod: &ValidPod, networks: &[Selection], netns: OwnedFd) -> Result<(), String> {
        let (this, pod, networks) = (self.clone(), pod.clone(), networks.to_vec());
        blocking(move || {
            let path = this.shared.bind(&pod, &netns)?;
            for network in networks {
                let list = this.shared.client.folder().named(&network.name).map_err(|e| e.to_string())?;
                let attachment = attachment(&pod, &network.interface, path.clone(), network_capabilities(&network));
                this.shared.add(&pod, &list, &attachment)?;
            }
            Ok(())
        })
        .await
    }

    /// Whether plugins have, or may have, done something for a pod.
    pub fn knows(&self, uid: &PodUid) -> bool {
        self.shared.attached().contains_key(uid)
    }

    /// A pod's interfaces.
    pub fn status(&self, uid: &PodUid) -> Vec<NetworkStatus> {
        self.shared.attached().get(uid).cloned().unwrap_or_default()
    }

    /// Takes back what a pod has; its namespace goes when nobody else holds it.
    pub async fn release(&self, uid: &PodUid) -> Result<(), String> {
        let (this, uid) = (self.clone(), uid.clone());
        blocking(move || {
            this.shared.client.del(uid.as_str()).map_err(|e| e.to_string())?;
            this.shared.unbind(uid.as_str())?;
            this.shared.attached().remove(&uid);
            Ok(())
        })
        .await
    }

    /// Takes back what belongs to none of these, and lets the plugins do the same.
    pub async fn retain(&self, live: Vec<String>, gc: bool) -> Result<(), String> {
        let this = self.clone();
        blocking(move || {
            let live: HashSet<&str> = live.iter().map(String::as_str).collect();
            let mut errors: Vec<String> = Vec::new();
            errors.extend(this.shared.client.retain(&live).err().map(|e| e.to_string()));
            for entry in std::fs::read_dir(&this.shared.namespaces).into_iter().flatten().flatten() {
                if let Some(uid) = entry.file_name().to_str().filter(|uid| !live.contains(uid)) {
                    errors.extend(this.shared.unbind(uid).err());
                }
            }
            this.shared.attached().retain(|uid, _| live.contains(uid.as_str()));
            if gc && let Ok(list) = this.shared.client.folder().first() {
                errors.extend(this.shared.client.gc(&list).err().map(|e| e.to_string()));
            }
            if errors.is_empty() { Ok(()) } else { Err(errors.join("; ")) }
        })
        .await
    }

    /// Which of these pods the plugins don't find as they left them, and what they say.
    pub async fn check(&self, live: Vec<String>) -> Vec<(PodUid, String)> {
        let this = self.clone();
        let checked = blocking(move || {
            let check = |uid: String| {
                let error = this.shared.client.check(&uid).err()?;
                Some((PodUid::new(&uid), error.to_string()))
            };
            Ok(live.into_iter().filter_map(check).collect())
        });
        checked.await.unwrap_or_default()
    }

    /// Why no pod can be wired now.
    pub fn problem(&self) -> Option<String> {
        self.shared.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes when something may have become better: a configuration, a plugin, what a plugin says of itself.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.mind();
        self.shared.changes.subscribe()
    }

    /// As [`Plugins::changes`], for who waits for a nudge alone.
    pub fn nudges(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Something else became better that pods wait for.
    pub fn nudge(&self) {
        self.shared.changes.send_modify(|count| *count += 1);
    }

    /// Begins to follow the folders, once. Ends with the last of these handles.
    pub fn mind(&self) {
        if self.shared.minded.swap(true, Ordering::Relaxed) {
            return;
        }
        let settings = self.shared.client.settings();
        let folders = std::iter::once(&settings.conf_dir).chain(&settings.bin_dirs).cloned().collect();
        let followed = match Followed::new(folders) {
            Ok(followed) => followed,
            Err(error) => {
                tracing::warn!(%error, "changes of CNI's folders can't be followed: pods that wait for one try again after a while");
                return;
            }
        };
        let shared = Arc::downgrade(&self.shared);
        tokio::spawn(follow::follow(followed, move || {
            let shared = shared.upgrade();
            async move {
                let shared = shared?;
                blocking(move || Ok(shared.look())).await.ok().map(Health::patience)
            }
        }));
    }
}

/// How the network's plugins are.
enum Health {
    Good,
    /// They say that they can't work now: only asking again tells when they can.
    Ask,
    /// A file must change first.
    Wait,
}

impl Health {
    fn patience(self) -> Option<Duration> {
        const ASK_AGAIN: Duration = Duration::from_secs(5);
        matches!(self, Health::Ask).then_some(ASK_AGAIN)
    }
}

impl Shared {
    fn attached(&self) -> std::sync::MutexGuard<'_, HashMap<PodUid, Vec<NetworkStatus>>> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks how the network is, and tells who waits.
    fn look(&self) -> Health {
        let found = self.client.folder().first().and_then(|list| self.client.status(&list));
        let health = match &found {
            Ok(()) => Health::Good,
            Err(client::Error::Plugin { .. }) => Health::Ask,
            Err(_) => Health::Wait,
        };
        let problem = found.err().map(|e| e.to_string());
        let before = std::mem::replace(&mut *self.problem.lock().unwrap_or_else(PoisonError::into_inner), problem.clone());
        if before != problem {
            if let Some(problem) = &problem {
                tracing::warn!(problem, "pods can't be wired by CNI plugins");
            } else {
                tracing::info!("pods are wired by CNI plugins");
            }
        }
        self.changes.send_modify(|count| *count += 1);
        health
    }

    fn add(&self, pod: &ValidPod, list: &Conflist, attachment: &Attachment) -> Result<Vec<IpAddr>, String> {
        // Before, so that what a failed ADD leaves is taken back with the pod.
        self.attached().entry(pod.uid().clone()).or_default().retain(|status| status.interface != attachment.interface);
        let attached = self.client.add(list, attachment).map_err(|e| e.to_string())?;
        let ips = attached.ips.clone();
        let status = NetworkStatus::new(&list.name, &attachment.interface, attached);
        self.attached().entry(pod.uid().clone()).or_default().push(status);
        Ok(ips)
    }

    /// Gives the pod's namespace a path that lives as long as plugins may want it: longer than the holder, whose `/proc/PID` may
    /// be another's by then.
    fn bind(&self, pod: &ValidPod, netns: &OwnedFd) -> Result<PathBuf, String> {
        let path = self.namespaces.join(pod.uid().as_str());
        self.unbind(pod.uid().as_str())?;
        let tried = |what: &str, e: std::io::Error| format!("{what} {}: {e}", path.display());
        std::fs::create_dir_all(&self.namespaces).map_err(|e| tried("create the folder of", e))?;
        std::fs::File::create(&path).map_err(|e| tried("create", e))?;
        self.attached().entry(pod.uid().clone()).or_default();
        let from = format!("/proc/self/fd/{}", netns.as_raw_fd());
        mount_bind(from, &path).map_err(|e| tried("mount the pod's network namespace at", e.into()))?;
        Ok(path)
    }

    fn unbind(&self, uid: &str) -> Result<(), String> {
        let path = self.namespaces.join(uid);
        let tried = |what: &str, e: std::io::Error| format!("{what} {}: {e}", path.display());
        while is_namespace(&path).map_err(|e| tried("look at", e))? {
            unmount(&path, UnmountFlags::DETACH).map_err(|e| tried("unmount", e.into()))?;
        }
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(tried("remove", e)),
            _ => Ok(()),
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|e| e.to_string())?
}

/// A pod as plugins know it. The names are those of Kubernetes' other runtimes.
fn attachment(pod: &ValidPod, interface: &str, netns: PathBuf, capabilities: Map<String, Value>) -> Attachment {
    let args = [
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", pod.namespace()),
        ("K8S_POD_NAME", pod.name()),
        ("K8S_POD_INFRA_CONTAINER_ID", pod.uid().as_str()),
        ("K8S_POD_UID", pod.uid().as_str()),
    ];
    Attachment {
        container: pod.uid().as_str().into(),
        interface: interface.into(),
        netns,
        args: args.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        capabilities,
    }
}

fn capabilities(pod: &ValidPod, asks: &Asks, dns: Value) -> Map<String, Value> {
    let mut all = Map::new();
    let ports: Vec<Value> = super::host_ports(pod)
        .iter()
        .map(|port| {
            let mut mapping = json!({
                "hostPort": port.host_port, "containerPort": port.container_port,
                "protocol": port.protocol.to_string().to_lowercase(),
            });
            if let Some(ip) = port.host_ip {
                mapping["hostIP"] = ip.to_string().into();
            }
            mapping
        })
        .collect();
    if !ports.is_empty() {
        all.insert("portMappings".into(), ports.into());
    }
    if let Some(limits) = super::bandwidth(asks) {
        all.insert("bandwidth".into(), limits.to_cni());
    }
    if !asks.ips.is_empty() {
        all.insert("ips".into(), json!(asks.ips));
    }
    if let Some(mac) = &asks.mac {
        all.insert("mac".into(), mac.clone().into());
    }
    all.insert("dns".into(), dns);
    let annotations = pod.metadata.annotations.clone().unwrap_or_default();
    all.insert("io.kubernetes.cri.pod-annotations".into(), json!(annotations));
    all
}

fn network_capabilities(network: &Selection) -> Map<String, Value> {
    let Selection { ips, mac, port_mappings, bandwidth, .. } = network;
    [
        ("ips", (!ips.is_empty()).then(|| json!(ips))),
        ("mac", mac.clone().map(Value::from)),
        ("portMappings", port_mappings.clone()),
        ("bandwidth", bandwidth.clone()),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name.to_owned(), value?)))
    .collect()
}

/// What a pod asks for that no plugin of the network listens to. An address that it must have is an error; ports and bandwidth may be done
/// by other means, as some add-ons do.
fn unheard(list: &Conflist, asks: &Asks, capabilities: &Map<String, Value>) -> Result<Vec<String>, String> {
    for (asked, name) in [(!asks.ips.is_empty(), "ips"), (asks.mac.is_some(), "mac")] {
        if asked && !list.has_capability(name) {
            let file = list.file.display();
            return Err(format!("annotation nodeagent.dev/{name}: no plugin in {file} has the capability {name:?}"));
        }
    }
    let words = [("portMappings", "hostPort"), ("bandwidth", "bandwidth annotations")];
    let unheard = words.into_iter().filter(|(name, _)| capabilities.contains_key(*name) && !list.has_capability(name));
    let file = list.file.display();
    Ok(unheard.map(|(name, what)| format!("{what}: no plugin in {file} has the capability {name:?}")).collect())
}
