//! A pod's life: what should be, what is, and the steps between. Knows model, runtime, image and netplug.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as k8s;
use serde::{Deserialize, Serialize};

use crate::admission::Admission;
use crate::image::Images;
use crate::image::provider::{Accounts, Providers};
use crate::model::{Body, Origin, PodUid, ValidObject, ValidPod, references};
use crate::plugin::csi::Csi;
use crate::plugin::csi::growth::Claims;
use crate::plugin::device::Devices;
use crate::runtime::{Runtime, Sandbox, Sockets, Wires};
use crate::service::Services;

pub mod adoption;
pub mod backoff;
pub mod claims;
pub mod completed;
pub mod counters;
mod csi;
mod growth;
pub mod handle;
pub mod handler;
pub mod hook;
mod image_api;
pub mod manager;
pub mod network;
pub mod node;
pub mod objects;
pub mod observed;
pub mod plan;
pub mod pressure;
pub mod probe;
pub mod pulls;
pub mod recorder;
pub mod resize;
pub mod restart;
pub mod shutdown;
pub mod since;
pub mod status;
pub mod store;
pub mod trace;
pub mod usage;
pub mod volumes;
pub mod whole;
pub mod worker;

/// Handlers of RuntimeClasses: all of them are this agent's own runtime.
pub const HANDLERS: [&str; 2] = ["nodeagent", "runc"];

/// What all workers of a node share.
pub struct Node {
    /// The node's name.
    pub name: String,
    /// The node's addresses.
    pub host_ips: Vec<IpAddr>,
    /// Pods and events.
    pub store: Arc<store::Store>,
    /// ConfigMaps, Secrets, claims, Services.
    pub objects: objects::ObjectSets,
    /// Writes events.
    pub recorder: recorder::Recorder,
    /// What is counted for monitoring.
    pub counters: Arc<counters::Counters>,
    /// Holders, cgroups, files.
    pub runtime: Arc<Runtime>,
    /// Connections from inside pods.
    pub sockets: Arc<Sockets>,
    /// The pod network.
    pub network: network::PodNetwork,
    /// Addresses of Services, and who must know of a pod before it begins.
    pub services: Services,
    /// The image store.
    pub images: Images,
    /// Programs that give logins for images.
    pub providers: Option<Providers>,
    /// Who knows service accounts: a cluster.
    pub accounts: Option<Arc<dyn Accounts>>,
    /// Who has claims as they are now: a cluster.
    pub claims: Option<Arc<dyn Claims>>,
    /// Images of image volumes.
    pub volume_images: Mutex<HashMap<PodUid, pulls::VolumeImages>>,
    /// Waits between restarts.
    pub backoff: backoff::Backoff,
    /// Who can be here.
    pub admission: Arc<Admission>,
    /// What device plugins have to give.
    pub devices: Arc<Devices>,
    /// Volumes that CSI drivers mount.
    pub csi: Arc<Csi>,
    /// The workers, as the API may see them.
    pub live: RwLock<HashMap<PodUid, worker::LiveRef>>,
    /// Pods that go from files to the API server, and back.
    pub adoptions: adoption::Adoptions,
    /// Sources that haven't told all that they want.
    pub awaited: tokio::sync::watch::Sender<HashSet<manager::Whose>>,
    /// Marks of pods that were told to stay ended; on tmpfs.
    pub stopped_dir: PathBuf,
}

/// What ends with a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    /// Nothing else: the pod gets another one.
    Sandbox,
    /// The pod has completed. What it wrote to its disk and said stays; others may have its storage, and the memory of its volumes.
    Work,
    /// All of the pod.
    Pod,
}

impl Ends {
    fn of(pod: &ValidPod, observed: &observed::Observed) -> Self {
        match observed.ending {
            Some(_) => Self::Pod,
            None if plan::is_complete(pod, observed) => Self::Work,
            None => Self::Sandbox,
        }
    }
}

impl Node {
    /// Holder, namespaces and address, in this order. What was made is taken back when a later step fails.
    async fn create_sandbox(
        &self,
        pod: &ValidPod,
        start_time: Timestamp,
        first: Vec<(k8s::Container, u32)>,
        trace: &trace::Trace,
    ) -> Result<(Sandbox, Vec<IpAddr>), String> {
        self.check_handler(pod)?;
        if let Some(problem) = self.network.problem().filter(|_| pod.spec().host_network != Some(true)) {
            return Err(format!("network is not ready: {problem}"));
        }
        let begun = Instant::now();
        // With its folders, in which something is written as soon as its addresses are known.
        let mut beginning = match self.runtime.begin_sandbox(pod, serde_json::Value::Null) {
            Ok(beginning) => beginning,
            Err(error) => return Err(self.take_back(pod, None, error.to_string()).await),
        };
        let wires = beginning.wires();
        let containers = || {
            let begun = Instant::now();
            self.runtime.prepare_containers(pod, first.iter().map(|(container, attempt)| (container, *attempt)));
            trace.step("containers ahead", None, begun);
        };
        let early = async {
            let wired = self.network.attach_early(pod, wires, trace).await?;
            Some(match wired {
                Ok(wired) => self.addressed(pod, wired, trace).await,
                Err(error) => Err(error),
            })
        };
        // The network's order is given first; it is carried out elsewhere.
        let (ips, made) = tokio::join!(early, self.runtime.make_sandbox(pod, beginning, containers));
        let (sandbox, wires) = match made {
            Ok(made) => made,
            Err(error) => return Err(self.take_back(pod, None, error.to_string()).await),
        };
        trace.protocol_steps(None, begun, &sandbox.steps);
        // A holder that was gone, and with it the namespace that was wired, has been replaced.
        let ips = ips.filter(|_| wires.is_none());
        match self.wire(pod, (&sandbox, wires), ips, start_time, trace).await {
            Ok(ips) => Ok((sandbox, ips)),
            Err(error) => Err(self.take_back(pod, Some(sandbox), error).await),
        }
    }

    /// Whether a pod's RuntimeClass is of a runtime that is here: there is one, under its own name and as the default.
    fn check_handler(&self, pod: &ValidPod) -> Result<(), String> {
        let Some(key) = references::runtime_class(pod).filter(|_| *pod.origin() == Origin::Api) else { return Ok(()) };
        match self.objects.cluster.get(&key).as_ref().map(ValidObject::body) {
            Some(Body::RuntimeClass(class)) if HANDLERS.contains(&class.handler.as_str()) => Ok(()),
            Some(Body::RuntimeClass(class)) => {
                Err(format!("failed to get sandbox runtime: no runtime for \"{}\" is configured", class.handler))
            }
            _ => Err(format!("RuntimeClass.node.k8s.io \"{}\" not found", key.name)),
        }
    }

    async fn take_back(&self, pod: &ValidPod, sandbox: Option<Sandbox>, error: String) -> String {
        if let Err(left) = self.remove_sandbox(pod, sandbox, Ends::Sandbox).await {
            tracing::warn!(%pod, left, "a sandbox that failed could not be cleared away");
        }
        error
    }

    /// Gives the pod all of its network, but for what it has already (`ips`), and leaves the agent's note in the holder: from then on, an
    /// agent that comes after goes on with the sandbox.
    async fn wire(
        &self,
        pod: &ValidPod,
        (sandbox, wires): (&Sandbox, Option<Wires>),
        ips: Option<Result<Vec<IpAddr>, String>>,
        start_time: Timestamp,
        trace: &trace::Trace,
    ) -> Result<Vec<IpAddr>, String> {
        let ips = if pod.spec().host_network == Some(true) {
            self.write_files(pod, &self.host_ips, trace)?;
            self.host_ips.clone()
        } else {
            let ips = if let Some(ips) = ips {
                ips?
            } else {
                let wired = self.network.attach(pod, (sandbox, wires), self.runtime.settings(), trace).await?;
                self.addressed(pod, wired, trace).await?
            };
            self.network.attach_more(pod, sandbox, trace).await?;
            ips
        };
        let note = SandboxNote { ips: ips.clone(), start_time: Some(start_time), conditions: Vec::new() };
        sandbox.holder.note(serde_json::to_value(&note).unwrap_or_default()).await.map_err(|e| e.to_string())?;
        Ok(ips)
    }

    /// What follows from a pod's having its addresses.
    async fn addressed(&self, pod: &ValidPod, wired: network::Wired, trace: &trace::Trace) -> Result<Vec<IpAddr>, String> {
        for unheard in wired.unheard {
            self.recorder.pod(pod, None, recorder::Level::Warning, "MissingCapability", &unheard);
        }
        for obstacle in self.network.obstacles() {
            self.recorder.pod(pod, None, recorder::Level::Warning, "NetworkObstacle", &obstacle);
        }
        self.services.wired(pod, &wired.ips).await;
        self.write_files(pod, &wired.ips, trace)?;
        Ok(wired.ips)
    }

    fn write_files(&self, pod: &ValidPod, ips: &[IpAddr], trace: &trace::Trace) -> Result<(), String> {
        let begun = Instant::now();
        for omitted in self.runtime.write_files(pod, ips).map_err(|e| e.to_string())? {
            self.recorder.pod(pod, None, recorder::Level::Warning, "DNSConfigForming", &omitted);
        }
        trace.step("files", None, begun);
        Ok(())
    }

    /// Takes a pod's sandbox down, and with it as much of the pod as ends now. Goes on past errors and tells them all.
    async fn remove_sandbox(&self, pod: &ValidPod, sandbox: Option<Sandbox>, ends: Ends) -> Result<(), String> {
        let mut errors = Vec::new();
        let removed = match ends {
            Ends::Pod => self.runtime.remove_pod(pod.uid(), sandbox.as_ref()).await,
            Ends::Work | Ends::Sandbox => self.runtime.remove_sandbox(pod.uid(), sandbox.as_ref()).await,
        };
        errors.extend(removed.err().map(|e| e.to_string()));
        if ends == Ends::Work && errors.is_empty() {
            errors.extend(self.runtime.let_go(pod.uid()).err().map(|e| e.to_string()));
        }
        if ends != Ends::Sandbox && errors.is_empty() {
            errors.extend(self.csi.unmount(pod.uid()).await.err());
        }
        if ends != Ends::Sandbox && errors.is_empty() {
            let resolved = self.resolve_claims(pod).map_or_else(|_| pod.clone(), |resolved| resolved.pod);
            errors.extend(self.runtime.detach_volumes(&resolved).await.err().map(|e| e.to_string()));
            self.release_images(pod.uid());
        }
        errors.extend(self.network.release(pod.uid()).await.err());
        if errors.is_empty() { Ok(()) } else { Err(errors.join("; ")) }
    }

    /// Frees what the network keeps for pods that aren't there.
    fn retain<'a>(self: &Arc<Self>, live: impl Iterator<Item = &'a PodUid>) {
        let live: Vec<String> = live.map(|uid| uid.as_str().to_owned()).collect();
        self.devices.release_orphans();
        let node = self.clone();
        tokio::spawn(async move {
            let live: Vec<&str> = live.iter().map(String::as_str).collect();
            if let Err(error) = node.network.retain(&live).await {
                tracing::warn!(%error, "addresses of pods that are gone could not be freed");
            }
            for (uid, problem) in node.network.check(&live).await {
                // Not an event: some plugins' CHECK finds fault with what their own ADD made.
                tracing::warn!(%uid, problem, "CNI's CHECK says that the pod's network is not as it was made");
            }
        });
    }

    fn is_stopped(&self, uid: &PodUid) -> bool {
        self.stopped_dir.join(uid.as_str()).exists()
    }

    fn stopped(&self, uid: &PodUid, stopped: bool) {
        let mark = self.stopped_dir.join(uid.as_str());
        let done = if stopped {
            std::fs::create_dir_all(&self.stopped_dir).and_then(|()| std::fs::write(&mark, ""))
        } else {
            std::fs::remove_file(&mark).or_else(|e| if e.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
        };
        if let Err(error) = done {
            tracing::warn!(mark = %mark.display(), %error, "whether the pod is to stay stopped could not be noted");
        }
    }

    /// Of pods that nobody has any more nothing is remembered: one of the same name that comes later runs.
    fn forget_stopped(&self, has: impl Fn(&PodUid) -> bool) {
        let marks = std::fs::read_dir(&self.stopped_dir).into_iter().flatten().flatten();
        let uids = marks.filter_map(|mark| Some(PodUid::new(mark.file_name().to_str()?)));
        uids.filter(|uid| !has(uid)).for_each(|uid| self.stopped(&uid, false));
    }

    /// The worker of a pod, as the API sees it.
    pub fn live(&self, uid: &PodUid) -> Option<worker::Live> {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner).get(uid)?.clone();
        Some(live.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// A pod that is a file's, not the API server's.
    pub(crate) fn files_pod(&self, uid: &PodUid) -> Option<Arc<k8s::Pod>> {
        if self.live(uid)?.of_file { self.store.pod(uid) } else { None }
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What the agent keeps with a sandbox, in the holder: the memory of an agent that comes after.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SandboxNote {
    ips: Vec<IpAddr>,
    start_time: Option<Timestamp>,
    /// What others told of the pod.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    conditions: Vec<k8s::PodCondition>,
}
