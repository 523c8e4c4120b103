//! What was done for which container, kept over crashes and reboots: DEL and CHECK need the configuration and the result of the ADD that they
//! undo or look at. The files are those of libcni (`results/NETWORK-CONTAINER-INTERFACE`, kind `cniCacheV1`), with two fields more, which libcni
//! doesn't read. An entry is written before the first plugin runs, so that a crash on the way is found.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    conflist::Conflist,
    error::{self, Error},
    request::{self, Attached},
};
use crate::whole::{self, Outlives};

const KIND: &str = "cniCacheV1";

/// One attachment: a container in a network by an interface.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    kind: String,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// The configuration list, in base64.
    config: String,
    /// `CNI_IFNAME`.
    pub if_name: String,
    /// The network's name.
    pub network_name: String,
    /// `CNI_NETNS`.
    #[serde(rename = "netns", default, skip_serializing_if = "String::is_empty")]
    pub netns: String,
    /// `CNI_ARGS`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) cni_args: Vec<(String, String)>,
    /// What plugins with a capability are told.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub(super) capability_args: Map<String, Value>,
    /// What the last plugin said. None: ADD did not come to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Ours alone: the file that the configuration was read from, for messages.
    #[serde(default)]
    file: PathBuf,
    /// Ours alone: the version that was agreed on.
    #[serde(default)]
    pub(super) version: String,
}

impl Entry {
    /// What is about to be done.
    pub(super) fn new(
        list: &Conflist,
        version: &str,
        (container, interface): (&str, &str),
        netns: &str,
        args: Vec<(String, String)>,
        capabilities: Map<String, Value>,
    ) -> Entry {
        Entry {
            kind: KIND.into(),
            container_id: container.into(),
            config: BASE64.encode(list.body.to_string()),
            if_name: interface.into(),
            network_name: list.name.clone(),
            netns: netns.into(),
            cni_args: args,
            capability_args: capabilities,
            result: None,
            file: list.file.clone(),
            version: version.into(),
        }
    }

    /// What the container got; nothing where ADD did not come to its end.
    pub fn attached(&self) -> Attached {
        let result = self.result.as_ref().and_then(|result| request::attached(result, &self.if_name).ok());
        result.unwrap_or_default()
    }

    /// The configuration that ADD used.
    pub fn conflist(&self) -> Result<Conflist, Error> {
        let broken = |problem: String| Error::config(&self.file, "(as it was when the pod was wired)", problem);
        let text = BASE64.decode(&self.config).map_err(|error| broken(error.to_string()))?;
        Conflist::parse(&self.file, &text)
    }
}

/// The folder.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// What a crash left half-written goes. Nobody else may be at work here.
    pub(super) fn open(dir: &Path) -> Result<Cache, Error> {
        let cache = Cache { dir: dir.join("results") };
        for path in cache.files(|name| name.starts_with('.'))? {
            fs::remove_file(&path).map_err(error::io("remove", &path))?;
        }
        Ok(cache)
    }

    /// Durable when this returns: after a power cut DEL must know what to undo.
    pub(super) fn write(&self, entry: &Entry) -> Result<(), Error> {
        fs::create_dir_all(&self.dir).map_err(error::io("create", &self.dir))?;
        let path = self.path(entry);
        let body = serde_json::to_vec(entry).map_err(|error| error::io("write", &path)(error.into()))?;
        whole::write(&path, &body, 0o600, Outlives::Power).map_err(error::io("write", &path))
    }

    pub(super) fn remove(&self, entry: &Entry) -> Result<(), Error> {
        let path = self.path(entry);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error::io("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    /// All entries.
    pub(super) fn all(&self) -> Result<Vec<Entry>, Error> {
        self.read(|name| !name.starts_with('.'))
    }

    /// Those of one container.
    pub(super) fn of(&self, container: &str) -> Result<Vec<Entry>, Error> {
        let infix = format!("-{container}-");
        let mut found = self.read(|name| !name.starts_with('.') && name.contains(&infix))?;
        found.retain(|entry| entry.container_id == container);
        Ok(found)
    }

    /// One that a power cut left empty or torn is removed: nobody can act on it.
    fn read(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<Entry>, Error> {
        let mut all = Vec::new();
        for path in self.files(wanted)? {
            let text = match fs::read(&path) {
                Ok(text) => text,
                // Removed meanwhile: another pod's end.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(error::io("read", &path)(source)),
            };
            match serde_json::from_slice::<Entry>(&text) {
                Ok(entry) if entry.kind == KIND && self.path(&entry) == path => all.push(entry),
                _ => {
                    tracing::warn!(path = %path.display(), "is no result of CNI plugins: removed");
                    fs::remove_file(&path).map_err(error::io("remove", &path))?;
                }
            }
        }
        all.sort_by(|a, b| (&a.container_id, &a.if_name).cmp(&(&b.container_id, &b.if_name)));
        Ok(all)
    }

    fn files(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>, Error> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(error::io("read the folder", &self.dir)(source)),
        };
        let mut paths = Vec::new();
        for entry in entries {
            let entry = entry.map_err(error::io("read the folder", &self.dir))?;
            if entry.file_name().to_str().is_some_and(&wanted) {
                paths.push(entry.path());
            }
        }
        Ok(paths)
    }

    fn path(&self, entry: &Entry) -> PathBuf {
        self.dir.join(name(entry))
    }
}

/// Of a container and an interface whose names the client has checked.
fn name(entry: &Entry) -> String {
    format!("{}-{}-{}", entry.network_name, entry.container_id, entry.if_name)
}
