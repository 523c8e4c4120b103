//! A pod's life: what should be, what is, and the steps between. Knows model, runtime, image and netplug.

pub mod node;
pub mod store;
