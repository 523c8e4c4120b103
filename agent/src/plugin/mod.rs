//! What others add to a node by the kubelet's plugin APIs. Knows the model, gRPC, and what the runtime makes of it.

pub mod csi;
pub mod device;
pub mod registry;
