//! Containers: ordinary, init and ephemeral ones.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, ContainerRestartRule, EphemeralContainer, PodSpec, ResourceRequirements, Volume, VolumeDevice,
    VolumeMount,
};

use super::probe::{self, ProbeKind};
use super::report::{Report, Unique};
use super::{env, names, resources, security};
use crate::model::ephemeral;
use crate::model::path::Path;

const SIGNALS: [&str; 35] = [
    "SIGABRT",
    "SIGALRM",
    "SIGBUS",
    "SIGCHLD",
    "SIGCLD",
    "SIGCONT",
    "SIGFPE",
    "SIGHUP",
    "SIGILL",
    "SIGINT",
    "SIGIO",
    "SIGIOT",
    "SIGKILL",
    "SIGPIPE",
    "SIGPOLL",
    "SIGPROF",
    "SIGPWR",
    "SIGQUIT",
    "SIGRTMAX",
    "SIGRTMIN",
    "SIGSEGV",
    "SIGSTKFLT",
    "SIGSTOP",
    "SIGSYS",
    "SIGTERM",
    "SIGTRAP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGUSR1",
    "SIGUSR2",
    "SIGVTALRM",
    "SIGWINCH",
    "SIGXCPU",
];

/// What a container's rules need to know of its pod.
pub(super) struct Context<'a> {
    pub(super) spec: &'a PodSpec,
    pub(super) volumes: HashMap<&'a str, &'a Volume>,
}

/// Which list a container is of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Init,
    Main,
    Ephemeral,
}

/// All containers of a pod.
pub(super) fn all(report: &mut Report<'_>, at: &Path<'_>, context: &Context<'_>) {
    let spec = context.spec;
    if spec.containers.is_empty() {
        report.required(&at.child("containers"), "");
    }
    // One set of names over all lists, host ports likewise.
    let mut names = Unique::default();
    let mut host_ports = Unique::default();
    for (i, c) in spec.init_containers.iter().flatten().enumerate() {
        let list = at.child("initContainers");
        let at = list.index(i);
        container(report, &at, c, Role::Init, context);
        name(report, &at, &c.name, &mut names);
        if c.restart_policy.as_deref() == Some("Always") {
            used_host_ports(report, &at, c, &mut host_ports);
        }
    }
    for (i, c) in spec.containers.iter().enumerate() {
        let list = at.child("containers");
        let at = list.index(i);
        container(report, &at, c, Role::Main, context);
        name(report, &at, &c.name, &mut names);
        used_host_ports(report, &at, c, &mut host_ports);
    }
    for (i, c) in spec.ephemeral_containers.iter().flatten().enumerate() {
        let list = at.child("ephemeralContainers");
        let at = list.index(i);
        ephemeral_container(report, &at, c, &names, context);
        name(report, &at, &c.name, &mut names);
    }
}

fn name<'a>(report: &mut Report<'_>, at: &Path<'_>, name: &'a str, seen: &mut Unique<'a>) {
    if !name.is_empty() {
        seen.check(report, &at.child("name"), name);
    }
}

fn container(report: &mut Report<'_>, at: &Path<'_>, c: &Container, role: Role, context: &Context<'_>) {
    report.name(&at.child("name"), &c.name, names::dns_label);
    image(report, &at.child("image"), c.image.as_deref().unwrap_or_default());
    report.one_of(&at.child("imagePullPolicy"), c.image_pull_policy.as_deref(), &["Always", "IfNotPresent", "Never"]);
    let policies = ["File", "FallbackToLogsOnError"];
    report.one_of(&at.child("terminationMessagePolicy"), c.termination_message_policy.as_deref(), &policies);
    ports(report, &at.child("ports"), c.ports.as_deref().unwrap_or_default(), context);
    env::variables(report, &at.child("env"), c.env.as_deref().unwrap_or_default(), context);
    env::sources(report, &at.child("envFrom"), c.env_from.as_deref().unwrap_or_default());
    devices(report, &at.child("volumeDevices"), c.volume_devices.as_deref().unwrap_or_default(), context);
    mounts(report, &at.child("volumeMounts"), c, context);
    if let Some(resources) = &c.resources {
        resources::of_container(report, &at.child("resources"), resources, context.spec);
    }
    resources::resize_policy(report, &at.child("resizePolicy"), c.resize_policy.as_deref().unwrap_or_default());
    if let Some(sc) = &c.security_context {
        security::of_container(report, &at.child("securityContext"), sc, context.spec);
    }
    lifetime(report, at, c, role, context);
}

fn image(report: &mut Report<'_>, at: &Path<'_>, image: &str) {
    if image.is_empty() {
        report.required(at, "");
    } else if image.trim() != image {
        report.invalid(at, image, "must not have leading or trailing whitespace");
    }
}

fn ports(report: &mut Report<'_>, at: &Path<'_>, ports: &[ContainerPort], context: &Context<'_>) {
    let mut names = Unique::default();
    for (i, port) in ports.iter().enumerate() {
        let at = at.index(i);
        if let Some(name) = port.name.as_deref().filter(|n| !n.is_empty()) {
            let wrong = names::port_name(name);
            if wrong.is_empty() {
                names.check(report, &at.child("name"), name);
            }
            report.each_invalid(&at.child("name"), name, wrong);
        }
        match port.container_port {
            0 => report.required(&at.child("containerPort"), ""),
            number => port_number(report, &at.child("containerPort"), number),
        }
        if let Some(number) = port.host_port.filter(|p| *p != 0) {
            port_number(report, &at.child("hostPort"), number);
            if context.spec.host_network == Some(true) && number != port.container_port {
                report.invalid(&at.child("hostPort"), &number, "must match `containerPort` when `hostNetwork` is true");
            }
        }
        report.one_of(&at.child("protocol"), port.protocol.as_deref(), &["SCTP", "TCP", "UDP"]);
        if let Some(ip) = port.host_ip.as_deref().filter(|ip| !ip.is_empty()) {
            report.ip(&at.child("hostIP"), ip);
        }
    }
}

pub(super) fn port_number(report: &mut Report<'_>, at: &Path<'_>, number: i32) {
    if let Some(wrong) = names::port_number(number) {
        report.invalid(at, &number, wrong);
    }
}

fn used_host_ports(report: &mut Report<'_>, at: &Path<'_>, c: &Container, seen: &mut Unique<'_>) {
    let list = at.child("ports");
    for (i, port) in c.ports.iter().flatten().enumerate() {
        if let Some(number) = port.host_port.filter(|p| *p != 0) {
            let text = |field: &Option<String>| field.clone().unwrap_or_default();
            let key = format!("{}/{}/{number}", text(&port.protocol), text(&port.host_ip));
            seen.check(report, &list.index(i).child("hostPort"), key);
        }
    }
}

fn devices(report: &mut Report<'_>, at: &Path<'_>, devices: &[VolumeDevice], context: &Context<'_>) {
    if !devices.is_empty() {
        report.forbidden(at, "claims are folders on this node: a block device needs a cluster's storage driver");
    }
    let mut names = Unique::default();
    let mut paths = Unique::default();
    for (i, device) in devices.iter().enumerate() {
        let at = at.index(i);
        if device.name.is_empty() {
            report.required(&at.child("name"), "");
        } else {
            names.check_unique(report, &at.child("name"), &device.name);
            match context.volumes.get(device.name.as_str()) {
                None => report.not_found(&at.child("name"), &device.name),
                Some(v) if v.persistent_volume_claim.is_none() && v.ephemeral.is_none() => {
                    let wrong = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                    report.invalid(&at.child("name"), &device.name, wrong);
                }
                Some(_) => {}
            }
        }
        if device.device_path.is_empty() {
            report.required(&at.child("devicePath"), "");
        } else {
            paths.check_unique(report, &at.child("devicePath"), &device.device_path);
            report.no_backsteps(&at.child("devicePath"), &device.device_path);
        }
    }
}

fn mounts(report: &mut Report<'_>, at: &Path<'_>, c: &Container, context: &Context<'_>) {
    let mut paths = Unique::default();
    for (i, mount) in c.volume_mounts.iter().flatten().enumerate() {
        let at = at.index(i);
        if mount.name.is_empty() {
            report.required(&at.child("name"), "");
        } else if !context.volumes.contains_key(mount.name.as_str()) {
            report.not_found(&at.child("name"), &mount.name);
        }
        let path = at.child("mountPath");
        if mount.mount_path.is_empty() {
            report.required(&path, "");
        } else {
            paths.check_unique(report, &path, &mount.mount_path);
        }
        if mount.mount_path.contains(':') {
            report.invalid(&path, &mount.mount_path, "must not contain ':'");
        }
        if c.volume_devices.iter().flatten().any(|d| d.device_path == mount.mount_path) {
            report.invalid(&path, &mount.mount_path, "must not already exist as a path in volumeDevices");
        }
        sub_paths(report, &at, mount);
        mount_options(report, &at, mount, c);
    }
}

fn sub_paths(report: &mut Report<'_>, at: &Path<'_>, mount: &VolumeMount) {
    let sub_path = mount.sub_path.as_deref().unwrap_or_default();
    let expression = mount.sub_path_expr.as_deref().unwrap_or_default();
    report.descending(&at.child("subPath"), sub_path);
    report.descending(&at.child("subPathExpr"), expression);
    if !sub_path.is_empty() && !expression.is_empty() {
        report.invalid(&at.child("subPathExpr"), expression, "subPathExpr and subPath are mutually exclusive");
    }
}

fn mount_options(report: &mut Report<'_>, at: &Path<'_>, mount: &VolumeMount, c: &Container) {
    let propagation = mount.mount_propagation.as_deref();
    report.one_of(&at.child("mountPropagation"), propagation, &["Bidirectional", "HostToContainer", "None"]);
    let privileged = c.security_context.as_ref().and_then(|s| s.privileged) == Some(true);
    if propagation == Some("Bidirectional") && !privileged {
        let wrong = "Bidirectional mount propagation is available only to privileged containers";
        report.forbidden(&at.child("mountPropagation"), wrong);
    }
    let recursive = at.child("recursiveReadOnly");
    match mount.recursive_read_only.as_deref() {
        None | Some("Disabled") => {}
        Some("Enabled" | "IfPossible") => {
            if mount.read_only != Some(true) {
                report.forbidden(&recursive, "may only be specified when readOnly is true");
            }
            if propagation.is_some_and(|p| p != "None") {
                report.forbidden(&recursive, "may only be specified when mountPropagation is None or not specified");
            }
        }
        Some(other) => report.unsupported(&recursive, other, &["Disabled", "Enabled", "IfPossible"]),
    }
    let mut seen = Unique::default();
    for (i, option) in mount.bind_mount_options.iter().flatten().enumerate() {
        let list = at.child("bindMountOptions");
        report.one_of(&list.index(i), Some(option), &["noexec", "nodev", "nosuid"]);
        seen.check(report, &list.index(i), option);
    }
}

/// What starts a container again, ends it and asks it how it is.
fn lifetime(report: &mut Report<'_>, at: &Path<'_>, c: &Container, role: Role, context: &Context<'_>) {
    report.one_of(&at.child("restartPolicy"), c.restart_policy.as_deref(), &["Always", "Never", "OnFailure"]);
    restart_rules(report, at, c);
    let sidecar = role == Role::Init && c.restart_policy.as_deref() == Some("Always");
    let probes = [
        ("livenessProbe", &c.liveness_probe, ProbeKind::Liveness),
        ("readinessProbe", &c.readiness_probe, ProbeKind::Readiness),
        ("startupProbe", &c.startup_probe, ProbeKind::Startup),
    ];
    if role == Role::Init && !sidecar {
        let forbidden = "may not be set for init containers without restartPolicy=Always";
        if c.lifecycle.is_some() {
            report.forbidden(&at.child("lifecycle"), forbidden);
        }
        for (name, _, _) in probes.iter().filter(|(_, probe, _)| probe.is_some()) {
            report.forbidden(&at.child(name), forbidden);
        }
        return;
    }
    let grace = context.spec.termination_grace_period_seconds.unwrap_or(30);
    for (name, probe, kind) in probes {
        if let Some(probe) = probe {
            probe::probe(report, &at.child(name), probe, kind, grace);
        }
    }
    let Some(lifecycle) = &c.lifecycle else { return };
    let at = at.child("lifecycle");
    if let Some(hook) = &lifecycle.post_start {
        probe::hook(report, &at.child("postStart"), hook, grace);
    }
    if let Some(hook) = &lifecycle.pre_stop {
        probe::hook(report, &at.child("preStop"), hook, grace);
    }
    if let Some(signal) = lifecycle.stop_signal.as_deref() {
        stop_signal(report, &at.child("stopSignal"), signal, context);
    }
}

fn stop_signal(report: &mut Report<'_>, at: &Path<'_>, signal: &str, context: &Context<'_>) {
    if context.spec.os.is_none() {
        report.forbidden(at, "may not be set for containers with empty `spec.os.name`");
    }
    let real_time = |prefix: &str| {
        let number = signal.strip_prefix(prefix).and_then(|n| n.parse::<u8>().ok());
        number.is_some_and(|n| (1..=15).contains(&n))
    };
    if !SIGNALS.contains(&signal) && !real_time("SIGRTMIN+") && !real_time("SIGRTMAX-") {
        report.unsupported(at, signal, &SIGNALS);
    }
}

fn restart_rules(report: &mut Report<'_>, at: &Path<'_>, c: &Container) {
    const LIMIT: usize = 20;
    let rules: &[ContainerRestartRule] = c.restart_policy_rules.as_deref().unwrap_or_default();
    if rules.is_empty() {
        return;
    }
    if c.restart_policy.is_none() {
        report.required(&at.child("restartPolicy"), "must specify restartPolicy when restart rules are used");
    }
    let at = at.child("restartPolicyRules");
    if rules.len() > LIMIT {
        report.say(&at, format!("Too many: {}: must have at most {LIMIT} items", rules.len()));
    }
    for (i, rule) in rules.iter().enumerate() {
        let at = at.index(i);
        match rule.action.as_str() {
            "" => report.required(&at.child("action"), ""),
            action => report.one_of(&at.child("action"), Some(action), &["Restart", "RestartAllContainers"]),
        }
        let Some(codes) = &rule.exit_codes else {
            report.required(&at.child("exitCodes"), "must be specified");
            continue;
        };
        let at = at.child("exitCodes");
        match codes.operator.as_str() {
            "" => report.required(&at.child("operator"), ""),
            operator => report.one_of(&at.child("operator"), Some(operator), &["In", "NotIn"]),
        }
        match codes.values.as_ref().map_or(0, Vec::len) {
            0 => report.required(&at.child("values"), "must not be empty"),
            many @ 256.. => report.say(&at.child("values"), format!("Too many: {many}: must have at most 255 items")),
            _ => {}
        }
    }
}

fn ephemeral_container(
    report: &mut Report<'_>,
    at: &Path<'_>,
    e: &EphemeralContainer,
    names: &Unique<'_>,
    context: &Context<'_>,
) {
    let forbidden = "cannot be set for an Ephemeral Container";
    let set = [
        ("ports", e.ports.is_some()),
        ("livenessProbe", e.liveness_probe.is_some()),
        ("readinessProbe", e.readiness_probe.is_some()),
        ("startupProbe", e.startup_probe.is_some()),
        ("lifecycle", e.lifecycle.is_some()),
        ("resources", e.resources.as_ref().is_some_and(|r| *r != ResourceRequirements::default())),
        ("resizePolicy", e.resize_policy.is_some()),
        ("restartPolicy", e.restart_policy.is_some()),
        ("restartPolicyRules", e.restart_policy_rules.is_some()),
    ];
    for (name, _) in set.into_iter().filter(|(_, is_set)| *is_set) {
        report.forbidden(&at.child(name), forbidden);
    }
    for (i, mount) in e.volume_mounts.iter().flatten().enumerate() {
        let list = at.child("volumeMounts");
        for (name, value) in [("subPath", &mount.sub_path), ("subPathExpr", &mount.sub_path_expr)] {
            if value.as_deref().is_some_and(|v| !v.is_empty()) {
                report.forbidden(&list.index(i).child(name), forbidden);
            }
        }
    }
    let target = e.target_container_name.as_deref().unwrap_or_default();
    if !target.is_empty() && !names.has(target) {
        report.not_found(&at.child("targetContainerName"), target);
    }
    container(report, at, &ephemeral::as_container(e), Role::Ephemeral, context);
}

/// The volumes by name.
pub(super) fn context(spec: &PodSpec) -> Context<'_> {
    let volumes = spec.volumes.iter().flatten().map(|v| (v.name.as_str(), v)).collect();
    Context { spec, volumes }
}
