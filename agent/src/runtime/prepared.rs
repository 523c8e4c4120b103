//! What was made ahead of containers' starts.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::cgroup::plan::Limits;
use crate::model::PodUid;

/// Containers whose folders and cgroups are there, by pod.
#[derive(Debug, Default)]
pub struct Prepared(Mutex<HashMap<PodUid, Vec<Container>>>);

#[derive(Debug)]
struct Container {
    name: String,
    attempt: u32,
    /// Its ID, and what its cgroup was given.
    made: (String, Limits),
}

impl Prepared {
    /// Notes one.
    pub fn put(&self, uid: &PodUid, name: &str, attempt: u32, made: (String, Limits)) {
        let mut pods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pods.entry(uid.clone()).or_default().push(Container { name: name.to_owned(), attempt, made });
    }

    /// The attempt that something was made for.
    pub fn attempt(&self, uid: &PodUid, name: &str) -> Option<u32> {
        let pods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pods.get(uid)?.iter().find(|container| container.name == name).map(|container| container.attempt)
    }

    /// What was made for an attempt; to be had once.
    pub fn take(&self, uid: &PodUid, name: &str, attempt: u32) -> Option<(String, Limits)> {
        let mut pods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let containers = pods.get_mut(uid)?;
        let at = containers.iter().position(|container| container.name == name && container.attempt == attempt)?;
        let made = containers.swap_remove(at).made;
        if containers.is_empty() {
            pods.remove(uid);
        }
        Some(made)
    }

    /// All of a pod's is gone.
    pub fn forget(&self, uid: &PodUid) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}
