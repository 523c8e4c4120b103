//! What others do to the network: the kernel tells of every change to links, addresses and nftables, so nothing is polled.
//! Here is decided whether a change hurts ours; [`Engine::repair`] puts it back.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use netlink_sys::{
    Socket,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::BorrowedFd,
    io::Errno,
    net::{RecvFlags, recv},
};

use tokio::sync::mpsc::UnboundedSender;

use super::{Engine, bridge};
use crate::{
    bandwidth::ifb_of,
    error::{Doing, Error},
    netlink::{self, attributes, kind, sender, split, u32_at},
    nft::{
        Obstacle,
        wire::{concerns_chains, deletes_from, table_of},
    },
};

const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV6_IFADDR: u32 = 9;
const NFNLGRP_NFTABLES: u32 = 7;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_DELADDR: u16 = 21;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFF_UP: u32 = 1;
/// Of messages about a bridge's port, which come beside those about the link.
const AF_BRIDGE: u8 = 7;
/// nlmsghdr and ifinfomsg.
const LINK_HEADER: usize = 32;

/// The first repair begins so long after the change: what changes at once is mended at once.
const PATIENCE: Duration = Duration::from_millis(5);
/// When somebody undoes each repair (a second agent, a network manager), it must not become a race.
const LONGEST_PATIENCE: Duration = Duration::from_secs(10);

/// The sockets that tell, and when to act.
#[derive(Debug)]
pub(crate) struct Watch {
    route: Socket,
    nft: Socket,
    buffer: Vec<u8>,
    due: Option<Instant>,
    patience: Duration,
    repaired: Option<Instant>,
    /// The bridge or the table is to be put back.
    hurt: bool,
    /// Links of pods that are down or out of the bridge, by their index.
    astray: HashMap<u32, String>,
    /// Who wants to know of pods that lost their link.
    listeners: Vec<UnboundedSender<String>>,
    /// Other people's chains that stand in the way, for who wants to know.
    firewalls: Option<tokio::sync::watch::Sender<Vec<Obstacle>>>,
    /// Whether somebody made or removed chains since they were looked at.
    chains_changed: bool,
}

/// Why the thread woke up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wake {
    /// There may be jobs.
    Bell,
    /// Something changed, or a repair is due.
    Change,
}

/// A port's state by the last message about it; it says enough to find the lease.
struct Seen {
    name: String,
    in_order: bool,
}

impl Watch {
    pub(crate) fn new() -> Result<Watch, Error> {
        let route = netlink::socket(NETLINK_ROUTE).doing(|| "open a netlink socket that watches links".into())?;
        let nft = netlink::socket(NETLINK_NETFILTER).doing(|| "open a netlink socket that watches nftables".into())?;
        for (socket, groups) in
            [(&route, &[RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR][..]), (&nft, &[NFNLGRP_NFTABLES][..])]
        {
            for group in groups {
                socket.add_membership(*group).doing(|| format!("join netlink group {group}"))?;
            }
        }
        Ok(Watch {
            route,
            nft,
            buffer: vec![0; 64 * 1024],
            due: None,
            patience: PATIENCE,
            repaired: None,
            hurt: false,
            astray: HashMap::new(),
            listeners: Vec::new(),
            firewalls: None,
            chains_changed: false,
        })
    }

    /// Sleeps until the bell rings, somebody changes something, or a repair is due.
    fn sleep(&self, bell: BorrowedFd<'_>) -> Wake {
        let timeout = self.due.map(|due| {
            let left = due.saturating_duration_since(Instant::now());
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) }
        });
        let mut fds =
            [PollFd::new(&bell, PollFlags::IN), PollFd::new(&self.route, PollFlags::IN), PollFd::new(&self.nft, PollFlags::IN)];
        // The only error that can be is an interruption: then the caller looks everywhere and comes back.
        let _ = poll(&mut fds, timeout.as_ref());
        if fds[0].revents().is_empty() { Wake::Change } else { Wake::Bell }
    }

    fn plan_repair(&mut self) {
        if self.due.is_some() {
            return;
        }
        let again = self.repaired.is_some_and(|repaired| repaired.elapsed() < self.patience * 4 + Duration::from_secs(1));
        self.patience = if again { (self.patience * 2).min(LONGEST_PATIENCE) } else { PATIENCE };
        self.due = Some(Instant::now() + self.patience);
    }

    fn is_due(&mut self) -> bool {
        let due = self.due.is_some_and(|due| due <= Instant::now());
        if due {
            self.due = None;
        }
        due
    }
}

/// The messages that wait in a socket, to the last. Answers whether some were lost.
fn drain(socket: &Socket, buffer: &mut [u8], mut each: impl FnMut(&[u8])) -> bool {
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
        self.watch.as_ref().map_or(Wake::Bell, |watch| watch.sleep(bell))
    }

    /// Tells that one of pods that lose their link from now on.
    pub(crate) fn listen(&mut self, listener: UnboundedSender<String>) {
        if let Some(watch) = &mut self.watch {
            watch.listeners.push(listener);
        }
    }

    /// Other people's chains in the way, now and whenever that changes.
    pub(crate) fn firewalls(&mut self) -> Result<tokio::sync::watch::Receiver<Vec<Obstacle>>, Error> {
        let found = self.obstacles()?;
        let Some(watch) = &mut self.watch else { return Ok(tokio::sync::watch::channel(found).1) };
        let sender = watch.firewalls.get_or_insert_with(|| tokio::sync::watch::channel(Vec::new()).0);
        sender.send_replace(found);
        Ok(sender.subscribe())
    }

    /// Looks again when somebody made or removed chains: nobody is asked while nothing changes.
    fn tell_of_firewalls(&mut self, watch: &mut Watch) {
        if !std::mem::take(&mut watch.chains_changed) || self.closed {
            return;
        }
        let Some(sender) = &watch.firewalls else { return };
        match self.obstacles() {
            Ok(found) => drop(sender.send_if_modified(|known| {
                *known != found && {
                    *known = found;
                    true
                }
            })),
            Err(error) => tracing::warn!(%error, "what other firewalls do to pods could not be found out"),
        }
    }

    /// Reads what was told, and repairs what is to be repaired by now. To be called after each job too: then what the job itself
    /// changed is read before somebody sleeps on it.
    pub(crate) fn notice(&mut self) {
        // Taken out for the time, so that it can be read beside the rest.
        let Some(mut watch) = self.watch.take() else { return };
        self.read_links(&mut watch);
        self.read_tables(&mut watch);
        if (watch.hurt || !watch.astray.is_empty()) && !self.closed {
            watch.plan_repair();
        }
        self.tell_of_firewalls(&mut watch);
        if watch.is_due() && !self.closed && self.is_confirmed(&mut watch) {
            watch.repaired = Some(Instant::now());
            watch.hurt = false;
            watch.astray.clear();
            match self.repair() {
                Ok(()) => tracing::warn!(
                    bridge = self.settings.bridge,
                    table = self.settings.table,
                    "the pod network was changed by somebody else: put back"
                ),
                Err(error) => {
                    tracing::error!(%error, "the pod network was changed by somebody else, and could not be put back: tried again");
                    watch.hurt = true;
                    watch.plan_repair();
                }
            }
        }
        self.watch = Some(watch);
    }

    /// Whether there still is something to repair. The link of a namespace that ends is seen down and out of the bridge before it is
    /// seen gone; the kernel does all of that under one lock, which the question waits for.
    fn is_confirmed(&mut self, watch: &mut Watch) -> bool {
        if !watch.hurt && bridge::find(&mut self.wire, &self.route, &self.settings.bridge).is_ok() {
            self.read_links(watch);
        }
        watch.hurt || !watch.astray.is_empty()
    }

    /// What was done to the bridge and to pods' links.
    fn read_links(&self, watch: &mut Watch) {
        let (bridge, me) = (self.bridge.index, self.port_ids.0);
        let mut hurt = false;
        let mut seen: HashMap<u32, Seen> = HashMap::new();
        let mut gone: HashMap<u32, String> = HashMap::new();
        let lost = drain(&watch.route, &mut watch.buffer, |message| {
            let index = u32_at(message, 20);
            match kind(message) {
                RTM_DELADDR => hurt |= index == bridge && sender(message) != me,
                _ if message.get(16) == Some(&AF_BRIDGE) => {}
                RTM_DELLINK => {
                    hurt |= index == bridge;
                    seen.remove(&index);
                    gone.insert(index, port(message, bridge).name);
                }
                RTM_NEWLINK if index == bridge => hurt |= u32_at(message, 24) & IFF_UP == 0,
                RTM_NEWLINK => drop(seen.insert(index, port(message, bridge))),
                _ => {}
            }
        });
        watch.astray.retain(|index, _| !gone.contains_key(index));
        // A pod that was wired anew has a link of that name again.
        let gone: HashSet<String> = gone.into_values().filter(|name| !seen.values().any(|port| port.name == *name)).collect();
        let severed = self.leases.values().filter(|lease| gone.contains(&lease.host_if));
        severed.for_each(|lease| watch.listeners.retain(|listener| listener.send(lease.uid.clone()).is_ok()));
        let shaped = self.leases.values().filter(|lease| lease.bandwidth.is_some());
        hurt |= shaped.map(|lease| ifb_of(&lease.host_if)).any(|ifb| gone.contains(&ifb));
        for (index, port) in seen {
            if port.in_order { drop(watch.astray.remove(&index)) } else { drop(watch.astray.insert(index, port.name)) }
        }
        if !watch.astray.is_empty() {
            let of_pods: HashSet<&str> = self.leases.values().map(|lease| lease.host_if.as_str()).collect();
            watch.astray.retain(|_, name| of_pods.contains(name.as_str()));
        }
        watch.hurt |= hurt || lost;
    }

    /// What was taken out of our table, and whether chains came or went.
    fn read_tables(&self, watch: &mut Watch) {
        let (mut hurt, mut chains) = (false, false);
        let table = self.settings.table.as_str();
        let me = self.port_ids.1;
        let lost = drain(&watch.nft, &mut watch.buffer, |message| {
            if sender(message) != me {
                hurt |= deletes_from(message) && table_of(message) == Some(table.as_bytes());
                chains |= concerns_chains(message);
            }
        });
        watch.chains_changed |= chains || lost;
        watch.hurt |= hurt || lost;
    }
}

fn port(message: &[u8], bridge: u32) -> Seen {
    let (mut name, mut master) = (String::new(), None);
    for (kind, value) in attributes(message.get(LINK_HEADER..).unwrap_or_default()) {
        match kind {
            IFLA_IFNAME => String::from_utf8_lossy(value).trim_end_matches('\0').clone_into(&mut name),
            IFLA_MASTER => master = Some(u32_at(value, 0)),
            _ => {}
        }
    }
    Seen { name, in_order: master == Some(bridge) && u32_at(message, 24) & IFF_UP != 0 }
}
