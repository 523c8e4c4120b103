//! A registry on the box's loopback, with the images that `e2e/images/build` made, under their public names.

use std::path::{Path, PathBuf};

use crate::{Isolated, Running, paths, run};

/// Where it listens, inside the box.
pub const REGISTRY: &str = "127.0.0.1:5000";

/// The storage, built if it isn't there: a minute the first time, nothing after.
pub fn storage() -> PathBuf {
    let folder = paths::target().join("e2e");
    run(std::process::Command::new(paths::workspace().join("e2e/images/build")).arg(&folder)).ok();
    folder.join("registry")
}

/// What sends docker.io's pulls to that registry.
pub fn registries_conf() -> String {
    format!(
        "unqualified-search-registries = [\"docker.io\"]\n\
         [[registry]]\nprefix = \"docker.io\"\nlocation = \"docker.io\"\n\
         [[registry.mirror]]\nlocation = \"{REGISTRY}\"\ninsecure = true\n\
         [[registry]]\nlocation = \"{REGISTRY}\"\ninsecure = true\n"
    )
}

/// Starts it in the box, its configuration below `folder`.
pub fn start(inside: &Isolated, folder: &Path) -> Running {
    let configuration = folder.join("registry.yml");
    let text = format!(
        "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
         storage: {{filesystem: {{rootdirectory: {}}}, maintenance: {{readonly: {{enabled: true}}}}}}\nhttp: {{addr: \"{REGISTRY}\"}}\n",
        storage().display()
    );
    std::fs::write(&configuration, text).expect("the box's folder can be written");
    let registry = Running::start(inside.command("docker-registry").arg("serve").arg(&configuration));
    crate::eventually("the registry answers", || {
        run(inside.command("curl").args(["--silent", "--fail", &format!("http://{REGISTRY}/v2/")])).result()
    });
    registry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_has_the_images_in_the_three_formats_of_the_world() {
        let box_ = Isolated::machine();
        let folder = tempfile::tempdir().unwrap();
        let _registry = start(&box_, folder.path());
        let inspect = |image: &str| {
            let reference = format!("docker://{REGISTRY}/library/{image}");
            run(box_.command("skopeo").args(["inspect", "--raw", "--tls-verify=false", &reference])).ok()
        };
        assert!(inspect("debian:12").contains("vnd.oci.image.layer.v1.tar+gzip"));
        assert!(inspect("redis:7").contains("vnd.oci.image.layer.v1.tar+zstd"));
        assert!(inspect("nginx:1").contains("vnd.docker.distribution.manifest.v2+json"));
        assert!(inspect("busybox:1").contains("vnd.oci.image.index.v1+json"));
        let elsewhere = inspect("elsewhere:latest");
        assert!(elsewhere.contains("arm64") && !elsewhere.contains("amd64"), "{elsewhere}");
    }
}
