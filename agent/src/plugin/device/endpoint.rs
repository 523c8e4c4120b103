//! One device plugin, as it is asked.

use std::path::Path;
use std::time::Duration;

use super::api::{
    AllocateRequest, AllocateResponse, Allocated, ContainerPreference, DeviceList, Devices, Empty, HEALTHY, Options,
    PreStartRequest, PreferenceRequest, PreferenceResponse,
};
use crate::grpc::{Channel, Code, Status};

/// The kubelet's, for a plugin that registers.
const CONNECT: Duration = Duration::from_secs(10);
/// The kubelet's.
const PRE_START: Duration = Duration::from_secs(30);
/// The kubelet waits for ever; devices may have to be reset.
const ALLOCATE: Duration = Duration::from_secs(120);

/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct Endpoint {
    channel: Channel,
    /// What it wants to be asked.
    pub options: Options,
}

impl Endpoint {
    /// Connects to a plugin that says it is there.
    pub async fn connect(socket: &Path) -> Result<Self, String> {
        let connected = tokio::time::timeout(CONNECT, Channel::connect(socket)).await;
        let failed = |why: String| format!("failed to dial device plugin with socketPath {}: {why}", socket.display());
        let channel = connected.map_err(|_| failed("context deadline exceeded".into()))?.map_err(|e| failed(e.to_string()))?;
        let asked = channel.unary("v1beta1.DevicePlugin/GetDevicePluginOptions", &Empty {}, CONNECT).await;
        let options = asked.map_err(|status| format!("failed to get device plugin options: {status}"))?;
        Ok(Self { channel, options })
    }

    /// Tells each list of devices (ID, and whether it is well) until `hear` has had enough or the plugin is gone; and why that is.
    pub async fn follow(&self, mut hear: impl FnMut(Vec<(String, bool)>) -> bool) -> String {
        let mut lists = match self.channel.stream::<DeviceList>("v1beta1.DevicePlugin/ListAndWatch", &Empty {}).await {
            Ok(lists) => lists,
            Err(status) => return status.to_string(),
        };
        loop {
            match lists.next().await {
                Ok(Some(list)) => {
                    if !hear(list.devices.into_iter().map(|device| (device.id, device.health == HEALTHY)).collect()) {
                        return "another plugin of the resource has registered".into();
                    }
                }
                Ok(None) => return "it has ended its list".into(),
                Err(status) => return status.to_string(),
            }
        }
    }

    /// Which of `available` it would take for `size` devices, of which some are given in any case.
    pub async fn prefers(&self, available: Vec<String>, included: Vec<String>, size: u64) -> Result<Vec<String>, Status> {
        let size = i32::try_from(size).unwrap_or(i32::MAX);
        let request = PreferenceRequest { containers: vec![ContainerPreference { available, included, size }] };
        let method = "v1beta1.DevicePlugin/GetPreferredAllocation";
        let response: PreferenceResponse = self.channel.unary(method, &request, PRE_START).await?;
        Ok(response.containers.into_iter().next().map(|devices| devices.ids).unwrap_or_default())
    }

    /// Gives devices to a container.
    pub async fn allocate(&self, ids: Vec<String>) -> Result<Allocated, Status> {
        let request = AllocateRequest { containers: vec![Devices { ids }] };
        let response: AllocateResponse = self.channel.unary("v1beta1.DevicePlugin/Allocate", &request, ALLOCATE).await?;
        let none = || Status::new(Code::UNKNOWN, "no containers return in allocation response");
        response.containers.into_iter().next().ok_or_else(none)
    }

    /// A container with these devices is about to start.
    pub async fn pre_start(&self, devices: Vec<String>) -> Result<(), Status> {
        let request = PreStartRequest { devices };
        self.channel.unary::<Empty>("v1beta1.DevicePlugin/PreStartContainer", &request, PRE_START).await.map(drop)
    }
}
