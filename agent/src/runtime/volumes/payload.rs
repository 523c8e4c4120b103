//! The files of a volume that is made of objects or of the pod's own fields: which paths, which bytes, which rights. Pure.
//! <https://kubernetes.io/docs/concepts/storage/projected-volumes/>

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, DownwardAPIVolumeFile, KeyToPath, Secret, Volume, VolumeProjection};

use crate::model::ValidPod;
use crate::runtime::error::ConfigError;
use crate::runtime::recipe::env::{self, Objects};
use crate::runtime::settings::Settings;

/// One file.
#[derive(Clone, PartialEq, Eq)]
pub struct File {
    /// Its bytes. They may be a secret: no `Debug` shows them.
    pub data: Vec<u8>,
    /// Its permission bits.
    pub mode: u32,
    /// Its owner; unset: root.
    pub uid: Option<u32>,
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes, mode {:o}, owner {:?}", self.data.len(), self.mode, self.uid)
    }
}

/// Files by their paths, relative and without `..`: validation saw them.
pub type Payload = BTreeMap<String, File>;

/// What the files' contents come from.
pub struct Sources<'a> {
    /// Whose volume.
    pub pod: &'a ValidPod,
    /// The node's part.
    pub settings: &'a Settings,
    /// The pod's addresses.
    pub pod_ips: &'a [IpAddr],
    /// ConfigMaps and Secrets.
    pub objects: &'a dyn Objects,
}

const DEFAULT_MODE: i32 = 0o644;

/// The files of a volume. `None`: the volume is of another kind, such as an emptyDir.
pub fn of(sources: &Sources<'_>, volume: &Volume) -> Option<Result<Payload, ConfigError>> {
    let payload = if let Some(source) = &volume.config_map {
        let rights = Rights::new(source.default_mode, source.default_user);
        sources.config_map(&source.name, source.optional, source.items.as_deref(), rights)
    } else if let Some(source) = &volume.secret {
        let rights = Rights::new(source.default_mode, source.default_user);
        let name = source.secret_name.as_deref().unwrap_or_default();
        sources.secret(name, source.optional, source.items.as_deref(), rights)
    } else if let Some(source) = &volume.downward_api {
        sources.downward(source.items.as_deref(), Rights::new(source.default_mode, source.default_user))
    } else if let Some(source) = &volume.projected {
        let rights = Rights::new(source.default_mode, source.default_user);
        sources.projected(source.sources.as_deref().unwrap_or_default(), rights)
    } else {
        return None;
    };
    Some(payload.map(|payload| readable_by_group(payload, sources.pod)))
}

/// Whether the contents may be secret: then they are kept in memory alone.
pub fn in_memory(volume: &Volume) -> bool {
    volume.config_map.is_none()
}

/// With an fsGroup, its members can read what root can: the kubelet's mask for volumes that are mounted read-only.
fn readable_by_group(mut payload: Payload, pod: &ValidPod) -> Payload {
    if pod.spec().security_context.as_ref().is_some_and(|c| c.fs_group.is_some()) {
        for file in payload.values_mut() {
            file.mode |= 0o440;
        }
    }
    payload
}

/// Mode and owner of files of which the item says nothing.
#[derive(Clone, Copy)]
struct Rights {
    mode: i32,
    user: Option<i64>,
}

impl Rights {
    fn new(mode: Option<i32>, user: Option<i64>) -> Self {
        Self { mode: mode.unwrap_or(DEFAULT_MODE), user }
    }

    fn file(self, data: Vec<u8>, mode: Option<i32>, user: Option<i64>) -> File {
        let mode = u32::try_from(mode.unwrap_or(self.mode)).unwrap_or(0o600) & 0o777;
        File { data, mode, uid: user.or(self.user).and_then(|id| u32::try_from(id).ok()) }
    }
}

impl Sources<'_> {
    fn config_map(
        &self,
        name: &str,
        optional: Option<bool>,
        items: Option<&[KeyToPath]>,
        rights: Rights,
    ) -> Result<Payload, ConfigError> {
        match self.objects.config_map(self.pod.namespace(), name) {
            Some(map) => {
                let missing = |key: &str| format!("configmap references non-existent config key: {key}");
                chosen(&values_of_map(&map), items, optional, rights, missing)
            }
            None if optional == Some(true) => Ok(Payload::new()),
            None => Err(ConfigError::new(format!("configmap \"{name}\" not found"))),
        }
    }

    fn secret(
        &self,
        name: &str,
        optional: Option<bool>,
        items: Option<&[KeyToPath]>,
        rights: Rights,
    ) -> Result<Payload, ConfigError> {
        match self.objects.secret(self.pod.namespace(), name) {
            Some(secret) => {
                let missing = |key: &str| format!("references non-existent secret key: {key}");
                chosen(&values_of_secret(&secret), items, optional, rights, missing)
            }
            None if optional == Some(true) => Ok(Payload::new()),
            None => Err(ConfigError::new(format!("secret \"{name}\" not found"))),
        }
    }

    fn downward(&self, items: Option<&[DownwardAPIVolumeFile]>, rights: Rights) -> Result<Payload, ConfigError> {
        let mut payload = Payload::new();
        for item in items.unwrap_or_default() {
            let text = match (&item.field_ref, &item.resource_field_ref) {
                (Some(field), _) => env::field(self.pod, self.settings, self.pod_ips, field)?,
                (None, Some(resource)) => env::resource(self.pod, self.settings, "", resource)?,
                (None, None) => String::new(),
            };
            payload.insert(item.path.clone(), rights.file(text.into_bytes(), item.mode, item.user));
        }
        Ok(payload)
    }

    fn projected(&self, projections: &[VolumeProjection], rights: Rights) -> Result<Payload, ConfigError> {
        let mut payload = Payload::new();
        for projection in projections {
            if let Some(source) = &projection.config_map {
                payload.extend(self.config_map(&source.name, source.optional, source.items.as_deref(), rights)?);
            }
            if let Some(source) = &projection.secret {
                payload.extend(self.secret(&source.name, source.optional, source.items.as_deref(), rights)?);
            }
            if let Some(source) = &projection.downward_api {
                payload.extend(self.downward(source.items.as_deref(), rights)?);
            }
        }
        Ok(payload)
    }
}

type Values<'a> = BTreeMap<&'a str, &'a [u8]>;

fn values_of_map(map: &ConfigMap) -> Values<'_> {
    let text = map.data.iter().flatten().map(|(key, value)| (key.as_str(), value.as_bytes()));
    text.chain(bytes(map.binary_data.as_ref())).collect()
}

fn values_of_secret(secret: &Secret) -> Values<'_> {
    bytes(secret.data.as_ref()).collect()
}

fn bytes(map: Option<&BTreeMap<String, ByteString>>) -> impl Iterator<Item = (&str, &[u8])> {
    map.into_iter().flatten().map(|(key, value)| (key.as_str(), value.0.as_slice()))
}

/// All keys as files, or those that the items name at the items' paths.
fn chosen(
    values: &Values<'_>,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    rights: Rights,
    missing: impl Fn(&str) -> String,
) -> Result<Payload, ConfigError> {
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        return Ok(values.iter().map(|(key, data)| ((*key).to_owned(), rights.file(data.to_vec(), None, None))).collect());
    };
    let mut payload = Payload::new();
    for item in items {
        match values.get(item.key.as_str()) {
            Some(data) => {
                payload.insert(item.path.clone(), rights.file(data.to_vec(), item.mode, item.user));
            }
            None if optional == Some(true) => {}
            None => return Err(ConfigError::new(missing(&item.key))),
        }
    }
    Ok(payload)
}
