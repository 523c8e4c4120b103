//! Whose a pod is, to those who ask: registries, storage drivers.

use super::{Origin, ValidPod};

/// A pod and its service account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The pod's, and its service account's.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's.
    pub uid: String,
    /// The service account's name. None: it has none, as a file's pod, whose account nobody knows.
    pub account: Option<String>,
}

impl Subject {
    /// Of a pod.
    pub fn of(pod: &ValidPod) -> Self {
        let named = pod.spec().service_account_name.clone().filter(|name| !name.is_empty());
        Self {
            namespace: pod.namespace().to_owned(),
            pod: pod.name().to_owned(),
            uid: pod.uid().as_str().to_owned(),
            account: (*pod.origin() == Origin::Api).then(|| named.unwrap_or_else(|| "default".to_owned())),
        }
    }
}
