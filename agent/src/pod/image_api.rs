//! The image store as the API knows it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use tokio::sync::mpsc;

use super::Node;
use super::node::{Answer, ImageSummary, Images, NodeError, PullPhase, PullProgress, Reclaimed};
use crate::image;

/// See the module's page.
pub struct ImageApi {
    node: Arc<Node>,
}

impl ImageApi {
    /// Over the node's store.
    pub fn new(node: Arc<Node>) -> Self {
        Self { node }
    }

    /// How many containers use each image, by its ID.
    fn uses(&self) -> HashMap<String, usize> {
        let mut uses = HashMap::new();
        for live in self.node.live.read().unwrap_or_else(PoisonError::into_inner).values() {
            let live = live.lock().unwrap_or_else(PoisonError::into_inner);
            for (_, attempt) in live.attempts.iter().filter(|(_, a)| a.finish.is_none()) {
                if let Some(image) = self.node.images.resolve(&attempt.note.image) {
                    *uses.entry(image.id).or_default() += 1;
                }
            }
        }
        uses
    }
}

fn summary(image: &image::Image, uses: &HashMap<String, usize>) -> ImageSummary {
    ImageSummary {
        id: image.id.clone(),
        tags: image.names.to_vec(),
        digests: image.repo_digests.to_vec(),
        size: image.size,
        created: image.created.map(|t| t.to_string()),
        pinned: image.pinned || image.embedded,
        in_use: uses.get(&image.id).copied().unwrap_or(0),
    }
}

fn refused(error: &image::Error) -> NodeError {
    let message = error.to_string();
    match error {
        image::Error::NotFound { .. } | image::Error::Absent { .. } => NodeError::NotFound(message),
        image::Error::InvalidName { .. } => NodeError::Invalid(message),
        image::Error::InUse { .. } => NodeError::Conflict(message),
        _ => NodeError::Internal(message),
    }
}

impl Images for ImageApi {
    fn list(&self) -> Answer<'_, Vec<ImageSummary>> {
        async move {
            let uses = self.uses();
            Ok(self.node.images.list().iter().map(|i| summary(i, &uses)).collect())
        }
        .boxed()
    }

    fn inspect<'a>(&'a self, image: &'a str) -> Answer<'a, serde_json::Value> {
        async move { self.node.images.inspect(image).await.map_err(|e| refused(&e)) }.boxed()
    }

    fn pull<'a>(&'a self, image: &'a str, progress: mpsc::Sender<PullProgress>) -> Answer<'a, ImageSummary> {
        async move {
            let totals = Mutex::new(HashMap::new());
            let tell = |step: image::Progress| {
                if let Some(step) = pull_progress(step, &mut totals.lock().unwrap_or_else(PoisonError::into_inner)) {
                    // A slow reader loses steps, never the pull its speed.
                    let _ = progress.try_send(step);
                }
            };
            let logins = self.node.logins_for(image).await;
            let image = self.node.images.pull(image, &logins, &tell).await.map_err(|e| refused(&e))?;
            Ok(summary(&image, &self.uses()))
        }
        .boxed()
    }

    fn load<'a>(&'a self, archive: &'a Path) -> Answer<'a, Vec<ImageSummary>> {
        async move {
            let images = self.node.images.load(archive, &|_| ()).await.map_err(|e| refused(&e))?;
            let uses = self.uses();
            Ok(images.iter().map(|i| summary(i, &uses)).collect())
        }
        .boxed()
    }

    fn remove<'a>(&'a self, image: &'a str) -> Answer<'a, Reclaimed> {
        async move { self.node.images.remove(image).await.map(reclaimed).map_err(|e| refused(&e)) }.boxed()
    }

    fn prune(&self) -> Answer<'_, Reclaimed> {
        async move { self.node.images.prune_unused().await.map(reclaimed).map_err(|e| refused(&e)) }.boxed()
    }
}

fn reclaimed(freed: image::Freed) -> Reclaimed {
    Reclaimed { removed: freed.images, bytes: freed.bytes }
}

/// The store's words to the API's; `totals` remembers how large each layer is as it travels.
fn pull_progress(step: image::Progress, totals: &mut HashMap<String, u64>) -> Option<PullProgress> {
    let (blob, phase, done, total) = match step {
        image::Progress::Layer { digest, total, present: true } => (digest.to_string(), PullPhase::Exists, total, total),
        image::Progress::Layer { digest, total, present: false } => (digest.to_string(), PullPhase::Downloading, 0, total),
        image::Progress::Fetched { digest, done, total } if done < total => {
            (digest.to_string(), PullPhase::Downloading, done, total)
        }
        image::Progress::Fetched { digest, done, total } => (digest.to_string(), PullPhase::Unpacking, done, total),
        image::Progress::Unpacked { digest, .. } => {
            let total = totals.get(&digest.to_string()).copied().unwrap_or(0);
            (digest.to_string(), PullPhase::Complete, total, total)
        }
        _ => return None,
    };
    totals.insert(blob.clone(), total);
    Some(PullProgress { blob, phase, done, total })
}

impl std::fmt::Debug for ImageApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageApi").finish_non_exhaustive()
    }
}
