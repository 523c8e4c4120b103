//! The machine that the agent runs on: what it is, and whether it can run pods. Knows the kernel's files and no other module.

use std::net::{IpAddr, SocketAddr, UdpSocket};

pub mod check;
pub mod object;

/// The addresses of the node that pods and users may know: not loopback, not link-local, and of no link in `not` (the pods' bridge).
/// IPv4 first, and of each family the one first by which the machine goes out.
pub fn addresses(not: &str) -> Vec<IpAddr> {
    let Ok(links) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    let mut found: Vec<IpAddr> = Vec::new();
    for link in links.filter(|l| l.interface_name != not) {
        let Some(address) = link.address else { continue };
        let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => IpAddr::from(v4.ip()),
            (_, Some(v6)) => IpAddr::from(v6.ip()),
            _ => continue,
        };
        let local = match ip {
            IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local(),
        };
        if !local && !found.contains(&ip) {
            found.push(ip);
        }
    }
    let ways_out =
        [way_out(([0, 0, 0, 0], 0).into(), ([203, 0, 113, 1], 9).into()), way_out(([0; 16], 0).into(), (TEST_NET_V6, 9).into())];
    found.sort_by_key(|ip| (ip.is_ipv6(), !ways_out.contains(&Some(*ip))));
    if found.is_empty() {
        found.push(IpAddr::from([127, 0, 0, 1]));
    }
    found
}

/// An address of the documentation's: it is nobody's, and not asked.
const TEST_NET_V6: [u8; 16] = [0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// The address that the kernel would send from. A UDP socket that is connected sends nothing.
fn way_out(from: SocketAddr, to: SocketAddr) -> Option<IpAddr> {
    let socket = UdpSocket::bind(from).ok()?;
    socket.connect(to).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

/// This life of the machine.
pub fn boot_id() -> String {
    line("/proc/sys/kernel/random/boot_id")
}

/// The first line of a file, trimmed; empty when it can't be read.
fn line(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().lines().next().unwrap_or_default().trim().to_owned()
}
