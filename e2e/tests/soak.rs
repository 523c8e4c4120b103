//! Long and wide: many pods that come and go while the API server dies, and two nodes whose pods talk. `make soak`: minutes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::time::Instant;

use e2e::{ControlPlane, INSIDE, NodeBox, Output, eventually, is_true, run};
use serde_json::Value;

const MANY: u64 = 300;
const FEW: u64 = 40;
/// How often the Deployment goes from few to many and back; `ROUNDS` says otherwise.
fn rounds() -> usize {
    std::env::var("ROUNDS").map_or(3, |text| text.parse().expect("ROUNDS is a number"))
}

const CONFIGURATION: &str = "apiVersion: nodeagent.dev/v1\nkind: NodeAgentConfiguration\nserverTLSBootstrap: true\nmaxPods: 400\n\
                             masqueradeExcept: [10.244.0.0/16]\n";

const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 0
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
      - name: web
        image: localhost/nodeagent-demo:latest
        imagePullPolicy: Never
        args: [serve]
        resources: {requests: {cpu: 1m, memory: 1Mi}}
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 30}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
";

fn builder() -> e2e::Builder {
    NodeBox::builder().config(CONFIGURATION).argument("--network").argument("bridge").without_agent()
}

/// Waits longer than `eventually` does for what takes minutes on a busy machine, as long as it goes on.
fn while_it_goes_on(what: &str, mut count: impl FnMut() -> u64, wanted: u64) {
    loop {
        let before = count();
        if before == wanted {
            return;
        }
        eventually(&format!("{what}: {wanted}"), || {
            let now = count();
            if now == wanted || now != before { Ok(()) } else { Err(format!("{now} as before")) }
        });
    }
}

fn ready(plane: &ControlPlane<'_>) -> u64 {
    plane.get("deployment", "web").and_then(|web| web["status"]["readyReplicas"].as_u64()).unwrap_or(0)
}

fn pods(plane: &ControlPlane<'_>) -> Vec<Value> {
    let list: Value = serde_json::from_str(&plane.kubectl(&["get", "pods", "-o", "json"]).ok()).unwrap();
    list["items"].as_array().unwrap().clone()
}

/// Scales, and ends the API server in the middle of what follows: `stop` by SIGTERM, so that it says goodbye to its watches, `kill` by SIGKILL.
fn scale(plane: &ControlPlane<'_>, node: &NodeBox, replicas: u64, end: &str) {
    let began = Instant::now();
    plane.kubectl(&["scale", "deployment", "web", &format!("--replicas={replicas}")]).ok();
    let before = pods(plane).len();
    eventually("pods come or go", || if pods(plane).len() == before { Err(before.to_string()) } else { Ok(()) });
    plane.script(&[end, "kube-apiserver"]).ok();
    plane.script(&["start", "kube-apiserver"]).ok();
    while_it_goes_on("pods that are ready", || ready(plane), replicas);
    while_it_goes_on("pods", || pods(plane).len() as u64, replicas);
    let memory = std::fs::read_to_string(format!("/proc/{}/status", node.agent_pid())).unwrap();
    let resident = memory.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap().trim();
    println!(
        "{replicas} pods after {:.0} s, with the API server ended meanwhile ({end}); the agent has {resident}",
        began.elapsed().as_secs_f32()
    );
}

#[test]
fn three_hundred_pods_come_and_go_while_the_api_server_dies() {
    let node = builder().argument("--pod-cidr").argument("10.85.0.0/16").start();
    let plane = ControlPlane::beside(&node);
    plane.joins(&node);
    let _proxy = plane.proxies(&node);
    plane.apply(WEB);
    scale(&plane, &node, FEW, "stop");
    let survivors: BTreeSet<String> = uids(&plane);
    for _ in 0..rounds() {
        scale(&plane, &node, MANY, "kill");
        balanced(&node, &plane);
        for pod in pods(&plane) {
            let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
            assert_eq!(restarts, 0, "{} was restarted", pod["metadata"]["name"]);
            assert!(is_true(&pod, "Ready"), "{pod:#}");
        }
        scale(&plane, &node, FEW, "stop");
    }
    println!("{} of the first {} pods are still there", uids(&plane).intersection(&survivors).count(), survivors.len());
    plane.kubectl(&["delete", "deployment/web", "service/web"]).ok();
    while_it_goes_on("pods", || pods(&plane).len() as u64, 0);
    eventually("the node has no pod", || {
        let left = node.run(&["get", "pods", "-A", "-o", "name"]).ok();
        if left.trim().is_empty() { Ok(()) } else { Err(left) }
    });
    // The agent goes on, with its bridge, and kube-proxy with its rules. Of pods, whose links are of a group of their own, nothing is left.
    eventually("no pod has a link, a lease or a process", || {
        let links = node.inside("ip", &["-o", "link", "show", "type", "veth"]).ok();
        let links = links.lines().filter(|link| !link.contains("group default")).map(str::to_owned);
        let run = node.root().join("run/nodeagent");
        let names = |dir: &str| {
            std::fs::read_dir(run.join(dir)).into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        };
        let leases = names("net").filter(|name| std::path::Path::new(name).extension().is_some_and(|kind| kind == "lease"));
        let left: Vec<String> = links.chain(leases).chain(names("pods")).collect();
        if left.is_empty() { Ok(()) } else { Err(left.join("\n")) }
    });
}

fn uids(plane: &ControlPlane<'_>) -> BTreeSet<String> {
    pods(plane).iter().filter_map(|pod| pod["metadata"]["uid"].as_str().map(ToOwned::to_owned)).collect()
}

/// By kube-proxy: the Service's address answers from the node and from a pod, and by more than one pod.
fn balanced(node: &NodeBox, plane: &ControlPlane<'_>) {
    let address = plane.until("service", "web", "has an address", |s| s["spec"]["clusterIP"].as_str().map(ToOwned::to_owned));
    let pod = pods(plane)[0]["metadata"]["name"].as_str().unwrap().to_owned();
    let url = format!("http://{address}/json");
    let answers = || -> Result<BTreeSet<String>, String> {
        let mut names = BTreeSet::new();
        for _ in 0..10 {
            let from_node: Value = serde_json::from_str(&node.curl(&url).result()?).map_err(|e| e.to_string())?;
            let from_pod = plane.kubectl(&["exec", &pod, "--", "/demo", "get", &url]).result()?;
            let from_pod: Value = serde_json::from_str(&from_pod).map_err(|e| e.to_string())?;
            names.extend([from_node, from_pod].map(|page| page["hostname"].to_string()));
        }
        Ok(names)
    };
    eventually("the Service answers by several pods", || {
        let names = answers()?;
        if names.len() > 3 { Ok(()) } else { Err(format!("only by {names:?}")) }
    });
}

#[test]
fn pods_of_two_nodes_talk_across_by_static_routes() {
    let first = builder().named("first").start();
    let second = builder().named("second").start_beside(&first);
    let plane = ControlPlane::beside(&first);
    for node in [&first, &second] {
        plane.joins(node);
    }
    // The host between the two is the network's router, as static routes have it.
    let outside = |words: &[&str]| run(first.outside().command(words[0]).args(&words[1..])).ok();
    outside(&["sysctl", "--quiet", "-w", "net.ipv4.ip_forward=1"]);
    let range = |name: &str| plane.until("node", name, "has a range", |n| n["spec"]["podCIDR"].as_str().map(ToOwned::to_owned));
    for (node, other) in [(&first, &second), (&second, &first)] {
        outside(&["ip", "route", "add", &range(node.name()), "via", &node.outside().node_address()]);
        node.inside("ip", &["route", "add", &range(other.name()), "via", &node.outside().address()]).ok();
        plane.apply(&pod(node.name()));
    }
    let address = |name: &str| {
        plane.until("pod", name, "runs", |pod| {
            is_true(pod, "Ready").then(|| pod["status"]["podIP"].as_str().map(ToOwned::to_owned))?
        })
    };
    let (one, two) = (address("first"), address("second"));
    let ask = |from: &str, to: &str| -> Output {
        plane.kubectl(&["exec", from, "--", "/demo", "get", &format!("http://{to}:8080/json")])
    };
    ask("first", &two).ok();
    ask("second", &one).ok();
    // Each saw the other's own address, not its node's.
    for (pod, peer) in [("second", &one), ("first", &two)] {
        eventually(&format!("{pod} was asked by {peer}"), || {
            let said = plane.kubectl(&["logs", pod]).result()?;
            if said.lines().any(|line| line.starts_with(&format!("{peer} "))) { Ok(()) } else { Err(said) }
        });
    }
    // To all others, a pod goes by its node's address.
    let demo = e2e::binary("demo");
    let server = e2e::Running::start(first.outside().command(demo.to_str().unwrap()).args(["serve", "--port", "8888"]));
    eventually("the pod reaches a host of the world", || {
        plane.kubectl(&["exec", "first", "--", "/demo", "get", &format!("http://{}:8888/json", e2e::OUTSIDE)]).result()
    });
    server.says(&format!("{INSIDE} "));

    // Neither needs the API server for it, and both are there when it is back.
    plane.script(&["stop", "kube-apiserver"]).ok();
    for (node, peer) in [(&first, &two), (&second, &one)] {
        let page = node.pod(node.name()).container("web").demo(&format!("get http://{peer}:8080/json"));
        assert!(page.contains("hostname"), "{page}");
    }
    plane.script(&["start", "kube-apiserver"]).ok();
    for name in ["first", "second"] {
        plane.kubectl(&["delete", "pod", name, "--wait=false"]).ok();
        plane.is_gone("pod", name);
    }
}

fn pod(node: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {node}}}, spec: {{nodeName: {node}, terminationGracePeriodSeconds: 2, \
         containers: [{{name: web, image: localhost/nodeagent-demo:latest, imagePullPolicy: Never, args: [serve]}}]}}}}\n"
    )
}
