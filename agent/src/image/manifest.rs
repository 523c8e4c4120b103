//! Manifests, indexes and their choice by platform: OCI's and Docker's second version. Pure.

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};

use super::digest::Digest;
use super::error::{Error, Result};
use super::settings::Platform;

/// What a registry is asked for.
pub(super) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// Indexes inside indexes.
pub(super) const DEPTH: usize = 3;

/// A document that a registry or an archive gave.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // one at a time, and soon taken apart
pub(super) enum Document {
    Index(ImageIndex),
    Manifest(ImageManifest),
}

/// A digest and the size that goes with it.
#[derive(Debug, Clone)]
pub(super) struct Content {
    pub digest: Digest,
    pub size: u64,
}

/// Tells an index from a manifest by what is in it: the media type is optional, and often wrong.
pub(super) fn parse(bytes: &[u8], what: &str) -> Result<Document> {
    let malformed = |error: serde_json::Error| Error::malformed(what, error);
    let value: serde_json::Value = serde_json::from_slice(bytes).map_err(malformed)?;
    if value.get("schemaVersion").and_then(serde_json::Value::as_u64) == Some(1) {
        return Err(Error::malformed(what, "Docker's first manifest format, out of use since 2017: push the image again"));
    }
    match (value.get("manifests").is_some(), value.get("layers").is_some()) {
        (true, false) => serde_json::from_value(value).map(Document::Index).map_err(malformed),
        (false, true) => serde_json::from_value(value).map(Document::Manifest).map_err(malformed),
        (true, true) => Err(Error::malformed(what, "both an index and a manifest: two readers would see two images")),
        (false, false) => Err(Error::malformed(what, "neither an image manifest nor an index of them")),
    }
}

/// The entry of an index for this platform.
pub(super) fn choose(index: &ImageIndex, want: &Platform, name: &str) -> Result<Content> {
    let entries = index.manifests().iter();
    // Attestations stand beside the images, for the platform unknown/unknown.
    let images: Vec<&Descriptor> = entries.filter(|entry| platform(entry).is_none_or(|own| own.os != "unknown")).collect();
    let best = images
        .iter()
        .enumerate()
        .filter_map(|(place, entry)| {
            let rank = match platform(entry) {
                Some(own) => want.rank(&own)?,
                // No word on the platform: the configuration will tell.
                None => u32::MAX,
            };
            Some((rank, place, *entry))
        })
        .min_by_key(|(rank, place, _)| (*rank, *place));
    if let Some((_, _, entry)) = best {
        content(entry, name)
    } else {
        let have: Vec<String> = images.iter().filter_map(|entry| platform(entry)).map(|own| own.to_string()).collect();
        let have = if have.is_empty() { "nothing".into() } else { have.join(", ") };
        Err(Error::PlatformMismatch { name: name.to_owned(), have, want: want.to_string() })
    }
}

fn platform(entry: &Descriptor) -> Option<Platform> {
    let platform = entry.platform().as_ref()?;
    Some(Platform {
        os: platform.os().to_string(),
        architecture: platform.architecture().to_string(),
        variant: platform.variant().clone(),
    })
}

/// A descriptor's digest and size, in our own types.
pub(super) fn content(descriptor: &Descriptor, what: &str) -> Result<Content> {
    let digest = descriptor.digest().to_string().parse().map_err(|why: String| Error::malformed(what, why))?;
    Ok(Content { digest, size: descriptor.size() })
}
