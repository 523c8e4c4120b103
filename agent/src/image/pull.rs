//! A pull: name → places → manifest → configuration → layers (each once over all pulls, several at a time) → index.

use std::fmt::Write as _;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream;
use oci_spec::image::ImageManifest;
use tokio::sync::mpsc;

use super::auth::Credential;
use super::digest::Digest;
use super::error::{Error, Result};
use super::flight::Report;
use super::images::{Hold, Image, Images, Inner, NewImage, blocking, parse_config};
use super::layer::Promise;
use super::manifest::{self, Content, Document};
use super::progress::Progress;
use super::reference::Reference;
use super::registry::Session;
use super::settings::Platform;
use super::store::LayerRecord;
use super::transfer::{self, ChunkReader};

/// A manifest for this platform and where it came from.
pub(super) struct Found {
    pub bytes: Vec<u8>,
    pub manifest: ImageManifest,
    /// Of the document that the name stands for, and of those on the way from it.
    pub digests: Vec<Digest>,
}

/// One layer as manifest and configuration have it together.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub content: Content,
    pub diff_id: Digest,
}

pub(super) async fn pull(images: &Images, reference: &Reference, given: Vec<Credential>, report: Report) -> Result<Image> {
    let name = reference.familiar();
    let _ = report.send(Progress::Resolving { name: reference.to_string() });
    let registries = &images.inner.registries;
    let mut sessions = registries.sessions(reference, &given, &report).await?;
    let (at, found) = first_found(&sessions, reference, &registries.settings().platform).await?;
    // Layers come from where the manifest came from; the other places stand by.
    sessions.rotate_left(at);
    let config_content = manifest::content(found.manifest.config(), &name)?;
    let repo_digests = found.digests.iter().map(|digest| reference.at(digest)).collect();
    let names = names(reference);
    let config = match already_here(images, &config_content.digest).await {
        Some(config) => config,
        None => sessions[0].small_blob(&config_content, registries.settings().limits.config).await?,
    };
    let layers = layers(&found.manifest, &config, &name, images)?;
    // From here on no clean-up takes a layer away that we count on.
    let holds: Vec<Hold> = layers.iter().map(|layer| images.hold(&layer.diff_id)).collect();
    check_room(images, &layers)?;
    fetch_all(images, &Arc::new(sessions), &layers, &report).await?;
    let new = NewImage {
        id: config_content.digest,
        config,
        manifest: found.bytes,
        names,
        repo_digests,
        layers: layers.into_iter().map(|layer| layer.diff_id).collect(),
        embedded: false,
    };
    let inner = images.inner.clone();
    let image = blocking(move || {
        let image = inner.commit(new);
        drop(holds);
        image
    })
    .await?;
    let _ = report.send(Progress::Done { id: image.id.clone() });
    Ok(image)
}

/// A name with a digest is the digest's alone: its tag may long stand for something else.
fn names(reference: &Reference) -> Vec<String> {
    if reference.digest().is_some() { Vec::new() } else { vec![reference.to_string()] }
}

/// The configuration, if an image of ours has it.
async fn already_here(images: &Images, id: &Digest) -> Option<Vec<u8>> {
    images.inner.catalog().by_id(id)?;
    let (inner, id) = (images.inner.clone(), id.clone());
    blocking(move || inner.store.read_document(super::store::Document::Config, &id)).await.ok()
}

/// Asks one place after the other. The last word has the registry itself, which is the last place.
async fn first_found(sessions: &[Session], reference: &Reference, platform: &Platform) -> Result<(usize, Found)> {
    let mut refusals = Vec::new();
    for (at, session) in sessions.iter().enumerate() {
        match find(session, reference, platform).await {
            Ok(found) => return Ok((at, found)),
            Err(error) => {
                tracing::debug!(image = %reference, place = session.host(), %error, "no image from this place");
                refusals.push(error);
            }
        }
    }
    let nowhere = || Error::NotFound { name: reference.familiar(), registry: reference.registry().into() };
    Err(verdict(refusals).unwrap_or_else(nowhere))
}

/// The registry's own word. Where it couldn't be reached, what its mirrors said is told too: that is what can be mended.
fn verdict(mut refusals: Vec<Error>) -> Option<Error> {
    let last = refusals.pop()?;
    let Error::Network { registry, mut why } = last else { return Some(last) };
    for mirror in refusals {
        let _ = write!(why, "; its mirror before that: {mirror}");
    }
    Some(Error::Network { registry, why })
}

async fn find(session: &Session, reference: &Reference, platform: &Platform) -> Result<Found> {
    let name = reference.familiar();
    let (mut bytes, digest) = session.manifest(reference.version(), reference.digest()).await?;
    let mut digests = vec![digest];
    for _ in 0..manifest::DEPTH {
        match manifest::parse(&bytes, &format!("manifest of {name}"))? {
            Document::Manifest(manifest) => return Ok(Found { bytes, manifest, digests }),
            Document::Index(index) => {
                let chosen = manifest::choose(&index, platform, &name)?;
                let (next, digest) = session.manifest(chosen.digest.as_str(), Some(&chosen.digest)).await?;
                bytes = next;
                digests.push(digest);
            }
        }
    }
    Err(Error::malformed(format!("manifest of {name}"), format!("indexes in indexes, more than {} deep", manifest::DEPTH)))
}

/// Brings manifest and configuration together, and refuses what can't be run here.
pub(super) fn layers(manifest: &ImageManifest, config: &[u8], name: &str, images: &Images) -> Result<Vec<Layer>> {
    let what = format!("image {name}");
    let kind = manifest.config().media_type().to_string();
    let is_image =
        ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"].contains(&kind.as_str());
    if !is_image && manifest.layers().iter().all(|layer| !layer.media_type().to_string().contains("layer")) {
        return Err(Error::malformed(what, format!("not a container image, but a {kind}")));
    }
    let config = parse_config(config)?;
    check_platform(&config, &images.inner.settings.platform, name)?;
    let diff_ids = config.rootfs().diff_ids();
    let limit = images.inner.settings.limits.layers;
    if manifest.layers().len() > limit {
        return Err(Error::TooLarge {
            what: format!("{what}: its layers"),
            size: manifest.layers().len() as u64,
            limit: limit as u64,
        });
    }
    if diff_ids.len() != manifest.layers().len() {
        let why = format!("{} layers in its manifest, {} in its configuration", manifest.layers().len(), diff_ids.len());
        return Err(Error::malformed(what, why));
    }
    let pairs = manifest.layers().iter().zip(diff_ids);
    pairs
        .map(|(descriptor, diff_id)| {
            let diff_id = diff_id.parse().map_err(|why: String| Error::malformed(what.as_str(), why))?;
            Ok(Layer { content: manifest::content(descriptor, &what)?, diff_id })
        })
        .collect()
}

pub(super) fn check_platform(config: &oci_spec::image::ImageConfiguration, want: &Platform, name: &str) -> Result<()> {
    let own = Platform {
        os: config.os().to_string(),
        architecture: config.architecture().to_string(),
        variant: config.variant().clone().filter(|variant| !variant.is_empty()),
    };
    match want.rank(&own) {
        Some(_) => Ok(()),
        None => Err(Error::PlatformMismatch { name: name.to_owned(), have: own.to_string(), want: want.to_string() }),
    }
}

/// The compressed layers are the least that the disk must hold.
fn check_room(images: &Images, layers: &[Layer]) -> Result<()> {
    let missing = layers.iter().filter(|layer| images.inner.layer(&layer.diff_id).is_none());
    let need = missing.fold(images.inner.settings.limits.reserve, |sum, layer| sum.saturating_add(layer.content.size));
    let (free, _) = images.inner.store.space()?;
    if free < need {
        return Err(Error::DiskFull { path: images.inner.store.root().to_owned(), need: need - free, free });
    }
    Ok(())
}

/// Fetches what isn't here. The first failure stops the others.
async fn fetch_all(images: &Images, sessions: &Arc<Vec<Session>>, layers: &[Layer], report: &Report) -> Result<()> {
    let mut work = stream::iter(layers.to_vec())
        .map(|layer| fetch_once(images.clone(), sessions.clone(), layer, report.clone()))
        .buffer_unordered(images.inner.settings.parallel_layers.max(1));
    while let Some(outcome) = work.next().await {
        outcome?;
    }
    Ok(())
}

/// One layer, unless it is here; together with any other pull that needs it now.
async fn fetch_once(images: Images, sessions: Arc<Vec<Session>>, layer: Layer, report: Report) -> Result<()> {
    let present = images.inner.layer(&layer.diff_id).is_some();
    let (digest, total) = (layer.content.digest.clone(), layer.content.size);
    let _ = report.send(Progress::Layer { digest, total, present });
    if present {
        return Ok(());
    }
    let forward = move |step| drop(report.send(step));
    let (key, inner) = (layer.diff_id.clone(), images.inner.clone());
    images.inner.fetches.join(key, &forward, |report| fetch(inner, sessions, layer, report)).await.map(drop)
}

/// Connection → hash → decompress → hash → unpack, all at once; only the connection is asynchronous.
async fn fetch(inner: Arc<Inner>, sessions: Arc<Vec<Session>>, layer: Layer, report: Report) -> Result<LayerRecord> {
    let _slot = inner.slots.acquire().await.map_err(|error| Error::malformed("image store", error))?;
    // While we waited, or between the look and the flight, another one may have brought it.
    if let Some(record) = inner.layer(&layer.diff_id) {
        return Ok(record);
    }
    let (sink, chunks) = mpsc::channel(transfer::CHUNKS);
    let promise = Promise { blob: Some((layer.content.digest.clone(), layer.content.size)), diff_id: layer.diff_id.clone() };
    let worker = inner.clone();
    let unpacking = blocking(move || worker.unpack_layer(ChunkReader::new(chunks), &promise));
    let (record, ()) = tokio::join!(unpacking, transfer::send(&sessions, &layer.content, sink, &report));
    let record = record?;
    let _ = report.send(Progress::Unpacked { digest: layer.content.digest, bytes: record.size });
    Ok(record)
}
