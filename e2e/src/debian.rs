//! A minimal Debian with this agent's package, for tests of what is installed on a system.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Output, paths, run};

/// A root folder that debootstrap made; it ends with this value.
#[derive(Debug)]
pub struct Debian(tempfile::TempDir);

impl Debian {
    /// Makes it: systemd, and little else.
    #[track_caller]
    pub fn make() -> Self {
        let folder = tempfile::Builder::new().prefix("nodeagent-debian-").tempdir().expect("a temporary folder");
        let mut debootstrap = Command::new("debootstrap");
        debootstrap.args(["--variant=minbase", "--include=systemd", "bookworm"]).arg(folder.path());
        let made = run(&mut debootstrap);
        assert!(made.code == 0, "debootstrap must be installed (make packages) and reach a Debian mirror: {made}");
        Self(folder)
    }

    /// Its root folder.
    pub fn root(&self) -> &Path {
        self.0.path()
    }

    /// Where a path of it is on the machine.
    pub fn path(&self, inside: &str) -> PathBuf {
        self.0.path().join(inside.trim_start_matches('/'))
    }

    /// Runs a program in it.
    pub fn run(&self, words: &[&str]) -> Output {
        let mut command = Command::new("chroot");
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("DEBIAN_FRONTEND", "noninteractive");
        run(command.arg(self.0.path()).args(words))
    }
}

/// The agent's package, made in this folder, of the program that the tests run.
#[track_caller]
pub fn package(folder: &Path) -> PathBuf {
    let mut command = Command::new(paths::workspace().join("agent/packaging/deb"));
    run(command.arg("--dynamic").arg(paths::binary("nodeagent")).arg(folder).arg("--fast")).ok();
    let files = std::fs::read_dir(folder).expect("the folder is there").filter_map(|entry| Some(entry.ok()?.path()));
    files.into_iter().find(|path| path.extension().is_some_and(|e| e == "deb")).expect("cargo-deb makes a .deb")
}
