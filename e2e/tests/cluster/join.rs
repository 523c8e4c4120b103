//! How a node comes into a cluster, and stays in it: certificates, its Node object, its name.

use std::path::PathBuf;

use e2e::{ControlPlane, NodeBox, eventually, is_true};

use super::{node, runs};

fn pki(node: &NodeBox, name: &str) -> PathBuf {
    node.root().join("var/lib/nodeagent/pki").join(name)
}

fn pod(name: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{nodeName: node, terminationGracePeriodSeconds: 2, \
         containers: [{{name: main, image: localhost/nodeagent-demo:latest, imagePullPolicy: Never, args: [serve]}}]}}}}\n---\n"
    )
}

#[test]
fn a_bootstrap_token_becomes_certificates_that_are_renewed_and_used() {
    let node = node();
    // What is signed lives half a minute: each certificate is replaced while the test looks.
    let plane = ControlPlane::with(&node, &["--signing", "30s"]);
    let bootstrap = PathBuf::from(plane.script(&["bootstrap"]).ok().trim());
    let mut command = node.agent_command();
    command.arg("--bootstrap-kubeconfig").arg(&bootstrap);
    node.start_agent_with(command, "");
    plane.until("node", "node", "is Ready", |node| is_true(node, "Ready").then_some(()));
    let (client, server) = (pki(&node, "kubelet-client-current.pem"), pki(&node, "kubelet-server-current.pem"));
    let first = std::fs::read_link(&client).expect("a link");
    plane.approves(&node);
    let first_server = std::fs::read_link(&server).expect("a link");
    let kubeconfig = node.root().join("var/lib/nodeagent/kubeconfig");
    let text = std::fs::read_to_string(&kubeconfig).expect("it is written");
    assert!(text.contains("kubelet-client-current.pem") && !text.contains("token"), "{text}");

    eventually("the client certificate is renewed twice", || {
        let now = std::fs::read_link(&client).expect("a link");
        let before_last = pki(&node, first.to_str().unwrap());
        if now != first && !before_last.exists() { Ok(()) } else { Err(node.agent_output()) }
    });
    eventually("the serving certificate is renewed", || {
        plane.script(&["approve"]).ok();
        if std::fs::read_link(&server).expect("a link") == first_server { Err(node.agent_output()) } else { Ok(()) }
    });
    // The first ones have expired: what happens now is by their successors.
    plane.apply(&pod("late"));
    plane.until("pod", "late", "runs", runs);
    eventually("exec is by a certificate that the API server trusts", || {
        plane.script(&["approve"]).ok();
        plane.kubectl(&["exec", "late", "--", "/demo", "echo", "trusted"]).result()
    });

    // An agent that comes after needs no token.
    std::fs::remove_file(&bootstrap).expect("it is there");
    node.kill_agent();
    let mut command = node.agent_command();
    command.arg("--kubeconfig").arg(&kubeconfig);
    node.start_agent_with(command, "");
    plane.kubectl(&["delete", "pod", "late", "--wait=false"]).ok();
    plane.is_gone("pod", "late");
}

#[test]
fn a_name_that_a_living_node_has_is_not_taken() {
    let node = node();
    let plane = ControlPlane::with(&node, &[]);
    // The other one: a Node of another machine, with a lease that somebody renews.
    plane.apply(
        "apiVersion: v1\nkind: Node\nmetadata: {name: node, annotations: {nodeagent.dev/instance: another}}\n---\n\
         apiVersion: coordination.k8s.io/v1\nkind: Lease\nmetadata: {name: node, namespace: kube-node-lease}\n\
         spec: {holderIdentity: node, leaseDurationSeconds: 40, renewTime: \"2026-01-01T00:00:00.000000Z\"}\n",
    );
    plane.node_kubeconfig("node");
    plane.apply(&pod("theirs"));
    node.apply("ours.yaml", &pod("ours"));
    plane.starts(&node);
    node.pod("ours").is_ready();
    node.tells(&["NodeNameTaken", "--node-name", "kubectl delete node node"]);
    // It renews: the clock of the one who looks doesn't matter.
    plane
        .kubectl(&[
            "-n",
            "kube-node-lease",
            "patch",
            "lease",
            "node",
            "--type=merge",
            "-p",
            r#"{"spec":{"renewTime":"2026-01-01T00:00:10.000000Z"}}"#,
        ])
        .ok();
    assert!(node.pod("theirs").get().is_none());
    // It is gone, and says so.
    plane.kubectl(&["delete", "node", "node"]).ok();
    plane.until("node", "node", "is Ready", |node| is_true(node, "Ready").then_some(()));
    plane.until("pod", "theirs", "runs", runs);
    node.pod("ours").is_ready();
}

fn says(node: &NodeBox, words: &str) {
    eventually(&format!("the agent says {words:?}"), || {
        let output = node.agent_output();
        if output.contains(words) { Ok(()) } else { Err(output) }
    });
}

#[test]
fn a_kubeconfig_of_another_cluster_or_node_is_told_and_mended_in_place() {
    let node = node();
    let plane = ControlPlane::beside(&node);
    let kubeconfig = plane.folder().join("node.kubeconfig");
    // Of a node of another name: the API server lets it register nobody but itself.
    let other = std::fs::read_to_string(plane.node_kubeconfig("other")).unwrap();
    // Of another cluster: its CA never signed this API server's certificate.
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let foreign = node.folder().join("foreign-ca.pem");
    let key = rcgen::KeyPair::generate().unwrap();
    std::fs::write(&foreign, params.self_signed(&key).unwrap().pem()).unwrap();
    let begin = other.find("certificate-authority-data:").unwrap();
    let end = begin + other[begin..].find('}').unwrap();
    let elsewhere = format!("{}certificate-authority: {}{}", &other[..begin], foreign.display(), &other[end..]);
    std::fs::write(&kubeconfig, elsewhere).unwrap();
    node.apply("ours.yaml", &pod("ours"));
    plane.starts(&node);
    node.pod("ours").is_ready();
    says(&node, "UnknownIssuer");
    std::fs::write(&kubeconfig, other).unwrap();
    says(&node, "is not allowed to");
    assert!(plane.get("node", "node").is_none());
    // The right one is written over it: no restart is needed.
    plane.node_kubeconfig("node");
    plane.until("node", "node", "is Ready", |node| is_true(node, "Ready").then_some(()));
    node.pod("ours").is_ready();
}

#[test]
fn a_node_that_somebody_deletes_comes_back_and_its_pods_run_on() {
    let node = node();
    let plane = ControlPlane::beside(&node);
    plane.joins(&node);
    plane.apply(&pod("stays"));
    let uid = super::uid(&plane, "stays");
    node.apply("ours.yaml", &pod("ours"));
    plane.until("pod", "ours-node", "runs", runs);
    let id = node.pod("stays").container("main").id();
    let first = plane.get("node", "node").unwrap()["metadata"]["uid"].clone();
    plane.kubectl(&["delete", "node", "node"]).ok();
    plane.until("node", "node", "is another, and Ready", |node| {
        (is_true(node, "Ready") && node["metadata"]["uid"] != first).then_some(())
    });
    says(&node, "the Node object was deleted; it is registered again");
    let renewed = || {
        let lease = plane.kubectl(&["-n", "kube-node-lease", "get", "lease", "node", "-o", "jsonpath={.spec.renewTime}"]);
        lease.ok()
    };
    let before =
        eventually("it has a lease", || Some(renewed()).filter(|time| !time.is_empty()).ok_or_else(|| node.agent_output()));
    eventually("the lease is renewed", || if renewed() == before { Err(node.agent_output()) } else { Ok(()) });
    plane.until("pod", "ours-node", "runs", runs);
    assert_eq!(super::uid(&plane, "stays"), uid);
    assert_eq!(node.pod("stays").container("main").id(), id);
    plane.apply(&pod("late"));
    plane.until("pod", "late", "runs", runs);
}
