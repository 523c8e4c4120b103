//! `nodeagent net` as a user types it: the tree, the data, and traces that say what packets then do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use e2e::{NodeBox, Pod, assert_eventually, eventually, pod};
use serde_json::Value;

const SHOP: &str = "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {type: NodePort, selector: {app: web}, \
                    ports: [{name: http, port: 80, targetPort: http, nodePort: 30080}]}}";
const SHUT: &str = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: shut}, spec: {podSelector: {matchLabels: \
                    {app: web}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}}";

/// A Service with one pod, who may call it, and who may not.
fn shop(node: &NodeBox) -> (Pod<'_>, Pod<'_>) {
    node.apply("service.yaml", SHOP);
    node.apply("policy.yaml", SHUT);
    let web = pod("web").metadata("labels: {app: web}");
    node.put(&web.runs_with("web", "serve --port 8080", "ports: [{name: http, containerPort: 8080, hostPort: 8088}]"));
    let client = node.put(&pod("client").metadata("labels: {app: client}").runs("main", "sleep"));
    let stranger = node.put(&pod("stranger").runs("main", "sleep"));
    for pod in [&node.pod("web"), &client, &stranger] {
        pod.is_ready();
    }
    eventually("the service has its endpoint", || {
        let view = view(node);
        if view["services"][0]["endpoints"].as_array().is_some_and(|all| all.len() == 1) { Ok(()) } else { Err(view.to_string()) }
    });
    (client, stranger)
}

fn view(node: &NodeBox) -> Value {
    serde_json::from_str(&node.run(&["net", "-o", "json"]).ok()).unwrap()
}

#[test]
fn the_network_is_drawn() {
    let node = NodeBox::start();
    shop(&node);
    let tree = node.run(&["net"]).ok();
    let ip = node.pod("web").ip();
    for line in [
        "bridge nodeagent0  10.85.0.1/16",
        ", rules in nftables table inet nodeagent\n",
        "host port 8088/TCP → 8080",
        "service default/web:http",
        "policy default/shut (ingress: 1 rule allows)",
        "node port 30080/TCP",
        "selects default/web",
        &format!(" ↔ default/web  {ip}\n"),
        &format!("→ {ip}:8080"),
    ] {
        assert!(tree.contains(line), "{line:?} in\n{tree}");
    }
    assert!(tree.contains("─ from pod to pod directly, where no rule has to see it\n"), "{tree}");
    let data = view(&node);
    assert_eq!(data["wiring"], "bridge");
    assert_eq!(data["pods"].as_array().unwrap().len(), 3, "{data}");
    assert_eq!(data["services"][0]["nodePort"], 30080, "{data}");

    // A name that is another program's shows as such.
    node.inside("ip", &["link", "add", "tap9", "type", "veth", "peer", "name", "tap9x"]).ok();
    node.inside("ip", &["link", "set", "tap9", "master", "nodeagent0"]).ok();
    assert_eq!(view(&node)["strangers"][0]["name"], "tap9");
    // The pod goes, and with it all that was its.
    node.remove("web.yaml");
    node.pod("web").is_gone();
    assert_eventually!(!node.run(&["net"]).ok().contains("default/web  "), "the pod goes from the tree");
    assert!(node.run(&["net"]).ok().contains("no ready endpoint: connections are refused"));
}

#[test]
fn a_trace_says_what_packets_do() {
    let node = NodeBox::start();
    let (client, stranger) = shop(&node);
    let get = |pod: &Pod<'_>| pod.container("main").exec(&["/demo", "get", "http://web/hostname"]).code == 0;

    let allowed = node.run(&["net", "trace", "client", "web:80"]).ok();
    for text in ["service default/web:http", "network policy default/shut allows it: ingress[0]", "⇒ passes"] {
        assert!(allowed.contains(text), "{text:?} in\n{allowed}");
    }
    assert!(get(&client));
    let shut = node.run(&["net", "trace", "stranger", "web:80"]).ok();
    assert!(shut.contains("policies default/shut select pod default/web") && shut.contains("⇒ dropped"), "{shut}");
    assert!(!get(&stranger));

    let trace = |to: &str| node.run(&["net", "trace", "client", to]).ok();
    let straight = || trace(&format!("{}:80", stranger.ip()));
    assert_eventually!(straight().contains("no rule has to see it"), "{}", straight());
    assert!(straight().contains("⇒ passes"), "{}", straight());
    assert!(trace("web:81").contains("⇒ refused"), "no such port of the service: {}", trace("web:81"));
    assert!(trace("192.0.2.1:8088").contains("host port 8088 of pod default/web"));
    assert!(trace("192.0.2.1:30080").contains("node port of service default/web:http"));
    assert!(trace("203.0.113.9:443").contains("what leaves the node gets the node's address"));
    assert!(trace("10.85.0.1:53").contains("this node's own"));
    assert!(trace("0.0.0.0:80").contains("is the pod's own"), "{}", trace("0.0.0.0:80"));
    assert!(trace("10.85.99.99:80").contains("no pod has 10.85.99.99"), "{}", trace("10.85.99.99:80"));
    node.inside("ip", &["address", "add", "198.51.100.7/32", "dev", "lo"]).ok();
    assert!(trace("198.51.100.7:80").contains("this node's own"), "an address that came later: {}", trace("198.51.100.7:80"));
    let data: Value = serde_json::from_str(&node.run(&["net", "trace", "client", "web:80", "-o", "json"]).ok()).unwrap();
    assert_eq!(data["ways"][0][0]["verdict"], "rewrite", "{data}");

    for (words, expected) in [
        (["net", "trace", "client", "web"], "write HOST:PORT"),
        (["net", "trace", "nope", "web:80"], "pods \"nope\" not found"),
        (["net", "trace", "client", "[fd00::7]:80"], "of another IP family"),
    ] {
        let output = node.run(&words).fails();
        assert!(output.contains(expected), "{expected:?} in {output}");
    }
}

#[test]
fn another_firewall_is_told_of_by_check_node_and_pod() {
    let node = NodeBox::start();
    let word = "drops forwarded packets by default";
    assert!(!node.run(&["check"]).all().contains(word));
    node.inside(
        "nft",
        &["add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }"],
    )
    .ok();
    assert!(node.run(&["check"]).all().contains(word), "check, which needs no agent");
    node.tells(&["NetworkObstacle", "the nftables chain FORWARD of table ip filter"]);
    let web = node.put(&pod("web").runs("main", "sleep"));
    web.is_ready();
    web.tells(&["NetworkObstacle", "iptables-nft -I FORWARD -s 10.85.0.0/16 -j ACCEPT"]);
    assert!(node.run(&["net"]).ok().contains(word));
    let trace = |to: &str| node.run(&["net", "trace", "web", to]).ok();
    assert!(trace("203.0.113.9:443").contains(word));
    assert!(!trace("10.85.0.1:53").contains(word), "what is for the node itself isn't forwarded: {}", trace("10.85.0.1:53"));
    // It goes, and the next pod hears nothing.
    node.inside("nft", &["delete table ip filter"]).ok();
    assert_eventually!(!node.run(&["net"]).ok().contains(word), "it is forgotten");
    let next = node.put(&pod("next").runs("main", "sleep"));
    next.is_ready();
    assert!(!next.run(&["describe"], &[]).all().contains("NetworkObstacle"));
}

const SHUT_NODE: &str = "add table inet firewalld; add chain inet firewalld filter_INPUT { type filter hook input priority 10; policy accept; }; \
                         add rule inet firewalld filter_INPUT ct state established,related accept; \
                         add rule inet firewalld filter_INPUT iifname lo accept";

#[test]
fn a_firewall_that_keeps_pods_from_the_resolver_is_told_of() {
    let node = NodeBox::start();
    let (client, _) = shop(&node);
    let finds = || client.container("main").exec(&["/demo", "get", "http://web/hostname"]).code == 0;
    assert_eventually!(finds(), "the Service has a name");
    // The chain is there; the rule that ends it comes later.
    node.inside("nft", &[SHUT_NODE]).ok();
    let word = "pods' questions to its DNS resolver too";
    assert!(!node.run(&["check"]).all().contains(word));
    node.inside("nft", &["add rule inet firewalld filter_INPUT reject with icmpx admin-prohibited"]).ok();
    assert!(!finds());
    assert!(node.run(&["check"]).all().contains(word));
    node.tells(&["NetworkObstacle", word, "firewall-cmd --permanent --zone=trusted --add-source=10.85.0.0/16"]);
    let trace = |to: &str| node.run(&["net", "trace", "client", to, "--protocol", "udp"]).ok();
    assert!(trace("10.85.0.1:53").contains(word), "{}", trace("10.85.0.1:53"));
    assert!(!trace("203.0.113.9:443").contains(word));
    let next = node.put(&pod("next").runs("main", "sleep"));
    next.is_ready();
    next.tells(&["NetworkObstacle", word]);
    node.inside("nft", &["insert rule inet firewalld filter_INPUT ip saddr 10.85.0.0/16 accept"]).ok();
    assert!(finds());
}

#[test]
fn without_a_resolver_nobody_minds_what_is_for_the_node() {
    let node = NodeBox::builder().config("apiVersion: nodeagent.dev/v1\nkind: NodeAgentConfiguration\ndns: false\n").start();
    node.inside("nft", &[SHUT_NODE]).ok();
    node.inside("nft", &["add rule inet firewalld filter_INPUT reject"]).ok();
    let config = node.configuration();
    for output in [node.run(&["--config", config.to_str().unwrap(), "check"]).all(), node.run(&["net"]).ok()] {
        assert!(!output.contains("firewalld"), "{output}");
    }
}
