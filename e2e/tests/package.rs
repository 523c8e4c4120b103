//! The Debian package, made by cargo-deb and installed into a system that debootstrap makes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::Command;

use e2e::{Debian, binary, package, run, workspace};

#[test]
fn it_installs_runs_upgrades_and_goes() {
    let folder = tempfile::tempdir().unwrap();
    let deb = package(folder.path());
    let debian = Debian::make();
    std::fs::copy(&deb, debian.path("nodeagent.deb")).unwrap();
    debian.run(&["dpkg", "--install", "/nodeagent.deb"]).ok();
    assert!(debian.run(&["nodeagent", "--version"]).ok().starts_with("nodeagent "));
    for file in [
        "/usr/bin/nodeagent",
        "/usr/lib/systemd/system/nodeagent.service",
        "/usr/share/man/man1/nodeagent.1.gz",
        "/usr/share/man/man1/nodeagent-get.1.gz",
        "/usr/share/bash-completion/completions/nodeagent",
        "/usr/share/zsh/vendor-completions/_nodeagent",
        "/usr/share/doc/nodeagent/copyright",
        "/etc/nodeagent/config.yaml",
    ] {
        let there = debian.path(file).exists() || debian.path(&file.replace("/usr/lib/", "/lib/")).exists();
        assert!(there, "{file} is not in the package");
    }
    assert!(debian.path("/etc/nodeagent/manifests").is_dir());
    let enabled = debian.path("/etc/systemd/system/multi-user.target.wants/nodeagent.service");
    assert!(enabled.symlink_metadata().is_ok(), "the service is not enabled");
    debian.run(&["systemd-analyze", "verify", "--man=no", "nodeagent.service"]).ok();
    let page = debian.run(&["sh", "-c", "zcat /usr/share/man/man1/nodeagent.1.gz"]).ok();
    assert!(page.contains(".TH nodeagent") && page.contains("manifests"), "{page}");

    // An edit of the settings outlives an upgrade, and a purge takes all but claims' data.
    std::fs::write(debian.path("/etc/nodeagent/config.yaml"), "# mine\n").unwrap();
    std::fs::create_dir_all(debian.path("/var/lib/nodeagent/claims/default/data")).unwrap();
    std::fs::create_dir_all(debian.path("/var/lib/nodeagent/images/blobs")).unwrap();
    debian.run(&["dpkg", "--install", "/nodeagent.deb"]).ok();
    assert_eq!(std::fs::read_to_string(debian.path("/etc/nodeagent/config.yaml")).unwrap(), "# mine\n");
    debian.run(&["dpkg", "--remove", "nodeagent"]).ok();
    assert!(!debian.path("/usr/bin/nodeagent").exists() && debian.path("/etc/nodeagent/config.yaml").exists());
    debian.run(&["dpkg", "--purge", "nodeagent"]).ok();
    assert!(!debian.path("/etc/nodeagent/config.yaml").exists() && !debian.path("/var/lib/nodeagent/images").exists());
    assert!(debian.path("/var/lib/nodeagent/claims/default/data").exists());
}

/// A package is for every Debian, whatever libc that has: `make deb` packs a static program, or nothing.
#[test]
fn a_program_that_needs_a_libc_is_not_packed() {
    let folder = tempfile::tempdir().unwrap();
    let said =
        run(Command::new(workspace().join("agent/packaging/deb")).arg(binary("nodeagent")).arg(folder.path())).fails_with(1);
    assert!(said.contains("nodeagent is not static: it needs /lib"), "{said}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
