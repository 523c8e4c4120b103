//! The API server's pods of this node, and all that they refer to, for the times without it: below /var/lib/nodeagent/checkpoints,
//! `pods/UID.json`, and `objects/SHA256.json` which several pods may share. Secrets are in there: root alone can read any of it.
//! One task writes, behind a queue: no start waits for the disk.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service};
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::{uid, wanted};
use crate::durable;
use crate::image::Digest;
use crate::model::{Body, ObjectKind, ObjectRef, Origin, PodUid, ValidObject, references};
use crate::pod::objects::Objects;
use crate::pod::{Node, claims};

/// Changes of a moment are written together: a pod's objects come one by one.
const MOMENT: Duration = Duration::from_millis(100);
/// What could not be written is tried again.
const RETRY: Duration = Duration::from_secs(30);

/// A pod as it was known, and what it refers to.
#[derive(Debug)]
pub(super) struct Checkpoint {
    /// As the API server had it, without status.
    pub pod: Pod,
    /// As far as they were there.
    pub objects: Vec<ValidObject>,
}

/// Tells the writer what has changed. Never waits.
#[derive(Debug, Clone)]
pub(super) struct Checkpoints(mpsc::UnboundedSender<News>);

#[derive(Debug)]
enum News {
    Pod(Arc<Pod>),
    Gone(PodUid),
    Object(ObjectRef),
}

impl Checkpoints {
    /// The writer, and what one before it wrote.
    pub(super) async fn open(node: Arc<Node>) -> (Self, Vec<Checkpoint>) {
        let folder = node.runtime.settings().lib.join("checkpoints");
        let (queue, news) = mpsc::unbounded_channel();
        let place = folder.clone();
        let found = tokio::task::spawn_blocking(move || read(&place)).await.unwrap_or_default();
        tokio::spawn(Writer { folder, node, pods: HashMap::new(), objects: None }.run(news));
        (Self(queue), found)
    }

    /// The pod is this now.
    pub(super) fn keep(&self, pod: &Arc<Pod>) {
        let _ = self.0.send(News::Pod(pod.clone()));
    }

    /// The pod is no more.
    pub(super) fn forget(&self, uid: &PodUid) {
        let _ = self.0.send(News::Gone(uid.clone()));
    }

    /// An object is another, or no more.
    pub(super) fn changed(&self, object: &ObjectRef) {
        let _ = self.0.send(News::Object(object.clone()));
    }
}

/// `pods/UID.json`.
#[derive(Serialize, Deserialize)]
struct PodFile {
    pod: Pod,
    /// Names in `objects`, without `.json`.
    objects: BTreeSet<String>,
}

/// `objects/SHA256.json`: what the name is the digest of.
#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", content = "object")]
enum ObjectFile {
    ConfigMap(Arc<ConfigMap>),
    Secret(Arc<Secret>),
    PersistentVolumeClaim(Arc<PersistentVolumeClaim>),
    Service(Arc<Service>),
    PersistentVolume(Arc<PersistentVolume>),
    RuntimeClass(Arc<RuntimeClass>),
    CsiDriver(Arc<CSIDriver>),
    VolumeAttachment(Arc<VolumeAttachment>),
}

impl ObjectFile {
    /// None: pods don't refer to such.
    fn of(body: &Body) -> Option<Self> {
        match body {
            Body::ConfigMap(object) => Some(Self::ConfigMap(object.clone())),
            Body::Secret(object) => Some(Self::Secret(object.clone())),
            Body::PersistentVolumeClaim(object) => Some(Self::PersistentVolumeClaim(object.clone())),
            Body::Service(object) => Some(Self::Service(object.clone())),
            Body::PersistentVolume(object) => Some(Self::PersistentVolume(object.clone())),
            Body::RuntimeClass(object) => Some(Self::RuntimeClass(object.clone())),
            Body::CsiDriver(object) => Some(Self::CsiDriver(object.clone())),
            Body::VolumeAttachment(object) => Some(Self::VolumeAttachment(object.clone())),
            Body::NetworkPolicy(_) | Body::Namespace(_) => None,
        }
    }

    fn body(self) -> Body {
        match self {
            Self::ConfigMap(object) => Body::ConfigMap(object),
            Self::Secret(object) => Body::Secret(object),
            Self::PersistentVolumeClaim(object) => Body::PersistentVolumeClaim(object),
            Self::Service(object) => Body::Service(object),
            Self::PersistentVolume(object) => Body::PersistentVolume(object),
            Self::RuntimeClass(object) => Body::RuntimeClass(object),
            Self::CsiDriver(object) => Body::CsiDriver(object),
            Self::VolumeAttachment(object) => Body::VolumeAttachment(object),
        }
    }
}

/// Takes up what can be read; what can't is told, and is nothing to the rest.
fn read(folder: &Path) -> Vec<Checkpoint> {
    let mut known: HashMap<String, Option<ValidObject>> = HashMap::new();
    let mut found = Vec::new();
    for path in files(&folder.join("pods")) {
        match read_pod(&path) {
            Ok(file) => {
                let objects = file.objects.iter().filter_map(|name| {
                    known.entry(name.clone()).or_insert_with(|| read_object(&folder.join("objects"), name)).clone()
                });
                found.push(Checkpoint { objects: objects.collect(), pod: file.pod });
            }
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "the checkpoint of a pod can't be read: the pod waits for the API server");
            }
        }
    }
    found
}

fn read_pod(path: &Path) -> io::Result<PodFile> {
    let file: PodFile = serde_json::from_slice(&std::fs::read(path)?)?;
    let named = uid(&file.pod).is_some_and(|uid| path.file_stem() == Some(OsStr::new(uid.as_str())));
    if named { Ok(file) } else { Err(io::Error::other("it is another pod's")) }
}

fn read_object(folder: &Path, name: &str) -> Option<ValidObject> {
    let path = folder.join(format!("{name}.json"));
    let read = || -> io::Result<ObjectFile> {
        let bytes = std::fs::read(&path)?;
        if Digest::of(&bytes).hex() != name {
            return Err(io::Error::other("it isn't what was written"));
        }
        // The error of a value would show it.
        serde_json::from_slice(&bytes).map_err(|_| io::Error::other("it is of another version"))
    };
    match read() {
        Ok(object) => Some(ValidObject::trusted(object.body(), Origin::Api)),
        Err(error) => {
            tracing::warn!(file = %path.display(), %error, "the checkpoint of an object can't be read: pods that need it wait for the API server");
            None
        }
    }
}

/// Files that were written whole.
fn files(folder: &Path) -> Vec<PathBuf> {
    listed(folder, "json")
}

/// Files that a crash left.
fn cut_short(folder: &Path) -> Vec<PathBuf> {
    listed(folder, "new")
}

fn listed(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths.filter(|path| path.extension() == Some(OsStr::new(extension))).collect()
}

struct Writer {
    folder: PathBuf,
    node: Arc<Node>,
    pods: HashMap<PodUid, Kept>,
    /// Names of those that are on the disk; none: nobody has looked.
    objects: Option<HashSet<String>>,
}

struct Kept {
    pod: Arc<Pod>,
    needs: BTreeSet<ObjectRef>,
    /// Its objects' files.
    files: BTreeSet<String>,
    /// Of its own file.
    written: Option<Digest>,
}

impl Kept {
    /// Whether the object is one of those that the pod's start reads.
    fn needs(&self, object: &ObjectRef) -> bool {
        if object.kind != ObjectKind::Service {
            return self.needs.contains(object);
        }
        let namespace = self.pod.metadata.namespace.as_deref().unwrap_or("default");
        object.namespace == namespace || *object == kubernetes()
    }

    /// Those, as far as they are there.
    fn encoded(&self, objects: &Objects, node: &str) -> io::Result<Vec<Vec<u8>>> {
        let namespace = self.pod.metadata.namespace.as_deref().unwrap_or("default");
        let services = objects.services_of(namespace).into_iter().chain(objects.get(&kubernetes()));
        let named: Vec<ValidObject> = self.needs.iter().filter_map(|key| objects.get(key)).collect();
        let behind = named.iter().flat_map(|object| claims::behind(objects, object, node));
        let volumes = behind.filter_map(|key| objects.get(&key));
        let there = named.iter().cloned().chain(volumes).chain(services);
        there
            .filter_map(|object| ObjectFile::of(object.body()))
            .map(|file| serde_json::to_vec(&file).map_err(io::Error::from))
            .collect()
    }
}

fn needs_of(pod: &Pod) -> BTreeSet<ObjectRef> {
    uid(pod).map(|uid| references::of(&wanted(pod, &uid))).unwrap_or_default()
}

/// The API server itself, of which every container's environment tells.
fn kubernetes() -> ObjectRef {
    ObjectRef::new(ObjectKind::Service, "default", "kubernetes")
}

/// What a checkpoint has of a pod besides its spec: the version is of no use after a reboot.
fn kept_metadata(pod: &Pod) -> ObjectMeta {
    ObjectMeta { resource_version: None, ..pod.metadata.clone() }
}

/// Whether their checkpoints are the same.
fn is_of_one_file(one: &Pod, other: &Pod) -> bool {
    one.spec == other.spec && kept_metadata(one) == kept_metadata(other)
}

impl Writer {
    async fn run(mut self, mut news: mpsc::UnboundedReceiver<News>) {
        let mut changed = HashSet::new();
        loop {
            let next = async {
                if changed.is_empty() {
                    news.recv().await
                } else {
                    tokio::time::timeout(RETRY, news.recv()).await.unwrap_or(None)
                }
            };
            match next.await {
                Some(first) => self.hear(first, &mut changed),
                None if changed.is_empty() => return,
                None => {}
            }
            tokio::time::sleep(MOMENT).await;
            while let Ok(more) = news.try_recv() {
                self.hear(more, &mut changed);
            }
            let written = tokio::task::spawn_blocking(move || {
                let failed = self.write(&changed);
                (self, failed)
            });
            let Ok((back, failed)) = written.await else { return };
            (self, changed) = (back, failed);
        }
    }

    /// Adds to `changed` the pods whose checkpoint is another now.
    fn hear(&mut self, news: News, changed: &mut HashSet<PodUid>) {
        match news {
            News::Pod(pod) => {
                let Some(uid) = uid(&pod) else { return };
                match self.pods.get_mut(&uid) {
                    // The echo of a status that we have told.
                    Some(kept) if is_of_one_file(&kept.pod, &pod) => {
                        kept.pod = pod;
                        return;
                    }
                    Some(kept) => (kept.needs, kept.pod) = (needs_of(&pod), pod),
                    None => {
                        let needs = needs_of(&pod);
                        self.pods.insert(uid.clone(), Kept { pod, needs, files: BTreeSet::new(), written: None });
                    }
                }
                changed.insert(uid);
            }
            News::Gone(uid) => {
                self.pods.remove(&uid);
                changed.insert(uid);
            }
            News::Object(object) => {
                let concerned = self.pods.iter().filter(|(_, kept)| kept.needs(&object));
                changed.extend(concerned.map(|(uid, _)| uid.clone()));
            }
        }
    }

    /// Objects first, then the pods that name them, then what nobody names any more goes. Returns the pods that it failed for.
    fn write(&mut self, changed: &HashSet<PodUid>) -> HashSet<PodUid> {
        let mut failed = HashSet::new();
        for uid in changed {
            let written = match self.pods.remove(uid) {
                Some(mut kept) => {
                    let written = self.write_pod(uid, &mut kept);
                    self.pods.insert(uid.clone(), kept);
                    written
                }
                None => self.remove_pod(uid),
            };
            if let Err(error) = written {
                tracing::warn!(%uid, folder = %self.folder.display(), %error,
                    "a pod's checkpoint could not be written: after a reboot without the API server it would be as it was before; it is tried again");
                failed.insert(uid.clone());
            }
        }
        if failed.is_empty()
            && let Err(error) = self.remove_unnamed()
        {
            tracing::warn!(folder = %self.folder.display(), %error, "checkpoints of objects that nobody needs could not be removed");
        }
        failed
    }

    fn write_pod(&mut self, uid: &PodUid, kept: &mut Kept) -> io::Result<()> {
        let pods = self.folder.join("pods");
        durable::private_folder(&pods)?;
        let mut files = BTreeSet::new();
        for bytes in kept.encoded(&self.node.objects.cluster, &self.node.name)? {
            files.insert(self.write_object(&bytes)?);
        }
        let pod = Pod { metadata: kept_metadata(&kept.pod), spec: kept.pod.spec.clone(), status: None };
        let bytes = serde_json::to_vec(&PodFile { pod, objects: files.clone() })?;
        let digest = Digest::of(&bytes);
        if kept.written.as_ref() != Some(&digest) {
            durable::write(&pods.join(format!("{uid}.json")), &bytes)?;
        }
        (kept.files, kept.written) = (files, Some(digest));
        Ok(())
    }

    fn write_object(&mut self, bytes: &[u8]) -> io::Result<String> {
        let folder = self.folder.join("objects");
        if self.objects.is_none() {
            durable::private_folder(&folder)?;
            cut_short(&folder).iter().for_each(|path| drop(std::fs::remove_file(path)));
        }
        let there = self.objects.get_or_insert_with(|| {
            files(&folder).into_iter().filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).collect()
        });
        let name = Digest::of(bytes).hex().to_owned();
        if !there.contains(&name) {
            durable::write(&folder.join(format!("{name}.json")), bytes)?;
            there.insert(name.clone());
        }
        Ok(name)
    }

    fn remove_pod(&self, uid: &PodUid) -> io::Result<()> {
        let pods = self.folder.join("pods");
        match std::fs::remove_file(pods.join(format!("{uid}.json"))) {
            Ok(()) => durable::sync_folder(&pods),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// A Secret is not kept for longer than a pod needs it.
    fn remove_unnamed(&mut self) -> io::Result<()> {
        let Some(there) = &mut self.objects else { return Ok(()) };
        let named: HashSet<&String> = self.pods.values().flat_map(|kept| &kept.files).collect();
        let unnamed: Vec<String> = there.iter().filter(|name| !named.contains(name)).cloned().collect();
        for name in unnamed {
            std::fs::remove_file(self.folder.join("objects").join(format!("{name}.json")))?;
            there.remove(&name);
        }
        Ok(())
    }
}
