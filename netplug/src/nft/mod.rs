//! Our nftables table: rendered whole in one atomic batch, changed by single map elements, removed at the end.
//! [`wire`] knows nftables' messages, [`rule`] its expressions, [`table`] what stands in ours, [`others`] what in
//! other people's.

pub(crate) mod others;
pub(crate) mod rule;
pub(crate) mod table;
pub(crate) mod wire;

pub use others::Obstacle;
pub(crate) use table::Table;
