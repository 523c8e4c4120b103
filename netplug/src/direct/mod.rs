//! The direct way from pod to pod, for those whose packets nothing has to see: a program at the host's end of a pod's link hands what it
//! sends to another such pod's interface at once, past the host's routing, connection tracking and rules.
//!
//! [`who`] decides who may take it; [`program`] is what the kernel runs, [`hook`] where. All three are pure. [`Shortcut`] holds the program and its maps: an
//! address that isn't in the one takes the ordinary way, as a packet's source and as its destination; in the other are the TCP connections
//! that connection tracking knows nothing of.

pub(crate) mod hook;
mod program;
mod who;

use std::{
    collections::HashSet,
    io,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use podholder::sys::bpf::{self, Map, ProgramType};

pub(crate) use self::{
    program::{Care, address, key},
    who::{Hindrance, Watched},
};
use crate::{conntrack::Connection, links::Mac};

/// Of program and maps, as `bpftool` shows them.
pub(crate) const NAME: &str = "netplug_direct";
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

    /// That of a process before, by the program's number. None: it is gone, or not one of ours.
    pub(crate) fn of(id: u32) -> io::Result<Option<Shortcut>> {
        let Some(program) = bpf::program(id)? else { return Ok(None) };
        let (mut pods, mut flows) = (None, None);
        for map in bpf::maps_of(program.as_fd())? {
            match map.key_size() {
                program::KEY => pods = Some(map),
                program::FLOW => flows = Some(map),
                _ => {}
            }
        }
        Ok(pods.zip(flows).map(|(pods, flows)| Shortcut { pods, flows, program }))
    }

    /// Whether the other does the same, by the kernel's digest of it.
    pub(crate) fn is_like(&self, other: &Shortcut) -> io::Result<bool> {
        let same = |a: &Map, b: &Map| (a.key_size(), a.value_size()) == (b.key_size(), b.value_size());
        let tags = (bpf::tag_of(self.program.as_fd())?, bpf::tag_of(other.program.as_fd())?);
        Ok(tags.0 == tags.1 && same(&self.pods, &other.pods) && same(&self.flows, &other.flows))
    }

    /// The program.
    pub(crate) fn program(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }

    /// What goes from and to that address may go directly from now on. `link`: the host's end of its pod's link.
    pub(crate) fn admit(&self, ip: IpAddr, link: u32, pod: Mac, bridge: Mac, care: Care) -> io::Result<()> {
        self.pods.put(&program::key(ip), &program::value(link, pod, bridge, care))
    }

    /// It takes the ordinary way from now on.
    pub(crate) fn dismiss(&self, ip: IpAddr) -> io::Result<()> {
        self.pods.remove(&program::key(ip))
    }

    /// All take the ordinary way from now on, whoever they are. Those who didn't until then.
    pub(crate) fn dismiss_all(&self) -> io::Result<HashSet<IpAddr>> {
        let keys = self.pods.keys()?;
        keys.iter().try_for_each(|key| self.pods.remove(key))?;
        Ok(keys.into_iter().filter_map(|key| Some(program::address(key.try_into().ok()?))).collect())
    }

    /// The TCP connections that are open, with one end at least that fits. These, and those that were not, are no more known here.
    pub(crate) fn take_connections(&self, fit: impl Fn(IpAddr) -> bool) -> io::Result<Vec<Connection>> {
        let mut taken = Vec::new();
        for flow in self.flows.keys()? {
            let Ok(flow) = <&[u8; program::FLOW]>::try_from(&flow[..]) else { continue };
            let (client, server) = program::ends(flow);
            if fit(client.ip()) || fit(server.ip()) {
                let open = self.flows.get(flow)?.is_some_and(|note| program::is_open(&note));
                self.flows.remove(flow)?;
                taken.extend(open.then_some(Connection { client, server }));
            }
        }
        Ok(taken)
    }

    /// A connection that goes directly from now on.
    pub(crate) fn note(&self, connection: Connection) -> io::Result<()> {
        self.flows.put(&program::flow(connection.client, connection.server), &program::answered())
    }
}
