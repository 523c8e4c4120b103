//! What others do to the network: the kernel tells of every change to links, addresses and nftables, so nothing is polled.
//! Here is decided whether a change hurts ours; [`Engine::repair`] puts it back.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use netlink_sys::{
    Socket,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fd::BorrowedFd,
    io::Errno,
    net::{RecvFlags, recv},
};

use tokio::sync::mpsc::UnboundedSender;

use super::{
    Engine, bridge, is_ours,
    pace::{Pace, until},
};
use crate::{
    error::{Doing, Error},
    links::Home,
    netlink::{self, attributes, kind, sender, split, u32_at},
    nft::{
        Obstacle,
        chain::Judged,
        others::Survey,
        wire::{concerns_chains, deletes_from, table_of},
    },
    settings::Range,
};

const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV6_IFADDR: u32 = 9;
const RTNLGRP_IPV4_ROUTE: u32 = 7;
const RTNLGRP_IPV6_ROUTE: u32 = 11;
const RTNLGRP_IPV4_NETCONF: u32 = 24;
const RTNLGRP_IPV6_NETCONF: u32 = 25;
const NFNLGRP_NFTABLES: u32 = 7;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWNETCONF: u16 = 80;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_GROUP: u16 = 27;
const IFF_UP: u32 = 1;
const RTA_DST: u16 = 1;
const RT_TABLE_MAIN: u8 = 254;
/// linux/netconf.h; -1 stands for all links.
const NETCONFA_IFINDEX: u16 = 1;
const NETCONFA_FORWARDING: u16 = 2;
const ALL_LINKS: u32 = u32::MAX;
const AF_INET: u8 = 2;
/// Of messages about a bridge's port, which come beside those about the link.
const AF_BRIDGE: u8 = 7;
/// nlmsghdr and ifinfomsg.
const LINK_HEADER: usize = 32;
/// nlmsghdr and rtmsg.
const ROUTE_HEADER: usize = 28;
/// nlmsghdr and netconfmsg.
const NETCONF_HEADER: usize = 20;

/// What route netlink tells of: links, addresses, routes, whether they forward.
pub(super) const GROUPS: [u32; 7] = [
    RTNLGRP_LINK,
    RTNLGRP_IPV4_IFADDR,
    RTNLGRP_IPV6_IFADDR,
    RTNLGRP_IPV4_ROUTE,
    RTNLGRP_IPV6_ROUTE,
    RTNLGRP_IPV4_NETCONF,
    RTNLGRP_IPV6_NETCONF,
];

/// The first repair begins so long after the change: what changes at once is mended at once.
const PATIENCE: Duration = Duration::from_millis(5);
/// So soon after a repair a change is taken as its undoing.
const CALM: Duration = Duration::from_secs(1);

/// The sockets that tell, and when to act.
#[derive(Debug)]
pub(crate) struct Watch {
    route: Socket,
    nft: Socket,
    buffer: Vec<u8>,
    pace: Pace,
    /// The bridge or the ways to pods are to be put back.
    hurt: bool,
    /// The table is.
    torn: bool,
    astray: Astray,
    /// Who wants to know of pods that lost their link.
    listeners: Vec<UnboundedSender<String>>,
    /// Whom nobody wanted to know of yet.
    untold: Vec<String>,
    /// Other people's chains that stand in the way, for who wants to know.
    firewalls: Option<tokio::sync::watch::Sender<Vec<Obstacle>>>,
    /// Chains by whose rules that was found.
    judged: Judged,
    /// Whether somebody made or removed chains, or rules of those, since they were looked at.
    chains_changed: bool,
    /// Whether a default route came or went since the ways to Services were looked at.
    routes_changed: bool,
}

/// Why the thread woke up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wake {
    /// There may be jobs.
    Bell,
    /// Something changed, or a repair is due.
    Change,
}

/// A link's state by the last message about it; it says enough to find the lease.
struct Seen {
    name: String,
    in_order: bool,
}

/// Which news concern us.
struct Ours<'a> {
    bridge: u32,
    home: Home,
    ranges: &'a [Range],
    /// The number of the socket by which we change things ourselves.
    me: u32,
}

impl Ours<'_> {
    /// Whether a route leads to one address of ours. Others come and go on a host all day.
    fn is_way(&self, message: &[u8]) -> bool {
        let attribute = attributes(message.get(ROUTE_HEADER..).unwrap_or_default()).find(|(kind, _)| *kind == RTA_DST);
        let Some((_, destination)) = attribute.filter(|_| message.get(20) == Some(&RT_TABLE_MAIN)) else { return false };
        let ip =
            <[u8; 4]>::try_from(destination).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(destination).map(IpAddr::from));
        let whole = message.get(17).is_some_and(|prefix| usize::from(*prefix) == 8 * destination.len());
        whole && ip.is_ok_and(|ip| self.ranges.iter().any(|range| range.subnet.contains(ip)))
    }

    /// Whether somebody told the host to forward nothing of a family that pods have.
    fn ends_forwarding(&self, message: &[u8]) -> bool {
        let value = |wanted: u16| {
            let mut attributes = attributes(message.get(NETCONF_HEADER..).unwrap_or_default());
            attributes.find(|(kind, _)| *kind == wanted).map(|(_, value)| u32_at(value, 0))
        };
        let v4 = message.get(16) == Some(&AF_INET);
        let ours = self.ranges.iter().any(|range| range.subnet.is_v4() == v4);
        ours && value(NETCONFA_IFINDEX) == Some(ALL_LINKS) && value(NETCONFA_FORWARDING) == Some(0)
    }
}

/// What messages told of links, read to the last.
#[derive(Default)]
struct News {
    /// By index.
    seen: HashMap<u32, Seen>,
    gone: HashMap<u32, String>,
    /// Whether the bridge is gone, down, or less an address; or somebody took the way to a pod, or from all.
    hurt: bool,
    /// Whether a default route came or went.
    default_route: bool,
}

impl News {
    fn hear(&mut self, message: &[u8], ours: &Ours<'_>) {
        let (index, bridge, home) = (u32_at(message, 20), ours.bridge, ours.home);
        match kind(message) {
            RTM_NEWROUTE | RTM_DELROUTE => {
                // Of an rtmsg's first bytes: family, length of the destination's prefix. What the kernel itself takes (0) goes with a link or
                // an address.
                self.default_route |= message.get(17) == Some(&0);
                let by_somebody = ![0, ours.me].contains(&sender(message));
                self.hurt |= matches!(home, Home::Group(..)) && by_somebody && ours.is_way(message);
            }
            RTM_NEWNETCONF => self.hurt |= ours.ends_forwarding(message),
            RTM_DELADDR => self.hurt |= index == bridge && sender(message) != ours.me,
            _ if message.get(16) == Some(&AF_BRIDGE) => {}
            RTM_DELLINK => {
                let name = seen(message, home).name;
                self.hurt |= index == bridge;
                self.seen.remove(&index);
                // Its routes went without a word.
                self.default_route |= !is_ours(&name);
                self.gone.insert(index, name);
            }
            RTM_NEWLINK if index == bridge => self.hurt |= u32_at(message, 24) & IFF_UP == 0,
            RTM_NEWLINK => {
                let link = seen(message, home);
                self.default_route |= u32_at(message, 24) & IFF_UP == 0 && !is_ours(&link.name);
                self.seen.insert(index, link);
            }
            _ => {}
        }
    }

    /// The names that no link has any more: a pod that was wired anew has a link of its name again.
    fn lost_names(&self) -> HashSet<&str> {
        let names = self.gone.values().map(String::as_str);
        names.filter(|name| !self.seen.values().any(|port| port.name == *name)).collect()
    }
}

/// Links that are down or not where they belong, by index, and their names: a pod's may have to be put back.
#[derive(Debug, Default)]
struct Astray(HashMap<u32, String>);

impl Astray {
    fn update(&mut self, news: News, is_pods: impl Fn(&str) -> bool) {
        self.0.retain(|index, _| !news.gone.contains_key(index));
        for (index, port) in news.seen {
            if port.in_order { drop(self.0.remove(&index)) } else { drop(self.0.insert(index, port.name)) }
        }
        self.0.retain(|_, name| is_pods(name));
    }
}

impl Watch {
    pub(crate) fn new() -> Result<Watch, Error> {
        let route = netlink::socket(NETLINK_ROUTE).doing(|| "open a netlink socket that watches links".into())?;
        let nft = netlink::socket(NETLINK_NETFILTER).doing(|| "open a netlink socket that watches nftables".into())?;
        for (socket, groups) in [(&route, &GROUPS[..]), (&nft, &[NFNLGRP_NFTABLES][..])] {
            for group in groups {
                socket.add_membership(*group).doing(|| format!("join netlink group {group}"))?;
            }
        }
        Ok(Watch {
            route,
            nft,
            buffer: vec![0; 64 * 1024],
            pace: Pace::new(PATIENCE, CALM),
            hurt: false,
            astray: Astray::default(),
            torn: false,
            listeners: Vec::new(),
            untold: Vec::new(),
            firewalls: None,
            judged: Judged::default(),
            chains_changed: false,
            routes_changed: false,
        })
    }

    /// Tells of a pod that has lost its link.
    pub(super) fn sever(&mut self, uid: String) {
        if self.listeners.is_empty() {
            self.untold.push(uid);
        } else {
            self.listeners.retain(|listener| listener.send(uid.clone()).is_ok());
        }
    }

    /// Sleeps until the bell rings, somebody changes something, or a repair is due, or what else is.
    fn sleep(&self, bell: BorrowedFd<'_>, due: Option<Instant>) -> Wake {
        let mut fds =
            [PollFd::new(&bell, PollFlags::IN), PollFd::new(&self.route, PollFlags::IN), PollFd::new(&self.nft, PollFlags::IN)];
        // The only error that can be is an interruption: then the caller looks everywhere and comes back.
        let _ = poll(&mut fds, earlier(self.pace.due(), due).map(until).as_ref());
        if fds[0].revents().is_empty() { Wake::Change } else { Wake::Bell }
    }
}

fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    a.into_iter().chain(b).min()
}

/// The messages that wait in a socket, to the last. Answers whether some were lost.
pub(super) fn drain(socket: &Socket, buffer: &mut [u8], mut each: impl FnMut(&[u8])) -> bool {
    let mut lost = false;
    loop {
        let length = match recv(socket, &mut *buffer, RecvFlags::DONTWAIT | RecvFlags::TRUNC) {
            Ok((_, length)) => length,
            Err(Errno::INTR) => continue,
            Err(Errno::NOBUFS) => {
                lost = true;
                continue;
            }
            Err(_) => return lost,
        };
        let Some(mut rest) = buffer.get(..length) else {
            lost = true;
            continue;
        };
        while let Some((message, after)) = split(rest) {
            each(message);
            rest = after;
        }
    }
}

impl Engine {
    /// Sleeps until there may be something to do.
    pub(crate) fn sleep(&self, bell: BorrowedFd<'_>) -> Wake {
        self.watch.as_ref().map_or(Wake::Bell, |watch| watch.sleep(bell, self.direct.due()))
    }

    /// Tells that one of pods that lose their link from now on.
    pub(crate) fn listen(&mut self, listener: UnboundedSender<String>) {
        if let Some(watch) = &mut self.watch {
            watch.listeners.push(listener);
            std::mem::take(&mut watch.untold).into_iter().for_each(|uid| watch.sever(uid));
        }
    }

    /// Other people's chains in the way, now and whenever that changes.
    pub(crate) fn firewalls(&mut self) -> Result<tokio::sync::watch::Receiver<Vec<Obstacle>>, Error> {
        let Survey { obstacles: found, judged } = self.survey()?;
        let Some(watch) = &mut self.watch else { return Ok(tokio::sync::watch::channel(found).1) };
        watch.judged = judged;
        let sender = watch.firewalls.get_or_insert_with(|| tokio::sync::watch::channel(Vec::new()).0);
        sender.send_replace(found);
        Ok(sender.subscribe())
    }

    /// Looks again when somebody made or removed chains, or rules that have a say: nobody is asked while nothing changes.
    fn tell_of_firewalls(&mut self, watch: &mut Watch) {
        if !std::mem::take(&mut watch.chains_changed) || self.closed {
            return;
        }
        match self.look_for_onlookers() {
            Ok(()) => self.join_direct(),
            Err(error) => {
                tracing::error!(%error, "what pods send each other goes past other firewalls: tried again");
                watch.chains_changed = true;
            }
        }
        let Some(sender) = &watch.firewalls else { return };
        match self.survey() {
            Ok(Survey { obstacles: found, judged }) => {
                watch.judged = judged;
                sender.send_if_modified(|known| {
                    *known != found && {
                        *known = found;
                        true
                    }
                });
            }
            Err(error) => tracing::warn!(%error, "what other firewalls do to pods could not be found out"),
        }
    }

    fn follow_routes(&mut self, watch: &mut Watch) {
        if !std::mem::take(&mut watch.routes_changed) || self.closed {
            return;
        }
        self.route_services();
    }

    /// Reads what was told, and repairs what is to be repaired by now. To be called after each job too: then what the job itself
    /// changed is read before somebody sleeps on it.
    pub(crate) fn notice(&mut self) {
        // Taken out for the time, so that it can be read beside the rest.
        let Some(mut watch) = self.watch.take() else { return };
        self.read_links(&mut watch);
        self.read_tables(&mut watch);
        if (watch.hurt || watch.torn || !watch.astray.0.is_empty()) && !self.closed {
            watch.pace.plan();
        }
        // iptables of the old kind come without a word: they are looked for when pods have come.
        watch.chains_changed |= self.direct.due().is_some_and(|due| due <= Instant::now());
        self.tell_of_firewalls(&mut watch);
        self.follow_routes(&mut watch);
        if watch.pace.is_due() && !self.closed && self.is_confirmed(&mut watch) {
            watch.pace.act();
            let (torn, _) = (std::mem::take(&mut watch.torn), std::mem::take(&mut watch.hurt));
            watch.astray = Astray::default();
            self.watch = Some(watch);
            let repaired = self.repair(torn);
            let Some(taken) = self.watch.take() else { return };
            watch = taken;
            match repaired {
                Ok(()) => tracing::warn!(
                    bridge = self.settings.bridge,
                    table = self.settings.table,
                    "the pod network was changed by somebody else: put back"
                ),
                Err(error) => {
                    tracing::error!(%error, "the pod network was changed by somebody else, and could not be put back: tried again");
                    (watch.hurt, watch.torn) = (true, torn);
                    watch.pace.plan();
                }
            }
        }
        self.watch = Some(watch);
        self.prepare_direct();
    }

    /// Whether there still is something to repair. The link of a namespace that ends is seen down and out of the bridge before it is
    /// seen gone; the kernel does all of that under one lock, which the question waits for.
    fn is_confirmed(&mut self, watch: &mut Watch) -> bool {
        if !watch.hurt && !watch.torn && bridge::find(&mut self.wire, &self.route, &self.settings.bridge).is_ok() {
            self.read_links(watch);
        }
        watch.hurt || watch.torn || !watch.astray.0.is_empty()
    }

    /// What was done to the bridge and to pods' links.
    fn read_links(&self, watch: &mut Watch) {
        let ranges = &self.settings.ranges;
        let ours = Ours { bridge: self.bridge.index, home: self.home(), ranges, me: self.port_ids.0 };
        let mut news = News::default();
        let lost = drain(&watch.route, &mut watch.buffer, |message| news.hear(message, &ours));
        watch.hurt |= news.hurt || lost;
        watch.routes_changed |= news.default_route;
        if news.seen.is_empty() && news.gone.is_empty() {
            return;
        }
        for name in news.lost_names() {
            match self.leases.of_link(name) {
                Some(lease) if lease.host_if == name => watch.sever(lease.uid.clone()),
                // Its ifb: what limits the pod's bandwidth.
                Some(_) => watch.hurt = true,
                None => {}
            }
        }
        watch.astray.update(news, |name| self.leases.of_link(name).is_some_and(|lease| lease.host_if == name));
    }

    /// What was taken out of our table, and whether chains came or went.
    fn read_tables(&self, watch: &mut Watch) {
        let (mut torn, mut chains) = (false, false);
        let table = self.settings.table.as_str();
        let me = self.port_ids.1;
        let lost = drain(&watch.nft, &mut watch.buffer, |message| {
            if sender(message) != me {
                torn |= deletes_from(message) && table_of(message) == Some(table.as_bytes());
                chains |= concerns_chains(message) || watch.judged.has(message);
            }
        });
        watch.chains_changed |= chains || lost;
        watch.torn |= torn || lost;
    }
}

fn seen(message: &[u8], home: Home) -> Seen {
    let (mut name, mut master, mut group, mut mac) = (String::new(), None, 0, None);
    for (kind, value) in attributes(message.get(LINK_HEADER..).unwrap_or_default()) {
        match kind {
            IFLA_IFNAME => String::from_utf8_lossy(value).trim_end_matches('\0').clone_into(&mut name),
            IFLA_MASTER => master = Some(u32_at(value, 0)),
            IFLA_GROUP => group = u32_at(value, 0),
            IFLA_ADDRESS => mac = value.try_into().ok(),
            _ => {}
        }
    }
    Seen { name, in_order: home.holds(master, group, mac) && u32_at(message, 24) & IFF_UP != 0 }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::settings::Settings;

    const BRIDGE: u32 = 7;
    const POD: u32 = 9;
    const GROUP: u32 = 11;
    const HOST: [u8; 6] = [0x0a, 0x58, 10, 88, 0, 1];

    /// `up`, `down`, `out` (of where it belongs) or `gone`, of the pod's link; `bridge …` of the bridge itself.
    fn message(what: &str, home: Home) -> Vec<u8> {
        let (index, state) = what.strip_prefix("bridge ").map_or((POD, what), |state| (BRIDGE, state));
        let kind = if state == "gone" { RTM_DELLINK } else { RTM_NEWLINK };
        let flags = if state == "down" { 0 } else { IFF_UP };
        let mut message = vec![0; 4];
        message.extend(kind.to_ne_bytes());
        message.extend([0; 10]);
        message.extend([0; 4]);
        message.extend(index.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend([0; 4]);
        let mut attribute = |kind: u16, value: &[u8]| {
            message.extend((4 + value.len() as u16).to_ne_bytes());
            message.extend(kind.to_ne_bytes());
            message.extend(value);
        };
        attribute(IFLA_IFNAME, b"vethpod\0");
        match home {
            Home::Group(group, mac) => {
                attribute(IFLA_GROUP, &if state == "out" { 0 } else { group }.to_ne_bytes());
                attribute(IFLA_ADDRESS, &if state == "another mac" { [2; 6] } else { mac });
            }
            Home::Ports(_) if state == "out" => {}
            Home::Ports(bridge) => attribute(IFLA_MASTER, &bridge.to_ne_bytes()),
        }
        message
    }

    /// Each word is read by itself: what was told in between has been acted upon.
    #[rstest]
    #[case::somebody_takes_it_down("up, down", true, false)]
    #[case::and_up_again("up, down, up", false, false)]
    #[case::somebody_takes_it_out("out", true, false)]
    #[case::it_dies_at_once("down+out+gone", false, false)]
    #[case::it_dies_and_that_is_told_bit_by_bit("down, out, gone", false, false)]
    #[case::it_dies_and_comes_again("down, gone, up", false, false)]
    #[case::the_bridge_goes("bridge gone", false, true)]
    #[case::the_bridge_is_taken_down("bridge down", false, true)]
    #[case::the_bridge_changes("bridge up", false, false)]
    fn what_is_to_be_put_back(
        #[case] told: &str,
        #[case] astray: bool,
        #[case] hurt: bool,
        #[values(Home::Ports(BRIDGE), Home::Group(GROUP, HOST))] home: Home,
    ) {
        let ours = Ours { bridge: BRIDGE, home, ranges: &[], me: 1 };
        let (mut known, mut harm) = (Astray::default(), false);
        for read in told.split(", ") {
            let mut news = News::default();
            read.split('+').for_each(|what| news.hear(&message(what, home), &ours));
            harm |= news.hurt;
            known.update(news, |name| name == "vethpod");
        }
        assert_eq!((!known.0.is_empty(), harm), (astray, hurt));
        known.update(News::default(), |_| false);
        assert!(known.0.is_empty(), "a pod that was released has nothing to put back");
    }

    #[test]
    fn a_link_of_another_mac_is_astray() {
        let home = Home::Group(GROUP, HOST);
        let [right, wrong] = ["up", "another mac"].map(|state| seen(&message(state, home), home).in_order);
        assert!(right && !wrong);
    }

    /// `replace 10.88.0.5/32` and the like, by a process of that number.
    fn of_route(kind: u16, by: u32, to: &str, table: u8) -> Vec<u8> {
        let to: crate::Cidr = to.parse().unwrap();
        let mut message = vec![0; 4];
        message.extend(kind.to_ne_bytes());
        message.extend([0; 6]);
        message.extend(by.to_ne_bytes());
        message.extend([if to.is_v4() { AF_INET } else { 10 }, to.prefix(), 0, 0, table, 0, 0, 0, 0, 0, 0, 0]);
        let octets = match to.base() {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        message.extend((4 + octets.len() as u16).to_ne_bytes());
        message.extend(RTA_DST.to_ne_bytes());
        message.extend(octets);
        message
    }

    #[rstest]
    #[case::taken(of_route(RTM_DELROUTE, 9, "10.88.0.5/32", RT_TABLE_MAIN), true)]
    #[case::replaced(of_route(RTM_NEWROUTE, 9, "fd00:88::5/128", RT_TABLE_MAIN), true)]
    #[case::by_the_kernel(of_route(RTM_DELROUTE, 0, "10.88.0.5/32", RT_TABLE_MAIN), false)]
    #[case::by_ourselves(of_route(RTM_DELROUTE, 1, "10.88.0.5/32", RT_TABLE_MAIN), false)]
    #[case::of_a_vpn(of_route(RTM_DELROUTE, 9, "203.0.113.7/32", RT_TABLE_MAIN), false)]
    #[case::of_another_table(of_route(RTM_DELROUTE, 9, "10.88.0.5/32", 52), false)]
    #[case::of_many(of_route(RTM_DELROUTE, 9, "10.88.0.0/16", RT_TABLE_MAIN), false)]
    fn whose_ways_are_ours(#[case] message: Vec<u8>, #[case] expected: bool) {
        let range = |subnet: &str| Range { subnet: subnet.parse().unwrap(), gateway: None, exclude: Vec::new() };
        let ranges = [range("10.88.0.0/16"), range("fd00:88::/64")];
        let mut news = News::default();
        news.hear(&message, &Ours { bridge: BRIDGE, home: Home::Group(GROUP, HOST), ranges: &ranges, me: 1 });
        assert_eq!(news.hurt, expected);
    }

    /// More news than the socket has room for: what is lost among it is put back all the same.
    #[test]
    fn news_that_were_lost_are_made_up_for() {
        let work = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("run the tests as root");
            let state = tempfile::tempdir().unwrap();
            let settings = Settings { bridge: "pods0".into(), state_dir: state.path().into(), ..Settings::default() };
            let mut engine = Engine::open(settings).unwrap();
            let ip = |args: &str| {
                let output = std::process::Command::new("ip").args(args.split(' ')).output().expect("install iproute2");
                assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
                String::from_utf8(output.stdout).unwrap()
            };
            engine.notice();
            rustix::net::sockopt::set_socket_recv_buffer_size(&engine.watch.as_ref().unwrap().route, 0).unwrap();
            ip("link add noise type bridge");
            for number in 0..50 {
                ip(&format!("link set noise alias a{number}"));
            }
            ip("address flush dev pods0");
            engine.notice();
            assert!(engine.watch.as_ref().unwrap().hurt, "the loss is noticed");
            for _ in 0..1000 {
                engine.notice();
                if ip("-o -4 address show dev pods0").contains("10.88.0.1/16") {
                    return;
                }
                std::thread::sleep(PATIENCE);
            }
            panic!("the address isn't back");
        };
        std::thread::spawn(work).join().unwrap();
    }
}
