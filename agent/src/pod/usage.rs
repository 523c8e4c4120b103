//! What the node and its pods use, read from the kernel when somebody asks. Disks are walked no more than once a minute, and only for
//! those who want to know.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as k8s;

use super::Node;
use super::worker::Live;
use crate::model::{Origin, PodUid, ValidPod};
use crate::runtime::Sandbox;
use crate::runtime::cgroup::{Detail, Stats};
use crate::runtime::volumes::usage::{self, Used};

/// How long what was seen of a pod's disk is good enough; the kubelet's.
const DISK_HOLDS: Duration = Duration::from_secs(60);
/// The kernel's unit of CPU time in /proc: USER_HZ, 100 on all architectures that we know.
const TICK_NANOS: u64 = 10_000_000;

/// How much somebody wants to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wanted {
    /// CPU and memory.
    CpuAndMemory,
    /// And network, processes, limits.
    Counters,
    /// And disks.
    All,
}

/// What the node uses.
#[derive(Debug, Clone, Default)]
pub struct NodeUsage {
    /// When this was read.
    pub time: Timestamp,
    /// When the machine booted.
    pub booted: Timestamp,
    /// CPU time of all, nanoseconds.
    pub cpu_nanos: u64,
    /// How many processors there are.
    pub cpus: u64,
    /// Bytes: all, free, on the list of inactive files, anonymous.
    pub memory: MachineMemory,
    /// Of the machine's network namespace.
    pub interfaces: Vec<Interface>,
    /// The one that leads out.
    pub default_interface: Option<String>,
    /// Where pods' files are.
    pub disk: Disk,
    /// Where images are.
    pub images: Disk,
    /// Processes, and how many there may be.
    pub processes: (u64, u64),
    /// All pods that have something running.
    pub pods: Vec<PodUsage>,
}

/// The machine's memory in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MachineMemory {
    /// All.
    pub total: u64,
    /// Used by nobody.
    pub free: u64,
    /// Page cache that is easily dropped.
    pub inactive_file: u64,
    /// Anonymous.
    pub anonymous: u64,
    /// Swap: all and free.
    pub swap: (u64, u64),
    /// Page faults, and those that went to disk.
    pub faults: (u64, u64),
}

/// A file system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Disk {
    /// Bytes: all, and what is left for those who aren't root.
    pub bytes: (u64, u64),
    /// Inodes: all, and free.
    pub inodes: (u64, u64),
}

/// Counters of a link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Bytes, packets, errors, dropped.
    pub received: [u64; 4],
    /// Bytes, packets, errors, dropped.
    pub sent: [u64; 4],
}

/// What a pod uses.
#[derive(Debug, Clone, Default)]
pub struct PodUsage {
    /// metadata.uid.
    pub uid: String,
    /// metadata.name.
    pub name: String,
    /// metadata.namespace.
    pub namespace: String,
    /// When the node first saw it.
    pub started: Option<Timestamp>,
    /// Of its group, with what isn't any container's.
    pub stats: Stats,
    /// Its group's path.
    pub cgroup: String,
    /// More of its group.
    pub detail: Detail,
    /// Of its network namespace; none with the host's.
    pub interfaces: Vec<Interface>,
    /// Its volumes that have a size.
    pub volumes: Vec<VolumeUsage>,
    /// Those that run.
    pub containers: Vec<ContainerUsage>,
}

/// What a volume holds.
#[derive(Debug, Clone, Default)]
pub struct VolumeUsage {
    /// In the pod's spec.
    pub name: String,
    /// The claim that it is of.
    pub claim: Option<String>,
    /// Its own.
    pub used: Used,
    /// Of the file system that it lies on.
    pub disk: Disk,
}

/// What a container uses.
#[derive(Debug, Clone, Default)]
pub struct ContainerUsage {
    /// Its name.
    pub name: String,
    /// Its ID.
    pub id: String,
    /// Its image, as the spec says it.
    pub image: String,
    /// When its command was executed.
    pub started: Timestamp,
    /// Of its group.
    pub stats: Stats,
    /// More of its group.
    pub detail: Detail,
    /// Its group's path.
    pub cgroup: String,
    /// What it wrote beside volumes.
    pub layer: Used,
    /// Its log.
    pub logs: Used,
    /// What it asks for and what it is limited to.
    pub resources: k8s::ResourceRequirements,
}

/// What was seen of pods' disks.
#[derive(Debug, Default)]
pub struct Seen(Mutex<HashMap<PodUid, (Instant, OnDisk)>>);

#[derive(Debug, Clone, Default)]
struct OnDisk {
    volumes: Vec<VolumeUsage>,
    /// By container: layer and logs.
    containers: HashMap<String, (Used, Used)>,
}

/// Reads it. Blocks: files of /proc and /sys, and with [`Wanted::All`] all that pods wrote.
pub fn of_node(node: &Node, seen: &Seen, wanted: Wanted) -> NodeUsage {
    let lib = &node.runtime.settings().lib;
    let mut usage = NodeUsage { time: Timestamp::now(), ..of_machine() };
    if wanted >= Wanted::Counters {
        usage.interfaces = interfaces(&text("/proc/self/net/dev"));
        usage.default_interface = default_interface(&text("/proc/self/net/route"));
        usage.disk = disk(lib);
        usage.images = disk(&lib.join("images"));
    }
    let live: Vec<(PodUid, Live)> = {
        let all = node.live.read().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(uid, live)| (uid.clone(), live.lock().unwrap_or_else(PoisonError::into_inner).clone())).collect()
    };
    if wanted == Wanted::All {
        let mut seen = seen.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|uid, _| live.iter().any(|(other, _)| other == uid));
    }
    usage.pods = live.iter().filter_map(|(uid, live)| of_pod(node, seen, (uid, live), wanted)).collect();
    usage
}

fn of_pod(node: &Node, seen: &Seen, (uid, live): (&PodUid, &Live), wanted: Wanted) -> Option<PodUsage> {
    let sandbox = live.sandbox.as_ref()?;
    let object = node.store.pod(uid)?;
    let pod = ValidPod::trusted(k8s::Pod::clone(&object), Origin::Stdin);
    let on_disk = if wanted == Wanted::All { seen.look(node, &pod) } else { OnDisk::default() };
    let own_network = pod.spec().host_network != Some(true);
    let text_of = |field: &Option<String>| field.clone().unwrap_or_default();
    Some(PodUsage {
        uid: uid.to_string(),
        name: text_of(&object.metadata.name),
        namespace: text_of(&object.metadata.namespace),
        started: object.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0),
        stats: sandbox.group.stats(),
        cgroup: sandbox.group.path().display().to_string(),
        detail: if wanted >= Wanted::Counters { sandbox.group.detail() } else { Detail::default() },
        interfaces: if wanted >= Wanted::Counters && own_network {
            interfaces(&text(&format!("/proc/{}/net/dev", sandbox.holder.pid())))
        } else {
            Vec::new()
        },
        containers: pod.all_containers().filter_map(|c| of_container(sandbox, live, c, &on_disk, wanted)).collect(),
        volumes: on_disk.volumes,
    })
}

fn of_container(
    sandbox: &Sandbox,
    live: &Live,
    container: &k8s::Container,
    on_disk: &OnDisk,
    wanted: Wanted,
) -> Option<ContainerUsage> {
    let (_, attempt) = live.attempts.iter().find(|(name, a)| *name == container.name && a.finish.is_none())?;
    let group = sandbox.group.child(&attempt.id);
    let (layer, logs) = on_disk.containers.get(&container.name).copied().unwrap_or_default();
    Some(ContainerUsage {
        name: container.name.clone(),
        id: attempt.id.clone(),
        image: container.image.clone().unwrap_or_default(),
        started: attempt.started_at,
        stats: group.stats(),
        detail: if wanted >= Wanted::Counters { group.detail() } else { Detail::default() },
        cgroup: group.path().display().to_string(),
        layer,
        logs,
        resources: container.resources.clone().unwrap_or_default(),
    })
}

impl Seen {
    fn look(&self, node: &Node, pod: &ValidPod) -> OnDisk {
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((when, known)) = lock().get(pod.uid())
            && when.elapsed() < DISK_HOLDS
        {
            return known.clone();
        }
        // Not under the lock: a walk may take long.
        let settings = node.runtime.settings();
        let containers = pod
            .all_containers()
            .map(|c| (c.name.clone(), (usage::of_layer(pod, &c.name, settings), usage::of_logs(pod, &c.name, settings))));
        let volumes = pod.spec().volumes.iter().flatten().filter_map(|volume| {
            let claim = volume.persistent_volume_claim.as_ref().map(|c| c.claim_name.clone());
            let place = match (&claim, &volume.empty_dir) {
                (Some(claim), _) => settings.claims.join(pod.namespace()).join(claim),
                (None, Some(_)) => settings.empty_dir(pod.uid(), &volume.name),
                _ => return None,
            };
            let used = usage::used(&place).ok()?;
            Some(VolumeUsage { name: volume.name.clone(), claim, used, disk: disk(&place) })
        });
        let fresh = OnDisk { volumes: volumes.collect(), containers: containers.collect() };
        lock().insert(pod.uid().clone(), (Instant::now(), fresh.clone()));
        fresh
    }
}

fn text(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn of_machine() -> NodeUsage {
    let stat = text("/proc/stat");
    let (cpu_nanos, cpus, booted) = processors(&stat);
    let processes = text("/proc/loadavg").split_whitespace().nth(3).and_then(|f| f.split_once('/')?.1.parse().ok());
    let most = text("/proc/sys/kernel/pid_max").trim().parse().unwrap_or_default();
    NodeUsage {
        booted,
        cpu_nanos,
        cpus,
        memory: memory(&text("/proc/meminfo"), &text("/proc/vmstat")),
        processes: (processes.unwrap_or_default(), most),
        ..NodeUsage::default()
    }
}

/// Busy time of all processors together, how many they are, and when the machine booted.
fn processors(stat: &str) -> (u64, u64, Timestamp) {
    let all = stat.lines().find_map(|line| line.strip_prefix("cpu ")).unwrap_or_default();
    let ticks: Vec<u64> = all.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; guests' time is in user's already.
    let busy = ticks.iter().enumerate().filter(|(i, _)| matches!(i, 0..=2 | 5..=7)).map(|(_, t)| t).sum::<u64>();
    let count = stat.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu ")).count();
    let booted = stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok()).unwrap_or_default();
    (busy.saturating_mul(TICK_NANOS), count as u64, Timestamp::from_second(booted).unwrap_or_default())
}

fn memory(meminfo: &str, vmstat: &str) -> MachineMemory {
    let kilobytes = |name: &str| {
        let value = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.and_then(|v| v.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap_or_default().saturating_mul(1024)
    };
    let count = |name: &str| {
        let value = vmstat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.and_then(|v| v.trim().parse::<u64>().ok()).unwrap_or_default()
    };
    MachineMemory {
        total: kilobytes("MemTotal"),
        free: kilobytes("MemFree"),
        inactive_file: kilobytes("Inactive(file)"),
        anonymous: kilobytes("AnonPages"),
        swap: (kilobytes("SwapTotal"), kilobytes("SwapFree")),
        faults: (count("pgfault"), count("pgmajfault")),
    }
}

fn disk(path: &Path) -> Disk {
    let nearest = path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let Ok(stat) = rustix::fs::statvfs(nearest) else { return Disk::default() };
    let size = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Disk { bytes: (size(stat.f_blocks), size(stat.f_bavail)), inodes: (stat.f_files, stat.f_ffree) }
}

/// Lines of /proc/net/dev after its two of heading: `NAME: bytes packets errs drop fifo frame compressed multicast`, and the same of
/// what was sent. Loopback isn't network.
fn interfaces(dev: &str) -> Vec<Interface> {
    let parse = |line: &str| {
        let (name, counters) = line.split_once(':')?;
        let counters: Vec<u64> = counters.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        let four = |at: usize| <[u64; 4]>::try_from(counters.get(at..at + 4)?).ok();
        Some(Interface { name: name.trim().to_owned(), received: four(0)?, sent: four(8)? })
    };
    dev.lines().skip(2).filter_map(parse).filter(|interface| interface.name != "lo").collect()
}

/// The line of /proc/net/route with destination and mask 0.
fn default_interface(routes: &str) -> Option<String> {
    let words = routes.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    words.into_iter().find(|w| w.get(1) == Some(&"00000000") && w.get(7) == Some(&"00000000")).map(|w| w[0].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_busy_but_for_idle_and_iowait() {
        let stat = "cpu  1 2 3 1000 1000 4 5 6 7 8\ncpu0 1 0 0 0\ncpu1 1 0 0 0\nintr 1\nbtime 1700000000\n";
        let (nanos, count, booted) = processors(stat);
        assert_eq!((nanos, count, booted.as_second()), (21 * TICK_NANOS, 2, 1_700_000_000));
    }

    #[test]
    fn links() {
        let dev = "Inter-|   Receive  |  Transmit\n face |bytes |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  \
                   eth0: 10 2 3 4 0 0 0 0 50 6 7 8 0 0 0 0\n broken: 1\n";
        let eth0 = Interface { name: "eth0".into(), received: [10, 2, 3, 4], sent: [50, 6, 7, 8] };
        assert_eq!(interfaces(dev), [eth0]);
        let routes = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n\
                      br0 0000550A 00000000 0001 0 0 0 0000FFFF 0 0 0\neth0 00000000 0100550A 0003 0 0 0 00000000 0 0 0\n";
        assert_eq!(default_interface(routes).as_deref(), Some("eth0"));
    }

    #[test]
    fn this_machine_tells() {
        let usage = of_machine();
        assert!(usage.cpus > 0 && usage.cpu_nanos > 0 && usage.memory.total > usage.memory.free, "{usage:?}");
    }
}
