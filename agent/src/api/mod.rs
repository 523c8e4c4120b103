//! The local API: Kubernetes' own paths and types over HTTP/1.1, so that kubectl and this program's own command line need nothing
//! else. Knows the agent only as a [`Node`](crate::pod::node::Node). Streaming (WebSocket, SPDY) is written over any byte stream,
//! for the kubelet API as well.

pub mod call;
pub mod channels;
pub mod cri;
pub mod descriptor;
mod discovery;
mod edit;
mod events;
pub mod human;
mod images;
mod list;
pub mod logs;
mod nodes;
mod objects;
mod pods;
pub mod portforward;
pub mod query;
pub mod remote;
pub mod reply;
mod route;
mod select;
mod server;
pub mod spdy;
pub mod streams;
pub mod table;
pub mod tls;
mod watch;
pub mod websocket;
mod workloads;

pub use events::seen;
pub use pods::{Summary, summarize};
pub use query::encode;
pub use reply::{ApiError, Body, Response};
pub use server::{Options, ServeError, Server};

/// The group of what Kubernetes lacks.
pub const GROUP: &str = "nodeagent.dev";

/// A header that says which container was taken when none was named.
pub const DEFAULTED: &str = "nodeagent-container";
