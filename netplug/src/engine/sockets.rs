//! Whose sockets are led to Services' endpoints, and where to. Never in anybody's way: what can't be led the rules translate.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsString,
    fmt::Display,
    fs,
    net::{IpAddr, SocketAddr},
    os::{fd::AsFd, unix::ffi::OsStringExt},
    path::{Path, PathBuf},
};

use netlink_sys::protocols::NETLINK_ROUTE;

use podholder::sys;

use super::{Engine, pod::Wanted};
use crate::{
    error::{Doing, Error},
    lease::Lease,
    netlink,
    settings::Isolation,
    sockets::Balancer,
    whole::{self, Outlives},
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
    /// Goes on with those that a process before led, and where to; what stands now, the rules will tell. Nobody is led whom nobody tells
    /// any more, whatever becomes of this.
    pub(super) fn begin_sockets(&mut self) {
        let wanted = self.settings.isolation == Isolation::Routed && self.settings.direct;
        let cgroup = self.settings.pods_cgroup.clone().filter(|_| wanted);
        self.end_sockets_but(cgroup.as_deref());
        match cgroup {
            Some(cgroup) => match self.open_balancer(&cgroup) {
                Ok(()) => self.standing.watched().leads_sockets = true,
                Err(error) => {
                    self.end_sockets();
                    self.sockets.refuse(error);
                }
            },
            None if wanted => self.sockets.refuse("pods have no cgroup of version 2"),
            None => {}
        }
    }

    /// Names the cgroup for the process after.
    fn sockets_file(&self) -> PathBuf {
        self.settings.state_dir.join("sockets.cgroup")
    }

    fn open_balancer(&mut self, cgroup: &Path) -> Result<(), Error> {
        let action = || format!("put eBPF programs on cgroup {}", cgroup.display());
        sys::netns_cookie(self.route.as_fd()).doing(|| "tell network namespaces apart (Linux 5.14)".into())?;
        let remembered = self.sockets_file();
        whole::write(&remembered, cgroup.as_os_str().as_encoded_bytes(), 0o600, Outlives::Process).doing(action)?;
        let balancer = Balancer::open(cgroup).doing(action)?;
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

    /// Takes the programs off the cgroup of a process before, unless it is this one.
    fn end_sockets_but(&mut self, cgroup: Option<&Path>) {
        let file = self.sockets_file();
        let before = fs::read(&file).ok().map(|path| PathBuf::from(OsString::from_vec(path)));
        let Some(before) = before.filter(|before| Some(before.as_path()) != cgroup) else { return };
        if let Err(error) = Balancer::remove(&before).and_then(|()| fs::remove_file(&file)) {
            tracing::error!(%error, "pods' sockets may be led to endpoints of before: cgroup {}", before.display());
        }
    }

    /// Leads a pod's sockets from now on.
    pub(super) fn join_sockets_with(&mut self, wanted: &Wanted, lease: &Lease) {
        let (Some(balancer), Some(ip)) = (&self.sockets.balancer, lease.ips.first()) else { return };
        let admit = |cookie: u64| balancer.admit(cookie, *ip).map(|()| cookie);
        match sys::netns_cookie(wanted.netlink.as_fd()).and_then(admit) {
            Ok(cookie) => {
                let before = self.sockets.cookies.insert(lease.uid.clone(), cookie).filter(|before| *before != cookie);
                before.into_iter().for_each(|before| forget(balancer, &lease.uid, before));
            }
            Err(error) => tracing::warn!(pod = lease.pod, %error, "its connections to Services are translated"),
        }
    }

    /// A pod that is gone. Its namespace's number is never another's: what can't be taken out does no harm.
    pub(super) fn leave_sockets_with(&mut self, uid: &str) {
        if let (Some(balancer), Some(cookie)) = (&self.sockets.balancer, self.sockets.cookies.remove(uid)) {
            forget(balancer, uid, cookie);
        }
    }

    /// As [`Engine::lead_sockets`], and nobody to any other address.
    pub(super) fn lead_sockets_alone(&mut self, all: BTreeMap<SocketAddr, Vec<SocketAddr>>) {
        let addresses = all.keys().copied().collect();
        self.lead_sockets(all);
        let Some(balancer) = &mut self.sockets.balancer else { return };
        if let Err(error) = balancer.lead_no_others(&addresses) {
            tracing::error!(%error, "addresses that are no Service's any more may lead to endpoints of before");
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

    /// Whether a pod's sockets are led, if any are.
    pub(super) fn is_led(&self, uid: &str) -> bool {
        self.sockets.balancer.is_none() || self.sockets.cookies.contains_key(uid)
    }

    /// The addresses of pods whose sockets are led.
    pub(super) fn led(&self) -> impl Iterator<Item = IpAddr> {
        self.sockets.cookies.keys().filter_map(|uid| self.leases.get(uid)).flat_map(|lease| lease.ips.iter().copied())
    }

    /// Takes the programs away.
    pub(super) fn end_sockets(&mut self) {
        self.sockets.balancer = None;
        self.end_sockets_but(None);
    }
}

/// A namespace's number is never another's: one that can't be taken out does no harm.
fn forget(balancer: &Balancer, uid: &str, cookie: u64) {
    if let Err(error) = balancer.dismiss(cookie) {
        tracing::debug!(uid, %error, "its network namespace stays known");
    }
}

/// Whether this kernel lets sockets be led to Services' endpoints ([`crate::Settings::pods_cgroup`]).
pub fn can_lead_sockets() -> Result<(), Error> {
    let action = || "load eBPF programs for connect(): needs Linux 5.14 with BPF_SYSCALL and CGROUP_BPF".to_owned();
    let socket = netlink::socket(NETLINK_ROUTE).doing(action)?;
    sys::netns_cookie(socket.as_fd()).and_then(|_| Balancer::can_be()).doing(action)
}
