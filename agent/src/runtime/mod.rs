//! Makes containers: recipes, volumes, cgroups, the seccomp filter, and the client of the pod's holder.
//! Knows the model and an image's configuration; knows nothing of when or why a container should run.

pub mod cdi;
pub mod cgroup;
mod devices;
mod error;
pub mod files;
pub mod grant;
mod history;
pub mod holder;
pub mod hugepages;
pub mod inspect;
#[cfg(test)]
mod known;
mod log_folder;
mod paths;
mod prepared;
mod readers;
pub mod recipe;
mod record;
mod redact;
mod remove;
pub mod resources;
mod run;
pub mod seccomp;
mod settings;
mod sockets;
mod teardown;
pub mod volumes;

pub use error::{Cause, ConfigError, Error, Place};
pub use holder::Wires;
pub use log_folder::LogFolder;
pub use readers::Reading;
pub use redact::Redaction;
pub use remove::{is_mount_point, remove_tree};
pub use run::{Adopted, Beginning, Runtime, Sandbox, SharedRuntime, StartInput, Started};
pub use settings::{Allocatable, Settings, own_capabilities};
pub use sockets::Sockets;
