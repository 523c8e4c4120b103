//! Metadata, the spec's own fields, and the volumes.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Volume};

use super::names;
use super::report::{Report, Unique};
use crate::model::path::Path;

pub(super) fn metadata(report: &mut Report<'_>, pod: &Pod) {
    let at = Path::ROOT.child("metadata");
    let meta = &pod.metadata;
    match meta.name.as_deref().unwrap_or_default() {
        "" if meta.generate_name.is_some() => {
            report.required(&at.child("name"), "generateName would give another pod each time that the file is read");
        }
        name => report.name(&at.child("name"), name, names::dns_subdomain),
    }
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    report.each_invalid(&at.child("namespace"), namespace, names::dns_label(namespace));
    let uid = meta.uid.as_deref().unwrap_or_default();
    report.each_invalid(&at.child("uid"), uid, names::uid(uid));
    for (key, value) in meta.labels.iter().flatten() {
        report.each_invalid(&at.child("labels"), key, names::qualified_name(key));
        report.each_invalid(&at.child("labels"), value, names::label_value(value));
    }
    annotations(report, &at.child("annotations"), meta);
}

fn annotations(report: &mut Report<'_>, at: &Path<'_>, meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) {
    const LIMIT: usize = 256 * 1024;
    let mut total = 0;
    for (key, value) in meta.annotations.iter().flatten() {
        report.each_invalid(at, key, names::qualified_name(&key.to_lowercase()));
        total += key.len() + value.len();
    }
    if total > LIMIT {
        report.say(at, format!("Too long: may not be more than {LIMIT} bytes"));
    }
}

pub(super) fn spec(report: &mut Report<'_>, at: &Path<'_>, spec: &PodSpec) {
    let mut volumes = Unique::default();
    for (i, volume) in spec.volumes.iter().flatten().enumerate() {
        self::volume(report, &at.child("volumes").index(i), volume, &mut volumes);
    }
    if spec.containers.is_empty() {
        report.required(&at.child("containers"), "");
    }
    let mut seen = Unique::default();
    for (i, c) in spec.init_containers.iter().flatten().enumerate() {
        container(report, &at.child("initContainers").index(i), c, &mut seen, &volumes);
    }
    for (i, c) in spec.containers.iter().enumerate() {
        container(report, &at.child("containers").index(i), c, &mut seen, &volumes);
    }
    report.one_of(&at.child("restartPolicy"), spec.restart_policy.as_deref(), &["Always", "OnFailure", "Never"]);
    let policies = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    report.one_of(&at.child("dnsPolicy"), spec.dns_policy.as_deref(), &policies);
    report.not_negative(&at.child("terminationGracePeriodSeconds"), spec.termination_grace_period_seconds);
}

fn container<'a>(report: &mut Report<'_>, at: &Path<'_>, c: &'a Container, seen: &mut Unique<'a>, volumes: &Unique<'_>) {
    report.name(&at.child("name"), &c.name, names::dns_label);
    if !c.name.is_empty() {
        seen.check(report, &at.child("name"), &c.name);
    }
    if c.image.as_deref().unwrap_or_default().is_empty() {
        report.required(&at.child("image"), "");
    }
    for (i, mount) in c.volume_mounts.iter().flatten().enumerate() {
        let list = at.child("volumeMounts");
        let at = list.index(i);
        if !volumes.has(&mount.name) {
            report.not_found(&at.child("name"), &mount.name);
        }
    }
}

fn volume<'a>(report: &mut Report<'_>, at: &Path<'_>, volume: &'a Volume, seen: &mut Unique<'a>) {
    report.name(&at.child("name"), &volume.name, names::dns_label);
    if !volume.name.is_empty() {
        seen.check(report, &at.child("name"), &volume.name);
    }
    for more in volume_sources(volume).iter().skip(1) {
        report.forbidden(&at.child(more), "may not specify more than 1 volume type");
    }
}

/// The names of the sources that a volume has.
pub(in crate::model) fn volume_sources(v: &Volume) -> Vec<&'static str> {
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
