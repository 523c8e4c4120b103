//! What the node gives to pods and keeps for itself, and when it takes it back: the kubelet's settings under the kubelet's names,
//! <https://kubernetes.io/docs/reference/config-api/kubelet-config.v1beta1/>.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::check::Checker;
use super::file::{Amounts, Declared};
use crate::eviction::{self, Signal, Threshold};
use crate::model::quantity::Quantity;
use crate::model::validate::names;

/// What pods may be and do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Security {
    /// Where nothing is said, containers run under `RuntimeDefault`.
    pub seccomp_default: bool,
    /// A profile (OCI JSON) for `RuntimeDefault`, instead of the one that is built in.
    pub seccomp_default_profile: Option<PathBuf>,
    /// The folder of `Localhost` profiles; unset: `seccomp` below /var/lib/nodeagent.
    pub seccomp_root: Option<PathBuf>,
    /// Sysctls beside the safe ones; `*` at the end stands for any rest.
    pub unsafe_sysctls: Vec<String>,
    /// Name servers of `dnsPolicy: ClusterFirst`; none: the host's.
    pub cluster_dns: Vec<IpAddr>,
    /// `cluster.local`, or what it is here.
    pub cluster_domain: String,
}

/// What pods may use.
#[derive(Debug, Clone, PartialEq)]
pub struct Pods {
    /// How many.
    pub max: u32,
    /// Processes and threads of one.
    pub pids_limit: Option<u64>,
    /// What the machine keeps for itself: systemReserved and kubeReserved together.
    pub reserved: Reserved,
    /// v2: memory.min and memory.high follow the requests, the latter by this factor.
    pub memory_throttling: Option<f64>,
    /// v2: the kernel kills one process for memory, not the container.
    pub single_process_oom_kill: bool,
    /// Folders of CDI specs; the later overrules.
    pub cdi_spec_dirs: Vec<PathBuf>,
    /// Where plugins look for the kubelet; unset: /var/lib/kubelet below the root.
    pub kubelet_root: Option<PathBuf>,
}

/// Amounts that pods don't get.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reserved {
    /// Thousandths of a CPU.
    pub cpu_millis: u64,
    /// Bytes.
    pub memory: u64,
    /// Bytes.
    pub ephemeral_storage: u64,
    /// Process IDs.
    pub pids: u64,
}

pub(super) fn security(c: &mut Checker<'_>, declared: &Declared) -> Security {
    let mut cluster_dns = Vec::new();
    for text in &declared.cluster_dns {
        match text.parse() {
            Ok(ip) => cluster_dns.push(ip),
            Err(_) => c.file("clusterDNS", format!("Invalid value: {text:?}: must be an IP address")),
        }
    }
    let cluster_domain = declared.cluster_domain.clone().unwrap_or_else(|| "cluster.local".into());
    for wrong in names::dns_subdomain(&cluster_domain) {
        c.file("clusterDomain", format!("Invalid value: {cluster_domain:?}: {wrong}"));
    }
    for pattern in &declared.allowed_unsafe_sysctls {
        if let Err(wrong) = sysctl_pattern(pattern) {
            c.file("allowedUnsafeSysctls", format!("Invalid value: {pattern:?}: {wrong}"));
        }
    }
    Security {
        seccomp_default: declared.seccomp_default.unwrap_or(true),
        seccomp_default_profile: c.path("seccompDefaultProfile", declared.seccomp_default_profile.as_ref()),
        seccomp_root: c.path("seccompRoot", declared.seccomp_root.as_ref()),
        unsafe_sysctls: declared.allowed_unsafe_sysctls.iter().map(|p| p.replace('/', ".")).collect(),
        cluster_dns,
        cluster_domain,
    }
}

/// Only what has a namespace of its own can be a pod's.
fn sysctl_pattern(pattern: &str) -> Result<(), &'static str> {
    let plain = pattern.replace('/', ".");
    let stem = plain.strip_suffix('*').unwrap_or(&plain);
    if stem.contains('*') {
        return Err("'*' is for the end alone");
    }
    let namespaced = ["net.", "kernel.shm", "kernel.msg", "fs.mqueue."];
    if stem == "kernel.sem" || namespaced.iter().any(|prefix| stem.starts_with(prefix)) {
        return Ok(());
    }
    Err("is not namespaced: only kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue.* and net.* are")
}

pub(super) fn pods(c: &mut Checker<'_>, declared: &Declared) -> Pods {
    let pids_limit = declared.pod_pids_limit.unwrap_or(-1);
    if pids_limit == 0 || pids_limit < -1 {
        c.file("podPidsLimit", format!("Invalid value: {pids_limit}: must be -1 (no limit) or more than 0"));
    }
    let factor = declared.memory_throttling_factor.unwrap_or(0.9);
    if !(factor > 0.0 && factor <= 1.0) {
        c.file(
            "memoryThrottlingFactor",
            format!("Invalid value: {factor}: must be greater than 0 and less than or equal to 1.0"),
        );
    }
    let system = reserved(c, "systemReserved", &declared.system_reserved);
    let kube = reserved(c, "kubeReserved", &declared.kube_reserved);
    let dirs = declared.cdi_spec_dirs.clone().unwrap_or_else(|| vec!["/etc/cdi".into(), "/var/run/cdi".into()]);
    for dir in &dirs {
        c.path("cdiSpecDirs", Some(dir));
    }
    Pods {
        max: c.number("maxPods", declared.max_pods, 110, 1, 100_000),
        pids_limit: u64::try_from(pids_limit).ok().filter(|n| *n > 0),
        reserved: Reserved {
            cpu_millis: system.cpu_millis.saturating_add(kube.cpu_millis),
            memory: system.memory.saturating_add(kube.memory),
            ephemeral_storage: system.ephemeral_storage.saturating_add(kube.ephemeral_storage),
            pids: system.pids.saturating_add(kube.pids),
        },
        memory_throttling: (declared.memory_qos == Some(true)).then_some(factor),
        single_process_oom_kill: declared.single_process_oom_kill.unwrap_or(false),
        cdi_spec_dirs: dirs,
        kubelet_root: c.path("kubeletRoot", declared.kubelet_root.as_ref()),
    }
}

fn reserved(c: &mut Checker<'_>, field: &str, amounts: &Amounts) -> Reserved {
    let mut reserved = Reserved::default();
    for (name, text) in amounts {
        let Some(amount) = text.parse::<Quantity>().ok().filter(|q| !q.is_negative()) else {
            c.file(field, format!("Invalid value: {text:?}: {name}: must be a quantity that is not negative"));
            continue;
        };
        let whole = amount.value().unsigned_abs();
        match name.as_str() {
            "cpu" => reserved.cpu_millis = amount.milli().unsigned_abs(),
            "memory" => reserved.memory = whole,
            "ephemeral-storage" => reserved.ephemeral_storage = whole,
            "pid" => reserved.pids = whole,
            _ => c.file(
                field,
                format!("Unsupported value: {name:?}: supported values: \"cpu\", \"ephemeral-storage\", \"memory\", \"pid\""),
            ),
        }
    }
    reserved
}

pub(super) fn eviction(c: &mut Checker<'_>, declared: &Declared) -> eviction::Settings {
    let mut hard = match &declared.eviction_hard {
        Some(amounts) => thresholds(c, "evictionHard", amounts),
        None => eviction::default_thresholds(),
    };
    let mut soft = thresholds(c, "evictionSoft", &declared.eviction_soft);
    for threshold in &mut soft {
        let name = threshold.signal.name();
        match declared.eviction_soft_grace_period.get(name) {
            Some(text) => threshold.grace = c.duration("evictionSoftGracePeriod", Some(text), Duration::ZERO),
            None => c.file("evictionSoftGracePeriod", format!("Required value: {name}: evictionSoft names it")),
        }
    }
    let reclaim = thresholds(c, "evictionMinimumReclaim", &declared.eviction_minimum_reclaim);
    for threshold in hard.iter_mut().chain(&mut soft) {
        threshold.min_reclaim = reclaim.iter().find(|r| r.signal == threshold.signal).map(|r| r.value);
    }
    let transition = declared.eviction_pressure_transition_period.as_ref();
    let period = c.duration("evictionMonitoringPeriod", declared.eviction_monitoring_period.as_ref(), Duration::from_secs(10));
    if period < Duration::from_millis(100) {
        c.file("evictionMonitoringPeriod", format!("Invalid value: {period:?}: must be 100ms or more"));
    }
    eviction::Settings {
        thresholds: hard.into_iter().chain(soft).collect(),
        transition: c.duration("evictionPressureTransitionPeriod", transition, Duration::from_secs(300)),
        max_grace: Duration::from_secs(declared.eviction_max_pod_grace_period.unwrap_or(0).into()),
        period,
    }
}

fn thresholds(c: &mut Checker<'_>, field: &str, amounts: &Amounts) -> Vec<Threshold> {
    let mut found = Vec::new();
    for (name, text) in amounts {
        let Some(signal) = Signal::named(name) else {
            let known: Vec<String> = Signal::ALL.iter().map(|s| format!("{:?}", s.name())).collect();
            c.file(field, format!("Unsupported value: {name:?}: supported values: {}", known.join(", ")));
            continue;
        };
        match text.parse() {
            Ok(value) => found.push(Threshold { signal, value, grace: Duration::ZERO, min_reclaim: None }),
            Err(wrong) => c.file(field, format!("Invalid value: {text:?}: {name}: {wrong}")),
        }
    }
    found
}
