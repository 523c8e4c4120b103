//! The CNI plugin under somebody else's runtime: podman with `network_backend = "cni"`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use e2e::{INSIDE, Isolated, Output, Outside, eventually, run};

/// podman in a box, with a network of ours.
struct Podman {
    inside: Isolated,
    outside: Outside,
    folder: tempfile::TempDir,
}

const CONFIGURATION: &str = r#"
[containers]
log_driver = "k8s-file"
[network]
network_backend = "cni"
cni_plugin_dirs = ["DIR/bin"]
network_config_dir = "DIR/net.d"
default_network = "podnet"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
[engine.runtimes]
crun = ["DIR/crun"]
"#;

/// podman asks for rlimits above root's hard ones, which needs CAP_SYS_RESOURCE: not every machine's root has it.
const RUNTIME: &str = r#"#!/bin/sh
for word; do case "$last" in --bundle|-b) bundle=$word;; esac; last=$word; done
if [ -n "$bundle" ]; then
    jq 'del(.process.rlimits)' "$bundle/config.json" > "$bundle/config.new" && mv "$bundle/config.new" "$bundle/config.json"
fi
exec /usr/bin/crun "$@"
"#;

const CONFLIST: &str = r#"{"cniVersion": "1.0.0", "name": "podnet", "plugins": [{
    "type": "netplug", "bridge": "pods0", "isDefaultGateway": true, "ipMasq": true, "stateDir": "DIR/state",
    "capabilities": {"portMappings": true, "ips": true, "mac": true},
    "ipam": {"type": "host-local", "dataDir": "DIR/ipam", "ranges": [[{"subnet": "10.99.0.0/24"}]]}}]}"#;

impl Podman {
    fn new() -> Self {
        let inside = Isolated::machine();
        let outside = Outside::of(&inside);
        let folder = tempfile::Builder::new().prefix("nodeagent-e2e-podman-").tempdir().unwrap();
        let dir = folder.path();
        for name in ["bin", "net.d", "rootfs/bin"] {
            std::fs::create_dir_all(dir.join(name)).unwrap();
        }
        let put = |name: &str, text: &str, mode: u32| {
            std::fs::write(dir.join(name), text.replace("DIR", dir.to_str().unwrap())).unwrap();
            std::fs::set_permissions(dir.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
        };
        put("containers.conf", CONFIGURATION, 0o644);
        put("crun", RUNTIME, 0o755);
        put("net.d/10-podnet.conflist", CONFLIST, 0o644);
        std::os::unix::fs::symlink(e2e::binary("netplug"), dir.join("bin/netplug")).unwrap();
        std::fs::copy("/bin/busybox", dir.join("rootfs/bin/busybox")).expect("install busybox-static");
        // Its own, and no cgroups: nothing of podman's is left on the machine.
        for place in ["/run", "/sys/fs/cgroup"] {
            run(inside.command("mount").args(["-t", "tmpfs", "tmpfs", place])).ok();
        }
        Self { inside, outside, folder }
    }

    fn command(&self, words: &[&str]) -> Command {
        let dir = self.folder.path().display();
        let mut command = self.inside.command("env");
        command.arg(format!("CONTAINERS_CONF={dir}/containers.conf")).arg("podman").arg(format!("--root={dir}/storage"));
        command.args(["--runroot", "/run/storage", "--tmpdir", "/run/libpod"]).args(words);
        command
    }

    fn podman(&self, words: &[&str]) -> Output {
        run(&mut self.command(words))
    }

    /// A container that serves files.
    fn serve(&self, name: &str, more: &[&str]) {
        let rootfs = self.folder.path().join("rootfs");
        let words = [&["run", "--detach", "--cgroups=disabled", "--name", name], more, &["--rootfs"]].concat();
        run(self.command(&words).arg(rootfs).args(["/bin/busybox", "httpd", "-f", "-p", "80", "-h", "/bin"])).ok();
    }

    fn reserved(&self) -> usize {
        let entries = std::fs::read_dir(self.folder.path().join("ipam/podnet")).unwrap().flatten();
        entries.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with("10."))).count()
    }
}

#[test]
fn podman_runs_containers_on_our_network() {
    let podman = Podman::new();
    podman.serve("one", &["--network", "podnet:ip=10.99.0.9,mac=02:00:00:00:00:99", "--publish", "8080:80"]);
    podman.serve("two", &["--network", "podnet"]);
    let shown = podman.podman(&["inspect", "one", "--format", "{{json .NetworkSettings.Networks.podnet}}"]).ok();
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((&shown["IPAddress"], &shown["Gateway"]), (&"10.99.0.9".into(), &"10.99.0.1".into()), "{shown}");
    assert_eq!(shown["MacAddress"], "02:00:00:00:00:99");
    eventually("from outside", || podman.outside.curl(&format!("http://{INSIDE}:8080/busybox")).result().map(drop));
    let wget = ["exec", "two", "/bin/busybox", "wget", "-q", "-O", "/dev/null"];
    podman.podman(&[&wget[..], &["http://10.99.0.9/busybox"]].concat()).ok();
    // By the host's address too: hairpin.
    podman.podman(&[&wget[..], &[&format!("http://{INSIDE}:8080/busybox")]].concat()).ok();
    assert_eq!(podman.reserved(), 2);
    // podman reloads a network by DEL and ADD.
    podman.podman(&["network", "reload", "one"]).ok();
    eventually("from outside", || podman.outside.curl(&format!("http://{INSIDE}:8080/busybox")).result().map(drop));

    podman.podman(&["rm", "--force", "--time", "0", "one", "two"]).ok();
    assert_eq!(podman.reserved(), 0);
    podman.outside.curl(&format!("http://{INSIDE}:8080/busybox")).fails();
    assert!(!run(podman.inside.command("ip").arg("link")).ok().contains("veth"));
}
