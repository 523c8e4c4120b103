//! The store as the rest of the agent sees it: find, pull, keep, remove. Cheap to clone; may be used from everywhere at once.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use oci_spec::image::{Config, ImageConfiguration};
use tokio::sync::Semaphore;

use super::auth::Credential;
use super::catalog::Catalog;
use super::digest::Digest;
use super::embed::{self, Embedded};
use super::error::{Error, Result};
use super::flight::Flights;
use super::layer::{self, Promise};
use super::progress::Listener;
use super::reference::Reference;
use super::registry::Registries;
use super::settings::Settings;
use super::store::{Document, Index, LayerRecord, Record, Staging, Store};
use super::unpack::{Bounds, Unpacked};
use super::{archive, pull};

/// An image on this machine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Image {
    /// `sha256:…`, the digest of its configuration.
    pub id: String,
    /// Full names with tags. An image whose names went to newer ones has none.
    pub names: Arc<[String]>,
    /// `repository@digest`, of the index or manifest that a registry gave for it.
    pub repo_digests: Arc<[String]>,
    /// What to run, and how.
    pub config: Arc<ImageConfiguration>,
    /// Directories that overlayfs takes as lower layers as they are, lowest first, each once.
    pub layers: Arc<[PathBuf]>,
    /// Bytes of all files in all layers.
    pub size: u64,
    /// When it was built, if it says so.
    pub created: Option<jiff::Timestamp>,
    /// When it came to this machine.
    pub pulled: jiff::Timestamp,
    /// Kept whatever happens.
    pub pinned: bool,
    /// Belongs to the agent itself.
    pub embedded: bool,
}

/// When a registry is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullPolicy {
    /// Each time; what is here already isn't fetched again.
    Always,
    /// Only if the image isn't here.
    IfNotPresent,
    /// Never.
    Never,
}

impl PullPolicy {
    /// From an `imagePullPolicy` that has its default.
    pub fn named(policy: Option<&str>) -> Self {
        match policy {
            Some("Always") => Self::Always,
            Some("Never") => Self::Never,
            _ => Self::IfNotPresent,
        }
    }
}

/// See the module's page.
#[derive(Debug, Clone)]
pub struct Images {
    pub(super) inner: Arc<Inner>,
}

/// Who asks for what with whose credentials: such pulls are one.
pub(super) type PullKey = (String, Vec<Credential>);

#[derive(Debug)]
pub(super) struct Inner {
    pub settings: Settings,
    pub store: Store,
    pub catalog: RwLock<Catalog>,
    /// Held while the index changes.
    writer: Mutex<()>,
    layers: Mutex<HashMap<Digest, LayerState>>,
    pulls: Flights<PullKey, Result<Image>>,
    pub fetches: Flights<Digest, Result<LayerRecord>>,
    /// As many as layers may be in work.
    pub slots: Semaphore,
    uses: Mutex<HashMap<Digest, Use>>,
    pub registries: Arc<Registries>,
}

/// A layer that is there, or wanted.
#[derive(Debug, Default)]
struct LayerState {
    record: Option<LayerRecord>,
    /// Pulls that need it: it isn't swept.
    holds: usize,
}

#[derive(Debug, Default)]
struct Use {
    pins: usize,
    last: Option<jiff::Timestamp>,
}

impl Images {
    /// Takes the store at `settings.root` and reads its index. What an earlier crash left half-made is removed.
    /// Whoever opens it holds the root's lock: there is one agent a root.
    pub fn open(settings: Settings) -> Result<Self> {
        let store = Store::open(&settings.root)?;
        let index = store.read_index()?;
        let inner = Inner {
            slots: Semaphore::new(settings.parallel_layers.max(1)),
            registries: Arc::new(Registries::new(settings.clone())),
            settings,
            store,
            catalog: RwLock::default(),
            writer: Mutex::default(),
            layers: Mutex::default(),
            pulls: Flights::default(),
            fetches: Flights::default(),
            uses: Mutex::default(),
        };
        inner.adopt(index);
        inner.sweep();
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The image of this name (short or full, with tag or digest), id or unambiguous start of an id. From memory alone.
    pub fn resolve(&self, name: &str) -> Option<Image> {
        self.inner.catalog().get(name).cloned()
    }

    /// All images, in no order.
    pub fn list(&self) -> Vec<Image> {
        self.inner.catalog().images().cloned().collect()
    }

    /// The image as the policy wants it. Calls for the same image at the same time share one pull.
    pub async fn ensure(
        &self,
        name: &str,
        policy: PullPolicy,
        credentials: &[Credential],
        progress: Listener<'_>,
    ) -> Result<Image> {
        // A bad name is a bad name under every policy.
        let reference = Reference::parse(name)?;
        match self.present(name, policy) {
            Some(image) => Ok(image),
            None if policy == PullPolicy::Never => Err(Error::NotPresentNever { name: name.to_owned() }),
            None => self.pull_reference(reference, credentials, progress).await,
        }
    }

    /// Whether [`Self::ensure`] would ask a registry.
    pub fn must_be_pulled(&self, name: &str, policy: PullPolicy) -> bool {
        policy != PullPolicy::Never && self.present(name, policy).is_none()
    }

    /// The image, if the policy is content with what is here. No registry has what came with the agent.
    fn present(&self, name: &str, policy: PullPolicy) -> Option<Image> {
        self.resolve(name).filter(|image| image.embedded || policy != PullPolicy::Always)
    }

    /// Asks the registry, and fetches what isn't here.
    pub async fn pull(&self, name: &str, credentials: &[Credential], progress: Listener<'_>) -> Result<Image> {
        self.pull_reference(Reference::parse(name)?, credentials, progress).await
    }

    async fn pull_reference(&self, reference: Reference, credentials: &[Credential], progress: Listener<'_>) -> Result<Image> {
        let key = (reference.to_string(), credentials.to_vec());
        let (images, credentials) = (self.clone(), credentials.to_vec());
        let start = |report| async move { pull::pull(&images, &reference, credentials, report).await };
        self.inner.pulls.join(key, progress, start).await
    }

    /// Takes the images out of a docker-archive, an OCI archive (each also compressed) or an OCI folder.
    pub async fn load(&self, path: impl Into<PathBuf>, progress: Listener<'_>) -> Result<Vec<Image>> {
        archive::load(self, path.into(), progress).await
    }

    /// Puts an image made of a few files into the store, under `name`. It stays through every clean-up. Where the same
    /// image is there already this costs one hash of its bytes.
    pub async fn embed(&self, name: &str, entries: &[Embedded<'_>], config: Config) -> Result<Image> {
        let reference = Reference::parse(name)?;
        let bundle = embed::bundle(name, entries, config, &self.inner.settings.platform)?;
        let full = reference.to_string();
        if let Some(image) = self.inner.catalog().by_id(&bundle.id).filter(|image| image.embedded && image.names.contains(&full))
        {
            return Ok(image.clone());
        }
        let images = self.clone();
        blocking(move || {
            let inner = &images.inner;
            let hold = images.hold(&bundle.diff_id);
            if inner.layer(&bundle.diff_id).is_none() {
                let promise = Promise { blob: None, diff_id: bundle.diff_id.clone() };
                inner.unpack_layer(bundle.layer.as_slice(), &promise)?;
            }
            let image = inner.commit(NewImage {
                id: bundle.id.clone(),
                config: bundle.config,
                manifest: bundle.manifest,
                names: vec![full],
                repo_digests: Vec::new(),
                layers: vec![bundle.diff_id],
                embedded: true,
            });
            drop(hold);
            image
        })
        .await
    }

    /// Marks an image as in use for as long as the guard lives: neither removal nor clean-up touches it.
    pub fn pin(&self, image: &Image) -> Pin {
        let id = image.id.parse().unwrap_or_else(|_| Digest::of(image.id.as_bytes()));
        self.inner.uses().entry(Digest::clone(&id)).or_default().pins += 1;
        Pin { images: self.clone(), id }
    }

    /// Counts one more pull that needs a layer, until the guard is dropped.
    pub(super) fn hold(&self, diff_id: &Digest) -> Hold {
        self.inner.hold(diff_id);
        Hold { images: self.clone(), diff_id: diff_id.clone() }
    }
}

/// An image in use. See [`Images::pin`].
#[derive(Debug)]
pub struct Pin {
    images: Images,
    id: Digest,
}

impl Drop for Pin {
    fn drop(&mut self) {
        if let Some(usage) = self.images.inner.uses().get_mut(&self.id) {
            usage.pins = usage.pins.saturating_sub(1);
            usage.last = Some(jiff::Timestamp::now());
        }
    }
}

/// A layer that a pull needs.
#[derive(Debug)]
pub(super) struct Hold {
    images: Images,
    diff_id: Digest,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.images.inner.release(&self.diff_id);
    }
}

/// An image whose layers are all laid out.
pub(super) struct NewImage {
    pub id: Digest,
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
    pub names: Vec<String>,
    pub repo_digests: Vec<String>,
    /// Lowest first, as the configuration has them.
    pub layers: Vec<Digest>,
    pub embedded: bool,
}

impl Inner {
    pub(super) fn catalog(&self) -> std::sync::RwLockReadGuard<'_, Catalog> {
        self.catalog.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn layers(&self) -> MutexGuard<'_, HashMap<Digest, LayerState>> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn uses(&self) -> MutexGuard<'_, HashMap<Digest, Use>> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether somebody holds a pin on it.
    pub(super) fn pins(&self, id: &Digest) -> usize {
        self.uses().get(id).map_or(0, |usage| usage.pins)
    }

    /// When it was last in use, as far as this process knows.
    pub(super) fn last_use(&self, id: &Digest) -> Option<jiff::Timestamp> {
        self.uses().get(id).and_then(|usage| usage.last)
    }

    pub(super) fn hold(&self, diff_id: &Digest) {
        self.layers().entry(diff_id.clone()).or_default().holds += 1;
    }

    pub(super) fn release(&self, diff_id: &Digest) {
        if let Some(state) = self.layers().get_mut(diff_id) {
            state.holds = state.holds.saturating_sub(1);
        }
    }

    /// A layer that is laid out and verified.
    pub(super) fn layer(&self, diff_id: &Digest) -> Option<LayerRecord> {
        self.layers().get(diff_id)?.record.clone()
    }

    /// Takes over what an earlier process left. An image of which something is missing is forgotten: it can be pulled again.
    fn adopt(&self, mut index: Index) {
        let mut configs = HashMap::new();
        index.images.retain(|id, record| {
            let whole = record.layers.iter().all(|layer| self.store.layer_path(layer).is_dir());
            let config = self.store.read_document(Document::Config, id).ok().and_then(|bytes| parse_config(&bytes).ok());
            if let Some(config) = config.filter(|_| whole) {
                configs.insert(id.clone(), Arc::new(config));
                true
            } else {
                tracing::warn!(image = %id, names = ?record.names, "image is damaged on disk and was forgotten: pull it again");
                false
            }
        });
        retain_used_layers(&mut index);
        let mut layers = self.layers();
        for (diff_id, record) in &index.layers {
            layers.insert(diff_id.clone(), LayerState { record: Some(record.clone()), holds: 0 });
        }
        drop(layers);
        self.show(index, configs);
    }

    fn show(&self, index: Index, configs: HashMap<Digest, Arc<ImageConfiguration>>) {
        let view = |id: &Digest, record: &Record, index: &Index, config: &Arc<ImageConfiguration>| Image {
            id: id.to_string(),
            names: record.names.clone().into(),
            repo_digests: record.repo_digests.clone().into(),
            config: config.clone(),
            layers: record.layers.iter().map(|layer| self.store.layer_path(layer)).collect(),
            size: record.layers.iter().filter_map(|layer| index.layers.get(layer)).map(|layer| layer.size).sum(),
            created: config.created().as_ref().and_then(|time| time.parse().ok()),
            pulled: record.pulled,
            pinned: record.pinned,
            embedded: record.embedded,
        };
        self.catalog.write().unwrap_or_else(PoisonError::into_inner).replace(index, configs, view);
    }

    /// Changes the index, on disk and then in memory. Blocks.
    pub(super) fn edit<T>(&self, change: impl FnOnce(&mut Index) -> Result<T>) -> Result<T> {
        self.edit_with(None, change)
    }

    fn edit_with<T>(
        &self,
        config: Option<(Digest, Arc<ImageConfiguration>)>,
        change: impl FnOnce(&mut Index) -> Result<T>,
    ) -> Result<T> {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut index, mut configs) = {
            let catalog = self.catalog();
            (catalog.index.clone(), catalog.configs().clone())
        };
        let result = change(&mut index)?;
        configs.extend(config);
        configs.retain(|id, _| index.images.contains_key(id));
        for (id, record) in &mut index.images {
            record.used = self.last_use(id).unwrap_or(record.used).max(record.used);
        }
        retain_used_layers(&mut index);
        self.store.write_index(&index)?;
        self.show(index, configs);
        drop(writer);
        Ok(result)
    }

    /// Verifies and lays out one layer. Blocks.
    pub(super) fn unpack_layer(&self, source: impl std::io::Read + Send, promise: &Promise) -> Result<LayerRecord> {
        let staging = self.store.stage()?;
        let unpacked = layer::lay_out(source, promise, &staging, self.bounds()?)?;
        self.publish_layer(&staging, &promise.diff_id, unpacked)
    }

    pub(super) fn publish_layer(&self, staging: &Staging, diff_id: &Digest, unpacked: Unpacked) -> Result<LayerRecord> {
        let record = LayerRecord { size: unpacked.bytes, implicit: unpacked.implicit };
        // The lock spans the rename, so that a sweep sees either both or neither.
        let mut layers = self.layers();
        self.store.publish(staging, diff_id)?;
        layers.entry(diff_id.clone()).or_default().record = Some(record.clone());
        Ok(record)
    }

    fn bounds(&self) -> Result<Bounds> {
        let limits = &self.settings.limits;
        let (free, _) = self.store.space()?;
        if free < limits.reserve {
            return Err(Error::DiskFull { path: self.store.root().to_owned(), need: limits.reserve - free, free });
        }
        Ok(Bounds { entries: limits.entries, bytes: limits.layer_bytes, reserve: limits.reserve })
    }

    /// Makes an image whose layers are laid out, and held by the caller, durable and visible. Blocks.
    pub(super) fn commit(&self, new: NewImage) -> Result<Image> {
        let mut layers = each_once(&new.layers);
        let restored = self.implicit_directories(&layers)?;
        layers.extend(restored.clone());
        let image = self.record(new, layers);
        if let Some(restored) = restored {
            self.release(&restored);
        }
        image
    }

    fn record(&self, new: NewImage, layers: Vec<Digest>) -> Result<Image> {
        let config = Arc::new(parse_config(&new.config)?);
        let manifest = Digest::of(&new.manifest);
        self.store.write_document(Document::Config, &new.id, &new.config)?;
        self.store.write_document(Document::Manifest, &manifest, &new.manifest)?;
        self.store.sync()?;
        let known: Vec<(Digest, LayerRecord)> =
            layers.iter().filter_map(|layer| Some((layer.clone(), self.layer(layer)?))).collect();
        self.edit_with(Some((new.id.clone(), config)), |index| {
            for name in &new.names {
                index.images.values_mut().for_each(|record| record.names.retain(|other| other != name));
            }
            let now = jiff::Timestamp::now();
            let record = index.images.entry(new.id.clone()).or_insert_with(|| Record {
                names: Vec::new(),
                repo_digests: Vec::new(),
                manifest: manifest.clone(),
                layers: layers.clone(),
                pulled: now,
                used: now,
                pinned: false,
                embedded: false,
            });
            record.manifest = manifest;
            record.layers = layers;
            record.used = now;
            record.embedded |= new.embedded;
            add_new(&mut record.names, new.names);
            add_new(&mut record.repo_digests, new.repo_digests);
            index.layers.extend(known);
            Ok(())
        })?;
        let image = self.catalog().by_id(&new.id).cloned();
        image.ok_or_else(|| Error::Absent { name: new.id.to_string() })
    }

    /// Removes layers and documents that no image has and no pull needs. Blocks.
    pub(super) fn sweep(&self) -> u64 {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted: std::collections::HashSet<Digest> = self.catalog().index.layers.keys().cloned().collect();
        let mut freed = 0;
        for diff_id in self.store.layers_on_disk() {
            let mut layers = self.layers();
            if wanted.contains(&diff_id) || layers.get(&diff_id).is_some_and(|state| state.holds > 0) {
                continue;
            }
            let known = layers.remove(&diff_id).and_then(|state| state.record);
            // Out of its place while locked; a pull that wants it from now on makes it anew.
            match self.store.remove_layer(&diff_id) {
                Ok(()) => freed += known.map_or(0, |record| record.size),
                Err(error) => tracing::warn!(layer = %diff_id, %error, "layer stays"),
            }
        }
        drop(writer);
        freed
    }
}

/// Runs work that blocks where it may.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Error::malformed("image store", format!("a worker thread broke off: {error}"))))
}

pub(super) fn parse_config(bytes: &[u8]) -> Result<ImageConfiguration> {
    serde_json::from_slice(bytes).map_err(|error| Error::malformed("image configuration", error))
}

/// The same layer twice in one image: overlayfs refuses that. The upper one decides everything that the lower one could.
fn each_once(layers: &[Digest]) -> Vec<Digest> {
    let mut seen = std::collections::HashSet::new();
    let mut once: Vec<Digest> = layers.iter().rev().filter(|layer| seen.insert((*layer).clone())).cloned().collect();
    once.reverse();
    once
}

fn add_new(to: &mut Vec<String>, from: Vec<String>) {
    for text in from {
        if !to.contains(&text) {
            to.push(text);
        }
    }
}

fn retain_used_layers(index: &mut Index) {
    let used: std::collections::HashSet<&Digest> = index.images.values().flat_map(|record| &record.layers).collect();
    index.layers.retain(|layer, _| used.contains(layer));
}
