//! What systemd is told (sd_notify(3)): that the agent is ready, that it stops, and, if its unit wants to know, that it is alive. Says
//! nothing where nobody started it so.

use std::sync::Arc;

use sd_notify::NotifyState;

use crate::pod::node::Node;

/// The sources are watched, the APIs are served.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// It ends; with --drain that takes as long as the pods need, which is longer than a unit's patience.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Says twice in the unit's WatchdogSec that the pods' manager answers; when it doesn't, systemd starts the agent anew, and no pod
/// notices. Without WatchdogSec nothing is done at all.
pub async fn watchdog(node: Arc<dyn Node>) {
    let Some(period) = sd_notify::watchdog_enabled() else { return };
    let mut every = tokio::time::interval(period / 2);
    loop {
        every.tick().await;
        match node.alive().await {
            Ok(()) => tell(&[NotifyState::Watchdog]),
            Err(error) => tracing::error!(%error, "systemd's watchdog isn't answered"),
        }
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd could not be told how the agent is");
    }
}
