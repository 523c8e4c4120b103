//! More pods than a bridge has ports for.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::{fs::File, net::IpAddr, os::fd::AsFd, thread};

use lab::{Lab, Pod, range, wait};
use netplug::{Attached, Attachment, Network, Protocol::Tcp, Remove, Settings};
use nix::sched::{CloneFlags, unshare};

/// A bridge of Linux has 1,023 (BR_MAX_PORTS is 1 << BR_PORT_BITS, and none is the 0th).
const PODS: usize = 1_100;

/// Pods in namespaces that nobody is in: they cost a tenth of those with a thread.
fn empty_pods(network: &Network, count: usize) -> (Vec<File>, Vec<Attached>) {
    let network = network.clone();
    let work = move || {
        let attach = |number| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let netns = File::open("/proc/thread-self/ns/net").unwrap();
            let attachment = Attachment {
                uid: &format!("pod{number}"),
                pod: &format!("default/pod{number}"),
                netns: netns.as_fd(),
                netlink: lab::netlink_socket(),
                ports: Vec::new(),
                fixed: Vec::new(),
                bandwidth: None,
            };
            let attached = wait(network.attach(attachment)).unwrap();
            (netns, attached)
        };
        (0..count).map(attach).unzip()
    };
    thread::spawn(work).join().unwrap()
}

#[test]
fn a_network_has_room_for_more_pods_than_a_bridge_has_ports() {
    let lab = Lab::new();
    let before = lab.node.picture();
    let network = lab.open(Settings { ranges: vec![range("10.88.0.0/20"), range("fd00:88::/64")], ..lab.routed() });
    let (first, last) = (Pod::new("first"), Pod::new("last"));
    let (first_net, _first) = first.up(&network);
    let (_empty, attached) = empty_pods(&network, PODS);
    let (last_net, _last) = last.up(&network);
    let mut ips: Vec<IpAddr> = attached.iter().chain([&first_net, &last_net]).flat_map(|pod| pod.ips.clone()).collect();
    ips.sort();
    ips.dedup();
    assert_eq!(ips.len(), 2 * (PODS + 2), "each its own");
    for (client, server, name) in [(&first, &last_net, "last"), (&last, &first_net, "first")] {
        for ip in &server.ips {
            let address = std::net::SocketAddr::new(*ip, 80).to_string();
            assert!(client.netns.ask(Tcp, &address).unwrap().starts_with(name));
            assert!(lab.node.ask(Tcp, &address).unwrap().starts_with(name));
        }
    }
    wait(network.close(Remove::All)).unwrap();
    assert_eq!(lab.node.picture(), before);
}
