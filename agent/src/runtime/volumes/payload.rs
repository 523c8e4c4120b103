//! The files of a volume that is made of objects or of the pod's own fields: which paths, which bytes, which rights. Pure.
//! <https://kubernetes.io/docs/concepts/storage/projected-volumes/>

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{
    ClusterTrustBundleProjection, ConfigMap, DownwardAPIVolumeFile, KeyToPath, Secret, ServiceAccountTokenProjection, Volume,
    VolumeProjection,
};

use crate::model::{Origin, ValidPod, references};
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

/// The key of a token in the Secret that it is kept as.
pub const TOKEN: &str = "token";

/// The key of trust anchors in the ConfigMap that they are kept as.
pub const TRUST: &str = "anchors";

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

    fn token(&self, token: &ServiceAccountTokenProjection, rights: Rights) -> Result<File, ConfigError> {
        let key = references::token_secret(self.pod, token);
        let secret = self.objects.secret(&key.namespace, &key.name);
        let data = secret.as_ref().and_then(|secret| secret.data.as_ref()?.get(TOKEN)).ok_or_else(|| {
            let account = self.pod.spec().service_account_name.as_deref().unwrap_or("default");
            ConfigError::new(format!("failed to fetch token for service account {account}: the API server has given none yet"))
        })?;
        Ok(rights.file(data.0.clone(), None, None))
    }

    /// An optional source without anything is a file without anything.
    fn trust(&self, source: &ClusterTrustBundleProjection, rights: Rights) -> Result<File, ConfigError> {
        let key = references::trust_map(source);
        let map = self.objects.config_map(&key.namespace, &key.name);
        let anchors = map.as_ref().and_then(|map| map.data.as_ref()?.get(TRUST).cloned());
        match (anchors, &source.name) {
            (Some(anchors), _) => Ok(rights.file(anchors.into_bytes(), None, source.user)),
            _ if source.optional == Some(true) => Ok(rights.file(Vec::new(), None, source.user)),
            (None, Some(name)) => Err(ConfigError::new(format!(
                "while getting ClusterTrustBundle: clustertrustbundle.certificates.k8s.io \"{name}\" not found"
            ))),
            (None, None) => Err(ConfigError::new("combination of signerName and labelSelector matched zero ClusterTrustBundles")),
        }
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
            if let Some(token) = projection.service_account_token.as_ref().filter(|_| *self.pod.origin() == Origin::Api) {
                payload.insert(token.path.clone(), self.token(token, rights)?);
            }
            if let Some(source) = projection.cluster_trust_bundle.as_ref().filter(|_| *self.pod.origin() == Origin::Api) {
                payload.insert(source.path.clone(), self.trust(source, rights)?);
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

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;
    use crate::runtime::known::Known;

    /// `path=text mode` or `path=text mode owner`, of each file.
    fn files(volume: Value, security: &Value) -> Result<Vec<String>, String> {
        let metadata = |name: &str| json!({"name": name});
        let objects = Known(vec![
            json!({"kind": "ConfigMap", "metadata": metadata("app"), "data": {"a": "1", "b": "2"}, "binaryData": {"c": "Mw=="}}),
            json!({"kind": "Secret", "metadata": metadata("login"), "data": {"a": "c2VjcmV0"}}),
        ]);
        let metadata = json!({"name": "web", "uid": "u", "labels": {"x": "y"}});
        let resources = json!({"limits": {"memory": "64Mi"}});
        let spec = json!({"securityContext": security, "containers": [{"name": "main", "resources": resources}]});
        let pod = serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap();
        let pod = ValidPod::trusted(pod, Origin::Stdin);
        let settings = Settings::below(std::path::Path::new("/nowhere"), "x");
        let sources = Sources { pod: &pod, settings: &settings, pod_ips: &[], objects: &objects };
        let volume = serde_json::from_value(volume).unwrap();
        let payload = of(&sources, &volume).expect("a volume of files").map_err(|error| error.message)?;
        let owner = |file: &File| file.uid.map(|uid| format!(" {uid}")).unwrap_or_default();
        let line = |(path, file): (&String, &File)| {
            format!("{path}={} {:o}{}", String::from_utf8_lossy(&file.data), file.mode, owner(file))
        };
        Ok(payload.iter().map(line).collect())
    }

    #[rstest]
    #[case::all_keys(json!({"configMap": {"name": "app"}}), Ok("a=1 644, b=2 644, c=3 644"))]
    #[case::default_mode(json!({"configMap": {"name": "app", "defaultMode": 0o400}}), Ok("a=1 400, b=2 400, c=3 400"))]
    #[case::chosen(json!({"configMap": {"name": "app", "items": [{"key": "c", "path": "deep/x", "mode": 0o600}]}}), Ok("deep/x=3 600"))]
    #[case::one_key_twice(json!({"configMap": {"name": "app", "items": [{"key": "a", "path": "x"}, {"key": "a", "path": "y"}]}}), Ok("x=1 644, y=1 644"))]
    #[case::no_items_are_all(json!({"secret": {"secretName": "login", "items": []}}), Ok("a=secret 644"))]
    #[case::owner(json!({"secret": {"secretName": "login", "defaultUser": 7}}), Ok("a=secret 644 7"))]
    #[case::no_such_key(json!({"configMap": {"name": "app", "items": [{"key": "z", "path": "z"}]}}), Err("configmap references non-existent config key: z"))]
    #[case::no_such_secret_key(json!({"secret": {"secretName": "login", "items": [{"key": "z", "path": "z"}]}}), Err("references non-existent secret key: z"))]
    #[case::no_such_key_is_fine(json!({"configMap": {"name": "app", "optional": true, "items": [{"key": "z", "path": "z"}, {"key": "a", "path": "a"}]}}), Ok("a=1 644"))]
    #[case::missing(json!({"configMap": {"name": "none"}}), Err("configmap \"none\" not found"))]
    #[case::missing_secret(json!({"secret": {"secretName": "none"}}), Err("secret \"none\" not found"))]
    #[case::missing_is_fine(json!({"secret": {"secretName": "none", "optional": true}}), Ok(""))]
    #[case::of_the_pod(json!({"downwardAPI": {"defaultMode": 0o440, "items": [{"path": "l", "fieldRef": {"fieldPath": "metadata.labels"}}, {"path": "m", "mode": 0o444, "resourceFieldRef": {"containerName": "main", "resource": "limits.memory", "divisor": "1Mi"}}]}}), Ok("l=x=\"y\" 440, m=64 444"))]
    #[case::of_nobody(json!({"downwardAPI": {"items": [{"path": "m", "resourceFieldRef": {"containerName": "none", "resource": "limits.cpu"}}]}}), Err("resourceFieldRef: container none not found"))]
    #[case::projected(json!({"projected": {"defaultMode": 0o440, "sources": [{"configMap": {"name": "app", "items": [{"key": "a", "path": "a", "mode": 0o644}]}}, {"secret": {"name": "login", "items": [{"key": "a", "path": "s/a"}]}}, {"secret": {"name": "none", "optional": true}}]}}), Ok("a=1 644, s/a=secret 440"))]
    #[case::the_last_source_wins(json!({"projected": {"sources": [{"configMap": {"name": "app"}}, {"secret": {"name": "login"}}]}}), Ok("a=secret 644, b=2 644, c=3 644"))]
    #[case::one_source_fails(json!({"projected": {"sources": [{"configMap": {"name": "app"}}, {"secret": {"name": "none"}}]}}), Err("secret \"none\" not found"))]
    fn files_of(#[case] mut volume: Value, #[case] expected: Result<&str, &str>) {
        volume["name"] = json!("v");
        let files = files(volume, &json!({})).map(|lines| lines.join(", "));
        assert_eq!(files, expected.map(str::to_owned).map_err(str::to_owned));
    }

    #[test]
    fn members_of_the_fs_group_read_what_root_reads() {
        let volume = json!({"name": "v", "secret": {"secretName": "login", "defaultMode": 0o400}});
        assert_eq!(files(volume, &json!({"fsGroup": 5})).unwrap(), ["a=secret 440"]);
    }

    #[test]
    fn no_debug_shows_a_value() {
        let file = File { data: b"hunter2".to_vec(), mode: 0o600, uid: None };
        assert_eq!(format!("{file:?}"), "7 bytes, mode 600, owner None");
    }
}
