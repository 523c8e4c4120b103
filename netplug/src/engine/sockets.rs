//! Whose sockets are led to Services' endpoints, and where to. Never in anybody's way: what can't be led the rules translate.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Display,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    path::Path,
};

use podholder::sys;

use super::{Engine, pod::Wanted};
use crate::{
    error::{Doing, Error},
    lease::Lease,
    settings::Isolation,
    sockets::Balancer,
};

/// See the module's page.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    /// None: nobody is led.
    balancer: Option<Balancer>,
    /// Why that is so.
    refused: Option<String>,
    /// Pods' network namespaces, by UID.
    cookies: HashMap<String, u64>,
}

impl Sockets {
    /// Why nobody is led, if that is so.
    pub(super) fn closed(&self) -> Option<&str> {
        self.balancer.is_none().then(|| self.refused.as_deref().unwrap_or("directPath is off"))
    }

    fn refuse(&mut self, reason: impl Display) {
        self.balancer = None;
        self.refused = Some(reason.to_string());
    }
}

impl Engine {
    /// Goes on with those that a process before led; where to, the rules will tell.
    pub(super) fn begin_sockets(&mut self) {
        let Some(cgroup) = self.settings.pods_cgroup.clone() else {
            return self.sockets.refuse("pods have no cgroup of version 2");
        };
        if self.settings.isolation != Isolation::Routed || !self.settings.direct {
            if let Err(error) = Balancer::remove(&cgroup) {
                tracing::debug!(%error, "nothing is taken off cgroup {}", cgroup.display());
            }
            return;
        }
        match self.open_balancer(&cgroup) {
            Ok(()) => self.standing.watched().leads_sockets = true,
            Err(error) => self.sockets.refuse(error),
        }
    }

    fn open_balancer(&mut self, cgroup: &Path) -> Result<(), Error> {
        let action = || format!("put eBPF programs on cgroup {}", cgroup.display());
        let mut balancer = Balancer::open(cgroup).doing(action)?;
        balancer.lead_nowhere().doing(action)?;
        let pods: HashMap<IpAddr, &str> =
            self.leases.values().filter_map(|lease| Some((*lease.ips.first()?, lease.uid.as_str()))).collect();
        for (cookie, ip) in balancer.pods().doing(action)? {
            match pods.get(&ip) {
                Some(uid) => drop(self.sockets.cookies.insert((*uid).to_owned(), cookie)),
                None => balancer.dismiss(cookie).doing(action)?,
            }
        }
        self.sockets.balancer = Some(balancer);
        Ok(())
    }

    /// Leads a pod's sockets from now on.
    pub(super) fn join_sockets_with(&mut self, wanted: &Wanted, lease: &Lease) {
        let (Some(balancer), Some(ip)) = (&self.sockets.balancer, lease.ips.first()) else { return };
        let admitted = sys::netns_cookie(wanted.netlink.as_fd())
            .and_then(|cookie| balancer.admit(cookie, *ip).map(|()| self.sockets.cookies.insert(lease.uid.clone(), cookie)));
        if let Err(error) = admitted {
            tracing::debug!(pod = lease.pod, %error, "its connections to Services are translated");
        }
    }

    /// A pod that is gone. Its namespace's number is never another's: what can't be taken out does no harm.
    pub(super) fn leave_sockets_with(&mut self, uid: &str) {
        let (Some(balancer), Some(cookie)) = (&self.sockets.balancer, self.sockets.cookies.remove(uid)) else { return };
        if let Err(error) = balancer.dismiss(cookie) {
            tracing::debug!(uid, %error, "its network namespace stays known");
        }
    }

    /// Leads connections to these addresses to those endpoints. What can't be is left to the rules.
    pub(super) fn lead_sockets(&mut self, changes: BTreeMap<SocketAddr, Vec<SocketAddr>>) {
        let Some(balancer) = &mut self.sockets.balancer else { return };
        for (address, endpoints) in changes {
            let led = balancer.lead(address, &endpoints).or_else(|error| {
                tracing::warn!(%address, %error, "connections to a Service are translated");
                balancer.lead(address, &[])
            });
            // Who can't be taken off it either is led to who may be gone.
            if let Err(error) = led {
                tracing::error!(%address, %error, "a Service's connections may be led to endpoints of before");
            }
        }
    }

    /// The addresses of pods whose sockets are led.
    pub(super) fn led(&self) -> impl Iterator<Item = IpAddr> {
        self.sockets.cookies.keys().filter_map(|uid| self.leases.get(uid)).flat_map(|lease| lease.ips.iter().copied())
    }

    /// Takes the programs away.
    pub(super) fn end_sockets(&mut self) {
        self.sockets.balancer = None;
        let Some(cgroup) = &self.settings.pods_cgroup else { return };
        if let Err(error) = Balancer::remove(cgroup) {
            tracing::debug!(%error, "nothing is taken off cgroup {}", cgroup.display());
        }
    }
}

/// Whether this kernel lets sockets be led to Services' endpoints ([`crate::Settings::pods_cgroup`]).
pub fn can_lead_sockets() -> Result<(), Error> {
    let action = || "load eBPF programs for connect(): needs Linux 5.10 with BPF_SYSCALL and CGROUP_BPF".to_owned();
    Balancer::can_be().doing(action)
}
