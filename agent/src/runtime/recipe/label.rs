//! Labels of the kernel's security modules: AppArmor's profile, SELinux's context. Where the kernel has none, what asks for AppArmor
//! is refused before (`admission`), and SELinux options do nothing, as with the kubelet. Pure but for that look at the kernel.

use std::path::Path;
use std::sync::LazyLock;

use k8s_openapi::api::core::v1::{AppArmorProfile, Container, SELinuxOptions};

use crate::model::ValidPod;
use crate::runtime::error::ConfigError;

/// The profile that `RuntimeDefault` means, if the machine's administrator has loaded it.
pub const DEFAULT_PROFILE: &str = "nodeagent-default";

/// Whether the kernel enforces AppArmor profiles.
pub fn has_apparmor() -> bool {
    static ENABLED: LazyLock<bool> = LazyLock::new(|| {
        let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
        enabled.starts_with('Y')
    });
    *ENABLED
}

/// Whether the kernel has SELinux and a policy is loaded.
pub fn has_selinux() -> bool {
    static ENABLED: LazyLock<bool> = LazyLock::new(|| Path::new("/sys/fs/selinux/enforce").exists());
    *ENABLED
}

/// The container's word, then the pod's, then the annotation of old.
pub fn apparmor_profile(pod: &ValidPod, container: &Container) -> Option<AppArmorProfile> {
    let own = container.security_context.as_ref().and_then(|c| c.app_armor_profile.clone());
    let of_pod = || pod.spec().security_context.as_ref()?.app_armor_profile.clone();
    own.or_else(of_pod).or_else(|| of_annotation(pod, container))
}

/// `container.apparmor.security.beta.kubernetes.io/NAME: runtime/default | unconfined | localhost/PROFILE`.
fn of_annotation(pod: &ValidPod, container: &Container) -> Option<AppArmorProfile> {
    let key = format!("container.apparmor.security.beta.kubernetes.io/{}", container.name);
    let profile =
        |type_: &str, name: Option<&str>| AppArmorProfile { type_: type_.into(), localhost_profile: name.map(str::to_owned) };
    match pod.metadata.annotations.as_ref()?.get(&key)?.as_str() {
        "runtime/default" => Some(profile("RuntimeDefault", None)),
        "unconfined" => Some(profile("Unconfined", None)),
        other => other.strip_prefix("localhost/").map(|name| profile("Localhost", Some(name))),
    }
}

/// Whether some container of the pod can run only under AppArmor.
pub fn needs_apparmor(pod: &ValidPod) -> bool {
    pod.all_containers().filter_map(|c| apparmor_profile(pod, c)).any(|profile| profile.type_ != "Unconfined")
}

/// Whether some container of the pod has SELinux options.
pub fn names_selinux(pod: &ValidPod) -> bool {
    let own = |c: &Container| c.security_context.as_ref().is_some_and(|s| s.se_linux_options.is_some());
    pod.spec().security_context.as_ref().is_some_and(|s| s.se_linux_options.is_some()) || pod.all_containers().any(own)
}

/// The profile that the container's exec takes on.
pub fn apparmor(pod: &ValidPod, container: &Container) -> Result<Option<String>, ConfigError> {
    let privileged = container.security_context.as_ref().and_then(|c| c.privileged) == Some(true);
    let Some(profile) = apparmor_profile(pod, container).filter(|_| !privileged) else { return Ok(None) };
    let name = match (profile.type_.as_str(), profile.localhost_profile) {
        ("Localhost", Some(name)) => name,
        ("RuntimeDefault", _) => DEFAULT_PROFILE.to_owned(),
        _ => return Ok(None),
    };
    if is_loaded(&name) {
        return Ok(Some(name));
    }
    Err(ConfigError::new(format!(
        "failed to generate apparmor spec opts: apparmor profile not found {name} (apparmor_parser loads it)"
    )))
}

fn is_loaded(name: &str) -> bool {
    let loaded = std::fs::read_to_string("/sys/kernel/security/apparmor/profiles").unwrap_or_default();
    loaded.lines().any(|line| line.rsplit_once(" (").is_some_and(|(loaded, _)| loaded == name))
}

/// The context of the container's processes: the options over `system_u:system_r:container_t:s0`.
pub fn selinux(pod: &ValidPod, container: &Container) -> Option<String> {
    let own = container.security_context.as_ref().and_then(|c| c.se_linux_options.as_ref());
    let options = own.or_else(|| pod.spec().security_context.as_ref()?.se_linux_options.as_ref())?;
    has_selinux().then(|| context(options))
}

fn context(options: &SELinuxOptions) -> String {
    let or = |value: &Option<String>, default: &str| value.clone().filter(|v| !v.is_empty()).unwrap_or_else(|| default.into());
    let (user, role) = (or(&options.user, "system_u"), or(&options.role, "system_r"));
    let (kind, level) = (or(&options.type_, "container_t"), or(&options.level, "s0"));
    format!("{user}:{role}:{kind}:{level}")
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::model::Origin;

    fn pod(annotations: &str, of_pod: &str, own: &str) -> ValidPod {
        let yaml = format!(
            "{{metadata: {{name: web, uid: u, annotations: {{{annotations}}}}}, spec: {{securityContext: {{{of_pod}}}, \
             containers: [{{name: app, securityContext: {{{own}}}}}]}}}}"
        );
        ValidPod::trusted(serde_yaml::from_str(&yaml).unwrap(), Origin::Stdin)
    }

    #[rstest]
    #[case("", "", "", None)]
    #[case("", "appArmorProfile: {type: RuntimeDefault}", "", Some(("RuntimeDefault", None)))]
    #[case("", "appArmorProfile: {type: RuntimeDefault}", "appArmorProfile: {type: Unconfined}", Some(("Unconfined", None)))]
    #[case("container.apparmor.security.beta.kubernetes.io/app: localhost/x", "", "", Some(("Localhost", Some("x"))))]
    #[case("container.apparmor.security.beta.kubernetes.io/other: localhost/x", "", "", None)]
    fn apparmor_profiles(
        #[case] annotations: &str,
        #[case] of_pod: &str,
        #[case] own: &str,
        #[case] expected: Option<(&str, Option<&str>)>,
    ) {
        let pod = pod(annotations, of_pod, own);
        let found = apparmor_profile(&pod, &pod.spec().containers[0]);
        assert_eq!(found.as_ref().map(|p| (p.type_.as_str(), p.localhost_profile.as_deref())), expected);
        assert_eq!(needs_apparmor(&pod), expected.is_some_and(|(kind, _)| kind != "Unconfined"));
    }

    #[test]
    fn selinux_options_lie_over_the_containers_default() {
        let options = SELinuxOptions { level: Some("s0:c123,c456".into()), ..SELinuxOptions::default() };
        assert_eq!(context(&options), "system_u:system_r:container_t:s0:c123,c456");
    }
}
