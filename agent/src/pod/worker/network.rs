//! A pod whose wiring failed, and what one that has several interfaces shows of them.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as k8s;

use super::{SandboxState, Worker};
use crate::model::network::{NETWORK_STATUS, NETWORKS};

impl Worker {
    /// Somebody mended what its wiring needs, perhaps: tried again at once.
    pub(super) fn wire_again(&mut self) {
        if let SandboxState::Failed { retry_at, delay, .. } = &mut self.observed.sandbox {
            *retry_at = Timestamp::now();
            *delay = Duration::ZERO;
        }
    }

    /// As Multus shows it, of pods that ask for further networks.
    pub(super) fn show_networks(&self, pod: &mut k8s::Pod) {
        let Some(annotations) = pod.metadata.annotations.as_mut().filter(|all| all.contains_key(NETWORKS)) else { return };
        let status = self.node.network.status(self.pod.uid());
        annotations.insert(NETWORK_STATUS.into(), serde_json::to_string(&status).unwrap_or_default());
    }
}
