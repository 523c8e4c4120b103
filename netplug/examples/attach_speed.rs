//! What a pod's network costs, with few and with many pods on the node, and how much of it is the kernel's own part: pods as neighbours
//! on the bridge, and as the agent has them, each reached by the host.
//!
//!     cargo run --release -p netplug --example attach_speed [PODS ...]
//!
//! Needs root. It works in a network namespace of its own: the machine's network is not touched.
#![allow(clippy::cast_lossless)]

mod bench;

use std::time::{Duration, Instant};

use bench::{Fallible, attach, fill, micros, namespace, numbers, percentile, settings};
use netplug::{Isolation, Network, Remove};
use nix::{
    sched::{CloneFlags, unshare},
    sys::resource::{UsageWho, getrusage},
};

/// How many attachments a figure is taken from.
const SAMPLE: usize = 50;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Fallible<()> {
    let batches = numbers([10, 100, 500])?;
    for (name, isolation) in [("neighbours", Isolation::Off), ("routed", Isolation::Routed)] {
        println!("{name}");
        unshare(CloneFlags::CLONE_NEWNET)?;
        with(isolation, &batches).await?;
    }
    Ok(())
}

async fn with(isolation: Isolation, batches: &[usize]) -> Fallible<()> {
    let state = tempfile::tempdir_in("/dev/shm")?;
    let network = Network::open(settings(state.path(), isolation)?).await?;
    println!("{:20} {:>8} {:>8} {:>8}", "µs, p50 of attach", "total", "kernel", "release");
    let mut pods = Vec::new();
    for batch in batches {
        fill(&network, &mut pods, *batch).await?;
        measure(&network, *batch).await?;
    }
    let start = Instant::now();
    network.close(Remove::All).await?;
    println!("all removed in {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    // The kernel ends namespaces by and by: that isn't to be measured with who comes next.
    drop(pods);
    std::thread::sleep(Duration::from_secs(3));
    Ok(())
}

async fn measure(network: &Network, pods: usize) -> Fallible<()> {
    let (mut attaching, mut releasing) = (Vec::new(), Vec::new());
    let mut steps: Vec<(&str, Vec<Duration>)> = Vec::new();
    let mut system = Duration::ZERO;
    // Kept to the end: the kernel's work for a dying namespace would be measured with the next attachment.
    let mut namespaces = Vec::new();
    for number in 0..SAMPLE {
        let uid = format!("sample{number}");
        let (netns, netlink) = namespace()?;
        let before = system_time()?;
        let start = Instant::now();
        let attached = attach(network, &uid, 60_000 + number as u16, &netns, netlink).await?;
        attaching.push(start.elapsed());
        system += system_time()?.saturating_sub(before);
        for (index, (name, taken)) in attached.steps.into_iter().enumerate() {
            match steps.get_mut(index) {
                Some((_, list)) => list.push(taken),
                None => steps.push((name, vec![taken])),
            }
        }
        namespaces.push(netns);
    }
    for number in 0..SAMPLE {
        let start = Instant::now();
        network.release_when_netns_dies(&format!("sample{number}")).await?;
        releasing.push(start.elapsed());
    }
    let total = micros(percentile(&mut attaching, 50));
    let kernel = micros(system) / SAMPLE as f64;
    print!("{:20} {total:>8.0} {kernel:>8.0} {:>8.0}", format!("with {pods} pods"), micros(percentile(&mut releasing, 50)));
    for (name, mut taken) in steps {
        print!("  {name} {:.0}", micros(percentile(&mut taken, 50)));
    }
    println!();
    // What the sample leaves in the bridge must not count as pods of the next batch.
    drop(namespaces);
    let live: Vec<String> = network.attached().await?.into_iter().map(|lease| lease.uid).collect();
    let live: Vec<&str> = live.iter().map(String::as_str).collect();
    Ok(network.retain(&live).await?)
}

fn system_time() -> Fallible<Duration> {
    let time = getrusage(UsageWho::RUSAGE_SELF)?.system_time();
    Ok(Duration::from_micros(time.tv_sec() as u64 * 1_000_000 + time.tv_usec() as u64))
}
