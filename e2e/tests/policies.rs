//! NetworkPolicies as a user types them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use e2e::{NodeBox, Pod, eventually, pod};

fn asks(client: &Pod<'_>, host: &str) -> bool {
    let url = format!("http://{host}/json");
    // A packet that is dropped is waited for: by the box's timeout, not by the client's.
    client.container("main").exec(&["/demo", "get", &url]).code == 0
}

fn policy(spec: &str) -> String {
    format!("{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: web}}, spec: {{{spec}}}}}")
}

#[track_caller]
fn becomes(client: &Pod<'_>, host: &str, open: bool) {
    eventually(
        &format!("{host} is open: {open}"),
        || if asks(client, host) == open { Ok(()) } else { Err("not yet".to_owned()) },
    );
}

#[test]
fn only_who_is_allowed_reaches_a_pod() {
    let node = NodeBox::start();
    node.apply("web.yaml", &pod("web").metadata("labels: {app: web}").runs("main", "serve --port 8080").yaml());
    node.put(&pod("friend").metadata("labels: {app: friend}").runs("main", "sleep"));
    node.put(&pod("stranger").runs("main", "sleep"));
    node.put(&pod("guest").metadata("namespace: lab").runs("main", "sleep"));
    let (web, friend, stranger, guest) = (node.pod("web"), node.pod("friend"), node.pod("stranger"), node.pod("lab/guest"));
    for pod in [&web, &friend, &stranger, &guest] {
        pod.is_ready();
    }
    let host = format!("{}:8080", web.ip());
    for client in [&friend, &stranger, &guest] {
        becomes(client, &host, true);
    }
    let from = "from: [{podSelector: {matchLabels: {app: friend}}}, {namespaceSelector: {matchLabels: {team: lab}}}]";
    let ingress = format!("podSelector: {{matchLabels: {{app: web}}}}, ingress: [{{{from}, ports: [{{port: 8080}}]}}]");
    node.apply("policy.yaml", &policy(&ingress));
    becomes(&stranger, &host, false);
    becomes(&friend, &host, true);
    becomes(&guest, &host, false);
    node.curl(&format!("http://{host}/healthz")).ok();
    // A namespace gets its labels.
    node.apply("lab.yaml", "{apiVersion: v1, kind: Namespace, metadata: {name: lab, labels: {team: lab}}}");
    becomes(&guest, &host, true);
    assert!(node.run(&["get", "networkpolicies"]).ok().contains("app=web"));
    // A pod that comes later is judged from its first packet on.
    node.put(
        &pod("later").metadata("labels: {app: later}").runs("main", &format!("client --url http://{host}/json --every 100ms")),
    );
    node.pod("later").is_ready();
    assert!(!asks(&node.pod("later"), &host));
    assert!(!node.pod("later").container("main").logs(&[]).contains("call 1:"));
    node.remove("policy.yaml");
    becomes(&stranger, &host, true);
}

#[test]
fn what_goes_out_is_judged_too() {
    let node = NodeBox::start();
    node.apply("web.yaml", &pod("web").metadata("labels: {app: web}").runs("main", "serve --port 8080").yaml());
    node.put(&pod("client").metadata("labels: {app: client}").runs("main", "sleep"));
    let (web, client) = (node.pod("web"), node.pod("client"));
    web.is_ready();
    client.is_ready();
    let host = format!("{}:8080", web.ip());
    becomes(&client, &host, true);
    node.apply("policy.yaml", &policy("podSelector: {matchLabels: {app: client}}, policyTypes: [Egress]"));
    becomes(&client, &host, false);
    let block = "egress: [{to: [{ipBlock: {cidr: 10.85.0.0/16}}]}]";
    node.apply("policy.yaml", &policy(&format!("podSelector: {{}}, policyTypes: [Egress], {block}")));
    becomes(&client, &host, true);
}

#[test]
fn what_is_wrong_with_a_policy_is_told_with_its_place() {
    let node = NodeBox::start();
    let block = "{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}], ports: [{port: http, endPort: 90}]}";
    node.apply("policy.yaml", &policy(&format!("podSelector: {{}}, ingress: [{block}, {{from: [{{}}]}}]")));
    node.tells(&[
        "policy.yaml:1:",
        "spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`",
    ]);
    node.tells(&["spec.ingress[0].ports[0].endPort: Invalid value: 90: may not be specified when `port` is non-numeric"]);
    node.tells(&["spec.ingress[1].from[0]: Required value: must specify a peer"]);
}
