//! The pod network of one node: a bridge, a veth straight into each pod's namespace, addresses, routes, host ports, all by netlink and
//! without executing a program. [`Network`] is the library for an agent that lives on; [`cni`] is the same as a plugin.
//!
//! | module | what | knows |
//! |---|---|---|
//! | `settings`, `cidr` | what is wanted, checked | nobody |
//! | [`ipam`] | which address: pure, O(1) | settings |
//! | `lease` | what pods hold, crash-safe on disk | settings |
//! | `bandwidth`, `tc` | limits, and the traffic control that keeps them: pure | nobody |
//! | `links` | what to ask the kernel about links, addresses, routes: pure | settings |
//! | `service`, `policy` | from services and policies to parts of the table: pure | settings |
//! | [`dns`] | a resolver on the bridge | cidr |
//! | `direct` | from pod to pod past the host's rules: who may, and the program for it | settings, lease |
//! | `sockets` | from connect() to a Service's endpoint: what is kept, and the programs for it | direct |
//! | `ebpf` | an assembler: pure | nobody |
//! | `nft` | our table as messages; other people's chains, iptables' old tables | settings, lease |
//! | `netlink` | many requests in one send | nobody |
//! | `engine` | ties them; repairs | all of the above |
//! | `picture`, `trace` | what there is, and what would become of a connection: for people | settings, lease |
//! | `network` | the asynchronous handle | engine |
//! | [`cni`] | the plugin | engine |
//! | [`cni::client`] | other people's plugins, executed | nobody but `cni`'s formats |
//!
//! Messages are built with rtnetlink's builders (`LinkMessageBuilder`, `RouteMessageBuilder`) over netlink-packet-route's types. They
//! don't travel by rtnetlink's `Handle`: that sends one request a system call and waits for each answer in a task, which costs a
//! wake-up each; a pod's dozen requests go in a few packets here, whose answers are there when `send` returns. It would also want a
//! tokio reactor in the plugin's process.
#![forbid(unsafe_code)]

mod bandwidth;
mod cidr;
pub mod cni;
mod conntrack;
mod direct;
pub mod dns;
mod ebpf;
mod engine;
mod error;
mod hash;
pub mod ipam;
mod lease;
mod links;
mod netlink;
mod network;
mod nft;
mod picture;
mod policy;
mod service;
mod settings;
mod sockets;
mod tc;
mod trace;
pub mod whole;

pub use bandwidth::{Bandwidth, Rate};
pub use cidr::{Cidr, Span};
pub use engine::{can_go_directly, can_lead_sockets, can_limit_bandwidth, obstacles_to, rules::Rules};
pub use error::{Error, PortHolder, Refused};
pub use lease::Lease;
pub use network::{Attached, Attachment, Network, Remove};
pub use nft::{Hook, Obstacle};
pub use picture::{LinkState, Picture, PodState};
pub use policy::{Allow, Peers, Policy, Ports};
pub use service::Service;
pub use settings::{Isolation, Port, Protocol, Range, RangeField, Settings};
pub use trace::{Flow, Step, Verdict};
