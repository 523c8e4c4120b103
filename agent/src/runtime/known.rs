//! The objects that a test says there are.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Secret, Service};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::recipe::env::Objects;

/// Manifests as JSON; in namespace `default` unless they say.
pub struct Known(pub Vec<Value>);

impl Known {
    fn find<T: DeserializeOwned>(&self, kind: &str, namespace: &str, name: Option<&str>) -> Vec<Arc<T>> {
        let here = |object: &&Value| {
            let metadata = &object["metadata"];
            object["kind"] == kind
                && metadata["namespace"].as_str().unwrap_or("default") == namespace
                && name.is_none_or(|name| metadata["name"] == name)
        };
        self.0.iter().filter(here).map(|object| Arc::new(serde_json::from_value(object.clone()).unwrap())).collect()
    }
}

impl Objects for Known {
    fn config_map(&self, namespace: &str, name: &str) -> Option<Arc<ConfigMap>> {
        self.find("ConfigMap", namespace, Some(name)).pop()
    }
    fn secret(&self, namespace: &str, name: &str) -> Option<Arc<Secret>> {
        self.find("Secret", namespace, Some(name)).pop()
    }
    fn claim(&self, namespace: &str, name: &str) -> Option<Arc<PersistentVolumeClaim>> {
        self.find("PersistentVolumeClaim", namespace, Some(name)).pop()
    }
    fn services(&self, namespace: &str) -> Vec<Arc<Service>> {
        self.find("Service", namespace, None)
    }
}
