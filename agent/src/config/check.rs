//! Flags over file over defaults, each value checked. All that is wrong is told.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::file::{Declared, ImageSection, Source};
use super::{
    Api, Backoff, ConfigError, ContainerLogs, CredentialProviders, Flags, Images, Log, OnStop, Paths, Settings, Userns, cluster,
    kubelet, network, pods, shutdown,
};
use crate::model::quantity::Quantity;
use crate::model::validate::names;
use crate::model::{self, Path};

pub(super) fn settings(flags: &Flags, declared: &Declared, source: &Source) -> Result<Settings, Vec<ConfigError>> {
    let mut checker = Checker { source, errors: Vec::new() };
    let c = &mut checker;
    let paths = paths(c, flags, declared);
    let settings = Settings {
        manifests: if flags.manifests.is_empty() { declared.manifests.clone() } else { flags.manifests.clone() },
        cluster: cluster::cluster(c, flags, declared, &paths),
        network: network::network(c, flags, declared, &paths),
        paths,
        node_name: node_name(c, flags, declared),
        node_labels: node_labels(c, declared),
        cgroup_parent: c.text(
            "cgroupParent",
            "--cgroup-parent",
            flags.cgroup_parent.as_ref(),
            declared.cgroup_parent.as_ref(),
            "nodeagent",
            cgroup,
        ),
        on_stop: if flags.drain || declared.drain_on_stop == Some(true) { OnStop::Drain } else { OnStop::Keep },
        backoff: backoff(c, declared),
        container_logs: container_logs(c, declared),
        images: images(c, declared),
        resolv_conf: c.path("resolvConf", declared.resolv_conf.as_ref()).unwrap_or_else(|| "/etc/resolv.conf".into()),
        api: api(c, flags, declared),
        kubelet: kubelet::kubelet(c, declared),
        userns: userns(c, declared),
        security: pods::security(c, declared),
        pods: pods::pods(c, declared),
        eviction: pods::eviction(c, declared),
        shutdown: shutdown::shutdown(c, declared),
        claims: c.path("claimsRoot", declared.claims_root.as_ref()),
        age_identities: c.path("ageIdentityFile", declared.age_identity_file.as_ref()),
        log: Log {
            format: flags.log_format.or(declared.logging.format).unwrap_or_default(),
            level: flags.log_level.or(declared.logging.level).unwrap_or_default(),
        },
    };
    if checker.errors.is_empty() { Ok(settings) } else { Err(checker.errors) }
}

pub(super) struct Checker<'a> {
    source: &'a Source,
    errors: Vec<ConfigError>,
}

impl Checker<'_> {
    /// `field` may have dots: `images.authFile`.
    pub(super) fn file(&mut self, field: &str, message: String) {
        match *field.split('.').collect::<Vec<_>>() {
            [section, field] => self.at(&Path::ROOT.child(section).child(field), message),
            [outer, section, field] => self.at(&Path::ROOT.child(outer).child(section).child(field), message),
            _ => self.at(&Path::ROOT.child(field), message),
        }
    }

    pub(super) fn at(&mut self, path: &Path<'_>, message: String) {
        self.errors.push(self.source.error(path, message).into());
    }

    pub(super) fn flag(&mut self, flag: &'static str, message: String) {
        self.errors.push(ConfigError::Flag { flag, message });
    }

    /// A text of the flag, else of the file, else the default, with a check that tells what is wrong.
    pub(super) fn text(
        &mut self,
        field: &str,
        flag: &'static str,
        from_flag: Option<&String>,
        from_file: Option<&String>,
        default: &str,
        check: fn(&str) -> Vec<String>,
    ) -> String {
        let value = from_flag.or(from_file).map_or(default, |v| v);
        for wrong in check(value) {
            let message = format!("Invalid value: {value:?}: {wrong}");
            if from_flag.is_some() { self.flag(flag, message) } else { self.file(field, message) }
        }
        value.to_owned()
    }

    pub(super) fn path(&mut self, field: &str, value: Option<&PathBuf>) -> Option<PathBuf> {
        let path = value?;
        if !path.is_absolute() {
            self.file(field, format!("Invalid value: \"{}\": must be an absolute path", path.display()));
        }
        Some(path.clone())
    }

    pub(super) fn duration(&mut self, field: &str, value: Option<&String>, default: Duration) -> Duration {
        let Some(value) = value else { return default };
        model::duration::parse(value).unwrap_or_else(|| {
            self.file(field, format!("Invalid value: {value:?}: must be a duration such as \"10s\", \"1m30s\" or \"500ms\""));
            default
        })
    }

    pub(super) fn number<T: Copy + PartialOrd + Display>(
        &mut self,
        field: &str,
        value: Option<T>,
        default: T,
        min: T,
        max: T,
    ) -> T {
        let value = value.unwrap_or(default);
        if value < min || value > max {
            self.file(field, format!("Invalid value: {value}: must be between {min} and {max}"));
        }
        value
    }
}

fn paths(c: &mut Checker<'_>, flags: &Flags, declared: &Declared) -> Paths {
    let Some(root) = flags.root.folder.as_ref().or(declared.root.as_ref()) else { return Paths::default() };
    match std::path::absolute(root) {
        Ok(root) if flags.root.folder.is_some() || declared.root.as_ref().is_some_and(|r| r.is_absolute()) => Paths::below(root),
        Ok(_) => {
            c.file("root", format!("Invalid value: \"{}\": must be an absolute path", root.display()));
            Paths::default()
        }
        Err(e) => {
            c.flag("--root", format!("{}: {e}", root.display()));
            Paths::default()
        }
    }
}

fn node_labels(c: &mut Checker<'_>, declared: &Declared) -> BTreeMap<String, String> {
    for (key, value) in &declared.node_labels {
        let mut wrong: Vec<String> = Vec::new();
        wrong.extend(names::qualified_name(key));
        wrong.extend(names::label_value(value));
        for wrong in wrong {
            c.file(&format!("nodeLabels.{key}"), format!("Invalid value: {key:?}: {value:?}: {wrong}"));
        }
    }
    declared.node_labels.clone()
}

fn node_name(c: &mut Checker<'_>, flags: &Flags, declared: &Declared) -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
    // A host's name may have what a node's may not; only a name that was chosen is worth an error.
    let host = if names::dns_subdomain(&host).is_empty() { host } else { "localhost".into() };
    c.text("nodeName", "--node-name", flags.node_name.as_ref(), declared.node_name.as_ref(), &host, names::dns_subdomain)
}

/// One or more path components.
fn cgroup(name: &str) -> Vec<String> {
    let fine = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(char::is_control) && part.len() < 200;
    if name.split('/').all(fine) { Vec::new() } else { vec!["must be a name, or names with '/' between them".into()] }
}

fn backoff(c: &mut Checker<'_>, declared: &Declared) -> Backoff {
    let section = &declared.crash_loop_back_off;
    let initial = c.duration("crashLoopBackOff.initial", section.initial.as_ref(), Duration::from_secs(10));
    let max = c.duration("crashLoopBackOff.max", section.max.as_ref(), Duration::from_secs(300).max(initial));
    if max < initial {
        c.file("crashLoopBackOff.max", format!("Invalid value: {max:?}: must not be less than initial ({initial:?})"));
    }
    let reset_after = c.duration("crashLoopBackOff.resetAfter", section.reset_after.as_ref(), Duration::from_secs(600));
    Backoff { initial, max, reset_after }
}

/// The one needs the other.
fn providers(c: &mut Checker<'_>, section: &ImageSection) -> Option<CredentialProviders> {
    let config = c.path("images.credentialProviderConfig", section.credential_provider_config.as_ref());
    let programs = c.path("images.credentialProviderBinDir", section.credential_provider_bin_dir.as_ref());
    match (config, programs) {
        (Some(config), Some(programs)) => Some(CredentialProviders { config, programs }),
        (None, None) => None,
        (Some(_), None) => {
            c.file("images.credentialProviderBinDir", "Required value: credentialProviderConfig names programs in it".into());
            None
        }
        (None, Some(_)) => {
            c.file("images.credentialProviderConfig", "Required value: it says which programs are for which images".into());
            None
        }
    }
}

fn container_logs(c: &mut Checker<'_>, declared: &Declared) -> ContainerLogs {
    const SMALLEST: i64 = 4096;
    let text = declared.container_log_max_size.as_deref().unwrap_or("10Mi");
    let max_size = match text.parse::<Quantity>() {
        Ok(size) if size.value() >= SMALLEST => size.value() as u64,
        Ok(_) => {
            c.file("containerLogMaxSize", format!("Invalid value: {text:?}: must be at least {SMALLEST} bytes"));
            0
        }
        Err(e) => {
            c.file("containerLogMaxSize", format!("Invalid value: {text:?}: {e}"));
            0
        }
    };
    ContainerLogs { max_size, max_files: c.number("containerLogMaxFiles", declared.container_log_max_files, 5, 2, 1000) }
}

fn images(c: &mut Checker<'_>, declared: &Declared) -> Images {
    let section = &declared.images;
    let gc_high_percent = c.number("images.gcHighThresholdPercent", section.gc_high, 85, 1, 100);
    let gc_low_percent = c.number("images.gcLowThresholdPercent", section.gc_low, 80.min(gc_high_percent), 0, 100);
    if gc_low_percent > gc_high_percent {
        let message =
            format!("Invalid value: {gc_low_percent}: must not be more than gcHighThresholdPercent ({gc_high_percent})");
        c.file("images.gcLowThresholdPercent", message);
    }
    Images {
        gc_high_percent,
        gc_low_percent,
        parallel_pulls: c.number("images.maxParallelPulls", section.max_parallel_pulls, 4, 1, 64) as usize,
        registries_conf: c
            .path("images.registriesConf", section.registries_conf.as_ref())
            .unwrap_or_else(|| "/etc/containers/registries.conf".into()),
        auth_file: c.path("images.authFile", section.auth_file.as_ref()).unwrap_or_else(|| "/root/.docker/config.json".into()),
        providers: providers(c, section),
    }
}

fn api(c: &mut Checker<'_>, flags: &Flags, declared: &Declared) -> Api {
    let section = &declared.api;
    let declared_listen = section.listen.as_ref().and_then(|text| {
        if let Ok(address) = text.parse::<SocketAddr>() {
            Some(address)
        } else {
            c.file("api.listen", format!("Invalid value: {text:?}: must be an address and a port, such as \"127.0.0.1:6443\""));
            None
        }
    });
    let listen = flags.listen.or(declared_listen);
    if let Some(address) = listen.filter(|a| !a.ip().is_loopback()) {
        let message = format!("Invalid value: \"{address}\": must be a loopback address: this API gives root on this machine");
        if flags.listen.is_some() { c.flag("--listen", message) } else { c.file("api.listen", message) }
    }
    Api {
        socket_group: flags.socket_group.clone().or_else(|| section.socket_group.clone()),
        listen,
        client_ca: c.path("api.clientCAFile", section.client_ca_file.as_ref()),
    }
}

fn userns(c: &mut Checker<'_>, declared: &Declared) -> Userns {
    const STEP: u32 = 65536;
    let section = &declared.user_namespaces;
    let first = c.number("userNamespaces.firstHostID", section.first_host_id, STEP, STEP, u32::MAX - STEP);
    let per_pod = c.number("userNamespaces.idsPerPod", section.ids_per_pod, STEP, STEP, 1 << 24);
    for (field, value) in [("userNamespaces.firstHostID", first), ("userNamespaces.idsPerPod", per_pod)] {
        if value % STEP != 0 {
            c.file(field, format!("Invalid value: {value}: must be a multiple of {STEP}"));
        }
    }
    let room = (u32::MAX - first) / per_pod.max(1);
    let pods = c.number("userNamespaces.maxPods", section.max_pods, room.min(1024), 1, room.max(1));
    Userns { first, per_pod, pods }
}
