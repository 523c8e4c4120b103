//! How soon what somebody takes away by hand is back, with few and with many pods: from the end of the command that takes it away until
//! the kernel shows it again.
//!
//!     cargo run --release -p netplug --example repair_speed [PODS ...]
//!
//! Needs root, iproute2 and nftables. It works in a network namespace of its own: the machine's network is not touched.

mod bench;

use std::{
    process::Command,
    time::{Duration, Instant},
};

use bench::{BRIDGE, Fallible, TABLE, fill, numbers, percentile, settings};
use netplug::{Isolation, Network, Remove};
use nix::sched::{CloneFlags, unshare};

/// How many harms of each kind a figure is taken from.
const SAMPLE: usize = 5;
/// A second repair right after a first is put off, lest two that disagree race: this long there is peace between two.
const PEACE: Duration = Duration::from_millis(1_500);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Fallible<()> {
    let counts = numbers([10, 100])?;
    unshare(CloneFlags::CLONE_NEWNET)?;
    let state = tempfile::tempdir_in("/dev/shm")?;
    let network = Network::open(settings(state.path(), Isolation::Routed)?).await?;
    let mut pods = Vec::new();
    for count in counts {
        fill(&network, &mut pods, count).await?;
        let link = network.attached().await?.first().map(|lease| lease.host_if.clone()).unwrap_or_default();
        for (what, harm) in [
            ("bridge deleted", format!("ip link delete {BRIDGE}")),
            ("address removed", format!("ip address flush dev {BRIDGE}")),
            ("table flushed", "nft flush ruleset".to_owned()),
            ("a veth's host end down", format!("ip link set {link} down")),
        ] {
            let mut times = Vec::new();
            for _ in 0..SAMPLE {
                std::thread::sleep(PEACE);
                let before = picture()?;
                run(&harm)?;
                let begun = Instant::now();
                while picture()? != before {}
                times.push(begun.elapsed());
            }
            println!("{count} pods, {what}: back after {:.0} ms", percentile(&mut times, 50).as_secs_f64() * 1e3);
        }
    }
    Ok(network.close(Remove::All).await?)
}

/// Addresses, how many ports are up in the bridge, and the table.
fn picture() -> Fallible<(String, usize, String)> {
    let addresses = run(&format!("ip -o -4 address show dev {BRIDGE}")).unwrap_or_default();
    let addresses = addresses.split_once(' ').map(|(_, rest)| rest.to_owned()).unwrap_or_default();
    let ports = run(&format!("ip -o link show master {BRIDGE} up")).map(|links| links.lines().count()).unwrap_or_default();
    let elements = run(&format!("nft list map inet {TABLE} ports4")).unwrap_or_default();
    Ok((addresses, ports, elements))
}

fn run(command: &str) -> Fallible<String> {
    let (program, args) = command.split_once(' ').ok_or("a program and its arguments")?;
    let output = Command::new(program).args(args.split(' ')).output()?;
    if !output.status.success() {
        return Err(format!("{command}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}
