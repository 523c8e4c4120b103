//! Where pods' addresses come from, as a configuration file says it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;

use e2e::{NodeBox, eventually, pod};

/// Room for four pods, then for one.
const SMALL: &str = "apiVersion: nodeagent.dev/v1
kind: NodeAgentConfiguration
addressReuseAfter: 0s
podRanges:
- {subnet: 10.85.0.0/29, exclude: [10.85.0.3]}
- {subnet: 10.86.0.0/29, gateway: 10.86.0.6, exclude: [10.86.0.1-10.86.0.4]}
";

#[test]
fn ranges_fill_up_one_after_the_other_and_a_pod_waits_for_an_address() {
    let node = NodeBox::builder().config(SMALL).start();
    let names = ["a", "b", "c", "d", "e"];
    for name in names {
        node.put(&pod(name).runs("main", "serve --port 8080"));
        node.pod(name).is_ready();
    }
    let found: BTreeSet<String> = names.iter().map(|name| node.pod(name).ip()).collect();
    let expected = ["10.85.0.2", "10.85.0.4", "10.85.0.5", "10.85.0.6", "10.86.0.5"].map(str::to_owned);
    assert_eq!(found, expected.into());
    assert_eq!(node.pod("e").ip(), "10.86.0.5", "the second range is for what the first has no room for");
    let answer = node.pod("a").container("main").exec(&["/demo", "get", "http://10.86.0.5:8080/hostname"]);
    assert_eq!(answer.all().trim(), "e", "pods of both ranges reach each other");

    let late = node.put(&pod("late").runs("main", "sleep"));
    late.tells(&["FailedCreatePodSandBox", "range 10.86.0.0/29 is full (1 of 1): end pods, or add a range"]);
    let freed = node.pod("b").ip();
    node.remove("b.yaml");
    late.is_ready();
    assert_eq!(late.ip(), freed);
}

#[test]
fn a_fixed_address_must_be_one_that_pods_get() {
    let node = NodeBox::builder().config(SMALL).start();
    let fixed = |name: &str, ip: &str| {
        let annotations = format!("annotations: {{nodeagent.dev/ips: {ip}}}");
        node.put(&pod(name).metadata(&annotations).runs("main", "sleep"))
    };
    fixed("fine", "10.85.0.5").is_ready();
    assert_eq!(node.pod("fine").ip(), "10.85.0.5");
    fixed("excluded", "10.85.0.3").tells(&["FailedCreatePodSandBox", "10.85.0.3 is the gateway's or excluded"]);
    fixed("elsewhere", "10.99.0.3").tells(&["FailedCreatePodSandBox", "10.99.0.3 is in none of the network's ranges"]);
}

/// A VPN has taken the range. The agent runs, pods wait and say why, and all goes on by itself when the VPN is gone.
#[test]
fn a_range_that_the_host_routes_elsewhere_is_waited_for() {
    let node = NodeBox::builder().without_agent().start();
    node.inside("ip", &["link", "add", "vpn0", "type", "bridge"]).ok();
    node.inside("ip", &["address", "add", "10.85.128.1/17", "dev", "vpn0"]).ok();
    node.inside("ip", &["link", "set", "vpn0", "up"]).ok();
    node.start_agent();
    let words = "overlaps the host's route to 10.85.128.0/17 by vpn0: choose another subnet";
    let web = node.put(&pod("web").runs("main", "serve --port 8080"));
    web.tells(&["FailedCreatePodSandBox", "network is not ready: network settings: ", words]);
    node.put(&pod("host").spec("hostNetwork: true").runs("main", "sleep")).becomes("Running");
    let ready = node.condition("Ready");
    assert!(ready.contains("False"), "{ready}");
    let gone = node.put(&pod("gone").runs("main", "sleep"));
    gone.tells(&["FailedCreatePodSandBox"]);
    node.remove("gone.yaml");
    gone.is_gone();

    node.inside("ip", &["link", "delete", "vpn0"]).ok();
    web.is_ready();
    node.curl(&format!("http://{}:8080/", web.ip())).ok();
    eventually("the node is ready", || {
        let ready = node.condition("Ready");
        if ready.contains("True") { Ok(()) } else { Err(ready) }
    });
    let answer = web.container("main").exec(&["/demo", "get", "http://web:8080/hostname"]);
    assert_eq!(answer.all().trim(), "web", "the resolver is there too");
}
