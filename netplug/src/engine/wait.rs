//! While the host is in the way of the network (a route into a range, a bridge that is somebody else's): what can be done without it, and
//! when to look again.

use std::{
    collections::HashSet,
    path::PathBuf,
    time::{Duration, Instant},
};

use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fd::BorrowedFd,
};

use super::watch::{RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR, RTNLGRP_LINK, Wake, drain, timespec};
use crate::{
    error::{Doing, Error},
    lease::LeaseDir,
    netlink,
};

const RTNLGRP_IPV4_ROUTE: u32 = 7;
const RTNLGRP_IPV6_ROUTE: u32 = 11;

/// What changes together is looked at once.
const TOGETHER: Duration = Duration::from_millis(20);
/// The longest wait, should each look itself change something.
const LONGEST: Duration = Duration::from_secs(10);

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
    due: Option<Instant>,
    patience: Duration,
    looked: Option<Instant>,
}

impl Host {
    pub(crate) fn new() -> Result<Host, Error> {
        let news = netlink::socket(NETLINK_ROUTE).doing(|| "open a netlink socket that watches the host".into())?;
        for group in [RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE] {
            news.add_membership(group).doing(|| format!("join netlink group {group}"))?;
        }
        Ok(Host { news, buffer: vec![0; 64 * 1024], due: None, patience: TOGETHER, looked: None })
    }

    /// Sleeps until there are jobs, or it is time to look again since something changed.
    pub(crate) fn sleep(&mut self, bell: BorrowedFd<'_>) -> Wake {
        loop {
            if self.due.is_some_and(|due| due <= Instant::now()) {
                self.due = None;
                self.looked = Some(Instant::now());
                return Wake::Change;
            }
            let timeout = self.due.map(|due| timespec(due.saturating_duration_since(Instant::now())));
            let mut fds = [PollFd::new(&bell, PollFlags::IN), PollFd::new(&self.news, PollFlags::IN)];
            let _ = poll(&mut fds, timeout.as_ref());
            let (rings, changed) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
            if changed {
                drain(&self.news, &mut self.buffer, |_| {});
                self.plan();
            }
            if rings {
                return Wake::Bell;
            }
        }
    }

    fn plan(&mut self) {
        if self.due.is_none() {
            let again = self.looked.is_some_and(|looked| looked.elapsed() < self.patience * 4);
            self.patience = if again { (self.patience * 2).min(LONGEST) } else { TOGETHER };
            self.due = Some(Instant::now() + self.patience);
        }
    }
}
