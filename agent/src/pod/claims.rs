//! Claims of a cluster's pods: each stands for what the PersistentVolume that it is bound to is made of, as if the pod had said so itself.
//! Files' pods have folders instead (`runtime::volumes::claim`).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    CSIVolumeSource, HostPathVolumeSource, ISCSIVolumeSource, PersistentVolume, PersistentVolumeClaim, Volume, VolumeDevice,
    VolumeMount,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use super::Node;
use super::objects::Objects;
use crate::model::{Body, ObjectKind, ObjectRef, Origin, ValidObject, ValidPod, references};
use crate::plugin::csi::wanted::{self, Mode, Wanted};
use crate::runtime;

/// The volume that a claim is bound to; none: it isn't, or isn't a claim.
pub fn volume_of(object: &ValidObject) -> Option<ObjectRef> {
    let Body::PersistentVolumeClaim(claim) = object.body() else { return None };
    let name = claim.spec.as_ref()?.volume_name.as_deref().filter(|name| !name.is_empty())?;
    Some(ObjectRef::new(ObjectKind::PersistentVolume, "", name))
}

/// What of an API server's objects is behind a claim: its volume, and what mounting that takes on this node.
pub fn behind(objects: &Objects, claim: &ValidObject, node: &str) -> Vec<ObjectRef> {
    let Some(key) = volume_of(claim) else { return Vec::new() };
    let mut keys = vec![key.clone()];
    if let Some(Body::PersistentVolume(volume)) = objects.get(&key).as_ref().map(ValidObject::body)
        && let Some(wanted) = Wanted::persistent(volume)
    {
        let attachment = wanted::attachment(&wanted.handle, &wanted.driver, node);
        keys.push(ObjectRef::new(ObjectKind::VolumeAttachment, "", &attachment));
        keys.push(ObjectRef::new(ObjectKind::CsiDriver, "", &wanted.driver));
        keys.extend(wanted.secrets.iter().flatten().map(|secret| wanted::secret_key(&wanted.name, secret)));
    }
    keys
}

/// A pod whose volumes are none of an API server's objects any more.
pub(super) struct Resolved {
    pub pod: ValidPod,
    /// Volumes that no container may write, whatever its mount says.
    pub read_only: Vec<String>,
    /// Folders of the node's own disks that a pod may write: they are given to its fsGroup.
    pub disks: Vec<String>,
    /// Why a volume must not be mounted here: what is mounted already is taken back all the same.
    pub elsewhere: Option<runtime::Error>,
    /// Volumes that CSI drivers mount, by their names in the pod.
    pub csi: BTreeMap<String, Wanted>,
}

impl Node {
    /// What a pod's claims stand for.
    pub(super) fn resolve_claims(&self, pod: &ValidPod) -> Result<Resolved, runtime::Error> {
        let mut read_only = Vec::new();
        let (mut disks, mut elsewhere) = (Vec::new(), None);
        let mut csi = super::csi::inline(pod);
        let claims = |volume: &Volume| volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some();
        if *pod.origin() != Origin::Api || !pod.spec().volumes.iter().flatten().any(claims) {
            return Ok(Resolved { pod: pod.clone(), read_only, disks, elsewhere, csi });
        }
        let mut object = k8s_openapi::api::core::v1::Pod::clone(pod.object());
        for volume in object.spec.iter_mut().flat_map(|spec| spec.volumes.iter_mut().flatten()) {
            let (name, only_read) = match (&volume.persistent_volume_claim, &volume.ephemeral) {
                (Some(source), _) => (source.claim_name.clone(), source.read_only == Some(true)),
                (None, Some(_)) => (references::ephemeral_claim(pod, volume), false),
                (None, None) => continue,
            };
            let found = find(&self.objects.cluster, pod.namespace(), &name);
            let found = found.and_then(|found| if volume.ephemeral.is_some() { of_pod(found, pod) } else { Ok(found) });
            let found = found.and_then(|found| check_use(pod, &volume.name, Mode::of(&found.1)).map(|()| found));
            let (claim, of) = found.map_err(|message| runtime::Error::volume(pod, &volume.name, message))?;
            let only_read = only_read || reads_only(&claim);
            if only_read {
                read_only.push(volume.name.clone());
            }
            if let Err(message) = self.check_place(&of) {
                elsewhere.get_or_insert_with(|| runtime::Error::volume(pod, &volume.name, message));
            }
            if is_folder_of_a_disk(&of) && !only_read {
                disks.push(volume.name.clone());
            }
            if let Some(mut wanted) = Wanted::persistent(&of) {
                wanted.read_only |= only_read;
                csi.insert(volume.name.clone(), wanted);
            }
            *volume = made_of(&volume.name, &of).map_err(|message| runtime::Error::volume(pod, &volume.name, message))?;
        }
        Ok(Resolved { pod: ValidPod::trusted(object, Origin::Api), read_only, disks, elsewhere, csi })
    }

    /// A volume that only other nodes can reach is no volume here, whoever bound its claim.
    fn check_place(&self, of: &PersistentVolume) -> Result<(), String> {
        let required = of.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref()?.required.as_ref());
        if required.is_none_or(|nodes| self.admission.is_among(nodes)) {
            return Ok(());
        }
        let name = of.metadata.name.as_deref().unwrap_or_default();
        Err(format!("PersistentVolume {name} is not for this node: no matching NodeSelectorTerms in its nodeAffinity"))
    }
}

pub(super) type Bound = (std::sync::Arc<PersistentVolumeClaim>, std::sync::Arc<PersistentVolume>);

pub(super) fn find(objects: &Objects, namespace: &str, name: &str) -> Result<Bound, String> {
    let claim = objects.get(&ObjectRef::new(ObjectKind::PersistentVolumeClaim, namespace, name));
    let Some(claim) = claim else { return Err(format!("persistentvolumeclaim \"{name}\" not found")) };
    let volume = volume_of(&claim).and_then(|key| objects.get(&key));
    match (claim.body(), volume.as_ref().map(ValidObject::body)) {
        (Body::PersistentVolumeClaim(claim), Some(Body::PersistentVolume(volume))) => Ok((claim.clone(), volume.clone())),
        _ => Err(format!("error processing PVC {namespace}/{name}: PVC is not bound")),
    }
}

/// Somebody else's claim may have the name that this pod's would have.
fn of_pod(found: Bound, pod: &ValidPod) -> Result<Bound, String> {
    let metadata = &found.0.metadata;
    let is_owner = |owner: &OwnerReference| owner.controller == Some(true) && owner.uid == pod.uid().as_str();
    if metadata.owner_references.iter().flatten().any(is_owner) {
        return Ok(found);
    }
    let name = metadata.name.as_deref().unwrap_or_default();
    Err(format!("PVC {}/{name} was not created for pod {}/{} (pod is not owner)", pod.namespace(), pod.namespace(), pod.name()))
}

/// A folder of a disk of the node's own.
fn is_folder_of_a_disk(of: &PersistentVolume) -> bool {
    Mode::of(of) == Mode::Filesystem && of.spec.as_ref().is_some_and(|spec| spec.local.is_some())
}

/// A device can't be mounted, a folder be no device.
fn check_use(pod: &ValidPod, volume: &str, mode: Mode) -> Result<(), String> {
    let spec = pod.spec();
    let mut containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let ephemeral = || spec.ephemeral_containers.iter().flatten();
    let (used, field) = match mode {
        Mode::Block => {
            let mounts = |mounts: &Option<Vec<VolumeMount>>| mounts.iter().flatten().any(|mount| mount.name == volume);
            (containers.any(|c| mounts(&c.volume_mounts)) || ephemeral().any(|c| mounts(&c.volume_mounts)), "volumeMounts")
        }
        Mode::Filesystem => {
            let devices = |devices: &Option<Vec<VolumeDevice>>| devices.iter().flatten().any(|device| device.name == volume);
            (containers.any(|c| devices(&c.volume_devices)) || ephemeral().any(|c| devices(&c.volume_devices)), "volumeDevices")
        }
    };
    let wrong = || format!("volume {volume} has volumeMode {}, but is specified in {field}", mode.as_str());
    if used { Err(wrong()) } else { Ok(()) }
}

fn reads_only(claim: &PersistentVolumeClaim) -> bool {
    let modes = claim.spec.iter().flat_map(|spec| spec.access_modes.iter().flatten());
    let mut modes = modes.peekable();
    modes.peek().is_some() && modes.all(|mode| mode == "ReadOnlyMany")
}

/// A volume of that name, as a pod would write it.
fn made_of(name: &str, of: &PersistentVolume) -> Result<Volume, String> {
    let pv = of.metadata.name.as_deref().unwrap_or_default();
    let spec = of.spec.as_ref().ok_or_else(|| format!("PersistentVolume {pv} says nothing of what it is"))?;
    let mode = Mode::of(of);
    if mode == Mode::Block && spec.local.is_none() && spec.csi.is_none() {
        return Err(format!(
            "PersistentVolume {pv} is a raw block device of a kind that this node can't give: csi and local are"
        ));
    }
    let mut volume = Volume { name: name.into(), ..Volume::default() };
    if let Some(local) = &spec.local {
        // It is somebody's disk: never made, where it isn't there.
        let kind = if mode == Mode::Block { "BlockDevice" } else { "Directory" };
        volume.host_path = Some(HostPathVolumeSource { path: local.path.clone(), type_: Some(kind.into()) });
    } else if let Some(path) = &spec.host_path {
        volume.host_path = Some(path.clone());
    } else if let Some(nfs) = &spec.nfs {
        volume.nfs = Some(nfs.clone());
    } else if let Some(iscsi) = &spec.iscsi {
        volume.iscsi = Some(ISCSIVolumeSource {
            chap_auth_discovery: iscsi.chap_auth_discovery,
            chap_auth_session: iscsi.chap_auth_session,
            fs_type: iscsi.fs_type.clone(),
            initiator_name: iscsi.initiator_name.clone(),
            iqn: iscsi.iqn.clone(),
            iscsi_interface: iscsi.iscsi_interface.clone(),
            lun: iscsi.lun,
            portals: iscsi.portals.clone(),
            read_only: iscsi.read_only,
            secret_ref: None,
            target_portal: iscsi.target_portal.clone(),
        });
    } else if let Some(source) = &spec.csi {
        volume.csi =
            Some(CSIVolumeSource { driver: source.driver.clone(), read_only: source.read_only, ..CSIVolumeSource::default() });
    } else {
        return Err(format!(
            "PersistentVolume {pv} is of a kind that this node has no driver for: csi, hostPath, local, nfs and iscsi are served"
        ));
    }
    Ok(volume)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;

    fn volume(spec: Value) -> PersistentVolume {
        serde_json::from_value(json!({"metadata": {"name": "pv"}, "spec": spec})).unwrap()
    }

    #[test]
    fn a_claim_is_what_its_volume_is() {
        let made = |spec: Value| made_of("data", &volume(spec)).map(|volume| json!(volume));
        assert_eq!(
            made(json!({"local": {"path": "/disk"}})),
            Ok(json!({"name": "data", "hostPath": {"path": "/disk", "type": "Directory"}}))
        );
        assert_eq!(made(json!({"hostPath": {"path": "/p"}})), Ok(json!({"name": "data", "hostPath": {"path": "/p"}})));
        assert_eq!(
            made(json!({"nfs": {"server": "s", "path": "/p"}})),
            Ok(json!({"name": "data", "nfs": {"server": "s", "path": "/p"}}))
        );
        assert_eq!(
            made(json!({"csi": {"driver": "d", "volumeHandle": "h"}})),
            Ok(json!({"name": "data", "csi": {"driver": "d"}}))
        );
        assert!(made(json!({"rbd": {"image": "i", "monitors": []}})).unwrap_err().contains("no driver"));
        assert_eq!(
            made(json!({"volumeMode": "Block", "local": {"path": "/dev/sdb"}})),
            Ok(json!({"name": "data", "hostPath": {"path": "/dev/sdb", "type": "BlockDevice"}}))
        );
        assert!(made(json!({"volumeMode": "Block", "hostPath": {"path": "/dev/sdb"}})).unwrap_err().contains("block device"));
    }

    #[test]
    fn a_device_is_not_mounted_and_a_folder_is_no_device() {
        let pod = |container: Value| {
            let pod = json!({"metadata": {"name": "web", "namespace": "shop", "uid": "u"}, "spec": {"containers": [container]}});
            ValidPod::trusted(serde_json::from_value(pod).unwrap(), Origin::Api)
        };
        let mounts = pod(json!({"name": "a", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}));
        let has = pod(json!({"name": "a", "volumeDevices": [{"name": "data", "devicePath": "/dev/x"}]}));
        let wrong = |pod, mode| check_use(pod, "data", mode).err();
        assert_eq!((wrong(&mounts, Mode::Filesystem), wrong(&has, Mode::Block)), (None, None));
        let said = wrong(&mounts, Mode::Block).unwrap();
        assert_eq!(said, "volume data has volumeMode Block, but is specified in volumeMounts");
        let said = wrong(&has, Mode::Filesystem).unwrap();
        assert_eq!(said, "volume data has volumeMode Filesystem, but is specified in volumeDevices");
    }

    #[test]
    fn what_is_missing_of_a_claim_is_told() {
        let objects = Objects::default();
        let find = || find(&objects, "shop", "data").map(drop);
        assert_eq!(find().unwrap_err(), "persistentvolumeclaim \"data\" not found");
        let claim = |spec: Value| {
            let claim = json!({"metadata": {"name": "data", "namespace": "shop"}, "spec": spec});
            let claim = Body::PersistentVolumeClaim(Arc::new(serde_json::from_value(claim).unwrap()));
            objects.put(ValidObject::trusted(claim, Origin::Api));
        };
        claim(json!({}));
        assert!(find().unwrap_err().contains("not bound"));
        claim(json!({"volumeName": "pv"}));
        assert!(find().unwrap_err().contains("not bound"), "its volume isn't known yet");
        let pv = Body::PersistentVolume(Arc::new(volume(json!({"hostPath": {"path": "/p"}}))));
        objects.put(ValidObject::trusted(pv, Origin::Api));
        assert_eq!(find(), Ok(()));
    }
}
