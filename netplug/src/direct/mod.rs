//! The direct way from pod to pod, for those whose packets nothing has to see: a program at the host's end of a pod's link hands what it
//! sends to another such pod's interface at once, past the host's routing, connection tracking and rules.
//!
//! [`who`] decides who may take it; [`program`] is what the kernel runs. Both are pure. [`Shortcut`] holds the program and the map that it
//! looks into: an address that isn't in the map takes the ordinary way, as packet's source and as its destination.

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
use crate::links::Mac;

/// Of program and map, as `bpftool` shows them.
const NAME: &str = "netplug_direct";
/// More addresses than a bridge's ports can have.
const ADDRESSES: u32 = 8192;

/// The program, loaded, and its map.
#[derive(Debug)]
pub(crate) struct Shortcut {
    map: Map,
    program: OwnedFd,
}

impl Shortcut {
    /// Refused where the kernel has no such thing, or not for us.
    pub(crate) fn load() -> io::Result<Shortcut> {
        let map = Map::new(NAME, program::KEY, program::VALUE, ADDRESSES)?;
        let program = bpf::load(ProgramType::Packets, NAME, &program::assemble(map.as_fd().as_raw_fd()))?;
        Ok(Shortcut { map, program })
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
        self.map.put(&program::key(ip), &program::value(link, pod, bridge))
    }

    /// It takes the ordinary way from now on.
    pub(crate) fn dismiss(&self, ip: IpAddr) -> io::Result<()> {
        self.map.remove(&program::key(ip))
    }
}

/// Takes such a program of a process before from a link.
pub(crate) fn clear(link: u32) -> io::Result<()> {
    for program in bpf::ingress_programs(link, NAME)? {
        bpf::detach_ingress(link, program.as_fd())?;
    }
    Ok(())
}
