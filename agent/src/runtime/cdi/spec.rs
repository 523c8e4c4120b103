//! A CDI spec as vendors write it, JSON or YAML. An unknown field is an error: what it asks for would be missing in the container.

use std::path::PathBuf;

use serde::Deserialize;

/// One file.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    #[serde(rename = "cdiVersion")]
    version: String,
    /// `vendor.com/class`.
    kind: String,
    #[serde(default)]
    #[expect(dead_code, reason = "for people")]
    annotations: serde_json::Value,
    #[serde(default)]
    devices: Vec<Device>,
    /// For each container with any of the devices.
    #[serde(default)]
    pub container_edits: Edits,
}

/// One device.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Device {
    name: String,
    #[serde(default)]
    #[expect(dead_code, reason = "for people")]
    annotations: serde_json::Value,
    /// For each container with this device.
    pub container_edits: Edits,
}

/// What becomes of a container.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Edits {
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Nodes below /dev.
    pub device_nodes: Vec<DeviceNode>,
    /// Files and folders of the host.
    pub mounts: Vec<Mount>,
    /// Programs of the host.
    hooks: Vec<serde_json::Value>,
    /// Interfaces that move into the container.
    net_devices: Vec<serde_json::Value>,
    /// Cache and bandwidth classes of the CPU: nothing that a container could miss.
    intel_rdt: Option<serde_json::Value>,
    /// Groups of its process.
    #[serde(rename = "additionalGids")]
    pub additional_gids: Vec<u32>,
}

impl Edits {
    /// Something is asked for that isn't done.
    pub fn has_hooks(&self) -> bool {
        !self.hooks.is_empty() || !self.net_devices.is_empty()
    }
}

/// A device node.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeviceNode {
    /// In the container.
    pub path: PathBuf,
    /// On the host; unset: the same.
    pub host_path: Option<PathBuf>,
    /// `c`, `u`, `b`; unset: as the host's.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Unset: as the host's.
    pub major: Option<u32>,
    /// Unset: as the host's.
    pub minor: Option<u32>,
    /// Permission bits.
    pub file_mode: Option<u32>,
    /// Of `r`, `w`, `m`.
    pub permissions: Option<String>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
}

/// A mount.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mount {
    /// On the host.
    pub host_path: PathBuf,
    /// In the container.
    pub container_path: PathBuf,
    /// As mount(8)'s.
    #[serde(default)]
    pub options: Vec<String>,
    /// A file system; unset: a bind mount.
    #[serde(rename = "type")]
    pub kind: Option<String>,
}

impl Spec {
    /// JSON is YAML, too.
    pub fn parse(text: &str) -> Result<Self, String> {
        let spec: Self = serde_yaml::from_str(text).map_err(|e| e.to_string())?;
        if !spec.version.starts_with(['0', '1']) {
            return Err(format!("cdiVersion {} is unknown", spec.version));
        }
        if !is_kind(&spec.kind) {
            return Err(format!("kind {:?} is not vendor.com/class", spec.kind));
        }
        let edits = || std::iter::once(&spec.container_edits).chain(spec.devices.iter().map(|d| &d.container_edits));
        let permissions = edits().flat_map(|e| &e.device_nodes).filter_map(|n| n.permissions.as_deref());
        if let Some(wrong) = permissions.into_iter().find(|p| !p.chars().all(|c| "rwm".contains(c))) {
            return Err(format!("permissions {wrong:?} are not of r, w and m"));
        }
        let paths = edits().flat_map(|e| {
            e.device_nodes.iter().map(|n| &n.path).chain(e.mounts.iter().flat_map(|m| [&m.host_path, &m.container_path]))
        });
        let wrong = paths.into_iter().find(|path| !path.is_absolute()).map(|path| format!("{} is not absolute", path.display()));
        match wrong {
            Some(wrong) => Err(wrong),
            None => Ok(spec),
        }
    }

    /// The device of this qualified name.
    pub fn device(&self, name: &str) -> Option<&Device> {
        let (kind, device) = name.split_once('=')?;
        self.devices.iter().find(|d| kind == self.kind && d.name == device)
    }
}

/// `vendor.com/class=device`.
pub fn is_qualified(name: &str) -> bool {
    name.split_once('=').is_some_and(|(kind, device)| is_kind(kind) && is_word(device, "_-.:"))
}

fn is_kind(kind: &str) -> bool {
    kind.split_once('/').is_some_and(|(vendor, class)| {
        let begins = |word: &str| word.starts_with(|c: char| c.is_ascii_alphabetic());
        begins(vendor) && begins(class) && is_word(vendor, "_-.") && is_word(class, "_-.")
    })
}

fn is_word(word: &str, inner: &str) -> bool {
    let outer = |c: char| c.is_ascii_alphanumeric();
    word.starts_with(outer) && word.ends_with(outer) && word.chars().all(|c| outer(c) || inner.contains(c))
}
