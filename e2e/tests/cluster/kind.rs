//! kind's node, as far as it goes without Docker: what the Dockerfile installs, in a root folder of Debian's, started as kubeadm's unit
//! starts it.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use e2e::{ControlPlane, Debian, is_true, package, workspace};

use super::{node, runs};

/// What a container's runtime does for kind's node: the root folder is `/`, with the machine's /proc, /sys and /dev.
const ENTER: &str = r#"set -e
root=$1 folder=$2; shift 2
mount --bind "$root" "$root"
for kind in proc sys dev; do mount --rbind "/$kind" "$root/$kind"; done
mkdir -p "$root$folder" "$root/old"
mount --bind "$folder" "$root$folder"
cd "$root"
pivot_root . old
umount --lazy /old
exec env "$@""#;

/// What kubeadm writes into a worker.
const KUBEADM: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\ncgroupDriver: systemd\nclusterDNS:\n\
                       - 10.96.0.10\nclusterDomain: cluster.local\nmaxPods: 90\nserverTLSBootstrap: true\nstaticPodPath: /etc/kubernetes/manifests\n";

#[test]
fn what_is_installed_in_kinds_node_joins_a_cluster_in_the_kubelets_place() {
    let node = node();
    let plane = ControlPlane::beside(&node);
    let debian = Debian::make();
    let write = |path: &str, text: &[u8], mode: u32| {
        fs::create_dir_all(debian.path(path).parent().unwrap()).unwrap();
        fs::write(debian.path(path), text).unwrap();
        fs::set_permissions(debian.path(path), fs::Permissions::from_mode(mode)).unwrap();
    };
    for file in ["install", "kubelet", "kubelet.conf"] {
        write(&format!("/kind/nodeagent/{file}"), &fs::read(workspace().join("e2e/kind").join(file)).unwrap(), 0o755);
    }
    let built = tempfile::tempdir().unwrap();
    write("/kind/nodeagent/nodeagent.deb", &fs::read(package(built.path())).unwrap(), 0o644);
    write("/usr/bin/kubelet", b"#!/bin/sh\necho Kubernetes v1.37.2\n", 0o755);
    debian.run(&["/kind/nodeagent/install"]).ok();
    assert_eq!(debian.run(&["kubelet", "--version"]).ok(), "Kubernetes v1.37.2\n");
    let enabled = debian.path("/etc/systemd/system/multi-user.target.wants/nodeagent.service");
    assert!(enabled.symlink_metadata().is_err(), "two agents would run");

    write("/var/lib/kubelet/config.yaml", KUBEADM.as_bytes(), 0o644);
    write("/etc/kubernetes/kubelet.conf", &fs::read(plane.node_kubeconfig("kind-worker")).unwrap(), 0o600);
    write("/etc/kubernetes/pki/ca.crt", &fs::read(plane.folder().join("pki/ca.crt")).unwrap(), 0o644);
    fs::create_dir_all(debian.path("/etc/kubernetes/manifests")).unwrap();
    // Tests share a machine: folders and cgroups of its own, which a kind's node has anyway.
    let own = format!("#!/bin/sh\nexec /usr/bin/nodeagent --cgroup-parent {} \"$@\"\n", node.cgroup_parent());
    write("/usr/local/bin/own", own.as_bytes(), 0o755);
    let mut command = node.command("unshare");
    command.args(["--mount", "sh", "-c", ENTER, "enter"]).arg(debian.root()).arg(node.folder());
    command.arg(format!("NODEAGENT_ROOT={}", node.root().display())).arg("NODEAGENT=/usr/local/bin/own");
    command.args(["/usr/bin/kubelet", "--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf"]);
    command.args(["--kubeconfig=/etc/kubernetes/kubelet.conf", "--config=/var/lib/kubelet/config.yaml"]);
    command.args([
        "--node-ip=192.0.2.1",
        "--hostname-override=kind-worker",
        "--runtime-cgroups=/system.slice/containerd.service",
    ]);
    node.start_agent_with(command, "");

    let pods = plane.until("node", "kind-worker", "is Ready", |node| {
        is_true(node, "Ready").then(|| node["status"]["capacity"]["pods"].as_str().map(ToOwned::to_owned))
    });
    assert_eq!(pods.as_deref(), Some("90"), "kubeadm's configuration counts");
    plane.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: web}, spec: {containers: [{name: web, image: localhost/nodeagent-demo:latest, \
         imagePullPolicy: Never, args: [serve]}]}}",
    );
    plane.until("pod", "web", "runs", runs);
    let names = node.pod("web").container("web").demo("read /etc/resolv.conf");
    assert!(names.contains("nameserver 10.96.0.10"), "{names}");
    plane.kubectl(&["delete", "pod", "web", "--grace-period=1"]).ok();
}
