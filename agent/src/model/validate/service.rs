//! The API server's rules for a Service.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::names;
use super::report::{Report, Unique};
use crate::model::path::Path;

/// Seconds of a day: the longest affinity.
const LONGEST_STAY: i32 = 86_400;

pub(super) fn service(report: &mut Report<'_>, service: &Service) {
    let at = Path::ROOT.child("spec");
    let name = service.metadata.name.as_deref().unwrap_or_default();
    if !name.is_empty() {
        report.each_invalid(&Path::ROOT.child("metadata").child("name"), name, names::dns_label(name));
    }
    let Some(spec) = &service.spec else { return report.required(&at, "") };
    report.one_of(&at.child("type"), spec.type_.as_deref(), &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]);
    addresses(report, &at, spec);
    affinity(report, &at, spec);
    ports(report, &at, spec);
    for (key, value) in spec.selector.iter().flatten() {
        report.each_invalid(&at.child("selector"), key, names::qualified_name(key));
        report.each_invalid(&at.child("selector"), value, names::label_value(value));
    }
    let policies = ["Cluster", "Local"];
    report.one_of(&at.child("internalTrafficPolicy"), spec.internal_traffic_policy.as_deref(), &policies);
    report.one_of(&at.child("externalTrafficPolicy"), spec.external_traffic_policy.as_deref(), &policies);
    let family = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    report.one_of(&at.child("ipFamilyPolicy"), spec.ip_family_policy.as_deref(), &family);
    for (i, family) in spec.ip_families.iter().flatten().enumerate() {
        report.one_of(&at.child("ipFamilies").index(i), Some(family), &["IPv4", "IPv6"]);
    }
}

pub(super) fn warnings(report: &mut Report<'_>, service: &Service) {
    let at = Path::ROOT.child("spec");
    let Some(spec) = &service.spec else { return };
    if spec.type_.as_deref() == Some("LoadBalancer") {
        report.say(&at.child("type"), "there is no load balancer here: the Service is reached as a NodePort one");
    }
    if spec.external_traffic_policy.as_deref() == Some("Local") {
        report.say(&at.child("externalTrafficPolicy"), "chooses nothing here: all endpoints are on this node");
    }
    if spec.selector.as_ref().is_none_or(std::collections::BTreeMap::is_empty) && spec.type_.as_deref() != Some("ExternalName") {
        report.say(&at.child("selector"), "is empty: the Service has no endpoints, for only pods of this node can be ones");
    }
}

fn addresses(report: &mut Report<'_>, at: &Path<'_>, spec: &ServiceSpec) {
    let (own, kind) = (at.child("clusterIP"), spec.type_.as_deref().unwrap_or_default());
    let ip = spec.cluster_ip.as_deref().unwrap_or_default();
    let all = spec.cluster_ips.as_deref().unwrap_or_default();
    if kind == "ExternalName" {
        if !ip.is_empty() {
            report.forbidden(&own, "may not be set for ExternalName services");
        }
        let at = at.child("externalName");
        match spec.external_name.as_deref().unwrap_or_default().trim_end_matches('.') {
            "" => report.required(&at, ""),
            name => report.each_invalid(&at, name, names::dns_subdomain(name)),
        }
    } else if ip == "None" && matches!(kind, "NodePort" | "LoadBalancer") {
        report.invalid(&own, ip, format!("may not be set to 'None' for {kind} services"));
    } else if !matches!(ip, "" | "None") {
        report.ip(&own, ip);
    }
    if all.first().is_some_and(|first| first != ip) {
        report.say(&at.child("clusterIPs"), "Invalid value: first value must match `clusterIP`");
    }
    for (i, more) in all.iter().enumerate().skip(1) {
        report.ip(&at.child("clusterIPs").index(i), more);
    }
    if all.len() > 2 {
        report.say(&at.child("clusterIPs"), "Invalid value: may only hold up to 2 values");
    }
    for (i, ip) in spec.external_ips.iter().flatten().enumerate() {
        report.ip(&at.child("externalIPs").index(i), ip);
    }
}

fn affinity(report: &mut Report<'_>, at: &Path<'_>, spec: &ServiceSpec) {
    report.one_of(&at.child("sessionAffinity"), spec.session_affinity.as_deref(), &["ClientIP", "None"]);
    let own = at.child("sessionAffinityConfig");
    match (&spec.session_affinity_config, spec.session_affinity.as_deref()) {
        (Some(_), Some("None")) => report.forbidden(&own, "must not be set when session affinity is None"),
        (Some(config), _) => {
            let client = own.child("clientIP");
            if let Some(seconds) = config.client_ip.as_ref().and_then(|c| c.timeout_seconds)
                && !(1..=LONGEST_STAY).contains(&seconds)
            {
                let message = format!("must be greater than 0 and less than {LONGEST_STAY}");
                report.invalid(&client.child("timeoutSeconds"), &seconds, message);
            }
        }
        _ => {}
    }
}

fn ports(report: &mut Report<'_>, at: &Path<'_>, spec: &ServiceSpec) {
    let own = at.child("ports");
    let ports = spec.ports.as_deref().unwrap_or_default();
    let kind = spec.type_.as_deref().unwrap_or_default();
    if ports.is_empty() && spec.cluster_ip.as_deref() != Some("None") && kind != "ExternalName" {
        report.required(&own, "");
    }
    let (mut seen, mut pairs, mut node_ports) = (Unique::default(), HashSet::new(), HashSet::new());
    for (i, port) in ports.iter().enumerate() {
        let at = own.index(i);
        service_port(report, &at, port, ports.len() > 1);
        if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            seen.check(report, &at.child("name"), name);
        }
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        if !pairs.insert((protocol, port.port)) {
            report.say(&at, format!("Duplicate value: {{\"port\":{},\"protocol\":\"{protocol}\"}}", port.port));
        }
        let Some(node_port) = port.node_port.filter(|port| *port != 0) else { continue };
        let at = at.child("nodePort");
        if kind == "ClusterIP" {
            report.forbidden(&at, "may not be used when `type` is 'ClusterIP'");
        } else if let Some(wrong) = names::port_number(node_port) {
            report.invalid(&at, &node_port, wrong);
        } else if !node_ports.insert((protocol, node_port)) {
            report.say(&at, format!("Duplicate value: {node_port}"));
        }
    }
}

fn service_port(report: &mut Report<'_>, at: &Path<'_>, port: &ServicePort, several: bool) {
    match port.name.as_deref().unwrap_or_default() {
        "" if several => report.required(&at.child("name"), ""),
        name if !name.is_empty() => report.each_invalid(&at.child("name"), name, names::dns_label(name)),
        _ => {}
    }
    if let Some(wrong) = names::port_number(port.port) {
        report.invalid(&at.child("port"), &port.port, wrong);
    }
    report.one_of(&at.child("protocol"), port.protocol.as_deref(), &["SCTP", "TCP", "UDP"]);
    match &port.target_port {
        // What it is by default is told of already.
        Some(IntOrString::Int(number)) if *number != port.port => {
            if let Some(wrong) = names::port_number(*number) {
                report.invalid(&at.child("targetPort"), number, wrong);
            }
        }
        Some(IntOrString::String(name)) => report.each_invalid(&at.child("targetPort"), name, names::port_name(name)),
        _ => {}
    }
}
