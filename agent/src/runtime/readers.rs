//! Who reads a pod's logs at present: they stay until the readers are done, within limits.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedRwLockReadGuard, RwLock};

use crate::model::PodUid;

/// A follower that reads at all is at the end by then; one that is stuck must not keep a pod's remains for ever.
const PATIENCE: Duration = Duration::from_secs(5);

/// Keeps a pod's logs where they are while it lives. None: the pod's removal has begun, and nothing is kept any more.
pub type Reading = Option<OwnedRwLockReadGuard<()>>;

/// The readers of all pods' logs.
#[derive(Debug, Default)]
pub(super) struct Readers(Mutex<HashMap<PodUid, Arc<RwLock<()>>>>);

impl Readers {
    /// One more reader.
    pub fn enter(&self, uid: &PodUid) -> Reading {
        let mut pods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pods.entry(uid.clone()).or_default().clone().try_read_owned().ok()
    }

    /// Waits until nobody reads, or no longer.
    pub async fn are_done(&self, uid: &PodUid) {
        let pod = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
        if let Some(pod) = pod
            && tokio::time::timeout(PATIENCE, pod.write()).await.is_err()
        {
            tracing::info!("a reader of the logs of pod {uid} didn't take them in {PATIENCE:?}: they are removed");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn logs_wait_for_their_readers_but_not_for_ever() {
        let readers = Arc::new(Readers::default());
        let (read, stuck) = (PodUid::new("read"), PodUid::new("stuck"));
        readers.are_done(&read).await;

        let reading = readers.enter(&read).unwrap();
        let waits = tokio::spawn({
            let (readers, read) = (readers.clone(), read.clone());
            async move { readers.are_done(&read).await }
        });
        tokio::task::yield_now().await;
        assert!(!waits.is_finished());
        drop(reading);
        waits.await.unwrap();

        let _never_dropped = readers.enter(&stuck).unwrap();
        readers.are_done(&stuck).await;
    }
}
