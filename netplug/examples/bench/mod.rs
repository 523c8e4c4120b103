//! What the measurements of the network have in common.
#![allow(dead_code, missing_docs)]

use std::{
    error::Error,
    fs::File,
    num::ParseIntError,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    str::FromStr,
    thread,
    time::Duration,
};

use netplug::{Attached, Attachment, Isolation, Network, Port, Protocol, Range, Settings};
use nix::sched::{CloneFlags, unshare};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

pub type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

pub const BRIDGE: &str = "bench0";
pub const TABLE: &str = "netplug_bench";

/// A network with room for thousands of pods, whose addresses don't rest.
pub fn settings(state: &Path, isolation: Isolation) -> Fallible<Settings> {
    Ok(Settings {
        bridge: BRIDGE.into(),
        ranges: vec![Range { subnet: "10.88.0.0/16".parse()?, gateway: None, exclude: Vec::new() }],
        table: TABLE.into(),
        state_dir: state.join("net"),
        reuse_after: Duration::ZERO,
        isolation,
        ..Settings::default()
    })
}

/// The numbers that the command line gives, or these.
pub fn numbers<T: FromStr<Err = ParseIntError>, const N: usize>(otherwise: [T; N]) -> Fallible<Vec<T>> {
    let given = std::env::args().skip(1).map(|word| word.parse()).collect::<Result<Vec<_>, _>>()?;
    Ok(if given.is_empty() { otherwise.into() } else { given })
}

/// A new network namespace and a netlink socket in it.
pub fn namespace() -> Fallible<(File, OwnedFd)> {
    let made = thread::spawn(|| -> Fallible<(File, OwnedFd)> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // Protocol 0 is NETLINK_ROUTE.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        Ok((File::open("/proc/thread-self/ns/net")?, socket))
    });
    made.join().map_err(|_| "the namespace's thread panicked")?
}

pub async fn attach(network: &Network, uid: &str, host_port: u16, netns: &File, netlink: OwnedFd) -> Fallible<Attached> {
    let port = Port { host_ip: None, host_port, container_port: 80, protocol: Protocol::Tcp };
    let attachment =
        Attachment { uid, pod: uid, netns: netns.as_fd(), netlink, ports: vec![port], fixed: Vec::new(), bandwidth: None };
    Ok(network.attach(attachment).await?)
}

/// Attaches pods until there are so many, each with a host port. Their namespaces are added to `pods`, and last as long as that.
pub async fn fill(network: &Network, pods: &mut Vec<File>, wanted: usize) -> Fallible<()> {
    for number in network.attached().await?.len()..wanted {
        let (netns, netlink) = namespace()?;
        attach(network, &format!("pod{number}"), 1024 + number as u16, &netns, netlink).await?;
        pods.push(netns);
    }
    Ok(())
}

pub fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times.get(times.len() * percent / 100).copied().unwrap_or_default()
}

pub fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
