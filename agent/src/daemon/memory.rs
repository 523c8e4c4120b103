//! The agent's memory after a burst: what the starts of many pods took for a moment lies in pages between what stays, and the
//! allocator would keep it for ever. So do the pages of code that nothing runs any more, and of the programs within it: an agent that
//! waits needs a tenth of them, and the next start has them back for some tenths of a millisecond.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::broadcast::{Receiver, error::RecvError};

use crate::pod::store::Change;

/// Without a change for so long, a burst is over.
const QUIET: Duration = Duration::from_secs(1);

/// Gives memory back after the agent's start, after each burst of changes and after the API was used. Sleeps while nothing happens.
pub async fn tidy<T>(mut changes: Receiver<Change<T>>, used: Arc<Notify>) {
    loop {
        while let Ok(more) = tokio::time::timeout(QUIET, next(&mut changes, &used)).await {
            if !more {
                return;
            }
        }
        // It may take some milliseconds.
        let _ = tokio::task::spawn_blocking(give_back).await;
        if !next(&mut changes, &used).await {
            return;
        }
    }
}

fn give_back() {
    podholder::sys::give_memory_back();
    podholder::sys::let_go_of_program();
}

/// The next change (or many that were missed) or use; false at the end.
async fn next<T>(changes: &mut Receiver<Change<T>>, used: &Notify) -> bool {
    tokio::select! {
        change = changes.recv() => !matches!(change, Err(RecvError::Closed)),
        () = used.notified() => true,
    }
}
