//! Probes and hooks: exactly one handler each, and numbers that make sense.

use k8s_openapi::api::core::v1::{ExecAction, GRPCAction, HTTPGetAction, LifecycleHandler, Probe, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::container::port_number;
use super::names;
use super::report::Report;
use crate::model::path::Path;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProbeKind {
    Liveness,
    Readiness,
    Startup,
}

pub(super) fn probe(report: &mut Report<'_>, at: &Path<'_>, probe: &Probe, kind: ProbeKind, grace: i64) {
    let handler = Handler {
        exec: probe.exec.as_ref(),
        http_get: probe.http_get.as_ref(),
        tcp_socket: probe.tcp_socket.as_ref(),
        grpc: probe.grpc.as_ref(),
        sleep: None,
    };
    handler.check(report, at, grace);
    let counts = [
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("periodSeconds", probe.period_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ];
    for (name, value) in counts {
        report.not_negative(&at.child(name), value.map(i64::from));
    }
    let threshold = probe.success_threshold.unwrap_or(1);
    if kind != ProbeKind::Readiness && threshold != 1 {
        report.invalid(&at.child("successThreshold"), &threshold, "must be 1");
    }
    match (probe.termination_grace_period_seconds, kind) {
        (Some(seconds), ProbeKind::Readiness) => {
            let wrong = "must not be set for readinessProbes";
            report.invalid(&at.child("terminationGracePeriodSeconds"), &seconds, wrong);
        }
        (Some(seconds), _) if seconds <= 0 => {
            report.invalid(&at.child("terminationGracePeriodSeconds"), &seconds, "must be greater than 0");
        }
        _ => {}
    }
}

pub(super) fn hook(report: &mut Report<'_>, at: &Path<'_>, hook: &LifecycleHandler, grace: i64) {
    let handler = Handler {
        exec: hook.exec.as_ref(),
        http_get: hook.http_get.as_ref(),
        tcp_socket: hook.tcp_socket.as_ref(),
        grpc: None,
        sleep: hook.sleep.as_ref().map(|s| s.seconds),
    };
    handler.check(report, at, grace);
}

struct Handler<'a> {
    exec: Option<&'a ExecAction>,
    http_get: Option<&'a HTTPGetAction>,
    tcp_socket: Option<&'a TCPSocketAction>,
    grpc: Option<&'a GRPCAction>,
    sleep: Option<i64>,
}

impl Handler<'_> {
    fn check(&self, report: &mut Report<'_>, at: &Path<'_>, grace: i64) {
        let mut handlers = 0;
        // The first counts; each one after it is too many.
        let mut one_more = |report: &mut Report<'_>, at: &Path<'_>| {
            handlers += 1;
            if handlers > 1 {
                report.forbidden(at, "may not specify more than 1 handler type");
            }
            handlers == 1
        };
        if let Some(exec) = self.exec
            && one_more(report, &at.child("exec"))
            && exec.command.as_ref().is_none_or(Vec::is_empty)
        {
            report.required(&at.child("exec").child("command"), "");
        }
        if let Some(get) = self.http_get
            && one_more(report, &at.child("httpGet"))
        {
            http_get(report, &at.child("httpGet"), get);
        }
        if let Some(tcp) = self.tcp_socket
            && one_more(report, &at.child("tcpSocket"))
        {
            port(report, &at.child("tcpSocket").child("port"), &tcp.port);
        }
        if let Some(grpc) = self.grpc
            && one_more(report, &at.child("grpc"))
        {
            port_number(report, &at.child("grpc").child("port"), grpc.port);
            report.one_of(&at.child("grpc").child("mode"), grpc.mode.as_deref(), &["Plaintext", "TLS"]);
        }
        if let Some(seconds) = self.sleep
            && one_more(report, &at.child("sleep"))
            && (seconds < 0 || seconds > grace)
        {
            let wrong = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
            report.invalid(&at.child("sleep"), &seconds, wrong);
        }
        if handlers == 0 {
            report.required(at, "must specify a handler type");
        }
    }
}

fn http_get(report: &mut Report<'_>, at: &Path<'_>, get: &HTTPGetAction) {
    if get.path.as_deref().unwrap_or_default().is_empty() {
        report.required(&at.child("path"), "");
    }
    port(report, &at.child("port"), &get.port);
    report.one_of(&at.child("scheme"), get.scheme.as_deref(), &["HTTP", "HTTPS"]);
    match get.protocol.as_deref() {
        Some("HTTP2") if get.scheme.as_deref() != Some("HTTP") => {
            report.invalid(&at.child("protocol"), "HTTP2", "is only supported with HTTP (H2C)");
        }
        Some("HTTP2") => {
            if let Some(host) = get.host.as_deref().filter(|host| !host.is_empty()) {
                report.invalid(&at.child("host"), host, "must be empty when `protocol` is \"HTTP2\"");
            }
        }
        protocol => report.one_of(&at.child("protocol"), protocol, &["HTTP1", "HTTP2"]),
    }
    let header = |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    for (i, h) in get.http_headers.iter().flatten().enumerate().filter(|(_, h)| !header(&h.name)) {
        let wrong = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for \
                     validation is '[-A-Za-z0-9]+')";
        report.invalid(&at.child("httpHeaders").index(i).child("name"), &h.name, wrong);
    }
}

fn port(report: &mut Report<'_>, at: &Path<'_>, port: &IntOrString) {
    match port {
        IntOrString::Int(number) => port_number(report, at, *number),
        IntOrString::String(name) => report.each_invalid(at, name, names::port_name(name)),
    }
}
