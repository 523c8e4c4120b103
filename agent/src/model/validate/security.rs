//! Who a container's processes are and what they may do.

use k8s_openapi::api::core::v1::{AppArmorProfile, PodSecurityContext, PodSpec, SeccompProfile, SecurityContext, Sysctl};

use super::report::{Report, Unique};
use crate::model::path::Path;

const SYSCTL: &str = r"^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
/// A path's longest, less its end.
const APP_ARMOR_LIMIT: usize = 4095;
const SYSCTL_LIMIT: usize = 253;

pub(super) fn of_pod(report: &mut Report<'_>, at: &Path<'_>, sc: &PodSecurityContext, spec: &PodSpec) {
    report.id(&at.child("runAsUser"), sc.run_as_user);
    report.id(&at.child("runAsGroup"), sc.run_as_group);
    report.id(&at.child("fsGroup"), sc.fs_group);
    for (i, group) in sc.supplemental_groups.iter().flatten().enumerate() {
        report.id(&at.child("supplementalGroups").index(i), Some(*group));
    }
    let change = sc.fs_group_change_policy.as_deref();
    report.one_of(&at.child("fsGroupChangePolicy"), change, &["Always", "OnRootMismatch"]);
    let policy = sc.supplemental_groups_policy.as_deref();
    report.one_of(&at.child("supplementalGroupsPolicy"), policy, &["Merge", "Strict"]);
    let selinux = sc.se_linux_change_policy.as_deref();
    report.one_of(&at.child("seLinuxChangePolicy"), selinux, &["MountOption", "Recursive"]);
    sysctls(report, &at.child("sysctls"), sc.sysctls.as_deref().unwrap_or_default(), spec);
    if let Some(profile) = &sc.seccomp_profile {
        seccomp(report, &at.child("seccompProfile"), profile);
    }
    if let Some(profile) = &sc.app_armor_profile {
        app_armor(report, &at.child("appArmorProfile"), profile);
    }
    if sc.windows_options.is_some() {
        report.forbidden(&at.child("windowsOptions"), "windows options cannot be set on a linux node");
    }
}

pub(super) fn of_container(report: &mut Report<'_>, at: &Path<'_>, sc: &SecurityContext, spec: &PodSpec) {
    report.id(&at.child("runAsUser"), sc.run_as_user);
    report.id(&at.child("runAsGroup"), sc.run_as_group);
    if let Some(profile) = &sc.seccomp_profile {
        seccomp(report, &at.child("seccompProfile"), profile);
    }
    if let Some(profile) = &sc.app_armor_profile {
        app_armor(report, &at.child("appArmorProfile"), profile);
    }
    report.one_of(&at.child("procMount"), sc.proc_mount.as_deref(), &["Default", "Unmasked"]);
    if sc.proc_mount.as_deref() == Some("Unmasked") && spec.host_users != Some(false) {
        report.invalid(&at.child("procMount"), "Unmasked", "`hostUsers` must be false to use `Unmasked`");
    }
    if sc.allow_privilege_escalation == Some(false) {
        if sc.privileged == Some(true) {
            report.say(at, "Invalid value: {…}: cannot set `allowPrivilegeEscalation` to false and `privileged` to true");
        }
        let added = sc.capabilities.iter().flat_map(|c| c.add.iter().flatten());
        if added.into_iter().any(|c| c == "CAP_SYS_ADMIN") {
            let wrong = "Invalid value: {…}: cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            report.say(at, wrong);
        }
    }
    if sc.windows_options.is_some() {
        report.forbidden(&at.child("windowsOptions"), "windows options cannot be set on a linux node");
    }
}

fn seccomp(report: &mut Report<'_>, at: &Path<'_>, profile: &SeccompProfile) {
    match profile.type_.as_str() {
        "" => report.required(&at.child("type"), "type is required when seccompProfile is set"),
        kind => report.one_of(&at.child("type"), Some(kind), &["Localhost", "RuntimeDefault", "Unconfined"]),
    }
    let file = profile.localhost_profile.as_deref();
    match (profile.type_.as_str(), file) {
        ("Localhost", None | Some("")) => {
            report.required(&at.child("localhostProfile"), "must be set when seccomp type is Localhost");
        }
        ("Localhost", Some(file)) => report.descending(&at.child("localhostProfile"), file),
        (_, Some(file)) => {
            report.invalid(&at.child("localhostProfile"), file, "can only be set when seccomp type is Localhost");
        }
        _ => {}
    }
}

fn app_armor(report: &mut Report<'_>, at: &Path<'_>, profile: &AppArmorProfile) {
    match profile.type_.as_str() {
        "" => report.required(&at.child("type"), "type is required when appArmorProfile is set"),
        kind => report.one_of(&at.child("type"), Some(kind), &["Localhost", "RuntimeDefault", "Unconfined"]),
    }
    let name = profile.localhost_profile.as_deref();
    match (profile.type_.as_str(), name) {
        ("Localhost", None | Some("")) => {
            report.required(&at.child("localhostProfile"), "must be set when AppArmor type is Localhost");
        }
        ("Localhost", Some(name)) if name.trim() != name => {
            report.invalid(&at.child("localhostProfile"), name, "must not be padded with whitespace");
        }
        ("Localhost", Some(name)) if name.len() > APP_ARMOR_LIMIT => {
            report.say(&at.child("localhostProfile"), format!("Too long: may not be more than {APP_ARMOR_LIMIT} bytes"));
        }
        ("Localhost", _) | (_, None) => {}
        (_, Some(name)) => {
            report.invalid(&at.child("localhostProfile"), name, "can only be set when AppArmor type is Localhost");
        }
    }
}

fn sysctls(report: &mut Report<'_>, at: &Path<'_>, sysctls: &[Sysctl], spec: &PodSpec) {
    let mut seen = Unique::default();
    for (i, sysctl) in sysctls.iter().enumerate() {
        let list = at.index(i);
        let at = list.child("name");
        let name = sysctl.name.as_str();
        if name.is_empty() {
            report.required(&at, "");
            continue;
        }
        if is_sysctl(name) {
            seen.check(report, &at, name.replace('/', "."));
        } else {
            let wrong = format!("must have at most {SYSCTL_LIMIT} characters and match regex {SYSCTL}");
            report.invalid(&at, name, wrong);
        }
        let group = name.replace('/', ".");
        if spec.host_network == Some(true) && group.starts_with("net.") {
            report.invalid(&at, name, "may not be specified when 'hostNetwork' is true");
        }
        if spec.host_ipc == Some(true)
            && (group.starts_with("kernel.shm")
                || group.starts_with("kernel.msg")
                || group.starts_with("kernel.sem")
                || group.starts_with("fs.mqueue."))
        {
            report.invalid(&at, name, "may not be specified when 'hostIPC' is true");
        }
    }
}

fn is_sysctl(name: &str) -> bool {
    let outer = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let part = |part: &str| match part.as_bytes() {
        [] => false,
        [one] => outer(*one),
        [first, middle @ .., last] => {
            outer(*first) && outer(*last) && middle.iter().all(|b| outer(*b) || matches!(b, b'-' | b'_'))
        }
    };
    name.len() <= SYSCTL_LIMIT && name.split(['.', '/']).all(part)
}
