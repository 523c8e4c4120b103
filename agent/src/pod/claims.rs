//! Claims of a cluster's pods: each stands for what the PersistentVolume that it is bound to is made of, as if the pod had said so itself.
//! Files' pods have folders instead (`runtime::volumes::claim`).

use k8s_openapi::api::core::v1::{
    HostPathVolumeSource, ISCSIVolumeSource, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Volume,
};

use super::Node;
use super::objects::Objects;
use crate::model::{Body, ObjectKind, ObjectRef, Origin, ValidObject, ValidPod};
use crate::runtime;

/// The volume that a claim is bound to; none: it isn't, or isn't a claim.
pub fn volume_of(object: &ValidObject) -> Option<ObjectRef> {
    let Body::PersistentVolumeClaim(claim) = object.body() else { return None };
    let name = claim.spec.as_ref()?.volume_name.as_deref().filter(|name| !name.is_empty())?;
    Some(ObjectRef::new(ObjectKind::PersistentVolume, "", name))
}

/// A pod whose volumes are none of an API server's objects any more.
pub(super) struct Resolved {
    pub pod: ValidPod,
    /// Volumes that no container may write, whatever its mount says.
    pub read_only: Vec<String>,
}

impl Node {
    /// What a pod's claims stand for.
    pub(super) fn resolve_claims(&self, pod: &ValidPod) -> Result<Resolved, runtime::Error> {
        let mut read_only = Vec::new();
        let claims = |volume: &Volume| volume.persistent_volume_claim.is_some();
        if *pod.origin() != Origin::Api || !pod.spec().volumes.iter().flatten().any(claims) {
            return Ok(Resolved { pod: pod.clone(), read_only });
        }
        let mut object = k8s_openapi::api::core::v1::Pod::clone(pod.object());
        for volume in object.spec.iter_mut().flat_map(|spec| spec.volumes.iter_mut().flatten()) {
            let Some(source) = volume.persistent_volume_claim.take() else { continue };
            let found = find(&self.objects.cluster, pod.namespace(), &source);
            let (claim, of) = found.map_err(|message| runtime::Error::volume(pod, &volume.name, message))?;
            if source.read_only == Some(true) || reads_only(&claim) {
                read_only.push(volume.name.clone());
            }
            *volume = made_of(&volume.name, &of).map_err(|message| runtime::Error::volume(pod, &volume.name, message))?;
        }
        Ok(Resolved { pod: ValidPod::trusted(object, Origin::Api), read_only })
    }
}

type Bound = (std::sync::Arc<PersistentVolumeClaim>, std::sync::Arc<PersistentVolume>);

fn find(objects: &Objects, namespace: &str, source: &PersistentVolumeClaimVolumeSource) -> Result<Bound, String> {
    let name = &source.claim_name;
    let claim = objects.get(&ObjectRef::new(ObjectKind::PersistentVolumeClaim, namespace, name));
    let Some(claim) = claim else { return Err(format!("persistentvolumeclaim \"{name}\" not found")) };
    let volume = volume_of(&claim).and_then(|key| objects.get(&key));
    match (claim.body(), volume.as_ref().map(ValidObject::body)) {
        (Body::PersistentVolumeClaim(claim), Some(Body::PersistentVolume(volume))) => Ok((claim.clone(), volume.clone())),
        _ => Err(format!("error processing PVC {namespace}/{name}: PVC is not bound")),
    }
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
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err(format!("PersistentVolume {pv} is a raw block device, which this node gives to no pod"));
    }
    let mut volume = Volume { name: name.into(), ..Volume::default() };
    if let Some(local) = &spec.local {
        // It is somebody's disk: never made, where it isn't there.
        volume.host_path = Some(HostPathVolumeSource { path: local.path.clone(), type_: Some("Directory".into()) });
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
    } else {
        return Err(format!(
            "PersistentVolume {pv} is of a kind that this node has no driver for: hostPath, local, nfs and iscsi are served"
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
        assert!(made(json!({"csi": {"driver": "d", "volumeHandle": "h"}})).unwrap_err().contains("no driver"));
        assert!(made(json!({"volumeMode": "Block", "local": {"path": "/dev/sdb"}})).unwrap_err().contains("block device"));
    }

    #[test]
    fn what_is_missing_of_a_claim_is_told() {
        let objects = Objects::default();
        let source = PersistentVolumeClaimVolumeSource { claim_name: "data".into(), read_only: None };
        let find = || find(&objects, "shop", &source).map(drop);
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
