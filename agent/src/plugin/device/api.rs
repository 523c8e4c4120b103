//! The device plugin API's messages, v1beta1.
//! <https://github.com/kubernetes/kubelet/blob/master/pkg/apis/deviceplugin/v1beta1/api.proto>

use std::collections::BTreeMap;

/// The version that plugins must speak.
pub const VERSION: &str = "v1beta1";
/// The word for a device that can be given away.
pub const HEALTHY: &str = "Healthy";

/// Nothing.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Empty {}

/// What a plugin wants to be asked.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Options {
    /// Before each start of a container.
    #[prost(bool, tag = "1")]
    pub pre_start_required: bool,
    /// Which devices go well together.
    #[prost(bool, tag = "2")]
    pub preferred_allocation: bool,
}

/// A plugin tells that it is there.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RegisterRequest {
    /// Of the API.
    #[prost(string, tag = "1")]
    pub version: String,
    /// A socket's name in the plugins' folder.
    #[prost(string, tag = "2")]
    pub endpoint: String,
    /// `vendor.com/device`.
    #[prost(string, tag = "3")]
    pub resource_name: String,
    /// What it wants to be asked.
    #[prost(message, optional, tag = "4")]
    pub options: Option<Options>,
}

/// All its devices.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeviceList {
    /// Each with its ID.
    #[prost(message, repeated, tag = "1")]
    pub devices: Vec<Device>,
}

/// One of them.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Device {
    /// The plugin's name for it.
    #[prost(string, tag = "1")]
    pub id: String,
    /// [`HEALTHY`] or not.
    #[prost(string, tag = "2")]
    pub health: String,
}

/// A container that has these is about to start.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PreStartRequest {
    /// Its devices of the plugin.
    #[prost(string, repeated, tag = "1")]
    pub devices: Vec<String>,
}

/// Which of these?
#[derive(Clone, PartialEq, prost::Message)]
pub struct PreferenceRequest {
    /// One a container.
    #[prost(message, repeated, tag = "1")]
    pub containers: Vec<ContainerPreference>,
}

/// For one container.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerPreference {
    /// What could be given.
    #[prost(string, repeated, tag = "1")]
    pub available: Vec<String>,
    /// What is given in any case.
    #[prost(string, repeated, tag = "2")]
    pub included: Vec<String>,
    /// How many in all.
    #[prost(int32, tag = "3")]
    pub size: i32,
}

/// These.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PreferenceResponse {
    /// One a container.
    #[prost(message, repeated, tag = "1")]
    pub containers: Vec<Devices>,
}

/// Devices by their IDs.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Devices {
    /// The IDs.
    #[prost(string, repeated, tag = "1")]
    pub ids: Vec<String>,
}

/// These are given away.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AllocateRequest {
    /// One a container.
    #[prost(message, repeated, tag = "1")]
    pub containers: Vec<Devices>,
}

/// What it takes to use them.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AllocateResponse {
    /// One a container.
    #[prost(message, repeated, tag = "1")]
    pub containers: Vec<Allocated>,
}

/// In one container.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Allocated {
    /// Variables of its environment.
    #[prost(btree_map = "string, string", tag = "1")]
    pub envs: BTreeMap<String, String>,
    /// Files and folders of the host.
    #[prost(message, repeated, tag = "2")]
    pub mounts: Vec<Mount>,
    /// Device nodes.
    #[prost(message, repeated, tag = "3")]
    pub devices: Vec<DeviceSpec>,
    /// For the runtime.
    #[prost(btree_map = "string, string", tag = "4")]
    pub annotations: BTreeMap<String, String>,
    /// By the Container Device Interface.
    #[prost(message, repeated, tag = "5")]
    pub cdi: Vec<CdiDevice>,
}

/// A bind mount.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Mount {
    /// There.
    #[prost(string, tag = "1")]
    pub container_path: String,
    /// From here.
    #[prost(string, tag = "2")]
    pub host_path: String,
    /// Not to be written.
    #[prost(bool, tag = "3")]
    pub read_only: bool,
}

/// A device node.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeviceSpec {
    /// There.
    #[prost(string, tag = "1")]
    pub container_path: String,
    /// From here.
    #[prost(string, tag = "2")]
    pub host_path: String,
    /// Of `r`, `w`, `m`.
    #[prost(string, tag = "3")]
    pub permissions: String,
}

/// `vendor.com/class=device`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CdiDevice {
    /// In full.
    #[prost(string, tag = "1")]
    pub name: String,
}
