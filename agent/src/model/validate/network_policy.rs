//! The API server's rules for a NetworkPolicy.

use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use netplug::Cidr;

use super::names;
use super::report::Report;
use super::workload::label_selector;
use crate::model::path::Path;

pub(super) fn policy(report: &mut Report<'_>, policy: &NetworkPolicy) {
    let at = Path::ROOT.child("spec");
    let Some(spec) = &policy.spec else { return report.required(&at, "") };
    if let Some(selector) = &spec.pod_selector {
        label_selector(report, &at.child("podSelector"), selector);
    }
    for (i, rule) in spec.ingress.iter().flatten().enumerate() {
        let at = at.child("ingress");
        let at = at.index(i);
        ports(report, &at, rule.ports.as_deref());
        peers(report, &at.child("from"), rule.from.as_deref());
    }
    for (i, rule) in spec.egress.iter().flatten().enumerate() {
        let at = at.child("egress");
        let at = at.index(i);
        ports(report, &at, rule.ports.as_deref());
        peers(report, &at.child("to"), rule.to.as_deref());
    }
    let types = spec.policy_types.as_deref().unwrap_or_default();
    if types.len() > 2 {
        report.say(&at.child("policyTypes"), "Invalid value: may not specify more than two policyTypes");
    }
    for (i, kind) in types.iter().enumerate() {
        report.one_of(&at.child("policyTypes").index(i), Some(kind), &["Egress", "Ingress"]);
    }
}

fn ports(report: &mut Report<'_>, at: &Path<'_>, ports: Option<&[NetworkPolicyPort]>) {
    for (i, port) in ports.unwrap_or_default().iter().enumerate() {
        let at = at.child("ports");
        let at = at.index(i);
        report.one_of(&at.child("protocol"), port.protocol.as_deref(), &["SCTP", "TCP", "UDP"]);
        match &port.port {
            Some(IntOrString::Int(number)) => {
                if let Some(wrong) = names::port_number(*number) {
                    report.invalid(&at.child("port"), number, wrong);
                }
            }
            Some(IntOrString::String(name)) => report.each_invalid(&at.child("port"), name, names::port_name(name)),
            None => {}
        }
        let Some(end) = port.end_port else { continue };
        let at = at.child("endPort");
        match &port.port {
            None => report.invalid(&at, &end, "may not be specified when `port` is not specified"),
            Some(IntOrString::String(_)) => report.invalid(&at, &end, "may not be specified when `port` is non-numeric"),
            Some(IntOrString::Int(first)) if end < *first => {
                report.invalid(&at, &end, "must be greater than or equal to `port`");
            }
            Some(IntOrString::Int(_)) => {
                if let Some(wrong) = names::port_number(end) {
                    report.invalid(&at, &end, wrong);
                }
            }
        }
    }
}

fn peers(report: &mut Report<'_>, at: &Path<'_>, peers: Option<&[NetworkPolicyPeer]>) {
    for (i, peer) in peers.unwrap_or_default().iter().enumerate() {
        let at = at.index(i);
        let selectors = [("podSelector", &peer.pod_selector), ("namespaceSelector", &peer.namespace_selector)];
        for (field, selector) in &selectors {
            if let Some(selector) = selector {
                label_selector(report, &at.child(field), selector);
            }
        }
        let selected = selectors.iter().any(|(_, selector)| selector.is_some());
        match &peer.ip_block {
            Some(_) if selected => report.forbidden(&at, "may not specify both ipBlock and another peer"),
            Some(block) => ip_block(report, &at.child("ipBlock"), block),
            None if !selected => report.required(&at, "must specify a peer"),
            None => {}
        }
    }
}

fn ip_block(report: &mut Report<'_>, at: &Path<'_>, block: &IPBlock) {
    if block.cidr.is_empty() {
        return report.required(&at.child("cidr"), "");
    }
    let mut cidr = |at: &Path<'_>, text: &str| {
        // Host bits are cut off: the server takes them too.
        let parsed = Cidr::around(text).ok();
        if parsed.is_none() {
            report.invalid(at, text, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)");
        }
        parsed
    };
    let Some(whole) = cidr(&at.child("cidr"), &block.cidr) else { return };
    let mut outside = Vec::new();
    for (i, except) in block.except.iter().flatten().enumerate() {
        if let Some(part) = cidr(&at.child("except").index(i), except)
            && !(part.prefix() > whole.prefix() && whole.contains(part.base()))
        {
            outside.push((i, except));
        }
    }
    for (i, except) in outside {
        report.invalid(&at.child("except").index(i), except.as_str(), "must be a strict subset of `cidr`");
    }
}
