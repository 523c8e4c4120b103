//! Services for a pod's sockets: who calls connect() with a Service's address is connected to an endpoint from the beginning. Its packets
//! carry the endpoint's address, so nothing is translated on their way, there or back, and nothing needs to remember them.
//!
//! [`program`] is what the kernel runs, for all processes below one cgroup (v2) whose network namespace is a pod's. What it doesn't take on
//! (UDP, affinity, other namespaces) the rules do as ever: it only ever saves them work.

mod program;

use std::{
    fs::File,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
};

use podholder::sys::bpf::{self, Map, Moment, ProgramType};

use self::program::{Maps, Sockets};
use crate::direct::{address, key};

/// Of programs and maps, as `bpftool` shows them.
const NAME: &str = "netplug_sockets";
/// More pods than a bridge has ports, with those of which nobody knows yet that they are gone.
const PODS: u32 = 8192;
const SERVICES: u32 = 65_536;
const ENDPOINTS: u32 = 1 << 20;

/// Which programs there are.
const MOMENTS: [(Moment, Sockets); 4] = [
    (Moment::Connect4, Sockets::V4),
    (Moment::Connect6, Sockets::V6),
    (Moment::PeerName4, Sockets::V4),
    (Moment::PeerName6, Sockets::V6),
];

/// A cgroup, and what its processes' sockets are led by.
#[derive(Debug)]
pub(crate) struct Balancer {
    cgroup: OwnedFd,
    /// In the order of [`MOMENTS`].
    programs: Vec<OwnedFd>,
    pods: Map,
    services: Map,
    endpoints: Map,
    last_list: u32,
}

impl Balancer {
    /// For the processes of that cgroup and of those below it. What a process before has there is gone on with, if it is the same; sockets
    /// then still know what they asked for.
    pub(crate) fn open(cgroup: &Path) -> io::Result<Balancer> {
        let cgroup = OwnedFd::from(File::open(cgroup)?);
        let new = Balancer::load(cgroup.try_clone()?)?;
        let old = Balancer::of(cgroup)?;
        if old.as_ref().is_some_and(|old| old.is_like(&new).unwrap_or(false)) {
            return old.map_or(Ok(new), |mut old| {
                old.last_list = old.lists()?.into_iter().max().unwrap_or_default();
                Ok(old)
            });
        }
        if let Some(old) = &old {
            old.pods()?.into_iter().try_for_each(|(cookie, ip)| new.admit(cookie, ip))?;
        } else {
            // Of one that wasn't whole.
            take_off(new.cgroup.as_fd())?;
        }
        for (number, program) in new.programs.iter().enumerate() {
            let replaced = old.as_ref().and_then(|old| old.programs.get(number)).map(AsFd::as_fd);
            if let Err(error) = bpf::attach(new.cgroup.as_fd(), kind(number), program.as_fd(), replaced) {
                take_off(new.cgroup.as_fd())?;
                return Err(error);
            }
        }
        Ok(new)
    }

    /// Takes the programs off a cgroup, whoever put them there.
    pub(crate) fn remove(cgroup: &Path) -> io::Result<()> {
        take_off(File::open(cgroup)?.as_fd())
    }

    /// Whether the kernel has such a thing.
    pub(crate) fn can_be() -> io::Result<()> {
        Balancer::load(OwnedFd::from(File::open("/")?)).map(drop)
    }

    fn load(cgroup: OwnedFd) -> io::Result<Balancer> {
        let pods = Map::new(NAME, program::COOKIE, program::POD, PODS)?;
        let services = Map::new(NAME, program::ADDRESS, program::LIST, SERVICES)?;
        let endpoints = Map::new(NAME, program::PLACE, program::ADDRESS, ENDPOINTS)?;
        let asked = Map::of_sockets(NAME, program::ADDRESS)?;
        let [a, b, c, d] = [&pods, &services, &endpoints, &asked].map(|map| map.as_fd().as_raw_fd());
        let maps = Maps { pods: a, services: b, endpoints: c, asked: d };
        let programs = MOMENTS.iter().map(|(moment, sockets)| {
            let code = match moment {
                Moment::Connect4 | Moment::Connect6 => program::connect(*sockets, maps),
                Moment::PeerName4 | Moment::PeerName6 => program::peer_name(*sockets, maps),
            };
            bpf::load(ProgramType::CgroupAddress(*moment), NAME, &code)
        });
        let programs = programs.collect::<io::Result<_>>()?;
        Ok(Balancer { cgroup, programs, pods, services, endpoints, last_list: 0 })
    }

    /// That of a process before, if all of it is there.
    fn of(cgroup: OwnedFd) -> io::Result<Option<Balancer>> {
        let programs = found(cgroup.as_fd())?;
        if !programs.iter().map(|(number, _)| *number).eq(0..MOMENTS.len()) {
            return Ok(None);
        }
        let programs: Vec<OwnedFd> = programs.into_iter().map(|(_, program)| program).collect();
        let (mut pods, mut services, mut endpoints) = (None, None, None);
        // The first has all of them; that of what sockets asked for is the programs' alone.
        for map in bpf::maps_of(programs[0].as_fd())? {
            match (map.key_size(), map.value_size()) {
                (program::COOKIE, program::POD) => pods = Some(map),
                (program::ADDRESS, program::LIST) => services = Some(map),
                (program::PLACE, program::ADDRESS) => endpoints = Some(map),
                _ => {}
            }
        }
        let maps = pods.zip(services).zip(endpoints);
        Ok(maps.map(|((pods, services), endpoints)| Balancer { cgroup, programs, pods, services, endpoints, last_list: 0 }))
    }

    /// Whether the other does the same, by the kernel's digests.
    fn is_like(&self, other: &Balancer) -> io::Result<bool> {
        for (one, other) in self.programs.iter().zip(&other.programs) {
            if bpf::tag_of(one.as_fd())? != bpf::tag_of(other.as_fd())? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Sockets of that network namespace, which is a pod's, are led from now on.
    pub(crate) fn admit(&self, cookie: u64, ip: IpAddr) -> io::Result<()> {
        self.pods.put(&cookie.to_ne_bytes(), &key(ip))
    }

    /// They are no more.
    pub(crate) fn dismiss(&self, cookie: u64) -> io::Result<()> {
        self.pods.remove(&cookie.to_ne_bytes())
    }

    /// Who is led: the namespaces, and the addresses of their pods.
    pub(crate) fn pods(&self) -> io::Result<Vec<(u64, IpAddr)>> {
        let mut pods = Vec::new();
        for cookie in self.pods.keys()? {
            let ip = self.pods.get(&cookie)?.and_then(|ip| <[u8; program::POD]>::try_from(ip).ok());
            pods.extend(<[u8; program::COOKIE]>::try_from(cookie).ok().map(u64::from_ne_bytes).zip(ip.map(address)));
        }
        Ok(pods)
    }

    /// From now on an address leads to these, which are of its family, and no more to those of before; to none of them: it is left to the
    /// rules.
    pub(crate) fn lead(&mut self, address: SocketAddr, endpoints: &[SocketAddr]) -> io::Result<()> {
        let key = written(address);
        let before = self.services.get(&key)?;
        if endpoints.is_empty() {
            self.services.remove(&key)?;
        } else {
            self.last_list = self.last_list.wrapping_add(1);
            let count = u32::try_from(endpoints.len()).unwrap_or(u32::MAX);
            for (place, endpoint) in (0..count).zip(endpoints) {
                self.endpoints.put(&pair(self.last_list, place), &written(*endpoint))?;
            }
            // One write: who connects meanwhile finds the old list or the new one.
            self.services.put(&key, &pair(self.last_list, count))?;
        }
        let Some((list, count)) = before.as_deref().and_then(numbers) else { return Ok(()) };
        (0..count).try_for_each(|place| self.endpoints.remove(&pair(list, place)))
    }

    /// Leaves all addresses to the rules.
    pub(crate) fn lead_nowhere(&mut self) -> io::Result<()> {
        self.services.keys()?.iter().try_for_each(|key| self.services.remove(key))?;
        self.endpoints.keys()?.iter().try_for_each(|key| self.endpoints.remove(key))
    }

    fn lists(&self) -> io::Result<Vec<u32>> {
        Ok(self.endpoints.keys()?.iter().filter_map(|key| Some(numbers(key)?.0)).collect())
    }
}

/// The programs of whoever on a cgroup, each with its place among [`MOMENTS`].
fn found(cgroup: BorrowedFd<'_>) -> io::Result<Vec<(usize, OwnedFd)>> {
    let mut found = Vec::new();
    for number in 0..MOMENTS.len() {
        for program in bpf::attached(cgroup, kind(number))? {
            if bpf::name_of(program.as_fd())? == NAME {
                found.push((number, program));
            }
        }
    }
    Ok(found)
}

fn take_off(cgroup: BorrowedFd<'_>) -> io::Result<()> {
    found(cgroup)?.iter().try_for_each(|(number, program)| bpf::detach(cgroup, kind(*number), program.as_fd()))
}

fn kind(number: usize) -> ProgramType {
    ProgramType::CgroupAddress(MOMENTS[number].0)
}

fn written(address: SocketAddr) -> [u8; program::ADDRESS] {
    let mut written = [0; program::ADDRESS];
    written[..16].copy_from_slice(&key(address.ip()));
    written[16..18].copy_from_slice(&address.port().to_be_bytes());
    written
}

fn pair(first: u32, second: u32) -> [u8; 8] {
    let mut pair = [0; 8];
    pair[..4].copy_from_slice(&first.to_ne_bytes());
    pair[4..].copy_from_slice(&second.to_ne_bytes());
    pair
}

fn numbers(pair: &[u8]) -> Option<(u32, u32)> {
    let (first, second) = pair.split_at_checked(4)?;
    Some((u32::from_ne_bytes(first.try_into().ok()?), u32::from_ne_bytes(second.try_into().ok()?)))
}
