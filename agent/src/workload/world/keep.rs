//! A tree over a restart: what of it is kept, and how it is taken up again.

use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};

use super::{Entry, Record, World, make};
use crate::model::{Origin, PodUid, Workload};
use crate::workload::History;

/// A tree as it is kept over a restart.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Saved {
    file: Option<PathBuf>,
    line: usize,
    entries: Vec<SavedEntry>,
    pods: Vec<SavedPod>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SavedEntry {
    object: Workload,
    #[serde(default)]
    owner: Option<String>,
    #[serde(default)]
    history: History,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SavedPod {
    pod: Pod,
    owner: String,
    #[serde(default)]
    counted: bool,
}

impl World {
    /// Takes a tree that an agent before this one kept. False: it isn't one.
    pub fn recall(&mut self, bytes: &[u8]) -> bool {
        let Ok(saved) = serde_json::from_slice::<Saved>(bytes) else { return false };
        let Some(root) = saved.entries.iter().find(|e| e.owner.is_none()).map(|e| e.object.uid().to_owned()) else {
            return false;
        };
        let origin = saved.file.map_or(Origin::Stdin, |path| Origin::File { path, line: saved.line });
        for SavedEntry { object, owner, history } in saved.entries {
            let entry = Entry { owner, root: root.clone(), origin: origin.clone(), history, object };
            self.entries.insert(entry.object.uid().to_owned(), entry);
        }
        for SavedPod { pod, owner, counted } in saved.pods {
            let uid = PodUid::new(pod.metadata.uid.as_deref().unwrap_or_default());
            let record = Record { pod: Arc::new(pod), owner, counted, gone: false, ending: false, unseen: true };
            self.pods.insert(uid, record);
        }
        self.saved.insert(root.clone(), bytes.to_vec());
        self.unnamed.insert(root);
        true
    }

    pub(super) fn save(&mut self, root: &str) {
        let tree = self.tree(root);
        let Some(origin) = self.entries.get(root).map(|e| e.origin.clone()) else { return };
        let (file, line) = match origin {
            Origin::File { path, line } => (Some(path), line),
            Origin::Stdin | Origin::Api => (None, 0),
        };
        let entries = tree.iter().filter_map(|uid| self.entries.get(uid));
        let entries =
            entries.map(|e| SavedEntry { object: e.object.clone(), owner: e.owner.clone(), history: e.history.clone() });
        // A pod that was told to end is not wanted by the next agent either.
        let pods = self.pods.values().filter(|r| tree.contains(&r.owner) && !r.ending && !r.gone);
        let pods = pods.map(|r| SavedPod { pod: make::without_status(&r.pod), owner: r.owner.clone(), counted: r.counted });
        let saved = Saved { file, line, entries: entries.collect(), pods: pods.collect() };
        let Ok(bytes) = serde_json::to_vec(&saved) else { return };
        if self.saved.get(root) != Some(&bytes) {
            self.saved.insert(root.to_owned(), bytes.clone());
            self.effects.saves.insert(root.to_owned(), Some(bytes));
        }
    }
}
