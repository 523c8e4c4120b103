//! While the host is in the way of the network (a route into a range, a bridge that is somebody else's): what can be done without it, and
//! when to look again.

use std::{collections::HashSet, path::PathBuf, time::Duration};

use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fd::BorrowedFd,
};

use super::{
    pace::{Pace, until},
    watch::{GROUPS, Wake, drain},
};
use crate::{
    error::{Doing, Error},
    lease::LeaseDir,
    netlink,
};

/// What changes together is looked at once.
const TOGETHER: Duration = Duration::from_millis(20);

/// A network that has to wait.
#[derive(Debug)]
pub(crate) struct Waiting {
    /// What is in the way.
    pub reason: String,
    pub host: Host,
    /// Of the leases.
    pub dir: PathBuf,
}

impl Waiting {
    /// A pod that ended gives its address back: its link goes with its namespace.
    pub(crate) fn release(&self, uid: &str) -> Result<(), Error> {
        LeaseDir::open(&self.dir)?.release(uid)
    }

    /// As [`Waiting::release`], of all pods but these.
    pub(crate) fn retain(&self, live: &HashSet<String>) -> Result<(), Error> {
        let mut dir = LeaseDir::open(&self.dir)?;
        let leases = dir.load(Duration::MAX)?.leases;
        let dead = leases.iter().filter(|lease| !live.contains(&lease.uid));
        Error::all(dead.filter_map(|lease| dir.release(&lease.uid).err()).collect())
    }
}

/// The host's links, addresses and routes, as far as they change.
#[derive(Debug)]
pub(crate) struct Host {
    news: Socket,
    buffer: Vec<u8>,
    pace: Pace,
}

impl Host {
    pub(crate) fn new() -> Result<Host, Error> {
        let news = netlink::socket(NETLINK_ROUTE).doing(|| "open a netlink socket that watches the host".into())?;
        for group in GROUPS {
            news.add_membership(group).doing(|| format!("join netlink group {group}"))?;
        }
        Ok(Host { news, buffer: vec![0; 64 * 1024], pace: Pace::new(TOGETHER, Duration::ZERO) })
    }

    /// Sleeps until there are jobs, or it is time to look again since something changed.
    pub(crate) fn sleep(&mut self, bell: BorrowedFd<'_>) -> Wake {
        loop {
            if self.pace.is_due() {
                self.pace.act();
                return Wake::Change;
            }
            let mut fds = [PollFd::new(&bell, PollFlags::IN), PollFd::new(&self.news, PollFlags::IN)];
            let _ = poll(&mut fds, self.pace.due().map(until).as_ref());
            let (rings, changed) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
            if changed {
                drain(&self.news, &mut self.buffer, |_| {});
                self.pace.plan();
            }
            if rings {
                return Wake::Bell;
            }
        }
    }
}
