//! Limits of bandwidth, seen by how long bytes take: never less than the limit says. (More, on a busy machine, is no fault.)
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    time::{Duration, Instant},
};

use lab::{Lab, Netns, Pod, eventually, wait};
use netplug::{Bandwidth, Rate};

/// 8 Mbit/s with a burst of 64 KiB.
const RATE: Rate = Rate { bits: 8_000_000, burst: 64 << 13 };
const BYTES: usize = 1 << 20;

/// How long it takes to send so many bytes from one namespace to an address of another.
fn transfer(from: &Netns, to: &Netns, address: &str) -> Duration {
    let address = address.to_owned();
    let listener = to.run(|| TcpListener::bind("0.0.0.0:5000").unwrap());
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), BYTES);
    });
    let begun = Instant::now();
    from.run(move || TcpStream::connect(format!("{address}:5000")).unwrap().write_all(&vec![1; BYTES]).unwrap());
    receiver.join().unwrap();
    begun.elapsed()
}

/// What the limit allows at best: a burst at once, the rest at the rate.
fn least() -> Duration {
    least_with(1)
}

/// After a change the network looks once more whether all is there, and a bucket that is made anew is full.
fn least_after_a_change() -> Duration {
    least_with(2)
}

fn least_with(bursts: u64) -> Duration {
    Duration::from_secs_f64((BYTES as u64 * 8 - bursts * RATE.burst) as f64 / RATE.bits as f64)
}

#[test]
fn both_ways_are_limited() {
    let lab = Lab::new();
    let network = lab.open(lab.settings());
    let free = Pod::new("free");
    free.attach(&network).unwrap();
    let mut pod = Pod::new("limited");
    pod.bandwidth = Some(Bandwidth { ingress: Some(RATE), egress: Some(RATE) });
    let attached = pod.attach(&network).unwrap();
    let ip = attached.ips[0].to_string();
    let (inwards, outwards) = (transfer(&lab.node, &pod.netns, &ip), transfer(&pod.netns, &lab.outside, lab::OUTSIDE));
    println!("in {inwards:?}, out {outwards:?}, at least {:?}", least());
    assert!(inwards >= least() && outwards >= least());

    // Asked for again it is the same; with other limits they change; without they are gone.
    pod.attach(&network).unwrap();
    let outwards = transfer(&pod.netns, &lab.outside, lab::OUTSIDE);
    assert!(outwards >= least_after_a_change(), "{outwards:?}");
    pod.bandwidth = Some(Bandwidth { ingress: Some(RATE), egress: None });
    pod.attach(&network).unwrap();
    assert!(!lab.node.ip("link show").contains("ifb"));
    let inwards = transfer(&lab.node, &pod.netns, &ip);
    assert!(inwards >= least_after_a_change(), "{inwards:?}");
    pod.bandwidth = None;
    pod.attach(&network).unwrap();
    assert!(!lab.node.command("tc", "qdisc show").unwrap().contains("tbf"));
}

#[test]
fn limits_go_with_the_pod_and_come_back_by_themselves() {
    let lab = Lab::new();
    let before = lab.node.picture();
    let network = lab.open(lab.settings());
    let limited = |name: &str| {
        let mut pod = Pod::new(name);
        pod.bandwidth = Some(Bandwidth { ingress: None, egress: Some(RATE) });
        pod.attach(&network).unwrap();
        pod
    };
    let (first, second, third) = (limited("first"), limited("second"), limited("third"));
    let ifbs = || lab.node.ip("-o link show type ifb").lines().count();
    assert_eq!(ifbs(), 3);
    let name = lab.node.ip("-o link show type ifb").split(": ").nth(1).unwrap().to_owned();
    lab.node.ip(&format!("link delete {name}"));
    eventually("the limit is put back", || ifbs() == 3);
    for pod in [&first, &second, &third] {
        assert!(transfer(&pod.netns, &lab.outside, lab::OUTSIDE) >= least());
    }
    wait(network.detach("first")).unwrap();
    assert_eq!(ifbs(), 2);
    wait(network.release_when_netns_dies("second")).unwrap();
    assert_eq!(ifbs(), 1);
    drop(network);
    // Another process takes over, and the pod has gone meanwhile.
    let network = lab.open(lab.settings());
    wait(network.retain(&[])).unwrap();
    assert_eq!(ifbs(), 0);
    drop((first, second, third));
    wait(network.close(netplug::Remove::All)).unwrap();
    eventually("nothing is left", || lab.node.picture() == before);
}

#[test]
fn this_kernel_can() {
    netplug::can_limit_bandwidth().unwrap();
}
