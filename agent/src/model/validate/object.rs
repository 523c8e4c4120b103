//! The API server's rules for the objects beside pods. No message shows a Secret's value.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, PersistentVolumeClaimSpec, Secret};

use super::report::Report;
use super::{affinity, names, network_policy, pod, resources, service};
use crate::model::Body;
use crate::model::error::Problem;
use crate::model::path::Path;
use crate::model::quantity::Quantity;
use crate::model::yaml::Node;

/// Bytes of one ConfigMap's or Secret's values together: etcd's limit, which manifests written elsewhere keep as well.
const SIZE_LIMIT: usize = 1024 * 1024;

/// Checks an object that has its defaults against the text that it came from.
pub fn object(body: &Body, root: &Node) -> Vec<Problem> {
    let mut report = Report::new(root);
    let mut metadata = body.metadata().clone();
    // A Namespace is in none.
    metadata.namespace.get_or_insert_with(|| "default".into());
    pod::metadata(&mut report, &metadata);
    match body {
        Body::ConfigMap(map) => config_map(&mut report, map),
        Body::Secret(secret) => self::secret(&mut report, secret),
        Body::PersistentVolumeClaim(claim) => self::claim(&mut report, claim),
        Body::Service(service) => service::service(&mut report, service),
        Body::NetworkPolicy(policy) => network_policy::policy(&mut report, policy),
        Body::Namespace(namespace) => {
            let name = namespace.metadata.name.as_deref().unwrap_or_default();
            report.each_invalid(&Path::ROOT.child("metadata").child("name"), name, names::dns_label(name));
        }
        // An API server has checked them.
        Body::PersistentVolume(_) | Body::RuntimeClass(_) | Body::CsiDriver(_) | Body::VolumeAttachment(_) => {}
    }
    report.finish()
}

/// What an object says that this node won't follow.
pub fn warnings(body: &Body, root: &Node) -> Vec<Problem> {
    let mut report = Report::new(root);
    if let Body::Service(service) = body {
        service::warnings(&mut report, service);
    }
    if let Body::PersistentVolumeClaim(claim) = body
        && let Some(spec) = &claim.spec
    {
        let at = Path::ROOT.child("spec");
        let set = [
            ("selector", spec.selector.is_some()),
            ("storageClassName", spec.storage_class_name.as_deref().is_some_and(|name| !name.is_empty())),
            ("volumeAttributesClassName", spec.volume_attributes_class_name.is_some()),
            ("volumeName", spec.volume_name.as_deref().is_some_and(|name| !name.is_empty())),
        ];
        for (field, _) in set.into_iter().filter(|(_, is_set)| *is_set) {
            report.say(&at.child(field), "chooses nothing here: the claim is a folder below claimsRoot");
        }
        if spec.access_modes.iter().flatten().any(|mode| mode == "ReadWriteOncePod") {
            report.say(&at.child("accessModes"), "is not guarded here: every pod that names the claim gets its folder");
        }
    }
    report.finish()
}

fn config_map(report: &mut Report<'_>, map: &ConfigMap) {
    let (data, binary) = (Path::ROOT.child("data"), Path::ROOT.child("binaryData"));
    let mut size = 0;
    for (key, value) in map.data.iter().flatten() {
        size += value.len();
        report.each_invalid(&data.key(key), key, names::config_key(key));
        if map.binary_data.iter().flatten().any(|(other, _)| other == key) {
            report.invalid(&data.key(key), key, "duplicate of key present in binaryData");
        }
    }
    for (key, value) in map.binary_data.iter().flatten() {
        size += value.0.len();
        report.each_invalid(&binary.key(key), key, names::config_key(key));
    }
    too_long(report, size);
}

fn too_long(report: &mut Report<'_>, size: usize) {
    if size > SIZE_LIMIT {
        report.say(&Path::ROOT, format!("Too long: may not be more than {SIZE_LIMIT} bytes"));
    }
}

fn secret(report: &mut Report<'_>, secret: &Secret) {
    let at = Path::ROOT.child("data");
    for key in secret.data.iter().flatten().map(|(key, _)| key) {
        report.each_invalid(&at.key(key), key, names::config_key(key));
    }
    too_long(report, secret.data.iter().flatten().map(|(_, v)| v.0.len()).sum());
    let value = |key: &str| secret.data.as_ref().and_then(|d| d.get(key));
    let mut needed = |keys: &[&str]| {
        for key in keys.iter().filter(|key| value(key).is_none()) {
            report.required(&at.key(key), "");
        }
    };
    match secret.type_.as_deref().unwrap_or_default() {
        "kubernetes.io/tls" => needed(&["tls.crt", "tls.key"]),
        "kubernetes.io/ssh-auth" => needed(&["ssh-privatekey"]),
        "kubernetes.io/basic-auth" if value("username").is_none() && value("password").is_none() => {
            needed(&["username", "password"]);
        }
        "kubernetes.io/dockerconfigjson" => json_file(report, &at, ".dockerconfigjson", value(".dockerconfigjson")),
        "kubernetes.io/dockercfg" => json_file(report, &at, ".dockercfg", value(".dockercfg")),
        _ => {}
    }
}

fn json_file(report: &mut Report<'_>, at: &Path<'_>, key: &str, value: Option<&ByteString>) {
    match value {
        None => report.required(&at.key(key), ""),
        Some(bytes) if serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&bytes.0).is_err() => {
            report.say(&at.key(key), "Invalid value: <secret contents redacted>: must be a JSON object");
        }
        Some(_) => {}
    }
}

fn claim(report: &mut Report<'_>, claim: &PersistentVolumeClaim) {
    const RECLAIM: &str = "nodeagent.dev/reclaim-policy";
    if let Some(policy) = claim.metadata.annotations.as_ref().and_then(|a| a.get(RECLAIM)) {
        let metadata = Path::ROOT.child("metadata");
        report.one_of(&metadata.child("annotations").key(RECLAIM), Some(policy), &["Delete", "Retain"]);
    }
    claim_spec(report, &Path::ROOT.child("spec"), claim.spec.as_ref());
}

/// Of a claim, or of a template for claims.
pub(super) fn claim_spec(report: &mut Report<'_>, at: &Path<'_>, spec: Option<&PersistentVolumeClaimSpec>) {
    let Some(spec) = spec else { return report.required(at, "") };
    let modes = spec.access_modes.as_deref().unwrap_or_default();
    if modes.is_empty() {
        report.required(&at.child("accessModes"), "at least 1 access mode is required");
    }
    let known = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
    for (i, mode) in modes.iter().enumerate() {
        report.one_of(&at.child("accessModes").index(i), Some(mode), &known);
    }
    if modes.len() > 1 && modes.iter().any(|mode| mode == "ReadWriteOncePod") {
        report.forbidden(&at.child("accessModes"), "may not use ReadWriteOncePod with other access modes");
    }
    if let Some(class) = spec.storage_class_name.as_deref().filter(|name| !name.is_empty()) {
        report.each_invalid(&at.child("storageClassName"), class, names::dns_subdomain(class));
    }
    affinity::selector(report, &at.child("selector"), spec.selector.as_ref());
    let at_resources = at.child("resources");
    let requests = at_resources.child("requests");
    match spec.resources.as_ref().and_then(|r| r.requests.as_ref()?.get("storage")) {
        Some(size) => {
            let at = requests.key("storage");
            match size.0.parse::<Quantity>() {
                Ok(size) if size.is_negative() || size.is_zero() => {
                    report.invalid(&at, &size.to_string(), "must be greater than zero");
                }
                _ => drop(resources::quantity(report, &at, &size.0)),
            }
        }
        None => report.required(&requests.key("storage"), ""),
    }
    report.one_of(&at.child("volumeMode"), spec.volume_mode.as_deref(), &["Block", "Filesystem"]);
    if spec.volume_mode.as_deref() == Some("Block") {
        let message = "a claim is a folder on this node: volumeMode Block needs a cluster's storage driver";
        report.forbidden(&at.child("volumeMode"), message);
    }
    for (field, there) in [("dataSource", spec.data_source.is_some()), ("dataSourceRef", spec.data_source_ref.is_some())] {
        if there {
            report.forbidden(&at.child(field), "snapshots and clones need a cluster's storage driver");
        }
    }
}
