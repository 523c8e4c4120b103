//! Which address a pod gets: a pure core without clock or disk. Every operation is O(1), whatever the range's size:
//! addresses never used are a watermark that moves on, used ones rest in a queue and come back in the order of their release.
//! It doesn't know what an address is for; [`crate::lease`] keeps its decisions.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    net::IpAddr,
    time::Duration,
};

use crate::{cidr::Cidr, settings::Range};

/// The allocator of one range.
///
/// `now` is any clock that doesn't go backwards; the caller keeps to one.
#[derive(Debug, Clone)]
pub struct Pool {
    subnet: Cidr,
    gateway: u128,
    /// Offsets that nobody gets: sorted, disjoint, not adjacent.
    barred: Vec<(u128, u128)>,
    capacity: u128,
    reuse_after: Duration,
    /// Nothing from here on was ever handed out by [`Pool::allocate`]; beyond `end`: none is left.
    fresh: u128,
    /// One past the last offset.
    end: u128,
    used: HashMap<u128, Use>,
    leased: u128,
    /// Released addresses, the longest rested first. An entry is void when `used` says otherwise.
    resting: VecDeque<(u128, Duration)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Leased,
    Resting(Duration),
}

/// Why there is no address.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// All are held by pods.
    Full {
        /// The range's subnet.
        subnet: Cidr,
        /// How many addresses it has for pods.
        capacity: u128,
    },
    /// Some are free, but were another pod's a moment ago.
    Resting {
        /// The range's subnet.
        subnet: Cidr,
        /// How many addresses it has for pods.
        capacity: u128,
        /// How many pods hold.
        leased: u128,
        /// When the first one may be used.
        wait: Duration,
    },
    /// A fixed address that a pod holds.
    Taken(IpAddr),
    /// A fixed address that is the gateway's, or excluded.
    Barred(IpAddr),
    /// A fixed address that is in no range.
    Elsewhere(IpAddr),
    /// Two fixed addresses of one family.
    Twice(IpAddr),
    /// Somebody on the bridge who is no pod answers to it.
    InUse(IpAddr, [u8; 6]),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Full { subnet, capacity } => {
                write!(f, "range {subnet} is full ({capacity} of {capacity}): end pods, or add a range")
            }
            Refusal::Resting { subnet, capacity, leased, wait } => write!(
                f,
                "range {subnet} has no address free ({leased} of {capacity} used, the rest was released just now): one will be in \
                 {:.1} s; add a range, or shorten the time that addresses rest",
                wait.as_secs_f64()
            ),
            Refusal::Taken(ip) => write!(f, "address {ip} is another pod's: choose another one, or end that pod"),
            Refusal::Barred(ip) => write!(f, "address {ip} is the gateway's or excluded from its range: choose another one"),
            Refusal::Elsewhere(ip) => write!(f, "address {ip} is in none of the network's ranges"),
            Refusal::InUse(ip, mac) => {
                let mac = crate::links::show_mac(*mac);
                write!(
                    f,
                    "address {ip} is in use on the bridge by {mac}, which is no pod: exclude it from its range, or end that"
                )
            }
            Refusal::Twice(ip) => write!(f, "address {ip} would be the second of its family: a pod has one of each"),
        }
    }
}

impl std::error::Error for Refusal {}

impl Pool {
    /// Assumes a range that [`crate::Settings::check`] accepts.
    pub fn new(range: &Range, reuse_after: Duration) -> Pool {
        let subnet = range.subnet;
        let last = subnet.last_offset();
        let gateway = subnet.offset(range.gateway()).unwrap_or(1);
        let mut barred = vec![(0, 0), (gateway, gateway)];
        if subnet.is_v4() {
            barred.push((last, last));
        }
        let excluded = range.exclude.iter().filter_map(|span| Some((subnet.offset(span.first)?, subnet.offset(span.last)?)));
        barred.extend(excluded);
        let barred = merge(barred);
        let lost: u128 = barred.iter().map(|(first, last)| last - first + 1).sum();
        let capacity = last + 1 - lost;
        Pool {
            subnet,
            gateway,
            barred,
            capacity,
            reuse_after,
            fresh: 0,
            end: last + 1,
            used: HashMap::new(),
            leased: 0,
            resting: VecDeque::new(),
        }
    }

    /// The subnet that addresses come from.
    pub fn subnet(&self) -> Cidr {
        self.subnet
    }

    /// The bridge's address.
    pub fn gateway(&self) -> IpAddr {
        self.subnet.at(self.gateway)
    }

    /// How many addresses there are for pods.
    pub fn capacity(&self) -> u128 {
        self.capacity
    }

    /// How many pods hold.
    pub fn leased(&self) -> u128 {
        self.leased
    }

    /// The next address that was never used; when there is none, the one that rested longest, if it did so long enough.
    pub fn allocate(&mut self, now: Duration) -> Result<IpAddr, Refusal> {
        let offset = match self.next_fresh() {
            Some(offset) => offset,
            None => self.next_rested(now)?,
        };
        Ok(self.lease(offset))
    }

    /// Takes one address: a fixed one, or one that a pod was found to have. Its rest isn't waited for: whoever asks for an
    /// address by name wants that one.
    pub fn claim(&mut self, ip: IpAddr) -> Result<(), Refusal> {
        let offset = self.subnet.offset(ip).ok_or(Refusal::Elsewhere(ip))?;
        if self.bar(offset).is_some() {
            return Err(Refusal::Barred(ip));
        }
        if self.used.get(&offset) == Some(&Use::Leased) {
            return Err(Refusal::Taken(ip));
        }
        self.lease(offset);
        Ok(())
    }

    /// Gives an address back; to be called with the lease's own address once. Answers whether it was leased.
    pub fn release(&mut self, ip: IpAddr, now: Duration) -> bool {
        let Some(offset) = self.subnet.offset(ip) else { return false };
        if self.used.get(&offset) != Some(&Use::Leased) {
            return false;
        }
        self.leased -= 1;
        self.rest(offset, now);
        true
    }

    /// Remembers that an address was released at that time, before this process began.
    /// Assumes that calls come in the order of their times.
    pub fn remember(&mut self, ip: IpAddr, released: Duration) {
        if let Some(offset) = self.subnet.offset(ip)
            && self.bar(offset).is_none()
            && !self.used.contains_key(&offset)
        {
            self.rest(offset, released);
        }
    }

    /// Takes back what nobody has seen: it need not rest.
    fn undo(&mut self, ip: IpAddr) {
        if let Some(offset) = self.subnet.offset(ip)
            && self.used.get(&offset) == Some(&Use::Leased)
        {
            self.leased -= 1;
            self.used.insert(offset, Use::Resting(Duration::ZERO));
            self.resting.push_front((offset, Duration::ZERO));
        }
    }

    fn rest(&mut self, offset: u128, since: Duration) {
        self.used.insert(offset, Use::Resting(since));
        self.resting.push_back((offset, since));
    }

    fn lease(&mut self, offset: u128) -> IpAddr {
        self.used.insert(offset, Use::Leased);
        self.leased += 1;
        self.subnet.at(offset)
    }

    /// Moves the watermark past what is barred or claimed: each offset is passed once in the pool's life.
    fn next_fresh(&mut self) -> Option<u128> {
        while self.fresh < self.end {
            let offset = self.fresh;
            if let Some(last) = self.bar(offset) {
                self.fresh = last + 1;
                continue;
            }
            self.fresh += 1;
            if !self.used.contains_key(&offset) {
                return Some(offset);
            }
        }
        None
    }

    fn next_rested(&mut self, now: Duration) -> Result<u128, Refusal> {
        while let Some(&(offset, since)) = self.resting.front() {
            if self.used.get(&offset) != Some(&Use::Resting(since)) {
                self.resting.pop_front(); // claimed by name in the meantime
                continue;
            }
            let wait = self.reuse_after.saturating_sub(now.saturating_sub(since));
            if !wait.is_zero() {
                return Err(Refusal::Resting { subnet: self.subnet, capacity: self.capacity, leased: self.leased, wait });
            }
            self.resting.pop_front();
            return Ok(offset);
        }
        Err(Refusal::Full { subnet: self.subnet, capacity: self.capacity })
    }

    /// The last offset of the barred run that this one is in.
    fn bar(&self, offset: u128) -> Option<u128> {
        let after = self.barred.partition_point(|(first, _)| *first <= offset);
        let (_, last) = self.barred.get(after.checked_sub(1)?)?;
        (offset <= *last).then_some(*last)
    }
}

/// Sorts runs and joins those that touch.
fn merge(mut runs: Vec<(u128, u128)>) -> Vec<(u128, u128)> {
    runs.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::new();
    for (first, last) in runs {
        match merged.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            _ => merged.push((first, last)),
        }
    }
    merged
}

/// All ranges of a network: one address a family.
#[derive(Debug, Clone)]
pub struct Pools {
    pools: Vec<Pool>,
}

impl Pools {
    /// Assumes ranges that [`crate::Settings::check`] accepts.
    pub fn new(ranges: &[Range], reuse_after: Duration) -> Pools {
        Pools { pools: ranges.iter().map(|range| Pool::new(range, reuse_after)).collect() }
    }

    /// The pool that an address belongs to.
    pub fn of(&self, ip: IpAddr) -> Option<&Pool> {
        self.pools.iter().find(|pool| pool.subnet.contains(ip))
    }

    /// One address of each family that has a range: the fixed one, or the next. IPv4 first. All or nothing.
    pub fn allocate(&mut self, fixed: &[IpAddr], now: Duration) -> Result<Vec<IpAddr>, Refusal> {
        if let Some(stray) = fixed.iter().find(|ip| self.of(**ip).is_none()) {
            return Err(Refusal::Elsewhere(*stray));
        }
        let mut given = Vec::new();
        for v4 in [true, false] {
            let mut wanted = fixed.iter().filter(|ip| ip.is_ipv4() == v4);
            let outcome = match (wanted.next(), wanted.next()) {
                (Some(_), Some(second)) => Err(Refusal::Twice(*second)),
                (Some(ip), None) => self.claim(*ip).map(|()| Some(*ip)),
                (None, _) => self.next(v4, now),
            };
            match outcome {
                Ok(ip) => given.extend(ip),
                Err(refusal) => {
                    // Given back as if never used: nobody has seen them.
                    for ip in given {
                        self.undo(ip);
                    }
                    return Err(refusal);
                }
            }
        }
        Ok(given)
    }

    /// See [`Pool::claim`].
    pub fn claim(&mut self, ip: IpAddr) -> Result<(), Refusal> {
        self.pool(ip).ok_or(Refusal::Elsewhere(ip))?.claim(ip)
    }

    /// See [`Pool::release`].
    pub fn release(&mut self, ip: IpAddr, now: Duration) -> bool {
        self.pool(ip).is_some_and(|pool| pool.release(ip, now))
    }

    /// See [`Pool::remember`].
    pub fn remember(&mut self, ip: IpAddr, released: Duration) {
        if let Some(pool) = self.pool(ip) {
            pool.remember(ip, released);
        }
    }

    fn next(&mut self, v4: bool, now: Duration) -> Result<Option<IpAddr>, Refusal> {
        let mut last = Ok(None);
        for pool in self.pools.iter_mut().filter(|pool| pool.subnet.is_v4() == v4) {
            last = pool.allocate(now).map(Some);
            if last.is_ok() {
                break;
            }
        }
        last
    }

    /// See [`Pool::undo`].
    pub(crate) fn undo(&mut self, ip: IpAddr) {
        if let Some(pool) = self.pool(ip) {
            pool.undo(ip);
        }
    }

    fn pool(&mut self, ip: IpAddr) -> Option<&mut Pool> {
        self.pools.iter_mut().find(|pool| pool.subnet.contains(ip))
    }
}
