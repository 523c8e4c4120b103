//! `/metrics/cadvisor`: cAdvisor's names, which dashboards of Kubernetes are made of. One series a container; one a pod, with an empty
//! container name; one for the whole machine, whose id is `/`.

use super::family::{Families, Labels, seconds};
use crate::pod::usage::{ContainerUsage, NodeUsage, PodUsage};
use crate::runtime::cgroup::{Detail, Stats};
use crate::runtime::resources::units;

/// The period of CPU limits in microseconds, as `runtime` sets them.
const PERIOD: f64 = 100_000.0;

/// The families.
pub fn of(usage: &NodeUsage) -> Families {
    let mut all = Families::default();
    machine(&mut all, usage);
    for pod in &usage.pods {
        of_pod(&mut all, pod, usage);
        for container in &pod.containers {
            of_container(&mut all, pod, container, usage);
        }
    }
    all
}

fn labels(id: &str, container: Option<&ContainerUsage>, pod: Option<&PodUsage>) -> Labels {
    let text = |text: Option<&String>| text.cloned().unwrap_or_default();
    vec![
        ("container", text(container.map(|c| &c.name))),
        ("id", id.to_owned()),
        ("image", text(container.map(|c| &c.image))),
        ("name", text(container.map(|c| &c.id))),
        ("namespace", text(pod.map(|p| &p.namespace))),
        ("pod", text(pod.map(|p| &p.name))),
    ]
}

fn with(labels: &Labels, name: &'static str, value: &str) -> Labels {
    let mut all = labels.clone();
    all.push((name, value.to_owned()));
    all
}

fn machine(all: &mut Families, usage: &NodeUsage) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let version = vec![
        ("cadvisorRevision", String::new()),
        ("cadvisorVersion", format!("nodeagent-{}", env!("CARGO_PKG_VERSION"))),
        ("dockerVersion", String::new()),
        ("kernelVersion", release.trim().to_owned()),
        ("osVersion", std::env::consts::OS.to_owned()),
    ];
    let help = "A metric with a constant '1' value labeled by kernel version, OS version, and version of this agent";
    all.gauge("cadvisor_version_info", help, &version, 1.0);
    let none = Vec::new();
    all.gauge("machine_cpu_cores", "Number of logical CPU cores", &none, usage.cpus as f64);
    all.gauge("machine_memory_bytes", "Amount of memory installed on the machine", &none, usage.memory.total as f64);
    all.gauge("machine_swap_bytes", "Amount of swap memory available on the machine", &none, usage.memory.swap.0 as f64);
    let root = labels("/", None, None);
    let used = usage.memory.total.saturating_sub(usage.memory.free);
    let stats = Stats {
        cpu_nanos: usage.cpu_nanos,
        memory_bytes: used,
        working_set_bytes: used.saturating_sub(usage.memory.inactive_file),
        rss_bytes: usage.memory.anonymous,
        faults: usage.memory.faults.0,
        major_faults: usage.memory.faults.1,
        pids: usage.processes.0,
    };
    basics(all, &root, &stats);
    network(all, &root, &usage.interfaces);
    all.gauge("container_last_seen", "Last time a container was seen by the exporter", &root, usage.time.as_second() as f64);
    all.gauge("container_start_time_seconds", START, &root, usage.booted.as_second() as f64);
}

const START: &str = "Start time of the container since unix epoch in seconds";

fn of_pod(all: &mut Families, pod: &PodUsage, node: &NodeUsage) {
    let labels = labels(&pod.cgroup, None, Some(pod));
    basics(all, &labels, &pod.stats);
    details(all, &labels, &pod.detail);
    network(all, &labels, &pod.interfaces);
    all.gauge("container_last_seen", "Last time a container was seen by the exporter", &labels, node.time.as_second() as f64);
    if let Some(started) = pod.started {
        all.gauge("container_start_time_seconds", START, &labels, started.as_second() as f64);
    }
}

fn of_container(all: &mut Families, pod: &PodUsage, container: &ContainerUsage, node: &NodeUsage) {
    let labels = labels(&container.cgroup, Some(container), Some(pod));
    basics(all, &labels, &container.stats);
    details(all, &labels, &container.detail);
    all.gauge("container_last_seen", "Last time a container was seen by the exporter", &labels, node.time.as_second() as f64);
    all.gauge("container_start_time_seconds", START, &labels, container.started.as_nanosecond() as f64 / 1e9);
    let disk = with(&labels, "device", "");
    let help = "Number of bytes that are consumed by the container on this filesystem";
    all.gauge("container_fs_usage_bytes", help, &disk, container.layer.bytes as f64);
    let help = "Number of bytes that can be consumed by the container on this filesystem";
    all.gauge("container_fs_limit_bytes", help, &disk, node.disk.bytes.0 as f64);
    all.gauge("container_fs_inodes_total", "Number of Inodes", &disk, node.disk.inodes.0 as f64);
    all.gauge("container_fs_inodes_free", "Number of available Inodes", &disk, node.disk.inodes.1 as f64);
    spec(all, &labels, container);
}

/// What a container asks for and is limited to.
fn spec(all: &mut Families, labels: &Labels, container: &ContainerUsage) {
    let amount = |of: &Option<std::collections::BTreeMap<String, _>>, name: &str| of.as_ref()?.get(name).cloned();
    let (requests, limits) = (&container.resources.requests, &container.resources.limits);
    let millis = |quantity: &k8s_openapi::apimachinery::pkg::api::resource::Quantity| {
        quantity.0.parse::<crate::model::quantity::Quantity>().map_or(0, crate::model::quantity::Quantity::milli)
    };
    // The weight of v1, which v2's is made of.
    let shares = amount(requests, "cpu").as_ref().map_or(2, |q| (millis(q) * 1024 / 1000).max(2));
    all.gauge("container_spec_cpu_shares", "CPU share of the container", labels, shares as f64);
    all.gauge("container_spec_cpu_period", "CPU period of the container", labels, PERIOD);
    if let Some(limit) = amount(limits, "cpu").as_ref().map(millis).filter(|limit| *limit > 0) {
        all.gauge("container_spec_cpu_quota", "CPU quota of the container", labels, limit as f64 * PERIOD / 1000.0);
    }
    let limit = amount(limits, "memory").as_ref().map_or(0, units);
    all.gauge("container_spec_memory_limit_bytes", "Memory limit for the container", labels, limit as f64);
}

fn basics(all: &mut Families, labels: &Labels, stats: &Stats) {
    let help = "Cumulative cpu time consumed in seconds";
    all.counter("container_cpu_usage_seconds", help, &with(labels, "cpu", "total"), seconds(stats.cpu_nanos));
    let help = "Current memory usage in bytes, including all memory regardless of when it was accessed";
    all.gauge("container_memory_usage_bytes", help, labels, stats.memory_bytes as f64);
    all.gauge("container_memory_working_set_bytes", "Current working set in bytes", labels, stats.working_set_bytes as f64);
    all.gauge("container_memory_rss", "Size of RSS in bytes", labels, stats.rss_bytes as f64);
    for (kind, count) in [("pgfault", stats.faults), ("pgmajfault", stats.major_faults)] {
        let labels = with(&with(labels, "failure_type", kind), "scope", "hierarchy");
        all.counter("container_memory_failures", "Cumulative count of memory allocation failures", &labels, count as f64);
    }
    all.gauge("container_threads", "Number of threads running inside the container", labels, stats.pids as f64);
}

fn details(all: &mut Families, labels: &Labels, detail: &Detail) {
    let help = "Cumulative user cpu time consumed in seconds";
    all.counter("container_cpu_user_seconds", help, labels, seconds(detail.cpu_user_nanos));
    let help = "Cumulative system cpu time consumed in seconds";
    all.counter("container_cpu_system_seconds", help, labels, seconds(detail.cpu_system_nanos));
    let help = "Number of elapsed enforcement period intervals";
    all.counter("container_cpu_cfs_periods", help, labels, detail.cpu_periods as f64);
    let help = "Number of throttled period intervals";
    all.counter("container_cpu_cfs_throttled_periods", help, labels, detail.cpu_throttled_periods as f64);
    let help = "Total time duration the container has been throttled";
    all.counter("container_cpu_cfs_throttled_seconds", help, labels, seconds(detail.cpu_throttled_nanos));
    all.gauge("container_memory_cache", "Number of bytes of page cache memory", labels, detail.cache_bytes as f64);
    all.gauge("container_memory_mapped_file", "Size of memory mapped files in bytes", labels, detail.mapped_bytes as f64);
    all.gauge("container_memory_swap", "Container swap usage in bytes", labels, detail.swap_bytes as f64);
    let help = "Maximum memory usage recorded in bytes";
    all.gauge("container_memory_max_usage_bytes", help, labels, detail.max_bytes as f64);
    // cAdvisor's name for a counter lacks `_total`, which both formats would add.
    all.gauge("container_memory_failcnt", "Number of memory usage hits limits", labels, detail.failures as f64);
    let help = "Count of out of memory events observed for the container";
    all.counter("container_oom_events", help, labels, detail.oom_kills as f64);
    let io = with(labels, "device", "");
    all.counter("container_fs_reads_bytes", "Cumulative count of bytes read", &io, detail.io_bytes.0 as f64);
    all.counter("container_fs_writes_bytes", "Cumulative count of bytes written", &io, detail.io_bytes.1 as f64);
    all.counter("container_fs_reads", "Cumulative count of reads completed", &io, detail.io_operations.0 as f64);
    all.counter("container_fs_writes", "Cumulative count of writes completed", &io, detail.io_operations.1 as f64);
}

fn network(all: &mut Families, labels: &Labels, interfaces: &[crate::pod::usage::Interface]) {
    /// In the order of `Interface`'s counters.
    const RECEIVED: [(&str, &str); 4] = [
        ("container_network_receive_bytes", "Cumulative count of bytes received"),
        ("container_network_receive_packets", "Cumulative count of packets received"),
        ("container_network_receive_errors", "Cumulative count of errors encountered while receiving"),
        ("container_network_receive_packets_dropped", "Cumulative count of packets dropped while receiving"),
    ];
    const SENT: [(&str, &str); 4] = [
        ("container_network_transmit_bytes", "Cumulative count of bytes transmitted"),
        ("container_network_transmit_packets", "Cumulative count of packets transmitted"),
        ("container_network_transmit_errors", "Cumulative count of errors encountered while transmitting"),
        ("container_network_transmit_packets_dropped", "Cumulative count of packets dropped while transmitting"),
    ];
    for interface in interfaces {
        let labels = with(labels, "interface", &interface.name);
        for ((name, help), count) in RECEIVED.into_iter().zip(interface.received).chain(SENT.into_iter().zip(interface.sent)) {
            all.counter(name, help, &labels, count as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::prometheus_text;
    use prometheus_client::registry::Registry;

    #[test]
    fn one_series_a_container_a_pod_and_the_machine() {
        let quantity = |text: &str| k8s_openapi::apimachinery::pkg::api::resource::Quantity(text.into());
        let container = ContainerUsage {
            name: "app".into(),
            id: "0123".into(),
            image: "nginx".into(),
            cgroup: "/na/podu/0123".into(),
            resources: k8s_openapi::api::core::v1::ResourceRequirements {
                limits: Some([("cpu".to_owned(), quantity("500m")), ("memory".to_owned(), quantity("1Mi"))].into()),
                ..Default::default()
            },
            ..ContainerUsage::default()
        };
        let eth0 = crate::pod::usage::Interface { name: "eth0".into(), received: [1, 2, 3, 4], sent: [5, 6, 7, 8] };
        let pod = PodUsage {
            name: "web".into(),
            namespace: "default".into(),
            cgroup: "/na/podu".into(),
            interfaces: vec![eth0],
            containers: vec![container],
            ..PodUsage::default()
        };
        let mut registry = Registry::default();
        registry.register_collector(Box::new(of(&NodeUsage { pods: vec![pod], cpus: 2, ..NodeUsage::default() })));
        let mut page = String::new();
        prometheus_text::encode(&mut page, &registry).unwrap();
        let of_container =
            "container=\"app\",id=\"/na/podu/0123\",image=\"nginx\",name=\"0123\",namespace=\"default\",pod=\"web\"";
        let of_pod = "container=\"\",id=\"/na/podu\",image=\"\",name=\"\",namespace=\"default\",pod=\"web\"";
        for line in [
            "machine_cpu_cores 2.0".to_owned(),
            format!("container_cpu_usage_seconds_total{{{of_container},cpu=\"total\"}} 0.0"),
            format!("container_spec_cpu_quota{{{of_container}}} 50000.0"),
            format!("container_spec_memory_limit_bytes{{{of_container}}} 1048576.0"),
            format!("container_network_transmit_packets_dropped_total{{{of_pod},interface=\"eth0\"}} 8.0"),
        ] {
            assert!(page.lines().any(|l| l == line), "{line} is not in:\n{page}");
        }
        let types = page.lines().filter(|l| l.starts_with("# TYPE container_cpu_usage_seconds_total ")).count();
        assert_eq!(types, 1, "one family, all its series together");
    }
}
