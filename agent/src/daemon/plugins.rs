//! The folders in which the kubelet's plugins look for it.

use std::path::PathBuf;
use std::sync::Arc;

use super::DaemonError;
use crate::config::Settings;
use crate::image::provider::{Accounts, Providers};
use crate::model::ObjectKind;
use crate::plugin::device::registration;
use crate::plugin::registry::{self, Handlers};
use crate::pod::Node;
use crate::pod::recorder::Level;

/// Where plugins look for the kubelet.
pub fn root(settings: &Settings) -> PathBuf {
    settings.pods.kubelet_root.clone().unwrap_or_else(|| settings.paths.kubelet())
}

/// The programs that give logins for images, if there are any.
pub fn providers(settings: &Settings, accounts: Option<Arc<dyn Accounts>>) -> Result<Option<Providers>, DaemonError> {
    let Some(places) = &settings.images.providers else { return Ok(None) };
    Providers::open(&places.config, &places.programs, accounts).map(Some).map_err(DaemonError::Providers)
}

/// Begins to take plugins. Where a kubelet does so already, it stays that kubelet's business.
pub fn serve(settings: &Settings, node: &Arc<Node>) {
    let root = root(settings);
    let folder = root.join("device-plugins");
    if let Err(error) = registration::serve(node.devices.clone(), folder.clone()) {
        let message = format!("plugins can't register in {}: {error}; kubeletRoot names another place", folder.display());
        node.recorder.node(Level::Warning, "PluginsNotServed", &message);
        tracing::warn!("{message}");
        return;
    }
    let admission = node.admission.clone();
    tokio::spawn(async move { admission.follow_devices().await });
    tokio::spawn(wake_for_drivers(node.clone()));
    tokio::spawn(node.clone().republish());
    tokio::spawn(node.clone().follow_growth());
    let handlers: Handlers =
        [("DevicePlugin", Box::new(node.devices.clone()) as _), ("CSIPlugin", Box::new(node.csi.clone()) as _)].into();
    let folder = root.join("plugins_registry");
    tokio::spawn(async move {
        if let Err(error) = registry::follow(folder.clone(), handlers).await {
            tracing::warn!(folder = %folder.display(), %error, "plugins' registrations are not followed");
        }
    });
}

/// Pods that wait for a driver try again when one comes.
async fn wake_for_drivers(node: Arc<Node>) {
    let mut changed = node.csi.changed();
    while changed.changed().await.is_ok() {
        for objects in [&node.objects.files, &node.objects.cluster] {
            objects.touch(&[ObjectKind::CsiDriver, ObjectKind::PersistentVolumeClaim]);
        }
    }
}
