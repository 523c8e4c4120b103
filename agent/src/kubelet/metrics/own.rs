//! `/metrics`: what the agent says of itself, with the kubelet's names for what both have.

use std::time::Duration;

use hyper::Method;
use hyper::header::{HeaderName, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use k8s_openapi::api::core::v1::ContainerState;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::family::{Families, Labels};
use crate::api::{Response, streams};
use crate::pod::node::Node;

/// A kind of request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Request {
    method: &'static str,
    path: &'static str,
    server_type: &'static str,
    long_running: &'static str,
}

/// A stream that was opened, as node and client have agreed: what is in it, and how it came.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Stream {
    path: &'static str,
    /// `websocket` or `spdy`.
    transport: &'static str,
    /// Such as `v5.channel.k8s.io`; nothing: that of clients who name none.
    protocol: String,
}

/// Requests to the kubelet API.
#[derive(Debug)]
pub struct Requests {
    all: Family<Request, Counter>,
    now: Family<Request, Gauge>,
    seconds: Family<Request, Histogram>,
    streams: Family<Stream, Counter>,
}

impl Default for Requests {
    fn default() -> Self {
        let buckets = || Histogram::new([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]);
        Self {
            all: Family::default(),
            now: Family::default(),
            seconds: Family::new_with_constructor(buckets),
            streams: Family::default(),
        }
    }
}

impl Requests {
    /// One begins. What a client may write is mapped to few words: nobody makes series at will.
    pub fn begin(&self, method: &Method, path: &str) -> Request {
        let path = bucket(path);
        let long_running = if matches!(path, "exec" | "attach" | "portForward") { "true" } else { "false" };
        let request = Request { method: known(method), path, server_type: "readwrite", long_running };
        self.all.get_or_create(&request).inc();
        self.now.get_or_create(&request).inc();
        request
    }

    /// It has its answer.
    pub fn end(&self, request: &Request, answer: &Response, took: Duration) {
        self.now.get_or_create(request).dec();
        self.seconds.get_or_create(request).observe(took.as_secs_f64());
        if let Some(stream) = opened(request.path, answer) {
            self.streams.get_or_create(&stream).inc();
        }
    }

    /// Part of `/metrics`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "kubelet_http_requests",
            "Number of the http requests received since the server started",
            self.all.clone(),
        );
        registry.register("kubelet_http_inflight_requests", "Number of the inflight http requests", self.now.clone());
        registry.register(
            "kubelet_http_requests_duration_seconds",
            "Duration in seconds to serve http requests",
            self.seconds.clone(),
        );
        registry.register(
            "nodeagent_streams",
            "Streams of exec, attach and port-forward, by the protocol that the API server or another client spoke",
            self.streams.clone(),
        );
    }
}

/// The stream that an answer opens. Its protocol is one of those that this node offers, never a client's own word.
fn opened(path: &'static str, answer: &Response) -> Option<Stream> {
    let said = |name: &HeaderName| answer.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (transport, protocol) = match said(&UPGRADE) {
        "websocket" => ("websocket", said(&SEC_WEBSOCKET_PROTOCOL)),
        streams::SPDY => ("spdy", said(&streams::PROTOCOL)),
        _ => return None,
    };
    Some(Stream { path, transport, protocol: protocol.to_owned() })
}

fn known(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

fn bucket(path: &str) -> &'static str {
    const METRICS: [(&str, &str); 3] =
        [("cadvisor", "metrics/cadvisor"), ("probes", "metrics/probes"), ("resource", "metrics/resource")];
    const FIRST: [&str; 13] = [
        "attach",
        "checkpoint",
        "configz",
        "containerLogs",
        "debug",
        "exec",
        "healthz",
        "logs",
        "pods",
        "portForward",
        "run",
        "runningpods",
        "stats",
    ];
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    match (parts.next(), parts.next()) {
        (Some("metrics"), Some(second)) => METRICS.iter().find(|(name, _)| *name == second).map_or("other", |(_, path)| path),
        (Some("metrics"), None) => "metrics",
        (Some(first), _) => FIRST.iter().find(|name| **name == first).copied().unwrap_or("other"),
        (None, _) => "other",
    }
}

/// The node's state, and the agent's process.
pub fn of(node: &dyn Node) -> Families {
    let mut all = Families::default();
    let none: Labels = Vec::new();
    let object = node.node();
    let name = object.metadata.name.unwrap_or_default();
    all.gauge("kubelet_node_name", "The node's name. The count is always 1.", &vec![("node", name)], 1.0);
    let version = object.status.and_then(|s| s.node_info).map(|i| i.kubelet_version).unwrap_or_default();
    let build = vec![("git_version", version), ("version", env!("CARGO_PKG_VERSION").to_owned())];
    all.gauge("kubernetes_build_info", "A metric with a constant '1' value labeled by versions", &build, 1.0);

    let pods = node.store().pods().objects;
    let mut states = [("created", 0), ("exited", 0), ("running", 0)];
    let mut running_pods = 0;
    for pod in &pods {
        let statuses = pod.status.iter().flat_map(|s| s.init_container_statuses.iter().chain(&s.container_statuses).flatten());
        let found: Vec<usize> = statuses.filter_map(|s| s.state.as_ref().map(index)).collect();
        for at in &found {
            states[*at].1 += 1;
        }
        running_pods += usize::from(found.contains(&2));
    }
    for (state, count) in states {
        let labels = vec![("container_state", state.to_owned())];
        all.gauge("kubelet_running_containers", "Number of containers currently running", &labels, f64::from(count));
    }
    let help = "Number of pods that have a running pod sandbox";
    all.gauge("kubelet_running_pods", help, &none, running_pods as f64);
    let help = "The number of pods the kubelet is being instructed to run";
    all.gauge("kubelet_desired_pods", help, &none, pods.len() as f64);
    let counters = node.counters();
    let help = "Cumulative number of containers started";
    all.counter("kubelet_started_containers", help, &none, counters.events_of("Normal", "Started") as f64);
    let help = "Cumulative number of errors when starting containers";
    all.counter("kubelet_started_containers_errors", help, &none, counters.events_of("Warning", "Failed") as f64);
    let help = "Cumulative number of pod evictions";
    all.counter("kubelet_evictions", help, &none, counters.events_of("Warning", "Evicted") as f64);
    process(&mut all);
    all
}

/// Where its state is counted.
fn index(state: &ContainerState) -> usize {
    match state {
        ContainerState { running: Some(_), .. } => 2,
        ContainerState { terminated: Some(_), .. } => 1,
        _ => 0,
    }
}

/// The names that every Prometheus client has, from /proc/self.
fn process(all: &mut Families) {
    /// The kernel's USER_HZ.
    const TICKS: f64 = 100.0;
    let none: Labels = Vec::new();
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the command's name, which may have spaces: fields 3 and on of proc_pid_stat(5).
    let fields: Vec<f64> =
        stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().map(|f| f.parse().unwrap_or(0.0)).collect();
    let field = |number: usize| fields.get(number - 3).copied().unwrap_or_default();
    let help = "Total user and system CPU time spent in seconds.";
    all.counter("process_cpu_seconds", help, &none, (field(14) + field(15)) / TICKS);
    all.gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.", &none, field(23));
    let page = rustix::param::page_size() as f64;
    all.gauge("process_resident_memory_bytes", "Resident memory size in bytes.", &none, field(24) * page);
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    all.gauge("process_open_fds", "Number of open file descriptors.", &none, open as f64);
    let booted = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let booted: f64 = booted.lines().find_map(|l| l.strip_prefix("btime ")?.trim().parse().ok()).unwrap_or_default();
    let help = "Start time of the process since unix epoch in seconds.";
    all.gauge("process_start_time_seconds", help, &none, booted + field(22) / TICKS);
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("/metrics", "metrics")]
    #[case("/metrics/resource", "metrics/resource")]
    #[case("/metrics/whatever", "other")]
    #[case("/exec/default/web/app", "exec")]
    #[case("/", "other")]
    #[case("/../../x", "other")]
    fn paths_are_few(#[case] path: &str, #[case] expected: &str) {
        assert_eq!(bucket(path), expected);
    }

    #[rstest]
    #[case(&[("upgrade", "websocket"), ("sec-websocket-protocol", "v5.channel.k8s.io")], Some(("websocket", "v5.channel.k8s.io")))]
    #[case(&[("upgrade", "websocket")], Some(("websocket", "")))]
    #[case(&[("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", "v4.channel.k8s.io")], Some(("spdy", "v4.channel.k8s.io")))]
    #[case(&[("sec-websocket-protocol", "v5.channel.k8s.io")], None)]
    fn a_stream_is_what_was_agreed(#[case] headers: &[(&str, &str)], #[case] expected: Option<(&str, &str)>) {
        let mut answer = Response::default();
        for (name, value) in headers {
            answer.headers_mut().insert(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        let found = opened("exec", &answer);
        assert_eq!(found.as_ref().map(|stream| (stream.transport, stream.protocol.as_str())), expected);
    }
}
