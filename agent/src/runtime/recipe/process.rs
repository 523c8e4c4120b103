//! A container's first process: command, user, working directory. Pure: the spec's word against the image's.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, PodSecurityContext, SecurityContext};
use oci_spec::image::{Config, ImageConfiguration};
use podholder::protocol::User;

use super::env;
use crate::model::ValidPod;
use crate::runtime::error::ConfigError;

/// What applies when an image says nothing.
pub const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// argv by the table of
/// <https://kubernetes.io/docs/tasks/inject-data-application/define-command-argument-container/#notes>.
pub fn argv(container: &Container, image: Option<&Config>, env: &[(String, String)]) -> Result<Vec<String>, ConfigError> {
    let some = |list: &Option<Vec<String>>| list.clone().filter(|l| !l.is_empty());
    let own = |list: &Option<Vec<String>>| {
        some(list).map(|words| words.iter().map(|word| env::expand_by(word, env)).collect::<Vec<_>>())
    };
    let of_image = |list: Option<&Option<Vec<String>>>| list.and_then(some).unwrap_or_default();
    let (command, args) = (own(&container.command), own(&container.args));
    let entrypoint = || of_image(image.map(Config::entrypoint));
    let argv = match (command, args) {
        (Some(command), args) => [command, args.unwrap_or_default()].concat(),
        (None, Some(args)) => [entrypoint(), args].concat(),
        (None, None) => [entrypoint(), of_image(image.map(Config::cmd))].concat(),
    };
    match argv.first().map(String::as_str) {
        None | Some("") => Err(ConfigError::new("no command specified: neither the container's `command` nor the image has one")),
        Some(_) => Ok(argv),
    }
}

/// Where it starts. A path that isn't absolute is taken from `/`.
pub fn working_dir(container: &Container, image: Option<&Config>) -> String {
    let own = container.working_dir.as_deref().filter(|dir| !dir.is_empty());
    let dir = own.or_else(|| image?.working_dir().as_deref()).unwrap_or("/");
    if dir.starts_with('/') { dir.into() } else { format!("/{dir}") }
}

/// Whose process it is: the container's word, then the pod's, then the image's.
pub fn user(pod: &ValidPod, container: &Container, image: Option<&Config>) -> Result<User, ConfigError> {
    let of_pod = pod.spec().security_context.as_ref();
    let own = container.security_context.as_ref();
    let uid = own.and_then(|c| c.run_as_user).or_else(|| of_pod?.run_as_user);
    let gid = own.and_then(|c| c.run_as_group).or_else(|| of_pod?.run_as_group);
    let non_root = own.and_then(|c| c.run_as_non_root).or_else(|| of_pod?.run_as_non_root) == Some(true);
    let image_user = image.and_then(|c| c.user().as_deref()).unwrap_or_default();
    if non_root {
        must_not_be_root(pod, container, uid, image_user)?;
    }
    let groups = of_pod.map(extra_groups).transpose()?.unwrap_or_default();
    Ok(User {
        spec: uid.map_or_else(|| image_user.to_owned(), |uid| uid.to_string()),
        gid: gid.map(id).transpose()?,
        groups,
        strict_groups: of_pod.and_then(|c| c.supplemental_groups_policy.as_deref()) == Some("Strict"),
    })
}

fn id(number: i64) -> Result<u32, ConfigError> {
    u32::try_from(number).map_err(|_| ConfigError::new(format!("{number} is no user or group ID")))
}

fn extra_groups(context: &PodSecurityContext) -> Result<Vec<u32>, ConfigError> {
    let numbers = context.supplemental_groups.iter().flatten().copied().chain(context.fs_group);
    let unique: BTreeSet<u32> = numbers.map(id).collect::<Result<_, _>>()?;
    Ok(unique.into_iter().collect())
}

/// The kubelet's check and words.
fn must_not_be_root(pod: &ValidPod, container: &Container, uid: Option<i64>, image_user: &str) -> Result<(), ConfigError> {
    let place = format!("(pod: \"{}_{}({})\", container: {})", pod.name(), pod.namespace(), pod.uid(), container.name);
    let image_user = image_user.split(':').next().unwrap_or_default();
    match (uid, image_user, image_user.parse::<u32>()) {
        (Some(0), _, _) => Err(ConfigError::new(format!("container's runAsUser breaks non-root policy {place}"))),
        (Some(_), _, _) => Ok(()),
        (None, "", _) | (None, _, Ok(0)) => {
            Err(ConfigError::new(format!("container has runAsNonRoot and image will run as root {place}")))
        }
        (None, _, Ok(_)) => Ok(()),
        (None, name, Err(_)) => Err(ConfigError::new(format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root {place}"
        ))),
    }
}

/// Whether exec may give no more rights than its caller has. Kubernetes' default is that it may: only
/// `allowPrivilegeEscalation: false` forbids it.
pub fn no_new_privs(context: Option<&SecurityContext>) -> bool {
    context.is_some_and(|c| c.allow_privilege_escalation == Some(false) && c.privileged != Some(true))
}

/// The signal that asks it to end: lifecycle.stopSignal, else the image's, else SIGTERM.
pub fn stop_signal(container: &Container, image: &ImageConfiguration) -> i32 {
    let own = container.lifecycle.as_ref().and_then(|l| l.stop_signal.as_deref());
    let of_image = || image.config().as_ref().and_then(|c| c.stop_signal().as_deref());
    own.or_else(of_image).and_then(signal).unwrap_or(nix::libc::SIGTERM)
}

/// `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`.
pub fn signal(name: &str) -> Option<i32> {
    let name = name.trim().to_ascii_uppercase();
    if let Ok(number) = name.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let bare = name.strip_prefix("SIG").unwrap_or(&name);
    let offset = |text: &str| if text.is_empty() { Some(0) } else { text.get(1..)?.parse::<i32>().ok() };
    if let Some(rest) = bare.strip_prefix("RTMIN") {
        return offset(rest).map(|n| 34 + n).filter(|n| (34..=64).contains(n));
    }
    if let Some(rest) = bare.strip_prefix("RTMAX") {
        return offset(rest).map(|n| 64 - n).filter(|n| (34..=64).contains(n));
    }
    format!("SIG{bare}").parse::<nix::sys::signal::Signal>().ok().map(|s| s as i32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Origin;
    use rstest::rstest;

    fn config(json: &str) -> Config {
        serde_json::from_str(json).unwrap()
    }

    fn container(yaml: &str) -> Container {
        serde_yaml::from_str(&format!("{{name: app, {yaml}}}")).unwrap()
    }

    // The table of the Kubernetes documentation, and its edges.
    #[rstest]
    #[case("", &["/ep-1", "foo", "bar"])]
    #[case("command: [/ep-2]", &["/ep-2"])]
    #[case("args: [zoo, boo]", &["/ep-1", "zoo", "boo"])]
    #[case("command: [/ep-2], args: [zoo, boo]", &["/ep-2", "zoo", "boo"])]
    #[case("command: [], args: []", &["/ep-1", "foo", "bar"])]
    #[case("args: ['$(A)', '$$(A)', '$(B)']", &["/ep-1", "1", "$(A)", "$(B)"])]
    fn command_matrix(#[case] yaml: &str, #[case] expected: &[&str]) {
        let image = config(r#"{"Entrypoint": ["/ep-1"], "Cmd": ["foo", "bar"]}"#);
        let env = [("A".to_owned(), "1".to_owned())];
        assert_eq!(argv(&container(yaml), Some(&image), &env).unwrap(), expected);
    }

    #[test]
    fn nothing_to_run_is_an_error() {
        assert!(argv(&container(""), None, &[]).unwrap_err().message.starts_with("no command specified"));
    }

    #[rstest]
    #[case("", "", "", None)]
    #[case("", "", "bob:staff", None)]
    #[case("runAsUser: 5", "", "5", None)]
    #[case("runAsUser: 5, runAsGroup: 6", "runAsUser: 7", "7", Some(6))]
    #[case("", "runAsGroup: 6", "bob:staff", Some(6))]
    fn users(#[case] of_pod: &str, #[case] own: &str, #[case] spec: &str, #[case] gid: Option<u32>) {
        let image = config(&format!(r#"{{"User": "{}"}}"#, if spec.contains(':') { spec } else { "" }));
        let user = user(&pod(of_pod), &container(&format!("securityContext: {{{own}}}")), Some(&image)).unwrap();
        assert_eq!((user.spec.as_str(), user.gid), (spec, gid));
    }

    #[rstest]
    #[case("runAsUser: 0", "1000", "container's runAsUser breaks non-root policy (pod: \"web_default(u)\", container: app)")]
    #[case("", "", "container has runAsNonRoot and image will run as root (pod: \"web_default(u)\", container: app)")]
    #[case("", "0:0", "container has runAsNonRoot and image will run as root (pod: \"web_default(u)\", container: app)")]
    #[case(
        "",
        "bob",
        "container has runAsNonRoot and image has non-numeric user (bob), cannot verify user is non-root (pod: \"web_default(u)\", container: app)"
    )]
    fn non_root_policy(#[case] own: &str, #[case] image_user: &str, #[case] message: &str) {
        let image = config(&format!(r#"{{"User": "{image_user}"}}"#));
        let app = container(&format!("securityContext: {{runAsNonRoot: true, {own}}}"));
        assert_eq!(user(&pod(""), &app, Some(&image)).unwrap_err().message, message);
    }

    #[test]
    fn groups_are_the_pods_and_fs_group() {
        let user = user(&pod("supplementalGroups: [9, 8], fsGroup: 8"), &container(""), None).unwrap();
        assert_eq!(user.groups, [8, 9]);
    }

    #[rstest]
    #[case("SIGTERM", Some(15))]
    #[case("quit", Some(3))]
    #[case("9", Some(9))]
    #[case("SIGRTMIN+3", Some(37))]
    #[case("RTMAX-1", Some(63))]
    #[case("RTMIN+99", None)]
    #[case("0", None)]
    #[case("SIGNOPE", None)]
    fn signals(#[case] name: &str, #[case] expected: Option<i32>) {
        assert_eq!(signal(name), expected);
    }

    fn pod(security: &str) -> ValidPod {
        let yaml = format!(
            "{{metadata: {{name: web, namespace: default, uid: u}}, spec: {{containers: [{{name: app}}], securityContext: {{{security}}}}}}}"
        );
        ValidPod::trusted(serde_yaml::from_str(&yaml).unwrap(), Origin::Stdin)
    }
}
