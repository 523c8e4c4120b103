//! What a service manager is told: sd_notify(3). Where none listens (no `NOTIFY_SOCKET`) all of it does nothing.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::{mpsc, oneshot};

use crate::pod::manager::Order;

/// The API answers, and what an agent before this one left is adopted.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The agent was told to stop.
pub fn stopping(status: &str) {
    tell(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

/// Tells the watchdog that the agent lives, for as long as the one that decides over pods answers. Where the unit has no
/// `WatchdogSec` this returns at once.
pub async fn keep_watchdog(orders: mpsc::UnboundedSender<Order>) {
    // Twice in the time that systemd allows, as systemd.service(5) recommends.
    let Some(every) = sd_notify::watchdog_enabled().map(|limit| limit / 2).filter(|every| !every.is_zero()) else { return };
    while answers(&orders).await {
        tell(&[NotifyState::Watchdog]);
        tokio::time::sleep(every).await;
    }
}

/// While a drain goes on, which takes as long as the pods' grace periods: the manager is asked for more time.
pub async fn ask_for_time() {
    const STEP: Duration = Duration::from_secs(30);
    loop {
        let micros = u32::try_from((STEP * 2).as_micros()).unwrap_or(u32::MAX);
        tell(&[NotifyState::ExtendTimeoutUsec(micros)]);
        tokio::time::sleep(STEP).await;
    }
}

async fn answers(orders: &mpsc::UnboundedSender<Order>) -> bool {
    let (alive, heard) = oneshot::channel();
    orders.send(Order::Answer(alive)).is_ok() && heard.await.is_ok()
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager could not be told how the agent is");
    }
}
