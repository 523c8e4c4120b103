//! Volumes: one source each, and what each kind of source needs.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{
    CSIVolumeSource, DownwardAPIVolumeFile, EmptyDirVolumeSource, HostPathVolumeSource, ISCSIVolumeSource, KeyToPath,
    ProjectedVolumeSource, ServiceAccountTokenProjection, Volume, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::env::{self, Target};
use super::report::{Report, Unique};
use super::{names, object, resources, workload};
use crate::model::exported;
use crate::model::path::Path;
use crate::model::quantity::Quantity;

/// All volumes of a pod.
pub(super) fn all(report: &mut Report<'_>, at: &Path<'_>, volumes: &[Volume], pod: &str) {
    let mut seen = Unique::default();
    // A pod template has no name, and its pods' claims have none yet.
    let claim_of =
        |volume: &Volume| volume.ephemeral.as_ref().filter(|_| !pod.is_empty()).map(|_| format!("{pod}-{}", volume.name));
    let ephemeral: HashSet<String> = volumes.iter().filter_map(claim_of).collect();
    for (i, volume) in volumes.iter().enumerate() {
        let at = at.index(i);
        report.name(&at.child("name"), &volume.name, names::dns_label);
        if !volume.name.is_empty() {
            seen.check(report, &at.child("name"), &volume.name);
        }
        for more in sources(volume).iter().skip(1) {
            report.forbidden(&at.child(more), "may not specify more than 1 volume type");
        }
        source(report, &at, volume);
        needs_a_cluster(report, &at, volume);
        for wrong in claim_of(volume).iter().flat_map(|claim| names::dns_subdomain(claim)) {
            report.invalid(
                &at.child("name"),
                &volume.name,
                format!("PVC name {:?}: {wrong}", claim_of(volume).unwrap_or_default()),
            );
        }
        if let Some(claim) = volume.persistent_volume_claim.as_ref().filter(|claim| ephemeral.contains(&claim.claim_name)) {
            let wrong = "must not reference a PVC that gets created for an ephemeral volume";
            report.invalid(&at.child("persistentVolumeClaim").child("claimName"), &claim.claim_name, wrong);
        }
    }
}

/// Sources that a cluster's storage drivers serve, and those that Kubernetes itself gave up.
fn needs_a_cluster(report: &mut Report<'_>, at: &Path<'_>, volume: &Volume) {
    const SERVED: [&str; 12] = [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "hostPath",
        "image",
        "iscsi",
        "nfs",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    for name in sources(volume).into_iter().filter(|name| !SERVED.contains(name)) {
        let why = match name {
            "gitRepo" => "Kubernetes has disabled gitRepo: let an init container clone into an emptyDir",
            _ => "this storage needs a cluster's driver: mount it on the node and use a hostPath",
        };
        report.forbidden(&at.child(name), why);
    }
}

fn source(report: &mut Report<'_>, at: &Path<'_>, v: &Volume) {
    if let Some(source) = &v.empty_dir {
        empty_dir(report, &at.child("emptyDir"), source);
    }
    if let Some(source) = &v.host_path {
        host_path(report, &at.child("hostPath"), source);
    }
    if let Some(source) = &v.secret {
        let at = at.child("secret");
        needed(report, &at.child("secretName"), source.secret_name.as_deref());
        report.mode(&at.child("defaultMode"), source.default_mode);
        report.id(&at.child("defaultUser"), source.default_user);
        items(report, &at.child("items"), source.items.as_deref());
    }
    if let Some(source) = &v.config_map {
        let at = at.child("configMap");
        needed(report, &at.child("name"), Some(&source.name));
        report.mode(&at.child("defaultMode"), source.default_mode);
        report.id(&at.child("defaultUser"), source.default_user);
        items(report, &at.child("items"), source.items.as_deref());
    }
    if let Some(source) = &v.downward_api {
        let at = at.child("downwardAPI");
        report.mode(&at.child("defaultMode"), source.default_mode);
        downward_items(report, &at.child("items"), source.items.as_deref());
    }
    if let Some(source) = v.projected.as_ref().filter(|_| !exported::is_token_volume(v)) {
        projected(report, &at.child("projected"), source);
    }
    if let Some(source) = &v.persistent_volume_claim {
        needed(report, &at.child("persistentVolumeClaim").child("claimName"), Some(&source.claim_name));
    }
    if let Some(source) = &v.ephemeral {
        let at = at.child("ephemeral");
        let at = at.child("volumeClaimTemplate");
        match &source.volume_claim_template {
            None => report.required(&at, ""),
            Some(template) => {
                if let Some(metadata) = &template.metadata {
                    claim_metadata(report, &at.child("metadata"), metadata);
                }
                object::claim_spec(report, &at.child("spec"), Some(&template.spec));
            }
        }
    }
    if let Some(source) = &v.image {
        let at = at.child("image");
        needed(report, &at.child("reference"), source.reference.as_deref());
        report.one_of(&at.child("pullPolicy"), source.pull_policy.as_deref(), &["Always", "IfNotPresent", "Never"]);
    }
    if let Some(source) = &v.nfs {
        let at = at.child("nfs");
        needed(report, &at.child("server"), Some(&source.server));
        needed(report, &at.child("path"), Some(&source.path));
        if !source.path.starts_with('/') {
            report.invalid(&at.child("path"), &source.path, "must be an absolute path");
        }
    }
    if let Some(source) = &v.iscsi {
        iscsi(report, &at.child("iscsi"), source);
    }
    if let Some(source) = &v.csi {
        csi(report, &at.child("csi"), source);
    }
    if let Some(source) = &v.git_repo {
        needed(report, &at.child("gitRepo").child("repository"), Some(&source.repository));
    }
}

/// A template gives its claims labels and annotations; the rest is the pod's to say.
fn claim_metadata(report: &mut Report<'_>, at: &Path<'_>, metadata: &ObjectMeta) {
    workload::labels(report, at, metadata);
    let set = [
        ("finalizers", metadata.finalizers.is_some()),
        ("generateName", metadata.generate_name.is_some()),
        ("name", metadata.name.is_some()),
        ("namespace", metadata.namespace.is_some()),
    ];
    for (name, _) in set.into_iter().filter(|(_, is_set)| *is_set) {
        report.forbidden(&at.child(name), "cannot be set");
    }
}

fn needed(report: &mut Report<'_>, at: &Path<'_>, value: Option<&str>) {
    if value.unwrap_or_default().is_empty() {
        report.required(at, "");
    }
}

fn empty_dir(report: &mut Report<'_>, at: &Path<'_>, source: &EmptyDirVolumeSource) {
    if let Some(limit) = &source.size_limit {
        let at = at.child("sizeLimit");
        match limit.0.parse::<Quantity>() {
            Ok(size) if size.is_negative() => report.forbidden(&at, "SizeLimit field must be a valid resource quantity"),
            _ => drop(resources::quantity(report, &at, &limit.0)),
        }
    }
    let medium = source.medium.as_deref().unwrap_or_default();
    let huge = medium.strip_prefix("HugePages-").is_some_and(|s| s.parse::<Quantity>().is_ok());
    if !huge {
        report.one_of(&at.child("medium"), Some(medium), &["", "Memory", "HugePages"]);
    }
    if let Some(mode) = source.mode.filter(|m| !(0..=0o1777).contains(m)) {
        report.invalid(&at.child("mode"), &mode, "must be a number between 0 and 01777 (octal), both inclusive");
    }
}

fn host_path(report: &mut Report<'_>, at: &Path<'_>, source: &HostPathVolumeSource) {
    needed(report, &at.child("path"), Some(&source.path));
    report.no_backsteps(&at.child("path"), &source.path);
    let known = ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
    report.one_of(&at.child("type"), source.type_.as_deref(), &known);
}

fn items(report: &mut Report<'_>, at: &Path<'_>, items: Option<&[KeyToPath]>) {
    for (i, item) in items.unwrap_or_default().iter().enumerate() {
        let at = at.index(i);
        needed(report, &at.child("key"), Some(&item.key));
        report.file_name(&at.child("path"), &item.path);
        report.mode(&at.child("mode"), item.mode);
        report.id(&at.child("user"), item.user);
    }
}

fn downward_items(report: &mut Report<'_>, at: &Path<'_>, items: Option<&[DownwardAPIVolumeFile]>) {
    for (i, item) in items.unwrap_or_default().iter().enumerate() {
        let at = at.index(i);
        report.file_name(&at.child("path"), &item.path);
        report.mode(&at.child("mode"), item.mode);
        match (&item.field_ref, &item.resource_field_ref) {
            (Some(_), Some(_)) => {
                report.invalid(&at, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously");
            }
            (Some(field), None) => env::field_ref(report, &at.child("fieldRef"), field, Target::File),
            (None, Some(field)) => env::resource_field_ref(report, &at.child("resourceFieldRef"), field, Target::File),
            (None, None) => report.required(&at.child("fieldRef"), "one of fieldRef and resourceFieldRef is required"),
        }
    }
}

fn projected(report: &mut Report<'_>, at: &Path<'_>, source: &ProjectedVolumeSource) {
    report.mode(&at.child("defaultMode"), source.default_mode);
    report.id(&at.child("defaultUser"), source.default_user);
    let list = at.child("sources");
    let mut paths = Unique::default();
    for (i, source) in source.sources.iter().flatten().enumerate() {
        let at = list.index(i);
        projection(report, &at, source);
        for (path, named) in projected_paths(source) {
            if paths.has(path) {
                report.invalid(&at, named, "conflicting duplicate paths");
            }
            paths.insert(path);
        }
    }
}

fn projection(report: &mut Report<'_>, at: &Path<'_>, source: &VolumeProjection) {
    let there = [
        ("clusterTrustBundle", source.cluster_trust_bundle.is_some()),
        ("configMap", source.config_map.is_some()),
        ("downwardAPI", source.downward_api.is_some()),
        ("podCertificate", source.pod_certificate.is_some()),
        ("secret", source.secret.is_some()),
        ("serviceAccountToken", source.service_account_token.is_some()),
    ];
    if there.into_iter().filter(|(_, is_some)| *is_some).count() > 1 {
        report.forbidden(at, "may not specify more than 1 volume type per source");
    }
    if let Some(map) = &source.config_map {
        let at = at.child("configMap");
        needed(report, &at.child("name"), Some(&map.name));
        items(report, &at.child("items"), map.items.as_deref());
    }
    if let Some(secret) = &source.secret {
        let at = at.child("secret");
        needed(report, &at.child("name"), Some(&secret.name));
        items(report, &at.child("items"), secret.items.as_deref());
    }
    if let Some(downward) = &source.downward_api {
        downward_items(report, &at.child("downwardAPI").child("items"), downward.items.as_deref());
    }
    let without_cluster = [
        ("serviceAccountToken", source.service_account_token.is_some()),
        ("clusterTrustBundle", source.cluster_trust_bundle.is_some()),
        ("podCertificate", source.pod_certificate.is_some()),
    ];
    for (name, _) in without_cluster.iter().filter(|(_, is_some)| *is_some) {
        report.forbidden(&at.child(name), "only an API server can issue it, and this node is not part of a cluster");
    }
    if let Some(token) = &source.service_account_token {
        service_account_token(report, &at.child("serviceAccountToken"), token);
    }
}

fn service_account_token(report: &mut Report<'_>, at: &Path<'_>, token: &ServiceAccountTokenProjection) {
    const SHORTEST: i64 = 600;
    const LONGEST: i64 = 1 << 32;
    let seconds = token.expiration_seconds.unwrap_or(3600);
    if seconds < SHORTEST {
        report.invalid(&at.child("expirationSeconds"), &seconds, "may not specify a duration less than 10 minutes");
    } else if seconds > LONGEST {
        report.invalid(&at.child("expirationSeconds"), &seconds, "may not specify a duration larger than 2^32 seconds");
    }
    report.file_name(&at.child("path"), &token.path);
}

/// The files that a projection says that it makes, and what the API server calls each of them: its object's name where it has one.
fn projected_paths(source: &VolumeProjection) -> Vec<(&str, &str)> {
    fn of<'a>(name: &'a str, items: Option<&'a [KeyToPath]>) -> impl Iterator<Item = (&'a str, &'a str)> {
        items.unwrap_or_default().iter().map(move |item| (item.path.as_str(), name))
    }
    let maps = source.config_map.iter().flat_map(|map| of(&map.name, map.items.as_deref()));
    let secrets = source.secret.iter().flat_map(|secret| of(&secret.name, secret.items.as_deref()));
    let downward = source.downward_api.iter().flat_map(|d| d.items.iter().flatten()).map(|i| i.path.as_str());
    let token = source.service_account_token.iter().map(|t| t.path.as_str());
    let own = downward.chain(token).map(|path| (path, path));
    maps.chain(secrets).chain(own).filter(|(path, _)| !path.is_empty()).collect()
}

fn csi(report: &mut Report<'_>, at: &Path<'_>, source: &CSIVolumeSource) {
    let driver = at.child("driver");
    needed(report, &driver, Some(&source.driver));
    if source.driver.len() > 63 {
        report.say(&driver, "Too long: may not be more than 63 bytes");
    }
    if !source.driver.is_empty() {
        report.each_invalid(&driver, &source.driver, names::dns_subdomain(&source.driver.to_lowercase()));
    }
    if let Some(secret) = &source.node_publish_secret_ref {
        report.name(&at.child("nodePublishSecretRef").child("name"), &secret.name, names::dns_subdomain);
    }
}

fn iscsi(report: &mut Report<'_>, at: &Path<'_>, source: &ISCSIVolumeSource) {
    needed(report, &at.child("targetPortal"), Some(&source.target_portal));
    needed(report, &at.child("iqn"), Some(&source.iqn));
    if let Some(wrong) = Some(source.iqn.as_str()).filter(|name| !name.is_empty()).and_then(wrong_iqn) {
        report.invalid(&at.child("iqn"), &source.iqn, wrong);
    }
    if !(0..=255).contains(&source.lun) {
        report.invalid(&at.child("lun"), &source.lun, "must be between 0 and 255, inclusive");
    }
    let chap = [("chapAuthDiscovery", source.chap_auth_discovery), ("chapAuthSession", source.chap_auth_session)];
    for (field, _) in chap.iter().filter(|(_, set)| *set == Some(true)) {
        report.forbidden(&at.child(field), "put the node's logins into /etc/iscsi/iscsid.conf");
    }
    if source.initiator_name.as_deref().is_some_and(|name| !name.is_empty()) {
        report.forbidden(&at.child("initiatorName"), "put the node's name into /etc/iscsi/initiatorname.iscsi");
    }
}

/// A target's name is `iqn.YYYY-MM.DOMAIN:NAME`, or one of two kinds of numbers.
fn wrong_iqn(name: &str) -> Option<&'static str> {
    let number = |rest: &str, length: usize| {
        rest.strip_prefix('.').is_some_and(|n| n.len() == length && n.bytes().all(|b| b.is_ascii_alphanumeric()))
    };
    let right = match name.split_at_checked(3) {
        Some(("iqn", rest)) => iqn(rest),
        Some(("eui", rest)) => number(rest, 16),
        Some(("naa", rest)) => number(rest, 32),
        _ => return Some("must be valid format starting with iqn, eui, or naa"),
    };
    (!right).then_some("must be valid format")
}

/// What follows `iqn`.
fn iqn(rest: &str) -> bool {
    let digits = |text: &str, count: usize| text.len() == count && text.bytes().all(|b| b.is_ascii_digit());
    let Some((date, rest)) = rest.strip_prefix('.').and_then(|rest| rest.split_once('.')) else { return false };
    let Some((domain, name)) = rest.split_once(':') else { return false };
    date.split_once('-').is_some_and(|(year, month)| digits(year, 4) && digits(month, 2))
        && !domain.is_empty()
        && domain.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
        && !name.is_empty()
        && !name.contains([',', ';', '*', '&', '$', '|'])
        && !name.contains(char::is_whitespace)
}

/// The names of the sources that a volume has.
pub(in crate::model) fn sources(v: &Volume) -> Vec<&'static str> {
    let sources: [(&'static str, bool); 30] = [
        ("awsElasticBlockStore", v.aws_elastic_block_store.is_some()),
        ("azureDisk", v.azure_disk.is_some()),
        ("azureFile", v.azure_file.is_some()),
        ("cephfs", v.cephfs.is_some()),
        ("cinder", v.cinder.is_some()),
        ("configMap", v.config_map.is_some()),
        ("csi", v.csi.is_some()),
        ("downwardAPI", v.downward_api.is_some()),
        ("emptyDir", v.empty_dir.is_some()),
        ("ephemeral", v.ephemeral.is_some()),
        ("fc", v.fc.is_some()),
        ("flexVolume", v.flex_volume.is_some()),
        ("flocker", v.flocker.is_some()),
        ("gcePersistentDisk", v.gce_persistent_disk.is_some()),
        ("gitRepo", v.git_repo.is_some()),
        ("glusterfs", v.glusterfs.is_some()),
        ("hostPath", v.host_path.is_some()),
        ("image", v.image.is_some()),
        ("iscsi", v.iscsi.is_some()),
        ("nfs", v.nfs.is_some()),
        ("persistentVolumeClaim", v.persistent_volume_claim.is_some()),
        ("photonPersistentDisk", v.photon_persistent_disk.is_some()),
        ("portworxVolume", v.portworx_volume.is_some()),
        ("projected", v.projected.is_some()),
        ("quobyte", v.quobyte.is_some()),
        ("rbd", v.rbd.is_some()),
        ("scaleIO", v.scale_io.is_some()),
        ("secret", v.secret.is_some()),
        ("storageos", v.storageos.is_some()),
        ("vsphereVolume", v.vsphere_volume.is_some()),
    ];
    sources.into_iter().filter(|(_, is_some)| *is_some).map(|(name, _)| name).collect()
}
