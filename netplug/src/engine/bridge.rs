//! The host's side: the bridge with the gateways' addresses, forwarding, and whether the host's own routes leave room for it.
//! A bridge is made, found again by its alias, or adopted if somebody made an equal one; anything else is not touched.

use std::{collections::HashSet, fs, io, net::IpAddr, path::Path};

use netlink_packet_route::link::InfoKind;
use netlink_sys::Socket;
use rustix::io::Errno;

use super::pod::LINK_PREFIX;
use crate::{
    cidr::Cidr,
    error::{Doing, Error},
    links::{self, Address, Link, Route},
    netlink::{Request, Wire},
    settings::Settings,
};

const ETHERNET_MTU: u32 = 1500;

/// The bridge, up.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Bridge {
    pub index: u32,
    pub mtu: u32,
    /// Whether the kernel has IPv6 at all (`ipv6.disable=1`): it would refuse its settings.
    pub ipv6: bool,
}

impl Bridge {
    /// Idempotent. `pods`: the links of those that are known; none given: there may be some.
    pub(crate) fn up(
        wire: &mut Wire,
        socket: &Socket,
        settings: &Settings,
        pods: Option<&HashSet<String>>,
    ) -> Result<Bridge, Error> {
        let name = settings.bridge.as_str();
        let existing = find(wire, socket, name)?;
        let routes = Routes::read(wire, socket, settings)?;
        let ours = |link: &&Link| {
            pods.is_some_and(|pods| pods.contains(&link.name)) || settings.group().is_some_and(|group| link.group == group)
        };
        let pods_links: HashSet<u32> = routes.links.iter().filter(ours).map(|link| link.index).collect();
        let links: HashSet<u32> = pods_links.iter().copied().chain(existing.as_ref().map(|link| link.index)).collect();
        routes.check_overlap(settings, &links)?;
        let mtu = settings.mtu.unwrap_or_else(|| routes.uplink_mtu());
        let made_here = match &existing {
            Some(link) => is_ours(link, settings),
            None => true,
        };
        let index = match &existing {
            Some(link) => {
                let is_port = |port: &Link| port.bridge == Some(link.index) && port.name.starts_with(LINK_PREFIX);
                let alone = pods.is_some_and(HashSet::is_empty) && pods_links.is_empty() && !routes.links.iter().any(is_port);
                accept(wire, socket, settings, link, alone)?;
                link.index
            }
            None => create(wire, socket, settings, mtu)?,
        };
        guard_routers(settings, &routes)?;
        forward(settings)?;
        if settings.has(false) {
            // A pod could otherwise announce itself as the host's router (CVE-2020-10749).
            sysctl(&format!("net/ipv6/conf/{name}/accept_ra"), "0")?;
        }
        // The alias comes last: who finds it knows that nothing before it was left out.
        let alias = alias(settings);
        let v4 = settings.has(true).then_some(settings.group().is_none());
        let mut requests = vec![links::set_bridge(name, made_here.then_some(alias.as_str()), mtu, v4)];
        for (gateway, subnet) in gateways(settings) {
            requests.push(links::add_address(index, gateway, subnet));
        }
        let own = existing.and_then(|link| link.mac).or_else(|| mac(settings)).unwrap_or_default();
        if settings.has(false) && settings.group().is_none() {
            // The kernel asks by it who has a pod's address, for packets that aren't its own, and would see first whether somebody else has it:
            // until then nobody reaches pods from elsewhere, for up to three seconds.
            requests.push(links::add_address(index, links::link_local(own), Cidr::LINK_LOCAL));
        }
        all(wire, socket, requests, || format!("set up bridge {name}"))?;
        Ok(Bridge { index, mtu, ipv6: has_ipv6() })
    }

    /// As [`Bridge::up`], but a bridge that was made here isn't examined: nothing is listed, however many links there are.
    pub(crate) fn ready(wire: &mut Wire, socket: &Socket, settings: &Settings) -> Result<Bridge, Error> {
        match find(wire, socket, &settings.bridge)? {
            Some(link)
                if link.alias.as_ref() == Some(&alias(settings)) && link.up && settings.mtu.is_none_or(|mtu| mtu == link.mtu) =>
            {
                forward(settings)?;
                let addresses = gateways(settings).map(|(ip, subnet)| links::add_address(link.index, ip, subnet)).collect();
                all(wire, socket, addresses, || format!("give bridge {} its addresses", link.name))?;
                Ok(Bridge::of(&link))
            }
            // Pods may be on it, so it isn't renumbered.
            _ => Bridge::up(wire, socket, settings, None),
        }
    }

    /// The bridge as it is, if it is.
    pub(crate) fn as_found(wire: &mut Wire, socket: &Socket, settings: &Settings) -> Result<Bridge, Error> {
        Ok(Bridge::of(&find(wire, socket, &settings.bridge)?.unwrap_or_default()))
    }

    fn of(link: &Link) -> Bridge {
        Bridge { index: link.index, mtu: link.mtu, ipv6: has_ipv6() }
    }

    /// Removes the bridge if it was made here.
    pub(crate) fn down(wire: &mut Wire, socket: &Socket, settings: &Settings) -> Result<(), Error> {
        match find(wire, socket, &settings.bridge)? {
            Some(link) if is_ours(&link, settings) => {
                all(wire, socket, vec![links::doom(link.index), links::delete_doomed()], || {
                    format!("remove bridge {}", settings.bridge)
                })
            }
            _ => Ok(()),
        }
    }
}

fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

/// A link by name.
pub(crate) fn find(wire: &mut Wire, socket: &Socket, name: &str) -> Result<Option<Link>, Error> {
    match wire.route_one(socket, links::get_link(name)) {
        Ok(messages) => Ok(Link::all(&messages).next()),
        Err(refused) if refused.errno == Errno::NODEV.raw_os_error() => Ok(None),
        Err(refused) => Err(refused).doing(|| format!("look for link {name}")),
    }
}

/// Sends requests in one packet; the first refusal is the error.
pub(crate) fn all(
    wire: &mut Wire,
    socket: impl std::os::fd::AsFd,
    requests: Vec<Request>,
    action: impl Fn() -> String,
) -> Result<(), Error> {
    for outcome in wire.route(socket, requests).doing(&action)? {
        outcome.ok().doing(&action)?;
    }
    Ok(())
}

fn create(wire: &mut Wire, socket: &Socket, settings: &Settings, mtu: u32) -> Result<u32, Error> {
    let name = settings.bridge.as_str();
    let mac = mac(settings).unwrap_or_default();
    wire.route_one(socket, links::new_bridge(name, mac, mtu)).doing(|| format!("create bridge {name}"))?;
    match find(wire, socket, name)? {
        Some(link) => Ok(link.index),
        None => Err(Errno::NODEV).doing(|| format!("find bridge {name}, which was just made")),
    }
}

/// Whether a link that exists may serve as the bridge. It is renumbered only if nobody's pods are there.
fn accept(wire: &mut Wire, socket: &Socket, settings: &Settings, link: &Link, alone: bool) -> Result<(), Error> {
    let taken = |difference: String| Err(Error::BridgeTaken { bridge: link.name.clone(), difference });
    if link.kind != Some(InfoKind::Bridge) {
        let kind = link.kind.as_ref().map_or_else(|| "device".into(), ToString::to_string);
        return taken(format!("is a {kind}, not a bridge"));
    }
    let messages = wire.dump(socket, links::all_addresses).doing(|| "list addresses".into())?;
    let found: Vec<Address> = Address::all(&messages).filter(|address| address.index == link.index).collect();
    let wanted: HashSet<(IpAddr, u8)> = gateways(settings).map(|(gateway, subnet)| (gateway, subnet.prefix())).collect();
    let stray: Vec<Address> = found.iter().filter(|address| !wanted.contains(&(address.ip, address.prefix))).copied().collect();
    let have = || show(found.iter().map(|address| (address.ip, address.prefix)));
    let want = || show(wanted.iter().copied());
    if !is_ours(link, settings) {
        return match (stray.is_empty(), found.len() == wanted.len()) {
            (true, true) => Ok(()),
            _ => taken(format!("exists with address {}; the settings say {}", have(), want())),
        };
    }
    if !stray.is_empty() && !alone {
        return taken(format!("serves pods with address {}; the settings say {}", have(), want()));
    }
    all(wire, socket, stray.into_iter().map(links::remove_address).collect(), || format!("renumber bridge {}", link.name))
}

/// The bridge's MAC: given, or it would change with its ports. Also that of the host's end of each pod's link that is none.
pub(super) fn mac(settings: &Settings) -> Option<links::Mac> {
    settings.ranges.first().map(|range| links::mac_of(range.gateway()))
}

fn is_ours(link: &Link, settings: &Settings) -> bool {
    match &link.alias {
        Some(found) => *found == alias(settings),
        // A crash left it without alias; but nobody else gives it this MAC.
        None => link.kind == Some(InfoKind::Bridge) && link.mac.is_some() && link.mac == mac(settings),
    }
}

fn alias(settings: &Settings) -> String {
    format!("netplug {}", settings.table)
}

/// The bridge's address in each range.
fn gateways(settings: &Settings) -> impl Iterator<Item = (IpAddr, Cidr)> {
    settings.ranges.iter().map(|range| (range.gateway(), range.subnet))
}

fn show(addresses: impl Iterator<Item = (IpAddr, u8)>) -> String {
    let mut all: Vec<String> = addresses.map(|(ip, prefix)| format!("{ip}/{prefix}")).collect();
    all.sort();
    if all.is_empty() { "none".into() } else { all.join(", ") }
}

/// The host's main routing table, and its links.
struct Routes {
    routes: Vec<Route>,
    links: Vec<Link>,
}

impl Routes {
    fn read(wire: &mut Wire, socket: &Socket, settings: &Settings) -> Result<Routes, Error> {
        let links = wire.dump(socket, links::all_links).doing(|| "list links".into())?;
        let mut routes = Vec::new();
        for v4 in [true, false] {
            // A kernel without IPv6 has no routes of it to list.
            if settings.has(v4) || v4 {
                let found = wire.dump(socket, || links::all_routes(v4)).doing(|| "list routes".into())?;
                routes.extend(Route::all(&found));
            }
        }
        Ok(Routes { routes, links: Link::all(&links).collect() })
    }

    /// A range that the host routes elsewhere (a VPN, a LAN) would cut the host off from there.
    fn check_overlap(&self, settings: &Settings, ours: &HashSet<u32>) -> Result<(), Error> {
        for (number, range) in settings.ranges.iter().enumerate() {
            let other = |route: &&Route| !route.is_default() && route.destination.overlaps(&range.subnet);
            let others = self.routes.iter().filter(|route| route.link.is_none_or(|link| !ours.contains(&link)));
            if let Some(route) = others.into_iter().find(other) {
                return Err(Error::Overlap {
                    range: number,
                    subnet: range.subnet,
                    route: route.destination,
                    link: self.link(route.link).map_or_else(|| "several links".into(), |link| link.name.clone()),
                });
            }
        }
        Ok(())
    }

    /// The MTU of the link with the best default route.
    fn uplink_mtu(&self) -> u32 {
        self.uplink(None).map_or(ETHERNET_MTU, |link| link.mtu)
    }

    fn uplink(&self, v4: Option<bool>) -> Option<&Link> {
        let defaults = self.routes.iter().filter(|route| route.is_default());
        let route =
            defaults.filter(|route| v4.is_none_or(|v4| route.destination.is_v4() == v4)).min_by_key(|route| route.metric)?;
        self.link(route.link)
    }

    fn link(&self, index: Option<u32>) -> Option<&Link> {
        self.links.iter().find(|link| Some(link.index) == index)
    }
}

/// Lets the host route between the bridge and the world. Left on at the end: by then others may rely on it.
fn forward(settings: &Settings) -> Result<(), Error> {
    if settings.has(true) {
        sysctl("net/ipv4/ip_forward", "1")?;
    }
    if settings.has(false) {
        sysctl("net/ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

/// A host that forwards ignores router advertisements unless told otherwise: it would lose its own default route.
fn guard_routers(settings: &Settings, routes: &Routes) -> Result<(), Error> {
    if settings.has(false)
        && let Some(uplink) = routes.uplink(Some(false))
    {
        let path = format!("net/ipv6/conf/{}/accept_ra", uplink.name);
        if fs::read_to_string(format!("/proc/sys/{path}")).is_ok_and(|value| value.trim() == "1") {
            sysctl(&path, "2")?;
        }
    }
    Ok(())
}

/// A bridge's port has no use for IPv6 of its own, nor has a link of pods without IPv6. With it, the kernel adds a route to ff00::/8 for each
/// link when its cable is plugged in, goes through those of all others to do so, and holds the lock that the next pod waits for: that made a
/// pod cost more the more pods there were. Where it can't be written all goes on, at that cost.
pub(super) fn without_ipv6(link: &str) {
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6"), "1");
}

/// But for pods that have it. A pod is nobody's router, whatever the host's links do by default (CVE-2020-10749).
pub(super) fn with_ipv6(link: &str) -> Result<(), Error> {
    sysctl(&format!("net/ipv6/conf/{link}/accept_ra"), "0")?;
    sysctl(&format!("net/ipv6/conf/{link}/disable_ipv6"), "0")
}

/// Writes a setting of the calling thread's namespace, unless it has that value (`/proc/sys` may be read-only).
fn sysctl(name: &str, value: &str) -> Result<(), Error> {
    let path = format!("/proc/sys/{name}");
    let outcome = match fs::read_to_string(&path) {
        Ok(found) if found.trim() == value => return Ok(()),
        Ok(_) => fs::write(&path, value),
        Err(error) => Err(error),
    };
    outcome.map_err(|error: io::Error| error).doing(|| format!("write {value} to {path}"))
}
