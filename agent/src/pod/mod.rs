//! A pod's life: what should be, what is, and the steps between. Knows model, runtime, image and netplug.

pub mod backoff;
pub mod node;
pub mod observed;
pub mod plan;
pub mod recorder;
pub mod status;
pub mod store;
pub mod trace;

