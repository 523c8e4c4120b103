//! What a container gets by the devices that were allotted to it: a device plugin's word.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// See the fields.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Grant {
    /// Variables: over the image's, under the container's own.
    pub envs: BTreeMap<String, String>,
    /// Files and folders of the host.
    pub mounts: Vec<Mount>,
    /// Device nodes.
    pub devices: Vec<Device>,
    /// Of them, those of CDI name devices, as a pod's own do.
    pub annotations: BTreeMap<String, String>,
    /// Devices by their CDI names.
    pub cdi: Vec<String>,
}

/// A bind mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mount {
    /// From here.
    pub host_path: PathBuf,
    /// There.
    pub container_path: PathBuf,
    /// Not to be written.
    pub read_only: bool,
}

/// A device node, or a folder with some.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    /// From here.
    pub host_path: PathBuf,
    /// There.
    pub container_path: PathBuf,
    /// Of `r`, `w`, `m`; empty: all.
    pub permissions: String,
}

impl Grant {
    /// Adds another plugin's. Of two for one place the first stays, as in the kubelet.
    pub fn merge(&mut self, other: Self) {
        for (name, value) in other.envs {
            self.envs.entry(name).or_insert(value);
        }
        for (name, value) in other.annotations {
            self.annotations.entry(name).or_insert(value);
        }
        for mount in other.mounts {
            if !self.mounts.iter().any(|own| own.container_path == mount.container_path) {
                self.mounts.push(mount);
            }
        }
        for device in other.devices {
            if !self.devices.iter().any(|own| own.container_path == device.container_path) {
                self.devices.push(device);
            }
        }
        self.cdi.extend(other.cdi);
    }

    /// The nodes, folders by what is in them.
    pub fn nodes(&self) -> Vec<Device> {
        let mut found = Vec::new();
        for device in &self.devices {
            add(device, 0, &mut found);
        }
        found
    }
}

fn add(device: &Device, depth: u32, found: &mut Vec<Device>) {
    if depth > 8 || !device.host_path.is_dir() {
        return found.push(device.clone());
    }
    let within = |name: &Path| Device {
        host_path: device.host_path.join(name),
        container_path: device.container_path.join(name),
        permissions: device.permissions.clone(),
    };
    for entry in fs::read_dir(&device.host_path).into_iter().flatten().flatten() {
        let is_node = |kind: fs::FileType| {
            use std::os::unix::fs::FileTypeExt as _;
            kind.is_dir() || kind.is_char_device() || kind.is_block_device()
        };
        if entry.file_type().is_ok_and(is_node) {
            add(&within(Path::new(&entry.file_name())), depth + 1, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(host: &str, container: &str) -> Device {
        Device { host_path: host.into(), container_path: container.into(), permissions: "rw".into() }
    }

    #[test]
    fn of_two_plugins_the_first_has_a_place() {
        let one =
            Grant { envs: [("A".into(), "1".into())].into(), devices: vec![device("/dev/null", "/dev/x")], ..Grant::default() };
        let two = Grant {
            envs: [("A".into(), "2".into()), ("B".into(), "2".into())].into(),
            devices: vec![device("/dev/zero", "/dev/x"), device("/dev/zero", "/dev/y")],
            cdi: vec!["v.com/c=0".into()],
            ..Grant::default()
        };
        let mut both = one.clone();
        both.merge(two);
        assert_eq!(both.envs, [("A".to_owned(), "1".to_owned()), ("B".into(), "2".into())].into());
        assert_eq!(both.devices, [device("/dev/null", "/dev/x"), device("/dev/zero", "/dev/y")]);
        assert_eq!(both.cdi, ["v.com/c=0"]);
    }
}
