//! While the API server is away: nothing of what it has asked for is lost, and nothing restarts when it is back.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::{ControlPlane, NodeBox, eventually};
use rstest::rstest;

use super::{node, runs, uid};

const VAULT: &str = "
apiVersion: v1
kind: Pod
metadata: {name: vault}
spec:
  terminationGracePeriodSeconds: 3
  containers:
  - name: main
    image: localhost/nodeagent-demo:latest
    imagePullPolicy: Never
    args: [serve]
    envFrom: [{configMapRef: {name: app}}]
    volumeMounts: [{name: keys, mountPath: /keys}]
  - {name: side, image: localhost/nodeagent-demo:latest, imagePullPolicy: Never, args: [sleep]}
  volumes: [{name: keys, secret: {secretName: keys}}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: app}
data: {GREETING: hello}
---
apiVersion: v1
kind: Secret
metadata: {name: keys}
stringData: {door: open sesame}
";

fn checkpoints(node: &NodeBox) -> PathBuf {
    node.root().join("var/lib/nodeagent/checkpoints")
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    entries.map(|entry| entry.expect("a folder that can be read").file_name().to_string_lossy().into_owned()).collect()
}

/// Waits until the pod and its ConfigMaps (its own, the cluster's CA), Secret, token and the API server's Service are on the disk.
fn is_kept(node: &NodeBox, uid: &str) {
    let folder = checkpoints(node);
    eventually("the pod's checkpoint is written", || {
        let text = std::fs::read_to_string(folder.join(format!("pods/{uid}.json"))).map_err(|e| e.to_string())?;
        let file: serde_json::Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
        if file["objects"].as_array().is_some_and(|objects| objects.len() == 5) {
            Ok(())
        } else {
            Err(file["objects"].to_string())
        }
    });
}

/// A cluster whose node runs the vault, which is kept: the plane and the pod's UID.
fn with_vault(node: &NodeBox) -> (ControlPlane<'_>, String) {
    let plane = ControlPlane::beside(node);
    plane.joins(node);
    plane.apply(VAULT);
    let uid = uid(&plane, "vault");
    is_kept(node, &uid);
    (plane, uid)
}

#[test]
fn pods_run_on_and_restart_without_the_api_server_also_under_another_agent() {
    let node = node();
    let (plane, uid) = with_vault(&node);
    let pid = node.pod("vault").container("main").host_pid();
    plane.script(&["stop", "kube-apiserver"]).ok();

    node.kill_agent();
    plane.starts(&node);
    // The new agent cares for the pod before it has heard of the API server.
    let side = node.pod("vault").container("side");
    side.is_running();
    node.inside("kill", &["-9", &side.host_pid().to_string()]).ok();
    side.was_restarted(1);
    node.pod("vault").is_ready();
    assert_eq!(node.pod("vault").container("main").host_pid(), pid);

    plane.script(&["start", "kube-apiserver"]).ok();
    plane.until("pod", "vault", "shows the restart", |pod| {
        runs(pod)?;
        (pod["metadata"]["uid"] == uid.as_str() && side.status(pod)["restartCount"] == 1).then_some(())
    });
    assert_eq!(node.pod("vault").container("main").host_pid(), pid);
    assert_eq!(side.restarts(), 1);
}

/// What becomes of the node's connections to the API server.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Away {
    /// Nobody listens there.
    Refused,
    /// They are never answered.
    Silent,
}

impl Away {
    fn begins(self, plane: &ControlPlane<'_>) {
        match self {
            Self::Refused => drop(plane.script(&["stop", "kube-apiserver"]).ok()),
            Self::Silent => plane.falls_silent(),
        }
    }

    fn ends(self, plane: &ControlPlane<'_>) {
        match self {
            Self::Refused => drop(plane.script(&["start", "kube-apiserver"]).ok()),
            Self::Silent => plane.is_heard_again(),
        }
    }
}

#[rstest]
#[case(Away::Refused)]
#[case(Away::Silent)]
fn after_a_reboot_without_the_api_server_its_pods_start_with_all_that_they_need(#[case] away: Away) {
    let node = node();
    let (plane, uid) = with_vault(&node);
    // Whoever isn't root gets no further than the folders.
    let folder = checkpoints(&node);
    let mode = |path: &Path| std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    for part in ["pods", "objects"] {
        assert_eq!(mode(&folder.join(part)), 0o700);
        for name in names(&folder.join(part)) {
            assert_eq!(mode(&folder.join(part).join(name)), 0o600);
        }
    }
    // The Secret is nowhere else on the disk: its volume is in memory.
    let mut grep = Command::new("grep");
    grep.args(["--recursive", "--files-with-matches", "-e", "open sesame", "-e", "b3BlbiBzZXNhbWU"]).arg(node.root().join("var"));
    let found = e2e::run(&mut grep).stdout;
    assert!(!found.is_empty() && found.lines().all(|path| path.contains("/checkpoints/objects/")), "{found}");

    away.begins(&plane);
    node.reboot();
    plane.starts(&node);
    let pod = node.pod("vault");
    pod.is_ready();
    // They wait a moment for an answer, not until the question is given up.
    let given_up = || node.agent_output().contains("the node could not be registered with the API server");
    assert!(away == Away::Refused || !given_up(), "{}", node.agent_output());
    assert_eq!(pod.uid(), uid);
    let main = pod.container("main");
    assert_eq!(main.demo("read /keys/door"), "open sesame");
    let environment = main.demo("env");
    assert!(environment.contains("GREETING=hello") && environment.contains("KUBERNETES_SERVICE_HOST=10.96.0.1"), "{environment}");
    assert!(main.demo("read /var/run/secrets/kubernetes.io/serviceaccount/token").starts_with("ey"));
    let pid = main.host_pid();

    eventually("the agent says that the API server is away", || if given_up() { Ok(()) } else { Err(node.agent_output()) });
    away.ends(&plane);
    let id = main.id();
    plane.until("pod", "vault", "shows what runs", |pod| {
        runs(pod)?;
        (main.status(pod)["containerID"] == id.as_str() && pod["metadata"]["uid"] == uid.as_str()).then_some(())
    });
    assert_eq!(main.host_pid(), pid);
    // What nobody needs isn't kept.
    plane.kubectl(&["delete", "pod", "vault", "--wait=false"]).ok();
    plane.is_gone("pod", "vault");
    eventually("nothing is kept of it", || {
        let left = [names(&folder.join("pods")), names(&folder.join("objects"))].concat();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
}

#[test]
fn what_was_deleted_while_the_agent_was_down_ends_and_what_was_made_begins() {
    let node = node();
    let plane = ControlPlane::beside(&node);
    plane.joins(&node);
    let pod = |name: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{nodeName: node, terminationGracePeriodSeconds: 2, \
             containers: [{{name: main, image: localhost/nodeagent-demo:latest, imagePullPolicy: Never, args: [sleep]}}]}}}}\n---\n"
        )
    };
    plane.apply(&["asked", "forced", "stays"].map(pod).concat());
    for name in ["asked", "forced", "stays"] {
        uid(&plane, name);
    }
    let stays = node.pod("stays").container("main").id();

    node.kill_agent();
    plane.kubectl(&["delete", "pod", "asked", "--wait=false"]).ok();
    plane.kubectl(&["delete", "pod", "forced", "--grace-period=0", "--force"]).ok();
    plane.is_gone("pod", "forced");
    plane.apply(&pod("fresh"));
    plane.joins(&node);
    plane.is_gone("pod", "asked");
    node.pod("asked").is_gone();
    node.pod("forced").is_gone();
    uid(&plane, "fresh");
    assert_eq!(node.pod("stays").container("main").id(), stays);
    assert_eq!(names(&node.root().join("run/nodeagent/pods")).len(), 2, "nothing is left of the two that went");
}
