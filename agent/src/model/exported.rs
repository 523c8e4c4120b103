//! What a cluster adds to every pod that it takes, and `kubectl get pod -o yaml` shows: such a pod shall run here as its author wrote it.
//! Pure.

use k8s_openapi::api::core::v1::{Pod, Volume, VolumeMount};

/// The volume with the service account's token that the API server adds: `kube-api-access-` and five letters or digits.
pub fn is_token_volume(volume: &Volume) -> bool {
    let added = volume.name.strip_prefix("kube-api-access-");
    let sources = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
    added.is_some_and(|end| end.len() == 5 && end.bytes().all(|b| b.is_ascii_alphanumeric()))
        && sources.into_iter().any(|source| source.service_account_token.is_some())
}

/// Takes that volume out of a pod, with its mounts.
pub fn leave_out(pod: &mut Pod) {
    let Some(spec) = &mut pod.spec else { return };
    let Some(volumes) = &mut spec.volumes else { return };
    let names: Vec<String> = volumes.iter().filter(|v| is_token_volume(v)).map(|v| v.name.clone()).collect();
    volumes.retain(|volume| !names.contains(&volume.name));
    let without = |mounts: &mut Option<Vec<VolumeMount>>| {
        if let Some(mounts) = mounts {
            mounts.retain(|mount| !names.contains(&mount.name));
        }
    };
    spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()).for_each(|c| without(&mut c.volume_mounts));
    spec.ephemeral_containers.iter_mut().flatten().for_each(|c| without(&mut c.volume_mounts));
}
