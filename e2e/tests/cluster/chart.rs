//! The chart as helm and a real API server see it: what they make of it, which values are refused, and a node that joins by it.

use std::fs;
use std::process::Command;

use e2e::{ControlPlane, Output, binary, is_true, run, workspace};
use rstest::rstest;

use super::node;

const MODES: [&str; 3] = ["beside", "instead", "remove"];

fn helm(words: &[&str]) -> Output {
    helm_by(Command::new(program()), words)
}

fn program() -> std::path::PathBuf {
    let helm = workspace().join("target/e2e/bin/helm");
    assert!(helm.exists(), "helm is not built: make helm");
    helm
}

fn helm_by(mut command: Command, words: &[&str]) -> Output {
    let home = tempfile::tempdir().unwrap();
    command.env("HELM_CACHE_HOME", home.path()).env("HELM_CONFIG_HOME", home.path()).env("HELM_DATA_HOME", home.path());
    run(command.env_remove("KUBECONFIG").current_dir(workspace().join("charts")).args(words))
}

#[test]
fn an_api_server_takes_all_of_it_and_a_node_joins_by_what_is_installed() {
    let node = node();
    let plane = ControlPlane::beside(&node);
    for mode in MODES {
        let made = template(&["--set", &format!("mode={mode}")]).ok();
        let file = plane.folder().join("chart.yaml");
        fs::write(&file, made).unwrap();
        let said = plane.kubectl(&["create", "--dry-run=server", "-f", file.to_str().unwrap()]).ok();
        for what in ["daemonset.apps/na", "runtimeclass.node.k8s.io/nodeagent", "configmap/na", "serviceaccount/na"] {
            assert!(said.contains(&format!("{what} created (server dry run)")), "{mode}: {what} in\n{said}");
        }
    }

    let admin = plane.folder().join("admin.kubeconfig");
    let mut command = node.outside().command("env");
    command.arg(program());
    let place = ["--kubeconfig", admin.to_str().unwrap(), "--namespace", "kube-system"];
    helm_by(command, &[&["install", "na", "nodeagent"][..], &place].concat()).ok();
    // What its pod would do on a node, as far as files go; the API server is said, since no kubelet is there to tell.
    let host = node.folder().join("host");
    let installer = Installer { node: &node, plane: &plane };
    installer.runs(&host);
    let unit = fs::read_to_string(host.join("etc/systemd/system/nodeagent.service")).unwrap();
    let start = unit.lines().find(|line| line.starts_with("ExecStart=")).unwrap();
    assert!(start.contains("--bootstrap-kubeconfig /etc/nodeagent/bootstrap-kubeconfig"), "{start}");
    let kubeconfig = host.join("etc/nodeagent/bootstrap-kubeconfig");
    let text = fs::read_to_string(&kubeconfig).unwrap();
    fs::write(&kubeconfig, text.replace("/etc/nodeagent", host.join("etc/nodeagent").to_str().unwrap())).unwrap();
    let mut command = node.agent_command();
    command.arg("--bootstrap-kubeconfig").arg(&kubeconfig);
    node.start_agent_with(command, "");
    plane.until("node", "node", "is Ready", |node| is_true(node, "Ready").then_some(()));
    // Its pods' class is known there, and leads to this node.
    plane.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: web}, spec: {runtimeClassName: nodeagent, containers: \
         [{name: web, image: localhost/nodeagent-demo:latest, imagePullPolicy: Never, args: [serve]}]}}",
    );
    plane.until("pod", "web", "runs", super::runs);
}

/// The chart's installer with what the cluster's objects say, on a host that is a folder.
struct Installer<'a> {
    node: &'a e2e::NodeBox,
    plane: &'a ControlPlane<'a>,
}

impl Installer<'_> {
    fn runs(&self, host: &std::path::Path) {
        let folder = self.node.folder();
        self.writes("configmap", "na", &folder.join("chart"));
        self.writes("secret", "na-bootstrap", &folder.join("token"));
        let ca =
            self.plane.kubectl(&["-n", "kube-system", "get", "configmap", "kube-root-ca.crt", "-o", r"jsonpath={.data.ca\.crt}"]);
        fs::write(folder.join("chart/cluster-ca.crt"), ca.ok()).unwrap();
        fs::create_dir_all(folder.join("bin")).unwrap();
        std::os::unix::fs::symlink("/bin/true", folder.join("bin/nsenter")).unwrap();
        let mut command = Command::new("sh");
        command.arg(workspace().join("charts/nodeagent/files/install.sh"));
        command.env("PATH", format!("{}:{}", folder.join("bin").display(), std::env::var("PATH").unwrap()));
        command.envs([
            ("MODE", "beside"),
            ("NODE_NAME", "node"),
            ("BINARY", "/usr/bin/nodeagent"),
            ("MANIFESTS", "/etc/nodeagent/manifests"),
        ]);
        command.env("API_SERVER", format!("https://{}:6443", e2e::OUTSIDE)).env("HOST", host).env("AGENT", binary("nodeagent"));
        for (name, place) in [("CHART", "chart"), ("TOKEN", "token"), ("DONE", "done")] {
            command.env(name, folder.join(place));
        }
        let mut installer = e2e::Running::start(&mut command);
        installer.says("nodeagent runs on node");
        run(Command::new("kill").args(["-TERM", &installer.pid().to_string()])).ok();
        assert_eq!(installer.ends(), 0, "{}", installer.output());
    }

    /// A volume of that object.
    fn writes(&self, kind: &str, name: &str, folder: &std::path::Path) {
        fs::create_dir_all(folder).unwrap();
        let text = self.plane.kubectl(&["-n", "kube-system", "get", kind, name, "-o", "json"]).ok();
        let object: serde_json::Value = serde_json::from_str(&text).unwrap();
        for (key, value) in object["data"].as_object().unwrap() {
            let value = value.as_str().unwrap();
            let file = folder.join(key);
            if kind == "secret" {
                let decoded = e2e::feed(Command::new("base64").arg("--decode"), value.as_bytes()).ok();
                fs::write(file, decoded).unwrap();
            } else {
                fs::write(file, value).unwrap();
            }
        }
    }
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
    let instead = template(&[
        "--set",
        "mode=instead,runtimeClass.create=false,rbac.create=false,config.maxPods=50,clusterCIDRs[0]=10.244.0.0/16",
    ])
    .ok();
    assert!(instead.contains("    port: 10250") && instead.contains("    maxPods: 50"), "{instead}");
    assert!(!instead.contains("kind: RuntimeClass") && !instead.contains("kind: ClusterRoleBinding"), "{instead}");
    let without = template(&["--set", "bootstrapToken.create=false"]).ok();
    assert!(
        !without.contains("bootstrap.kubernetes.io/token") && !without.contains("mountPath: /etc/nodeagent-token"),
        "{without}"
    );
    // Its settings are settings: the agent's own program says so.
    let config = between(&instead, "  config.yaml: |\n", "\n  nodeagent.service");
    assert!(config.contains("masqueradeExcept:\n    - 10.244.0.0/16"), "{config}");
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
#[case("clusterCIDRs[0]=10.0.0.1", "clusterCIDRs")]
#[case("image.pullPolicy=Sometimes", "image")]
fn values_that_cannot_be_meant_are_refused(#[case] value: &str, #[case] named: &str) {
    let output = template(&["--set", value]).fails();
    assert!(output.contains("schema") && output.contains(named), "{output}");
}
