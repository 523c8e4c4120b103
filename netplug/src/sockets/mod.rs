//! Services for a pod's sockets: who calls connect() with a Service's address is connected to an endpoint from the beginning. Its packets
//! carry the endpoint's address, so nothing is translated on their way, there or back, and nothing needs to remember them.
//!
//! [`program`] is what the kernel runs, for all processes below one cgroup (v2) whose network namespace is a pod's. What it doesn't take on
//! (UDP, affinity, other namespaces) the rules do as ever: it only ever saves them work.

mod program;

use std::{
    collections::HashSet,
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
/// Beyond these the rules translate.
const SERVICES: u32 = 16_384;
const ENDPOINTS: u32 = 65_536;

/// Which programs there are.
const MOMENTS: [(Moment, Sockets); 4] = [
    (Moment::Connect4, Sockets::V4),
    (Moment::Connect6, Sockets::V6),
    (Moment::PeerName4, Sockets::V4),
    (Moment::PeerName6, Sockets::V6),
];

/// The programs, loaded, and their maps.
#[derive(Debug)]
struct Loaded {
    /// In the order of [`MOMENTS`].
    programs: Vec<OwnedFd>,
    pods: Map,
    services: Map,
    endpoints: Map,
}

/// A cgroup, and what its processes' sockets are led by.
#[derive(Debug)]
pub(crate) struct Balancer {
    loaded: Loaded,
    last_list: u32,
    /// Endpoints of lists that were replaced: somebody may be at reading them until the next change.
    replaced: Vec<[u8; program::PLACE]>,
}

impl Loaded {
    fn new() -> io::Result<Loaded> {
        Loaded::of(|moment, sockets, maps| match moment {
            Moment::Connect4 | Moment::Connect6 => program::connect(sockets, maps),
            Moment::PeerName4 | Moment::PeerName6 => program::peer_name(sockets, maps),
        })
    }

    fn of(code: impl Fn(Moment, Sockets, Maps) -> Vec<u8>) -> io::Result<Loaded> {
        let pods = Map::new(NAME, program::COOKIE, program::POD, PODS)?;
        let services = Map::new(NAME, program::ADDRESS, program::LIST, SERVICES)?;
        let endpoints = Map::new(NAME, program::PLACE, program::ENDPOINT, ENDPOINTS)?;
        let asked = Map::of_sockets(NAME, program::ADDRESS)?;
        let [a, b, c, d] = [&pods, &services, &endpoints, &asked].map(|map| map.as_fd().as_raw_fd());
        let maps = Maps { pods: a, services: b, endpoints: c, asked: d };
        let load = |(moment, sockets)| bpf::load(ProgramType::CgroupAddress(moment), NAME, &code(moment, sockets, maps));
        Ok(Loaded { programs: MOMENTS.into_iter().map(load).collect::<io::Result<_>>()?, pods, services, endpoints })
    }

    /// What a process before put on a cgroup, if all of it is there.
    fn found(cgroup: BorrowedFd<'_>) -> io::Result<Option<Loaded>> {
        let programs = found(cgroup)?;
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
                (program::PLACE, program::ENDPOINT) => endpoints = Some(map),
                _ => {}
            }
        }
        let maps = pods.zip(services).zip(endpoints);
        Ok(maps.map(|((pods, services), endpoints)| Loaded { programs, pods, services, endpoints }))
    }

    /// Whether the other does the same, by the kernel's digests.
    fn is_like(&self, other: &Loaded) -> io::Result<bool> {
        for (one, other) in self.programs.iter().zip(&other.programs) {
            if bpf::tag_of(one.as_fd())? != bpf::tag_of(other.as_fd())? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Network namespaces whose sockets are led, and the addresses of their pods.
    fn admitted(&self) -> io::Result<Vec<(u64, IpAddr)>> {
        let mut admitted = Vec::new();
        for cookie in self.pods.keys()? {
            let ip = self.pods.get(&cookie)?.and_then(|ip| <[u8; program::POD]>::try_from(ip).ok());
            let cookie = <[u8; program::COOKIE]>::try_from(cookie).ok().map(u64::from_ne_bytes);
            admitted.extend(cookie.zip(ip.map(address)));
        }
        Ok(admitted)
    }

    /// Puts it on a cgroup, in place of another if there is one. All of it, or nothing is there.
    fn attach(&self, cgroup: BorrowedFd<'_>, old: Option<&Loaded>) -> io::Result<()> {
        for (number, program) in self.programs.iter().enumerate() {
            let replaced = old.and_then(|old| old.programs.get(number)).map(AsFd::as_fd);
            if let Err(error) = bpf::attach(cgroup, kind(number), program.as_fd(), replaced) {
                take_off(cgroup)?;
                return Err(error);
            }
        }
        Ok(())
    }
}

impl Balancer {
    /// For the processes of that cgroup and of those below it. What a process before has there is gone on with, if it is the same: sockets
    /// then still know what they asked for, and lead where they led. After a failure nobody is led.
    pub(crate) fn open(cgroup: &Path) -> io::Result<Balancer> {
        let cgroup = File::open(cgroup)?;
        Balancer::on(cgroup.as_fd()).inspect_err(|_| {
            // The error to tell is the one before.
            let _ = take_off(cgroup.as_fd());
        })
    }

    fn on(cgroup: BorrowedFd<'_>) -> io::Result<Balancer> {
        let (new, old) = (Loaded::new()?, Loaded::found(cgroup)?);
        if old.as_ref().is_some_and(|old| old.is_like(&new).unwrap_or(false)) {
            let balancer = Balancer { loaded: old.unwrap_or(new), last_list: 0, replaced: Vec::new() };
            let last_list = balancer.lists()?.into_iter().max().unwrap_or_default();
            return Ok(Balancer { last_list, ..balancer });
        }
        let balancer = Balancer { loaded: new, last_list: 0, replaced: Vec::new() };
        match &old {
            Some(old) => old.admitted()?.into_iter().try_for_each(|(cookie, ip)| balancer.admit(cookie, ip))?,
            // What is left of one that isn't whole.
            None => take_off(cgroup)?,
        }
        balancer.loaded.attach(cgroup, old.as_ref())?;
        Ok(balancer)
    }

    /// Takes the programs off a cgroup, whoever put them there.
    pub(crate) fn remove(cgroup: &Path) -> io::Result<()> {
        match File::open(cgroup) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            cgroup => take_off(cgroup?.as_fd()),
        }
    }

    /// Whether the kernel has such a thing.
    pub(crate) fn can_be() -> io::Result<()> {
        Loaded::new().map(drop)
    }

    /// Sockets of that network namespace, which is a pod's, are led from now on.
    pub(crate) fn admit(&self, cookie: u64, ip: IpAddr) -> io::Result<()> {
        self.loaded.pods.put(&cookie.to_ne_bytes(), &key(ip))
    }

    /// They are no more.
    pub(crate) fn dismiss(&self, cookie: u64) -> io::Result<()> {
        self.loaded.pods.remove(&cookie.to_ne_bytes())
    }

    /// Who is led: the namespaces, and the addresses of their pods.
    pub(crate) fn pods(&self) -> io::Result<Vec<(u64, IpAddr)>> {
        self.loaded.admitted()
    }

    /// From now on an address leads to these, which are of its family, and no more to those of before; to none of them: it is left to the
    /// rules. After a failure it leads where it did.
    pub(crate) fn lead(&mut self, address: SocketAddr, endpoints: &[SocketAddr]) -> io::Result<()> {
        let Loaded { services, endpoints: map, .. } = &self.loaded;
        std::mem::take(&mut self.replaced).iter().try_for_each(|place| map.remove(place))?;
        let key = written(address);
        let before = services.get(&key)?;
        if endpoints.is_empty() {
            services.remove(&key)?;
        } else {
            self.last_list = self.last_list.wrapping_add(1);
            let count = u32::try_from(endpoints.len()).unwrap_or(u32::MAX);
            let list = places(self.last_list, count);
            let mut puts = list.iter().zip(endpoints).map(|(place, endpoint)| {
                let value = [key, written(*endpoint)].concat();
                map.put(place, &value)
            });
            // One write: who connects meanwhile finds the old list or the new one.
            let led = puts.try_for_each(|put| put).and_then(|()| services.put(&key, &pair(self.last_list, count)));
            if let Err(error) = led {
                list.iter().try_for_each(|place| map.remove(place))?;
                return Err(error);
            }
        }
        self.replaced.extend(before.as_deref().and_then(numbers).into_iter().flat_map(|(list, count)| places(list, count)));
        Ok(())
    }

    /// Leaves all addresses but these to the rules, and forgets what nothing leads to.
    pub(crate) fn lead_no_others(&mut self, addresses: &HashSet<SocketAddr>) -> io::Result<()> {
        let wanted: HashSet<[u8; program::ADDRESS]> = addresses.iter().map(|address| written(*address)).collect();
        let Loaded { services, endpoints, .. } = &self.loaded;
        let mut lists = HashSet::new();
        for key in services.keys()? {
            if wanted.contains(&key[..]) {
                lists.extend(services.get(&key)?.as_deref().and_then(numbers).map(|(list, _)| list));
            } else {
                services.remove(&key)?;
            }
        }
        let nobodys = |place: &&Vec<u8>| numbers(place).is_none_or(|(list, _)| !lists.contains(&list));
        self.replaced.clear();
        endpoints.keys()?.iter().filter(nobodys).try_for_each(|place| endpoints.remove(place))
    }

    fn lists(&self) -> io::Result<Vec<u32>> {
        Ok(self.loaded.endpoints.keys()?.iter().filter_map(|key| Some(numbers(key)?.0)).collect())
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

fn places(list: u32, count: u32) -> Vec<[u8; program::PLACE]> {
    (0..count).map(|place| pair(list, place)).collect()
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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// A cgroup that goes with the test.
    struct Group(PathBuf);

    impl Group {
        fn new(name: &str) -> Group {
            let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
            let words = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|words| words[2] == "cgroup2");
            let dir = Path::new(words.expect("a cgroup2 mount: needed for this test")[1])
                .join(format!("{name}-{}", std::process::id()));
            std::fs::create_dir(&dir).unwrap();
            Group(dir)
        }

        fn programs(&self) -> Vec<usize> {
            found(File::open(&self.0).unwrap().as_fd()).unwrap().into_iter().map(|(number, _)| number).collect()
        }
    }

    impl Drop for Group {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir(&self.0);
        }
    }

    /// As another version might have left it: its programs begin otherwise.
    fn of_another_version() -> Loaded {
        let nothing = [crate::ebpf::MOVE, 0, 0, 0, 0, 0, 0, 0];
        Loaded::of(|_, sockets, maps| [&nothing[..], &program::connect(sockets, maps)].concat()).unwrap()
    }

    fn ip(last: u8) -> IpAddr {
        [10, 88, 0, last].into()
    }

    #[test]
    fn another_versions_programs_are_replaced_and_its_pods_kept() {
        let group = Group::new("netplug-replaced");
        let cgroup = File::open(&group.0).unwrap();
        let old = of_another_version();
        old.attach(cgroup.as_fd(), None).unwrap();
        old.pods.put(&7_u64.to_ne_bytes(), &key(ip(2))).unwrap();
        let balancer = Balancer::open(&group.0).unwrap();
        assert_eq!(balancer.pods().unwrap(), [(7, ip(2))]);
        assert_eq!(group.programs(), [0, 1, 2, 3], "each once");
        assert!(!Loaded::found(cgroup.as_fd()).unwrap().unwrap().is_like(&old).unwrap());
        drop(balancer);
        // Half of it is gone: it is put on anew.
        let (_, first) = found(cgroup.as_fd()).unwrap().swap_remove(0);
        bpf::detach(cgroup.as_fd(), kind(0), first.as_fd()).unwrap();
        assert_eq!(Balancer::open(&group.0).unwrap().pods().unwrap(), []);
        assert_eq!(group.programs(), [0, 1, 2, 3]);
        Balancer::remove(&group.0).unwrap();
        assert!(group.programs().is_empty());
    }

    #[test]
    fn who_comes_after_leads_on_and_forgets_what_is_no_more() {
        let group = Group::new("netplug-leads");
        let [a, b, c] = [1, 2, 3].map(|last| SocketAddr::new([10, 96, 0, last].into(), 80));
        let ends = |last: &[u8]| last.iter().map(|last| SocketAddr::new(ip(*last), 8080)).collect::<Vec<_>>();
        let mut first = Balancer::open(&group.0).unwrap();
        for (address, endpoints) in [(a, ends(&[2, 3])), (b, ends(&[4])), (a, ends(&[5])), (c, ends(&[6])), (c, ends(&[]))] {
            first.lead(address, &endpoints).unwrap();
        }
        drop(first);
        let mut next = Balancer::open(&group.0).unwrap();
        let led = |balancer: &Balancer| balancer.loaded.services.keys().unwrap().len();
        let places = |balancer: &Balancer| balancer.loaded.endpoints.keys().unwrap().len();
        assert_eq!(led(&next), 2);
        next.lead(a, &ends(&[7, 8, 9])).unwrap();
        next.lead_no_others(&HashSet::from([a])).unwrap();
        assert_eq!((led(&next), places(&next)), (1, 3));
        // What can't be had leaves nothing behind, and leads on where it led.
        let too_many = vec![SocketAddr::new(ip(1), 1); ENDPOINTS as usize + 1];
        assert!(next.lead(a, &too_many).is_err());
        assert_eq!((led(&next), places(&next)), (1, 3));
        next.lead(a, &[]).unwrap();
        next.lead(b, &[]).unwrap();
        assert_eq!((led(&next), places(&next)), (0, 0));
    }
}
