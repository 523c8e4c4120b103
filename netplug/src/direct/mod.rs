//! The direct way from pod to pod, for those whose packets nothing has to see: a program at the host's end of a pod's link hands what it
//! sends to another such pod's interface at once, past the host's routing, connection tracking and rules.
//!
//! [`who`] decides who may take it; [`program`] is what the kernel runs. Both are pure. [`Shortcut`] holds the program and its maps: an
//! address that isn't in the one takes the ordinary way, as a packet's source and as its destination; in the other are the TCP connections
//! that connection tracking knows nothing of.

mod program;
mod who;

use std::{
    io,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use podholder::sys::bpf::{self, Map, ProgramType};
use rustix::io::Errno;

pub(crate) use self::who::{Hindrance, Watched};
use crate::{conntrack::Connection, links::Mac};

/// Of program and maps, as `bpftool` shows them.
const NAME: &str = "netplug_direct";
/// More addresses than a bridge's ports can have.
const ADDRESSES: u32 = 8192;
/// Connections that are noted. Beyond, those that begin are not.
const CONNECTIONS: u32 = 32_768;

/// The program, loaded, and its maps.
#[derive(Debug)]
pub(crate) struct Shortcut {
    pods: Map,
    flows: Map,
    program: OwnedFd,
}

impl Shortcut {
    /// Refused where the kernel has no such thing, or not for us.
    pub(crate) fn load() -> io::Result<Shortcut> {
        let pods = Map::new(NAME, program::KEY, program::VALUE, ADDRESSES)?;
        let flows = Map::new(NAME, program::FLOW, program::NOTE, CONNECTIONS)?;
        let code = program::assemble(pods.as_fd().as_raw_fd(), flows.as_fd().as_raw_fd());
        let program = bpf::load(ProgramType::Packets, NAME, &code)?;
        Ok(Shortcut { pods, flows, program })
    }

    /// Lets the program see what comes in by a link of the calling thread's network namespace. It goes with the link.
    pub(crate) fn watch(&self, link: u32) -> io::Result<()> {
        match bpf::attach_ingress(link, self.program.as_fd()) {
            Err(error) if error.raw_os_error() == Some(Errno::EXIST.raw_os_error()) => Ok(()),
            outcome => outcome,
        }
    }

    /// What goes from and to that address may go directly from now on. `link`: the host's end of its pod's link.
    pub(crate) fn admit(&self, ip: IpAddr, link: u32, pod: Mac, bridge: Mac) -> io::Result<()> {
        self.pods.put(&program::key(ip), &program::value(link, pod, bridge))
    }

    /// It takes the ordinary way from now on.
    pub(crate) fn dismiss(&self, ip: IpAddr) -> io::Result<()> {
        self.pods.remove(&program::key(ip))
    }

    /// The TCP connections that went directly and fit, which from now on are no more known here.
    pub(crate) fn take_connections(&self, fit: impl Fn(IpAddr) -> bool) -> io::Result<Vec<Connection>> {
        take(&self.flows, fit)
    }

    /// A connection that goes directly from now on.
    pub(crate) fn note(&self, connection: Connection) -> io::Result<()> {
        self.flows.put(&program::flow(connection.client, connection.server), &[0; program::NOTE])
    }
}

/// Takes such a program of a process before from a link. The connections that went directly by it.
pub(crate) fn clear(link: u32) -> io::Result<Vec<Connection>> {
    let mut connections = Vec::new();
    for program in bpf::ingress_programs(link, NAME)? {
        bpf::detach_ingress(link, program.as_fd())?;
        for map in bpf::maps_of(program.as_fd())?.iter().filter(|map| map.key_size() == program::FLOW) {
            connections.extend(take(map, |_| true)?);
        }
    }
    Ok(connections)
}

fn take(flows: &Map, fit: impl Fn(IpAddr) -> bool) -> io::Result<Vec<Connection>> {
    let mut taken = Vec::new();
    for flow in flows.keys()? {
        let Ok(flow) = <&[u8; program::FLOW]>::try_from(&flow[..]) else { continue };
        let (client, server) = program::ends(flow);
        if fit(client.ip()) || fit(server.ip()) {
            flows.remove(flow)?;
            taken.push(Connection { client, server });
        }
    }
    Ok(taken)
}
