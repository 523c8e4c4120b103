//! The mounts of a container: what every one has, its pod's files, its volumes. Pure.

use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, VolumeMount};
use podholder::protocol::{Device, Mount, Propagation, Source};

use super::{ContainerInput, env};
use crate::runtime::error::ConfigError;
use crate::runtime::files;

/// Files under /proc and /sys that tell of, or reach, the host: hidden.
pub const MASKED: [&str; 13] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/selinux",
];

/// Those that may be read.
pub const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The device nodes of every container.
pub fn devices() -> Vec<Device> {
    let nodes = [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
    let node = |(name, major, minor): (&str, u32, u32)| Device {
        path: Path::new("/dev").join(name),
        kind: 'c',
        major,
        minor,
        mode: 0o666,
        uid: 0,
        gid: 0,
    };
    nodes.into_iter().map(node).collect()
}

/// All mounts, in their order: the kernel's, the pod's files, then the volumes, the shallower before the deeper.
pub fn mounts(input: &ContainerInput<'_>, own_env: &[(String, String)]) -> Result<Vec<Mount>, ConfigError> {
    let volume_mounts = input.container.volume_mounts.as_deref().unwrap_or_default();
    let mut volumes = volume_mounts.iter().map(|vm| volume(input, vm, own_env)).collect::<Result<Vec<_>, _>>()?;
    volumes.sort_by_key(|mount| mount.target.components().count());
    let taken = |target: &Path| volumes.iter().any(|v| v.target == target);
    let mut all = kernel(input);
    all.extend(pod_files(input).into_iter().filter(|mount| !taken(&mount.target)));
    // A volume replaces what every container has at the same place, such as an emptyDir of memory at /dev/shm.
    all.retain(|mount| !taken(&mount.target) || mount.target == Path::new("/dev"));
    all.extend(volumes);
    Ok(all)
}

fn mount(target: &str, source: Source) -> Mount {
    Mount {
        target: target.into(),
        source,
        read_only: false,
        recursive_read_only: false,
        nosuid: true,
        nodev: true,
        noexec: true,
        propagation: Propagation::Private,
    }
}

fn kernel(input: &ContainerInput<'_>) -> Vec<Mount> {
    let privileged = input.privileged();
    let dev = Mount { nodev: false, ..mount("/dev", Source::Tmpfs { options: "mode=755,size=65536k".into() }) };
    vec![
        mount("/proc", Source::Proc),
        dev,
        Mount { nodev: false, ..mount("/dev/pts", Source::Devpts) },
        mount("/dev/mqueue", Source::Mqueue),
        mount("/dev/shm", Source::Shm),
        Mount { read_only: !privileged, ..mount("/sys", Source::Sysfs) },
        Mount { read_only: !privileged, ..mount("/sys/fs/cgroup", Source::Cgroup) },
    ]
}

/// Files that the agent writes for a pod, by their places in the container.
fn pod_files(input: &ContainerInput<'_>) -> Vec<Mount> {
    let bind = |target: &str, path: PathBuf| Mount {
        noexec: false,
        nosuid: false,
        nodev: false,
        ..mount(target, Source::Bind { path, beneath: PathBuf::new(), recursive: false, idmap: true })
    };
    let read_only = input.container.security_context.as_ref().and_then(|c| c.read_only_root_filesystem) == Some(true);
    let pod = input.settings.pod_lib(input.pod.uid());
    let mut mounts: Vec<_> =
        files::FILES.into_iter().map(|(target, file)| Mount { read_only, ..bind(target, pod.join(file)) }).collect();
    let last_words = input.container.termination_message_path.as_deref().filter(|p| !p.is_empty());
    let log = input.settings.termination_log(input.pod.uid(), &input.container.name, input.attempt);
    mounts.push(bind(last_words.unwrap_or("/dev/termination-log"), log));
    mounts
}

fn volume(input: &ContainerInput<'_>, wanted: &VolumeMount, own_env: &[(String, String)]) -> Result<Mount, ConfigError> {
    let Some(volume) = input.volumes.get(&wanted.name) else {
        return Err(ConfigError::new(format!("volumeMounts: no volume is named \"{}\"", wanted.name)));
    };
    let sub_path = match (&wanted.sub_path, &wanted.sub_path_expr) {
        (_, Some(expression)) if !expression.is_empty() => expanded(expression, own_env)?,
        (Some(path), _) => path.clone(),
        (None, _) => String::new(),
    };
    let read_only = wanted.read_only == Some(true) || volume.read_only;
    let has = |option: &str| wanted.bind_mount_options.iter().flatten().any(|o| o == option);
    let recursive = match wanted.recursive_read_only.as_deref() {
        Some("Enabled" | "IfPossible") => wanted.read_only == Some(true),
        _ => false,
    };
    Ok(Mount {
        target: Path::new("/").join(&wanted.mount_path),
        source: Source::Bind { path: volume.path.clone(), beneath: beneath(&sub_path)?, recursive: true, idmap: volume.idmap },
        read_only,
        recursive_read_only: recursive,
        nosuid: has("nosuid"),
        nodev: has("nodev"),
        noexec: has("noexec"),
        propagation: propagation(wanted),
    })
}

/// subPathExpr, unlike a command, must not leave a name unknown.
fn expanded(expression: &str, own_env: &[(String, String)]) -> Result<String, ConfigError> {
    let unknown = std::cell::RefCell::new(None);
    let value = env::expand(expression, |name| {
        let found = own_env.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
        if found.is_none() {
            unknown.borrow_mut().get_or_insert(name.to_owned());
        }
        found
    });
    match unknown.into_inner() {
        Some(name) => Err(ConfigError::new(format!("subPathExpr {expression}: no variable is named {name}"))),
        None => Ok(value),
    }
}

/// A relative path without `..`. The kernel guards against links; this guards against plain words.
pub fn beneath(sub_path: &str) -> Result<PathBuf, ConfigError> {
    let path = Path::new(sub_path);
    let plain = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if path.components().all(plain) {
        Ok(path.components().filter(|part| matches!(part, Component::Normal(_))).collect())
    } else {
        Err(ConfigError::new(format!("subPath \"{sub_path}\" must be a relative path and must not contain '..'")))
    }
}

fn propagation(mount: &VolumeMount) -> Propagation {
    match mount.mount_propagation.as_deref() {
        Some("HostToContainer") => Propagation::Slave,
        Some("Bidirectional") => Propagation::Shared,
        _ => Propagation::Private,
    }
}

/// Whether a container wants to see, or show, mounts made later: then its `/` must not be private.
pub fn wants_propagation(container: &Container) -> bool {
    container.volume_mounts.iter().flatten().any(|mount| propagation(mount) != Propagation::Private)
}
