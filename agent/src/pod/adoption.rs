//! A file's pod that becomes the API server's as it runs, and back. An API server gives its pods UIDs of its own; here the pod keeps the one
//! that everything of it is named by, and a record says which of that server's pods it is. The record is all that has to outlive a crash:
//! each stage says whose the pod is, and an agent that comes after finishes what the stage asks for.

mod manifest;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::Pod;
use netplug::whole::{self, Outlives};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use super::manager::Whose;
use crate::durable;
use crate::model::{Defaults, PodUid, load};

pub use manifest::{Manifest, NotAsItRuns, Original, different, document, for_the_api_server, manifest};

/// By this annotation a pod of the API server says which offer it takes: nobody else knows the number.
pub const TICKET: &str = "nodeagent.dev/adopts";
/// What a manifest's name ends with once its pods are the API server's.
const ASIDE: &str = "adopted";

/// A pod between file and API server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Adoption {
    uid: String,
    namespace: String,
    name: String,
    ticket: String,
    /// The manifest that it is, or was, of; none: it has always been the API server's.
    file: Option<PathBuf>,
    stage: Stage,
}

/// How far it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Stage {
    /// The file's still; a pod of the API server with the ticket would be it.
    Offered,
    /// The API server's, under this UID.
    #[serde(rename_all = "camelCase")]
    Joined { api_uid: String },
    /// The file's again: the manifest has to be there, and the API server's pod has to go.
    #[serde(rename_all = "camelCase")]
    Returning { api_uid: String, manifest: Manifest },
}

/// What a pod of the API server is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A pod like any other.
    Own(PodUid),
    /// The pod that runs under this UID.
    Adopted(PodUid),
    /// It was that one, which is a file's again.
    Returned(PodUid),
}

/// A pod that the API server's source is to let go of; it answers when it has.
pub type Return = (PodUid, oneshot::Sender<()>);

/// See the module's page.
#[derive(Debug)]
pub struct Adoptions {
    folder: PathBuf,
    defaults: Defaults,
    known: Mutex<HashMap<PodUid, Adoption>>,
    changed: watch::Sender<()>,
    returns: mpsc::UnboundedSender<Return>,
    returned: Mutex<Option<mpsc::UnboundedReceiver<Return>>>,
}

impl Adoptions {
    /// Reads what an agent before this one left, and finishes it: before anybody reads manifests.
    pub fn open(folder: PathBuf, defaults: Defaults) -> Self {
        let (returns, returned) = mpsc::unbounded_channel();
        let known = read(&folder).into_iter().map(|adoption| (PodUid::new(&adoption.uid), adoption)).collect();
        let adoptions = Self {
            folder,
            defaults,
            known: Mutex::new(known),
            changed: watch::Sender::new(()),
            returns,
            returned: Mutex::new(Some(returned)),
        };
        let uids: Vec<PodUid> = adoptions.lock().keys().cloned().collect();
        for uid in uids {
            adoptions.set_aside(&uid);
            if let Err(error) = adoptions.write_manifest(&uid) {
                tracing::warn!(%uid, %error, "the manifest of a pod that is a file's again could not be written");
            }
        }
        adoptions
    }

    /// What manifests leave open.
    pub fn defaults(&self) -> &Defaults {
        &self.defaults
    }

    /// Whose word about a pod counts, where two might have one.
    pub fn whose(&self, uid: &PodUid) -> Option<Whose> {
        match self.lock().get(uid)?.stage {
            Stage::Offered => None,
            Stage::Joined { .. } => Some(Whose::Cluster),
            Stage::Returning { .. } => Some(Whose::Files),
        }
    }

    /// The UID that the API server gave a pod of ours.
    pub fn api_uid(&self, uid: &PodUid) -> Option<String> {
        match &self.lock().get(uid)?.stage {
            Stage::Offered => None,
            Stage::Joined { api_uid } | Stage::Returning { api_uid, .. } => Some(api_uid.clone()),
        }
    }

    /// A file's pod may become the API server's: the ticket for it.
    pub fn offer(&self, uid: &PodUid, pod: &Pod, file: &Path) -> io::Result<String> {
        let (namespace, name) = named(pod);
        let ticket = crate::random::hex::<16>()?;
        let (uid_text, file) = (uid.as_str().to_owned(), Some(file.to_owned()));
        self.put(uid, Adoption { uid: uid_text, namespace, name, ticket: ticket.clone(), file, stage: Stage::Offered })?;
        Ok(ticket)
    }

    /// What the API server's pod of this UID is here. The first look at one that takes an offer makes it so.
    pub fn place(&self, pod: &Pod, api: PodUid) -> Place {
        let found = {
            let known = self.lock();
            let of = |adoption: &&Adoption| match &adoption.stage {
                Stage::Offered => takes(adoption, pod),
                Stage::Joined { api_uid } | Stage::Returning { api_uid, .. } => api_uid == api.as_str(),
            };
            known.values().find(of).cloned()
        };
        let Some(adoption) = found else { return Place::Own(api) };
        let uid = PodUid::new(&adoption.uid);
        match adoption.stage {
            Stage::Returning { .. } => Place::Returned(uid),
            Stage::Joined { .. } => Place::Adopted(uid),
            Stage::Offered => {
                let joined = Adoption { stage: Stage::Joined { api_uid: api.as_str().into() }, ..adoption };
                // By its ticket an agent that comes after finds it as well.
                if let Err(error) = self.put(&uid, joined) {
                    tracing::warn!(%uid, %error, "that a pod is the API server's now could not be noted on the disk");
                }
                Place::Adopted(uid)
            }
        }
    }

    /// Waits until the API server's pod is the one that runs here.
    pub async fn joined(&self, uid: &PodUid) {
        let mut changed = self.changed.subscribe();
        while self.whose(uid) != Some(Whose::Cluster) && changed.changed().await.is_ok() {}
    }

    /// Moves the manifest of a pod aside, once all its pods are the API server's: to `NAME.adopted`.
    pub fn set_aside(&self, uid: &PodUid) {
        let file = match self.lock().get(uid) {
            Some(Adoption { stage: Stage::Joined { .. }, file: Some(file), .. }) => file.clone(),
            _ => return,
        };
        let Ok(text) = fs::read(&file) else { return };
        let loaded = load(&file, &text, &self.defaults);
        let adopted = |uid: &PodUid| self.whose(uid) == Some(Whose::Cluster);
        let whole = loaded.errors.is_empty() && loaded.workloads.is_empty();
        if !whole || !loaded.pods.iter().all(|pod| adopted(pod.uid())) {
            tracing::info!(file = %file.display(), "more than the API server's pods is in the manifest: it stays, and of them it counts no more");
            return;
        }
        let moved = fs::rename(&file, aside(&file)).and_then(|()| durable::sync_folder(file.parent().unwrap_or(Path::new("/"))));
        match moved {
            Ok(()) => {
                tracing::info!(file = %file.display(), "its pods are the API server's now: the manifest is kept as NAME.{ASIDE}");
            }
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "the manifest could not be moved aside; it counts no more");
            }
        }
    }

    /// The manifest that a pod was of.
    pub fn original(&self, uid: &PodUid) -> Option<Original> {
        let path = self.lock().get(uid)?.file.clone()?;
        match fs::read(&path) {
            Ok(text) => Some(Original { path, text, aside: false }),
            Err(_) => fs::read(aside(&path)).ok().map(|text| Original { path, text, aside: true }),
        }
    }

    /// Makes a pod of the API server a file's. From here on the file counts; what the API server has of it goes.
    pub async fn give_back(&self, uid: &PodUid, pod: &Pod, manifest: Manifest) -> Result<(), String> {
        let (namespace, name) = named(pod);
        let api_uid = self.api_uid(uid).unwrap_or_else(|| uid.as_str().into());
        let file = Some(manifest.path.clone());
        let stage = Stage::Returning { api_uid, manifest };
        let adoption = Adoption { uid: uid.as_str().into(), namespace, name, ticket: String::new(), file, stage };
        self.put(uid, adoption).map_err(|error| format!("note it on the disk: {error}"))?;
        let (done, let_go) = oneshot::channel();
        if self.returns.send((uid.clone(), done)).is_ok() {
            // Who shows files' pods to the API server takes it for one from here on.
            let _ = let_go.await;
        }
        self.write_manifest(uid).map_err(|error| format!("write the manifest: {error}"))
    }

    fn write_manifest(&self, uid: &PodUid) -> io::Result<()> {
        let manifest = match self.lock().get(uid) {
            Some(Adoption { stage: Stage::Returning { manifest, .. }, .. }) => manifest.clone(),
            _ => return Ok(()),
        };
        if !manifest.path.exists() {
            let mode = if manifest.secret { 0o600 } else { 0o644 };
            whole::write(&manifest.path, manifest.text.as_bytes(), mode, Outlives::Power)?;
        }
        match manifest.restored.then(|| fs::remove_file(aside(&manifest.path))) {
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Those whom the API server's source is to let go of: now, and later. Once.
    pub fn returning(&self) -> (Vec<PodUid>, Option<mpsc::UnboundedReceiver<Return>>) {
        let known = self.lock();
        let returning = known.iter().filter(|(_, adoption)| matches!(adoption.stage, Stage::Returning { .. }));
        let uids = returning.map(|(uid, _)| uid.clone()).collect();
        (uids, self.returned.lock().unwrap_or_else(PoisonError::into_inner).take())
    }

    /// The namespace and name of a pod.
    pub fn name(&self, uid: &PodUid) -> Option<(String, String)> {
        self.lock().get(uid).map(|adoption| (adoption.namespace.clone(), adoption.name.clone()))
    }

    /// The API server has the pod no more: nothing is left to be known.
    pub fn gone(&self, uid: &PodUid) {
        let mut known = self.lock();
        if known.get(uid).is_none_or(|adoption| adoption.stage == Stage::Offered) {
            return;
        }
        known.remove(uid);
        drop(known);
        if let Err(error) = fs::remove_file(self.path(uid)).and_then(|()| durable::sync_folder(&self.folder)) {
            tracing::warn!(%uid, %error, "the record of an adopted pod could not be removed");
        }
        self.changed.send_replace(());
    }

    fn put(&self, uid: &PodUid, adoption: Adoption) -> io::Result<()> {
        let text = serde_json::to_vec(&adoption)?;
        self.lock().insert(uid.clone(), adoption);
        self.changed.send_replace(());
        durable::private_folder(&self.folder)?;
        durable::write(&self.path(uid), &text)
    }

    fn path(&self, uid: &PodUid) -> PathBuf {
        self.folder.join(format!("{uid}.json"))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PodUid, Adoption>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the API server's pod is what was offered.
fn takes(adoption: &Adoption, pod: &Pod) -> bool {
    let ticket = pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(TICKET));
    named(pod) == (adoption.namespace.clone(), adoption.name.clone()) && ticket == Some(&adoption.ticket)
}

fn named(pod: &Pod) -> (String, String) {
    (pod.metadata.namespace.clone().unwrap_or_else(|| "default".into()), pod.metadata.name.clone().unwrap_or_default())
}

fn aside(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".");
    name.push(ASIDE);
    name.into()
}

fn read(folder: &Path) -> Vec<Adoption> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let files = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.extension().is_some_and(|e| e == "json"));
    let adoption = |path: PathBuf| {
        let read = fs::read(&path).and_then(|text| Ok(serde_json::from_slice(&text)?));
        read.inspect_err(|error| tracing::warn!(file = %path.display(), %error, "the record of an adopted pod can't be read"))
            .ok()
    };
    files.filter_map(adoption).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const MANIFEST: &str =
        "{apiVersion: v1, kind: Pod, metadata: {name: web, uid: here}, spec: {containers: [{name: a, image: i}]}}";

    struct Lab {
        folder: tempfile::TempDir,
    }

    impl Lab {
        fn new() -> Self {
            let lab = Self { folder: tempfile::tempdir().unwrap() };
            fs::write(lab.file(), MANIFEST).unwrap();
            lab
        }
        fn file(&self) -> PathBuf {
            self.folder.path().join("web.yaml")
        }
        fn open(&self) -> Adoptions {
            Adoptions::open(self.folder.path().join("adoptions"), Defaults::default())
        }
        fn joined(&self) -> Adoptions {
            let adoptions = self.open();
            let ticket = adoptions.offer(&here(), &pod("web", ""), &self.file()).unwrap();
            assert_eq!(adoptions.whose(&here()), None, "the file's until somebody takes it");
            assert_eq!(adoptions.place(&pod("web", &ticket), PodUid::new("there")), Place::Adopted(here()));
            adoptions
        }
    }

    fn here() -> PodUid {
        PodUid::new("here")
    }

    fn pod(name: &str, ticket: &str) -> Pod {
        let annotations = json!({ TICKET: ticket });
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "default", "annotations": annotations}})).unwrap()
    }

    #[test]
    fn who_takes_the_offer_is_the_pod_also_under_the_next_agent() {
        let lab = Lab::new();
        let adoptions = lab.joined();
        for adoptions in [adoptions, lab.open()] {
            assert_eq!(adoptions.whose(&here()), Some(Whose::Cluster));
            assert_eq!(adoptions.api_uid(&here()).as_deref(), Some("there"));
            assert_eq!(adoptions.place(&pod("web", ""), PodUid::new("there")), Place::Adopted(here()));
        }
        assert!(!lab.file().exists() && aside(&lab.file()).exists(), "the next agent moves the manifest aside");
    }

    #[test]
    fn nobody_else_is() {
        let lab = Lab::new();
        let adoptions = lab.open();
        let ticket = adoptions.offer(&here(), &pod("web", ""), &lab.file()).unwrap();
        for other in [pod("web", ""), pod("web", "0"), pod("other", &ticket)] {
            assert_eq!(adoptions.place(&other, PodUid::new("x")), Place::Own(PodUid::new("x")));
        }
        adoptions.place(&pod("web", &ticket), PodUid::new("there"));
        assert_eq!(adoptions.place(&pod("web", &ticket), PodUid::new("x")), Place::Own(PodUid::new("x")), "it is taken");
    }

    #[test]
    fn a_manifest_with_more_in_it_stays() {
        let lab = Lab::new();
        fs::write(lab.file(), format!("{MANIFEST}\n---\n{}", MANIFEST.replace("web", "other").replace("here", "another")))
            .unwrap();
        lab.joined().set_aside(&here());
        assert!(lab.file().exists());
    }

    #[tokio::test]
    async fn a_file_has_it_back_and_a_crash_in_between_loses_nothing() {
        let lab = Lab::new();
        let adoptions = lab.joined();
        adoptions.set_aside(&here());
        let manifest = Manifest { path: lab.file(), text: MANIFEST.into(), secret: true, restored: true };
        let (_, returns) = adoptions.returning();
        let mut returns = returns.unwrap();
        let let_go = async {
            let (uid, done) = returns.recv().await.unwrap();
            assert_eq!((uid, adoptions.whose(&here())), (here(), Some(Whose::Files)));
            assert!(!lab.file().exists(), "who follows files doesn't see it before it is let go");
            done.send(()).unwrap();
        };
        tokio::join!(async { adoptions.give_back(&here(), &pod("web", ""), manifest).await.unwrap() }, let_go);
        assert_eq!(fs::read_to_string(lab.file()).unwrap(), MANIFEST);
        assert!(!aside(&lab.file()).exists());
        // As if the agent had ended before it wrote the manifest.
        fs::remove_file(lab.file()).unwrap();
        let next = lab.open();
        assert_eq!(fs::read_to_string(lab.file()).unwrap(), MANIFEST);
        assert_eq!(next.returning().0, [here()]);
        assert_eq!(next.place(&pod("web", ""), PodUid::new("there")), Place::Returned(here()));
        next.gone(&here());
        assert_eq!(lab.open().whose(&here()), None);
    }
}
