//! The kubelet API: what the API server, metrics-server and Prometheus ask of a node, on a TLS port of its own. Streams and logs are
//! `api`'s; who may ask is decided here, by client certificates, TokenReview and SubjectAccessReview. Knows the agent only as a
//! [`Node`](crate::pod::node::Node), and the cluster only as a [`Reviewer`].

pub mod access;
pub mod authority;
mod cache;
mod files;
mod metrics;
pub mod review;
mod route;
mod run;
mod server;
pub mod serving;
mod stats;
pub mod user;

pub use access::Policy;
pub use review::Reviewer;
pub use server::{Options, ServeError, Server};
