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

/// Who has the port, in the calling thread's network namespace.
pub(crate) fn holder(port: &Port) -> Option<PortHolder> {
    [true, false].into_iter().filter(|v4| port.serves(*v4)).find_map(|v4| {
        let any: IpAddr = if v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let address = SocketAddr::new(port.specific_ip().unwrap_or(any), port.host_port);
        (try_bind(address, port.protocol) == Err(Errno::ADDRINUSE)).then(|| process(port, v4).unwrap_or(PortHolder::Socket))
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
fn process(port: &Port, v4: bool) -> Option<PortHolder> {
    let table = match (port.protocol, v4) {
        (Protocol::Tcp, true) => &["tcp", "tcp6"][..],
        (Protocol::Tcp, false) => &["tcp6"][..],
        (Protocol::Udp, true) => &["udp", "udp6"][..],
        (Protocol::Udp, false) => &["udp6"][..],
        (Protocol::Sctp, _) => return None,
    };
    let inodes: Vec<String> = table
        .iter()
        .filter_map(|name| fs::read_to_string(format!("/proc/thread-self/net/{name}")).ok())
        .flat_map(|text| text.lines().filter_map(|line| inode(line, port.host_port)).collect::<Vec<_>>())
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| has_socket(*pid, &inodes)).find_map(|pid| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        Some(PortHolder::Process { name: name.trim().to_owned(), pid })
    })
}

/// The socket's inode, of a line of /proc/net/tcp whose local port is this one.
fn inode(line: &str, port: u16) -> Option<String> {
    let mut words = line.split_whitespace();
    let local = words.nth(1)?;
    let (_, hex) = local.rsplit_once(':')?;
    let inode = words.nth(7)?;
    (u16::from_str_radix(hex, 16).ok()? == port && inode != "0").then(|| inode.to_owned())
}

fn has_socket(pid: u32, inodes: &[String]) -> bool {
    let Ok(entries) = fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd")) else { return false };
    entries
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .any(|target| target.to_str().is_some_and(|target| inodes.iter().any(|inode| inode == target)))
}
