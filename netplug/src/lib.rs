//! The pod network of one node.
#![forbid(unsafe_code)]

mod cidr;
pub mod cni;
mod engine;
mod error;
pub mod ipam;
mod lease;
mod links;
mod netlink;
mod network;
mod nft;
mod settings;

pub use cidr::{Cidr, Span};
pub use error::{Error, PortHolder, Refused};
pub use lease::Lease;
pub use network::{Attached, Attachment, Network, Remove};
pub use nft::Obstacle;
pub use settings::{Isolation, Port, Protocol, Range, Settings};
