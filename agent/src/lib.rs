//! nodeagent: pods from files or an API server, made real on this node. See ARCHITECTURE.md for the map.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod admission;
pub mod api;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod daemon;
pub mod durable;
pub mod eviction;
mod follow;
pub mod grpc;
pub mod image;
pub mod kubelet;
pub mod machine;
pub mod model;
pub mod plugin;
pub mod pod;
pub mod random;
pub mod runtime;
pub mod service;
pub mod shutdown;
pub mod source;
pub mod tls;
mod turns;
pub mod workload;
