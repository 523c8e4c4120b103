//! The node's part of CSI's messages, v1. <https://github.com/container-storage-interface/spec/blob/master/csi.proto>

use std::collections::BTreeMap;
use std::fmt;

/// Names and values.
pub type Map = BTreeMap<String, String>;

/// Nothing: of requests without a field, and of answers that only say that all is well.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Empty {}

/// How a volume is to be used.
#[derive(Clone, PartialEq, prost::Message)]
pub struct VolumeCapability {
    /// As a device. This or `mount`.
    #[prost(message, optional, tag = "1")]
    pub block: Option<Empty>,
    /// As a file system.
    #[prost(message, optional, tag = "2")]
    pub mount: Option<MountVolume>,
    /// By whom.
    #[prost(message, optional, tag = "3")]
    pub access_mode: Option<AccessMode>,
}

/// As a file system.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MountVolume {
    /// Such as `ext4`; empty: the driver's choice.
    #[prost(string, tag = "1")]
    pub fs_type: String,
    /// Options of mount(8).
    #[prost(string, repeated, tag = "2")]
    pub mount_flags: Vec<String>,
    /// The fsGroup, where the driver sees to it.
    #[prost(string, tag = "3")]
    pub volume_mount_group: String,
}

/// By whom a volume is used.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AccessMode {
    /// A number of CSI's.
    #[prost(int32, tag = "1")]
    pub mode: i32,
}

/// Make a volume ready on this node. Secrets are in it: its `Debug` shows nothing.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct StageRequest {
    /// Which.
    #[prost(string, tag = "1")]
    pub volume_id: String,
    /// What its attachment said.
    #[prost(btree_map = "string, string", tag = "2")]
    pub publish_context: Map,
    /// A folder.
    #[prost(string, tag = "3")]
    pub staging_target_path: String,
    /// How it is to be used.
    #[prost(message, optional, tag = "4")]
    pub volume_capability: Option<VolumeCapability>,
    /// Keys.
    #[prost(btree_map = "string, string", tag = "5")]
    pub secrets: Map,
    /// What the PersistentVolume says.
    #[prost(btree_map = "string, string", tag = "6")]
    pub volume_context: Map,
}

impl fmt::Debug for StageRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StageRequest")
    }
}

/// The end of [`StageRequest`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct UnstageRequest {
    /// Which.
    #[prost(string, tag = "1")]
    pub volume_id: String,
    /// The folder.
    #[prost(string, tag = "2")]
    pub staging_target_path: String,
}

/// Mount a volume for a pod. Secrets are in it: its `Debug` shows nothing.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct PublishRequest {
    /// Which.
    #[prost(string, tag = "1")]
    pub volume_id: String,
    /// What its attachment said.
    #[prost(btree_map = "string, string", tag = "2")]
    pub publish_context: Map,
    /// Where it is staged.
    #[prost(string, tag = "3")]
    pub staging_target_path: String,
    /// Where it is wanted: what is above it is there.
    #[prost(string, tag = "4")]
    pub target_path: String,
    /// How it is to be used.
    #[prost(message, optional, tag = "5")]
    pub volume_capability: Option<VolumeCapability>,
    /// Not to be written.
    #[prost(bool, tag = "6")]
    pub readonly: bool,
    /// Keys.
    #[prost(btree_map = "string, string", tag = "7")]
    pub secrets: Map,
    /// What the volume says of itself, and of the pod.
    #[prost(btree_map = "string, string", tag = "8")]
    pub volume_context: Map,
}

impl fmt::Debug for PublishRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PublishRequest")
    }
}

/// The end of [`PublishRequest`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct UnpublishRequest {
    /// Which.
    #[prost(string, tag = "1")]
    pub volume_id: String,
    /// Where it is mounted.
    #[prost(string, tag = "2")]
    pub target_path: String,
}

/// A volume has grown elsewhere: on this node, too. Secrets are in it: its `Debug` shows nothing.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct ExpandRequest {
    /// Which.
    #[prost(string, tag = "1")]
    pub volume_id: String,
    /// Where a pod has it.
    #[prost(string, tag = "2")]
    pub volume_path: String,
    /// How large it is to be.
    #[prost(message, optional, tag = "3")]
    pub capacity_range: Option<CapacityRange>,
    /// Where it is staged.
    #[prost(string, tag = "4")]
    pub staging_target_path: String,
    /// How it is used.
    #[prost(message, optional, tag = "5")]
    pub volume_capability: Option<VolumeCapability>,
    /// Keys.
    #[prost(btree_map = "string, string", tag = "6")]
    pub secrets: Map,
}

impl fmt::Debug for ExpandRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ExpandRequest")
    }
}

/// How large a volume may be, in bytes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CapacityRange {
    /// At least.
    #[prost(int64, tag = "1")]
    pub required_bytes: i64,
}

/// What a driver can.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Capabilities {
    /// Each of them.
    #[prost(message, repeated, tag = "1")]
    pub capabilities: Vec<Capability>,
}

/// One of them.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Capability {
    /// A call.
    #[prost(message, optional, tag = "1")]
    pub rpc: Option<Rpc>,
}

/// A call.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Rpc {
    /// A number of CSI's.
    #[prost(int32, tag = "1")]
    pub kind: i32,
}

/// What the node is to a driver.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeInfo {
    /// Its name for it.
    #[prost(string, tag = "1")]
    pub node_id: String,
    /// 0: it doesn't say.
    #[prost(int64, tag = "2")]
    pub max_volumes_per_node: i64,
    /// Where it is.
    #[prost(message, optional, tag = "3")]
    pub accessible_topology: Option<Topology>,
}

/// Where a node is.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Topology {
    /// Labels.
    #[prost(btree_map = "string, string", tag = "1")]
    pub segments: Map,
}
