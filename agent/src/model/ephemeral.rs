//! Ephemeral containers as containers: what they have in common with the others. Pure.

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, PodSpec};

/// An ephemeral container without what makes it one.
pub fn as_container(e: &EphemeralContainer) -> Container {
    Container {
        name: e.name.clone(),
        image: e.image.clone(),
        image_pull_policy: e.image_pull_policy.clone(),
        command: e.command.clone(),
        args: e.args.clone(),
        working_dir: e.working_dir.clone(),
        env: e.env.clone(),
        env_from: e.env_from.clone(),
        security_context: e.security_context.clone(),
        stdin: e.stdin,
        stdin_once: e.stdin_once,
        tty: e.tty,
        termination_message_path: e.termination_message_path.clone(),
        termination_message_policy: e.termination_message_policy.clone(),
        volume_devices: e.volume_devices.clone(),
        volume_mounts: e.volume_mounts.clone(),
        ..Container::default()
    }
}

/// The pod's ephemeral containers.
pub fn of(spec: &PodSpec) -> impl Iterator<Item = Container> {
    spec.ephemeral_containers.iter().flatten().map(as_container)
}

/// Adds those of `old` that `new` doesn't name: what was added to a running pod stays as long as the pod does.
pub fn keep(old: &PodSpec, new: &mut PodSpec) {
    let named = |spec: &PodSpec, name: &str| spec.ephemeral_containers.iter().flatten().any(|e| e.name == name);
    let kept: Vec<EphemeralContainer> =
        old.ephemeral_containers.iter().flatten().filter(|e| !named(new, &e.name)).cloned().collect();
    if !kept.is_empty() {
        let all = new.ephemeral_containers.get_or_insert_default();
        all.splice(0..0, kept);
    }
}
