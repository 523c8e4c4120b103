//! What drivers were asked for, a file a volume: written before they are asked, so that whoever comes after a crash takes back all of it.
//! No secrets are in it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::wanted::Mode;
use crate::durable;
use crate::model::PodUid;

/// What a driver was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    /// Its name.
    pub driver: String,
    /// Its name for the volume.
    pub handle: String,
    /// Where the pod has it: a folder or a device.
    pub target: PathBuf,
    /// Which of both.
    #[serde(default)]
    pub mode: Mode,
    /// Where it is staged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub staging: Option<PathBuf>,
    /// It lives longer than the pod.
    pub persistent: bool,
    /// All of it was done.
    pub mounted: bool,
    /// How large it is here.
    #[serde(default, skip_serializing_if = "Size::is_unknown")]
    pub size: Size,
    /// In which life of the machine: a device node may outlive that, and be another device then.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub boot: String,
    /// The driver wants to be asked again from time to time.
    #[serde(default)]
    pub republish: bool,
}

/// How large a volume is on this node, which may lag behind the claim.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Size {
    /// So many bytes, as far as the cluster knows; none: nobody has looked since it was mounted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// The claim's version, of which all was done.
    pub seen: String,
    /// The driver has failed to make it larger.
    pub failed: bool,
    /// The driver can't as long as the volume is in use here.
    pub not_in_use: bool,
}

impl Size {
    fn is_unknown(&self) -> bool {
        *self == Self::default()
    }
}

/// Volumes by their names.
pub(super) type Volumes = BTreeMap<String, Record>;

/// All of a node.
#[derive(Debug)]
pub(super) struct Records {
    folder: PathBuf,
    pods: Mutex<BTreeMap<PodUid, Volumes>>,
}

impl Records {
    /// With what an agent before this one has written down.
    pub fn open(folder: PathBuf) -> Self {
        let mut pods = BTreeMap::new();
        for pod in entries(&folder) {
            let Some(uid) = pod.file_name().and_then(|name| name.to_str()) else { continue };
            let volumes = entries(&pod).iter().filter_map(|file| read(file)).collect();
            pods.insert(PodUid::new(uid), volumes);
        }
        Self { folder, pods: Mutex::new(pods) }
    }

    /// The pods that have any.
    pub fn pods(&self) -> Vec<PodUid> {
        self.lock().keys().cloned().collect()
    }

    /// Those of a pod; none: it has never had any.
    pub fn of(&self, uid: &PodUid) -> Option<Volumes> {
        self.lock().get(uid).cloned()
    }

    /// All of them.
    pub fn all(&self) -> Vec<Record> {
        self.lock().values().flat_map(|volumes| volumes.values().cloned()).collect()
    }

    /// One of them.
    pub fn get(&self, uid: &PodUid, name: &str) -> Option<Record> {
        self.lock().get(uid)?.get(name).cloned()
    }

    /// Whether a volume is staged for another one than this too.
    pub fn is_staged_for_others(&self, uid: &PodUid, name: &str, staging: &Path) -> bool {
        let pods = self.lock();
        let mut all = pods.iter().flat_map(|(uid, volumes)| volumes.iter().map(move |(name, record)| (uid, name, record)));
        all.any(|(other, of, record)| (other, of.as_str()) != (uid, name) && record.staging.as_deref() == Some(staging))
    }

    /// Writes one.
    pub fn put(&self, uid: &PodUid, name: &str, record: Record) -> Result<(), String> {
        let folder = self.folder.join(uid.as_str());
        let path = folder.join(format!("{name}.json"));
        let bytes = serde_json::to_vec(&record).unwrap_or_default();
        let written = durable::private_folder(&folder).and_then(|()| durable::write(&path, &bytes));
        written.map_err(|error| format!("write {}: {error}", path.display()))?;
        self.lock().entry(uid.clone()).or_default().insert(name.to_owned(), record);
        Ok(())
    }

    /// Nothing of it is left.
    pub fn remove(&self, uid: &PodUid, name: &str) -> Result<(), String> {
        let folder = self.folder.join(uid.as_str());
        let path = folder.join(format!("{name}.json"));
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(format!("remove {}: {error}", path.display())),
            _ => {}
        }
        if let Some(volumes) = self.lock().get_mut(uid) {
            volumes.remove(name);
        }
        Ok(())
    }

    /// The pod has none any more.
    pub fn forget(&self, uid: &PodUid) {
        self.lock().remove(uid);
        let _ = fs::remove_dir_all(self.folder.join(uid.as_str()));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PodUid, Volumes>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// What a crash left of a file that was being written has another ending.
fn read(file: &Path) -> Option<(String, Record)> {
    let name = file.file_name()?.to_str()?.strip_suffix(".json").filter(|name| !name.starts_with('.'))?;
    Some((name.to_owned(), serde_json::from_slice(&fs::read(file).ok()?).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(staging: &str) -> Record {
        Record {
            driver: "d.com".into(),
            handle: "h".into(),
            target: "/t".into(),
            mode: Mode::Filesystem,
            staging: Some(staging.into()),
            persistent: true,
            mounted: false,
            boot: String::new(),
            size: Size::default(),
            republish: false,
        }
    }

    #[test]
    fn who_comes_after_knows_all_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (PodUid::new("one"), PodUid::new("two"));
        let records = Records::open(folder.path().join("csi"));
        records.put(&one, "disk", record("/s")).unwrap();
        records.put(&two, "pv.of.others", record("/s")).unwrap();
        fs::write(folder.path().join("csi/one/.disk.json.new"), "{").unwrap();
        let records = Records::open(folder.path().join("csi"));
        assert_eq!(records.pods(), [one.clone(), two.clone()]);
        assert_eq!(records.get(&two, "pv.of.others"), Some(record("/s")));
        assert!(records.is_staged_for_others(&one, "disk", Path::new("/s")));
        records.remove(&two, "pv.of.others").unwrap();
        assert!(!records.is_staged_for_others(&one, "disk", Path::new("/s")));
        records.forget(&two);
        records.forget(&one);
        assert_eq!(fs::read_dir(folder.path().join("csi")).unwrap().count(), 0);
        assert_eq!(records.of(&one), None);
    }
}
