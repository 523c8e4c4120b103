//! The images of the store in memory: what a pod's start asks, with no disk in between. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use oci_spec::image::ImageConfiguration;

use super::digest::Digest;
use super::images::Image;
use super::reference::Reference;
use super::store::{Index, Record};

/// The index, and what is looked up in it.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    pub index: Index,
    configs: HashMap<Digest, Arc<ImageConfiguration>>,
    images: HashMap<Digest, Image>,
    names: HashMap<String, Digest>,
}

impl Catalog {
    /// Takes an index over. `image` makes the public view of a record.
    pub(super) fn replace(
        &mut self,
        index: Index,
        configs: HashMap<Digest, Arc<ImageConfiguration>>,
        image: impl Fn(&Digest, &Record, &Index, &Arc<ImageConfiguration>) -> Image,
    ) {
        self.names.clear();
        self.images.clear();
        for (id, record) in &index.images {
            let Some(config) = configs.get(id) else { continue };
            for name in record.names.iter().chain(&record.repo_digests) {
                self.names.insert(name.clone(), id.clone());
            }
            self.images.insert(id.clone(), image(id, record, &index, config));
        }
        self.index = index;
        self.configs = configs;
    }

    pub(super) fn configs(&self) -> &HashMap<Digest, Arc<ImageConfiguration>> {
        &self.configs
    }

    /// By name, by `name@digest`, by id, or by the first digits of an id where only one has them.
    pub(super) fn find(&self, name: &str) -> Option<&Digest> {
        if let Some((id, _)) = name.parse::<Digest>().ok().and_then(|id| self.images.get_key_value(&id)) {
            return Some(id);
        }
        self.by_name(name).or_else(|| self.by_short_id(name))
    }

    pub(super) fn get(&self, name: &str) -> Option<&Image> {
        self.images.get(self.find(name)?)
    }

    pub(super) fn by_id(&self, id: &Digest) -> Option<&Image> {
        self.images.get(id)
    }

    pub(super) fn images(&self) -> impl Iterator<Item = &Image> {
        self.images.values()
    }

    fn by_name(&self, name: &str) -> Option<&Digest> {
        let reference = Reference::parse(name).ok()?;
        match reference.digest() {
            Some(digest) => self.names.get(&reference.at(digest)),
            None => self.names.get(&reference.to_string()),
        }
    }

    fn by_short_id(&self, name: &str) -> Option<&Digest> {
        let digits = name.strip_prefix("sha256:").unwrap_or(name);
        if digits.len() < 4 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let mut matching = self.images.keys().filter(|id| id.hex().starts_with(digits));
        matching.next().filter(|_| matching.next().is_none())
    }
}
