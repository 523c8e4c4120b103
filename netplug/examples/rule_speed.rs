//! What a change of Services costs with few and with many of them: one endpoint of one Service comes or goes, from the call until the
//! kernel has it.
//!
//!     cargo run --release -p netplug --example rule_speed [SERVICES ...]
//!
//! Needs root. It works in a network namespace of its own: the machine's network is not touched.

mod bench;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use bench::{Fallible, micros, numbers, percentile, settings};
use netplug::{Isolation, Network, Protocol, Remove, Rules, Service};
use nix::sched::{CloneFlags, unshare};

/// How many changes a figure is taken from.
const SAMPLE: usize = 100;
/// Of each Service.
const ENDPOINTS: u32 = 3;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Fallible<()> {
    let counts = numbers([10_u32, 1000])?;
    unshare(CloneFlags::CLONE_NEWNET)?;
    let state = tempfile::tempdir_in("/dev/shm")?;
    let network = Network::open(settings(state.path(), Isolation::Routed)?).await?;
    for count in counts {
        let mut rules = Rules {
            service_ranges: vec!["10.96.0.0/16".parse()?],
            services: (0..count).map(|number| Arc::new(service(number))).collect(),
            policies: Vec::new(),
        };
        let begun = Instant::now();
        network.enforce(rules.clone()).await?;
        let first = begun.elapsed();
        let mut times = Vec::new();
        for round in 0..SAMPLE {
            let changed = Arc::make_mut(&mut rules.services[round * 7 % count as usize]);
            let endpoint = SocketAddr::new(Ipv4Addr::from(0x0a58_ff00 + 2).into(), 80);
            if changed.endpoints.len() > ENDPOINTS as usize {
                changed.endpoints.truncate(ENDPOINTS as usize);
            } else {
                changed.endpoints.push(endpoint);
            }
            let wanted = rules.clone();
            let begun = Instant::now();
            network.enforce(wanted).await?;
            times.push(begun.elapsed());
        }
        println!(
            "{count} services: an endpoint more or less {:.0} µs (p50), {:.0} µs (p90); all of them at once {:.1} ms",
            micros(percentile(&mut times, 50)),
            micros(percentile(&mut times, 90)),
            first.as_secs_f64() * 1e3
        );
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
