//! Images from files: docker-archive, OCI archive, OCI folder. The kind is told by what is in it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::image::{Descriptor, ImageManifest, ImageManifestBuilder, MediaType};
use podholder::beneath;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use serde::Deserialize;

use super::digest::{Digest, Hasher};
use super::error::{Error, Result};
use super::images::{Image, Images, NewImage, blocking, parse_config};
use super::layer::{self, Promise};
use super::manifest::{self, Content, Document};
use super::progress::{Listener, Progress};
use super::pull;
use super::reference::Reference;
use super::tarball::{Entries, Kind, TarError};

/// Files in an archive of images: blobs and a few documents.
const MEMBERS_LIMIT: usize = 100_000;

pub(super) async fn load(images: &Images, path: PathBuf, listener: Listener<'_>) -> Result<Vec<Image>> {
    let (sender, mut steps) = tokio::sync::mpsc::unbounded_channel();
    let images = images.clone();
    let work = blocking(move || {
        let loader =
            Loader { source: Source::open(&images, &path)?, images, path, report: Box::new(move |step| drop(sender.send(step))) };
        loader.load()
    });
    tokio::pin!(work);
    loop {
        tokio::select! {
            biased;
            Some(step) = steps.recv() => listener(step),
            outcome = &mut work => {
                while let Ok(step) = steps.try_recv() {
                    listener(step);
                }
                return outcome;
            }
        }
    }
}

/// Where the members are.
enum Source {
    /// A tar file: offset and size of each.
    Archive { file: Arc<File>, members: HashMap<String, (u64, u64)> },
    /// A folder.
    Folder(std::os::fd::OwnedFd),
}

struct Loader {
    images: Images,
    path: PathBuf,
    source: Source,
    report: Box<dyn Fn(Progress) + Send + Sync>,
}

/// One image of docker-archive's manifest.json.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Source {
    fn open(images: &Images, path: &Path) -> Result<Self> {
        let fail = |what| move |error: io::Error| Error::io(what, path, error);
        let mut file = File::open(path).map_err(fail("open"))?;
        if file.metadata().map_err(fail("look at"))?.is_dir() {
            return Ok(Self::Folder(file.into()));
        }
        let mut magic = [0; 4];
        let read = file.read(&mut magic).map_err(fail("read"))?;
        let compressed = magic.starts_with(&[0x1f, 0x8b]) || magic == [0x28, 0xb5, 0x2f, 0xfd];
        let seekable = file.rewind().is_ok();
        if compressed || !seekable {
            // Members are read in another order than they stand in: that needs a file.
            file = spool(images, io::Cursor::new(magic).take(if seekable { 0 } else { read as u64 }).chain(file), path)?;
        }
        let members = members(&file, path)?;
        Ok(Self::Archive { file: Arc::new(file), members })
    }

    fn read(&self, name: &str) -> io::Result<(Box<dyn Read + Send>, u64)> {
        match self {
            Self::Archive { file, members } => {
                let (offset, size) = *members.get(name.trim_start_matches("./")).ok_or(io::ErrorKind::NotFound)?;
                Ok((Box::new(Slice { file: file.clone(), at: offset, end: offset + size }), size))
            }
            Self::Folder(dir) => {
                let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
                let file = File::from(beneath::open(dir, name, OFlags::RDONLY, resolve)?);
                let size = file.metadata()?.len();
                Ok((Box::new(file), size))
            }
        }
    }

    fn has(&self, name: &str) -> bool {
        self.read(name).is_ok()
    }
}

/// A part of a file, read without moving its position.
struct Slice {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Read for Slice {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// Decompresses into a file without a name.
fn spool(images: &Images, source: impl Read, path: &Path) -> Result<File> {
    let store = &images.inner.store;
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let mut file = File::from(
        rustix::fs::open(store.root(), flags, Mode::RUSR | Mode::WUSR)
            .map_err(|errno| Error::io("make a file in", store.root(), errno))?,
    );
    let (free, _) = store.space()?;
    let most = free.saturating_sub(images.inner.settings.limits.reserve);
    let mut plain = layer::decoder(source).map_err(|error| Error::io("read", path, error))?.take(most);
    let copied = io::copy(&mut plain, &mut file).map_err(|error| store.failed("decompress", path, error))?;
    if copied == most {
        return Err(Error::DiskFull { path: store.root().to_owned(), need: 1, free });
    }
    Ok(file)
}

/// The table of contents of a tar file. Docker's oldest archives hold symbolic links from one layer to its equal.
fn members(file: &File, path: &Path) -> Result<HashMap<String, (u64, u64)>> {
    let fail = |error: TarError| match error {
        TarError::Read(error) => Error::io("read", path, error),
        TarError::Format(why) => Error::malformed(path.display().to_string(), why),
    };
    let position = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let mut entries = Entries::new(Skipping { file, position: position.clone() });
    let mut members = HashMap::new();
    let mut links = Vec::new();
    let length = file.metadata().map_err(|error| Error::io("look at", path, error))?.len();
    while let Some(entry) = entries.next().map_err(fail)? {
        let name = text(&entry.path);
        let at = position.load(std::sync::atomic::Ordering::Relaxed);
        // Also: no sum below overflows.
        if entry.size > length.saturating_sub(at) {
            let why = format!("{name}: {} bytes, of which {} are there", entry.size, length.saturating_sub(at));
            return Err(Error::malformed(path.display().to_string(), why));
        }
        match entry.kind {
            Kind::File => drop(members.insert(name, (at, entry.size))),
            Kind::Symlink | Kind::Hardlink => links.push((name, text(&entry.link), entry.kind)),
            _ => {}
        }
        if members.len() + links.len() > MEMBERS_LIMIT {
            return Err(Error::TooLarge {
                what: format!("{}: its members", path.display()),
                size: MEMBERS_LIMIT as u64 + 1,
                limit: MEMBERS_LIMIT as u64,
            });
        }
        // The data is stepped over, not read.
        let next = at + entry.size.div_ceil(512) * 512;
        entries.skip_without_reading();
        position.store(next, std::sync::atomic::Ordering::Relaxed);
    }
    for (name, target, kind) in links {
        let target = if kind == Kind::Symlink { beside(&name, &target) } else { target };
        if let Some(place) = members.get(&target).copied() {
            members.insert(name, place);
        }
    }
    Ok(members)
}

/// Reads a file at a position that may be moved from outside.
struct Skipping<'a> {
    file: &'a File,
    position: Arc<std::sync::atomic::AtomicU64>,
}

impl Read for Skipping<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let at = self.position.load(std::sync::atomic::Ordering::Relaxed);
        let read = self.file.read_at(buffer, at)?;
        self.position.store(at + read as u64, std::sync::atomic::Ordering::Relaxed);
        Ok(read)
    }
}

fn text(path: &[u8]) -> String {
    String::from_utf8_lossy(path).trim_start_matches("./").to_owned()
}

/// `../ID/layer.tar` beside `OTHER/layer.tar`.
fn beside(name: &str, target: &str) -> String {
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            ".." => drop(parts.pop()),
            "" | "." => {}
            other => parts.push(other),
        }
    }
    parts.join("/")
}

impl Loader {
    fn load(&self) -> Result<Vec<Image>> {
        // Docker writes both since version 25; its own list has the names.
        if self.source.has("manifest.json") {
            return self.docker();
        }
        if self.source.has("index.json") {
            return self.oci();
        }
        let why = "neither manifest.json (docker-archive) nor index.json (OCI): not an archive of images";
        Err(Error::malformed(self.path.display().to_string(), why))
    }

    fn docker(&self) -> Result<Vec<Image>> {
        let limits = &self.images.inner.settings.limits;
        let bytes = self.document("manifest.json", limits.manifest)?;
        let saved: Vec<Saved> = serde_json::from_slice(&bytes).map_err(|error| self.malformed("manifest.json", error))?;
        saved.iter().map(|image| self.docker_image(image)).collect()
    }

    fn docker_image(&self, saved: &Saved) -> Result<Image> {
        let names = saved.repo_tags.iter().flatten();
        let names: Vec<String> = names.map(|name| Reference::parse(name).map(|name| name.to_string())).collect::<Result<_>>()?;
        let what = names.first().cloned().unwrap_or_else(|| saved.config.clone());
        let config_bytes = self.document(&saved.config, self.images.inner.settings.limits.config)?;
        let config = parse_config(&config_bytes)?;
        pull::check_platform(&config, &self.images.inner.settings.platform, &what)?;
        let diff_ids = config.rootfs().diff_ids();
        if diff_ids.len() != saved.layers.len() {
            let why = format!("{} layers in manifest.json, {} in its configuration", saved.layers.len(), diff_ids.len());
            return Err(self.malformed(&what, why));
        }
        self.check_count(&what, diff_ids.len())?;
        let mut layers = Vec::new();
        let mut descriptors = Vec::new();
        let mut holds = Vec::new();
        for (member, diff_id) in saved.layers.iter().zip(diff_ids) {
            let diff_id: Digest = diff_id.parse().map_err(|why: String| self.malformed(&what, why))?;
            holds.push(self.images.hold(&diff_id));
            let size = self.layer(member, &Promise { blob: None, diff_id: diff_id.clone() })?;
            descriptors.push(descriptor(MediaType::ImageLayer, size, &diff_id)?);
            layers.push(diff_id);
        }
        let id = Digest::of(&config_bytes);
        // The archive has no manifest of its own: this one says the same.
        let manifest = ImageManifestBuilder::default()
            .schema_version(2_u32)
            .media_type(MediaType::ImageManifest)
            .config(descriptor(MediaType::ImageConfig, config_bytes.len() as u64, &id)?)
            .layers(descriptors)
            .build()
            .map_err(|error| self.malformed(&what, error))?;
        let manifest = serde_json::to_vec(&manifest).map_err(|error| self.malformed(&what, error))?;
        self.commit(NewImage { id, config: config_bytes, manifest, names, repo_digests: Vec::new(), layers, embedded: false })
    }

    fn oci(&self) -> Result<Vec<Image>> {
        let bytes = self.document("index.json", self.images.inner.settings.limits.manifest)?;
        let Document::Index(index) = manifest::parse(&bytes, "index.json")? else {
            return Err(self.malformed("index.json", "not an index"));
        };
        let mut images = Vec::new();
        let mut other_platform = None;
        for entry in index.manifests() {
            let name = name_of(entry);
            match self.oci_image(&manifest::content(entry, "index.json")?, name) {
                Ok(image) => images.push(image),
                // A folder of many platforms' images: ours are taken.
                Err(error @ Error::PlatformMismatch { .. }) => other_platform = Some(error),
                Err(error) => return Err(error),
            }
        }
        match other_platform {
            Some(error) if images.is_empty() => Err(error),
            _ => Ok(images),
        }
    }

    fn oci_image(&self, content: &Content, name: Option<Reference>) -> Result<Image> {
        let label = name.as_ref().map_or_else(|| self.path.display().to_string(), Reference::familiar);
        let (bytes, manifest, digests) = self.oci_manifest(content.clone(), &label)?;
        let config_content = manifest::content(manifest.config(), &label)?;
        let config = self.blob(&config_content, self.images.inner.settings.limits.config)?;
        let layers = pull::layers(&manifest, &config, &label, &self.images)?;
        let mut holds = Vec::new();
        for layer in &layers {
            holds.push(self.images.hold(&layer.diff_id));
            let promise =
                Promise { blob: Some((layer.content.digest.clone(), layer.content.size)), diff_id: layer.diff_id.clone() };
            self.layer(&blob_path(&layer.content.digest), &promise)?;
        }
        let repo_digests = name.iter().flat_map(|name| digests.iter().map(|digest| name.at(digest))).collect();
        self.commit(NewImage {
            id: config_content.digest,
            config,
            manifest: bytes,
            names: name.iter().filter(|name| name.digest().is_none()).map(Reference::to_string).collect(),
            repo_digests,
            layers: layers.into_iter().map(|layer| layer.diff_id).collect(),
            embedded: false,
        })
    }

    fn oci_manifest(&self, mut content: Content, label: &str) -> Result<(Vec<u8>, ImageManifest, Vec<Digest>)> {
        let mut digests = Vec::new();
        for _ in 0..manifest::DEPTH {
            let bytes = self.blob(&content, self.images.inner.settings.limits.manifest)?;
            digests.push(content.digest);
            match manifest::parse(&bytes, &format!("manifest of {label}"))? {
                Document::Manifest(manifest) => return Ok((bytes, manifest, digests)),
                Document::Index(index) => content = manifest::choose(&index, &self.images.inner.settings.platform, label)?,
            }
        }
        Err(self.malformed(label, "indexes in indexes, too deep"))
    }

    fn commit(&self, new: NewImage) -> Result<Image> {
        let image = self.images.inner.commit(new)?;
        (self.report)(Progress::Done { id: image.id.clone() });
        Ok(image)
    }

    fn check_count(&self, what: &str, layers: usize) -> Result<()> {
        let limit = self.images.inner.settings.limits.layers;
        if layers > limit {
            return Err(Error::TooLarge { what: format!("{what}: its layers"), size: layers as u64, limit: limit as u64 });
        }
        Ok(())
    }

    /// Lays a layer out unless it is here; the size of its member.
    fn layer(&self, member: &str, promise: &Promise) -> Result<u64> {
        let (reader, total) = self.source.read(member).map_err(|error| self.malformed(member, error))?;
        let digest = promise.name().clone();
        let present = self.images.inner.layer(&promise.diff_id).is_some();
        (self.report)(Progress::Layer { digest: digest.clone(), total, present });
        if !present {
            let reader = Told { inner: reader, report: &self.report, digest: digest.clone(), done: 0, told: 0, total };
            let record = self.images.inner.unpack_layer(reader, promise)?;
            (self.report)(Progress::Unpacked { digest, bytes: record.size });
        }
        Ok(total)
    }

    fn document(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        let (reader, size) = self.source.read(name).map_err(|error| self.malformed(name, error))?;
        if size > limit {
            return Err(Error::TooLarge { what: format!("{} in {}", name, self.path.display()), size, limit });
        }
        let mut bytes = Vec::new();
        reader.take(limit).read_to_end(&mut bytes).map_err(|error| Error::io("read", &self.path, error))?;
        Ok(bytes)
    }

    fn blob(&self, content: &Content, limit: u64) -> Result<Vec<u8>> {
        let bytes = self.document(&blob_path(&content.digest), limit)?;
        let mut hasher = Hasher::like(&content.digest);
        hasher.update(&bytes);
        layer::check("blob", content.digest.as_str(), &content.digest, &hasher.finish())?;
        Ok(bytes)
    }

    fn malformed(&self, what: &str, why: impl ToString) -> Error {
        Error::malformed(format!("{}: {what}", self.path.display()), why)
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

fn descriptor(kind: MediaType, size: u64, digest: &Digest) -> Result<Descriptor> {
    let digest =
        oci_spec::image::Digest::try_from(digest.as_str()).map_err(|error| Error::malformed(digest.to_string(), error))?;
    Ok(Descriptor::new(kind, size, digest))
}

/// containerd and Docker write the full name, others a name as the user gave it. A bare tag names nothing.
fn name_of(entry: &Descriptor) -> Option<Reference> {
    let annotations = entry.annotations().as_ref()?;
    let full = annotations.get("io.containerd.image.name");
    let name = full.or_else(|| annotations.get("org.opencontainers.image.ref.name").filter(|name| name.contains([':', '/'])))?;
    Reference::parse(name).ok()
}

/// Tells how far a layer's bytes have been read.
struct Told<'a, R> {
    inner: R,
    report: &'a (dyn Fn(Progress) + Send + Sync),
    digest: Digest,
    done: u64,
    told: u64,
    total: u64,
}

impl<R: Read> Read for Told<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.done += read as u64;
        if self.done - self.told >= 1 << 20 || (read == 0 && self.told < self.done) {
            self.told = self.done;
            (self.report)(Progress::Fetched { digest: self.digest.clone(), done: self.done, total: self.total });
        }
        Ok(read)
    }
}
