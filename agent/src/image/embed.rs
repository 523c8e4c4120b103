//! Images that the agent carries in itself: a few files become a layer, without a registry and without a network.

use std::path::PathBuf;

use oci_spec::image::{Config, Descriptor, ImageConfigurationBuilder, ImageManifestBuilder, MediaType, RootFsBuilder};

use super::digest::Digest;
use super::error::{Error, Result};
use super::settings::Platform;

/// One entry of an embedded image. Parents are made, with 0755.
#[derive(Debug, Clone)]
pub enum Embedded<'a> {
    /// A file, its permissions and its bytes.
    File(PathBuf, u32, &'a [u8]),
    /// A directory and its permissions.
    Directory(PathBuf, u32),
    /// A symbolic link and its target.
    Symlink(PathBuf, PathBuf),
}

/// An image made of bytes alone.
pub(super) struct Bundle {
    pub layer: Vec<u8>,
    pub diff_id: Digest,
    pub config: Vec<u8>,
    pub id: Digest,
    pub manifest: Vec<u8>,
}

/// Builds the same bytes from the same input, always: no times, no owners but root.
pub(super) fn bundle(name: &str, entries: &[Embedded<'_>], config: Config, platform: &Platform) -> Result<Bundle> {
    let malformed = |error: &dyn std::fmt::Display| Error::malformed(format!("embedded image {name}"), error);
    let layer = archive(entries).map_err(|error| malformed(&error))?;
    let diff_id = Digest::of(&layer);
    let rootfs = RootFsBuilder::default()
        .typ("layers".to_owned())
        .diff_ids(vec![diff_id.to_string()])
        .build()
        .map_err(|error| malformed(&error))?;
    let config = ImageConfigurationBuilder::default()
        .architecture(platform.architecture.as_str())
        .os(platform.os.as_str())
        .config(config)
        .rootfs(rootfs)
        .build()
        .map_err(|error| malformed(&error))?;
    // By way of a Value: its maps are sorted, those of the configuration are not, and the id must stay the same.
    let config = serde_json::to_value(&config).and_then(|value| serde_json::to_vec(&value)).map_err(|error| malformed(&error))?;
    let id = Digest::of(&config);
    let descriptor = |kind, bytes: &[u8], digest: &Digest| {
        let digest = oci_spec::image::Digest::try_from(digest.as_str()).map_err(|error| malformed(&error))?;
        Ok(Descriptor::new(kind, bytes.len() as u64, digest))
    };
    let manifest = ImageManifestBuilder::default()
        .schema_version(2_u32)
        .media_type(MediaType::ImageManifest)
        .config(descriptor(MediaType::ImageConfig, &config, &id)?)
        .layers(vec![descriptor(MediaType::ImageLayer, &layer, &diff_id)?])
        .build()
        .map_err(|error| malformed(&error))?;
    let manifest = serde_json::to_vec(&manifest).map_err(|error| malformed(&error))?;
    Ok(Bundle { layer, diff_id, config, id, manifest })
}

fn archive(entries: &[Embedded<'_>]) -> std::io::Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(0);
        header.set_size(0);
        match entry {
            Embedded::File(path, mode, bytes) => {
                header.set_entry_type(tar::EntryType::Regular);
                header.set_mode(*mode);
                header.set_size(bytes.len() as u64);
                builder.append_data(&mut header, relative(path), *bytes)?;
            }
            Embedded::Directory(path, mode) => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(*mode);
                builder.append_data(&mut header, relative(path), std::io::empty())?;
            }
            Embedded::Symlink(path, target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_mode(0o777);
                builder.append_link(&mut header, relative(path), target)?;
            }
        }
    }
    builder.into_inner()
}

fn relative(path: &std::path::Path) -> &std::path::Path {
    path.strip_prefix("/").unwrap_or(path)
}
