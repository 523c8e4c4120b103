//! Whether a process of the host has a port that a pod asks for, and which. A redirected port would leave it deaf without a word.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, socket_with, sockopt},
};

use crate::{
    error::PortHolder,
    settings::{Port, Protocol},
};

/// Who has the port, in the calling thread's network namespace, in one of these families (IPv4: true).
pub(crate) fn holder(port: &Port, families: &[bool]) -> Option<PortHolder> {
    families.iter().filter(|v4| port.serves(**v4)).find_map(|v4| {
        let any: IpAddr = if *v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let address = SocketAddr::new(port.specific_ip().unwrap_or(any), port.host_port);
        (try_bind(address, port.protocol) == Err(Errno::ADDRINUSE))
            .then(|| process(port.protocol, address).unwrap_or(PortHolder::Socket))
    })
}

/// Binds, without listening, and lets go. Every refusal but "in use" is no business of ours: an address that the host doesn't
/// have yet, a protocol that the kernel lacks.
fn try_bind(address: SocketAddr, protocol: Protocol) -> Result<(), Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let (kind, number) = match protocol {
        Protocol::Tcp => (SocketType::STREAM, ipproto::TCP),
        Protocol::Udp => (SocketType::DGRAM, ipproto::UDP),
        Protocol::Sctp => (SocketType::STREAM, ipproto::SCTP),
    };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, Some(number))?;
    if !address.is_ipv4() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if protocol == Protocol::Tcp {
        // Connections that have just ended don't hold the port; listeners do all the same.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &address)
}

/// The process behind a bound port, by /proc. Only asked when there is a conflict to explain.
fn process(protocol: Protocol, wanted: SocketAddr) -> Option<PortHolder> {
    let table = match (protocol, wanted.is_ipv4()) {
        (Protocol::Tcp, true) => &["tcp", "tcp6"][..],
        (Protocol::Tcp, false) => &["tcp6"][..],
        (Protocol::Udp, true) => &["udp", "udp6"][..],
        (Protocol::Udp, false) => &["udp6"][..],
        (Protocol::Sctp, _) => return None,
    };
    let texts = table.iter().filter_map(|name| fs::read_to_string(format!("/proc/thread-self/net/{name}")).ok());
    let mut sockets: Vec<Socket> = texts.flat_map(|text| text.lines().filter_map(socket).collect::<Vec<_>>()).collect();
    sockets.retain(|socket| meet(socket.local, wanted));
    // Connections to a server have its port, too, and often are another process's.
    sockets.sort_by_key(|socket| !socket.waits);
    let links: Vec<String> = sockets.iter().map(|socket| format!("socket:[{}]", socket.inode)).collect();
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let (_, pid) = pids.filter_map(|pid| Some((first_of(pid, &links)?, pid))).min()?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(PortHolder::Process { name: name.trim().to_owned(), pid })
}

/// A line of /proc/net/tcp and the like.
#[derive(Debug, PartialEq, Eq)]
struct Socket {
    local: SocketAddr,
    /// For whoever comes: it listens, or is connected to nobody.
    waits: bool,
    inode: u64,
}

/// `sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode …`
fn socket(line: &str) -> Option<Socket> {
    const LISTEN: &str = "0A";
    /// Of UDP: not connected.
    const CLOSE: &str = "07";
    let mut words = line.split_whitespace();
    let (ip, port) = words.nth(1)?.rsplit_once(':')?;
    let local = SocketAddr::new(address(ip)?, u16::from_str_radix(port, 16).ok()?);
    let waits = matches!(words.nth(1)?, LISTEN | CLOSE);
    let inode = words.nth(5)?.parse().ok().filter(|inode| *inode != 0)?;
    Some(Socket { local, waits, inode })
}

/// Words of 32 bits, each as this machine has it in memory.
fn address(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(hex.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    if hex.len() == 8 {
        return Some(word(0)?.into());
    }
    let words: Vec<[u8; 4]> = [0, 8, 16, 24].into_iter().map(word).collect::<Option<_>>()?;
    Some(<[u8; 16]>::try_from(words.concat()).ok()?.into())
}

/// Whether a socket that is bound to the one keeps the other from being bound. One of all addresses of IPv6 has those of IPv4, too, mostly.
fn meet(bound: SocketAddr, wanted: SocketAddr) -> bool {
    let (ours, theirs) = (wanted.ip(), bound.ip().to_canonical());
    let same_family = ours.is_ipv4() == theirs.is_ipv4();
    bound.port() == wanted.port() && (theirs.is_unspecified() || ours == theirs || ours.is_unspecified() && same_family)
}

/// The place of the first of these that the process has open.
fn first_of(pid: u32, links: &[String]) -> Option<usize> {
    let entries = fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd")).ok()?;
    let targets = entries.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    targets.filter_map(|target| links.iter().position(|link| target.as_os_str() == link.as_str())).min()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(
        "  0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0 0 4242 1 0 100 0 0 10 0",
        "127.0.0.1:8080",
        true
    )]
    #[case(" 12: 0B0200C0:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000  0 0 4242 2 0 0", "192.0.2.11:53", true)]
    #[case(
        "  1: B80D0120000000000000000001000000:1F90 B80D0120000000000000000002000000:C001 01 00000000:00000000 00:00000000 00000000 0 0 4242 1",
        "[2001:db8::1]:8080",
        false
    )]
    fn a_socket(#[case] line: &str, #[case] local: &str, #[case] waits: bool) {
        assert_eq!(socket(line), Some(Socket { local: local.parse().unwrap(), waits, inode: 4242 }));
    }

    #[test]
    fn what_is_no_socket_of_a_process() {
        for line in ["", "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"] {
            assert_eq!(socket(line), None);
        }
        // TIME_WAIT
        let line = "  0: 0100007F:1F90 0100007F:C001 06 00000000:00000000 03:00000000 00000000  0 0 0 3 0";
        assert_eq!(socket(line), None);
    }

    #[rstest]
    #[case("0.0.0.0:80", "192.0.2.1:80", true)]
    #[case("[::]:80", "192.0.2.1:80", true)]
    #[case("[::]:80", "[2001:db8::1]:80", true)]
    #[case("[::ffff:192.0.2.1]:80", "192.0.2.1:80", true)]
    #[case("192.0.2.1:80", "0.0.0.0:80", true)]
    #[case("192.0.2.1:80", "192.0.2.2:80", false)]
    #[case("192.0.2.1:80", "192.0.2.1:81", false)]
    #[case("[2001:db8::1]:80", "0.0.0.0:80", false)]
    #[case("[::1]:80", "[::]:80", true)]
    fn who_is_in_the_way(#[case] bound: &str, #[case] wanted: &str, #[case] expected: bool) {
        assert_eq!(meet(bound.parse().unwrap(), wanted.parse().unwrap()), expected);
    }
}
