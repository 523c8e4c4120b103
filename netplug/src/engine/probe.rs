//! Whether somebody has an address already that a pod is to get, such as a machine behind a link that was put into the bridge. The host
//! asks for its neighbour, by ARP or neighbour discovery: who answers has it. Only where the settings say so, for it is waited for.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use netlink_packet_route::{RouteNetlinkMessage, neighbour::NeighbourState};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use rustix::event::{PollFd, PollFlags, poll};

use super::{Engine, Wanted, pace::until, watch::drain};
use crate::{
    error::{Doing, Error},
    ipam::Refusal,
    links::{self, Mac, mac_of},
    netlink::{self, decode},
};

const RTNLGRP_NEIGH: u32 = 3;

impl Engine {
    /// Addresses for a pod that has none yet. Where the settings say so, such as nobody answers to: one that somebody does is set aside.
    pub(super) fn addresses(&mut self, wanted: &Wanted, fixed: &[IpAddr]) -> Result<Vec<IpAddr>, Error> {
        let refuse = |refusal| Error::Address { pod: wanted.pod.clone(), refusal };
        let mut strangers: HashMap<IpAddr, Mac> = HashMap::new();
        loop {
            let ips = self.pools.allocate(fixed, self.clock.now()).map_err(refuse)?;
            let (stranger, mac) = match self.first_taken(&ips, &strangers) {
                Ok(None) => return Ok(ips),
                Ok(Some(taken)) => taken,
                Err(error) => {
                    ips.into_iter().for_each(|ip| self.pools.undo(ip));
                    return Err(error);
                }
            };
            // The stranger's rests, so that another one comes first.
            self.pools.release(stranger, self.clock.now());
            ips.into_iter().filter(|ip| *ip != stranger).for_each(|ip| self.pools.undo(ip));
            // The same again: there is no other one.
            if strangers.contains_key(&stranger) || fixed.contains(&stranger) {
                return Err(refuse(Refusal::InUse(stranger, mac)));
            }
            tracing::warn!(pod = wanted.pod, "{}: the pod gets another one", Refusal::InUse(stranger, mac));
            strangers.insert(stranger, mac);
        }
    }

    /// One that somebody has, by what is known or by asking.
    fn first_taken(&mut self, ips: &[IpAddr], strangers: &HashMap<IpAddr, Mac>) -> Result<Option<(IpAddr, Mac)>, Error> {
        let Some(patience) = self.settings.probe else { return Ok(None) };
        let known = ips.iter().find_map(|ip| Some((*ip, *strangers.get(ip)?)));
        if known.is_some() {
            return Ok(known);
        }
        for ip in ips {
            if let Some(mac) = self.holder_of(*ip, patience)? {
                return Ok(Some((*ip, mac)));
            }
        }
        Ok(None)
    }

    /// Who answers to an address on the bridge, if somebody does within that time.
    fn holder_of(&mut self, ip: IpAddr, patience: Duration) -> Result<Option<Mac>, Error> {
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

fn wait(news: &Socket, bridge: u32, ip: IpAddr, end: Instant) -> Option<Mac> {
    let mut buffer = vec![0; 64 * 1024];
    let mut answered = None;
    loop {
        drain(news, &mut buffer, |message| {
            answered = answered.or_else(|| decode(message).and_then(|message| answer(&message, bridge, ip)));
        });
        if answered.is_some() || Instant::now() >= end {
            return answered;
        }
        let _ = poll(&mut [PollFd::new(news, PollFlags::IN)], Some(&until(end)));
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
