//! Device plugins by their own API (<https://kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/device-plugins/>): they
//! register at a socket of ours or in the registration folder, tell their devices in a stream, and say what a container needs to use
//! those that it gets.
//!
//! [`ledger`] decides who has what; here are the calls. What was given is noted in `/run`, so that an agent that comes after knows it.

mod api;
mod endpoint;
pub mod ledger;
pub mod registration;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use self::api::Allocated;
use self::endpoint::Endpoint;
use self::ledger::{Held, Ids, Ledger, Refusal, Stay, Unknown};
use crate::durable;
use crate::model::{Origin, PodUid, ValidPod};
use crate::runtime::grant::{self, Grant};

/// A plugin that is gone has so long to come back before its devices are none; the kubelet's.
const GRACE: Duration = Duration::from_secs(300);

/// One for a node.
#[derive(Debug)]
pub struct Devices {
    inner: Mutex<Inner>,
    /// Counts what plugins told.
    changed: watch::Sender<u64>,
    /// What pods have, a file each.
    records: PathBuf,
    /// The names of all resources.
    known: PathBuf,
}

#[derive(Debug, Default)]
struct Inner {
    ledger: Ledger,
    plugins: HashMap<String, Plugin>,
    /// What plugins said to what was given, by pod and container.
    grants: HashMap<PodUid, BTreeMap<String, Grant>>,
    /// Pods of an agent before this one that nobody has asked for yet.
    orphans: HashSet<PodUid>,
    number: u64,
}

/// The plugin of a resource.
#[derive(Debug)]
struct Plugin {
    number: u64,
    /// None: it is gone.
    endpoint: Option<Endpoint>,
}

/// What is noted of a pod.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    held: Held,
    grants: BTreeMap<String, Grant>,
}

impl Devices {
    /// Knows what an agent before this one has noted. `run` ends with a reboot, `lib` doesn't.
    pub fn open(run: &Path, lib: &Path) -> Arc<Self> {
        let (records, known) = (run.join("devices"), lib.join("device-resources.json"));
        let mut inner = Inner::default();
        let names = fs::read(&known).ok().and_then(|bytes| serde_json::from_slice::<Vec<String>>(&bytes).ok());
        names.into_iter().flatten().for_each(|name| inner.ledger.know(&name));
        for entry in fs::read_dir(&records).into_iter().flatten().flatten() {
            let record = fs::read(entry.path()).ok().and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
            if let (Some(record), Some(uid)) = (record, entry.file_name().to_str().and_then(|name| name.strip_suffix(".json"))) {
                let uid = PodUid::new(uid);
                inner.ledger.restore(&uid, record.held);
                inner.grants.insert(uid.clone(), record.grants);
                inner.orphans.insert(uid);
            }
        }
        Arc::new(Self { inner: Mutex::new(inner), changed: watch::Sender::new(0), records, known })
    }

    /// Hears when plugins told something.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Each resource with its capacity and what of it can be given away.
    pub fn amounts(&self) -> Vec<(String, usize, usize)> {
        self.lock().ledger.amounts().map(|(name, all, well)| (name.to_owned(), all, well)).collect()
    }

    /// Promises a pod the devices that it asks for.
    pub fn reserve(&self, pod: &ValidPod) -> Result<(), Refusal> {
        if !ledger::asks(pod.spec()) {
            return Ok(());
        }
        let unknown = if *pod.origin() == Origin::Api { Unknown::Passes } else { Unknown::Waits };
        let mut inner = self.lock();
        inner.orphans.remove(pod.uid());
        inner.ledger.reserve(pod.uid(), &ledger::of_pod(pod.spec()), unknown)
    }

    /// A pod of an agent before this one goes on with what it has.
    pub fn take(&self, uid: &PodUid) {
        self.lock().orphans.remove(uid);
    }

    /// Takes back what a pod has.
    pub fn release(&self, uid: &PodUid) {
        let mut inner = self.lock();
        inner.orphans.remove(uid);
        let had = inner.grants.remove(uid).is_some();
        inner.ledger.release(uid);
        drop(inner);
        if had {
            let _ = fs::remove_file(self.record(uid));
        }
    }

    /// What pods of an agent before this one have that aren't there any more is free.
    pub fn release_orphans(&self) {
        let orphans = std::mem::take(&mut self.lock().orphans);
        orphans.iter().for_each(|uid| self.release(uid));
        if !orphans.is_empty() {
            self.tell();
        }
    }

    /// Chooses the devices of a pod that they were promised to, and has their plugins make them ready. An error is the kubelet's.
    pub async fn allocate(&self, pod: &ValidPod) -> Result<(), String> {
        let mut grants: BTreeMap<String, Grant> = BTreeMap::new();
        let mut over = Ids::new();
        for (container, stay) in ledger::containers(pod.spec()) {
            for (resource, needed) in ledger::of_container(container) {
                if !self.lock().ledger.knows(&resource) {
                    continue;
                }
                let whose = (pod.uid(), container.name.as_str());
                let spare = over.entry(resource.clone()).or_default();
                let (ids, endpoint) = self.choose(whose, (&resource, needed), spare).await?;
                let allocated = endpoint.allocate(ids.iter().cloned().collect()).await.map_err(|status| status.to_string())?;
                grants.entry(container.name.clone()).or_default().merge(granted(allocated));
                match stay {
                    Stay::Passing => spare.extend(ids),
                    Stay::Lasting => spare.retain(|id| !ids.contains(id)),
                }
            }
        }
        let mut inner = self.lock();
        // The pod may have been let go while plugins were asked.
        let Some(held) = inner.ledger.held(pod.uid()).cloned() else { return Ok(()) };
        let record = serde_json::to_vec(&Record { held, grants: grants.clone() }).unwrap_or_default();
        inner.grants.insert(pod.uid().clone(), grants);
        drop(inner);
        let path = self.record(pod.uid());
        let written = durable::private_folder(&self.records).and_then(|()| durable::write(&path, &record));
        written.map_err(|error| format!("write {}: {error}", path.display()))
    }

    async fn choose(
        &self,
        whose: (&PodUid, &str),
        (resource, needed): (&str, u64),
        over: &BTreeSet<String>,
    ) -> Result<(BTreeSet<String>, Endpoint), String> {
        let endpoint = self.endpoint(resource)?;
        let mut preferred = Vec::new();
        if endpoint.options.preferred_allocation && over.len() < usize::try_from(needed).unwrap_or(usize::MAX) {
            let available = self.lock().ledger.available(resource).union(over).cloned().collect();
            let asked = endpoint.prefers(available, over.iter().cloned().collect(), needed).await;
            preferred = asked.map_err(|error| format!("device plugin GetPreferredAllocation rpc failed with err: {error}"))?;
        }
        let ids = self.lock().ledger.hold(whose, (resource, needed), (over, &preferred))?;
        Ok((ids, endpoint))
    }

    fn endpoint(&self, resource: &str) -> Result<Endpoint, String> {
        self.lock().plugins.get(resource).and_then(|plugin| plugin.endpoint.clone()).ok_or_else(|| unregistered(resource))
    }

    /// Tells the plugins that want to know it that a container is about to start. An error is the kubelet's.
    pub async fn pre_start(&self, uid: &PodUid, container: &str) -> Result<(), String> {
        let held = self.lock().ledger.held(uid).and_then(|held| held.get(container)).cloned().unwrap_or_default();
        for (resource, ids) in held {
            let Some(endpoint) = self.endpoint(&resource).ok().filter(|endpoint| endpoint.options.pre_start_required) else {
                continue;
            };
            let told = endpoint.pre_start(ids.into_iter().collect()).await;
            told.map_err(|error| format!("device plugin PreStartContainer rpc failed with err: {error}"))?;
        }
        Ok(())
    }

    /// What a container gets by its devices; none: it has none.
    pub fn grant(&self, uid: &PodUid, container: &str) -> Option<Grant> {
        self.lock().grants.get(uid)?.get(container).cloned()
    }

    /// A plugin is there: it is asked for its devices from now on. An error is the kubelet's.
    pub async fn register(self: &Arc<Self>, resource: &str, socket: &Path) -> Result<(), String> {
        let endpoint = Endpoint::connect(socket).await?;
        let mut inner = self.lock();
        inner.number += 1;
        let number = inner.number;
        let new = !inner.ledger.knows(resource);
        inner.ledger.know(resource);
        inner.plugins.insert(resource.to_owned(), Plugin { number, endpoint: Some(endpoint.clone()) });
        let names: Vec<String> = inner.ledger.amounts().map(|(name, ..)| name.to_owned()).collect();
        drop(inner);
        if new {
            let written = serde_json::to_vec(&names).map_err(Into::into).and_then(|names| durable::write(&self.known, &names));
            if let Err(error) = written {
                tracing::warn!(file = %self.known.display(), %error, "the names of device plugins' resources could not be noted");
            }
        }
        tracing::info!(resource, socket = %socket.display(), "a device plugin has registered");
        let (devices, resource) = (self.clone(), resource.to_owned());
        tokio::spawn(async move { devices.follow(&resource, number, endpoint).await });
        Ok(())
    }

    /// A plugin says good-bye.
    pub fn deregister(&self, resource: &str) {
        let number = self.lock().plugins.get(resource).map(|plugin| plugin.number);
        if let Some(number) = number {
            self.lose(resource, number);
        }
    }

    async fn follow(&self, resource: &str, number: u64, endpoint: Endpoint) {
        let ended = endpoint
            .follow(|devices| {
                let mut inner = self.lock();
                let served = |plugin: &Plugin| plugin.number == number && plugin.endpoint.is_some();
                if !inner.plugins.get(resource).is_some_and(served) {
                    return false;
                }
                inner.ledger.update(resource, devices);
                drop(inner);
                self.tell();
                true
            })
            .await;
        drop(endpoint);
        if !self.lose(resource, number) {
            return;
        }
        tracing::warn!(resource, why = ended, "a device plugin is gone: its devices are given to nobody until it comes back");
        tokio::time::sleep(GRACE).await;
        self.give_up(resource, number);
    }

    /// The plugin is gone. Says whether it was the resource's.
    fn lose(&self, resource: &str, number: u64) -> bool {
        let mut inner = self.lock();
        let Some(plugin) = inner.plugins.get_mut(resource).filter(|plugin| plugin.number == number) else { return false };
        plugin.endpoint = None;
        inner.ledger.doubt(resource);
        drop(inner);
        self.tell();
        true
    }

    /// It has had its time to come back.
    fn give_up(&self, resource: &str, number: u64) {
        let mut inner = self.lock();
        if inner.plugins.get(resource).is_some_and(|plugin| plugin.number == number) {
            inner.ledger.forget(resource);
            drop(inner);
            self.tell();
        }
    }

    fn tell(&self) {
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
    }

    fn record(&self, uid: &PodUid) -> PathBuf {
        self.records.join(format!("{uid}.json"))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unregistered(resource: &str) -> String {
    format!("cannot allocate unregistered device {resource}")
}

fn granted(allocated: Allocated) -> Grant {
    let Allocated { envs, mounts, devices, annotations, cdi } = allocated;
    let mount = |mount: api::Mount| grant::Mount {
        host_path: mount.host_path.into(),
        container_path: mount.container_path.into(),
        read_only: mount.read_only,
    };
    let device = |device: api::DeviceSpec| grant::Device {
        host_path: device.host_path.into(),
        container_path: device.container_path.into(),
        permissions: device.permissions,
    };
    Grant {
        envs,
        mounts: mounts.into_iter().map(mount).collect(),
        devices: devices.into_iter().map(device).collect(),
        annotations,
        cdi: cdi.into_iter().map(|device| device.name).collect(),
    }
}
