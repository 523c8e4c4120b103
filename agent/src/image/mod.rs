//! Container images: names, registries, archives, the store on disk, and its garbage collection.
//! A layer becomes a directory that overlayfs can use as it is; an image is a list of such directories and a configuration.
//! Knows nobody else of the agent.

mod archive;
mod auth;
mod catalog;
mod challenge;
mod digest;
mod embed;
mod error;
mod flight;
mod gc;
mod images;
mod implicit;
mod layer;
mod manifest;
mod pax;
mod program;
mod progress;
pub mod provider;
mod pull;
mod reference;
mod registries;
mod registry;
mod settings;
mod store;
mod tarball;
mod tls;
mod transfer;
mod tree;
mod unpack;

pub use auth::Credential;
pub use digest::Digest;
pub use embed::Embedded;
pub use error::{Error, Result};
pub use gc::{Freed, Thresholds};
pub use images::{Image, Images, Pin, PullPolicy};
pub use progress::Progress;
pub use reference::Reference;
pub use settings::{Limits, Platform, Settings};
