//! What goes when the disk fills up or somebody says so. Never an image in use, pinned or embedded.

use std::time::Duration;

use super::digest::Digest;
use super::error::{Error, Result};
use super::images::{Image, Images, Inner, blocking};
use super::reference::Reference;
use super::store::{Document, Record};

/// When to clean up, and how far.
#[derive(Debug, Clone, Copy)]
pub struct Thresholds {
    /// Percentage of the disk in use from which on images go.
    pub high_percent: f64,
    /// Percentage down to which they go.
    pub low_percent: f64,
    /// Images that were in use or came more recently stay.
    pub min_age: Duration,
}

impl Default for Thresholds {
    /// The kubelet's.
    fn default() -> Self {
        Self { high_percent: 85.0, low_percent: 80.0, min_age: Duration::from_secs(120) }
    }
}

/// What a clean-up removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Freed {
    /// Names, or ids of those that had none.
    pub images: Vec<String>,
    /// Bytes of layers' files.
    pub bytes: u64,
}

impl Images {
    /// Takes one name away from an image; with its last name, or by its id, the image goes. The answer says what is gone.
    pub async fn remove(&self, name: &str) -> Result<Freed> {
        let (images, name) = (self.clone(), name.to_owned());
        blocking(move || images.inner.remove(&name)).await
    }

    /// Removes images that have lost their names to newer ones, and layers that no image has. What is in use stays.
    pub async fn prune(&self) -> Result<Freed> {
        let images = self.clone();
        blocking(move || images.inner.remove_all(|image| image.names.is_empty())).await
    }

    /// Removes every image that isn't in use.
    pub async fn prune_unused(&self) -> Result<Freed> {
        let images = self.clone();
        blocking(move || images.inner.remove_all(|_| true)).await
    }

    /// One more name for an image.
    pub async fn tag(&self, image: &str, name: &str) -> Result<Image> {
        let reference = Reference::parse(name)?;
        if reference.digest().is_some() {
            return Err(Error::InvalidName { name: name.to_owned(), why: "a new name may not have a digest".into() });
        }
        let id = self.id(image)?;
        let inner = self.inner.clone();
        blocking(move || {
            let full = reference.to_string();
            inner.edit(|index| {
                index.images.values_mut().for_each(|record| record.names.retain(|other| *other != full));
                let record = index.images.get_mut(&id).ok_or_else(|| Error::Absent { name: id.to_string() })?;
                record.names.push(full);
                Ok(())
            })?;
            let image = inner.catalog().by_id(&id).cloned();
            image.ok_or_else(|| Error::Absent { name: id.to_string() })
        })
        .await
    }

    /// Keeps an image from every clean-up, or lets it go again, across restarts.
    pub async fn set_pinned(&self, image: &str, pinned: bool) -> Result<()> {
        let id = self.id(image)?;
        let inner = self.inner.clone();
        blocking(move || {
            inner.edit(|index| {
                let record = index.images.get_mut(&id).ok_or_else(|| Error::Absent { name: id.to_string() })?;
                record.pinned = pinned;
                Ok(())
            })
        })
        .await
    }

    /// Removes images, those first that were unused longest, from `high_percent` of the disk in use down to `low_percent`.
    pub async fn gc(&self, thresholds: Thresholds) -> Result<Freed> {
        let images = self.clone();
        blocking(move || images.inner.collect(thresholds)).await
    }

    /// Manifest, configuration, layers and sizes, for people.
    pub async fn inspect(&self, name: &str) -> Result<serde_json::Value> {
        let id = self.id(name)?;
        let inner = self.inner.clone();
        blocking(move || inner.inspect(&id)).await
    }

    fn id(&self, name: &str) -> Result<Digest> {
        self.inner.catalog().find(name).cloned().ok_or_else(|| Error::Absent { name: name.to_owned() })
    }
}

impl Inner {
    fn remove(&self, name: &str) -> Result<Freed> {
        let id = self.catalog().find(name).cloned().ok_or_else(|| Error::Absent { name: name.to_owned() })?;
        let full = Reference::parse(name).ok().filter(|reference| reference.digest().is_none()).map(|name| name.to_string());
        let manifest = self.edit(|index| {
            let Some(record) = index.images.get_mut(&id) else { return Err(Error::Absent { name: name.to_owned() }) };
            if let Some(full) = full
                && record.names.contains(&full)
                && record.names.len() > 1
            {
                record.names.retain(|other| *other != full);
                return Ok(None);
            }
            self.check_unused(&id, record, name)?;
            Ok(index.images.remove(&id).map(|record| record.manifest))
        })?;
        let mut freed = Freed { images: vec![name.to_owned()], bytes: 0 };
        if let Some(manifest) = manifest {
            self.remove_documents(&id, &manifest);
            freed.bytes = self.sweep();
        }
        Ok(freed)
    }

    fn check_unused(&self, id: &Digest, record: &Record, name: &str) -> Result<()> {
        let by = match (self.pins(id), record.embedded, record.pinned) {
            (0, false, false) => return Ok(()),
            (_, true, _) => "the agent itself (it is embedded)".to_owned(),
            (0, false, true) => "a pin (`pinned`)".to_owned(),
            (users, ..) => format!("{users} containers"),
        };
        Err(Error::InUse { name: name.to_owned(), by })
    }

    fn remove_documents(&self, id: &Digest, manifest: &Digest) {
        self.store.remove_document(Document::Config, id);
        let shared = self.catalog().index.images.values().any(|record| record.manifest == *manifest);
        if !shared {
            self.store.remove_document(Document::Manifest, manifest);
        }
    }

    fn remove_all(&self, unwanted: impl Fn(&Image) -> bool) -> Result<Freed> {
        let candidates: Vec<Image> = self.catalog().images().filter(|image| unwanted(image)).cloned().collect();
        let mut freed = Freed::default();
        for image in candidates {
            self.remove_idle(&image, &mut freed)?;
        }
        freed.bytes += self.sweep();
        Ok(freed)
    }

    /// Removes a whole image, unless somebody needs it.
    fn remove_idle(&self, image: &Image, freed: &mut Freed) -> Result<()> {
        let Ok(id) = image.id.parse::<Digest>() else { return Ok(()) };
        let removed = self.edit(|index| {
            let Some(record) = index.images.get(&id) else { return Ok(None) };
            self.check_unused(&id, record, &image.id)?;
            Ok(index.images.remove(&id).map(|record| record.manifest))
        });
        match removed {
            Ok(Some(manifest)) => {
                self.remove_documents(&id, &manifest);
                freed.images.push(image.names.first().unwrap_or(&image.id).clone());
                Ok(())
            }
            Ok(None) | Err(Error::InUse { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn collect(&self, thresholds: Thresholds) -> Result<Freed> {
        let mut freed = Freed::default();
        if self.store.space()?.1 < thresholds.high_percent {
            return Ok(freed);
        }
        freed.bytes += self.sweep();
        let now = jiff::Timestamp::now();
        let mut candidates: Vec<(jiff::Timestamp, Image)> = {
            let catalog = self.catalog();
            let used = |id: &Digest, record: &Record| self.last_use(id).unwrap_or(record.used).max(record.used);
            let all = catalog.index.images.iter();
            all.filter_map(|(id, record)| Some((used(id, record), catalog.by_id(id)?.clone()))).collect()
        };
        candidates.sort_by_key(|(used, _)| *used);
        for (used, image) in candidates {
            if self.store.space()?.1 <= thresholds.low_percent {
                break;
            }
            let age = Duration::try_from(now.duration_since(used)).unwrap_or_default();
            if age >= thresholds.min_age {
                self.remove_idle(&image, &mut freed)?;
                freed.bytes += self.sweep();
            }
        }
        Ok(freed)
    }

    fn inspect(&self, id: &Digest) -> Result<serde_json::Value> {
        let (record, layers, image) = {
            let catalog = self.catalog();
            let absent = || Error::Absent { name: id.to_string() };
            let record = catalog.index.images.get(id).cloned().ok_or_else(absent)?;
            let sizes: Vec<_> = record
                .layers
                .iter()
                .map(|layer| {
                    let size = catalog.index.layers.get(layer).map(|layer| layer.size);
                    serde_json::json!({"diffId": layer, "size": size, "path": self.store.layer_path(layer)})
                })
                .collect();
            (record, sizes, catalog.by_id(id).cloned().ok_or_else(absent)?)
        };
        let parse = |kind, digest: &Digest| -> Result<serde_json::Value> {
            let bytes = self.store.read_document(kind, digest)?;
            serde_json::from_slice(&bytes).map_err(|error| Error::malformed(digest.to_string(), error))
        };
        Ok(serde_json::json!({
            "id": id,
            "names": record.names,
            "repoDigests": record.repo_digests,
            "created": image.created,
            "pulled": record.pulled,
            "lastUsed": record.used,
            "pinned": record.pinned,
            "embedded": record.embedded,
            "inUseBy": self.pins(id),
            "size": image.size,
            "layers": layers,
            "manifest": parse(Document::Manifest, &record.manifest)?,
            "config": parse(Document::Config, id)?,
        }))
    }
}
