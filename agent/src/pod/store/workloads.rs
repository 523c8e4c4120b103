//! Workloads in the store, and the tables of the objects beside pods: one a kind, so that each can be listed and watched for itself.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, PersistentVolumeClaim, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Change, Expired, Since, Snapshot, Store, Table, Verb, since, snapshot};
use crate::model::Workload;
use crate::model::workload::each;

/// The tables: workloads by UID, other objects by `namespace/name`.
#[derive(Debug)]
pub struct Workloads {
    claims: Table<String, PersistentVolumeClaim>,
    config_maps: Table<String, ConfigMap>,
    cron_jobs: Table<String, CronJob>,
    daemon_sets: Table<String, DaemonSet>,
    deployments: Table<String, Deployment>,
    endpoint_slices: Table<String, EndpointSlice>,
    jobs: Table<String, Job>,
    namespaces: Table<String, Namespace>,
    network_policies: Table<String, NetworkPolicy>,
    replica_sets: Table<String, ReplicaSet>,
    secrets: Table<String, Secret>,
    services: Table<String, Service>,
    stateful_sets: Table<String, StatefulSet>,
}

impl Workloads {
    pub(super) fn new() -> Self {
        Self {
            claims: Table::new(),
            config_maps: Table::new(),
            cron_jobs: Table::new(),
            daemon_sets: Table::new(),
            deployments: Table::new(),
            endpoint_slices: Table::new(),
            jobs: Table::new(),
            namespaces: Table::new(),
            network_policies: Table::new(),
            replica_sets: Table::new(),
            secrets: Table::new(),
            services: Table::new(),
            stateful_sets: Table::new(),
        }
    }
}

/// A kind that the store keeps.
pub trait Kept: Clone + PartialEq {
    /// Its metadata, to be changed.
    fn meta(&mut self) -> &mut ObjectMeta;
    #[doc(hidden)]
    fn table(workloads: &Workloads) -> &Tabled<Self>;
    #[doc(hidden)]
    fn table_mut(workloads: &mut Workloads) -> &mut Tabled<Self>;
}

/// A table by UID.
pub type Tabled<T> = Table<String, T>;

macro_rules! kept {
    ($($kind:ty: $table:ident),*) => { $(
        impl Kept for $kind {
            fn meta(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
            fn table(workloads: &Workloads) -> &Tabled<Self> {
                &workloads.$table
            }
            fn table_mut(workloads: &mut Workloads) -> &mut Tabled<Self> {
                &mut workloads.$table
            }
        }
    )* };
}
kept!(CronJob: cron_jobs, DaemonSet: daemon_sets, Deployment: deployments, Job: jobs, ReplicaSet: replica_sets, StatefulSet: stateful_sets);
kept!(EndpointSlice: endpoint_slices, Namespace: namespaces, NetworkPolicy: network_policies);
kept!(ConfigMap: config_maps, PersistentVolumeClaim: claims, Secret: secrets, Service: services);

impl Store {
    /// Takes a workload's newest state. One equal to the stored one changes nothing.
    pub fn put_workload(&self, workload: &Workload) {
        let uid = workload.uid().to_owned();
        each!(workload, o => self.put_kept(uid, (**o).clone()));
    }

    /// The workload is gone.
    pub fn remove_workload(&self, workload: &Workload) {
        fn remove<T: Kept>(store: &Store, uid: &str, _: &Arc<T>) {
            store.remove_kept::<T>(uid);
        }
        each!(workload, o => remove(self, workload.uid(), o));
    }

    pub(super) fn remove_kept<T: Kept>(&self, key: &str) {
        let mut inner = self.write();
        let Some(old) = T::table_mut(&mut inner.workloads).objects.remove(key) else { return };
        inner.version += 1;
        let version = inner.version;
        let mut object = Arc::unwrap_or_clone(old);
        object.meta().resource_version = Some(version.to_string());
        T::table_mut(&mut inner.workloads).record(Change { version, verb: Verb::Deleted, object: Arc::new(object) });
    }

    /// All workloads of a kind, and what follows.
    pub fn workloads<T: Kept>(&self) -> Snapshot<T> {
        let inner = self.read();
        snapshot(inner.version, T::table(&inner.workloads))
    }

    /// The changes to a kind after `version`, then what follows.
    pub fn workloads_since<T: Kept>(&self, version: u64) -> Result<Since<T>, Expired> {
        since(T::table(&self.read().workloads), version)
    }

    pub(super) fn kept<T: Kept>(&self, key: &str) -> Option<Arc<T>> {
        T::table(&self.read().workloads).objects.get(key).cloned()
    }

    pub(super) fn put_kept<T: Kept>(&self, uid: String, mut object: T) {
        let mut inner = self.write();
        if let Some(old) = T::table(&inner.workloads).objects.get(&uid) {
            let mut before = T::clone(old);
            object.meta().resource_version.clone_from(&before.meta().resource_version);
            if before == object {
                return;
            }
        }
        inner.version += 1;
        let version = inner.version;
        object.meta().resource_version = Some(version.to_string());
        T::table_mut(&mut inner.workloads).put(version, uid, Arc::new(object));
    }
}
