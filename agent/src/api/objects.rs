//! ConfigMaps, Secrets, claims, Services, their endpoints and NetworkPolicies as the API serves them. Lists, tables and watches show no Secret's value; a GET by name does.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::{Value, json};

use super::ApiError;
use super::human;
use super::list::{Changes, Form, Served};
use super::table::{Column, column, wide};
use super::workloads::{selector, served};
use crate::model::{Body, ObjectKind, ObjectRef, ValidObject};
use crate::pod::node::Node;
use crate::pod::store::objects::REDACTED;
use crate::pod::store::{Change, Expired, Snapshot};

const fn count(name: &'static str) -> Column {
    Column { name, kind: "integer", priority: 0 }
}

served!(ConfigMap, "configmaps", "v1", &[column("Name"), count("Data"), column("Age")], &[], |_, _| String::new(), |o, now| {
    let keys = o.data.as_ref().map_or(0, std::collections::BTreeMap::len)
        + o.binary_data.as_ref().map_or(0, std::collections::BTreeMap::len);
    vec![json!(o.metadata.name), json!(keys), json!(age(&o.metadata, now))]
});

served!(
    Secret,
    "secrets",
    "v1",
    &[column("Name"), column("Type"), count("Data"), column("Age")],
    &["type"],
    |o, _| o.type_.clone().unwrap_or_default(),
    |o, now| {
        let keys = o.data.as_ref().map_or(0, std::collections::BTreeMap::len);
        vec![json!(o.metadata.name), json!(o.type_), json!(keys), json!(age(&o.metadata, now))]
    }
);

served!(
    PersistentVolumeClaim,
    "persistentvolumeclaims",
    "v1",
    &[
        column("Name"),
        column("Status"),
        column("Volume"),
        column("Capacity"),
        column("Access Modes"),
        column("StorageClass"),
        column("VolumeAttributesClass"),
        column("Age"),
        wide("VolumeMode"),
    ],
    &[],
    |_, _| String::new(),
    |o, now| {
        let spec = o.spec.clone().unwrap_or_default();
        let status = o.status.clone().unwrap_or_default();
        let capacity = status.capacity.and_then(|c| c.get("storage").map(|q| q.0.clone())).unwrap_or_default();
        let modes: Vec<&str> = status.access_modes.iter().flatten().map(|mode| short(mode)).collect();
        vec![
            json!(o.metadata.name),
            json!(status.phase),
            json!(spec.volume_name.unwrap_or_default()),
            json!(capacity),
            json!(modes.join(",")),
            json!(spec.storage_class_name.unwrap_or_default()),
            json!(spec.volume_attributes_class_name.unwrap_or_else(|| "<unset>".into())),
            json!(age(&o.metadata, now)),
            json!(spec.volume_mode),
        ]
    }
);

served!(
    Service,
    "services",
    "v1",
    &[
        column("Name"),
        column("Type"),
        column("Cluster-IP"),
        column("External-IP"),
        column("Port(s)"),
        column("Age"),
        wide("Selector"),
    ],
    &["spec.clusterIP", "spec.type"],
    |o, name| {
        let spec = o.spec.as_ref();
        let found =
            if name == "spec.type" { spec.and_then(|s| s.type_.clone()) } else { spec.and_then(|s| s.cluster_ip.clone()) };
        found.unwrap_or_default()
    },
    |o, now| {
        let spec = o.spec.clone().unwrap_or_default();
        let external = spec.external_ips.unwrap_or_default().into_iter().chain(spec.external_name).collect::<Vec<_>>();
        let ports = spec.ports.iter().flatten().map(|p| {
            let node_port = p.node_port.filter(|n| *n != 0).map(|n| format!(":{n}")).unwrap_or_default();
            format!("{}{node_port}/{}", p.port, p.protocol.as_deref().unwrap_or("TCP"))
        });
        let selector = spec.selector.iter().flatten().map(|(key, value)| format!("{key}={value}"));
        vec![
            json!(o.metadata.name),
            json!(spec.type_.as_deref().unwrap_or("ClusterIP")),
            json!(or_none(spec.cluster_ip.clone().unwrap_or_default())),
            json!(or_none(external.join(","))),
            json!(or_none(ports.collect::<Vec<_>>().join(","))),
            json!(age(&o.metadata, now)),
            json!(or_none(selector.collect::<Vec<_>>().join(","))),
        ]
    }
);

served!(
    EndpointSlice,
    "endpointslices",
    "discovery.k8s.io/v1",
    &[column("Name"), column("AddressType"), column("Ports"), column("Endpoints"), column("Age")],
    &[],
    |_, _| String::new(),
    |o, now| {
        let unset = |list: Vec<String>| if list.is_empty() { "<unset>".to_owned() } else { shortened(&list) };
        let ports = o.ports.iter().flatten().filter_map(|port| port.port).map(|port| port.to_string());
        let addresses = o.endpoints.iter().flatten().flat_map(|endpoint| endpoint.addresses.clone());
        vec![
            json!(o.metadata.name),
            json!(o.address_type),
            json!(unset(ports.collect())),
            json!(unset(addresses.collect())),
            json!(age(&o.metadata, now)),
        ]
    }
);

served!(
    NetworkPolicy,
    "networkpolicies",
    "networking.k8s.io/v1",
    &[column("Name"), column("Pod-Selector"), column("Age")],
    &[],
    |_, _| String::new(),
    |o, now| {
        let chosen = o.spec.as_ref().and_then(|s| s.pod_selector.as_ref());
        vec![json!(o.metadata.name), json!(selector(chosen)), json!(age(&o.metadata, now))]
    }
);

/// As kubectl shows lists: the first three, and how many more.
fn shortened(list: &[String]) -> String {
    const SHOWN: usize = 3;
    match list.len().checked_sub(SHOWN) {
        Some(more @ 1..) => format!("{} + {more} more...", list[..SHOWN].join(",")),
        _ => list.join(","),
    }
}

/// A Secret that is asked for by its name, in this form. Only the object itself has its values.
pub fn secret(node: &dyn Node, listed: &Secret, form: Form) -> Value {
    let metadata = &listed.metadata;
    let (namespace, name) = (metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref().unwrap_or_default());
    let found = node.objects().get(&ObjectRef::new(ObjectKind::Secret, namespace, name));
    match (form, found.as_ref().map(ValidObject::body)) {
        (Form::Objects, Some(Body::Secret(whole))) => {
            let mut shown = listed.clone();
            shown.data.clone_from(&whole.data);
            shown.metadata.annotations.as_mut().map(|annotations| annotations.remove(REDACTED));
            shown.metadata.annotations = shown.metadata.annotations.filter(|annotations| !annotations.is_empty());
            form.object(&shown, true)
        }
        _ => form.object(listed, true),
    }
}

fn short(mode: &str) -> &str {
    match mode {
        "ReadWriteOnce" => "RWO",
        "ReadOnlyMany" => "ROX",
        "ReadWriteMany" => "RWX",
        "ReadWriteOncePod" => "RWOP",
        other => other,
    }
}

fn age(metadata: &ObjectMeta, now: Timestamp) -> String {
    human::since(metadata.creation_timestamp.as_ref().map(|Time(at)| *at), now)
}

fn or_none(text: String) -> String {
    if text.is_empty() { "<none>".into() } else { text }
}
