//! One CSI driver, as its node part is called.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use prost::Message;

use super::api::{Capabilities, Empty, ExpandRequest, NodeInfo, PublishRequest, StageRequest, UnpublishRequest, UnstageRequest};
use crate::grpc::{Channel, Code, Status};

/// The kubelet's, for every call.
const LIMIT: Duration = Duration::from_secs(120);

/// What a driver can that matters here, by CSI's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Can {
    /// `STAGE_UNSTAGE_VOLUME`.
    pub stage: bool,
    /// `EXPAND_VOLUME`: it wants to be told of volumes that have grown.
    pub expand: bool,
    /// `SINGLE_NODE_MULTI_WRITER`: it tells writers of one node apart.
    pub single_node_multi_writer: bool,
    /// `VOLUME_MOUNT_GROUP`: it gives volumes to an fsGroup itself.
    pub mount_group: bool,
}

/// One that has registered.
#[derive(Debug, Clone)]
pub struct Driver {
    /// Its socket. Each call connects anew, as the kubelet's do: a driver may start again without registering again.
    endpoint: PathBuf,
    /// What it can.
    pub can: Can,
    /// What this node is to it.
    pub info: NodeInfo,
}

impl Driver {
    /// Asks one that says it is there what it is.
    pub async fn meet(endpoint: &Path) -> Result<Self, String> {
        let mut driver = Self { endpoint: endpoint.to_owned(), can: Can::default(), info: NodeInfo::default() };
        driver.info = driver.call("NodeGetInfo", &Empty {}).await?;
        if driver.info.node_id.is_empty() {
            return Err("error adding CSI driver node info: driverNodeID must not be empty".into());
        }
        let Capabilities { capabilities } = driver.call("NodeGetCapabilities", &Empty {}).await?;
        for number in capabilities.into_iter().filter_map(|capability| Some(capability.rpc?.kind)) {
            match number {
                1 => driver.can.stage = true,
                3 => driver.can.expand = true,
                5 => driver.can.single_node_multi_writer = true,
                6 => driver.can.mount_group = true,
                _ => {}
            }
        }
        Ok(driver)
    }

    async fn call<A: Message + Default>(&self, method: &str, request: &impl Message) -> Result<A, String> {
        self.ask(method, request).await.map_err(|refusal| refusal.to_string())
    }

    async fn ask<A: Message + Default>(&self, method: &str, request: &impl Message) -> Result<A, Refusal> {
        let connected = tokio::time::timeout(LIMIT, Channel::connect(&self.endpoint)).await;
        let failed = |why: String| Refusal::Unreached(format!("connect to {}: {why}", self.endpoint.display()));
        let channel = connected.map_err(|_| failed("nobody answers".into()))?.map_err(|error| failed(error.to_string()))?;
        channel.unary(&format!("csi.v1.Node/{method}"), request, LIMIT).await.map_err(Refusal::Status)
    }

    /// Labels of the node that tell where it is.
    pub fn topology(&self) -> BTreeMap<String, String> {
        self.info.accessible_topology.clone().unwrap_or_default().segments
    }

    /// Makes a volume ready on this node.
    pub async fn stage(&self, request: &StageRequest) -> Result<(), String> {
        self.call::<Empty>("NodeStageVolume", request).await.map(drop)
    }

    /// Its end.
    pub async fn unstage(&self, request: &UnstageRequest) -> Result<(), String> {
        self.call::<Empty>("NodeUnstageVolume", request).await.map(drop)
    }

    /// Brings a volume on this node to the size that it has elsewhere.
    pub async fn expand(&self, request: &ExpandRequest) -> Result<(), Refusal> {
        // The answer says how large the volume is now; nobody looks, as in the kubelet.
        self.ask::<Empty>("NodeExpandVolume", request).await.map(drop)
    }

    /// Mounts a volume for a pod.
    pub async fn publish(&self, request: &PublishRequest) -> Result<(), String> {
        self.call::<Empty>("NodePublishVolume", request).await.map(drop)
    }

    /// Its end.
    pub async fn unpublish(&self, request: &UnpublishRequest) -> Result<(), String> {
        self.call::<Empty>("NodeUnpublishVolume", request).await.map(drop)
    }
}

/// Why a driver did not do as it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It was never asked.
    #[error("{0}")]
    Unreached(String),
    /// It can't, and says so beforehand.
    #[error("NodeExpand is not supported by the CSI driver {0}")]
    Unable(String),
    /// It said so.
    #[error("{0}")]
    Status(Status),
}

/// What a refusal to let a volume grow means, as the kubelet understands it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Growth {
    /// It may go better at another time; the driver may still be at it.
    Later,
    /// It failed, and may be tried again.
    Failed,
    /// It can never be that large here.
    Infeasible,
    /// Not as long as somebody uses the volume.
    NotInUse,
    /// The driver never does.
    Never,
}

impl Refusal {
    /// See [`Growth`].
    pub fn growth(&self) -> Growth {
        let code = match self {
            Self::Unreached(_) => return Growth::Later,
            Self::Unable(_) => return Growth::Never,
            Self::Status(Status { code, .. }) => code,
        };
        match *code {
            Code::INVALID_ARGUMENT | Code::OUT_OF_RANGE | Code::NOT_FOUND => Growth::Infeasible,
            Code::FAILED_PRECONDITION => Growth::NotInUse,
            Code::CANCELLED | Code::DEADLINE_EXCEEDED | Code::UNAVAILABLE | Code::RESOURCE_EXHAUSTED | Code::ABORTED => {
                Growth::Later
            }
            _ => Growth::Failed,
        }
    }
}
