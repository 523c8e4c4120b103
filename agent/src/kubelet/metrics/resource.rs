//! `/metrics/resource`: what metrics-server reads, and through it `kubectl top` and autoscalers.

use super::family::{Families, seconds};
use crate::pod::usage::NodeUsage;

const CPU: &str = "Cumulative cpu time consumed by the container in core-seconds";
const MEMORY: &str = "Current working set of the container in bytes";

/// The families; None: it couldn't be read.
pub fn of(usage: Option<&NodeUsage>) -> Families {
    let mut all = Families::default();
    if let Some(usage) = usage {
        node(&mut all, usage);
        for pod in &usage.pods {
            let labels = vec![("pod", pod.name.clone()), ("namespace", pod.namespace.clone())];
            for container in &pod.containers {
                let mut labels = labels.clone();
                labels.insert(0, ("container", container.name.clone()));
                let started = container.started.as_nanosecond() as f64 / 1e9;
                let help = "Start time of the container since unix epoch in seconds";
                all.gauge("container_start_time_seconds", help, &labels, started);
                all.counter("container_cpu_usage_seconds", CPU, &labels, seconds(container.stats.cpu_nanos));
                all.gauge("container_memory_working_set_bytes", MEMORY, &labels, container.stats.working_set_bytes as f64);
                let help = "Current amount of the container swap usage in bytes. Reported only on non-windows systems";
                all.gauge("container_swap_usage_bytes", help, &labels, container.detail.swap_bytes as f64);
            }
            let help = "Cumulative cpu time consumed by the pod in core-seconds";
            all.counter("pod_cpu_usage_seconds", help, &labels, seconds(pod.stats.cpu_nanos));
            let help = "Current working set of the pod in bytes";
            all.gauge("pod_memory_working_set_bytes", help, &labels, pod.stats.working_set_bytes as f64);
            let help = "Current amount of the pod swap usage in bytes. Reported only on non-windows systems";
            all.gauge("pod_swap_usage_bytes", help, &labels, pod.detail.swap_bytes as f64);
        }
    }
    let error = if usage.is_some() { 0.0 } else { 1.0 };
    let help = "1 if there was an error while getting container metrics, 0 otherwise";
    all.gauge("resource_scrape_error", help, &Vec::new(), error);
    all.gauge("scrape_error", help, &Vec::new(), error);
    all
}

fn node(all: &mut Families, usage: &NodeUsage) {
    let none = Vec::new();
    let help = "Cumulative cpu time consumed by the node in core-seconds";
    all.counter("node_cpu_usage_seconds", help, &none, seconds(usage.cpu_nanos));
    let memory = usage.memory;
    let working_set = memory.total.saturating_sub(memory.free).saturating_sub(memory.inactive_file);
    all.gauge("node_memory_working_set_bytes", "Current working set of the node in bytes", &none, working_set as f64);
    let help = "Current swap usage of the node in bytes. Reported only on non-windows systems";
    all.gauge("node_swap_usage_bytes", help, &none, memory.swap.0.saturating_sub(memory.swap.1) as f64);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::usage::{ContainerUsage, PodUsage};
    use crate::runtime::cgroup::Stats;
    use prometheus_client::encoding::prometheus_text;
    use prometheus_client::registry::Registry;

    fn page(usage: Option<&NodeUsage>) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(of(usage)));
        let mut page = String::new();
        prometheus_text::encode(&mut page, &registry).unwrap();
        page
    }

    #[test]
    fn names_and_labels_are_the_kubelets() {
        let stats = Stats { cpu_nanos: 1_500_000_000, working_set_bytes: 4096, ..Stats::default() };
        let container = ContainerUsage { name: "app".into(), stats, ..ContainerUsage::default() };
        let pod = PodUsage {
            name: "web".into(),
            namespace: "default".into(),
            stats,
            containers: vec![container],
            ..PodUsage::default()
        };
        let page = page(Some(&NodeUsage { cpu_nanos: 2_000_000_000, pods: vec![pod], ..NodeUsage::default() }));
        for line in [
            "# TYPE node_cpu_usage_seconds_total counter",
            "node_cpu_usage_seconds_total 2.0",
            "container_cpu_usage_seconds_total{container=\"app\",pod=\"web\",namespace=\"default\"} 1.5",
            "container_memory_working_set_bytes{container=\"app\",pod=\"web\",namespace=\"default\"} 4096.0",
            "pod_cpu_usage_seconds_total{pod=\"web\",namespace=\"default\"} 1.5",
            "resource_scrape_error 0.0",
        ] {
            assert!(page.lines().any(|l| l == line), "{line} is not in:\n{page}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_told() {
        assert!(page(None).contains("resource_scrape_error 1.0"));
    }
}
