//! `nodeagent check`: what the machine has of what pods need, and what to do where it lacks something.

use std::path::Path;
use std::time::Duration;

use crate::pod::node::{Check, Verdict};
use crate::shutdown::logind::Logind;
use crate::shutdown::{self, Period};

/// All checks, in the order in which a start needs what they look at.
pub fn all(lib: &Path) -> Vec<Check> {
    vec![
        root(),
        kernel(),
        filesystem("overlay", Verdict::Bad, "modprobe overlay, or a kernel with CONFIG_OVERLAY_FS"),
        cgroups(),
        namespaces(),
        user_namespaces(),
        nftables(),
        bridge(),
        seccomp(),
        resource_capability(),
        filesystem("mqueue", Verdict::Limited, "a kernel with CONFIG_POSIX_MQUEUE: /dev/mqueue is missing in pods"),
        inotify(),
        disk(lib),
    ]
}

/// The same, and what is found out only by trying: for who asks, not for each start.
pub fn thorough(lib: &Path, network: &netplug::Settings, shutdown: &[Period]) -> Vec<Check> {
    let mut checks = all(lib);
    checks.push(graceful_shutdown(shutdown::needed(shutdown)));
    checks.push(bandwidth());
    checks.push(firewalls(network));
    checks.push(direct_path());
    checks.push(service_sockets());
    checks
}

/// Whether pods have time to end when the machine shuts down. Without the settings nobody is asked.
fn graceful_shutdown(needed: Duration) -> Check {
    if needed.is_zero() {
        let found = "no shutdownGracePeriod is set: pods end as the machine's processes do";
        return check("shutdown", Verdict::Good, found, "");
    }
    let advice = "pods end as the machine's processes do: start systemd-logind and a system bus, or set drainOnStop and the unit's TimeoutStopSec";
    match logind_waits() {
        Ok(delay) if delay >= needed => check("shutdown", Verdict::Good, format!("logind waits for pods, {delay:?} at most"), ""),
        Ok(delay) => {
            let found = format!("logind waits {delay:?}, and pods are to have {needed:?}");
            check(
                "shutdown",
                Verdict::Limited,
                found,
                "the agent has it wait longer when it starts, by /etc/systemd/logind.conf.d",
            )
        }
        Err(error) => check("shutdown", Verdict::Limited, error, advice),
    }
}

/// On a thread of its own: whoever asks may be a task of the agent's.
fn logind_waits() -> Result<Duration, String> {
    let ask = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
        runtime.block_on(async { Logind::connect().await?.delay().await }).map_err(|error| error.to_string())
    };
    std::thread::scope(|scope| scope.spawn(ask).join()).unwrap_or_else(|_| Err("logind could not be asked".into()))
}

/// Whether other people's rules leave room for pods of this bridge, beside our own table, and let them ask our resolver.
fn firewalls(network: &netplug::Settings) -> Check {
    match netplug::obstacles_to(network) {
        Ok(found) if found.is_empty() => check("firewalls", Verdict::Good, "no other one drops what pods send and get", ""),
        Ok(found) => {
            let all: Vec<String> = found.iter().map(ToString::to_string).collect();
            check("firewalls", Verdict::Limited, all.join("; "), "let pods through where that isn't so yet")
        }
        Err(error) => check("firewalls", Verdict::Limited, error.to_string(), "what other firewalls do to pods is unknown"),
    }
}

fn direct_path() -> Check {
    let found = "pods can reach each other past the host's rules, where none speaks of them";
    let advice = "pods reach each other by the host's rules alone: somewhat slower";
    tried("direct path", netplug::can_go_directly(), found, advice)
}

fn service_sockets() -> Check {
    let found = "pods' sockets can be connected to a Service's endpoint from the beginning";
    let advice = "connections to Services are translated by the host's rules: somewhat slower";
    tried("sockets", netplug::can_lead_sockets(), found, advice)
}

fn bandwidth() -> Check {
    let advice = "pods with a bandwidth annotation can't run: modprobe -a sch_tbf sch_ingress cls_u32 act_mirred ifb";
    tried("bandwidth", netplug::can_limit_bandwidth(), "token buckets and redirection work", advice)
}

/// What pods can do without, as it came out when it was tried.
fn tried(name: &str, outcome: Result<(), netplug::Error>, found: &str, advice: &str) -> Check {
    match outcome {
        Ok(()) => check(name, Verdict::Good, found, ""),
        Err(error) => check(name, Verdict::Limited, error.to_string(), advice),
    }
}

fn check(name: &str, verdict: Verdict, found: impl Into<String>, advice: &str) -> Check {
    let advice = if verdict == Verdict::Good { String::new() } else { advice.to_owned() };
    Check { name: name.to_owned(), verdict, found: found.into(), advice }
}

fn root() -> Check {
    let root = nix::unistd::geteuid().is_root();
    let verdict = if root { Verdict::Good } else { Verdict::Bad };
    check("root", verdict, format!("effective user ID {}", nix::unistd::geteuid()), "run the agent as root, e.g. with sudo")
}

/// The youngest system call without which nothing works is mount_setattr, of 5.12; idmapped overlay layers are of 5.19.
fn kernel() -> Check {
    let release = super::line("/proc/sys/kernel/osrelease");
    let mut numbers = release.split(['.', '-']).map_while(|n| n.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let verdict = match version {
        v if v < (5, 12) => Verdict::Bad,
        v if v < (5, 19) => Verdict::Limited,
        _ => Verdict::Good,
    };
    check("kernel", verdict, release, "Linux 5.12 is needed, 5.19 for pods with hostUsers: false")
}

fn filesystem(name: &str, missing: Verdict, advice: &str) -> Check {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let there = known.lines().any(|l| l.split_whitespace().last() == Some(name));
    let found = if there { "known to the kernel" } else { "unknown to the kernel (a module may not be loaded)" };
    check(name, if there { Verdict::Good } else { missing }, found, advice)
}

fn cgroups() -> Check {
    let wanted = ["cpu", "memory", "pids"];
    let v2 = super::line("/sys/fs/cgroup/cgroup.controllers");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let has = |controller: &str| {
        v2.split_whitespace().any(|c| c == controller)
            || mounts
                .lines()
                .filter_map(|l| l.split_once(" - cgroup "))
                .any(|(_, rest)| rest.split_whitespace().last().is_some_and(|o| o.split(',').any(|o| o == controller)))
    };
    let missing: Vec<_> = wanted.into_iter().filter(|c| !has(c)).collect();
    let version = if v2.is_empty() { "v1" } else { "v2" };
    if missing.is_empty() {
        check("cgroups", Verdict::Good, format!("{version} with cpu, memory, pids"), "")
    } else {
        let found = format!("{version} without {}", missing.join(", "));
        check(
            "cgroups",
            Verdict::Limited,
            found,
            "limits of these aren't kept: enable the controllers on the kernel's command line",
        )
    }
}

fn namespaces() -> Check {
    let missing: Vec<_> = ["net", "ipc", "uts", "mnt", "pid", "cgroup"]
        .into_iter()
        .filter(|n| !Path::new("/proc/self/ns").join(n).exists())
        .collect();
    let verdict = if missing.is_empty() { Verdict::Good } else { Verdict::Bad };
    let found =
        if missing.is_empty() { "net, ipc, uts, mnt, pid, cgroup".into() } else { format!("without {}", missing.join(", ")) };
    check("namespaces", verdict, found, "a kernel with CONFIG_NAMESPACES and all of its kinds")
}

fn user_namespaces() -> Check {
    let max: u64 = super::line("/proc/sys/user/max_user_namespaces").parse().unwrap_or(0);
    let verdict = if max == 0 { Verdict::Limited } else { Verdict::Good };
    check(
        "user namespaces",
        verdict,
        format!("at most {max}"),
        "pods with hostUsers: false can't run: sysctl user.max_user_namespaces=10000",
    )
}

fn nftables() -> Check {
    let domain = nix::libc::NETLINK_NETFILTER;
    let there = rustix::net::socket(
        rustix::net::AddressFamily::NETLINK,
        rustix::net::SocketType::RAW,
        u32::try_from(domain).ok().and_then(std::num::NonZeroU32::new).map(rustix::net::Protocol::from_raw),
    );
    match there {
        Ok(_) => check("nftables", Verdict::Good, "netfilter's netlink answers", ""),
        Err(error) => check("nftables", Verdict::Bad, error.to_string(), "modprobe nf_tables, or a kernel with CONFIG_NF_TABLES"),
    }
}

fn bridge() -> Check {
    let there = Path::new("/sys/module/bridge").exists() || Path::new("/proc/sys/net/bridge").exists();
    // Built in without parameters it shows nowhere: only its use tells.
    let found = if there { "loaded" } else { "built in, or loaded at the first use" };
    check("bridge", Verdict::Good, found, "")
}

fn seccomp() -> Check {
    let there = Path::new("/proc/sys/kernel/seccomp/actions_avail").exists();
    let verdict = if there { Verdict::Good } else { Verdict::Bad };
    check("seccomp", verdict, super::line("/proc/sys/kernel/seccomp/actions_avail"), "a kernel with CONFIG_SECCOMP_FILTER")
}

fn resource_capability() -> Check {
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|l| l.strip_prefix("CapEff:")).map_or("", str::trim);
    let has = u64::from_str_radix(mask, 16).is_ok_and(|m| m & (1 << CAP_SYS_RESOURCE) != 0);
    let found = if has { "CAP_SYS_RESOURCE is there" } else { "CAP_SYS_RESOURCE is missing" };
    let advice = "containers keep the agent's OOM score where theirs should be lower, and hard limits can't be raised";
    check("limits", if has { Verdict::Good } else { Verdict::Limited }, found, advice)
}

fn inotify() -> Check {
    let max: u64 = super::line("/proc/sys/fs/inotify/max_user_instances").parse().unwrap_or(0);
    let verdict = if max < 64 { Verdict::Limited } else { Verdict::Good };
    check("inotify", verdict, format!("at most {max} instances a user"), "sysctl fs.inotify.max_user_instances=1024")
}

fn disk(lib: &Path) -> Check {
    let nearest = lib.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    match nix::sys::statvfs::statvfs(nearest) {
        Ok(stat) => {
            let free = stat.blocks_available() * stat.fragment_size();
            let total = (stat.blocks() * stat.fragment_size()).max(1);
            let percent = free * 100 / total;
            let verdict = if percent < 15 { Verdict::Limited } else { Verdict::Good };
            let found = format!("{percent} % ({} MiB) free below {}", free >> 20, nearest.display());
            check("disk", verdict, found, "images are collected above 85 % use: free some space")
        }
        Err(error) => {
            check("disk", Verdict::Bad, format!("{}: {error}", nearest.display()), "give the agent a folder that it can write to")
        }
    }
}
