//! The store on disk.
//!
//! ```text
//!     index.json               which images there are: the only file that decides
//!     configs/sha256/HEX       image configurations, manifests/sha256/HEX manifests, byte by byte as they came
//!     layers/sha256/HEX/       unpacked layers by the digest of their uncompressed archive
//!     tmp/                     layers in the making and trees on their way out; emptied at open
//! ```
//!
//! Durable by order: a layer is laid out in tmp/ and renamed; before an image enters the index, its file system is synced
//! (syncfs: one flush for all of its files). A crash leaves either no image or a whole one; what the index doesn't name is removed at open.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::error::{Error, Result};
use super::tree;

/// index.json.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Index {
    /// By their id, the digest of their configuration.
    pub images: BTreeMap<Digest, Record>,
    /// By diff-id.
    pub layers: BTreeMap<Digest, LayerRecord>,
}

/// One image in the index.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    /// Full names with tags.
    #[serde(default)]
    pub names: Vec<String>,
    /// `repository@digest`.
    #[serde(default)]
    pub repo_digests: Vec<String>,
    /// Its manifest for this platform.
    pub manifest: Digest,
    /// Diff-ids, lowest first, each once.
    pub layers: Vec<Digest>,
    /// When it came.
    pub pulled: jiff::Timestamp,
    /// When it was last wanted.
    pub used: jiff::Timestamp,
    /// Kept whatever happens.
    #[serde(default)]
    pub pinned: bool,
    /// Belongs to the agent itself.
    #[serde(default)]
    pub embedded: bool,
}

/// One layer in the index.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LayerRecord {
    /// Bytes of its files.
    pub size: u64,
    /// Directories that it has, but doesn't describe.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub implicit: Vec<String>,
}

/// The directory, owned by this process.
#[derive(Debug)]
pub(super) struct Store {
    root: PathBuf,
    fd: OwnedFd,
    counter: AtomicU64,
}

/// What of an image is a file by digest.
#[derive(Debug, Clone, Copy)]
pub(super) enum Document {
    Config,
    Manifest,
}

impl Store {
    /// Takes the store, or says who has it, and makes its directories.
    pub(super) fn open(root: &Path) -> Result<Self> {
        for dir in [
            "",
            "configs/sha256",
            "configs/sha512",
            "manifests/sha256",
            "manifests/sha512",
            "layers/sha256",
            "layers/sha512",
            "tmp",
        ] {
            let dir = root.join(dir);
            std::fs::create_dir_all(&dir).map_err(|error| Error::io("make the directory", &dir, error))?;
        }
        let fail = |what| move |errno: Errno| Error::io(what, root, errno);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(root, flags, Mode::empty()).map_err(fail("open"))?;
        // Layers hold set-user-ID programs: nobody but root may reach them.
        rustix::fs::fchmod(&fd, Mode::RWXU).map_err(fail("protect"))?;
        let store = Self { root: root.to_owned(), fd, counter: AtomicU64::new(0) };
        store.clean().map_err(fail("clean up tmp/ in"))?;
        Ok(store)
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Reads the index. One that can't be read is put aside: images can be had again, and the agent must start.
    pub(super) fn read_index(&self) -> Result<Index> {
        let path = self.root.join("index.json");
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Index::default()),
            Err(error) => return Err(Error::io("read", &path, error)),
        };
        serde_json::from_slice(&bytes).or_else(|error| {
            let aside = self.root.join("index.json.damaged");
            tracing::warn!(path = %path.display(), aside = %aside.display(), %error, "image index is damaged: put aside");
            std::fs::rename(&path, &aside).map_err(|error| Error::io("put aside", &path, error))?;
            Ok(Index::default())
        })
    }

    /// Replaces the index: after this, a crash finds the new one; before, the old one.
    pub(super) fn write_index(&self, index: &Index) -> Result<()> {
        let path = self.root.join("index.json");
        let bytes = serde_json::to_vec_pretty(index).map_err(|error| Error::malformed("image index", error))?;
        self.write_durable(&path, &bytes)
    }

    /// Makes everything written before durable.
    pub(super) fn sync(&self) -> Result<()> {
        rustix::fs::syncfs(&self.fd).map_err(|errno| self.failed("sync", &self.root, errno.into()))
    }

    pub(super) fn document_path(&self, kind: Document, digest: &Digest) -> PathBuf {
        let kind = match kind {
            Document::Config => "configs",
            Document::Manifest => "manifests",
        };
        self.root.join(kind).join(digest.algorithm()).join(digest.hex())
    }

    pub(super) fn write_document(&self, kind: Document, digest: &Digest, bytes: &[u8]) -> Result<()> {
        let path = self.document_path(kind, digest);
        if std::fs::metadata(&path).is_ok_and(|there| there.len() == bytes.len() as u64) {
            return Ok(());
        }
        self.write_durable(&path, bytes)
    }

    pub(super) fn read_document(&self, kind: Document, digest: &Digest) -> Result<Vec<u8>> {
        let path = self.document_path(kind, digest);
        std::fs::read(&path).map_err(|error| Error::io("read", &path, error))
    }

    pub(super) fn remove_document(&self, kind: Document, digest: &Digest) {
        let path = self.document_path(kind, digest);
        if let Err(error) = std::fs::remove_file(&path) {
            tracing::debug!(path = %path.display(), %error, "image document stays");
        }
    }

    pub(super) fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.root.join("layers").join(diff_id.algorithm()).join(diff_id.hex())
    }

    /// All layers that are there, whoever wants them.
    pub(super) fn layers_on_disk(&self) -> Vec<Digest> {
        let names = |algorithm: &str| {
            let dir = self.root.join("layers").join(algorithm);
            let algorithm = algorithm.to_owned();
            std::fs::read_dir(dir)
                .into_iter()
                .flatten()
                .flatten()
                .filter_map(move |entry| format!("{algorithm}:{}", entry.file_name().to_string_lossy()).parse().ok())
        };
        names("sha256").chain(names("sha512")).collect()
    }

    /// A place for a layer in the making.
    pub(super) fn stage(&self) -> Result<Staging> {
        let dir = self.fresh();
        let make = |name: &str| -> Result<OwnedFd> {
            let path = dir.join(name);
            std::fs::create_dir_all(&path).map_err(|error| self.failed("make the directory", &path, error))?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(&path, flags, Mode::empty()).map_err(|errno| Error::io("open", &path, errno))
        };
        let (trash, root) = (make("trash")?, make("fs")?);
        // Where an archive has no entry for the root, it is as everywhere.
        rustix::fs::fchmod(&root, Mode::from_raw_mode(0o755)).map_err(|errno| Error::io("protect", &dir, errno))?;
        Ok(Staging { dir, root, trash })
    }

    /// Moves a finished layer to its place.
    pub(super) fn publish(&self, staging: &Staging, diff_id: &Digest) -> Result<()> {
        let path = self.layer_path(diff_id);
        if path.exists() {
            self.remove_layer(diff_id)?;
        }
        std::fs::rename(staging.dir.join("fs"), &path).map_err(|error| self.failed("move a layer to", &path, error))
    }

    /// Takes a layer out of its place at once, and then removes it.
    pub(super) fn remove_layer(&self, diff_id: &Digest) -> Result<()> {
        let (path, out) = (self.layer_path(diff_id), self.fresh());
        match std::fs::rename(&path, &out) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(|error| Error::io("remove the layer", &path, error))?,
        }
        remove_tree(&out);
        Ok(())
    }

    /// Bytes free for us, and the percentage of the disk in use.
    pub(super) fn space(&self) -> Result<(u64, f64)> {
        let disk = rustix::fs::fstatvfs(&self.fd).map_err(|errno| Error::io("look at the disk of", &self.root, errno))?;
        let used = disk.f_blocks.saturating_sub(disk.f_bfree);
        let usable = used + disk.f_bavail;
        let percent = if usable == 0 { 0.0 } else { used as f64 * 100.0 / usable as f64 };
        Ok((disk.f_bavail.saturating_mul(disk.f_frsize), percent))
    }

    /// The error of an operation that needed room.
    pub(super) fn failed(&self, what: &'static str, path: &Path, error: std::io::Error) -> Error {
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOSPC | Errno::DQUOT) => full(&self.root, self.fd.as_fd()),
            _ => Error::io(what, path, error),
        }
    }

    /// A name in tmp/ that nobody has.
    fn fresh(&self) -> PathBuf {
        self.root.join("tmp").join(self.counter.fetch_add(1, Ordering::Relaxed).to_string())
    }

    fn write_durable(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let temporary = self.fresh();
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&temporary)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            std::fs::rename(&temporary, path)?;
            File::open(path.parent().unwrap_or(path))?.sync_all()
        };
        write().map_err(|error| {
            let _ = std::fs::remove_file(&temporary);
            self.failed("write", path, error)
        })
    }

    fn clean(&self) -> std::result::Result<(), Errno> {
        tree::empty(tree::open_dir(self.fd.as_fd(), "tmp")?.as_fd())
    }
}

/// A layer in the making. Dropped, it is gone.
#[derive(Debug)]
pub(super) struct Staging {
    dir: PathBuf,
    root: OwnedFd,
    trash: OwnedFd,
}

impl Staging {
    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    pub(super) fn trash(&self) -> BorrowedFd<'_> {
        self.trash.as_fd()
    }

    /// The error for a disk that is full.
    pub(super) fn full(&self) -> Error {
        full(&self.dir, self.root.as_fd())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        remove_tree(&self.dir);
    }
}

fn full(path: &Path, on: BorrowedFd<'_>) -> Error {
    let free = rustix::fs::fstatvfs(on).map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
    Error::DiskFull { path: path.to_owned(), need: 1, free }
}

fn remove_tree(path: &Path) {
    let remove = || -> std::result::Result<(), Errno> {
        let dir = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        tree::empty(dir.as_fd())?;
        rustix::fs::rmdir(path)
    };
    match remove() {
        Ok(()) | Err(Errno::NOENT) => {}
        // It is in tmp/: the next open tries again.
        Err(error) => tracing::warn!(path = %path.display(), %error, "a directory of the image store can't be removed now"),
    }
}
