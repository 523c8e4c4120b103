//! Devices by name, `vendor.com/class=device`, as vendors' files in /etc/cdi and /var/run/cdi describe them (Container Device Interface,
//! <https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md>). A pod names them in annotations `cdi.k8s.io/ANYTHING`;
//! all of its containers get them. Read at each start of such a container: a driver's installation needs no restart of the agent.

mod spec;

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use podholder::protocol::{Device, Mount, Propagation, Recipe, Source};

use self::spec::{DeviceNode, Edits, Spec};
use super::cgroup::DeviceRule;
use super::error::ConfigError;
use super::grant::{self, Grant};
use crate::model::ValidPod;

/// Specs are far smaller.
const MAX_SPEC: u64 = 4 << 20;
const PREFIX: &str = "cdi.k8s.io/";

/// The names that a pod's annotations give, each once, in the annotations' order.
pub fn names(pod: &ValidPod) -> Result<Vec<String>, ConfigError> {
    of_annotations(pod.metadata.annotations.iter().flatten())
}

/// The same of a container with these devices.
pub fn names_with(pod: &ValidPod, grant: &Grant) -> Result<Vec<String>, ConfigError> {
    let mut names = names(pod)?;
    let more = of_annotations(&grant.annotations)?.into_iter().chain(grant.cdi.iter().cloned());
    for name in more {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

fn of_annotations<'a>(annotations: impl IntoIterator<Item = (&'a String, &'a String)>) -> Result<Vec<String>, ConfigError> {
    let mut names: Vec<String> = Vec::new();
    for (key, value) in annotations.into_iter().filter(|(key, _)| key.starts_with(PREFIX)) {
        for name in value.split(',').map(str::trim) {
            if !spec::is_qualified(name) {
                return Err(ConfigError::new(format!("annotation {key}: {name:?} is no CDI device: vendor.com/class=device is")));
            }
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
    }
    Ok(names)
}

/// What the names come to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Injection {
    edits: Vec<Edits>,
}

/// Finds the devices of these names. `dirs`: the later overrules.
pub fn find(names: &[String], dirs: &[PathBuf]) -> Result<Injection, ConfigError> {
    let mut injection = Injection::default();
    if names.is_empty() {
        return Ok(injection);
    }
    let (specs, mut broken) = read_all(dirs);
    let mut used: Vec<usize> = Vec::new();
    for name in names {
        let Some((index, device)) = lookup(&specs, name)? else {
            broken.insert(0, format!("unresolvable CDI devices {name}"));
            return Err(ConfigError::new(broken.join("; ")));
        };
        // What all devices of a file need comes once, before the first of them.
        if !used.contains(&index) {
            used.push(index);
            injection.edits.extend(specs.get(index).map(|(_, spec)| spec.container_edits.clone()));
        }
        injection.edits.push(device);
    }
    if injection.edits.iter().any(Edits::has_hooks) {
        // A hook is a program of the host's, run as root with the container's state: no file beside the pods may ask for that.
        let names = names.join(", ");
        return Err(ConfigError::new(format!(
            "CDI devices {names}: their specs have hooks or netDevices, which this agent refuses"
        )));
    }
    Ok(injection)
}

/// Every spec with its folder's rank, and what is wrong with those that can't be read.
fn read_all(dirs: &[PathBuf]) -> (Vec<(usize, Spec)>, Vec<String>) {
    let (mut specs, mut broken) = (Vec::new(), Vec::new());
    for (rank, dir) in dirs.iter().enumerate() {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> = entries.map(|e| e.path()).filter(|path| is_spec(path)).collect();
        files.sort();
        for file in files {
            match read(&file) {
                Ok(spec) => specs.push((rank, spec)),
                Err(error) => broken.push(format!("{}: {error}", file.display())),
            }
        }
    }
    (specs, broken)
}

fn is_spec(path: &Path) -> bool {
    matches!(path.extension().and_then(|e| e.to_str()), Some("json" | "yaml"))
}

fn read(path: &Path) -> Result<Spec, String> {
    let size = fs::metadata(path).map_err(|e| e.to_string())?.len();
    if size > MAX_SPEC {
        return Err(format!("larger than {} MiB", MAX_SPEC >> 20));
    }
    Spec::parse(&fs::read_to_string(path).map_err(|e| e.to_string())?)
}

/// The device of this name of the folder with the highest rank; two of the same rank are none.
fn lookup(specs: &[(usize, Spec)], name: &str) -> Result<Option<(usize, Edits)>, ConfigError> {
    let found = specs.iter().enumerate().filter_map(|(index, (rank, spec))| Some((*rank, index, spec.device(name)?)));
    let mut found: Vec<_> = found.collect();
    found.sort_by_key(|(rank, _, _)| *rank);
    match found.as_slice() {
        [.., (a, _, _), (b, _, _)] if a == b => {
            Err(ConfigError::new(format!("CDI device {name}: two files of one folder have it")))
        }
        [.., (_, index, device)] => Ok(Some((*index, device.container_edits.clone()))),
        [] => Ok(None),
    }
}

impl Injection {
    /// And a device plugin's nodes and mounts. Its variables aren't an injection's: they come under the container's own.
    pub fn with(mut self, grant: &Grant) -> Self {
        let nodes = grant.nodes().into_iter().map(node);
        let mounts = grant.mounts.iter().map(|mount: &grant::Mount| spec::Mount {
            host_path: mount.host_path.clone(),
            container_path: mount.container_path.clone(),
            options: ["rbind", "rprivate"].iter().chain(mount.read_only.then_some(&"ro")).map(|o| (*o).to_owned()).collect(),
            kind: None,
        });
        // CDI's word comes last: it is the vendor's newer one.
        let mut own = Edits::default();
        own.device_nodes.extend(nodes);
        own.mounts.extend(mounts);
        self.edits.insert(0, own);
        self
    }

    /// And these nodes.
    pub fn with_nodes(mut self, nodes: Vec<grant::Device>) -> Self {
        if !nodes.is_empty() {
            let mut own = Edits::default();
            own.device_nodes.extend(nodes.into_iter().map(node));
            self.edits.push(own);
        }
        self
    }

    /// What the container may open besides the usual.
    pub fn device_rules(&self) -> Result<Vec<DeviceRule>, ConfigError> {
        let nodes = self.edits.iter().flat_map(|e| &e.device_nodes);
        let rule = |node: &DeviceNode| {
            let device = device(node)?;
            let access = node.permissions.clone().filter(|p| !p.is_empty()).unwrap_or_else(|| "rwm".into());
            Ok(DeviceRule { kind: device.kind, major: Some(device.major), minor: Some(device.minor), access: access.into() })
        };
        nodes.map(rule).collect()
    }

    /// Lays the devices' part over a container's recipe.
    pub fn apply(&self, recipe: &mut Recipe) -> Result<(), ConfigError> {
        for edits in &self.edits {
            for variable in &edits.env {
                let name = variable.split('=').next().unwrap_or_default();
                recipe.process.env.retain(|own| own.split('=').next() != Some(name));
                recipe.process.env.push(variable.clone());
            }
            for node in &edits.device_nodes {
                let device = device(node)?;
                recipe.devices.retain(|own| own.path != device.path);
                recipe.devices.push(device);
            }
            recipe.mounts.extend(edits.mounts.iter().map(mount));
            recipe.process.user.groups.extend(edits.additional_gids.iter().copied().filter(|gid| *gid != 0));
        }
        Ok(())
    }
}

/// A node of the host's, as it is there.
fn node(device: grant::Device) -> DeviceNode {
    DeviceNode {
        path: device.container_path,
        host_path: Some(device.host_path),
        permissions: Some(device.permissions),
        ..DeviceNode::default()
    }
}

/// The spec's word over the host's node.
fn device(node: &DeviceNode) -> Result<Device, ConfigError> {
    let host = node.host_path.as_deref().unwrap_or(&node.path);
    let (kind, major, minor, mode) = match (node.kind.as_deref(), node.major, node.minor) {
        (Some("b"), Some(major), Some(minor)) => ('b', major, minor, None),
        (Some("c" | "u"), Some(major), Some(minor)) => ('c', major, minor, None),
        _ => host_node(host)?,
    };
    Ok(Device {
        path: node.path.clone(),
        kind,
        major,
        minor,
        mode: node.file_mode.or(mode).unwrap_or(0o666),
        uid: node.uid.unwrap_or(0),
        gid: node.gid.unwrap_or(0),
    })
}

/// Kind, numbers and permission bits.
fn host_node(path: &Path) -> Result<(char, u32, u32, Option<u32>), ConfigError> {
    let failed = |why: String| ConfigError::new(format!("device node {}: {why}", path.display()));
    let metadata = fs::metadata(path).map_err(|e| failed(e.to_string()))?;
    let file = metadata.file_type();
    let kind = match (file.is_char_device(), file.is_block_device()) {
        (true, _) => 'c',
        (_, true) => 'b',
        _ => return Err(failed("it is no device node".into())),
    };
    let number = metadata.rdev();
    Ok((kind, rustix::fs::major(number), rustix::fs::minor(number), Some(metadata.mode() & 0o7777)))
}

fn mount(wanted: &spec::Mount) -> Mount {
    let has = |option: &str| wanted.options.iter().any(|o| o == option);
    let propagation = match () {
        () if has("rslave") || has("slave") => Propagation::Slave,
        () if has("rshared") || has("shared") => Propagation::Shared,
        () => Propagation::Private,
    };
    let source = if wanted.kind.as_deref() == Some("tmpfs") {
        let options = wanted.options.iter().filter(|o| o.contains('='));
        Source::Tmpfs { options: options.cloned().collect::<Vec<_>>().join(",") }
    } else {
        Source::Bind { path: wanted.host_path.clone(), beneath: PathBuf::new(), recursive: has("rbind"), idmap: false }
    };
    Mount {
        target: wanted.container_path.clone(),
        source,
        read_only: has("ro"),
        recursive_read_only: false,
        nosuid: has("nosuid"),
        nodev: has("nodev"),
        noexec: has("noexec"),
        propagation,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::model::Origin;

    fn pod(annotations: &str) -> ValidPod {
        let yaml =
            format!("{{metadata: {{name: p, uid: u, annotations: {{{annotations}}}}}, spec: {{containers: [{{name: a}}]}}}}");
        ValidPod::trusted(serde_yaml::from_str(&yaml).unwrap(), Origin::Stdin)
    }

    #[rstest]
    #[case("", Ok(""))]
    #[case("other: x=y", Ok(""))]
    #[case("cdi.k8s.io/a: 'v.com/gpu=0,v.com/gpu=1', cdi.k8s.io/b: v.com/gpu=0", Ok("v.com/gpu=0 v.com/gpu=1"))]
    #[case("cdi.k8s.io/a: gpu0", Err("annotation cdi.k8s.io/a: \"gpu0\" is no CDI device: vendor.com/class=device is"))]
    fn annotations_name_devices(#[case] annotations: &str, #[case] expected: Result<&str, &str>) {
        let found = names(&pod(annotations)).map(|names| names.join(" ")).map_err(|e| e.message);
        assert_eq!(found.as_deref().map_err(String::as_str), expected);
    }

    const SPEC: &str = "cdiVersion: 0.6.0
kind: v.com/null
containerEdits: {env: [ALL=yes]}
devices:
- name: '0'
  containerEdits:
    env: [ONE=1]
    deviceNodes: [{path: /dev/mine, hostPath: /dev/null, permissions: rw}]
    mounts: [{hostPath: /etc/hostname, containerPath: /opt/name, options: [ro, nosuid, bind]}]
    additionalGids: [44]
";

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    fn ask(dirs: &[&tempfile::TempDir]) -> Result<Recipe, String> {
        let dirs: Vec<PathBuf> = dirs.iter().map(|d| d.path().to_owned()).collect();
        let mut recipe = Recipe::default();
        recipe.process.env = vec!["ONE=old".into(), "TWO=2".into()];
        let injection = find(&["v.com/null=0".into()], &dirs).map_err(|e| e.message)?;
        injection.apply(&mut recipe).map_err(|e| e.message)?;
        Ok(recipe)
    }

    #[test]
    fn edits_are_laid_over_the_recipe() {
        let recipe = ask(&[&folder(&[("null.yaml", SPEC), ("broken.json", "{"), ("notes.txt", "x")])]).unwrap();
        assert_eq!(recipe.process.env, ["TWO=2", "ALL=yes", "ONE=1"]);
        let node = &recipe.devices[0];
        assert_eq!((node.path.to_str(), node.kind, node.major, node.minor), (Some("/dev/mine"), 'c', 1, 3));
        let mount = &recipe.mounts[0];
        assert!(mount.read_only && mount.nosuid && !mount.nodev);
        assert_eq!(recipe.process.user.groups, [44]);
    }

    #[test]
    fn the_later_folder_overrules_and_twins_are_refused() {
        let other = SPEC.replace("ONE=1", "ONE=other");
        let (first, second) = (folder(&[("a.yaml", SPEC)]), folder(&[("a.yaml", &other)]));
        assert!(ask(&[&first, &second]).unwrap().process.env.contains(&"ONE=other".into()));
        let twins = folder(&[("a.yaml", SPEC), ("b.yaml", &other)]);
        assert_eq!(ask(&[&twins]).unwrap_err(), "CDI device v.com/null=0: two files of one folder have it");
    }

    #[test]
    fn what_is_not_there_says_so_with_what_is_broken() {
        let error = ask(&[&folder(&[("broken.json", "{")])]).unwrap_err();
        assert!(error.starts_with("unresolvable CDI devices v.com/null=0; ") && error.contains("broken.json"), "{error}");
        let hooked = SPEC.replace("    additionalGids: [44]", "    hooks: [{hookName: createContainer, path: /bin/x}]");
        assert!(ask(&[&folder(&[("a.yaml", &hooked)])]).unwrap_err().contains("hooks"));
    }
}
