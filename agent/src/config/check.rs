//! Flags over file over defaults, each value checked. All that is wrong is told.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::file::{Declared, Source};
use super::{
    Api, Backoff, Cidr, Cni, ConfigError, ContainerLogs, Flags, Images, Log, Network, OnStop, Paths, Ranges, Settings, Userns,
    cluster, kubelet, pods,
};
use crate::model::Path;
use crate::model::quantity::Quantity;
use crate::model::validate::names;

/// Interface and table names are this short in the kernel (IFNAMSIZ less its NUL).
const IFNAME_LIMIT: usize = 15;

pub(super) fn settings(flags: &Flags, declared: &Declared, source: &Source) -> Result<Settings, Vec<ConfigError>> {
    let mut checker = Checker { source, errors: Vec::new() };
    let c = &mut checker;
    let paths = paths(c, flags, declared);
    let settings = Settings {
        manifests: if flags.manifests.is_empty() { declared.manifests.clone() } else { flags.manifests.clone() },
        cluster: cluster::cluster(c, flags, declared, &paths),
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
        network: network(c, flags, declared),
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
        let error = match *field.split('.').collect::<Vec<_>>() {
            [section, field] => self.source.error(&Path::ROOT.child(section).child(field), message),
            [outer, section, field] => self.source.error(&Path::ROOT.child(outer).child(section).child(field), message),
            _ => self.source.error(&Path::ROOT.child(field), message),
        };
        self.errors.push(error.into());
    }

    fn flag(&mut self, flag: &'static str, message: String) {
        self.errors.push(ConfigError::Flag { flag, message });
    }

    /// A text of the flag, else of the file, else the default, with a check that tells what is wrong.
    fn text(
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
        parse_duration(value).unwrap_or_else(|| {
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
    let Some(root) = flags.root.as_ref().or(declared.root.as_ref()) else { return Paths::default() };
    match std::path::absolute(root) {
        Ok(root) if flags.root.is_some() || declared.root.as_ref().is_some_and(|r| r.is_absolute()) => Paths::below(root),
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

fn interface(name: &str) -> Vec<String> {
    let fine = (1..=IFNAME_LIMIT).contains(&name.len())
        && !matches!(name, "." | "..")
        && name.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b':'));
    if fine { Vec::new() } else { vec![format!("must be 1 to {IFNAME_LIMIT} characters without spaces, '/' and ':'")] }
}

fn table(name: &str) -> Vec<String> {
    let fine = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.len() <= 63
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    if fine { Vec::new() } else { vec!["must begin with a letter and have letters, digits, '_' and '-'".into()] }
}

fn network(c: &mut Checker<'_>, flags: &Flags, declared: &Declared) -> Network {
    let mtu = flags.mtu.or(declared.mtu);
    if let Some(mtu) = mtu.filter(|m| !(576..=65535).contains(m)) {
        let message = format!("Invalid value: {mtu}: must be between 576 and 65535");
        if flags.mtu.is_some() { c.flag("--mtu", message) } else { c.file("mtu", message) }
    }
    let pod_cidrs = cidrs(c, flags, declared);
    let in_cluster = [&flags.kubeconfig, &flags.bootstrap_kubeconfig, &declared.kubeconfig, &declared.bootstrap_kubeconfig];
    // A cluster has its own.
    let services = declared.services.unwrap_or(in_cluster.iter().all(|file| file.is_none()));
    let service_cidrs = if services { service_cidrs(c, declared, &pod_cidrs) } else { Vec::new() };
    Network {
        dns: declared.dns.unwrap_or(declared.cluster_dns.is_empty()) && !service_cidrs.is_empty(),
        service_cidrs,
        bridge: c.text("bridge", "--bridge", flags.bridge.as_ref(), declared.bridge.as_ref(), "nodeagent0", interface),
        pod_cidrs,
        nft_table: c.text("nftTable", "--nft-table", flags.nft_table.as_ref(), declared.nft_table.as_ref(), "nodeagent", table),
        mtu,
        wiring: flags.network.or(declared.network),
        ranges: if flags.pod_cidrs.is_empty() && declared.pod_cidrs.is_empty() { Ranges::Default } else { Ranges::Chosen },
        cni: cni(c, flags, declared),
    }
}

fn cni(c: &mut Checker<'_>, flags: &Flags, declared: &Declared) -> Cni {
    let section = &declared.cni;
    for dir in &section.bin_dirs {
        c.path("cni.binDirs", Some(dir));
    }
    let bin_dirs = if section.bin_dirs.is_empty() { vec!["/opt/cni/bin".into()] } else { section.bin_dirs.clone() };
    let lib = flags.root.as_ref().or(declared.root.as_ref()).map_or_else(Paths::default, |root| {
        // Whether it can be is told elsewhere.
        std::path::absolute(root).map_or_else(|_| Paths::default(), Paths::below)
    });
    let timeout = c.duration("cni.timeout", section.timeout.as_ref(), Duration::from_secs(60));
    if timeout.is_zero() {
        c.file("cni.timeout", "Invalid value: 0: must be longer".into());
    }
    Cni {
        conf_dir: c.path("cni.confDir", section.conf_dir.as_ref()).unwrap_or_else(|| "/etc/cni/net.d".into()),
        bin_dirs,
        cache_dir: c.path("cni.cacheDir", section.cache_dir.as_ref()).unwrap_or_else(|| lib.lib().join("cni")),
        timeout,
    }
}

fn cidrs(c: &mut Checker<'_>, flags: &Flags, declared: &Declared) -> Vec<Cidr> {
    let from_flag = !flags.pod_cidrs.is_empty();
    let default = vec!["10.85.0.0/16".to_owned()];
    let texts = match (from_flag, declared.pod_cidrs.is_empty()) {
        (true, _) => &flags.pod_cidrs,
        (false, false) => &declared.pod_cidrs,
        (false, true) => &default,
    };
    let mut tell = |message: String| {
        if from_flag { c.flag("--pod-cidr", message) } else { c.file("podCIDRs", message) }
    };
    let mut cidrs: Vec<Cidr> = Vec::new();
    for text in texts {
        match parse_cidr(text) {
            Ok(cidr) if cidrs.iter().any(|c| c.address.is_ipv4() == cidr.address.is_ipv4()) => {
                tell(format!("Invalid value: {text:?}: there is a range of this family already"));
            }
            Ok(cidr) => cidrs.push(cidr),
            Err(wrong) => tell(format!("Invalid value: {text:?}: {wrong}")),
        }
    }
    cidrs
}

/// Of the families that pods have. A default gives way to the pods' range.
fn service_cidrs(c: &mut Checker<'_>, declared: &Declared, pods: &[Cidr]) -> Vec<Cidr> {
    const DEFAULTS: [&str; 4] = ["10.96.0.0/16", "172.30.0.0/16", "fd00:10:96::/112", "fd00:10:97::/112"];
    let overlaps = |a: &Cidr| pods.iter().any(|b| a.overlaps(b));
    let mut ranges: Vec<Cidr> = Vec::new();
    let is_new = |cidr: &Cidr, ranges: &[Cidr]| !ranges.iter().any(|have| have.address.is_ipv4() == cidr.address.is_ipv4());
    for text in &declared.service_cidrs {
        match parse_cidr(text) {
            Ok(cidr) if !is_new(&cidr, &ranges) => {
                c.file("serviceCIDRs", format!("Invalid value: {text:?}: there is a range of this family already"));
            }
            Ok(cidr) if overlaps(&cidr) => {
                c.file("serviceCIDRs", format!("Invalid value: {text:?}: overlaps the pods' range: see podCIDRs"));
            }
            Ok(cidr) => ranges.push(cidr),
            Err(wrong) => c.file("serviceCIDRs", format!("Invalid value: {text:?}: {wrong}")),
        }
    }
    if declared.service_cidrs.is_empty() {
        let families = |cidr: &Cidr| pods.iter().any(|pods| pods.address.is_ipv4() == cidr.address.is_ipv4());
        for cidr in DEFAULTS.iter().filter_map(|text| parse_cidr(text).ok()).filter(families) {
            if is_new(&cidr, &ranges) && !overlaps(&cidr) {
                ranges.push(cidr);
            }
        }
        // In the order of the pods' families: the first is a Service's own.
        ranges.sort_by_key(|cidr| pods.first().is_some_and(|first| first.address.is_ipv4() != cidr.address.is_ipv4()));
    }
    ranges
}

/// A range that pods, or Services, can have.
pub(super) fn parse_cidr(text: &str) -> Result<Cidr, String> {
    let syntax = || "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)".to_owned();
    let (address, prefix) = text.split_once('/').ok_or_else(syntax)?;
    let address: IpAddr = address.parse().map_err(|_| syntax())?;
    let prefix: u8 = prefix.parse().map_err(|_| syntax())?;
    let (bits, value) = match address {
        IpAddr::V4(a) => (32, u128::from(u32::from(a)) << 96),
        IpAddr::V6(a) => (128, u128::from(a)),
    };
    if prefix > bits {
        return Err(syntax());
    }
    if prefix == 0 || bits - prefix < 3 {
        return Err("the range needs room for pods: a prefix from 1 to 29 (IPv4) or 125 (IPv6)".into());
    }
    if value << prefix != 0 {
        return Err(format!("has bits set after the first {prefix}"));
    }
    Ok(Cidr { address, prefix })
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

/// Go's durations, without its fractions' odd corners: `1h30m`, `1.5s`, `500ms`.
fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let (number, tail) = rest.split_at(number_end);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let number: f64 = number.parse().ok()?;
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = tail;
    }
    (!text.is_empty()).then_some(total)
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
