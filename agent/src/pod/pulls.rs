//! What a pod pulls besides its containers' images, and with which logins: image volumes, imagePullSecrets.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::PoisonError;

use super::Node;
use crate::image::{self, Credential, Image, Pin, PullPolicy, Reference};
use crate::model::{PodUid, Subject, ValidPod};
use crate::runtime;
use crate::runtime::recipe::env::Objects as _;

/// Images that volumes of a pod use, by the volumes' names: not to be collected while the pod is there.
pub type VolumeImages = BTreeMap<String, (Image, Pin)>;

impl Node {
    /// The logins of the pod's imagePullSecrets. A Secret that isn't there or isn't right is skipped, as the kubelet does: the image may
    /// be public, and the registry's own words tell when it isn't.
    pub(super) fn credentials(&self, pod: &ValidPod) -> Vec<Credential> {
        let secrets = pod.spec().image_pull_secrets.iter().flatten();
        let secrets = secrets.filter_map(|reference| self.objects.of(pod).secret(pod.namespace(), &reference.name));
        let mut credentials = Vec::new();
        for secret in secrets {
            for key in [".dockerconfigjson", ".dockercfg"] {
                let Some(json) = secret.data.as_ref().and_then(|data| data.get(key)) else { continue };
                match Credential::from_docker_config(&json.0) {
                    Ok(logins) => credentials.extend(logins),
                    Err(_) => {
                        tracing::warn!(%pod, secret = secret.metadata.name, "the image pull secret is no Docker configuration");
                    }
                }
            }
        }
        credentials
    }

    /// An image as the policy wants it; pulled with the pod's logins, if it must be.
    pub(super) async fn ensure_image(&self, pod: &ValidPod, reference: &str, policy: PullPolicy) -> image::Result<Image> {
        let logins = if self.images.must_be_pulled(reference, policy) { self.logins(pod, reference).await } else { Vec::new() };
        self.images.ensure(reference, policy, &logins, &|_| ()).await
    }

    /// The logins for an image that a pod pulls: of its imagePullSecrets, then of credential providers.
    async fn logins(&self, pod: &ValidPod, reference: &str) -> Vec<Credential> {
        let mut logins = self.credentials(pod);
        if let (Some(providers), Ok(image)) = (&self.providers, Reference::parse(reference)) {
            logins.extend(providers.logins(&image, Some(&Subject::of(pod))).await);
        }
        logins
    }

    /// The logins for an image that a person pulls.
    pub(super) async fn logins_for(&self, image: &str) -> Vec<Credential> {
        match (&self.providers, Reference::parse(image)) {
            (Some(providers), Ok(image)) => providers.logins(&image, None).await,
            _ => Vec::new(),
        }
    }

    /// What volumes need before they can be made, and may wait for: other machines, images. The images' layers, as
    /// [`Self::volume_images`] has them.
    pub(super) async fn attach_volumes(&self, pod: &ValidPod) -> Result<BTreeMap<String, Vec<PathBuf>>, runtime::Error> {
        self.runtime.attach_volumes(pod).await?;
        self.volume_images(pod).await
    }

    /// Makes the images of image volumes present. Their layers, the lowest first, by the volumes' names.
    async fn volume_images(&self, pod: &ValidPod) -> Result<BTreeMap<String, Vec<PathBuf>>, runtime::Error> {
        let mut layers = BTreeMap::new();
        for volume in pod.spec().volumes.iter().flatten() {
            let Some(source) = &volume.image else { continue };
            if let Some(known) = self.held_layers(pod.uid(), &volume.name) {
                layers.insert(volume.name.clone(), known);
                continue;
            }
            let reference = source.reference.as_deref().unwrap_or_default();
            let policy = PullPolicy::named(source.pull_policy.as_deref());
            let image = self.ensure_image(pod, reference, policy).await.map_err(|error| {
                let message = format!("failed to pull image \"{reference}\": {error}");
                runtime::Error::volume(pod, &volume.name, message)
            })?;
            let pin = self.images.pin(&image);
            layers.insert(volume.name.clone(), image.layers.to_vec());
            self.hold_image(pod.uid(), &volume.name, image, pin);
        }
        Ok(layers)
    }

    fn held_layers(&self, uid: &PodUid, volume: &str) -> Option<Vec<PathBuf>> {
        let held = self.volume_images.lock().unwrap_or_else(PoisonError::into_inner);
        held.get(uid)?.get(volume).map(|(image, _)| image.layers.to_vec())
    }

    fn hold_image(&self, uid: &PodUid, volume: &str, image: Image, pin: Pin) {
        let mut held = self.volume_images.lock().unwrap_or_else(PoisonError::into_inner);
        held.entry(uid.clone()).or_default().insert(volume.to_owned(), (image, pin));
    }

    /// The pod is gone: its volumes' images may be collected.
    pub(super) fn release_images(&self, uid: &PodUid) {
        self.volume_images.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}
