//! A node in a box, and words to ask it things: what the end-to-end tests are written in. Knows the agent only from outside: its
//! command line, its files, the machine's state.
//!
//! ```no_run
//! let node = e2e::NodeBox::start();
//! node.put(&e2e::pod("web").runs("web", "serve"));
//! node.pod("web").becomes("Running");
//! ```
#![forbid(unsafe_code)]
// A harness tells its troubles by panicking: that is a test's way to fail.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::missing_panics_doc)]

mod api_server;
mod command;
mod control_plane;
mod debian;
mod eventually;
mod logind;
mod namespaces;
mod node;
mod paths;
mod pod;
mod registry;
mod snapshot;
mod yaml;

pub use api_server::{ApiServer, Asked, Trouble};
pub use command::{Output, Running, feed, run, websocket};
pub use control_plane::{ControlPlane, is_true};
pub use debian::{Debian, package};
pub use eventually::{Patience, eventually};
pub use logind::{Bus, Logind};
pub use namespaces::{INSIDE, Isolated, OUTSIDE, Outside};
pub use node::{Builder, NodeBox};
pub use paths::{binary, plugin, workspace};
pub use pod::{Container, Pod};
pub use registry::{REGISTRY, blob, manifest, registries_conf, replace, start as start_registry, storage};
pub use snapshot::Snapshot;
pub use yaml::{DEMO, Manifest, SHARED, pod};

/// Waits until the condition holds; fails with the text if it never does.
#[macro_export]
macro_rules! assert_eventually {
    ($condition:expr, $($text:tt)+) => {
        $crate::eventually(&format!($($text)+), || if $condition { Ok(()) } else { Err(String::from("not so")) })
    };
    ($condition:expr) => { $crate::assert_eventually!($condition, "{}", stringify!($condition)) };
}
