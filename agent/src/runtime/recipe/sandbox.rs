//! What a pod's namespaces are made from: hostname, sharing, sysctls, the range of IDs. Pure.

use podholder::protocol::{IdMap, IdMaps, SandboxRecipe};

use super::capabilities;
use crate::model::ValidPod;
use crate::runtime::error::ConfigError;
use crate::runtime::settings::Settings;

/// Sysctls that every pod may set: they touch nobody else.
/// <https://kubernetes.io/docs/tasks/administer-cluster/sysctl-cluster/#safe-and-unsafe-sysctls>
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// The recipe. `ids` is this pod's range, for `hostUsers: false`.
pub fn sandbox(
    pod: &ValidPod,
    settings: &Settings,
    ids: Option<IdMaps>,
    note: serde_json::Value,
) -> Result<SandboxRecipe, ConfigError> {
    let spec = pod.spec();
    let own_network = spec.host_network != Some(true);
    Ok(SandboxRecipe {
        socket: settings.holder_socket(pod.uid()),
        net: own_network,
        ipc: spec.host_ipc != Some(true),
        // On the host's network a pod has the host's name as well.
        hostname: own_network.then(|| kernel_hostname(pod, settings)).transpose()?,
        domainname: None,
        user: ids,
        share_pid: spec.share_process_namespace == Some(true) && spec.host_pid != Some(true),
        may_trace: may_trace(pod, settings),
        cgroups: Vec::new(),
        sysctls: sysctls(pod, settings)?,
        shm_size: 0,
        title: format!("podholder {pod}"),
        note,
    })
}

/// Whether one of its containers gets CAP_SYS_PTRACE. One that asks for what can't be is refused when it is started.
fn may_trace(pod: &ValidPod, settings: &Settings) -> bool {
    pod.all_containers().any(|container| {
        let sets = capabilities::of(container.security_context.as_ref(), settings.capabilities);
        sets.is_ok_and(|sets| capabilities::has(sets.bounding, "SYS_PTRACE"))
    })
}

/// The name that `hostname` prints: spec.hostname or the pod's name, cut to what the kernel takes.
pub fn hostname(pod: &ValidPod) -> String {
    if let Some(whole) = pod.spec().hostname_override.as_ref().filter(|name| !name.is_empty()) {
        return whole.clone();
    }
    let name = pod.spec().hostname.as_deref().filter(|name| !name.is_empty()).unwrap_or(pod.name());
    // 63 octets: one label of DNS. What a cut leaves at the end must not be a separator.
    let cut = name.get(..63).unwrap_or(name);
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// `hostname.subdomain.namespace.svc.DOMAIN`, if the pod has a subdomain.
pub fn fqdn(pod: &ValidPod, settings: &Settings) -> Option<String> {
    let subdomain = pod.spec().subdomain.as_deref().filter(|s| !s.is_empty())?;
    if pod.spec().hostname_override.is_some() {
        return None;
    }
    Some(format!("{}.{subdomain}.{}.svc.{}", hostname(pod), pod.namespace(), settings.cluster_domain))
}

/// The longest name that the kernel takes.
const HOSTNAME_LIMIT: usize = 64;

fn kernel_hostname(pod: &ValidPod, settings: &Settings) -> Result<String, ConfigError> {
    match fqdn(pod, settings).filter(|_| pod.spec().set_hostname_as_fqdn == Some(true)) {
        Some(whole) if whole.len() > HOSTNAME_LIMIT => Err(ConfigError::new(format!(
            "failed to construct FQDN from pod hostname and cluster domain, FQDN {whole} is too long ({HOSTNAME_LIMIT} characters is \
             the max, {} characters requested)",
            whole.len()
        ))),
        whole => Ok(whole.unwrap_or_else(|| hostname(pod))),
    }
}

/// The sysctls of the pod, or the first that it may not set.
pub fn sysctls(pod: &ValidPod, settings: &Settings) -> Result<Vec<(String, String)>, ConfigError> {
    let spec = pod.spec();
    let mut list = Vec::new();
    for sysctl in spec.security_context.iter().flat_map(|c| c.sysctls.iter().flatten()) {
        let name = sysctl.name.replace('/', ".");
        if !SAFE_SYSCTLS.contains(&name.as_str()) && !settings.unsafe_sysctls.iter().any(|pattern| matches(pattern, &name)) {
            return Err(ConfigError::new(format!(
                "forbidden sysctl: \"{name}\" not allowlisted (unsafe sysctls must be named in the agent's configuration)"
            )));
        }
        let shared = match name.split('.').next() {
            Some("net") => spec.host_network == Some(true),
            Some("kernel" | "fs") => spec.host_ipc == Some(true) || !is_ipc(&name),
            _ => true,
        };
        if shared {
            return Err(ConfigError::new(format!("forbidden sysctl: \"{name}\" would change the host, not the pod")));
        }
        list.push((name, sysctl.value.clone()));
    }
    Ok(list)
}

/// Of the IPC namespace.
fn is_ipc(name: &str) -> bool {
    let of_ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."];
    name == "kernel.sem" || of_ipc.iter().any(|prefix| name.starts_with(prefix))
}

fn matches(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |prefix| name.starts_with(prefix))
}

/// Whether a pod has a USER namespace of its own.
pub fn wants_ids(pod: &ValidPod) -> bool {
    pod.spec().host_users == Some(false)
}

/// The first `count` free host IDs of the range. `used` tells whether another pod has one of those from the first up to the second.
pub fn free_ids(range: (u32, u32), count: u32, used: impl Fn(u32, u32) -> bool) -> Option<IdMaps> {
    let slots = range.1.checked_div(count)?;
    let starts = (0..slots).filter_map(|slot| range.0.checked_add(slot.checked_mul(count)?));
    let outside = starts.into_iter().find(|start| !used(*start, start.saturating_add(count)))?;
    Some(ids_from(outside, count))
}

/// A pod's range: its first host ID, and how many.
pub fn ids_from(outside: u32, count: u32) -> IdMaps {
    let map = vec![IdMap { inside: 0, outside, count }];
    IdMaps { uids: map.clone(), gids: map }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Origin;
    use rstest::rstest;

    fn pod(spec: &str) -> ValidPod {
        let yaml = format!("{{metadata: {{name: web, namespace: shop, uid: u}}, spec: {{containers: [], {spec}}}}}");
        ValidPod::trusted(serde_yaml::from_str(&yaml).unwrap(), Origin::Stdin)
    }

    fn recipe(spec: &str) -> Result<SandboxRecipe, ConfigError> {
        let settings = Settings { unsafe_sysctls: vec!["net.core.*".into()], ..Settings::below("/r".as_ref(), "p") };
        sandbox(&pod(spec), &settings, None, serde_json::Value::Null)
    }

    #[rstest]
    #[case("", Some("web"))]
    #[case("hostname: db", Some("db"))]
    #[case("hostNetwork: true", None)]
    #[case("hostname: db, subdomain: sub", Some("db"))]
    #[case("hostname: db, subdomain: sub, setHostnameAsFQDN: true", Some("db.sub.shop.svc.cluster.local"))]
    #[case(
        "hostname: a23456789012345678901234567890123456789012345678901234567890-2345",
        Some("a23456789012345678901234567890123456789012345678901234567890-23")
    )]
    #[case(
        "hostname: a2345678901234567890123456789012345678901234567890123456789012-45",
        Some("a2345678901234567890123456789012345678901234567890123456789012")
    )]
    fn hostnames(#[case] spec: &str, #[case] expected: Option<&str>) {
        assert_eq!(recipe(spec).unwrap().hostname.as_deref(), expected);
    }

    #[rstest]
    #[case("", (true, true, false))]
    #[case("hostNetwork: true, hostIPC: true", (false, false, false))]
    #[case("shareProcessNamespace: true", (true, true, true))]
    fn namespaces(#[case] spec: &str, #[case] expected: (bool, bool, bool)) {
        let recipe = recipe(spec).unwrap();
        assert_eq!((recipe.net, recipe.ipc, recipe.share_pid), expected);
    }

    #[rstest]
    #[case("net.ipv4.ip_unprivileged_port_start", "", None)]
    #[case("net/ipv4/tcp_syncookies", "", None)]
    #[case("net.core.somaxconn", "", None)]
    #[case("kernel.shm_rmid_forced", "", None)]
    #[case("kernel.shmmax", "", Some("not allowlisted"))]
    #[case("vm.swappiness", "", Some("not allowlisted"))]
    #[case("net.core.somaxconn", "hostNetwork: true,", Some("would change the host"))]
    #[case("kernel.shm_rmid_forced", "hostIPC: true,", Some("would change the host"))]
    fn sysctl_policy(#[case] name: &str, #[case] spec: &str, #[case] refusal: Option<&str>) {
        let made = recipe(&format!("{spec} securityContext: {{sysctls: [{{name: {name}, value: '1'}}]}}"));
        match (made, refusal) {
            (Ok(recipe), None) => assert_eq!(recipe.sysctls, [(name.replace('/', "."), "1".into())]),
            (Err(error), Some(words)) => assert!(error.message.contains(words), "{error}"),
            (made, _) => panic!("{made:?}"),
        }
    }

    #[test]
    fn ranges_are_distinct_and_end() {
        let ids = |range, used: &dyn Fn(u32, u32) -> bool| free_ids(range, 65536, used).map(|maps| maps.uids[0].outside);
        let two = (1 << 20, 2 << 16);
        let first = ids(two, &|_, _| false).unwrap();
        let overlaps = |start: u32, end: u32| first < end && start < first + 65536;
        assert_eq!(ids(two, &overlaps), Some(first + 65536));
        assert_eq!(ids(two, &|_, _| true), None);
        assert_eq!(ids((u32::MAX, u32::MAX), &|_, _| true), None);
    }
}
