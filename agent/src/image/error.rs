//! What can go wrong with an image, in the words of a pod's status: what was tried, on what, what came back, what to do.
//! Cheap to clone, because everybody who waits for one pull gets its one error.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// See [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Why an image could not be had, kept or read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The name breaks the rules for image names.
    #[error("image name {name:?} is not valid: {why}")]
    InvalidName {
        /// As it was written.
        name: String,
        /// The rule, and where it broke.
        why: String,
    },
    /// The registry answered, and has no such repository, tag or digest.
    #[error("image {name} not found at {registry}: check the name and tag; a private repository also answers so without a login")]
    NotFound {
        /// The image or blob.
        name: String,
        /// Who answered.
        registry: String,
    },
    /// The registry wants a login, or another one.
    #[error("image {name}: {registry} refused access: {why}; give credentials by imagePullSecrets or `docker login {registry}`")]
    Unauthorized {
        /// The image.
        name: String,
        /// Who answered.
        registry: String,
        /// Its words.
        why: String,
    },
    /// The image exists, for other machines.
    #[error("image {name} has no variant for {want}, only for {have}: use an image built for this platform")]
    PlatformMismatch {
        /// The image.
        name: String,
        /// What there is.
        have: String,
        /// This machine.
        want: String,
    },
    /// The bytes aren't those that were promised.
    #[error(
        "{what}: got {got} where {want} was promised: the registry or the way to it changed the content; nothing of it was kept"
    )]
    DigestMismatch {
        /// A manifest, configuration or layer.
        what: String,
        /// Promised.
        want: String,
        /// Received.
        got: String,
    },
    /// The registry can't be reached, or breaks off, after several tries. Worth another try later.
    #[error("registry {registry} unavailable: {why}; it is tried again later")]
    Network {
        /// Host and port.
        registry: String,
        /// The last failure.
        why: String,
    },
    /// The registry answered with an error that another try won't change.
    #[error("registry {registry} refused {what}: {why}")]
    Refused {
        /// Host and port.
        registry: String,
        /// The request.
        what: String,
        /// Status and message.
        why: String,
    },
    /// registries.conf forbids it.
    #[error("image {name} is blocked by {rule}: remove `blocked = true` there to allow it")]
    Blocked {
        /// The image.
        name: String,
        /// File and prefix.
        rule: String,
    },
    /// No room.
    #[error(
        "no space left at {path}: {need} more bytes needed, {free} free; remove images (`nodeagent image prune`) or enlarge the disk"
    )]
    DiskFull {
        /// The store.
        path: PathBuf,
        /// Bytes, at least.
        need: u64,
        /// Bytes.
        free: u64,
    },
    /// A layer that can't be laid out safely.
    #[error("layer {layer}: entry {entry:?}: {why}")]
    Unpack {
        /// Its digest.
        layer: String,
        /// The path in the archive, escaped where it isn't text.
        entry: String,
        /// What is wrong.
        why: String,
    },
    /// imagePullPolicy Never, and it isn't here.
    #[error(
        "image {name} is not on this machine and imagePullPolicy is Never: load it (`nodeagent image load FILE`) or allow pulling"
    )]
    NotPresentNever {
        /// The image.
        name: String,
    },
    /// A command named an image that isn't in the store.
    #[error("no image {name} on this machine: `nodeagent image ls` shows those that are")]
    Absent {
        /// The name or id.
        name: String,
    },
    /// It can't be removed now.
    #[error("image {name} is in use by {by}")]
    InUse {
        /// The name or id.
        name: String,
        /// Who.
        by: String,
    },
    /// A manifest, configuration or archive that can't be understood.
    #[error("{what}: {why}")]
    Malformed {
        /// Which document.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// A limit that protects the machine.
    #[error("{what} has {size}, more than the limit of {limit}")]
    TooLarge {
        /// Which document.
        what: String,
        /// Bytes, entries or layers.
        size: u64,
        /// Likewise.
        limit: u64,
    },
    /// A configuration file.
    #[error("{}: {why}", path.display())]
    Settings {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A credential helper.
    #[error("credential helper {helper} for {registry}: {why}")]
    Helper {
        /// The executable.
        helper: String,
        /// For whom it was asked.
        registry: String,
        /// What it said.
        why: String,
    },
    /// The kernel said no.
    #[error("{what} {}: {error}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The answer.
        error: Arc<io::Error>,
    },
}

impl Error {
    /// The reason of a waiting container, as Kubernetes names it.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::InvalidName { .. } => "InvalidImageName",
            Self::NotPresentNever { .. } => "ErrImageNeverPull",
            Self::Network { .. } => "RegistryUnavailable",
            _ => "ErrImagePull",
        }
    }

    /// Whether the same request may work at once or a little later, without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Network { .. })
    }

    pub(super) fn io(what: &'static str, path: &Path, error: impl Into<io::Error>) -> Self {
        Self::Io { what, path: path.to_owned(), error: Arc::new(error.into()) }
    }

    pub(super) fn malformed(what: impl Into<String>, why: impl ToString) -> Self {
        Self::Malformed { what: what.into(), why: why.to_string() }
    }

    /// Takes an error of ours back out of an [`io::Error`] that carried it through a `Read`.
    pub(super) fn from_read(error: io::Error, otherwise: impl FnOnce(io::Error) -> Self) -> Self {
        match error.downcast::<Self>() {
            Ok(ours) => ours,
            Err(error) => otherwise(error),
        }
    }
}
