//! The chart: what helm makes of it, which values it refuses, and what its installer does to a node.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::{Output, Running, binary, run, workspace};
use rstest::rstest;

fn helm(words: &[&str]) -> Output {
    let helm = workspace().join("target/e2e/bin/helm");
    assert!(helm.exists(), "helm is not built: make helm");
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(helm);
    command.env("HELM_CACHE_HOME", home.path()).env("HELM_CONFIG_HOME", home.path()).env("HELM_DATA_HOME", home.path());
    run(command.env_remove("KUBECONFIG").current_dir(workspace().join("charts")).args(words))
}

fn template(words: &[&str]) -> Output {
    helm(&[&["template", "na", "nodeagent", "--namespace", "kube-system", "--kube-version", "1.37.2"], words].concat())
}

#[test]
fn lint_has_nothing_to_say() {
    let output = helm(&["lint", "nodeagent", "--strict"]).ok();
    assert!(output.contains("0 chart(s) failed"), "{output}");
}

#[test]
fn a_chart_as_it_comes_has_all_that_a_node_needs() {
    let all = template(&["--set", "bootstrapToken.id=abcdef,bootstrapToken.secret=0123456789abcdef"]).ok();
    for line in [
        "kind: DaemonSet",
        "kind: RuntimeClass",
        "handler: nodeagent",
        "    nodeagent.dev/node: \"true\"",
        "  name: bootstrap-token-abcdef",
        "type: bootstrap.kubernetes.io/token",
        "  auth-extra-groups: system:bootstrappers:nodeagent",
        "  name: system:node-bootstrapper",
        "  name: system:certificates.k8s.io:certificatesigningrequests:nodeclient",
        "  name: system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
        "            privileged: true",
        "    port: 10350",
        "    kind: NodeAgentConfiguration",
        "    Type=notify",
    ] {
        assert!(all.lines().any(|l| l == line), "{line:?} in\n{all}");
    }
    // Both Secrets carry one token, also one that is made up.
    let made_up = template(&[]).ok();
    let of = |key: &str| {
        let values = made_up.lines().filter_map(|l| l.trim().strip_prefix(&format!("{key}: ")));
        values.map(str::to_owned).collect::<Vec<_>>()
    };
    for key in ["token-id", "token-secret"] {
        assert!(of(key).len() == 2 && of(key)[0] == of(key)[1], "{:?}", of(key));
    }
}

#[test]
fn values_change_what_they_name() {
    let instead = template(&["--set", "mode=instead,runtimeClass.create=false,rbac.create=false,config.maxPods=50"]).ok();
    assert!(instead.contains("    port: 10250") && instead.contains("    maxPods: 50"), "{instead}");
    assert!(!instead.contains("kind: RuntimeClass") && !instead.contains("kind: ClusterRoleBinding"), "{instead}");
    let without = template(&["--set", "bootstrapToken.create=false"]).ok();
    assert!(!without.contains("bootstrap.kubernetes.io/token") && !without.contains("nodeagent-token"), "{without}");
    // Its settings are settings: the agent's own program says so.
    let config = between(&instead, "  config.yaml: |\n", "\n  install.sh");
    assert!(config.contains("clientCAFile: /etc/nodeagent/pki/client-ca.crt"), "{config}");
    let file = tempfile::NamedTempFile::new().unwrap();
    let text: String = config.lines().map(|l| l.strip_prefix("    ").unwrap_or(l)).flat_map(|l| [l, "\n"]).collect();
    fs::write(file.path(), format!("{text}mtu: 1\n")).unwrap();
    let told = run(Command::new(binary("nodeagent")).arg("--config").arg(file.path())).fails();
    assert!(told.lines().count() == 1 && told.contains("mtu"), "{told}");
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
    let rest = text.split_once(start).unwrap_or_else(|| panic!("no {start:?} in\n{text}")).1;
    rest.split_once(end).map_or(rest, |(found, _)| found)
}

#[rstest]
#[case("mode=maybe", "mode")]
#[case("bootstrapToken.id=short", "bootstrapToken")]
#[case("apiServer.url=http://plain", "apiServer")]
#[case("kubeletAPI.port=99999", "kubeletAPI")]
#[case("unknown=1", "unknown")]
#[case("image.pullPolicy=Sometimes", "image")]
fn values_that_cannot_be_meant_are_refused(#[case] value: &str, #[case] named: &str) {
    let output = template(&["--set", value]).fails();
    assert!(output.contains("schema") && output.contains(named), "{output}");
}

/// A node's root folder, and a `nsenter` that notes what it is asked to do there.
struct Node(tempfile::TempDir);

impl Node {
    fn new() -> Self {
        let node = Self(tempfile::tempdir().unwrap());
        for folder in ["host/etc/kubernetes/pki", "chart", "token", "bin"] {
            fs::create_dir_all(node.path(folder)).unwrap();
        }
        let files = workspace().join("charts/nodeagent/files");
        fs::copy(files.join("nodeagent.service"), node.path("chart/nodeagent.service")).unwrap();
        let write = |name: &str, text: &str| fs::write(node.path(name), text).unwrap();
        write("chart/config.yaml", "kind: NodeAgentConfiguration\n");
        write("chart/cluster-ca.crt", "cluster's CA\n");
        write("token/token-id", "abcdef");
        write("token/token-secret", "0123456789abcdef");
        write("agent", "the program\n");
        write("host/etc/kubernetes/kubelet.conf", "clusters:\n- cluster:\n    server: https://10.0.0.1:6443\n");
        write("host/etc/kubernetes/pki/ca.crt", "clients' CA\n");
        write("bin/nsenter", &format!("#!/bin/sh\necho \"$@\" | sed 's/.* -- //' >> {}\n", node.path("asked").display()));
        fs::set_permissions(node.path("bin/nsenter"), fs::Permissions::from_mode(0o755)).unwrap();
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// Runs the installer until it is done, and tells what it has asked of the node.
    fn install(&self, mode: &str, says: &str) -> String {
        fs::remove_file(self.path("asked")).ok();
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("sh");
        command.arg(workspace().join("charts/nodeagent/files/install.sh")).env("PATH", path);
        command.envs([("MODE", mode), ("BINARY", "/usr/local/bin/nodeagent"), ("MANIFESTS", "/etc/nodeagent/manifests")]);
        command.envs([("API_SERVER", ""), ("NODE_NAME", "n1")]);
        for (name, place) in [("CHART", "chart"), ("TOKEN", "token"), ("HOST", "host"), ("AGENT", "agent"), ("DONE", "done")] {
            command.env(name, self.path(place));
        }
        let mut installer = Running::start(&mut command);
        installer.says(says);
        run(Command::new("kill").args(["-TERM", &installer.pid().to_string()])).ok();
        assert_eq!(installer.ends(), 0, "{}", installer.output());
        self.read("asked")
    }
}

fn mode_of(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn the_installer_writes_once_and_restarts_only_for_what_changed() {
    let node = Node::new();
    let asked = node.install("beside", "nodeagent runs on n1");
    assert!(
        asked.ends_with("systemctl daemon-reload\nsystemctl enable --quiet nodeagent\nsystemctl restart nodeagent\n"),
        "{asked}"
    );
    let unit = node.read("host/etc/systemd/system/nodeagent.service");
    let start = unit.lines().find(|l| l.starts_with("ExecStart=")).unwrap();
    assert_eq!(
        start.trim_end(),
        "ExecStart=/usr/local/bin/nodeagent --config /etc/nodeagent/config.yaml --node-name n1-nodeagent \
         --kubeconfig /etc/nodeagent/kubeconfig --bootstrap-kubeconfig /etc/nodeagent/bootstrap-kubeconfig"
    );
    let kubeconfig = node.read("host/etc/nodeagent/bootstrap-kubeconfig");
    assert!(kubeconfig.contains("https://10.0.0.1:6443") && kubeconfig.contains("\"abcdef.0123456789abcdef\""), "{kubeconfig}");
    assert_eq!(node.read("host/etc/nodeagent/pki/client-ca.crt"), "clients' CA\n");
    assert_eq!(node.read("host/etc/nodeagent/pki/cluster-ca.crt"), "cluster's CA\n");
    assert_eq!(mode_of(&node.path("host/etc/nodeagent/bootstrap-kubeconfig")), 0o600);
    assert_eq!(mode_of(&node.path("host/etc/nodeagent/manifests")), 0o700);
    assert_eq!(mode_of(&node.path("host/usr/local/bin/nodeagent")), 0o755);

    let again = node.install("beside", "nodeagent runs on n1");
    assert!(again.ends_with("systemctl start nodeagent\n") && !again.contains("restart"), "{again}");
    fs::write(node.path("agent"), "a newer program\n").unwrap();
    assert!(node.install("beside", "nodeagent runs on n1").contains("systemctl restart nodeagent"));
    assert_eq!(node.read("host/usr/local/bin/nodeagent"), "a newer program\n");
    fs::write(node.path("token/token-secret"), "fedcba9876543210").unwrap();
    assert!(node.install("beside", "nodeagent runs on n1").contains("systemctl restart nodeagent"));
}

#[test]
fn the_charts_unit_is_the_packages() {
    let without = |file: &str| {
        let text = fs::read_to_string(workspace().join(file)).unwrap();
        let kept = text.lines().filter(|l| !l.starts_with("ExecStart=") && !l.starts_with("Documentation="));
        kept.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(without("charts/nodeagent/files/nodeagent.service"), without("agent/packaging/nodeagent.service"));
}

#[test]
fn instead_of_the_kubelet_the_nodes_own_systemd_does_it() {
    let node = Node::new();
    let asked = node.install("instead", "the kubelet of n1 makes way");
    assert!(
        asked.contains("systemd-run --unit=nodeagent-takeover") && asked.contains("systemctl disable --now kubelet"),
        "{asked}"
    );
    assert!(node.read("host/etc/systemd/system/nodeagent.service").contains("--node-name n1 "));
}

#[test]
fn removal_takes_all_but_data() {
    let node = Node::new();
    node.install("beside", "nodeagent runs on n1");
    fs::create_dir_all(node.path("host/var/lib/nodeagent/claims")).unwrap();
    let asked = node.install("remove", "nodeagent is not on n1 any more");
    assert!(asked.contains("systemctl disable --now nodeagent") && asked.contains("--drain"), "{asked}");
    for gone in ["host/usr/local/bin/nodeagent", "host/etc/systemd/system/nodeagent.service", "host/etc/nodeagent/pki"] {
        assert!(!node.path(gone).exists(), "{gone} is still there");
    }
    assert!(node.path("host/var/lib/nodeagent/claims").exists());
    node.install("remove", "nodeagent is not on n1 any more");
}

#[test]
fn what_kubeadm_writes_is_translated_for_kinds_nodes() {
    let folder = tempfile::tempdir().unwrap();
    let kubeadm = folder.path().join("config.yaml");
    let text = "apiVersion: kubelet.config.k8s.io/v1beta1\ncgroupDriver: systemd\nclusterDNS:\n- 10.96.0.10\nclusterDomain: cluster.local\n\
                maxPods: 90\nresolvConf: /run/systemd/resolve/resolv.conf\nshutdownGracePeriod: 0s\n";
    fs::write(&kubeadm, text).unwrap();
    let written = folder.path().join("written.yaml");
    let bootstrap = folder.path().join("bootstrap.conf");
    fs::write(&bootstrap, "").unwrap();
    let mut command = Command::new("sh");
    command.arg(workspace().join("e2e/kind/kubelet"));
    command.args(["--config=/var/lib/kubelet/config.yaml", "--hostname-override=worker"]);
    command.arg(format!("--bootstrap-kubeconfig={}", bootstrap.display()));
    command.env("KUBEADM", &kubeadm).env("CONFIG", &written).env("NODEAGENT", "echo");
    let started = run(&mut command).ok();
    let expected = format!(
        "--config {} --node-name worker --kubeconfig /etc/kubernetes/kubelet.conf --bootstrap-kubeconfig={}\n",
        written.display(),
        bootstrap.display()
    );
    assert_eq!(started, expected);
    // Its own program finds nothing wrong with it: one setting more that is, is all that is told.
    let config = fs::read_to_string(&written).unwrap();
    assert!(config.contains("clusterDNS:\n- 10.96.0.10\n") && config.contains("maxPods: 90\n"), "{config}");
    fs::write(&written, format!("{config}mtu: 1\n")).unwrap();
    let told = run(Command::new(binary("nodeagent")).arg("--config").arg(&written)).fails();
    assert!(told.lines().count() == 1 && told.contains("mtu"), "{told}");
}
