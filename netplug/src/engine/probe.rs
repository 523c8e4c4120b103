//! Whether somebody has an address already that a pod is to get, such as a machine behind a link that was put into the bridge. The host
//! asks for its neighbour, by ARP or neighbour discovery: who answers has it. Only where the settings say so, for it is waited for.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use netlink_packet_route::{RouteNetlinkMessage, neighbour::NeighbourState};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    net::{RecvFlags, recv},
};

use super::{Engine, watch::timespec};
use crate::{
    error::{Doing, Error},
    links::{self, Mac, mac_of},
    netlink::{self, decode, split},
};

const RTNLGRP_NEIGH: u32 = 3;

impl Engine {
    /// Who answers to an address on the bridge, if somebody does within that time.
    pub(super) fn holder_of(&mut self, ip: IpAddr, patience: Duration) -> Result<Option<Mac>, Error> {
        let action = || format!("ask on bridge {} who has {ip}", self.settings.bridge);
        let bridge = self.bridge.index;
        let news = netlink::socket(NETLINK_ROUTE).doing(action)?;
        news.add_membership(RTNLGRP_NEIGH).doing(action)?;
        // What was known before may be of a pod that is gone.
        let requests = vec![links::forget_neighbour(bridge, ip), links::ask_for_neighbour(bridge, ip)];
        if let Some(refused) = self.wire.route(&self.route, requests).doing(action)?.pop().and_then(netlink::Outcome::refusal) {
            return Err(refused).doing(action);
        }
        let answer = wait(&news, bridge, ip, Instant::now() + patience);
        // A question without answer would make the host think for a while that nobody is there.
        self.wire.route(&self.route, vec![links::forget_neighbour(bridge, ip)]).doing(action)?;
        Ok(answer)
    }
}

fn wait(news: &Socket, bridge: u32, ip: IpAddr, until: Instant) -> Option<Mac> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = match recv(news, &mut buffer[..], RecvFlags::DONTWAIT) {
            Ok((length, _)) => length,
            Err(Errno::AGAIN) => {
                let left = until.checked_duration_since(Instant::now())?;
                let _ = poll(&mut [PollFd::new(news, PollFlags::IN)], Some(&timespec(left)));
                continue;
            }
            Err(Errno::INTR | Errno::NOBUFS) => continue,
            Err(_) => return None,
        };
        let mut rest = buffer.get(..length)?;
        while let Some((message, after)) = split(rest) {
            if let Some(mac) = decode(message).and_then(|message| answer(&message, bridge, ip)) {
                return Some(mac);
            }
            rest = after;
        }
    }
}

/// The address of who answered. A pod's own MAC is of its address: that is the dying link of the pod that had it before.
fn answer(message: &RouteNetlinkMessage, bridge: u32, ip: IpAddr) -> Option<Mac> {
    let RouteNetlinkMessage::NewNeighbour(message) = message else { return None };
    let (found, mac) = links::neighbour_of(message)?;
    let answered = matches!(
        message.header.state,
        NeighbourState::Reachable | NeighbourState::Stale | NeighbourState::Delay | NeighbourState::Probe
    );
    (answered && message.header.ifindex == bridge && found == ip && mac != mac_of(ip)).then_some(mac)
}
