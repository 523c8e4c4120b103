//! Whose turn it is to work on a thing of that name.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedMutexGuard;

/// One at a time for each key. Keys that nobody has or waits for take no room.
#[derive(Debug)]
pub struct Turns<K>(Mutex<HashMap<K, Arc<tokio::sync::Mutex<()>>>>);

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash> Turns<K> {
    /// Waits until nobody else is at it; it is the caller's until the guard goes.
    pub async fn take(&self, key: K) -> OwnedMutexGuard<()> {
        self.turn(key).lock_owned().await
    }

    fn turn(&self, key: K) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        turns.entry(key).or_default().clone()
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn one_at_a_time_for_each_key_and_none_is_kept() {
        let turns = Turns::default();
        let one = turns.take("a").await;
        assert!(turns.take("a").now_or_never().is_none());
        let other = turns.take("b").now_or_never();
        assert!(other.is_some());
        drop((one, other));
        let _again = turns.take("a").now_or_never().unwrap();
        assert_eq!(turns.0.lock().unwrap().len(), 1);
    }
}
