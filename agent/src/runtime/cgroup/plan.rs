//! Which files of a cgroup get which values. Pure: tables against the kubelet's known values.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{PodSpec, ResourceRequirements};

use super::layout::{Controller, Layout, Version};
use crate::runtime::hugepages;
use crate::runtime::resources::{Qos, Totals};

/// The kubelet's smallest weight: what a container without a CPU request gets.
const MIN_SHARES: u64 = 2;
const MAX_SHARES: u64 = 262_144;
/// Microseconds; the kernel's default, so that it's never written on v1.
const PERIOD: u64 = 100_000;
/// Below a millisecond the kernel refuses a quota.
const MIN_QUOTA: u64 = 1_000;

/// What a group may use. `None`: no limit of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// v1's unit; 1024 is one CPU.
    pub cpu_shares: Option<u64>,
    /// Microseconds of CPU time in each 100 ms.
    pub cpu_quota: Option<u64>,
    /// Bytes.
    pub memory: Option<u64>,
    /// Bytes that the kernel takes from it last of all (v2).
    pub memory_min: Option<u64>,
    /// Bytes beyond which it is slowed down; `u64::MAX`: never (v2).
    pub memory_high: Option<u64>,
    /// Bytes of huge pages, by the bytes of a page.
    pub huge_pages: BTreeMap<u64, u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// One process killed for memory: all of the group are (v2).
    pub oom_group: bool,
}

impl Limits {
    /// Of a container.
    pub fn container(resources: Option<&ResourceRequirements>, rules: &Rules) -> Self {
        let totals = Totals::of(resources);
        let asked = hugepages::of_container(resources);
        Self {
            memory_min: rules.throttling.map(|_| totals.memory_request),
            memory_high: rules.throttling.map(|factor| high(&totals, factor, rules.node_memory)),
            // Who asks for none gets none.
            huge_pages: rules.page_sizes.iter().map(|size| (*size, asked.get(size).copied().unwrap_or(0))).collect(),
            cpu_shares: Some(shares(totals.cpu_request)),
            cpu_quota: totals.cpu_limit.map(quota),
            memory: totals.memory_limit,
            pids: None,
            oom_group: !rules.single_process_oom_kill,
        }
    }

    /// Of a pod: limits hold for the whole only when every container has one.
    pub fn pod(spec: &PodSpec, rules: &Rules) -> Self {
        let totals = Totals::of_pod(spec);
        let asked = hugepages::of_pod(spec);
        let shares = match Qos::of(spec) {
            Qos::BestEffort => MIN_SHARES,
            Qos::Burstable | Qos::Guaranteed => shares(totals.cpu_request),
        };
        Self {
            cpu_shares: Some(shares),
            cpu_quota: totals.cpu_limit.filter(|n| *n > 0).map(quota),
            memory: totals.memory_limit.filter(|n| *n > 0),
            memory_min: rules.throttling.map(|_| totals.memory_request),
            memory_high: None,
            huge_pages: rules.page_sizes.iter().map(|size| (*size, asked.get(size).copied().unwrap_or(0))).collect(),
            pids: rules.pids,
            oom_group: false,
        }
    }

    /// Of a QoS class: its weight against the others.
    pub fn class(cpu_request: u64) -> Self {
        Self { cpu_shares: Some(shares(cpu_request)), ..Self::default() }
    }
}

/// The node's part of all groups' limits.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rules {
    /// Processes and threads of a pod.
    pub pids: Option<u64>,
    /// memory.min and memory.high follow the requests; the latter by this factor.
    pub throttling: Option<f64>,
    /// The kernel kills one process for memory, not the container.
    pub single_process_oom_kill: bool,
    /// Bytes that pods may ask for together.
    pub node_memory: u64,
    /// Sizes of huge pages that the machine knows, in bytes.
    pub page_sizes: Vec<u64>,
}

/// From where on a container is slowed down: so far from its request to its limit, or to all that the node has, in whole pages. Who asks
/// for all that it may have is never slowed down. <https://kubernetes.io/blog/2023/05/05/qos-memory-resources/>
fn high(totals: &Totals, factor: f64, node_memory: u64) -> u64 {
    const PAGE: u64 = 4096;
    let top = totals.memory_limit.unwrap_or(node_memory);
    if top <= totals.memory_request {
        return u64::MAX;
    }
    let room = ((top - totals.memory_request) as f64 * factor) as u64;
    (totals.memory_request + room) / PAGE * PAGE
}

/// As the kernel's files are named: `2MB`, `1GB`, `64KB`.
fn page_name(size: u64) -> String {
    match size.trailing_zeros() {
        30.. => format!("{}GB", size >> 30),
        20..30 => format!("{}MB", size >> 20),
        _ => format!("{}KB", size >> 10),
    }
}

/// Thousandths of a CPU → cpu.shares, as the kubelet.
pub fn shares(millis: u64) -> u64 {
    if millis == 0 { MIN_SHARES } else { (millis.saturating_mul(1024) / 1000).clamp(MIN_SHARES, MAX_SHARES) }
}

/// Thousandths of a CPU → microseconds in each 100 ms, as the kubelet.
pub fn quota(millis: u64) -> u64 {
    (millis.saturating_mul(PERIOD) / 1000).max(MIN_QUOTA)
}

/// cpu.shares → cpu.weight. Not the straight line of old, which gave a container of one CPU the weight 39 against everybody
/// else's 100: the curve that the OCI runtimes agreed upon, by which 1024 shares weigh 100.
/// <https://kubernetes.io/blog/2026/01/30/new-cgroup-v1-to-v2-cpu-conversion-formula/>
pub fn weight(shares: u64) -> u64 {
    match shares {
        0..=MIN_SHARES => 1,
        MAX_SHARES.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            10_f64.powf(exponent).ceil() as u64
        }
    }
}

/// Whether a group has groups below it: then v2 hands its controllers down, and no process may live in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A class or a pod.
    Inner,
    /// A container.
    Leaf,
}

/// One file and what is written to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// The file.
    pub path: PathBuf,
    /// The value.
    pub value: String,
    /// Kernels may be built without it: its absence is no error.
    pub optional: bool,
}

/// A group's directories, one a hierarchy, and the values of its files, in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// To be made.
    pub dirs: Vec<PathBuf>,
    /// To be written after that.
    pub writes: Vec<Write>,
}

/// Makes the plan of the group `relative`, below the mounts of `layout`.
pub fn plan(layout: &Layout, relative: &Path, kind: Kind, limits: &Limits) -> Plan {
    let mut plan = Plan::default();
    for hierarchy in &layout.hierarchies {
        // Device rules are the same for all containers of a kind, so groups of their own would be waste: see `devices`.
        if hierarchy.controllers == [Controller::Devices] {
            continue;
        }
        let dir = hierarchy.mount.join(relative);
        let files = match hierarchy.version {
            Version::V1 => v1(&hierarchy.controllers, limits),
            Version::V2 => v2(&hierarchy.controllers, kind, limits),
        };
        plan.writes.extend(files.into_iter().map(|(name, value, optional)| Write { path: dir.join(&*name), value, optional }));
        plan.dirs.push(dir);
    }
    plan
}

type File = (Cow<'static, str>, String, bool);

fn v1(controllers: &[Controller], limits: &Limits) -> Vec<File> {
    let mut files = Vec::new();
    let mut set = |name, value: Option<u64>, optional| {
        files.extend(value.map(|value| (Cow::from(name), value.to_string(), optional)));
    };
    for controller in controllers {
        match controller {
            Controller::Cpu => {
                set("cpu.shares", limits.cpu_shares, false);
                set("cpu.cfs_quota_us", limits.cpu_quota, false);
            }
            Controller::Memory => {
                set("memory.limit_in_bytes", limits.memory, false);
                // Memory and swap together: equal to the above means no swap, as the kubelet has it. Needs swapaccount=1.
                set("memory.memsw.limit_in_bytes", limits.memory, true);
            }
            Controller::Pids => set("pids.max", limits.pids, false),
            Controller::Hugetlb | Controller::CpuAcct | Controller::Devices | Controller::Freezer => {}
        }
    }
    if controllers.contains(&Controller::Hugetlb) {
        files.extend(
            limits
                .huge_pages
                .iter()
                .map(|(size, bytes)| (format!("hugetlb.{}.limit_in_bytes", page_name(*size)).into(), bytes.to_string(), true)),
        );
    }
    files
}

fn v2(controllers: &[Controller], kind: Kind, limits: &Limits) -> Vec<File> {
    let mut files: Vec<File> = Vec::new();
    for controller in controllers {
        match controller {
            Controller::Cpu => {
                files.extend(limits.cpu_shares.map(|s| ("cpu.weight".into(), weight(s).to_string(), false)));
                files.extend(limits.cpu_quota.map(|quota| ("cpu.max".into(), format!("{quota} {PERIOD}"), false)));
            }
            Controller::Memory => {
                files.extend(limits.memory_min.map(|bytes| ("memory.min".into(), bytes.to_string(), false)));
                let high = limits.memory_high.map(|bytes| if bytes == u64::MAX { "max".into() } else { bytes.to_string() });
                files.extend(high.map(|bytes| ("memory.high".into(), bytes, false)));
                if let Some(memory) = limits.memory {
                    files.push(("memory.max".into(), memory.to_string(), false));
                    files.push(("memory.swap.max".into(), "0".into(), true));
                }
                if limits.oom_group {
                    files.push(("memory.oom.group".into(), "1".into(), true));
                }
            }
            Controller::Pids => files.extend(limits.pids.map(|pids| ("pids.max".into(), pids.to_string(), false))),
            Controller::Hugetlb => files.extend(
                limits
                    .huge_pages
                    .iter()
                    .map(|(size, bytes)| (format!("hugetlb.{}.max", page_name(*size)).into(), bytes.to_string(), true)),
            ),
            Controller::CpuAcct | Controller::Devices | Controller::Freezer => {}
        }
    }
    if kind == Kind::Inner
        && let Some(names) = subtree_control(controllers)
    {
        files.push(("cgroup.subtree_control".into(), names, false));
    }
    files
}

/// `+cpu +memory +pids`, as far as there are; `None` in a hybrid machine.
pub fn subtree_control(controllers: &[Controller]) -> Option<String> {
    let ours = [
        (Controller::Cpu, "+cpu"),
        (Controller::Memory, "+memory"),
        (Controller::Pids, "+pids"),
        (Controller::Hugetlb, "+hugetlb"),
    ];
    let names: Vec<_> = ours.into_iter().filter(|(c, _)| controllers.contains(c)).map(|(_, name)| name).collect();
    (!names.is_empty()).then(|| names.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    // Values of the kubelet's own helpers.
    #[rstest]
    #[case(0, 2)]
    #[case(1, 2)]
    #[case(2, 2)]
    #[case(100, 102)]
    #[case(250, 256)]
    #[case(500, 512)]
    #[case(1000, 1024)]
    #[case(1_000_000_000, 262_144)]
    fn shares_of_millis(#[case] millis: u64, #[case] expected: u64) {
        assert_eq!(shares(millis), expected);
    }

    #[rstest]
    #[case(1, 1000)]
    #[case(10, 1000)]
    #[case(20, 2000)]
    #[case(250, 25_000)]
    #[case(1500, 150_000)]
    fn quotas_of_millis(#[case] millis: u64, #[case] expected: u64) {
        assert_eq!(quota(millis), expected);
    }

    // Values of the OCI runtimes' conversion.
    #[rstest]
    #[case(2, 1)]
    #[case(102, 17)]
    #[case(1024, 100)]
    #[case(262_144, 10_000)]
    fn weights_of_shares(#[case] shares: u64, #[case] expected: u64) {
        assert_eq!(weight(shares), expected);
    }

    fn layout(mountinfo: &str, controllers: &'static str) -> Layout {
        Layout::parse(mountinfo, move |_| controllers.into())
    }

    fn written(plan: &Plan) -> Vec<String> {
        plan.writes.iter().map(|w| format!("{}={}", w.path.display(), w.value)).collect()
    }

    const LIMITS: Limits = Limits {
        cpu_shares: Some(512),
        cpu_quota: Some(50_000),
        memory: Some(64 << 20),
        memory_min: None,
        memory_high: None,
        huge_pages: BTreeMap::new(),
        pids: Some(100),
        oom_group: true,
    };

    #[test]
    fn v1_writes_one_directory_a_hierarchy() {
        let layout = layout(
            "1 2 0:1 / /cg/cpu rw - cgroup c rw,cpu,cpuacct\n1 2 0:2 / /cg/mem rw - cgroup c rw,memory\n\
             1 2 0:3 / /cg/pids rw - cgroup c rw,pids\n1 2 0:4 / /cg/dev rw - cgroup c rw,devices\n",
            "",
        );
        let plan = plan(&layout, Path::new("p/c"), Kind::Leaf, &LIMITS);
        assert_eq!(plan.dirs, ["/cg/cpu/p/c", "/cg/mem/p/c", "/cg/pids/p/c"].map(PathBuf::from));
        assert_eq!(
            written(&plan),
            [
                "/cg/cpu/p/c/cpu.shares=512",
                "/cg/cpu/p/c/cpu.cfs_quota_us=50000",
                "/cg/mem/p/c/memory.limit_in_bytes=67108864",
                "/cg/mem/p/c/memory.memsw.limit_in_bytes=67108864",
                "/cg/pids/p/c/pids.max=100"
            ]
        );
    }

    #[test]
    fn v2_writes_one_directory_and_hands_down_from_inner_groups() {
        let layout = layout("1 2 0:1 / /cg rw - cgroup2 c rw", "cpuset cpu memory pids");
        let leaf = plan(&layout, Path::new("p/c"), Kind::Leaf, &LIMITS);
        assert_eq!(
            written(&leaf),
            [
                "/cg/p/c/cpu.weight=59",
                "/cg/p/c/cpu.max=50000 100000",
                "/cg/p/c/memory.max=67108864",
                "/cg/p/c/memory.swap.max=0",
                "/cg/p/c/memory.oom.group=1",
                "/cg/p/c/pids.max=100"
            ]
        );
        let inner = plan(&layout, Path::new("p"), Kind::Inner, &Limits::class(0));
        assert_eq!(written(&inner), ["/cg/p/cpu.weight=1", "/cg/p/cgroup.subtree_control=+cpu +memory +pids"]);
    }

    #[rstest]
    #[case("containers: [{name: a}]", Limits { cpu_shares: Some(2), ..Limits::default() })]
    #[case("containers: [{name: a, resources: {requests: {cpu: 250m}, limits: {memory: 1Mi}}}]",
        Limits { cpu_shares: Some(256), memory: Some(1 << 20), ..Limits::default() })]
    #[case("containers: [{name: a, resources: {limits: {cpu: 250m, memory: 1Mi}}}, {name: b}]",
        Limits { cpu_shares: Some(256), ..Limits::default() })]
    #[case("containers: [{name: a, resources: {limits: {cpu: 250m, memory: 1Mi}}}, {name: b, resources: {limits: {cpu: 250m, memory: 1Mi}}}]",
        Limits { cpu_shares: Some(512), cpu_quota: Some(50_000), memory: Some(2 << 20), ..Limits::default() })]
    fn limits_of_pods(#[case] yaml: &str, #[case] expected: Limits) {
        let spec: PodSpec = serde_yaml::from_str(yaml).unwrap();
        assert_eq!(Limits::pod(&spec, &Rules::default()), expected);
    }

    // memory.min is the request; memory.high lies between it and the limit, or the node's memory.
    #[rstest]
    #[case("{}", 0, 900 << 20)]
    #[case("{requests: {memory: 100Mi}}", 100 << 20, 910 << 20)]
    #[case("{requests: {memory: 100Mi}, limits: {memory: 200Mi}}", 100 << 20, 190 << 20)]
    #[case("{limits: {memory: 200Mi}}", 200 << 20, u64::MAX)]
    fn memory_qos(#[case] yaml: &str, #[case] min: u64, #[case] high: u64) {
        let resources: ResourceRequirements = serde_yaml::from_str(yaml).unwrap();
        let rules = Rules { throttling: Some(0.9), node_memory: 1000 << 20, ..Rules::default() };
        let limits = Limits::container(Some(&resources), &rules);
        assert_eq!((limits.memory_min, limits.memory_high), (Some(min), Some(high)));
        let off = Limits::container(Some(&resources), &Rules::default());
        assert_eq!((off.memory_min, off.memory_high), (None, None));
    }

    #[test]
    fn memory_qos_and_huge_pages_in_the_kernels_files() {
        let resources = "{limits: {memory: 64Mi, hugepages-2Mi: 4Mi}, requests: {memory: 32Mi}}";
        let resources: ResourceRequirements = serde_yaml::from_str(resources).unwrap();
        let rules = Rules {
            throttling: Some(0.5),
            page_sizes: vec![64 << 10, 2 << 20, 1 << 30],
            single_process_oom_kill: true,
            ..Rules::default()
        };
        let limits = Limits::container(Some(&resources), &rules);
        let v2 = layout("1 2 0:1 / /cg rw - cgroup2 c rw", "memory hugetlb");
        assert_eq!(
            written(&plan(&v2, Path::new("c"), Kind::Leaf, &limits)),
            [
                "/cg/c/memory.min=33554432",
                "/cg/c/memory.high=50331648",
                "/cg/c/memory.max=67108864",
                "/cg/c/memory.swap.max=0",
                "/cg/c/hugetlb.64KB.max=0",
                "/cg/c/hugetlb.2MB.max=4194304",
                "/cg/c/hugetlb.1GB.max=0"
            ]
        );
        let v1 = layout("1 2 0:1 / /cg rw - cgroup c rw,hugetlb", "");
        assert_eq!(written(&plan(&v1, Path::new("c"), Kind::Leaf, &limits))[1], "/cg/c/hugetlb.2MB.limit_in_bytes=4194304");
    }
}
