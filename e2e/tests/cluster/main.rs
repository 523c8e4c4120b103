//! The node as one of a real cluster's: pods from a real API server, by real controllers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod adopt;
mod away;
mod chart;
mod csi;
mod disks;
mod join;
mod kind;
mod lines;
mod local;
mod logins;
mod mirror;
mod ranges;
mod resources;
mod shutdown;
mod told;

use e2e::{Builder, ControlPlane, NodeBox, eventually, is_true};
use serde_json::Value;

/// A node without an agent so far.
fn node() -> NodeBox {
    builder().config(CONFIGURATION).start()
}

/// The machine that tests run on may have a network add-on's configuration.
fn builder() -> Builder {
    NodeBox::builder().argument("--network").argument("bridge").without_agent()
}

/// The API server trusts no kubelet API whose certificate the cluster hasn't signed.
const CONFIGURATION: &str = "apiVersion: nodeagent.dev/v1\nkind: NodeAgentConfiguration\nserverTLSBootstrap: true\n";

fn runs(pod: &Value) -> Option<()> {
    (pod["status"]["phase"] == "Running" && is_true(pod, "Ready")).then_some(())
}

/// Waits until it runs.
fn uid(plane: &ControlPlane<'_>, pod: &str) -> String {
    plane.until("pod", pod, "runs", |pod| {
        runs(pod)?;
        pod["metadata"]["uid"].as_str().map(ToOwned::to_owned)
    })
}

const WEB: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  terminationGracePeriodSeconds: 5
  containers:
  - {name: web, image: localhost/nodeagent-demo:latest, imagePullPolicy: Never, args: [serve], envFrom: [{configMapRef: {name: app}}]}
  - {name: side, image: localhost/nodeagent-demo:latest, imagePullPolicy: Never, args: [sleep]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: app}
data: {GREETING: hello}
";

#[test]
fn a_pod_of_the_api_server_runs_is_shown_there_survives_the_agent_and_goes() {
    let node = node();
    let plane = ControlPlane::beside(&node);
    plane.joins(&node);
    plane.apply(WEB);
    let uid = uid(&plane, "web");
    assert_eq!(node.pod("web").uid(), uid);
    // Its address is of the range that the cluster gave the node.
    let range = plane.until("node", "node", "has a range", |node| node["spec"]["podCIDR"].as_str().map(ToOwned::to_owned));
    let prefix = range.trim_end_matches("0/24");
    assert!(node.pod("web").ip().starts_with(prefix), "{} is not of {range}", node.pod("web").ip());
    // The service account's token and the cluster's CA are where programs look for them.
    let volume = "/var/run/secrets/kubernetes.io/serviceaccount";
    let read = |file: &str| node.pod("web").container("web").demo(&format!("read {volume}/{file}"));
    assert!(read("token").starts_with("ey"), "a JSON web token");
    assert!(read("ca.crt").contains("BEGIN CERTIFICATE"));
    assert_eq!(read("namespace").trim(), "default");
    // By the API server, which asks our kubelet API: logs, exec with its exit code.
    let logs = plane.kubectl(&["logs", "web", "-c", "web"]).ok();
    assert!(!logs.is_empty());
    let said = plane.kubectl(&["exec", "web", "-c", "side", "--", "/demo", "echo", "by the API server"]).ok();
    assert_eq!(said.trim(), "by the API server");
    let pid = node.pod("web").container("web").host_pid();

    node.kill_agent();
    plane.joins(&node);
    plane.until("pod", "web", "runs still", |pod| {
        runs(pod)?;
        (pod["metadata"]["uid"] == uid.as_str()).then_some(())
    });
    assert_eq!(node.pod("web").container("web").host_pid(), pid);

    plane.kubectl(&["delete", "pod", "web", "--wait=false"]).ok();
    plane.is_gone("pod", "web");
    node.pod("web").is_gone();
}

#[test]
fn the_real_controllers_run_a_deployment_and_a_job_to_their_ends() {
    let node = node();
    let plane = ControlPlane::beside(&node);
    plane.joins(&node);
    plane.kubectl(&["create", "deployment", "web", "--image=localhost/nodeagent-demo:latest", "--replicas=3"]).ok();
    plane.kubectl(&["create", "job", "once", "--image=localhost/nodeagent-demo:latest", "--", "/demo", "echo", "done"]).ok();
    plane.until("deployment", "web", "has three", |object| (object["status"]["readyReplicas"] == 3).then_some(()));
    plane.until("job", "once", "is complete", |object| is_true(object, "Complete").then_some(()));
    plane.kubectl(&["delete", "deployment/web", "job/once"]).ok();
    eventually("all pods are gone", || {
        let pods = plane.kubectl(&["get", "pods", "-o", "name"]).ok();
        if pods.trim().is_empty() { Ok(()) } else { Err(pods) }
    });
}
