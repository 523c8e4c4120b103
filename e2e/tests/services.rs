//! Services as a user types them: an address, a node port, endpoints that follow the pods.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;

use e2e::{NodeBox, Pod, assert_eventually, eventually, pod};
use rstest::rstest;

fn web(node: &NodeBox, name: &str) {
    node.put(&pod(name).metadata("labels: {app: web}").runs_with(
        "web",
        "serve --port 8080",
        "ports: [{name: http, containerPort: 8080}]",
    ));
}

fn service(more: &str) -> String {
    format!("{{apiVersion: v1, kind: Service, metadata: {{name: web}}, spec: {{selector: {{app: web}}, {more}}}}}")
}

fn json(node: &NodeBox, words: &[&str]) -> serde_json::Value {
    let text = node.run(&[words, &["-o", "json"]].concat()).ok();
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

fn cluster_ip(node: &NodeBox) -> String {
    eventually("the service has an address", || {
        let output = node.run(&["get", "service", "web", "-o", "json"]).result()?;
        let service: serde_json::Value = serde_json::from_str(&output).map_err(|e| e.to_string())?;
        service["spec"]["clusterIP"].as_str().map(str::to_owned).ok_or(output)
    })
}

/// Names of the pods that answer `times` calls.
fn answers(client: &Pod<'_>, url: &str, times: usize) -> BTreeSet<String> {
    let names = (0..times).map(|_| client.container("main").exec(&["/demo", "get", url]).all().trim().to_owned());
    names.collect()
}

#[test]
fn a_service_follows_its_pods_and_is_reached_from_everywhere() {
    let node = NodeBox::start();
    node.apply("service.yaml", &service("type: NodePort, ports: [{name: http, port: 80, targetPort: http, nodePort: 30080}]"));
    web(&node, "one");
    web(&node, "two");
    let client = node.put(&pod("client").runs("main", "sleep"));
    client.is_ready();
    node.pod("one").is_ready();
    node.pod("two").is_ready();
    let both: BTreeSet<String> = ["one".to_owned(), "two".to_owned()].into();
    let ip = cluster_ip(&node);
    let url = format!("http://{ip}/hostname");
    eventually("both answer", || {
        let found = answers(&client, &url, 12);
        if found == both { Ok(()) } else { Err(format!("{found:?}")) }
    });
    assert_eq!(answers(&client, "http://web/hostname", 12), both, "by its name");
    // Its sockets were connected to endpoints from the beginning: nothing of the Service's address was ever on the way.
    let trace = node.run(&["net", "trace", "client", &format!("{ip}:80")]).ok();
    assert!(trace.contains("the socket is connected to"), "{trace}");
    assert!(node.run(&["net"]).ok().contains("─ from pods to services by their sockets"));
    let flows = node.inside("cat", &["/proc/net/nf_conntrack"]).ok();
    let translated = format!("src={} dst={ip} ", client.ip());
    assert!(!flows.contains(&translated), "{flows}");
    node.curl(&url).ok();
    node.curl("http://127.0.0.1:30080/hostname").ok();
    node.curl_from_outside("http://192.0.2.1:30080/hostname").ok();
    // What kubectl and the command line show.
    let slices = json(&node, &["get", "endpointslices", "-l", "kubernetes.io/service-name=web"]);
    let endpoints = slices["items"][0]["endpoints"].as_array().unwrap();
    assert_eq!(endpoints.len(), 2, "{slices}");
    assert!(endpoints.iter().all(|endpoint| endpoint["conditions"]["ready"] == true), "{slices}");
    assert!(node.run(&["get", "services"]).ok().contains("80:30080/TCP"));
    // One ends, and gets nothing any more.
    node.remove("one.yaml");
    node.pod("one").is_gone();
    assert_eq!(answers(&client, &url, 12), ["two".to_owned()].into());
    // Nobody left: refused, not dropped.
    node.remove("two.yaml");
    node.pod("two").is_gone();
    let refused = client.container("main").exec(&["/demo", "get", &url]);
    assert!(refused.all().contains("refused"), "{refused}");
    node.remove("service.yaml");
    assert_eventually!(!node.run(&["get", "endpointslices"]).all().contains("web-"), "its slices go");
}

#[rstest]
#[case::ipv6_alone("podCIDRs: ['fd00:85::/64']", 1)]
#[case::dual_stack("podCIDRs: [10.85.0.0/16, 'fd00:85::/64']", 2)]
fn services_have_an_address_of_each_family(#[case] ranges: &str, #[case] families: usize) {
    let config = format!("apiVersion: nodeagent.dev/v1\nkind: NodeAgentConfiguration\n{ranges}\n");
    let node = NodeBox::builder().config(&config).start();
    node.apply(
        "service.yaml",
        &service("type: NodePort, ipFamilyPolicy: PreferDualStack, ports: [{port: 80, targetPort: 8080, nodePort: 30080}]"),
    );
    web(&node, "one");
    let client = node.put(&pod("client").runs("main", "sleep"));
    client.is_ready();
    node.pod("one").is_ready();
    cluster_ip(&node);
    let service = json(&node, &["get", "service", "web"]);
    let addresses: Vec<&str> = service["spec"]["clusterIPs"].as_array().unwrap().iter().filter_map(|ip| ip.as_str()).collect();
    assert_eq!(addresses.len(), families, "{service}");
    for address in addresses {
        let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
        let url = format!("http://{host}/hostname");
        eventually("a pod reaches it", || client.container("main").exec(&["/demo", "get", &url]).result());
        assert_eq!(answers(&client, &url, 3), ["one".to_owned()].into(), "{url}");
        let trace = node.run(&["net", "trace", "client", &format!("{host}:80")]).ok();
        assert!(trace.contains("service default/web:80") && trace.contains("⇒ passes"), "{trace}");
    }
    assert_eq!(answers(&client, "http://web/hostname", 3), ["one".to_owned()].into(), "by its name");
    let slices = json(&node, &["get", "endpointslices", "-l", "kubernetes.io/service-name=web"]);
    assert_eq!(slices["items"].as_array().unwrap().len(), families, "a slice a family: {slices}");
}

#[test]
fn an_agent_that_starts_again_changes_nothing() {
    let node = NodeBox::start();
    node.apply("service.yaml", &service("ports: [{port: 80, targetPort: 8080}]"));
    web(&node, "one");
    node.pod("one").is_ready();
    let ip = cluster_ip(&node);
    let url = format!("http://{ip}/hostname");
    eventually("it answers", || node.curl(&url).result());
    node.kill_agent();
    node.curl(&url).ok();
    node.start_agent();
    for _ in 0..20 {
        node.curl(&url).ok();
    }
    assert_eq!(cluster_ip(&node), ip);
    node.pod("one").is_ready();
    node.curl(&url).ok();
}

#[test]
fn what_is_wrong_with_a_service_is_told_with_its_place() {
    let node = NodeBox::start();
    node.apply("service.yaml", &service("ports: [{port: 80, nodePort: 30080}, {port: 0, targetPort: Web_Port}]"));
    node.tells(&["InvalidManifest", "spec.ports[0].name: Required value"]);
    node.tells(&[
        "InvalidManifest",
        "service.yaml:1:",
        "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
    ]);
    node.tells(&["InvalidManifest", "spec.ports[1].port: Invalid value: 0: must be between 1 and 65535, inclusive"]);
    node.apply("service.yaml", &service("clusterIP: 192.0.2.77, ports: [{port: 80}]"));
    node.tells(&["InvalidService", "192.0.2.77: provided IP is not in the valid range: 10.96.0.0/16"]);
}

#[test]
fn a_service_gets_what_another_one_lets_go() {
    let node = NodeBox::start();
    let wants = |name: &str, port: u16| {
        let text = "apiVersion: v1\nkind: Service\nmetadata: {name: NAME}\nspec: {type: NodePort, ports: [{port: 80, nodePort: PORT}]}\n";
        node.apply(&format!("{name}.yaml"), &text.replace("NAME", name).replace("PORT", &port.to_string()));
    };
    let has = |name: &str, port: u16| {
        eventually(&format!("{name} has {port}"), || {
            let service = node.run(&["get", "service", name, "-o", "json"]).result()?;
            let service: serde_json::Value = serde_json::from_str(&service).map_err(|e| e.to_string())?;
            if service["spec"]["ports"][0]["nodePort"] == port { Ok(()) } else { Err(service.to_string()) }
        });
    };
    wants("first", 30081);
    has("first", 30081);
    wants("second", 30081);
    node.tells(&["InvalidService", "default/second", "nodePort 30081: provided port is already allocated"]);
    // By an edit, also one that asks for what the other has; and by its end.
    wants("first", 30082);
    has("second", 30081);
    has("first", 30082);
    wants("second", 30082);
    node.tells(&["InvalidService", "default/second", "nodePort 30082: provided port is already allocated"]);
    wants("first", 30081);
    has("first", 30081);
    has("second", 30082);
    wants("second", 30081);
    node.remove("first.yaml");
    has("second", 30081);
}

#[test]
fn a_pod_has_the_address_that_it_asks_for() {
    let node = NodeBox::start();
    let fixed = node.put(&pod("fixed").metadata("annotations: {nodeagent.dev/ips: 10.85.7.7}").runs("main", "sleep"));
    assert_eq!(fixed.ip(), "10.85.7.7");
    let thief = node.put(&pod("thief").metadata("annotations: {nodeagent.dev/ips: 10.85.7.7}").runs("main", "sleep"));
    thief.tells(&["10.85.7.7"]);
}

#[test]
fn the_example_does_what_its_comments_say() {
    let node = NodeBox::start();
    node.apply_folder("network");
    node.pod("buyer").container("client").logged("call 3:");
    node.curl_from_outside("http://192.0.2.1:30080/json").ok();
    let stranger = node.put(&pod("stranger").runs("main", "sleep"));
    stranger.is_ready();
    let refused = stranger.container("main").exec(&["/demo", "get", "http://shop/json"]);
    assert_ne!(refused.code, 0, "the policy lets buyers in alone: {refused}");
}
