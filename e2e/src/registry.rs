//! A registry on the box's loopback, with the images that `e2e/images/build` made, under their public names.

use std::path::{Path, PathBuf};

use serde_json::Value;

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

/// A copy of the storage below `folder`. Files are linked where they can be: whoever changes one replaces it.
fn own_storage(folder: &Path) -> PathBuf {
    let copy = folder.join("registry");
    let link = |how: &str| run(std::process::Command::new("cp").arg(how).arg(storage()).arg(&copy));
    if link("-al").code != 0 {
        std::fs::remove_dir_all(&copy).ok();
        link("-a").ok();
    }
    copy
}

/// The file with a blob's bytes, in a storage.
pub fn blob(storage: &Path, digest: &str) -> PathBuf {
    let hex = digest.trim_start_matches("sha256:");
    storage.join("docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data")
}

/// A manifest of library/NAME in a storage: what the tag names, and of an index our platform's.
pub fn manifest(storage: &Path, name: &str, tag: &str) -> Value {
    let link = storage.join(format!("docker/registry/v2/repositories/library/{name}/_manifests/tags/{tag}/current/link"));
    let read = |digest: &str| -> Value {
        let bytes = std::fs::read(blob(storage, digest)).expect("the storage has the manifest");
        serde_json::from_slice(&bytes).expect("a manifest is JSON")
    };
    let found = read(std::fs::read_to_string(link).expect("the storage has the tag").trim());
    let ours = |entry: &&Value| entry["platform"]["architecture"] == "amd64";
    match found["manifests"].as_array().and_then(|all| all.iter().find(ours)) {
        Some(entry) => read(entry["digest"].as_str().expect("an index has digests")),
        None => found,
    }
}

/// Puts other bytes in a file's place: never into the file, which may be linked.
pub fn replace(file: &Path, bytes: &[u8]) {
    std::fs::remove_file(file).and_then(|()| std::fs::write(file, bytes)).expect("the storage can be written");
}

/// Starts it in the box, its configuration below `folder`.
pub fn start(inside: &Isolated, folder: &Path) -> Running {
    start_on(inside, folder, &storage())
}

/// The same over a copy of the storage, to which this has been done.
pub fn start_after(damage: fn(&Path), inside: &Isolated, folder: &Path) -> Running {
    let copy = own_storage(folder);
    damage(&copy);
    start_on(inside, folder, &copy)
}

fn start_on(inside: &Isolated, folder: &Path, storage: &Path) -> Running {
    let configuration = folder.join("registry.yml");
    let text = format!(
        "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
         storage: {{filesystem: {{rootdirectory: {}}}, maintenance: {{readonly: {{enabled: true}}}}}}\nhttp: {{addr: \"{REGISTRY}\"}}\n",
        storage.display()
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
