//! Host ports: who has which, and their elements in the table.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use super::{Engine, host_port, pod::Wanted};
use crate::{
    conntrack::{Stale, lingers},
    error::{Doing, Error, PortHolder},
    lease::Lease,
    settings::{Port, Protocol},
};

/// Which pod has which host port.
pub(super) type Ports = HashMap<(Protocol, u16), Vec<(Port, String)>>;

impl Engine {
    pub(super) fn check_ports(&self, wanted: &Wanted) -> Result<(), Error> {
        let mine: &[Port] = self.leases.get(&wanted.uid).map_or(&[], |lease| &lease.ports);
        let families: Vec<bool> = [true, false].into_iter().filter(|v4| self.settings.has(*v4)).collect();
        for (number, port) in wanted.ports.iter().enumerate() {
            let taken = |holder| Err(Error::PortTaken { pod: wanted.pod.clone(), port: *port, holder });
            if wanted.ports[..number].iter().any(|earlier| earlier.collides(port)) {
                return taken(PortHolder::Pod(format!("{} itself", wanted.pod)));
            }
            let others = self.ports.get(&(port.protocol, port.host_port)).into_iter().flatten();
            let other = others
                .filter(|(other, uid)| *uid != wanted.uid && other.collides(port))
                .find_map(|(_, uid)| self.leases.get(uid));
            if let Some(other) = other {
                return taken(PortHolder::Pod(other.pod.clone()));
            }
            // Who executes the plugin may hold the port himself: podman's conmon does, so that nobody else takes it.
            let is_plugin = self.watch.is_none();
            if !mine.contains(port)
                && !is_plugin
                && let Some(holder) = host_port::holder(port, &families)
            {
                return taken(holder);
            }
        }
        Ok(())
    }

    /// In one batch; if the kernel doesn't have the table that we think it has, all of it anew.
    pub(super) fn open_ports(&mut self, wanted: &Wanted, lease: &Lease, before: Option<&Lease>) -> Result<(), Error> {
        let changed = before.is_some_and(|before| before.ports != lease.ports);
        if !changed && lease.ports.is_empty() {
            return Ok(());
        }
        if changed || self.table.add(&mut self.wire, &self.nft, lease).is_err() {
            // Perhaps because another pod has the port that wasn't known of.
            self.complete()?;
            self.check_ports(wanted)?;
            self.render()?;
        }
        let had = |port: &&Port| before.is_some_and(|before| before.ports.contains(port));
        let opened = lease.ports.iter().filter(|port| lingers(port.protocol) && !had(port));
        let opened = opened.map(|port| (port.protocol, port.specific_ip(), port.host_port)).collect();
        let lost = before.iter().flat_map(|before| &before.ports).filter(|port| !lease.ports.contains(port));
        self.forget_flows(&Stale { gone: targets(lost, &lease.ips), opened })
    }

    pub(super) fn close_ports(&mut self, lease: &Lease) -> Result<(), Error> {
        unindex(&mut self.ports, lease);
        if self.table.remove(&mut self.wire, &self.nft, lease).is_err() {
            self.complete()?;
            let leases = self.leases.values().filter(|other| other.uid != lease.uid);
            self.table.render(&mut self.wire, &self.nft, leases, self.standing.fragments()).doing(|| {
                format!("close the host ports of pod {} in the nftables table inet {}", lease.pod, self.settings.table)
            })?;
        }
        self.forget_flows(&Stale { gone: targets(lease.ports.iter(), &lease.ips), ..Stale::default() })
    }
}

/// Where ports lead whose flows linger.
fn targets<'a>(ports: impl Iterator<Item = &'a Port>, ips: &[IpAddr]) -> BTreeSet<(Protocol, IpAddr, u16)> {
    let ports = ports.filter(|port| lingers(port.protocol));
    ports.flat_map(|port| ips.iter().map(|ip| (port.protocol, *ip, port.container_port))).collect()
}

pub(super) fn index(ports: &mut Ports, lease: &Lease) {
    for port in &lease.ports {
        ports.entry((port.protocol, port.host_port)).or_default().push((*port, lease.uid.clone()));
    }
}

pub(super) fn unindex(ports: &mut Ports, lease: &Lease) {
    for port in &lease.ports {
        let key = (port.protocol, port.host_port);
        if let Some(holders) = ports.get_mut(&key) {
            holders.retain(|(_, uid)| *uid != lease.uid);
            if holders.is_empty() {
                ports.remove(&key);
            }
        }
    }
}
