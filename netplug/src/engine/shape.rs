//! The limits of a pod's bandwidth, on the host's side of its link. Pods without limits cost nothing here.

use std::thread;

use netlink_sys::protocols::NETLINK_ROUTE;
use nix::sched::{CloneFlags, unshare};

use super::{Engine, bridge};
use crate::{
    bandwidth::{self, Bandwidth, Rate, ifb_of},
    error::{Doing, Error},
    lease::Lease,
    links,
    netlink::{self, Request, Wire},
    tc,
};

const NEEDS: &str = "needs the kernel's sch_tbf, sch_ingress, cls_u32, act_mirred and ifb";

impl Engine {
    /// Makes a pod's limits what its lease says: also none, where it had some before.
    pub(super) fn shape(&mut self, lease: &Lease, before: Option<&Lease>) -> Result<(), Error> {
        let had = before.and_then(|before| before.bandwidth).unwrap_or_default();
        let wanted = lease.bandwidth.unwrap_or_default();
        if had == Bandwidth::default() && wanted == Bandwidth::default() {
            return Ok(());
        }
        let action = || format!("limit the bandwidth of pod {} ({NEEDS})", lease.pod);
        let Some(host) = bridge::find(&mut self.wire, &self.route, &lease.host_if)? else { return Ok(()) };
        // What is there goes first: a second filter would be one too many. That nothing is there is no error.
        let clear = vec![bandwidth::no_bucket(host.index), tc::no_ingress(host.index)];
        self.wire.route(&self.route, clear).doing(action)?;
        self.direct.cleared(&lease.uid);
        if let Some(rate) = wanted.ingress {
            bridge::all(&mut self.wire, &self.route, vec![bandwidth::bucket(host.index, rate)], action)?;
        }
        match wanted.egress {
            Some(rate) => self.shape_egress(lease, host.index, rate),
            None if had.egress.is_some() => self.delete_links(&[ifb_of(&lease.host_if)].into()),
            None => Ok(()),
        }
    }

    fn shape_egress(&mut self, lease: &Lease, host: u32, rate: Rate) -> Result<(), Error> {
        let action = || format!("limit the bandwidth of pod {} ({NEEDS})", lease.pod);
        let name = ifb_of(&lease.host_if);
        let mut found = bridge::find(&mut self.wire, &self.route, &name)?;
        if found.is_none() {
            bridge::all(&mut self.wire, &self.route, vec![bandwidth::new_ifb(&name, self.bridge.mtu)], action)?;
            found = bridge::find(&mut self.wire, &self.route, &name)?;
        }
        let Some(ifb) = found else { return Err(rustix::io::Errno::NODEV).doing(action) };
        let requests = vec![
            links::up(ifb.index),
            bandwidth::bucket(ifb.index, rate),
            tc::ingress(host),
            bandwidth::redirect(host, ifb.index),
        ];
        bridge::all(&mut self.wire, &self.route, requests, action)
    }

    /// All limits anew, after somebody changed something.
    pub(super) fn mend_shapes(&mut self) -> Result<(), Error> {
        let shaped: Vec<Lease> = self.leases.values().filter(|lease| lease.bandwidth.is_some()).cloned().collect();
        Error::all(shaped.iter().filter_map(|lease| self.shape(lease, Some(lease)).err()).collect())
    }

    /// What of a pod's limits is missing, if something.
    pub(super) fn examine_shape(&mut self, lease: &Lease) -> Result<Option<String>, Error> {
        let Some(limits) = lease.bandwidth else { return Ok(None) };
        let messages = self.wire.dump(&self.route, bandwidth::all_qdiscs).doing(|| "list queueing disciplines".into())?;
        let shaped: Vec<u32> = bandwidth::with_bucket(&messages).collect();
        let ifb = ifb_of(&lease.host_if);
        for (name, limit) in [(lease.host_if.as_str(), limits.ingress), (ifb.as_str(), limits.egress)] {
            let link = bridge::find(&mut self.wire, &self.route, name)?;
            if limit.is_some() && !link.is_some_and(|link| shaped.contains(&link.index)) {
                return Ok(Some(format!("the bandwidth limit on {name} is gone")));
            }
        }
        Ok(None)
    }
}

/// Whether this kernel can limit bandwidth: tried in a network namespace that ends with the try.
pub fn can_limit_bandwidth() -> Result<(), Error> {
    let tried = thread::spawn(|| -> Result<(), Error> {
        let action = || format!("limit bandwidth: {NEEDS}");
        unshare(CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from).doing(action)?;
        let route = netlink::socket(NETLINK_ROUTE).doing(action)?;
        let mut wire = Wire::new();
        let (loopback, rate) = (1, Rate::new(1_000_000));
        let mut all = |requests: Vec<Request>| bridge::all(&mut wire, &route, requests, action);
        all(vec![bandwidth::new_ifb("ifb", 1500), bandwidth::bucket(loopback, rate), tc::ingress(loopback)])?;
        let ifb = bridge::find(&mut wire, &route, "ifb")?.map_or(loopback, |ifb| ifb.index);
        bridge::all(&mut wire, &route, vec![bandwidth::redirect(loopback, ifb)], action)
    });
    tried.join().unwrap_or(Err(Error::Closed))
}
