//! What the node counts over the agent's life, for monitoring. Whoever does a thing counts it; the kubelet API shows it.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// A probe of a container.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Probe {
    /// `Liveness`, `Readiness` or `Startup`.
    pub probe_type: String,
    /// The container's name.
    pub container: String,
    /// The pod's name.
    pub pod: String,
    /// Its namespace.
    pub namespace: String,
    /// Its UID.
    pub pod_uid: String,
}

/// How a probe came out.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Probed {
    probe_type: String,
    container: String,
    pod: String,
    namespace: String,
    pod_uid: String,
    /// `successful`, `failed` or `unknown`.
    result: &'static str,
}

/// An event's reason.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    /// `Normal` or `Warning`.
    r#type: &'static str,
    reason: String,
}

/// See the module's page.
#[derive(Debug)]
pub struct Counters {
    probes: Family<Probed, Counter>,
    probe_seconds: Family<Probe, Histogram>,
    events: Family<Reason, Counter>,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            probes: Family::default(),
            // Prometheus' default buckets, which the kubelet's have.
            probe_seconds: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.005, 2.0, 11))),
            events: Family::default(),
        }
    }
}

/// All results that a probe can have.
const RESULTS: [&str; 3] = ["successful", "failed", "unknown"];

impl Counters {
    /// A probe came out so (`successful`, `failed`, `unknown`), and took so long.
    pub fn probed(&self, probe: &Probe, result: &'static str, took: Duration) {
        self.probes.get_or_create(&of(probe, result)).inc();
        self.probe_seconds.get_or_create(probe).observe(took.as_secs_f64());
    }

    /// A probe's container is gone, and so is what was counted of it.
    pub fn forget(&self, probe: &Probe) {
        for result in RESULTS {
            self.probes.remove(&of(probe, result));
        }
        self.probe_seconds.remove(probe);
    }

    /// An event was written.
    pub fn event(&self, r#type: &'static str, reason: &str) {
        self.events.get_or_create(&Reason { r#type, reason: reason.to_owned() }).inc();
    }

    /// How many events of that reason there were.
    pub fn events_of(&self, r#type: &'static str, reason: &str) -> u64 {
        self.events.get(&Reason { r#type, reason: reason.to_owned() }).map_or(0, |counter| counter.get())
    }

    /// `/metrics/probes`.
    pub fn register_probes(&self, registry: &mut Registry) {
        registry.register(
            "prober_probe",
            "Cumulative number of a liveness, readiness or startup probe for a container by result",
            self.probes.clone(),
        );
        registry.register(
            "prober_probe_duration_seconds",
            "Duration in seconds for a probe response",
            self.probe_seconds.clone(),
        );
    }

    /// Part of `/metrics`.
    pub fn register_events(&self, registry: &mut Registry) {
        registry.register("nodeagent_events", "Events that were written, by type and reason", self.events.clone());
    }
}

fn of(probe: &Probe, result: &'static str) -> Probed {
    let Probe { probe_type, container, pod, namespace, pod_uid } = probe.clone();
    Probed { probe_type, container, pod, namespace, pod_uid, result }
}
