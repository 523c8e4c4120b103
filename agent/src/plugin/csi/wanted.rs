//! From what a pod, a PersistentVolume and a CSIDriver say to what a driver is asked for. Pure.

use std::path::Path;

use k8s_openapi::api::core::v1::{CSIVolumeSource, PersistentVolume, SecretReference};
use k8s_openapi::api::storage::v1::CSIDriverSpec;
use serde::{Deserialize, Serialize};

use super::api::{
    AccessMode, CapacityRange, Empty, ExpandRequest, Map, MountVolume, PublishRequest, StageRequest, VolumeCapability,
};
use super::driver::Can;
use crate::image::Digest;
use crate::model::{ObjectKind, ObjectRef, Origin, ValidPod};
use crate::runtime::volumes;

/// A volume of a pod that a CSI driver makes.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// Its folder's: the PersistentVolume's name, or the volume's in the pod.
    pub name: String,
    /// The driver's name.
    pub driver: String,
    /// The driver's name for the volume.
    pub handle: String,
    /// How long it lives.
    pub life: Life,
    /// Namespace and name of the claim that has it.
    pub claim: Option<(String, String)>,
    /// What pods get of it.
    pub mode: Mode,
    /// Such as `ext4`; empty: the driver's choice.
    pub fs_type: String,
    /// For the driver alone.
    pub attributes: Map,
    /// Options of mount(8).
    pub options: Vec<String>,
    /// Kubernetes' names: `ReadWriteOnce`.
    pub access_modes: Vec<String>,
    /// Not to be written.
    pub read_only: bool,
    /// The Secrets with keys for staging, for publishing, and for growing.
    pub secrets: [Option<SecretReference>; 3],
}

/// What pods get of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Mode {
    /// A folder.
    #[default]
    Filesystem,
    /// A device.
    Block,
}

impl Mode {
    /// As Kubernetes names it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Filesystem => "Filesystem",
            Self::Block => "Block",
        }
    }

    /// What a PersistentVolume says of itself.
    pub fn of(volume: &PersistentVolume) -> Self {
        let said = volume.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref());
        if said == Some("Block") { Self::Block } else { Self::Filesystem }
    }
}

/// How long a volume lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// As long as its pod.
    Ephemeral,
    /// Longer than pods.
    Persistent,
}

impl Life {
    /// As a CSIDriver names it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ephemeral => "Ephemeral",
            Self::Persistent => "Persistent",
        }
    }
}

/// SHA-256.
fn hex(text: &str) -> String {
    Digest::of(text.as_bytes()).hex().to_owned()
}

/// The folder in which a driver stages a file system.
pub fn staging_folder(handle: &str) -> String {
    hex(handle)
}

/// The VolumeAttachment of a volume on a node.
pub fn attachment(handle: &str, driver: &str, node: &str) -> String {
    format!("csi-{}", hex(&format!("{handle}{driver}{node}")))
}

/// The key by which the objects behind a PersistentVolume keep a Secret that it names: no Secret has such a name.
pub fn secret_key(volume: &str, secret: &SecretReference) -> ObjectRef {
    let name = format!("{volume}/csi/{}", secret.name.as_deref().unwrap_or_default());
    ObjectRef::new(ObjectKind::Secret, secret.namespace.as_deref().unwrap_or_default(), &name)
}

impl Wanted {
    /// Of a volume that a pod describes itself.
    pub fn inline(pod: &ValidPod, name: &str, source: &CSIVolumeSource) -> Self {
        let secret = source
            .node_publish_secret_ref
            .as_ref()
            .map(|secret| SecretReference { name: Some(secret.name.clone()), namespace: Some(pod.namespace().to_owned()) });
        Self {
            name: name.into(),
            driver: source.driver.clone(),
            handle: format!("csi-{}", hex(&format!("{}{name}", pod.uid()))),
            life: Life::Ephemeral,
            claim: None,
            mode: Mode::Filesystem,
            fs_type: source.fs_type.clone().unwrap_or_default(),
            attributes: source.volume_attributes.clone().unwrap_or_default(),
            options: Vec::new(),
            access_modes: vec!["ReadWriteOnce".into()],
            read_only: source.read_only == Some(true),
            secrets: [None, secret, None],
        }
    }

    /// Of a PersistentVolume; none: it is made of something else.
    pub fn persistent(volume: &PersistentVolume) -> Option<Self> {
        let spec = volume.spec.as_ref()?;
        let source = spec.csi.as_ref()?;
        Some(Self {
            name: volume.metadata.name.clone().unwrap_or_default(),
            driver: source.driver.clone(),
            handle: source.volume_handle.clone(),
            life: Life::Persistent,
            claim: spec.claim_ref.as_ref().and_then(|claim| Some((claim.namespace.clone()?, claim.name.clone()?))),
            mode: Mode::of(volume),
            fs_type: source.fs_type.clone().unwrap_or_default(),
            attributes: source.volume_attributes.clone().unwrap_or_default(),
            options: spec.mount_options.clone().unwrap_or_default(),
            access_modes: spec.access_modes.clone().unwrap_or_default(),
            read_only: source.read_only == Some(true),
            secrets: [
                source.node_stage_secret_ref.clone(),
                source.node_publish_secret_ref.clone(),
                source.node_expand_secret_ref.clone(),
            ],
        })
    }

    /// Whether the driver can be asked for a volume of this life; else the kubelet's sentence. A file's pod has no CSIDriver to look at.
    pub fn check_life(&self, pod: &ValidPod, driver: Option<&CSIDriverSpec>) -> Result<(), String> {
        let (name, life) = (&self.driver, self.life.as_str());
        match driver {
            None if self.life == Life::Persistent || *pod.origin() != Origin::Api => Ok(()),
            None => Err(format!("volume mode {life:?} not supported by driver {name} (no CSIDriver object)")),
            Some(spec) => {
                let modes = spec.volume_lifecycle_modes.as_deref().unwrap_or_default();
                // Kubernetes' default.
                let fine = modes.iter().any(|mode| mode == life) || modes.is_empty() && self.life == Life::Persistent;
                let message = || format!("volume mode {life:?} not supported by driver {name} (only supports {modes:?})");
                if fine { Ok(()) } else { Err(message()) }
            }
        }
    }

    /// Whether it must be attached to the node before it can be mounted.
    pub fn needs_attachment(&self, driver: Option<&CSIDriverSpec>) -> bool {
        self.life == Life::Persistent && driver.and_then(|spec| spec.attach_required) != Some(false)
    }

    /// Whether the agent gives the mounted volume to the pod's fsGroup, by CSIDriver's fsGroupPolicy.
    pub fn takes_fs_group(&self, driver: Option<&CSIDriverSpec>, can: Can) -> bool {
        if can.mount_group || self.read_only || self.mode == Mode::Block {
            return false;
        }
        match driver.and_then(|spec| spec.fs_group_policy.as_deref()) {
            Some("None") => false,
            Some("File") => true,
            _ => {
                let once = |mode: &String| matches!(mode.as_str(), "ReadWriteOnce" | "ReadWriteOncePod");
                !self.fs_type.is_empty() && self.access_modes.iter().any(once)
            }
        }
    }

    fn capability(&self, can: Can, fs_group: Option<u32>) -> VolumeCapability {
        let mode = match self.access_modes.first().map(String::as_str) {
            Some("ReadWriteMany") => 5,
            Some("ReadOnlyMany") => 3,
            Some("ReadWriteOncePod") if can.single_node_multi_writer => 6,
            _ if can.single_node_multi_writer => 7,
            _ => 1,
        };
        let access_mode = Some(AccessMode { mode });
        if self.mode == Mode::Block {
            return VolumeCapability { block: Some(Empty {}), mount: None, access_mode };
        }
        let group = fs_group.filter(|_| can.mount_group).map(|gid| gid.to_string()).unwrap_or_default();
        let mount = MountVolume { fs_type: self.fs_type.clone(), mount_flags: self.options.clone(), volume_mount_group: group };
        VolumeCapability { block: None, mount: Some(mount), access_mode }
    }
}

/// A volume for a pod, with all that a driver is told.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Whose.
    pub pod: &'a ValidPod,
    /// What.
    pub wanted: &'a Wanted,
    /// What the cluster says of the driver.
    pub driver: Option<&'a CSIDriverSpec>,
    /// What others gave for it.
    pub given: &'a Given,
}

impl Request<'_> {
    fn capability(&self, can: Can) -> VolumeCapability {
        self.wanted.capability(can, volumes::fs_group(self.pod))
    }

    /// What the driver is asked for first, if it can.
    pub(super) fn stage(&self, can: Can, staging: &Path) -> StageRequest {
        StageRequest {
            volume_id: self.wanted.handle.clone(),
            publish_context: self.given.attachment.clone(),
            staging_target_path: staging.display().to_string(),
            volume_capability: Some(self.capability(can)),
            secrets: self.given.stage_secrets.clone(),
            volume_context: self.wanted.attributes.clone(),
        }
    }

    /// What the driver is asked for then.
    pub(super) fn publish(&self, can: Can, staging: Option<&Path>, target: &Path) -> PublishRequest {
        let (mut context, mut secrets) = (self.wanted.attributes.clone(), self.given.publish_secrets.clone());
        // Drivers of volumes that a pod describes want to know whose they are: a file's pod tells.
        let told = self.driver.map_or(*self.pod.origin() != Origin::Api, |spec| spec.pod_info_on_mount == Some(true));
        if told {
            context.extend(self.about_the_pod());
        }
        if let Some(tokens) = &self.given.tokens {
            let secret = self.driver.and_then(|spec| spec.service_account_token_in_secrets) == Some(true);
            let place = if secret { &mut secrets } else { &mut context };
            place.insert("csi.storage.k8s.io/serviceAccount.tokens".into(), tokens.clone());
        }
        PublishRequest {
            volume_id: self.wanted.handle.clone(),
            publish_context: self.given.attachment.clone(),
            staging_target_path: staging.map(|path| path.display().to_string()).unwrap_or_default(),
            target_path: target.display().to_string(),
            volume_capability: Some(self.capability(can)),
            readonly: self.wanted.read_only,
            secrets,
            volume_context: context,
        }
    }

    /// What the driver is asked for when the volume has become so many bytes large.
    pub(super) fn expand(&self, can: Can, staging: Option<&Path>, target: &Path, bytes: i64) -> ExpandRequest {
        ExpandRequest {
            volume_id: self.wanted.handle.clone(),
            volume_path: target.display().to_string(),
            capacity_range: Some(CapacityRange { required_bytes: bytes }),
            staging_target_path: staging.map(|path| path.display().to_string()).unwrap_or_default(),
            volume_capability: Some(self.wanted.capability(can, None)),
            secrets: self.given.expand_secrets.clone(),
        }
    }

    fn about_the_pod(&self) -> Map {
        let account = self.pod.spec().service_account_name.clone().unwrap_or_default();
        let told = [
            ("pod.name", self.pod.name().to_owned()),
            ("pod.namespace", self.pod.namespace().to_owned()),
            ("pod.uid", self.pod.uid().to_string()),
            ("serviceAccount.name", account),
            ("ephemeral", (self.wanted.life == Life::Ephemeral).to_string()),
        ];
        told.into_iter().map(|(name, value)| (format!("csi.storage.k8s.io/{name}"), value)).collect()
    }
}

/// What others gave for a volume. Its `Debug` shows none of it.
#[derive(Clone, Default, PartialEq)]
pub struct Given {
    /// A VolumeAttachment's.
    pub attachment: Map,
    /// Of nodeStageSecretRef.
    pub stage_secrets: Map,
    /// Of nodePublishSecretRef.
    pub publish_secrets: Map,
    /// Of nodeExpandSecretRef.
    pub expand_secrets: Map,
    /// Of the pod's service account, as CSIDriver's tokenRequests ask for them: JSON by audience.
    pub tokens: Option<String>,
}

impl std::fmt::Debug for Given {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Given")
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn pod(origin: Origin) -> ValidPod {
        let pod = json!({"metadata": {"name": "web", "namespace": "shop", "uid": "u"},
            "spec": {"serviceAccountName": "robot", "securityContext": {"fsGroup": 42}, "containers": [{"name": "a"}]}});
        ValidPod::trusted(serde_json::from_value(pod).unwrap(), origin)
    }

    fn inline() -> Wanted {
        let source =
            json!({"driver": "d.com", "fsType": "ext4", "volumeAttributes": {"a": "1"}, "nodePublishSecretRef": {"name": "s"}});
        Wanted::inline(&pod(Origin::Api), "data", &serde_json::from_value(source).unwrap())
    }

    fn persistent(modes: &[&str], fs_type: &str) -> Wanted {
        let volume = json!({"metadata": {"name": "pv"}, "spec": {"accessModes": modes, "mountOptions": ["noatime"],
            "csi": {"driver": "d.com", "volumeHandle": "h", "fsType": fs_type}}});
        Wanted::persistent(&serde_json::from_value(volume).unwrap()).unwrap()
    }

    fn driver(spec: serde_json::Value) -> CSIDriverSpec {
        serde_json::from_value(spec).unwrap()
    }

    /// printf uid-and-name | sha256sum; the names that the kubelet and the attach-detach controller have.
    #[test]
    fn names_are_kubernetes_own() {
        let wanted = inline();
        assert_eq!(wanted.handle, format!("csi-{}", hex("udata")));
        assert_eq!(wanted.secrets[1].as_ref().unwrap().namespace.as_deref(), Some("shop"));
        assert_eq!(attachment("h", "d.com", "node"), "csi-".to_owned() + &hex("hd.comnode"),);
        assert_eq!(hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[rstest]
    #[case::nobody_knows(
        None,
        Origin::Api,
        Some("volume mode \"Ephemeral\" not supported by driver d.com (no CSIDriver object)")
    )]
    #[case::a_files_pod(None, Origin::Stdin, None)]
    #[case::listed(Some(json!({"volumeLifecycleModes": ["Persistent", "Ephemeral"]})), Origin::Api, None)]
    #[case::not_listed(Some(json!({"volumeLifecycleModes": ["Persistent"]})), Origin::Api,
        Some("volume mode \"Ephemeral\" not supported by driver d.com (only supports [\"Persistent\"])"))]
    fn lives(#[case] spec: Option<serde_json::Value>, #[case] origin: Origin, #[case] refused: Option<&str>) {
        let spec = spec.map(driver);
        assert_eq!(inline().check_life(&pod(origin), spec.as_ref()).err().as_deref(), refused);
        let persistent = persistent(&["ReadWriteOnce"], "").check_life(&pod(Origin::Api), spec.as_ref());
        assert_eq!(persistent, Ok(()));
    }

    #[rstest]
    #[case(None, &["ReadWriteOnce"], "ext4", true)]
    #[case(None, &["ReadWriteOnce"], "", false)]
    #[case(None, &["ReadWriteMany"], "ext4", false)]
    #[case(Some("File"), &["ReadWriteMany"], "", true)]
    #[case(Some("None"), &["ReadWriteOnce"], "ext4", false)]
    fn fs_group(#[case] policy: Option<&str>, #[case] modes: &[&str], #[case] fs_type: &str, #[case] takes: bool) {
        let spec = driver(json!({"fsGroupPolicy": policy}));
        let wanted = persistent(modes, fs_type);
        assert_eq!(wanted.takes_fs_group(Some(&spec), Can::default()), takes);
        assert!(!wanted.takes_fs_group(Some(&spec), Can { mount_group: true, ..Can::default() }));
        assert!(!Wanted { read_only: true, ..wanted }.takes_fs_group(Some(&spec), Can::default()));
    }

    #[rstest]
    #[case(&["ReadWriteOnce"], 1, 7)]
    #[case(&["ReadWriteOncePod"], 1, 6)]
    #[case(&["ReadOnlyMany", "ReadWriteOnce"], 3, 3)]
    #[case(&["ReadWriteMany"], 5, 5)]
    fn access(#[case] modes: &[&str], #[case] plain: i32, #[case] telling: i32) {
        let mode = |single_node_multi_writer| {
            let can = Can { single_node_multi_writer, ..Can::default() };
            persistent(modes, "").capability(can, None).access_mode.unwrap().mode
        };
        assert_eq!((mode(false), mode(true)), (plain, telling));
    }

    #[test]
    fn a_request_has_what_was_said_and_the_pod_where_it_is_wanted() {
        let given = Given { tokens: Some("{}".into()), ..Given::default() };
        let (told, pod, target) = (driver(json!({"podInfoOnMount": true})), pod(Origin::Api), Path::new("/t"));
        let wanted = inline();
        let request = Request { pod: &pod, wanted: &wanted, driver: Some(&told), given: &given };
        let asked = request.publish(Can { mount_group: true, ..Can::default() }, None, target);
        assert_eq!(asked.volume_context["csi.storage.k8s.io/pod.name"], "web");
        assert_eq!(asked.volume_context["csi.storage.k8s.io/ephemeral"], "true");
        assert_eq!(asked.volume_context["csi.storage.k8s.io/serviceAccount.tokens"], "{}");
        assert_eq!(asked.volume_context["a"], "1");
        assert_eq!(asked.volume_capability.unwrap().mount.unwrap().volume_mount_group, "42");

        let (wanted, hides) = (persistent(&["ReadWriteOnce"], "xfs"), driver(json!({"serviceAccountTokenInSecrets": true})));
        let request = Request { wanted: &wanted, driver: Some(&hides), ..request };
        let asked = request.publish(Can::default(), Some(Path::new("/s")), target);
        assert!(asked.volume_context.is_empty());
        assert_eq!(asked.secrets["csi.storage.k8s.io/serviceAccount.tokens"], "{}");
        assert!(!format!("{asked:?}").contains("serviceAccount.tokens"), "secrets are not shown");
        let mount = asked.volume_capability.unwrap().mount.unwrap();
        assert_eq!(
            (mount.fs_type.as_str(), mount.volume_mount_group.as_str(), mount.mount_flags),
            ("xfs", "", vec!["noatime".to_owned()])
        );
    }

    #[test]
    fn a_device_is_asked_for_as_one_and_belongs_to_no_group() {
        let volume = json!({"metadata": {"name": "pv"}, "spec": {"volumeMode": "Block", "accessModes": ["ReadWriteOnce"],
            "csi": {"driver": "d.com", "volumeHandle": "h", "fsType": "ext4", "nodeExpandSecretRef": {"name": "k", "namespace": "n"}}}});
        let wanted = Wanted::persistent(&serde_json::from_value(volume).unwrap()).unwrap();
        assert!(!wanted.takes_fs_group(Some(&driver(json!({"fsGroupPolicy": "File"}))), Can::default()));
        let given = Given { expand_secrets: [("key".to_owned(), "hunter2".to_owned())].into(), ..Given::default() };
        let pod = pod(Origin::Api);
        let request = Request { pod: &pod, wanted: &wanted, driver: None, given: &given };
        let asked = request.expand(Can::default(), Some(Path::new("/s")), Path::new("/t"), 42);
        let capability = asked.volume_capability.clone().unwrap();
        assert_eq!((capability.block, capability.mount), (Some(Empty {}), None));
        let range = asked.capacity_range.clone().unwrap();
        assert_eq!((asked.volume_path.as_str(), range.required_bytes), ("/t", 42));
        assert_eq!(asked.secrets["key"], "hunter2");
        assert!(!format!("{asked:?}").contains("hunter2"), "secrets are not shown");
    }

    #[test]
    fn only_persistent_volumes_are_attached_and_by_default() {
        let spec = driver(json!({"attachRequired": false}));
        let wanted = persistent(&["ReadWriteOnce"], "");
        assert!(wanted.needs_attachment(None));
        assert!(!wanted.needs_attachment(Some(&spec)));
        assert!(!inline().needs_attachment(None));
    }
}
