//! The cluster's Services, as far as containers' environment tells of them: name, address, ports. One watch of all, as the kubelet's.

use std::collections::HashSet;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::runtime::{WatchStreamExt, watcher};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::Eager;
use super::checkpoint::Checkpoints;
use crate::cluster::{Cluster, whole};
use crate::model::{Body, ObjectKind, ObjectRef, Origin, ValidObject};
use crate::pod::Node;

/// Keeps them in the cluster's objects as long as it lives.
pub(super) struct Services {
    _task: AbortOnDropHandle<()>,
    listed: watch::Receiver<bool>,
}

impl Services {
    /// Begins as soon as the node is one of the cluster's.
    pub(super) fn follow(cluster: Arc<Cluster>, node: Arc<Node>, checkpoints: Checkpoints) -> Self {
        let (told, listed) = watch::channel(false);
        let task = tokio::spawn(async move {
            cluster.member().await;
            keep(&cluster, &node, &checkpoints, &told).await;
        });
        Self { _task: AbortOnDropHandle::new(task), listed }
    }

    /// Whether all of them are known.
    pub(super) fn listed(&self) -> watch::Receiver<bool> {
        self.listed.clone()
    }
}

async fn keep(cluster: &Cluster, node: &Node, checkpoints: &Checkpoints, told: &watch::Sender<bool>) {
    let services: Api<Service> = Api::all(cluster.client());
    // What has no address has no variables; the API server needn't tell of it.
    let mut stream = watcher(services, watcher::Config::default()).modify(trim).backoff(Eager::default()).boxed();
    let objects = &node.objects.cluster;
    let mut listed: Option<HashSet<ObjectRef>> = None;
    let mut silent = false;
    while let Some(event) = stream.next().await {
        match event {
            Ok(watcher::Event::Init) => listed = Some(HashSet::new()),
            Ok(watcher::Event::InitApply(service) | watcher::Event::Apply(service)) => {
                let service = ValidObject::trusted(Body::Service(Arc::new(service)), Origin::Api);
                if let Some(listed) = &mut listed {
                    listed.insert(service.key().clone());
                }
                if objects.get(service.key()).is_none_or(|known| known.body() != service.body()) {
                    checkpoints.changed(service.key());
                    objects.put(service);
                }
            }
            Ok(watcher::Event::Delete(service)) => {
                let gone = ValidObject::trusted(Body::Service(Arc::new(service)), Origin::Api);
                objects.remove(gone.key());
                checkpoints.changed(gone.key());
            }
            Ok(watcher::Event::InitDone) => {
                let listed = listed.take().unwrap_or_default();
                for gone in objects.of_kind(ObjectKind::Service).iter().filter(|known| !listed.contains(known.key())) {
                    objects.remove(gone.key());
                    checkpoints.changed(gone.key());
                }
                silent = false;
                told.send_replace(true);
            }
            Err(error) => {
                if !std::mem::replace(&mut silent, true) {
                    tracing::debug!(error = whole(&error), "the cluster's Services can't be watched; it is tried again");
                }
            }
        }
    }
}

/// What variables are made of.
fn trim(service: &mut Service) {
    let spec = service.spec.take().unwrap_or_default();
    let metadata = std::mem::take(&mut service.metadata);
    *service = Service {
        metadata: ObjectMeta { name: metadata.name, namespace: metadata.namespace, ..ObjectMeta::default() },
        spec: Some(ServiceSpec { cluster_ip: spec.cluster_ip, ports: spec.ports, ..ServiceSpec::default() }),
        status: None,
    };
}
