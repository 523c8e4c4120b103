//! The chart as helm sees it: what it makes of it, and which values it refuses.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::process::Command;

use e2e::{Output, binary, run, workspace};
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
    let config = between(&instead, "  config.yaml: |\n", "\n  nodeagent.service");
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
