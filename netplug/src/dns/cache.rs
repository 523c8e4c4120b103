//! Answers of others, until they are too old. Pure: who asks says what time it is.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::message;

/// Answers kept at once; a pod that asks for ever new names must not fill the memory.
const ENTRIES: usize = 4096;
/// No answer is kept longer, whatever it says.
const LONGEST: u32 = 3600;

#[derive(Debug, Default)]
pub(crate) struct Cache {
    entries: HashMap<Vec<u8>, Entry>,
}

#[derive(Debug)]
struct Entry {
    answer: Vec<u8>,
    /// Where its times to live are.
    ttls: Vec<usize>,
    born: Instant,
    expires: Instant,
}

impl Cache {
    /// An answer to this question, its times to live counted down.
    pub(crate) fn get(&self, key: &[u8], query: &[u8], now: Instant) -> Option<Vec<u8>> {
        let entry = self.entries.get(key).filter(|entry| now < entry.expires)?;
        let age = now.saturating_duration_since(entry.born).as_secs() as u32;
        let mut answer = entry.answer.clone();
        message::address(&mut answer, query)?;
        for at in &entry.ttls {
            let ttl = u32::from_be_bytes(answer[*at..*at + 4].try_into().ok()?).saturating_sub(age);
            answer[*at..*at + 4].copy_from_slice(&ttl.to_be_bytes());
        }
        Some(answer)
    }

    pub(crate) fn put(&mut self, key: Vec<u8>, answer: &[u8], now: Instant) {
        let Some((ttl, ttls)) = message::lifetime(answer) else { return };
        if ttl == 0 {
            return;
        }
        if self.entries.len() >= ENTRIES {
            self.entries.retain(|_, entry| now < entry.expires);
        }
        if self.entries.len() >= ENTRIES {
            self.entries.clear();
        }
        let expires = now + Duration::from_secs(ttl.min(LONGEST).into());
        self.entries.insert(key, Entry { answer: answer.to_vec(), ttls, born: now, expires });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::dns::zone::{Answer, Record};

    #[test]
    fn an_answer_ages_and_is_forgotten() {
        let query = message::question(1, "a.b", 1).unwrap();
        let answer = Answer { exists: true, records: vec![Record::Address([1, 2, 3, 4].into())], additional: Vec::new() };
        let bytes = message::Query::parse(&query).unwrap().answer("b", &answer, &message::Behind::default()).unwrap();
        let key = message::cache_key(&query).unwrap();
        let (mut cache, now) = (Cache::default(), Instant::now());
        cache.put(key.clone(), &bytes, now);
        let again = message::question(9, "A.b", 1).unwrap();
        let later = cache.get(&key, &again, now + Duration::from_secs(2)).unwrap();
        assert_eq!((&later[..2], message::lifetime(&later).unwrap().0), (&[0u8, 9][..], 3));
        assert_eq!(later[12..17], again[12..17]);
        assert!(cache.get(&key, &again, now + Duration::from_secs(5)).is_none());
    }
}
