//! Who takes the direct way at this moment, and the order in which that changes: a pod leaves it before rules come into force that have
//! to see its packets, and before its address may be another's; it takes it when those that had to are gone.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use rustix::io::Errno;

use super::Engine;
use crate::{
    conntrack::{self, Connection},
    direct::{self, Shortcut},
    error::{Doing, Error},
    lease::Lease,
    links::{self, Link},
    nft::others::onlooker,
    settings::Isolation,
};

/// Every namespace has it.
const LOOPBACK_INDEX: u32 = 1;

/// See the module's page.
#[derive(Debug, Default)]
pub(super) struct Direct {
    /// None: nobody takes it.
    shortcut: Option<Shortcut>,
    /// Why that is so.
    refused: Option<String>,
    /// What of others sees what pods send each other; while it is there nobody takes the direct way.
    onlooker: Option<String>,
    /// The host's ends of pods' links, by UID.
    links: HashMap<String, u32>,
    /// Who takes it, by UID.
    admitted: HashMap<String, Vec<IpAddr>>,
}

impl Direct {
    /// Why no pod takes it, if that is so.
    pub(super) fn closed(&self) -> Option<&str> {
        match self.shortcut {
            Some(_) => self.onlooker.as_deref(),
            None => Some(self.refused.as_deref().unwrap_or("directPath is off")),
        }
    }

    /// Whether a pod takes it.
    pub(super) fn has(&self, uid: &str) -> bool {
        self.admitted.contains_key(uid)
    }

    /// The addresses that take it.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.admitted.values().flatten().copied()
    }

    /// The host's end of a pod's link.
    pub(super) fn found(&mut self, uid: &str, link: Option<u32>) {
        match link {
            Some(link) => drop(self.links.insert(uid.to_owned(), link)),
            None => drop(self.links.remove(uid)),
        }
    }
}

impl Engine {
    /// Before anything else is changed: what a process before let go directly goes the ordinary way, whatever it was; only this one knows
    /// what stands from now on.
    pub(super) fn begin_direct(&mut self) -> Result<(), Error> {
        let messages = self.wire.dump(&self.route, links::all_links).doing(|| "list links".into())?;
        let mut connections = Vec::new();
        for link in Link::all(&messages) {
            let Some(lease) = self.leases.of_link(&link.name).filter(|lease| lease.host_if == link.name) else { continue };
            match direct::clear(link.index) {
                Ok(found) => connections.extend(found),
                // Who has no such programs, or may have none, left none.
                Err(error) if !refuses(&error) => {
                    return Err(error).doing(|| format!("take the last process's program off {}", link.name));
                }
                Err(_) => {}
            }
            self.direct.found(&lease.uid, Some(link.index));
        }
        self.hand_back(&connections);
        if self.settings.isolation != Isolation::Routed || !self.settings.direct {
            return Ok(());
        }
        match load() {
            Ok(shortcut) => self.direct.shortcut = Some(shortcut),
            Err(reason) => {
                self.direct.refused = Some(reason);
                return Ok(());
            }
        }
        if self.leases.len() > 0 {
            let translated = conntrack::translated(&mut self.wire, &self.nft).doing(|| "list translated connections".into())?;
            self.standing.watched().translate(translated.into_iter());
        }
        self.look_for_onlookers()
    }

    /// Takes off who may not take the direct way any more.
    pub(super) fn leave_direct(&mut self) -> Result<(), Error> {
        let may = |uid: &String| self.leases.get(uid).is_some_and(|lease| self.may_go_directly(lease));
        let leaving: Vec<String> = self.direct.admitted.keys().filter(|uid| !may(uid)).cloned().collect();
        if leaving.is_empty() {
            return Ok(());
        }
        let ips: HashSet<IpAddr> = leaving.iter().filter_map(|uid| self.direct.admitted.get(uid)).flatten().copied().collect();
        leaving.iter().try_for_each(|uid| self.leave_direct_with(uid))?;
        // From here on their packets are seen. The connections that they have are known before rules come that would take them for new.
        let Some(shortcut) = &self.direct.shortcut else { return Ok(()) };
        let connections =
            shortcut.take_connections(|ip| ips.contains(&ip)).doing(|| "list connections that went directly".into())?;
        self.hand_back(&connections);
        Ok(())
    }

    /// Tells connection tracking of connections that it hasn't seen.
    fn hand_back(&mut self, connections: &[Connection]) {
        if let Err(error) = conntrack::know(&mut self.wire, &self.nft, connections) {
            tracing::warn!(%error, "connections that went directly are judged as new ones");
        }
    }

    /// Takes a pod off, for it goes, or is to change.
    pub(super) fn leave_direct_with(&mut self, uid: &str) -> Result<(), Error> {
        if let (Some(shortcut), Some(ips)) = (&self.direct.shortcut, self.direct.admitted.get(uid)) {
            for ip in ips {
                shortcut.dismiss(*ip).doing(|| format!("take {ip} off the direct way"))?;
            }
        }
        self.direct.admitted.remove(uid);
        Ok(())
    }

    /// Lets all on it who may.
    pub(super) fn join_direct(&mut self) {
        if self.direct.closed().is_some() {
            return;
        }
        let joining = |lease: &&Lease| !self.direct.has(&lease.uid) && self.may_go_directly(lease);
        let joining: Vec<Lease> = self.leases.values().filter(joining).cloned().collect();
        let before = self.direct.admitted.len();
        joining.iter().for_each(|lease| self.join_direct_with(lease));
        if self.direct.admitted.len() == before {
            return;
        }
        // Connection tracking won't see their end.
        let all: HashSet<IpAddr> = self.direct.addresses().collect();
        let Some(shortcut) = &self.direct.shortcut else { return };
        let known = conntrack::take_connections(&mut self.wire, &self.nft, |ip| all.contains(&ip));
        let noted = known.map(|known| known.into_iter().try_for_each(|connection| shortcut.note(connection)));
        if !matches!(noted, Ok(Ok(()))) {
            tracing::debug!(?noted, "connections that go directly from now on stay known to connection tracking");
        }
    }

    /// Lets a pod on it, if it may.
    pub(super) fn join_direct_with(&mut self, lease: &Lease) {
        self.standing.has_ports(lease);
        if !self.may_go_directly(lease) {
            return;
        }
        let (Some(shortcut), Some(link)) = (&self.direct.shortcut, self.direct.links.get(&lease.uid)) else { return };
        let (mac, bridge) = (lease.mac(), self.bridge.mac);
        let admitted = shortcut.watch(*link).and_then(|()| {
            // Known before the first, so that all are taken out whatever happens.
            self.direct.admitted.insert(lease.uid.clone(), lease.ips.clone());
            lease.ips.iter().try_for_each(|ip| shortcut.admit(*ip, *link, mac, bridge))
        });
        if let Err(error) = admitted {
            tracing::debug!(pod = lease.pod, %error, "the pod takes the ordinary way");
        }
    }

    fn may_go_directly(&self, lease: &Lease) -> bool {
        self.direct.closed().is_none() && self.standing.hinders(lease).is_none()
    }

    /// Looks who of others sees what pods send each other: the kernel tells when chains come and go.
    pub(super) fn look_for_onlookers(&mut self) -> Result<(), Error> {
        if self.direct.shortcut.is_none() {
            return Ok(());
        }
        let found = onlooker(&mut self.wire, &self.nft, &self.settings.table);
        // What can't be known is taken for being there.
        self.direct.onlooker = found.unwrap_or_else(|refused| Some(format!("other firewalls can't be listed: {refused}")));
        self.leave_direct()
    }

    /// What keeps a pod off the direct way, if something does.
    pub(super) fn why_not_directly(&self, lease: &Lease) -> Option<String> {
        if self.direct.has(&lease.uid) {
            return None;
        }
        let hindrance = self.standing.hinders(lease).map(|hindrance| hindrance.to_string());
        let closed = self.direct.closed().map(str::to_owned);
        closed.or(hindrance).or_else(|| Some("its link was not found".into()))
    }
}

/// Whether this kernel lets pods reach each other past the host's rules ([`crate::Settings::direct`]); if not, why.
pub fn can_go_directly() -> Result<(), String> {
    load().map(drop)
}

/// A kernel may take the program and still have no place for it: the loopback is asked.
fn load() -> Result<Shortcut, String> {
    let loaded = direct::clear(LOOPBACK_INDEX).and_then(|_| Shortcut::load());
    loaded.map_err(|error| format!("the kernel has no tcx (Linux 6.6), or allows us no eBPF: {error}"))
}

fn refuses(error: &std::io::Error) -> bool {
    [Errno::INVAL, Errno::PERM, Errno::NOSYS].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}
