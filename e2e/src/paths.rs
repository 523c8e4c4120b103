//! Where things are.

use std::path::{Path, PathBuf};

/// The workspace's folder.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("e2e is in the workspace").to_path_buf()
}

/// Cargo's target folder: found from the running test, so that CARGO_TARGET_DIR needs no thought.
pub fn target() -> PathBuf {
    let program = std::env::current_exe().expect("a program has a path");
    let profile = program.ancestors().find(|path| path.join("deps").is_dir()).expect("cargo runs this");
    profile.parent().expect("a profile's folder is in target/").to_path_buf()
}

/// A program of the workspace, as built in the profile of the running test; `NODEAGENT_PROFILE` names another, such as release.
pub fn binary(name: &str) -> PathBuf {
    let program = std::env::current_exe().expect("a program has a path");
    let same = program.ancestors().find(|path| path.join("deps").is_dir()).expect("cargo runs this").to_path_buf();
    let folder = std::env::var_os("NODEAGENT_PROFILE").map_or(same, |profile| target().join(profile));
    let path = folder.join(name);
    assert!(path.exists(), "{} is not built: cargo build --workspace", path.display());
    path
}

/// A program of e2e/plugins.
pub fn plugin(name: &str) -> PathBuf {
    let path = target().join("e2e/plugins").join(name);
    assert!(path.exists(), "{} is not built: make plugins (needs Go)", path.display());
    path
}
