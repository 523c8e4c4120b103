//! Metadata, and the spec's own fields.

use k8s_openapi::api::core::v1::{PodDNSConfig, PodSpec, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::report::{Report, Unique, json};
use super::{affinity, container, names, resources, security, volume};
use crate::model::network;
use crate::model::path::Path;

pub(super) fn metadata(report: &mut Report<'_>, meta: &ObjectMeta) {
    let at = Path::ROOT.child("metadata");
    match meta.name.as_deref().unwrap_or_default() {
        "" if meta.generate_name.is_some() => {
            report.required(&at.child("name"), "generateName would give another object each time that the file is read");
        }
        "" => report.required(&at.child("name"), "name or generateName is required"),
        name => report.each_invalid(&at.child("name"), name, names::dns_subdomain(name)),
    }
    for (i, finalizer) in meta.finalizers.iter().flatten().enumerate() {
        const STANDARD: [&str; 3] = ["foregroundDeletion", "kubernetes", "orphan"];
        let at = at.child("finalizers");
        report.each_invalid(&at, finalizer, names::qualified_name(finalizer));
        if !finalizer.contains('/') && !STANDARD.contains(&finalizer.as_str()) {
            let wrong = "name is neither a standard finalizer name nor is it fully qualified";
            report.invalid(&at.index(i), finalizer, wrong);
        }
    }
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    report.each_invalid(&at.child("namespace"), namespace, names::dns_label(namespace));
    let uid = meta.uid.as_deref().unwrap_or_default();
    report.each_invalid(&at.child("uid"), uid, names::uid(uid));
    for (key, value) in meta.labels.iter().flatten() {
        report.each_invalid(&at.child("labels"), key, names::qualified_name(key));
        report.each_invalid(&at.child("labels"), value, names::label_value(value));
    }
    annotations(report, &at.child("annotations"), meta);
}

pub(super) fn annotations(report: &mut Report<'_>, at: &Path<'_>, meta: &ObjectMeta) {
    const LIMIT: usize = 256 * 1024;
    let mut total = 0;
    for (key, value) in meta.annotations.iter().flatten() {
        report.each_invalid(at, key, names::qualified_name(&key.to_lowercase()));
        total += key.len() + value.len();
    }
    if total > LIMIT {
        report.say(at, format!("Too long: may not be more than {LIMIT} bytes"));
    }
    for wrong in network::Asks::of(meta).err().unwrap_or_default() {
        report.invalid(&at.key(wrong.annotation), wrong.value.as_str(), wrong.problem);
    }
}

/// `name`: the pod's; empty for a template's pods.
pub(super) fn spec(report: &mut Report<'_>, at: &Path<'_>, spec: &PodSpec, name: &str) {
    volume::all(report, &at.child("volumes"), spec.volumes.as_deref().unwrap_or_default(), name);
    container::all(report, at, &container::context(spec));
    report.one_of(&at.child("restartPolicy"), spec.restart_policy.as_deref(), &["Always", "OnFailure", "Never"]);
    report.not_negative(&at.child("terminationGracePeriodSeconds"), spec.termination_grace_period_seconds);
    if let Some(seconds) = spec.active_deadline_seconds.filter(|s| !(1..=i64::from(i32::MAX)).contains(s)) {
        report.invalid(&at.child("activeDeadlineSeconds"), &seconds, "must be between 1 and 2147483647, inclusive");
    }
    if let Some(sc) = &spec.security_context {
        security::of_pod(report, &at.child("securityContext"), sc, spec);
    }
    if let Some(resources) = &spec.resources {
        resources::of_pod(report, at, resources, spec);
    }
    if let Some(overhead) = &spec.overhead {
        resources::overhead(report, &at.child("overhead"), overhead);
    }
    namespaces(report, at, spec);
    names(report, at, spec);
    dns(report, at, spec);
    placement(report, at, spec);
    clusters_own(report, at, spec);
}

/// Which of the host's namespaces the pod shares, and which can't go together.
fn namespaces(report: &mut Report<'_>, at: &Path<'_>, spec: &PodSpec) {
    if spec.host_pid == Some(true) && spec.share_process_namespace == Some(true) {
        let wrong = "ShareProcessNamespace and HostPID cannot both be enabled";
        report.invalid(&at.child("shareProcessNamespace"), &true, wrong);
    }
    if spec.host_users == Some(false) {
        let shared = [("hostNetwork", spec.host_network), ("hostIPC", spec.host_ipc), ("hostPID", spec.host_pid)];
        for (name, _) in shared.into_iter().filter(|(_, on)| *on == Some(true)) {
            report.forbidden(&at.child(name), "when `hostUsers` is false");
        }
    }
    match spec.os.as_ref().map(|os| os.name.as_str()) {
        Some("") => report.required(&at.child("os").child("name"), ""),
        Some("windows") => report.invalid(&at.child("os").child("name"), "windows", "this node runs linux"),
        name => report.one_of(&at.child("os").child("name"), name, &["linux", "windows"]),
    }
}

fn names(report: &mut Report<'_>, at: &Path<'_>, spec: &PodSpec) {
    let given = |name: &Option<String>| name.clone().filter(|n| !n.is_empty());
    if let Some(name) = given(&spec.hostname) {
        report.each_invalid(&at.child("hostname"), &name, names::dns_label(&name));
    }
    if let Some(name) = given(&spec.subdomain) {
        report.each_invalid(&at.child("subdomain"), &name, names::dns_label(&name));
    }
    if let Some(name) = given(&spec.hostname_override) {
        let at = at.child("hostnameOverride");
        report.each_invalid(&at, &name, names::dns_subdomain(&name));
        if name.len() > 64 {
            report.say(&at, "Too long: may not be more than 64 bytes");
        }
        if spec.set_hostname_as_fqdn == Some(true) {
            report.forbidden(&at, "may not be specified when setHostnameAsFQDN is true");
        }
        if spec.host_network == Some(true) {
            report.forbidden(&at, "may not be specified when hostNetwork is true");
        }
    }
    if let Some(name) = given(&spec.node_name) {
        report.each_invalid(&at.child("nodeName"), &name, names::dns_subdomain(&name));
    }
    if let Some(name) = given(&spec.priority_class_name) {
        report.each_invalid(&at.child("priorityClassName"), &name, names::dns_subdomain(&name));
    }
    if let Some(name) = given(&spec.service_account_name) {
        report.each_invalid(&at.child("serviceAccountName"), &name, names::dns_subdomain(&name));
    }
    for (i, alias) in spec.host_aliases.iter().flatten().enumerate() {
        let list = at.child("hostAliases");
        let at = list.index(i);
        report.ip(&at.child("ip"), &alias.ip);
        for (i, name) in alias.hostnames.iter().flatten().enumerate() {
            report.each_invalid(&at.child("hostnames").index(i), name, names::dns_subdomain(name));
        }
    }
}

fn dns(report: &mut Report<'_>, at: &Path<'_>, spec: &PodSpec) {
    let policy = spec.dns_policy.as_deref();
    let policies = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    report.one_of(&at.child("dnsPolicy"), policy, &policies);
    let config = spec.dns_config.as_ref();
    if policy == Some("None") && config.is_none() {
        return report.required(&at.child("dnsConfig"), "must provide `dnsConfig` when `dnsPolicy` is None");
    }
    if let Some(config) = config {
        if policy == Some("None") && config.nameservers.as_ref().is_none_or(Vec::is_empty) {
            let wrong = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            return report.required(&at.child("dnsConfig").child("nameservers"), wrong);
        }
        dns_config(report, &at.child("dnsConfig"), config);
    }
}

fn dns_config(report: &mut Report<'_>, at: &Path<'_>, config: &PodDNSConfig) {
    const SERVERS: usize = 3;
    const SEARCHES: usize = 32;
    const SEARCH_CHARACTERS: usize = 2048;
    let list = at.child("nameservers");
    let servers = config.nameservers.as_deref().unwrap_or_default();
    if servers.len() > SERVERS {
        report.say(&list, format!("Invalid value: {}: must not have more than {SERVERS} nameservers", json(servers)));
    }
    for (i, server) in servers.iter().enumerate() {
        report.ip(&list.index(i), server);
    }
    let list = at.child("searches");
    let searches = config.searches.as_deref().unwrap_or_default();
    if searches.len() > SEARCHES {
        report.say(&list, format!("Invalid value: {}: must not have more than {SEARCHES} search paths", json(searches)));
    }
    if searches.join(" ").len() > SEARCH_CHARACTERS {
        let wrong = format!("must not have more than {SEARCH_CHARACTERS} characters (including spaces) in the search list");
        report.say(&list, format!("Invalid value: {}: {wrong}", json(searches)));
    }
    for (i, search) in searches.iter().enumerate().filter(|(_, s)| s.as_str() != ".") {
        let plain = search.strip_suffix('.').unwrap_or(search);
        report.each_invalid(&list.index(i), plain, names::dns_search(plain));
    }
    for (i, option) in config.options.iter().flatten().enumerate() {
        if option.name.as_deref().unwrap_or_default().is_empty() {
            report.required(&at.child("options").index(i), "must not be empty");
        }
    }
}

/// What only a cluster's API server has.
fn clusters_own(report: &mut Report<'_>, at: &Path<'_>, spec: &PodSpec) {
    let given = |name: &Option<String>| name.clone().filter(|n| !n.is_empty());
    if given(&spec.runtime_class_name).is_some() {
        let wrong = "a RuntimeClass is a cluster's object, and this node has one runtime: leave it out";
        report.forbidden(&at.child("runtimeClassName"), wrong);
    }
    if spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty()) {
        let wrong = "only a cluster allocates claims: name devices by CDI, in an annotation cdi.k8s.io/NAME";
        report.forbidden(&at.child("resourceClaims"), wrong);
    }
    if let (Some(class), None) = (given(&spec.priority_class_name), spec.priority) {
        let wrong = format!("no PriorityClass with name {class} was found: say which `priority` it stands for, beside it");
        report.forbidden(&at.child("priorityClassName"), &wrong);
    }
}

/// What a scheduler would look at. A file's pod has its node; the syntax is checked all the same.
fn placement(report: &mut Report<'_>, at: &Path<'_>, spec: &PodSpec) {
    let selector = at.child("nodeSelector");
    for (key, value) in spec.node_selector.iter().flatten() {
        report.each_invalid(&selector, key, names::qualified_name(key));
        report.each_invalid(&selector, value, names::label_value(value));
    }
    for (i, t) in spec.tolerations.iter().flatten().enumerate() {
        toleration(report, &at.child("tolerations").index(i), t);
    }
    if let Some(wanted) = &spec.affinity {
        affinity::affinity(report, &at.child("affinity"), wanted);
    }
    let spread = spec.topology_spread_constraints.as_deref().unwrap_or_default();
    affinity::spread(report, &at.child("topologySpreadConstraints"), spread);
    affinity::gates(report, &at.child("schedulingGates"), spec.scheduling_gates.as_deref().unwrap_or_default());
    for (i, gate) in spec.readiness_gates.iter().flatten().enumerate() {
        let wrong = names::qualified_name(&gate.condition_type);
        report.each_invalid(&at.child("readinessGates").index(i).child("conditionType"), &gate.condition_type, wrong);
    }
    let mut seen = Unique::default();
    for (i, claim) in spec.resource_claims.iter().flatten().enumerate() {
        let list = at.child("resourceClaims");
        let at = list.index(i);
        report.name(&at.child("name"), &claim.name, names::dns_label);
        seen.check(report, &at.child("name"), &claim.name);
    }
    report.one_of(&at.child("preemptionPolicy"), spec.preemption_policy.as_deref(), &["PreemptLowerPriority", "Never"]);
}

fn toleration(report: &mut Report<'_>, at: &Path<'_>, t: &Toleration) {
    let key = t.key.as_deref().unwrap_or_default();
    let operator = t.operator.as_deref().unwrap_or_default();
    if !key.is_empty() {
        report.each_invalid(&at.child("key"), key, names::qualified_name(key));
    } else if operator != "Exists" {
        report.invalid(
            &at.child("operator"),
            operator,
            "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
        );
    }
    let value = t.value.as_deref().unwrap_or_default();
    match operator {
        "" | "Equal" => {
            let wrong = names::label_value(value);
            if !wrong.is_empty() {
                report.invalid(&at.child("operator"), value, wrong.join(";"));
            }
        }
        "Exists" if !value.is_empty() => {
            report.invalid(&at.child("operator"), value, "value must be empty when `operator` is 'Exists'");
        }
        "Exists" => {}
        // They exist, behind a feature gate that clusters have off.
        "Gt" | "Lt" => report.unsupported(&at.child("operator"), operator, &["Equal", "Exists", "Lt", "Gt"]),
        _ => report.unsupported(&at.child("operator"), operator, &["Equal", "Exists"]),
    }
    let effect = t.effect.as_deref().unwrap_or_default();
    if !["", "NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
        report.unsupported(&at.child("effect"), effect, &["NoSchedule", "PreferNoSchedule", "NoExecute"]);
    }
    if t.toleration_seconds.is_some() && effect != "NoExecute" {
        report.invalid(&at.child("effect"), effect, "effect must be 'NoExecute' when `tolerationSeconds` is set");
    }
}
