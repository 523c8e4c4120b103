//! `/stats/summary`: the kubelet's stats/v1alpha1 `Summary`. A pure function of what the node uses, but for [`Rates`], which remembers the
//! last look.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::server::Shared;
use crate::api::query::Query;
use crate::api::{ApiError, Response, reply};
use crate::pod::usage::{ContainerUsage, Disk, Interface, NodeUsage, PodUsage, VolumeUsage, Wanted};
use crate::runtime::cgroup::Stats;
use crate::runtime::volumes::usage::Used;

/// Rates over less than this are noise: the one before is said again.
const SHORTEST: Duration = Duration::from_secs(1);
/// Groups that are remembered.
const ROOM: usize = 10_000;

/// CPU time between one look and the next, in nanoseconds a second. The first look's rate is that since the group's beginning.
#[derive(Debug, Default)]
pub struct Rates(Mutex<HashMap<String, Look>>);

#[derive(Debug, Clone, Copy)]
struct Look {
    time: Timestamp,
    nanos: u64,
    rate: u64,
}

impl Rates {
    fn of(&self, key: &str, now: Timestamp, nanos: u64, begun: Timestamp) -> u64 {
        let mut looks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since = looks.get(key).filter(|look| look.nanos <= nanos).copied().unwrap_or(Look { time: begun, nanos: 0, rate: 0 });
        let passed = now.duration_since(since.time);
        if passed < jiff::SignedDuration::try_from(SHORTEST).unwrap_or_default() {
            return since.rate;
        }
        let rate = (u128::from(nanos - since.nanos) * 1_000_000_000).checked_div(passed.as_nanos().unsigned_abs()).unwrap_or(0);
        let rate = u64::try_from(rate).unwrap_or(u64::MAX);
        if looks.len() >= ROOM {
            looks.clear();
        }
        looks.insert(key.to_owned(), Look { time: now, nanos, rate });
        rate
    }
}

/// Answers `/stats/summary`, with `only_cpu_and_memory=true` of no more than that.
pub async fn summary(shared: &Shared, query: &Query) -> Result<Response, ApiError> {
    let little = query.flag("only_cpu_and_memory");
    let usage = shared.node.usage(if little { Wanted::CpuAndMemory } else { Wanted::All }).await?;
    let name = shared.node.node().metadata.name.unwrap_or_default();
    Ok(reply::json(&of(&name, &usage, &shared.rates, !little)))
}

/// The summary.
pub fn of(name: &str, usage: &NodeUsage, rates: &Rates, all: bool) -> Value {
    let time = Time(usage.time);
    let memory = usage.memory;
    let used = memory.total.saturating_sub(memory.free);
    let working_set = used.saturating_sub(memory.inactive_file);
    let mut node = json!({
        "nodeName": name,
        "startTime": Time(usage.booted),
        "cpu": {
            "time": time,
            "usageNanoCores": rates.of("/", usage.time, usage.cpu_nanos, usage.booted),
            "usageCoreNanoSeconds": usage.cpu_nanos,
        },
        "memory": {
            "time": time,
            "availableBytes": memory.total.saturating_sub(working_set),
            "usageBytes": used,
            "workingSetBytes": working_set,
            "rssBytes": memory.anonymous,
            "pageFaults": memory.faults.0,
            "majorPageFaults": memory.faults.1,
        },
        "swap": { "time": time, "swapAvailableBytes": memory.swap.1, "swapUsageBytes": memory.swap.0.saturating_sub(memory.swap.1) },
    });
    if all {
        node["network"] = network(&time, &usage.interfaces, usage.default_interface.as_deref());
        node["fs"] = file_system(&time, usage.disk, taken(usage.disk));
        node["runtime"] = json!({
            "imageFs": file_system(&time, usage.images, taken(usage.images)),
            "containerFs": file_system(&time, usage.disk, taken(usage.disk)),
        });
        node["rlimit"] = json!({ "time": time, "maxpid": usage.processes.1, "curproc": usage.processes.0 });
    }
    json!({ "node": node, "pods": usage.pods.iter().map(|p| pod(p, usage, rates, all)).collect::<Vec<_>>() })
}

fn pod(pod: &PodUsage, node: &NodeUsage, rates: &Rates, all: bool) -> Value {
    let time = Time(node.time);
    let started = pod.started.unwrap_or(node.time);
    let mut value = json!({
        "podRef": { "name": pod.name, "namespace": pod.namespace, "uid": pod.uid },
        "startTime": Time(started),
        "containers": pod.containers.iter().map(|c| container(c, node, rates, all)).collect::<Vec<_>>(),
        "cpu": cpu(&time, &pod.stats, rates.of(&pod.cgroup, node.time, pod.stats.cpu_nanos, started)),
        "memory": memory(&time, &pod.stats, pod.detail.memory_limit),
        "process_stats": { "process_count": pod.stats.pids },
    });
    if all {
        if !pod.interfaces.is_empty() {
            value["network"] = network(&time, &pod.interfaces, Some("eth0"));
        }
        value["volume"] = pod.volumes.iter().map(|v| volume(v, &time, &pod.namespace)).collect();
        let own = pod.volumes.iter().filter(|v| v.claim.is_none()).map(|v| v.used);
        let written = pod.containers.iter().flat_map(|c| [c.layer, c.logs]).chain(own);
        value["ephemeral-storage"] = file_system(&time, node.disk, written.fold(Used::default(), std::ops::Add::add));
    }
    value
}

fn container(container: &ContainerUsage, node: &NodeUsage, rates: &Rates, all: bool) -> Value {
    let time = Time(node.time);
    let rate = rates.of(&container.cgroup, node.time, container.stats.cpu_nanos, container.started);
    let mut value = json!({
        "name": container.name,
        "startTime": Time(container.started),
        "cpu": cpu(&time, &container.stats, rate),
        "memory": memory(&time, &container.stats, container.detail.memory_limit),
    });
    if all {
        value["swap"] = json!({ "time": time, "swapUsageBytes": container.detail.swap_bytes });
        value["rootfs"] = file_system(&time, node.images, container.layer);
        value["logs"] = file_system(&time, node.disk, container.logs);
    }
    value
}

fn cpu(time: &Time, stats: &Stats, rate: u64) -> Value {
    json!({ "time": time, "usageNanoCores": rate, "usageCoreNanoSeconds": stats.cpu_nanos })
}

fn memory(time: &Time, stats: &Stats, limit: Option<u64>) -> Value {
    let mut value = json!({
        "time": time,
        "usageBytes": stats.memory_bytes,
        "workingSetBytes": stats.working_set_bytes,
        "rssBytes": stats.rss_bytes,
        "pageFaults": stats.faults,
        "majorPageFaults": stats.major_faults,
    });
    if let Some(limit) = limit {
        value["availableBytes"] = limit.saturating_sub(stats.working_set_bytes).into();
    }
    value
}

fn network(time: &Time, interfaces: &[Interface], main: Option<&str>) -> Value {
    let one = |i: &Interface| {
        json!({
            "name": i.name, "rxBytes": i.received[0], "rxErrors": i.received[2], "txBytes": i.sent[0], "txErrors": i.sent[2],
        })
    };
    let mut value = interfaces.iter().find(|i| Some(i.name.as_str()) == main).map_or_else(|| json!({ "name": "" }), one);
    value["time"] = json!(time);
    value["interfaces"] = interfaces.iter().map(one).collect();
    value
}

fn volume(volume: &VolumeUsage, time: &Time, namespace: &str) -> Value {
    let mut value = file_system(time, volume.disk, volume.used);
    value["name"] = volume.name.as_str().into();
    if let Some(claim) = &volume.claim {
        value["pvcRef"] = json!({ "name": claim, "namespace": namespace });
    }
    value
}

fn file_system(time: &Time, disk: Disk, used: Used) -> Value {
    json!({
        "time": time,
        "availableBytes": disk.bytes.1, "capacityBytes": disk.bytes.0, "usedBytes": used.bytes,
        "inodesFree": disk.inodes.1, "inodes": disk.inodes.0, "inodesUsed": used.inodes,
    })
}

/// All that is on a disk.
fn taken(disk: Disk) -> Used {
    Used { bytes: disk.bytes.0.saturating_sub(disk.bytes.1), inodes: disk.inodes.0.saturating_sub(disk.inodes.1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn rates_are_from_look_to_look() {
        let rates = Rates::default();
        // Half a core since its beginning, then a whole one.
        assert_eq!(rates.of("a", at(110), 5_000_000_000, at(100)), 500_000_000);
        assert_eq!(rates.of("a", at(120), 15_000_000_000, at(100)), 1_000_000_000);
        let soon = at(120) + jiff::SignedDuration::from_millis(10);
        assert_eq!(rates.of("a", soon, 15_010_000_000, at(100)), 1_000_000_000, "too soon for another");
        assert_eq!(rates.of("a", at(130), 1_000_000_000, at(129)), 1_000_000_000, "another container of that name");
    }

    #[test]
    fn a_summary_has_the_kubelets_fields() {
        let stats = Stats { cpu_nanos: 7, memory_bytes: 100, working_set_bytes: 60, ..Stats::default() };
        let container = ContainerUsage { name: "app".into(), started: at(10), stats, ..ContainerUsage::default() };
        let eth0 = Interface { name: "eth0".into(), received: [1, 0, 2, 0], sent: [3, 0, 4, 0] };
        let claim = VolumeUsage { name: "data".into(), claim: Some("disk".into()), ..VolumeUsage::default() };
        let pod = PodUsage {
            uid: "u".into(),
            name: "web".into(),
            namespace: "default".into(),
            containers: vec![container],
            interfaces: vec![eth0],
            volumes: vec![claim],
            detail: crate::runtime::cgroup::Detail { memory_limit: Some(100), ..Default::default() },
            stats,
            ..PodUsage::default()
        };
        let usage = NodeUsage { time: at(20), pods: vec![pod], ..NodeUsage::default() };
        let summary = of("n", &usage, &Rates::default(), true);
        let pod = &summary["pods"][0];
        assert_eq!(summary["node"]["nodeName"], "n");
        assert_eq!(pod["podRef"], json!({ "name": "web", "namespace": "default", "uid": "u" }));
        assert_eq!(pod["memory"]["availableBytes"], 40);
        assert_eq!(pod["network"]["rxBytes"], 1);
        assert_eq!(pod["volume"][0]["pvcRef"]["name"], "disk");
        assert_eq!(pod["containers"][0]["startTime"], "1970-01-01T00:00:10Z");
        assert_eq!(pod["containers"][0]["cpu"]["usageCoreNanoSeconds"], 7);
        let little = of("n", &usage, &Rates::default(), false);
        assert!(little["pods"][0].get("network").is_none() && little["node"].get("fs").is_none());
    }
}
