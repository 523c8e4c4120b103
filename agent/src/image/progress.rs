//! What a pull tells those who wait for it. Whether bars or lines come of it is theirs to decide.

use super::digest::Digest;

/// One step of a pull or load. Layers are named by their digest at the registry or in the archive.
#[derive(Debug, Clone)]
pub enum Progress {
    /// The name is being looked up.
    Resolving {
        /// The full name.
        name: String,
    },
    /// A layer will be fetched, or is here already.
    Layer {
        /// Which.
        digest: Digest,
        /// Bytes as they travel.
        total: u64,
        /// Nothing to do for it.
        present: bool,
    },
    /// Bytes of a layer came in.
    Fetched {
        /// Which.
        digest: Digest,
        /// So far.
        done: u64,
        /// Of so many.
        total: u64,
    },
    /// A layer is verified and laid out.
    Unpacked {
        /// Which.
        digest: Digest,
        /// Bytes of its files.
        bytes: u64,
    },
    /// A request failed and is tried again.
    Retrying {
        /// What is fetched.
        what: String,
        /// What happened.
        why: String,
    },
    /// The image is complete.
    Done {
        /// Its id.
        id: String,
    },
}

/// Who listens, inside this module.
pub(super) type Listener<'a> = &'a (dyn Fn(Progress) + Send + Sync);
