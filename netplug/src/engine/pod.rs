//! One pod's side: the veth pair, and what is inside the pod's namespace. What is there already is kept if it is right and mended
//! if it isn't, so attaching twice is the same as once.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    os::fd::{AsRawFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use netlink_packet_route::link::InfoKind;
use rustix::io::Errno;

use super::{Engine, bridge};
use crate::{
    bandwidth::Bandwidth,
    cidr::Cidr,
    error::{Doing, Error, Refused},
    hash::fnv1a,
    ipam::Pool,
    lease::{Lease, check_uid},
    links::{self, Address, Home, Link, Route, RouteOptions},
    netlink::{Outcome, Request},
    settings::{Isolation, Port, Settings},
};

/// Of the host's ends.
pub(crate) const LINK_PREFIX: &str = "veth";
/// How often another name is tried when a link of that name exists.
const NAMES: u32 = 16;
/// By then a link's other end was noticed, or it is of no use to wait for it.
const NOTICED: Duration = Duration::from_millis(200);

/// What a pod asks for; see [`crate::Attachment`].
#[derive(Debug)]
pub(crate) struct Wanted {
    pub uid: String,
    pub pod: String,
    pub netns: OwnedFd,
    pub netlink: OwnedFd,
    pub ports: Vec<Port>,
    pub fixed: Vec<IpAddr>,
    pub bandwidth: Option<Bandwidth>,
    /// None: that of its address.
    pub mac: Option<[u8; 6]>,
    /// The interface's name inside.
    pub link: String,
    /// Where the pod may go by its gateway, or by another neighbour; none given: everywhere.
    pub routes: Option<Vec<Via>>,
}

/// A route of a pod.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Via {
    pub to: Cidr,
    /// Unset: the gateway of the pod's address of that family.
    pub gateway: Option<IpAddr>,
    pub options: RouteOptions,
}

impl Wanted {
    pub(crate) fn check(&self, settings: &Settings) -> Result<(), Error> {
        let wrong = |problem: String| Err(Error::Attachment { pod: self.pod.clone(), problem });
        if let Err(problem) = check_uid(&self.uid) {
            return wrong(problem);
        }
        for port in &self.ports {
            if port.host_port == 0 || port.container_port == 0 {
                return wrong(format!("port {} leads to {}: both must be 1 to 65535", port.host_port, port.container_port));
            }
            if ![true, false].into_iter().any(|v4| port.serves(v4) && settings.has(v4)) {
                return wrong(format!("host port {port} is of an IP family that the pod network has no range for"));
            }
        }
        Ok(())
    }
}

/// What is found in the pod's namespace.
#[derive(Debug, Default)]
pub(crate) struct Inside {
    pub link: Option<Link>,
    pub addresses: Vec<Address>,
    /// The host's end of it, if it is in this namespace.
    pub host: Option<Link>,
}

/// A pod's link.
#[derive(Debug)]
pub(super) struct Pair {
    /// The name of the host's end.
    pub host_if: String,
    /// The pod's end.
    pub inside: Link,
}

impl Engine {
    /// Brings the pod's loopback up, and looks whether it has been wired before.
    pub(super) fn look_inside(&mut self, wanted: &Wanted) -> Result<Inside, Error> {
        let action = || format!("look into the network namespace of pod {}", wanted.pod);
        let requests = vec![links::loopback_up(), links::get_link(&wanted.link)];
        let mut outcomes = self.wire.route(&wanted.netlink, requests).doing(action)?.into_iter();
        if let Some(loopback) = outcomes.next() {
            loopback.ok().doing(|| format!("bring up the loopback of pod {}", wanted.pod))?;
        }
        let link = match outcomes.next().map(Outcome::ok) {
            Some(Ok(messages)) => Link::all(&messages).next(),
            Some(Err(refused)) if refused.errno != Errno::NODEV.raw_os_error() => return Err(refused).doing(action),
            _ => None,
        };
        let Some(link) = link else { return Ok(Inside::default()) };
        if link.kind != Some(InfoKind::Veth) {
            let problem = format!("its network namespace has an interface {} already, which is not a veth", wanted.link);
            return Err(Error::Attachment { pod: wanted.pod.clone(), problem });
        }
        let found = self.wire.dump(&wanted.netlink, links::all_addresses).doing(action)?;
        let addresses = Address::all(&found).filter(|address| address.index == link.index).collect();
        let host = self.other_end(&link)?;
        Ok(Inside { link: Some(link), addresses, host })
    }

    /// The pair of the pod: the one that is there, put right, or a new one.
    pub(super) fn pair(&mut self, wanted: &Wanted, lease: &Lease, inside: &Inside) -> Result<Pair, Error> {
        if let (Some(link), Some(host)) = (&inside.link, &inside.host) {
            let host_if = host.name.clone();
            self.mend(&Lease { host_if: host_if.clone(), ..lease.clone() })?;
            return Ok(Pair { host_if, inside: link.clone() });
        }
        if inside.link.is_some() {
            let problem = format!("its interface {} is not connected to this host", wanted.link);
            return Err(Error::Attachment { pod: wanted.pod.clone(), problem });
        }
        self.create(wanted, lease)
    }

    /// MAC, MTU, addresses, routes.
    pub(super) fn set_up_inside(&mut self, wanted: &Wanted, lease: &Lease, pair: &Pair, inside: &Inside) -> Result<(), Error> {
        let index = pair.inside.index;
        let mut requests = Vec::new();
        if inside.link.is_some() {
            requests.push(links::set_pod_link(index, lease.mac(), self.bridge.mtu));
        }
        if self.bridge.ipv6 && !self.settings.has(false) {
            requests.push(links::quiet(&wanted.link));
        }
        let stray = inside.addresses.iter().filter(|address| !lease.ips.contains(&address.ip));
        requests.extend(stray.map(|address| links::remove_address(*address)));
        let pools: Vec<(IpAddr, &Pool)> = lease.ips.iter().filter_map(|ip| Some((*ip, self.pools.of(*ip)?))).collect();
        let home = self.home();
        let subnet = |ip: &IpAddr, pool: &Pool| match home {
            Home::Group(..) => Cidr::host(*ip),
            Home::Ports(_) => pool.subnet(),
        };
        requests.extend(pools.iter().map(|(ip, pool)| links::add_address(index, *ip, subnet(ip, pool))));
        // Late, for the kernel then tells the bridge, by a worker that holds the lock that each request here waits for.
        requests.push(links::up(index));
        for (ip, pool) in pools {
            requests.extend(ip.is_ipv6().then(|| links::own(index, ip)));
            if let Home::Group(_, host) = home {
                requests.push(links::reach(index, pool.gateway(), None));
                requests.push(links::neighbour(index, pool.gateway(), host));
            }
            requests.extend(routes(wanted, ip, pool).map(|(to, gateway, options)| links::route(index, to, gateway, options)));
        }
        bridge::all(&mut self.wire, &wanted.netlink, requests, || format!("give pod {} its address and route", wanted.pod))
    }

    /// Leads the host to a pod whose link is no port, and sees to it that it gets the first packet. A link whose other end was just brought up
    /// drops all packets until a worker of the kernel has noticed; since Linux 6.8 that is done for who asks about the link.
    pub(super) fn lead_to(&mut self, lease: &Lease, pair: &Pair) -> Result<(), Error> {
        let (Some(index), Home::Group(..)) = (pair.inside.peer, self.home()) else { return Ok(()) };
        let action = || format!("lead the host to pod {} by {}", lease.pod, pair.host_if);
        let mut requests = self.ways(index, lease);
        let deadline = Instant::now() + NOTICED;
        loop {
            requests.push(links::get_link_by_index(index));
            let outcomes = self.wire.route(&self.route, std::mem::take(&mut requests)).doing(action)?;
            let answers: Vec<_> = outcomes.into_iter().map(Outcome::ok).collect::<Result<_, _>>().doing(action)?;
            if answers.iter().any(|answer| Link::all(answer).any(|link| link.passes)) || Instant::now() > deadline {
                return Ok(());
            }
            thread::sleep(NOTICED / 1000);
        }
    }

    /// What of a pod isn't as it was left, if something.
    pub(crate) fn examine(&mut self, wanted: &Wanted, lease: &Lease) -> Result<Option<String>, Error> {
        let inside = self.look_inside(wanted)?;
        let Some(link) = &inside.link else { return Ok(Some(format!("interface {} is gone", wanted.link))) };
        if !link.up {
            return Ok(Some(format!("interface {} is down", wanted.link)));
        }
        if let Some(ip) = lease.ips.iter().find(|ip| !inside.addresses.iter().any(|address| address.ip == **ip)) {
            return Ok(Some(format!("interface {} has lost its address {ip}", wanted.link)));
        }
        for ip in &lease.ips {
            let messages = self.wire.dump(&wanted.netlink, || links::all_routes(ip.is_ipv4())).doing(|| "list routes".into())?;
            let found: Vec<Route> = Route::all(&messages).collect();
            let asked = wanted.routes.iter().flatten().filter(|via| via.to.is_v4() == ip.is_ipv4() && via.options.is_main());
            if let Some(via) = asked.into_iter().find(|via| !found.iter().any(|route| route.destination == via.to)) {
                return Ok(Some(format!("the route to {} is gone", via.to)));
            }
        }
        let host = bridge::find(&mut self.wire, &self.route, &lease.host_if)?;
        if !host.is_some_and(|host| host.up && self.is_home(&host)) {
            return Ok(Some(format!("{} is not where bridge {} wants it, or down", lease.host_if, self.settings.bridge)));
        }
        if let Some(problem) = self.examine_shape(lease)? {
            return Ok(Some(problem));
        }
        let action = || format!("look for the nftables table inet {}", self.settings.table);
        if !self.table.stands(&mut self.wire, &self.nft).doing(action)? {
            return Ok(Some(format!("the nftables table inet {} is gone, or made of other settings", self.settings.table)));
        }
        Ok(None)
    }

    /// Makes a pair under the first name that is free. A link that has the name is the old one of this pod, whose namespace is
    /// just dying, or a stranger's: neither is worth waiting for.
    fn create(&mut self, wanted: &Wanted, lease: &Lease) -> Result<Pair, Error> {
        let mac = lease.mac();
        let bridge = self.settings.bridge.clone();
        let action = |name: &str| format!("create veth {name} for pod {} of bridge {bridge}", lease.pod);
        let names = (0..NAMES).map(|salt| host_link(&bridge, &lease.uid, salt));
        for name in std::iter::once(lease.host_if.clone()).chain(names) {
            let netns = wanted.netns.as_raw_fd();
            let veth = links::new_veth(&name, self.home(), self.bridge.mtu, netns, mac, &wanted.link);
            let mut outcomes =
                self.wire.route(&self.route, self.home_requests(veth, &name, lease)).doing(|| action(&name))?.into_iter();
            match outcomes.next().and_then(Outcome::refusal) {
                Some(refused) if refused.errno == Errno::EXIST.raw_os_error() && self.exists(&name)? => continue,
                Some(refused) => return Err(refused).doing(|| action(&name)),
                None => {}
            }
            let set = outcomes.find_map(Outcome::refusal).map_or(Ok(()), Err);
            let set = set.doing(|| format!("make {name} a link of bridge {bridge}"));
            match set.and_then(|()| self.restrain(&name)).and_then(|()| self.raise(wanted, lease, &name)) {
                Ok(inside) => return Ok(Pair { host_if: name, inside }),
                Err(error) => {
                    self.delete_links(&HashSet::from([name]))?;
                    return Err(error);
                }
            }
        }
        Err(Errno::EXIST).doing(|| action(&lease.host_if))
    }

    /// Brings the host's end of a new pair up. The pod's end. What filters are to hang in comes before: of a link that is up the kernel would stop
    /// all traffic for that.
    fn raise(&mut self, wanted: &Wanted, lease: &Lease, host_if: &str) -> Result<Link, Error> {
        let find = || format!("find {} of pod {}", wanted.link, wanted.pod);
        let messages = self.wire.route_one(&wanted.netlink, links::get_link(&wanted.link)).doing(find)?;
        let Some(link) = Link::all(&messages).next() else { return Err(Errno::NODEV).doing(find) };
        self.direct.found(&lease.uid, link.peer);
        let requests = self.begin_direct_with(&lease.uid).into_iter().chain([links::up_by_name(host_if)]).collect();
        let up = || format!("bring {host_if} of pod {} up", wanted.pod);
        let mut outcomes = self.wire.route(&self.route, requests).doing(up)?;
        outcomes.pop().map_or(Ok(Vec::new()), Outcome::ok).doing(up)?;
        outcomes.into_iter().for_each(|outcome| self.begun_direct(&lease.uid, outcome));
        Ok(link)
    }

    /// Where the host's ends belong.
    pub(super) fn home(&self) -> Home {
        let own = |group| Home::Group(group, bridge::mac(&self.settings).unwrap_or_default());
        self.settings.group().map_or(Home::Ports(self.bridge.index), own)
    }

    pub(super) fn is_home(&self, link: &Link) -> bool {
        self.home().holds(link.bridge, link.group, link.mac)
    }

    /// `first`, then what a veth's host end is to be before it is up.
    fn home_requests(&self, first: Request, host_if: &str, lease: &Lease) -> Vec<Request> {
        let alias = link_alias(&lease.pod);
        let set = match self.home() {
            Home::Group(..) => links::set_own(host_if, &alias),
            Home::Ports(_) => links::set_port(host_if, &alias, self.settings.isolation == Isolation::Pods),
        };
        let mut requests = vec![first, set];
        if self.bridge.ipv6 {
            requests.push(links::quiet(host_if));
        }
        requests
    }

    /// What the kernel takes by files only.
    fn restrain(&self, host_if: &str) -> Result<(), Error> {
        if self.settings.group().is_some() && self.settings.has(false) {
            return bridge::with_ipv6(host_if);
        }
        bridge::without_ipv6(host_if);
        Ok(())
    }

    /// The host's ways to a pod whose link is no port: its addresses are there, and who has them need not be asked.
    fn ways(&self, index: u32, lease: &Lease) -> Vec<Request> {
        if self.settings.group().is_none() {
            return Vec::new();
        }
        let to = |ip: &IpAddr| {
            let gateway = self.pools.of(*ip).map(Pool::gateway);
            [links::reach(index, *ip, gateway), links::neighbour(index, *ip, lease.mac())]
        };
        lease.ips.iter().flat_map(to).collect()
    }

    /// What puts a host end that exists back in order, and up.
    fn mend_requests(&self, link: &Link, lease: &Lease) -> Vec<Request> {
        let home = links::bring_home(link.index, self.home(), self.bridge.mtu);
        let mut requests = self.home_requests(home, &link.name, lease);
        requests.push(links::up_by_name(&link.name));
        requests.extend(self.ways(link.index, lease));
        requests
    }

    fn exists(&mut self, name: &str) -> Result<bool, Error> {
        Ok(bridge::find(&mut self.wire, &self.route, name)?.is_some())
    }

    /// Removes the link of a pod's last namespace, should that still be dying: it would answer to the address that the new
    /// one gets.
    pub(super) fn evict(&mut self, host_if: &str) -> Result<(), Error> {
        match bridge::find(&mut self.wire, &self.route, host_if)? {
            Some(link) if self.is_home(&link) => self.delete_links(&HashSet::from([link.name])),
            _ => Ok(()),
        }
    }

    /// Puts a host end that exists back in order.
    pub(super) fn mend(&mut self, lease: &Lease) -> Result<(), Error> {
        let host_if = lease.host_if.as_str();
        let Some(link) = bridge::find(&mut self.wire, &self.route, host_if)? else { return Ok(()) };
        self.restrain(host_if)?;
        let requests = self.mend_requests(&link, lease);
        bridge::all(&mut self.wire, &self.route, requests, || format!("put {host_if} of pod {} in order", lease.pod))
    }

    /// The host's end of a pod's veth: the link whose index and peer fit crosswise.
    fn other_end(&mut self, pod: &Link) -> Result<Option<Link>, Error> {
        let Some(index) = pod.peer else { return Ok(None) };
        let messages = match self.wire.route_one(&self.route, links::get_link_by_index(index)) {
            Ok(messages) => messages,
            Err(Refused { errno, .. }) if errno == Errno::NODEV.raw_os_error() => return Ok(None),
            Err(refused) => return Err(refused).doing(|| format!("look for link {index}")),
        };
        let veth = |link: &Link| link.kind == Some(InfoKind::Veth) && link.peer == Some(pod.index);
        Ok(Link::all(&messages).find(veth))
    }

    pub(super) fn bridge_is_gone(&mut self) -> Result<bool, Error> {
        let found = bridge::find(&mut self.wire, &self.route, &self.settings.bridge)?;
        Ok(found.is_none_or(|link| link.index != self.bridge.index))
    }

    /// Puts the pods' links that are there, but not where they belong, or not up, or whose addresses the host doesn't find, back in order: all
    /// in few packets. Pods of links that were elsewhere (ports of the bridge, for an agent before) may know the host by another MAC, or not at
    /// all: they are told of as those that lost their link are.
    pub(super) fn mend_links(&mut self) -> Result<(), Error> {
        let messages = self.wire.dump(&self.route, links::all_links).doing(|| "list links".into())?;
        let links: HashMap<String, Link> = Link::all(&messages).map(|link| (link.name.clone(), link)).collect();
        let ways = self.ways_of_host()?;
        let (mut requests, mut moved) = (Vec::new(), Vec::new());
        for lease in self.attached() {
            let Some(link) = links.get(&lease.host_if) else { continue };
            let found = |ip: &IpAddr| self.settings.group().is_none() || ways.contains(&(Cidr::host(*ip), Some(link.index)));
            let strange = !self.is_home(link);
            if strange || !link.up || !lease.ips.iter().all(found) {
                match self.restrain(&link.name) {
                    Err(error) if self.exists(&link.name)? => return Err(error),
                    Err(_) => continue,
                    Ok(()) => {}
                }
                requests.extend(self.mend_requests(link, &lease));
                moved.extend(strange.then_some(lease.uid));
            }
        }
        let gone = Errno::NODEV.raw_os_error();
        for outcome in self.wire.route(&self.route, requests).doing(|| "put pods' links in order".into())? {
            match outcome.refusal() {
                Some(refused) if refused.errno != gone => return Err(refused).doing(|| "put a pod's link in order".into()),
                _ => {}
            }
        }
        if let (Home::Group(..), Some(watch)) = (self.home(), &mut self.watch) {
            moved.into_iter().for_each(|uid| watch.sever(uid));
        }
        Ok(())
    }

    /// What leads to one address alone, and where, if pods are reached so.
    fn ways_of_host(&mut self) -> Result<HashSet<(Cidr, Option<u32>)>, Error> {
        let mut ways = HashSet::new();
        let families = [true, false].into_iter().filter(|v4| self.settings.group().is_some() && self.settings.has(*v4));
        for v4 in families {
            let messages = self.wire.dump(&self.route, || links::all_routes(v4)).doing(|| "list routes".into())?;
            ways.extend(Route::all(&messages).map(|route| (route.destination, route.link)));
        }
        Ok(ways)
    }

    /// The links that are where pods' belong.
    pub(super) fn links_at_home(&mut self) -> Result<Vec<Link>, Error> {
        let messages = self.wire.dump(&self.route, links::all_links).doing(|| "list links".into())?;
        Ok(Link::all(&messages).filter(|link| self.is_home(link)).collect())
    }

    /// Deletes links by name, all at once; those that aren't there are deleted already.
    pub(super) fn delete_links(&mut self, names: &HashSet<String>) -> Result<(), Error> {
        let mut requests = Vec::new();
        for name in names {
            if let Some(link) = bridge::find(&mut self.wire, &self.route, name)? {
                requests.push(links::doom(link.index));
            }
        }
        if requests.is_empty() {
            return Ok(());
        }
        requests.push(links::delete_doomed());
        let gone = Errno::NODEV.raw_os_error();
        for outcome in self.wire.route(&self.route, requests).doing(|| "delete links".into())? {
            match outcome.refusal() {
                Some(refused) if refused.errno != gone => return Err(refused).doing(|| format!("delete {}", list(names))),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The routes of an address's family: what was asked for, or all by the gateway.
fn routes<'a>(wanted: &'a Wanted, ip: IpAddr, pool: &'a Pool) -> impl Iterator<Item = (Cidr, IpAddr, RouteOptions)> + 'a {
    let plain = RouteOptions::default();
    let everywhere = wanted.routes.is_none().then_some((Cidr::everything(ip), pool.gateway(), plain));
    let asked = wanted.routes.iter().flatten().filter(move |via| via.to.is_v4() == ip.is_ipv4());
    everywhere.into_iter().chain(asked.map(|via| (via.to, via.gateway.unwrap_or_else(|| pool.gateway()), via.options)))
}

/// The name of the host's end: the same for the same pod, whatever process asks.
pub(crate) fn host_link(bridge: &str, uid: &str, salt: u32) -> String {
    let bytes = bridge.bytes().chain([0]).chain(uid.bytes()).chain(salt.to_be_bytes());
    format!("{LINK_PREFIX}{:010x}", fnv1a(bytes) & 0xff_ffff_ffff)
}

/// Shown by `ip link`. IFALIASZ is 256.
fn link_alias(pod: &str) -> String {
    pod.chars().filter(|character| !character.is_control()).take(120).collect()
}

fn list(names: &HashSet<String>) -> String {
    let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
    names.sort_unstable();
    names.join(", ")
}
