//! Names as pods ask for them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use e2e::{NodeBox, Pod, eventually, pod};

const OBJECTS: &str = "
{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: db}, spec: {clusterIP: None, selector: {app: db}, ports: [{name: sql, port: 8080}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: alias}, spec: {type: ExternalName, externalName: web.default.svc.cluster.local}}
";

fn asks(client: &Pod<'_>, host: &str) -> Result<String, String> {
    client.container("main").exec(&["/demo", "get", &format!("http://{host}/json")]).result()
}

#[test]
fn services_and_pods_have_names() {
    let node = NodeBox::start();
    node.apply("objects.yaml", OBJECTS);
    node.put(&pod("one").metadata("labels: {app: web}").runs("web", "serve --port 8080"));
    let db = pod("db-pod").metadata("labels: {app: db}").spec("hostname: db-0").spec("subdomain: db");
    node.put(&db.runs("web", "serve --port 8080"));
    let client = node.put(&pod("client").runs("main", "sleep"));
    client.is_ready();
    node.pod("one").is_ready();
    node.pod("db-pod").is_ready();
    for host in [
        "web",
        "web.default",
        "web.default.svc.cluster.local",
        "alias",
        "db:8080",
        "db-0.db:8080",
        "one:8080",
        "one.default:8080",
        "one.default.svc.cluster.local:8080",
    ] {
        eventually(host, || asks(&client, host));
    }
    let resolv = client.container("main").demo("read /etc/resolv.conf");
    assert!(resolv.contains("nameserver 10.85.0.1") && resolv.contains("search default.svc.cluster.local"), "{resolv}");
    let missing = client.container("main").exec(&["/demo", "get", "http://nope/json"]);
    assert_ne!(missing.code, 0, "{missing}");
    // A pod that goes takes its name along.
    node.remove("one.yaml");
    node.pod("one").is_gone();
    eventually("the name is gone", || asks(&client, "one:8080").map_or(Ok(()), Err));
}

#[test]
fn without_the_resolver_pods_ask_the_hosts() {
    let node = NodeBox::builder().config("apiVersion: nodeagent.dev/v1\nkind: NodeAgentConfiguration\ndns: false\n").start();
    let client = node.put(&pod("client").runs("main", "sleep"));
    client.is_ready();
    let resolv = client.container("main").demo("read /etc/resolv.conf");
    assert!(!resolv.contains("10.85.0.1"), "{resolv}");
}
