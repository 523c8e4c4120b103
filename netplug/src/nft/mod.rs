//! Our nftables table: rendered whole in one atomic batch, changed by single map elements, removed at the end.
//! [`wire`] knows nftables' messages, [`rule`] its expressions, [`set`] its sets, [`fragment`] what differs between two states,
//! [`table`] what stands in ours, [`others`] what in other people's, by their [`chain`]s and by iptables' [`legacy`].

pub(crate) mod chain;
pub(crate) mod fragment;
pub(crate) mod legacy;
pub(crate) mod others;
pub(crate) mod rule;
pub(crate) mod set;
pub(crate) mod table;
pub(crate) mod wire;

pub use chain::Hook;
pub use others::Obstacle;
pub(crate) use table::Table;
