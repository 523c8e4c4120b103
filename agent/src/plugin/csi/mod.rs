//! CSI drivers' node part (<https://kubernetes.io/docs/concepts/storage/volumes/#csi>): volumes that drivers of others mount. [`wanted`] says what a
//! driver is asked for; here is the order of it. What was asked is written down before it is asked: drivers take every request twice.

mod api;
pub mod driver;
pub mod growth;
mod records;
pub mod wanted;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::{OwnedMutexGuard, watch};

use self::api::{UnpublishRequest, UnstageRequest};
use self::driver::{Driver, Refusal};
pub use self::records::Size;
use self::records::{Record, Records};
use self::wanted::{Life, Mode, Request, Wanted};
use crate::machine;
use crate::model::PodUid;
use crate::plugin::registry::{Handler, Plugin};
use crate::runtime::{is_mount_point, volumes};
use crate::turns::Turns;

/// Below the kubelet's folder.
const ROOT: &str = "plugins/kubernetes.io/csi";

/// One for a node.
#[derive(Debug)]
pub struct Csi {
    /// By name.
    drivers: Mutex<BTreeMap<String, Driver>>,
    /// Whose turn it is to work on a volume of a driver's: two pods may have it.
    turns: Turns<(String, String)>,
    records: Records,
    /// Counts drivers that came and went, and volumes to be asked for again, or that may grow.
    changed: watch::Sender<u64>,
    /// Where drivers look for the kubelet's folders.
    root: PathBuf,
    /// This life of the machine.
    boot: String,
}

impl Csi {
    /// `root`: where drivers look for the kubelet's folders. Knows what an agent before this one has written down below `lib`.
    pub fn open(root: PathBuf, lib: &Path) -> Arc<Self> {
        let records = Records::open(lib.join("csi"));
        let (drivers, turns, changed) = (Mutex::default(), Turns::default(), watch::Sender::new(0));
        Arc::new(Self { drivers, turns, records, changed, root, boot: machine::boot_id() })
    }

    /// Hears when drivers come and go, and when there is a volume to be asked for again, or that may grow.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The drivers by name.
    pub fn drivers(&self) -> BTreeMap<String, Driver> {
        self.lock().clone()
    }

    /// Whether anything of a driver's is there for a pod.
    pub fn has(&self, uid: &PodUid) -> bool {
        self.records.of(uid).is_some()
    }

    /// The pods that have something of a driver's.
    pub fn pods(&self) -> Vec<PodUid> {
        self.records.pods()
    }

    /// The pods with volumes whose drivers want to be asked again from time to time.
    pub fn to_be_republished(&self) -> Vec<PodUid> {
        let wants = |uid: &PodUid| self.records.of(uid).is_some_and(|all| all.values().any(|r| r.mounted && r.republish));
        self.records.pods().into_iter().filter(wants).collect()
    }

    /// The pods with volumes that may become larger.
    pub fn may_grow(&self) -> Vec<PodUid> {
        let grows = |record: &Record| record.persistent && record.mounted;
        self.records.pods().into_iter().filter(|uid| self.records.of(uid).is_some_and(|all| all.values().any(grows))).collect()
    }

    /// Whether a driver wants to be told when a volume is to be larger on the node.
    pub fn expands(&self, driver: &str) -> bool {
        self.lock().get(driver).is_some_and(|driver| driver.can.expand)
    }

    /// How large a mounted volume is here, if it may become larger.
    pub fn size(&self, uid: &PodUid, wanted: &Wanted) -> Option<Size> {
        Some(self.records.get(uid, &wanted.name).filter(|record| record.persistent && record.mounted)?.size)
    }

    /// Keeps how large a volume is here.
    pub fn keep_size(&self, uid: &PodUid, wanted: &Wanted, size: Size) -> Result<(), String> {
        match self.records.get(uid, &wanted.name) {
            Some(record) if record.size != size => self.records.put(uid, &wanted.name, Record { size, ..record }),
            _ => Ok(()),
        }
    }

    /// Tells the driver of a mounted volume that it is to be so many bytes large. One that isn't mounted any more stays so.
    pub async fn expand(&self, request: Request<'_>, bytes: u64) -> Result<(), Refusal> {
        let Request { pod, wanted, .. } = request;
        let _turn = self.turn(&wanted.driver, &wanted.handle).await;
        let Some(record) = self.records.get(pod.uid(), &wanted.name).filter(|record| record.mounted) else { return Ok(()) };
        let driver = self.driver(&wanted.driver).map_err(Refusal::Unreached)?;
        if !driver.can.expand {
            return Err(Refusal::Unable(wanted.driver.clone()));
        }
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        driver.expand(&request.expand(driver.can, record.staging.as_deref(), &record.target, bytes)).await
    }

    /// Volumes that aren't to be detached now, by Kubernetes' names for them.
    pub fn in_use(&self) -> Vec<String> {
        let persistent = self.records.all().into_iter().filter(|record| record.persistent);
        let mut names: Vec<_> = persistent.map(|r| format!("kubernetes.io/csi/{}^{}", r.driver, r.handle)).collect();
        names.sort();
        names.dedup();
        names
    }

    /// Where a volume of a pod is mounted already, if it is.
    pub fn mounted(&self, uid: &PodUid, wanted: &Wanted) -> Option<PathBuf> {
        let record = self.records.get(uid, &wanted.name).filter(|record| record.mounted)?;
        let there = match record.mode {
            Mode::Filesystem => is_mount_point(&record.target),
            Mode::Block => record.boot == self.boot && is_block_device(&record.target),
        };
        there.then_some(record.target)
    }

    /// Mounts a volume, or finds it. Where it is. An error is the kubelet's, or the driver's own.
    pub async fn mount(&self, request: Request<'_>) -> Result<PathBuf, String> {
        let Request { pod, wanted, driver: spec, .. } = request;
        let _turn = self.turn(&wanted.driver, &wanted.handle).await;
        if let Some(target) = self.mounted(pod.uid(), wanted) {
            return Ok(target);
        }
        wanted.check_life(pod, spec)?;
        let driver = self.driver(&wanted.driver)?;
        let persistent = wanted.life == Life::Persistent;
        let target = self.target(pod.uid(), wanted);
        let staging = (persistent && driver.can.stage).then(|| self.staging(wanted));
        let mut record = Record {
            driver: wanted.driver.clone(),
            handle: wanted.handle.clone(),
            target: target.clone(),
            mode: wanted.mode,
            staging: staging.clone(),
            persistent,
            mounted: false,
            boot: self.boot.clone(),
            size: Size::default(),
            republish: spec.and_then(|spec| spec.requires_republish) == Some(true),
        };
        self.records.put(pod.uid(), &wanted.name, record.clone())?;
        if let Some(staging) = &staging {
            make_folder(staging)?;
            driver.stage(&request.stage(driver.can, staging)).await?;
        }
        make_folder(target.parent().unwrap_or(&target))?;
        driver.publish(&request.publish(driver.can, staging.as_deref(), &target)).await?;
        if wanted.mode == Mode::Block && !is_block_device(&target) {
            return Err(format!("the driver has published no block device at {}", target.display()));
        }
        if wanted.takes_fs_group(spec, driver.can) {
            let (pod, path) = (pod.clone(), target.clone());
            let given = tokio::task::spawn_blocking(move || volumes::give(&pod, &path)).await;
            let failed = |why: String| format!("applyFSGroup failed for vol {}: {why}", wanted.handle);
            given.map_err(|error| failed(error.to_string()))?.map_err(|cause| failed(cause.to_string()))?;
        }
        record.mounted = true;
        let is_followed = record.republish || persistent;
        self.records.put(pod.uid(), &wanted.name, record)?;
        if is_followed {
            self.tell();
        }
        Ok(target)
    }

    /// Tells the driver of a mounted volume anew what it was told. One that isn't mounted any more stays so.
    pub async fn republish(&self, request: Request<'_>) -> Result<(), String> {
        let Request { pod, wanted, .. } = request;
        let _turn = self.turn(&wanted.driver, &wanted.handle).await;
        let Some(record) = self.records.get(pod.uid(), &wanted.name).filter(|record| record.mounted) else { return Ok(()) };
        let driver = self.driver(&wanted.driver)?;
        driver.publish(&request.publish(driver.can, record.staging.as_deref(), &record.target)).await
    }

    /// Takes back all volumes of a pod that runs nothing any more. Goes on past errors; may be repeated until clean. Most pods have none.
    pub async fn unmount(&self, uid: &PodUid) -> Result<(), String> {
        let Some(volumes) = self.records.of(uid) else { return Ok(()) };
        let mut errors = Vec::new();
        for (name, record) in volumes {
            if let Err(error) = self.unmount_one(uid, &name, &record).await {
                errors.push(format!("UnmountVolume.TearDown failed for volume \"{name}\" : {error}"));
            }
        }
        if !errors.is_empty() {
            return Err(errors.join("; "));
        }
        self.records.forget(uid);
        let pod = self.pod(uid);
        for folder in ["volumes/kubernetes.io~csi", "volumes", ""] {
            let _ = fs::remove_dir(pod.join(folder));
        }
        Ok(())
    }

    async fn unmount_one(&self, uid: &PodUid, name: &str, record: &Record) -> Result<(), String> {
        let _turn = self.turn(&record.driver, &record.handle).await;
        let driver = self.driver(&record.driver)?;
        let (volume_id, target_path) = (record.handle.clone(), text(&record.target));
        driver.unpublish(&UnpublishRequest { volume_id: volume_id.clone(), target_path }).await?;
        // The driver's to remove; some don't.
        remove(&record.target)?;
        leave(&record.target, record.mode)?;
        if let Some(staging) = record.staging.as_ref().filter(|path| !self.records.is_staged_for_others(uid, name, path)) {
            driver.unstage(&UnstageRequest { volume_id, staging_target_path: text(staging) }).await?;
            remove(staging)?;
            leave(staging, record.mode)?;
        }
        self.records.remove(uid, name)
    }

    /// Whose turn it is to work on a volume.
    async fn turn(&self, driver: &str, handle: &str) -> OwnedMutexGuard<()> {
        self.turns.take((driver.to_owned(), handle.to_owned())).await
    }

    fn driver(&self, name: &str) -> Result<Driver, String> {
        let missing = || format!("driver name {name} not found in the list of registered CSI drivers");
        self.lock().get(name).cloned().ok_or_else(missing)
    }

    fn pod(&self, uid: &PodUid) -> PathBuf {
        self.root.join("pods").join(uid.as_str())
    }

    /// The kubelet's paths, as drivers know them.
    fn target(&self, uid: &PodUid, wanted: &Wanted) -> PathBuf {
        match wanted.mode {
            Mode::Filesystem => self.pod(uid).join("volumes/kubernetes.io~csi").join(&wanted.name).join("mount"),
            Mode::Block => self.devices().join("publish").join(&wanted.name).join(uid.as_str()),
        }
    }

    fn staging(&self, wanted: &Wanted) -> PathBuf {
        let volume = wanted::staging_folder(&wanted.handle);
        match wanted.mode {
            Mode::Filesystem => self.root.join(ROOT).join(&wanted.driver).join(volume).join("globalmount"),
            Mode::Block => self.devices().join("staging").join(&wanted.name),
        }
    }

    fn devices(&self) -> PathBuf {
        self.root.join(ROOT).join("volumeDevices")
    }

    fn tell(&self) {
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Driver>> {
        self.drivers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handler for Arc<Csi> {
    fn register<'a>(&'a self, plugin: &'a Plugin) -> BoxFuture<'a, Result<(), String>> {
        async move {
            let Plugin { name, endpoint, versions } = plugin;
            if !versions.iter().any(|version| version.trim_start_matches('v').starts_with("1.")) {
                let why = format!("None of the versions specified {versions:?} are supported");
                return Err(format!("validation failed for CSI Driver {name} at endpoint {endpoint}: {why}"));
            }
            let driver = Driver::meet(Path::new(endpoint)).await?;
            tracing::info!(name, node = driver.info.node_id, "a CSI driver has registered");
            self.lock().insert(name.clone(), driver);
            self.tell();
            Ok(())
        }
        .boxed()
    }

    fn deregister(&self, plugin: &Plugin) {
        self.lock().remove(&plugin.name);
        self.tell();
    }
}

/// As requests have paths.
fn text(path: &Path) -> String {
    path.display().to_string()
}

fn make_folder(path: &Path) -> Result<(), String> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o750).create(path);
    made.map_err(|error| format!("make {}: {error}", path.display()))
}

/// A folder only if it is empty, and nothing is mounted there; also a device's file.
fn remove(path: &Path) -> Result<(), String> {
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    if is_mount_point(path) {
        return Err(format!("{} is still mounted", path.display()));
    }
    // Something that is mounted on a file keeps it as a folder's mount does.
    match if found.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) } {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(format!("remove {}: {error}", path.display())),
        _ => Ok(()),
    }
}

/// Removes what was around a place that is gone: a file system's folder is its own, devices share theirs.
fn leave(path: &Path, mode: Mode) -> Result<(), String> {
    let around = path.parent().unwrap_or(path);
    match mode {
        Mode::Filesystem => remove(around),
        Mode::Block => {
            let _ = fs::remove_dir(around);
            Ok(())
        }
    }
}

fn is_block_device(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device())
}
