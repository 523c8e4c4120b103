//! What a change of Services costs with few and with many of them: one endpoint of one Service comes or goes, from the call until the
//! kernel has it. The same of network policies: one pod more or less that one of them selects.
//!
//!     cargo run --release -p netplug --example rule_speed [SERVICES ...]
//!
//! Needs root. It works in a network namespace of its own: the machine's network is not touched.

mod bench;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use bench::{Fallible, micros, numbers, percentile, settings};
use netplug::{Allow, Isolation, Network, Peers, Policy, Ports, Protocol, Remove, Rules, Service};
use nix::sched::{CloneFlags, unshare};

/// How many changes a figure is taken from.
const SAMPLE: usize = 100;
/// Of each Service.
const ENDPOINTS: u32 = 3;
/// One Service of so many has session affinity.
const STICKY: usize = 20;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Fallible<()> {
    let counts = numbers([10_u32, 1000])?;
    unshare(CloneFlags::CLONE_NEWNET)?;
    let state = tempfile::tempdir_in("/dev/shm")?;
    let network = Network::open(settings(state.path(), Isolation::Routed)?).await?;
    for count in counts {
        let rules = Rules {
            service_ranges: vec!["10.96.0.0/16".parse()?],
            services: (0..count).map(|number| Arc::new(service(number))).collect(),
            policies: Vec::new(),
        };
        let mut sticky = rules.clone();
        for service in sticky.services.iter_mut().step_by(STICKY) {
            Arc::make_mut(service).affinity = Some(Duration::from_secs(10_800));
        }
        measure(&network, &format!("{count} services: an endpoint"), rules, |rules, round| {
            let changed = Arc::make_mut(&mut rules.services[round * 7 % count as usize]);
            toggle(&mut changed.endpoints, SocketAddr::new(Ipv4Addr::from(0x0a58_ff00 + 2).into(), 80), ENDPOINTS as usize);
        })
        .await?;
        let what = format!("{count} services, one of {STICKY} with affinity: an endpoint of such a one");
        measure(&network, &what, sticky, |rules, round| {
            let changed = Arc::make_mut(&mut rules.services[round * STICKY % count as usize]);
            toggle(&mut changed.endpoints, SocketAddr::new(Ipv4Addr::from(0x0a58_ff00 + 2).into(), 80), ENDPOINTS as usize);
        })
        .await?;
    }
    for (pods, policies) in [(100, 10), (1000, 100)] {
        let rules = Rules {
            policies: (0..policies).map(|number| Arc::new(policy(number, pods / policies))).collect(),
            ..Rules::default()
        };
        measure(&network, &format!("{pods} pods, {policies} policies: a pod"), rules, |rules, round| {
            let changed = Arc::make_mut(&mut rules.policies[round * 7 % policies as usize]);
            toggle(&mut changed.pods, Ipv4Addr::from(0x0a58_ff00 + 2).into(), (pods / policies) as usize);
        })
        .await?;
    }
    network.close(Remove::All).await?;
    Ok(())
}

fn service(number: u32) -> Service {
    let endpoint = |index: u32| SocketAddr::new(Ipv4Addr::from(0x0a58_0002 + (number * ENDPOINTS + index) % 60_000).into(), 80);
    Service {
        name: format!("default/service{number}:http"),
        protocol: Protocol::Tcp,
        port: 80,
        addresses: vec![Ipv4Addr::from(0x0a60_0001 + number).into()],
        node_port: None,
        endpoints: (0..ENDPOINTS).map(endpoint).collect(),
        affinity: None,
    }
}

async fn measure(network: &Network, what: &str, mut rules: Rules, change: impl Fn(&mut Rules, usize)) -> Fallible<()> {
    let begun = Instant::now();
    network.enforce(rules.clone()).await?;
    let first = begun.elapsed();
    let mut times = Vec::new();
    for round in 0..SAMPLE {
        change(&mut rules, round);
        let wanted = rules.clone();
        let begun = Instant::now();
        network.enforce(wanted).await?;
        times.push(begun.elapsed());
    }
    println!(
        "{what} more or less {:.0} µs (p50), {:.0} µs (p90); all of them at once {:.1} ms",
        micros(percentile(&mut times, 50)),
        micros(percentile(&mut times, 90)),
        first.as_secs_f64() * 1e3
    );
    Ok(())
}

/// One more than usual, or as many as usual.
fn toggle<T>(list: &mut Vec<T>, more: T, usual: usize) {
    if list.len() > usual {
        list.truncate(usual);
    } else {
        list.push(more);
    }
}

/// It selects so many pods, and lets each in that the next three select, and a block.
fn policy(number: u32, pods: u32) -> Policy {
    let of = |number: u32, count: u32| (0..count).map(move |index| Ipv4Addr::from(0x0a58_0002 + number * pods + index).into());
    let peers = Peers {
        pods: of(number + 1, 3 * pods).collect(),
        blocks: "10.99.0.0/16".parse().map(|block| (block, Vec::new())).into_iter().collect(),
    };
    let ports = vec![Ports::Range(Protocol::Tcp, Some((80, 80)))];
    Policy {
        name: format!("default/policy{number}"),
        pods: of(number, pods).collect(),
        ingress: Some(vec![Allow { peers: Some(peers), ports: Some(ports) }]),
        egress: None,
    }
}
