//! From a validated pod to what a holder executes without deciding anything. Pure: tables of tests, no machine.

pub mod capabilities;
pub mod env;
pub mod env_file;
pub mod label;
mod links;
pub mod mounts;
pub mod process;
pub mod sandbox;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::Container;
use oci_spec::image::ImageConfiguration;
use podholder::protocol::{Device, LogFile, PidNamespace, Process, Recipe, Rootfs};

use self::env::Objects;
use super::error::ConfigError;
use super::resources::{Qos, oom_request, oom_score_adj};
use super::seccomp::Filter;
use super::settings::Settings;
use super::volumes::VolumeRoot;
use crate::model::ValidPod;

/// Everything that a container's recipe follows from.
pub struct ContainerInput<'a> {
    /// The node's part.
    pub settings: &'a Settings,
    /// The pod.
    pub pod: &'a ValidPod,
    /// One of its containers.
    pub container: &'a Container,
    /// 64 hex digits.
    pub id: &'a str,
    /// 0, then one more for each restart.
    pub attempt: u32,
    /// The image's word.
    pub image: &'a ImageConfiguration,
    /// Unpacked, the lowest first.
    pub layers: &'a [PathBuf],
    /// The pod's addresses.
    pub pod_ips: &'a [IpAddr],
    /// ConfigMaps and Secrets.
    pub objects: &'a dyn Objects,
    /// The pod's volumes by name, where they are on this machine.
    pub volumes: &'a BTreeMap<String, VolumeRoot>,
    /// Reads a file of a volume, for fileKeyRef: the volume's name, the path in it.
    pub env_file: &'a env::ReadFile<'a>,
    /// What it joins.
    pub cgroups: Vec<PathBuf>,
    /// The machine's device nodes, for a privileged container.
    pub host_devices: Vec<Device>,
    /// Makes the filter, by the capabilities that the container will have.
    pub seccomp: &'a dyn Fn(&SeccompNeed<'_>) -> Result<Filter, ConfigError>,
    /// The container whose PID namespace it joins.
    pub beside: Option<String>,
    /// Variables that come with its devices.
    pub given: Option<&'a BTreeMap<String, String>>,
    /// The agent's own.
    pub note: serde_json::Value,
}

/// Which filter a container needs.
#[derive(Debug, Clone, Copy)]
pub enum SeccompNeed<'a> {
    /// The default profile, which follows the capabilities.
    Default {
        /// The bounding set.
        capabilities: u64,
    },
    /// A file below the profiles' folder.
    Localhost {
        /// Relative.
        file: &'a str,
        /// The bounding set.
        capabilities: u64,
    },
}

impl ContainerInput<'_> {
    fn privileged(&self) -> bool {
        self.container.security_context.as_ref().and_then(|c| c.privileged) == Some(true)
    }
}

/// Makes the recipe.
pub fn container(input: ContainerInput<'_>) -> Result<Recipe, ConfigError> {
    let own_env = env::resolve(&env::Context {
        pod: input.pod,
        container: input.container,
        pod_ips: input.pod_ips,
        settings: input.settings,
        objects: input.objects,
        env_file: input.env_file,
    })?;
    let mounts = mounts::mounts(&input, &own_env)?;
    let process = first_process(&input, &own_env)?;
    let unmasked =
        input.privileged() || input.container.security_context.as_ref().and_then(|c| c.proc_mount.as_deref()) == Some("Unmasked");
    let paths = |list: &[&str]| if unmasked { Vec::new() } else { list.iter().map(PathBuf::from).collect() };
    Ok(Recipe {
        id: input.id.into(),
        name: input.container.name.clone(),
        attempt: input.attempt,
        process,
        rootfs: rootfs(&input),
        mounts,
        devices: if input.privileged() { input.host_devices } else { mounts::devices() },
        masked_paths: paths(&mounts::MASKED),
        read_only_paths: paths(&mounts::READ_ONLY),
        pid: pid_namespace(input.pod),
        beside: input.beside,
        log: Some(LogFile {
            path: input.settings.container_log(input.pod, &input.container.name, input.attempt),
            within: input.settings.log.clone(),
            max_size: input.settings.log_max_size,
            max_files: input.settings.log_max_files,
        }),
        cgroups: input.cgroups,
        note: input.note,
    })
}

fn first_process(input: &ContainerInput<'_>, own_env: &[(String, String)]) -> Result<Process, ConfigError> {
    let ContainerInput { pod, container, settings, .. } = input;
    let image = input.image.config().as_ref();
    let context = container.security_context.as_ref();
    let capabilities = capabilities::of(context, settings.capabilities)?;
    let filter = seccomp(input, capabilities.bounding)?;
    let tty = container.tty == Some(true);
    Ok(Process {
        argv: process::argv(container, image, own_env)?,
        env: environment(input, own_env, tty),
        cwd: process::working_dir(container, image).into(),
        user: process::user(pod, container, image)?,
        umask: 0,
        capabilities,
        no_new_privs: process::no_new_privs(context),
        seccomp: filter.program,
        seccomp_flags: filter.flags,
        rlimits: Vec::new(),
        oom_score_adj: Some(oom_score(input)),
        apparmor: label::apparmor(pod, container)?,
        selinux: label::selinux(pod, container),
        tty,
        tty_size: None,
        stdin: container.stdin == Some(true),
    })
}

/// The defaults, the image's variables over them, its devices' over those, the container's own over all.
fn environment(input: &ContainerInput<'_>, own_env: &[(String, String)], tty: bool) -> Vec<String> {
    let mut base = vec![process::DEFAULT_PATH.to_owned()];
    base.extend(tty.then(|| "TERM=xterm".to_owned()));
    if input.pod.spec().host_network != Some(true) {
        base.push(format!("HOSTNAME={}", sandbox::hostname(input.pod)));
    }
    base.extend(input.image.config().iter().flat_map(|c| c.env().iter().flatten().cloned()));
    base.extend(input.given.into_iter().flatten().map(|(name, value)| format!("{name}={value}")));
    env::merge(&base, own_env)
}

fn rootfs(input: &ContainerInput<'_>) -> Rootfs {
    let dir = input.settings.container_dir(input.pod.uid(), &input.container.name, input.attempt);
    Rootfs {
        lower: input.layers.iter().rev().cloned().collect(),
        upper: dir.join("upper"),
        work: dir.join("work"),
        target: input.settings.root_mount(),
        read_only: input.container.security_context.as_ref().and_then(|c| c.read_only_root_filesystem) == Some(true),
        shared: mounts::wants_propagation(input.container),
    }
}

fn pid_namespace(pod: &ValidPod) -> PidNamespace {
    match (pod.spec().host_pid, pod.spec().share_process_namespace) {
        (Some(true), _) => PidNamespace::Host,
        (_, Some(true)) => PidNamespace::Pod,
        _ => PidNamespace::Own,
    }
}

fn oom_score(input: &ContainerInput<'_>) -> i32 {
    let spec = input.pod.spec();
    // system-node-critical and above.
    let critical = spec.priority.is_some_and(|p| p >= 2_000_001_000);
    oom_score_adj(Qos::of(spec), critical, oom_request(spec, input.container), input.settings.allocatable.memory)
}

fn seccomp(input: &ContainerInput<'_>, capabilities: u64) -> Result<Filter, ConfigError> {
    if input.privileged() {
        return Ok(Filter::default());
    }
    let own = input.container.security_context.as_ref().and_then(|c| c.seccomp_profile.as_ref());
    let profile = own.or_else(|| input.pod.spec().security_context.as_ref()?.seccomp_profile.as_ref());
    match profile.map(|p| (p.type_.as_str(), p.localhost_profile.as_deref())) {
        Some(("Localhost", file)) => {
            let file = file.ok_or_else(|| ConfigError::new("seccompProfile: localhostProfile must be set for type Localhost"))?;
            (input.seccomp)(&SeccompNeed::Localhost { file, capabilities })
        }
        Some(("RuntimeDefault", _)) => (input.seccomp)(&SeccompNeed::Default { capabilities }),
        None if input.settings.seccomp_default => (input.seccomp)(&SeccompNeed::Default { capabilities }),
        _ => Ok(Filter::default()),
    }
}

#[cfg(test)]
mod tests;
