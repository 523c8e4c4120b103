//! The folders in which the kubelet's plugins look for it.

use std::sync::Arc;

use super::DaemonError;
use crate::cluster::Cluster;
use crate::config::Settings;
use crate::image::provider::{Accounts, Providers};
use crate::plugin::device::registration;
use crate::plugin::registry::{self, Handlers};
use crate::pod::Node;
use crate::pod::recorder::Level;

/// The programs that give logins for images, if there are any.
pub fn providers(settings: &Settings, cluster: Option<&Arc<Cluster>>) -> Result<Option<Providers>, DaemonError> {
    let Some(places) = &settings.images.providers else { return Ok(None) };
    let accounts = cluster.map(|cluster| cluster.clone() as Arc<dyn Accounts>);
    Providers::open(&places.config, &places.programs, accounts).map(Some).map_err(DaemonError::Providers)
}

/// Begins to take plugins. Where a kubelet does so already, it stays that kubelet's business.
pub fn serve(settings: &Settings, node: &Arc<Node>) {
    let root = settings.pods.kubelet_root.clone().unwrap_or_else(|| settings.paths.kubelet());
    let folder = root.join("device-plugins");
    if let Err(error) = registration::serve(node.devices.clone(), folder.clone()) {
        let message = format!("plugins can't register in {}: {error}; kubeletRoot names another place", folder.display());
        node.recorder.node(Level::Warning, "PluginsNotServed", &message);
        tracing::warn!("{message}");
        return;
    }
    let admission = node.admission.clone();
    tokio::spawn(async move { admission.follow_devices().await });
    let handlers: Handlers = [("DevicePlugin", Box::new(node.devices.clone()) as _)].into();
    let folder = root.join("plugins_registry");
    tokio::spawn(async move {
        if let Err(error) = registry::follow(folder.clone(), handlers).await {
            tracing::warn!(folder = %folder.display(), %error, "plugins' registrations are not followed");
        }
    });
}
