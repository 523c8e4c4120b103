//! Answers that hold for a while. Bounded; keys are hashed under a secret, so that no token lies in memory.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ring::hmac;

/// A key as it is kept.
pub type Key = [u8; 32];

/// See the module's page.
pub struct Cache<V> {
    secret: hmac::Key,
    room: usize,
    entries: Mutex<HashMap<Key, (Instant, V)>>,
}

impl<V: Clone> Cache<V> {
    /// For so many answers.
    pub fn new(room: usize) -> Self {
        // Without randomness the hash is still one-way; the kernel gives it always once it has booted.
        let secret = crate::random::bytes().unwrap_or([0; 32]);
        Self { secret: hmac::Key::new(hmac::HMAC_SHA256, &secret), room, entries: Mutex::default() }
    }

    /// How a question is kept.
    pub fn key(&self, question: &[u8]) -> Key {
        let mut key = Key::default();
        key.copy_from_slice(hmac::sign(&self.secret, question).as_ref());
        key
    }

    /// The answer, if it still holds.
    pub fn get(&self, key: &Key, now: Instant) -> Option<V> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.get(key).filter(|(until, _)| *until > now).map(|(_, value)| value.clone())
    }

    /// Keeps an answer for so long. When there is no room, the one goes that would be the next to go.
    pub fn put(&self, key: Key, value: V, now: Instant, holds: Duration) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= self.room && !entries.contains_key(&key) {
            entries.retain(|_, (until, _)| *until > now);
            if entries.len() >= self.room
                && let Some(next) = entries.iter().min_by_key(|(_, (until, _))| *until).map(|(key, _)| *key)
            {
                entries.remove(&next);
            }
        }
        entries.insert(key, (now + holds, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_hold_for_their_time_and_there_is_room_for_so_many() {
        let cache = Cache::new(2);
        let now = Instant::now();
        let keys = [b"a", b"b", b"c"].map(|question| cache.key(question));
        cache.put(keys[0], 1, now, Duration::from_secs(10));
        cache.put(keys[1], 2, now, Duration::from_secs(20));
        assert_eq!(cache.get(&keys[0], now), Some(1));
        assert_eq!(cache.get(&keys[0], now + Duration::from_secs(10)), None);
        cache.put(keys[2], 3, now, Duration::from_secs(30));
        assert_eq!(keys.map(|key| cache.get(&key, now)), [None, Some(2), Some(3)]);
    }

    #[test]
    fn two_caches_keep_the_same_question_differently() {
        assert_ne!(Cache::<()>::new(1).key(b"token"), Cache::<()>::new(1).key(b"token"));
    }
}
