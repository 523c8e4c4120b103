//! kubectl through the API servers of this line and of an older one: everything that is streamed, and what moves pods about. v1.34's server
//! speaks SPDY to the node, whatever kubectl asks it by; v1.37's hands on what it gets, since the node declares that it takes WebSockets.

use std::collections::BTreeSet;
use std::process::Command;

use e2e::{ControlPlane, NodeBox, Running, eventually, run};
use rstest::rstest;

use super::{CONFIGURATION, is_true, runs};

const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: box}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: web, image: localhost/nodeagent-demo:latest, imagePullPolicy: Never, args: [serve]}
  - {name: talks, image: busybox, command: [sh, -c, "i=0; while sleep 0.5; do echo line $((i++)); done"]}
  - {name: shell, image: busybox, command: [sh], stdin: true}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: shop}}
  template:
    metadata: {labels: {app: shop}}
    spec:
      containers: [{name: web, image: localhost/nodeagent-demo:latest, imagePullPolicy: Never, args: [serve]}]
"#;

struct Lab<'a> {
    node: &'a NodeBox,
    plane: ControlPlane<'a>,
}

impl Lab<'_> {
    /// kubectl of the cluster's line, on its host; `websockets`: whether it asks the API server by them, or in SPDY.
    fn kubectl(&self, websockets: bool, words: &[&str]) -> Command {
        let mut command = self.plane.command();
        command.arg("kubectl").args(words);
        command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets.to_string());
        command.env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets.to_string());
        command
    }

    /// The same as a shell's word.
    fn words(&self, websockets: bool) -> String {
        format!(
            "KUBECTL_REMOTE_COMMAND_WEBSOCKETS={websockets} {}/e2e/kubernetes --folder {} kubectl",
            e2e::workspace().display(),
            self.plane.folder().display()
        )
    }

    fn shell(&self, script: &str) -> String {
        run(self.node.outside().command("sh").args(["-c", script])).ok()
    }

    /// A page of the node's monitoring, as the API server gets it.
    fn metrics(&self, page: &str) -> String {
        self.plane.kubectl(&["get", "--raw", &format!("/api/v1/nodes/{}/proxy/metrics{page}", self.node.name())]).ok()
    }

    /// What was streamed to the node so far, and in which words.
    fn streams(&self) -> BTreeSet<String> {
        let page = self.metrics("");
        let series = page.lines().filter_map(|line| line.strip_prefix("nodeagent_streams_total{"));
        // path="exec",transport="spdy",protocol="v4.channel.k8s.io"} 3
        let labels = series.map(|labels| labels.split('"').skip(1).step_by(2).collect::<Vec<_>>().join(" "));
        labels.collect()
    }
}

/// Streams by WebSocket: path, transport, protocol.
const WEBSOCKETS: [&str; 3] = [
    "attach websocket v5.channel.k8s.io",
    "exec websocket v5.channel.k8s.io",
    "portForward websocket SPDY/3.1+portforward.k8s.io",
];
/// And by SPDY.
const SPDY: [&str; 3] = ["attach spdy v4.channel.k8s.io", "exec spdy v4.channel.k8s.io", "portForward spdy portforward.k8s.io"];

#[rstest]
#[case::of_this_line(&[], WEBSOCKETS)]
#[case::of_v1_34(&["--line", "v1.34"], SPDY)]
fn kubectl_works_through_an_api_server(#[case] line: &[&str], #[case] by_websockets: [&str; 3]) {
    let node = super::builder().with_registry().config(CONFIGURATION).start();
    let plane = ControlPlane::with(&node, line);
    plane.joins(&node);
    plane.apply(PODS);
    plane.until("pod", "box", "runs", runs);
    let lab = Lab { node: &node, plane };
    let mut spoken = BTreeSet::new();
    for (websockets, protocols) in [(true, by_websockets), (false, SPDY)] {
        commands_end_as_they_should(&lab, websockets);
        a_terminal_has_a_size(&lab, websockets);
        what_is_typed_reaches_who_is_attached(&lab, websockets);
        many_connections_pass_one_that_is_stuck(&lab, websockets);
        spoken.extend(protocols.map(str::to_owned));
        assert_eq!(lab.streams(), spoken, "kubectl asked by WebSockets: {websockets}");
    }
    files_come_and_go(&lab);
    logs_are_followed(&lab);
    metrics_are_told(&lab);
    a_debug_container_looks_around(&lab);
    a_deployment_begins_anew(&lab);
    a_drained_node_is_empty(&lab);
}

fn commands_end_as_they_should(lab: &Lab<'_>, websockets: bool) {
    let exec = |words: &[&str]| run(&mut lab.kubectl(websockets, &[&["exec", "box", "-c", "web", "--"], words].concat()));
    assert_eq!(exec(&["/demo", "echo", "by the API server"]).ok(), "by the API server\n");
    assert!(exec(&["/demo", "exit", "7"]).fails_with(7).contains("exit code 7"));
    assert_eq!(exec(&["/demo", "tty"]).ok(), "not a terminal\n");
    let file = lab.node.folder().join("much");
    lab.shell(&format!("[ -e {file} ] || head -c 104857600 /dev/urandom >{file}", file = file.display()));
    let exec = format!("{} exec -i box -c web -- /demo cat", lab.words(websockets));
    lab.shell(&format!("{exec} <{file} | cmp - {file}", file = file.display()));
}

/// `script` gives kubectl a terminal of which the size changes once it is joined.
fn a_terminal_has_a_size(lab: &Lab<'_>, websockets: bool) {
    let mark = lab.node.folder().join("resize");
    let _ = std::fs::remove_file(&mark);
    let inside = "n=0; until stty size | grep \"41 77\"; do n=$((n + 1)); [ $n -lt 300 ] || exit 1; sleep 0.1; done";
    let words = format!(
        "stty rows 33 cols 99; exec 3<&0; (until [ -e {mark} ]; do sleep 0.1; done; stty rows 41 cols 77) <&3 & \
         {kubectl} exec -it box -c talks -- sh -c 'until stty size | grep \"33 99\"; do sleep 0.1; done; {inside}'",
        mark = mark.display(),
        kubectl = lab.words(websockets),
    );
    let mut terminal = Running::start(lab.node.outside().command("script").args(["-qec", &words, "/dev/null"]));
    terminal.says("33 99");
    std::fs::write(&mark, "").unwrap();
    terminal.says("41 77");
    assert_eq!(terminal.ends(), 0, "{}", terminal.output());
}

fn what_is_typed_reaches_who_is_attached(lab: &Lab<'_>, websockets: bool) {
    let hears = Running::start(&mut lab.kubectl(websockets, &["attach", "box", "-c", "talks"]));
    hears.says("line ");
    let mut types = Running::start(&mut lab.kubectl(websockets, &["attach", "-i", "box", "-c", "shell"]));
    let number = 10 + i32::from(websockets);
    types.write(&format!("echo typed-$(({number} + 10))\n"));
    types.says(&format!("typed-{}", number + 10));
}

fn many_connections_pass_one_that_is_stuck(lab: &Lab<'_>, websockets: bool) {
    let port = if websockets { 18080 } else { 18081 };
    let mut forward = Running::start(&mut lab.kubectl(websockets, &["port-forward", "box", &format!("{port}:8080")]));
    forward.says("Forwarding from 127.0.0.1");
    let stuck = format!("exec 3<>/dev/tcp/127.0.0.1/{port}; sleep 1000");
    let _stuck = Running::start(lab.node.outside().command("bash").args(["-c", &stuck]));
    lab.shell(&format!(
        "for i in $(seq 30); do curl -sf --max-time 30 http://127.0.0.1:{port}/json -o /dev/null & p=\"$p $!\"; done; for q in $p; do wait $q || exit 1; done"
    ));
    assert!(forward.is_alive(), "{}", forward.output());
}

fn files_come_and_go(lab: &Lab<'_>) {
    let (file, back) = (lab.node.folder().join("file"), lab.node.folder().join("back"));
    lab.shell(&format!("head -c 5000000 /dev/urandom >{}", file.display()));
    lab.plane.kubectl(&["cp", file.to_str().unwrap(), "box:/tmp/file", "-c", "talks"]).ok();
    lab.plane.kubectl(&["cp", "box:/tmp/file", back.to_str().unwrap(), "-c", "talks"]).ok();
    assert!(std::fs::read(&file).unwrap() == std::fs::read(&back).unwrap(), "the file comes back as it was");
}

fn logs_are_followed(lab: &Lab<'_>) {
    let follows = Running::start(&mut lab.kubectl(true, &["logs", "-f", "--tail", "1", "box", "-c", "talks"]));
    follows.says("line ");
    let lines = || follows.output().lines().count();
    let first = lines();
    eventually("more comes", || if lines() > first + 2 { Ok(()) } else { Err(follows.output()) });
}

/// What metrics-server asks of a node for `kubectl top`.
fn metrics_are_told(lab: &Lab<'_>) {
    let told = lab.metrics("/resource");
    for series in ["node_cpu_usage_seconds_total", "container_memory_working_set_bytes{container=\"talks\""] {
        assert!(told.contains(series), "{series} in {told}");
    }
}

fn a_debug_container_looks_around(lab: &Lab<'_>) {
    let words = ["debug", "box", "-c", "look", "--image", "busybox", "--target", "talks", "--", "sh", "-c", "ps | grep while"];
    lab.plane.kubectl(&words).ok();
    eventually("its word is logged", || {
        let said = lab.plane.kubectl(&["logs", "box", "-c", "look"]);
        if said.stdout.contains("while sleep") { Ok(()) } else { Err(said.to_string()) }
    });
}

fn a_deployment_begins_anew(lab: &Lab<'_>) {
    let names = || lab.plane.kubectl(&["get", "pods", "-l", "app=shop", "-o", "name"]).ok();
    lab.plane.kubectl(&["rollout", "status", "deployment/shop", "--timeout", "120s"]).ok();
    let before = names();
    lab.plane.kubectl(&["rollout", "restart", "deployment/shop"]).ok();
    lab.plane.kubectl(&["rollout", "status", "deployment/shop", "--timeout", "120s"]).ok();
    eventually("the old ones are gone", || {
        let now = names();
        if now.lines().any(|name| before.contains(name)) { Err(now) } else { Ok(()) }
    });
}

fn a_drained_node_is_empty(lab: &Lab<'_>) {
    lab.plane.kubectl(&["drain", lab.node.name(), "--force", "--ignore-daemonsets", "--timeout", "120s"]).ok();
    lab.plane.is_gone("pod", "box");
    lab.plane.until("deployment", "shop", "waits for a node", |shop| (shop["status"]["unavailableReplicas"] == 2).then_some(()));
    lab.plane.kubectl(&["uncordon", lab.node.name()]).ok();
    lab.plane.until("deployment", "shop", "is there again", |shop| is_true(shop, "Available").then_some(()));
}
