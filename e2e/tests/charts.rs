//! The chart's installer and kind's stand-in for the kubelet: what they do to a node, and what they run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::{Running, binary, run, workspace};

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
        fs::read_to_string(self.path("asked")).unwrap_or_default()
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
fn the_kubelet_that_made_way_comes_back_before_the_agent_goes() {
    let node = Node::new();
    node.install("instead", "the kubelet of n1 makes way");
    let asked = node.install("remove", "the kubelet of n1 comes back");
    assert!(asked.starts_with("systemd-run --unit=nodeagent-return"), "{asked}");
    let order = ["disable --now nodeagent", "--drain", "rm -f /etc/nodeagent/kubelet-replaced", "enable --now kubelet"];
    let places: Vec<Option<usize>> = order.iter().map(|step| asked.find(step)).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{asked}");
    // What it runs on is the agent's: that goes once the kubelet has started this again.
    assert!(node.path("host/usr/local/bin/nodeagent").exists());
    fs::remove_file(node.path("host/etc/nodeagent/kubelet-replaced")).unwrap();
    node.install("remove", "nodeagent is not on n1 any more");
    assert!(!node.path("host/usr/local/bin/nodeagent").exists());
}

#[test]
fn removal_takes_all_but_data() {
    let node = Node::new();
    node.install("beside", "nodeagent runs on n1");
    fs::create_dir_all(node.path("host/var/lib/nodeagent/claims")).unwrap();
    // The agent has asked logind to wait longer.
    fs::create_dir_all(node.path("host/etc/systemd/logind.conf.d")).unwrap();
    fs::write(node.path("host/etc/systemd/logind.conf.d/99-nodeagent.conf"), "").unwrap();
    let asked = node.install("remove", "nodeagent is not on n1 any more");
    assert!(asked.contains("systemctl disable --now nodeagent") && asked.contains("--drain"), "{asked}");
    for gone in [
        "usr/local/bin/nodeagent",
        "etc/systemd/system/nodeagent.service",
        "etc/systemd/logind.conf.d/99-nodeagent.conf",
        "etc/nodeagent/pki",
    ]
    .map(|path| format!("host/{path}"))
    {
        assert!(!node.path(&gone).exists(), "{gone} is still there");
    }
    assert!(node.path("host/var/lib/nodeagent/claims").exists());
    node.install("remove", "nodeagent is not on n1 any more");
}

#[test]
fn what_kubeadm_writes_is_translated_for_kinds_nodes() {
    let folder = tempfile::tempdir().unwrap();
    let kubeadm = folder.path().join("config.yaml");
    let text = "apiVersion: kubelet.config.k8s.io/v1beta1\ncgroupDriver: systemd\nclusterDNS:\n- 10.96.0.10\nclusterDomain: cluster.local\n\
                maxPods: 90\nresolvConf: /run/systemd/resolve/resolv.conf\nshutdownGracePeriod: 0s\nshutdownGracePeriodCriticalPods: 0s\n";
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
    assert!(config.contains("shutdownGracePeriod: 0s\nshutdownGracePeriodCriticalPods: 0s\n"), "{config}");
    assert!(config.contains("masqueradeExcept: [10.85.0.0/16]\n"), "{config}");
    fs::write(&written, format!("{config}mtu: 1\n")).unwrap();
    let told = run(Command::new(binary("nodeagent")).arg("--config").arg(&written)).fails();
    assert!(told.lines().count() == 1 && told.contains("mtu"), "{told}");
}

/// All `.Values.a.b` that the templates read.
fn read_by_templates() -> Vec<String> {
    let folder = workspace().join("charts/nodeagent/templates");
    let texts = fs::read_dir(folder).unwrap().map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap());
    let mut found = Vec::new();
    for text in texts {
        assert!(text.split("{{").skip(1).all(|action| action.contains("}}")), "{text}");
        let ends = |c: char| !c.is_alphanumeric() && c != '.';
        found.extend(text.split(".Values.").skip(1).map(|rest| rest.split(ends).next().unwrap().to_owned()));
    }
    found.sort();
    found.dedup();
    found
}

/// Without helm: what is read is declared, and what is declared is described.
#[test]
fn the_charts_values_are_declared_and_described() {
    let folder = workspace().join("charts/nodeagent");
    let values: serde_json::Value = serde_yaml::from_str(&fs::read_to_string(folder.join("values.yaml")).unwrap()).unwrap();
    let schema: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(folder.join("values.schema.json")).unwrap()).unwrap();
    let read = read_by_templates();
    assert!(read.len() > 15, "{read:?}");
    for path in read {
        let pointer = format!("/{}", path.replace('.', "/"));
        assert!(values.pointer(&pointer).is_some(), "values.yaml has no {path}");
        let described = pointer.replace('/', "/properties/");
        assert!(schema.pointer(&described).is_some(), "values.schema.json has no {path}");
    }
    for (name, value) in values.as_object().unwrap() {
        let keys = value.as_object().into_iter().flatten().map(|(key, _)| key);
        let described = schema.pointer(&format!("/properties/{name}")).unwrap_or_else(|| panic!("no {name} in the schema"));
        for key in keys.filter(|_| described.get("properties").is_some()) {
            assert!(described.pointer(&format!("/properties/{key}")).is_some(), "no {name}.{key} in the schema");
        }
    }
}

#[test]
fn a_nodes_name_servers_are_those_of_its_kubelet_unless_the_values_name_others() {
    let node = Node::new();
    fs::create_dir_all(node.path("host/var/lib/kubelet")).unwrap();
    let kubelet = "apiVersion: kubelet.config.k8s.io/v1beta1\nclusterDNS:\n- 10.96.0.10\nclusterDomain: corp.local\ncpuManagerPolicy: none\n";
    fs::write(node.path("host/var/lib/kubelet/config.yaml"), kubelet).unwrap();
    node.install("beside", "nodeagent runs on n1");
    let written = node.read("host/etc/nodeagent/config.yaml");
    assert_eq!(written, "kind: NodeAgentConfiguration\nclusterDNS:\n- 10.96.0.10\nclusterDomain: corp.local\n");
    let own = "kind: NodeAgentConfiguration\nclusterDNS: [10.0.0.53]\n";
    fs::write(node.path("chart/config.yaml"), own).unwrap();
    node.install("beside", "nodeagent runs on n1");
    assert_eq!(node.read("host/etc/nodeagent/config.yaml"), format!("{own}clusterDomain: corp.local\n"));
}
