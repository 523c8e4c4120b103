//! The machine that the agent runs on: what it is, and whether it can run pods. Knows the kernel's files and no other module.

use std::net::IpAddr;

pub mod check;
pub mod object;

/// The addresses of the node that pods and users may know: not loopback, not link-local, and of no link in `not` (the pods' bridge).
/// IPv4 first.
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
    found.sort_by_key(IpAddr::is_ipv6);
    if found.is_empty() {
        found.push(IpAddr::from([127, 0, 0, 1]));
    }
    found
}

/// The first line of a file, trimmed; empty when it can't be read.
fn line(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().lines().next().unwrap_or_default().trim().to_owned()
}
