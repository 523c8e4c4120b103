//! The network's state and all that is done to the kernel for it, one thing at a time on a thread of its own: the kernel
//! serialises these requests anyway (RTNL), and they block.
//!
//! [`bridge`] is the host's side, [`pod`] one pod's; here is what ties them: leases, ports, the table.

mod bridge;
mod host_port;
mod pod;
mod watch;

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    os::fd::BorrowedFd,
    time::{Duration, Instant},
};

use netlink_sys::{
    Socket,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};

use self::bridge::Bridge;
use self::watch::Watch;
pub(crate) use self::{pod::Wanted, watch::Wake};
use crate::{
    error::{Doing, Error, PortHolder},
    ipam::{Pools, Refusal},
    lease::{Lease, LeaseDir},
    links,
    netlink::{self, Wire},
    network::{Attached, Remove},
    nft::Table,
    settings::{Port, Protocol, Settings},
};

/// One network, open.
pub(crate) struct Engine {
    settings: Settings,
    wire: Wire,
    route: Socket,
    nft: Socket,
    table: Table,
    bridge: Bridge,
    dir: LeaseDir,
    pools: Pools,
    leases: HashMap<String, Lease>,
    ports: Ports,
    clock: Clock,
    watch: Watch,
    /// The numbers of `route` and `nft`: what they do needs no repair.
    port_ids: (u32, u32),
    closed: bool,
}

/// Which pod has which host port.
type Ports = HashMap<(Protocol, u16), Vec<(Port, String)>>;

impl Engine {
    /// Brings the network up in the calling thread's network namespace, and takes over what an earlier process left.
    pub(crate) fn open(settings: Settings) -> Result<Engine, Error> {
        settings.check()?;
        let mut wire = Wire::new();
        let route = netlink::socket(NETLINK_ROUTE).doing(|| "open a route netlink socket".into())?;
        let nft = netlink::socket(NETLINK_NETFILTER).doing(|| "open a netfilter netlink socket".into())?;
        let port_ids = (netlink::port_id(&route), netlink::port_id(&nft));
        let port_ids = (
            port_ids.0.doing(|| "ask for a netlink socket's number".into())?,
            port_ids.1.doing(|| "ask for a netlink socket's number".into())?,
        );
        let watch = Watch::new()?;
        let mut dir = LeaseDir::open(&settings.state_dir)?;
        let found = dir.load(settings.reuse_after)?;
        let clock = Clock::new(settings.reuse_after);
        let mut pools = Pools::new(&settings.ranges, settings.reuse_after);
        for lease in &found.leases {
            keep(&mut pools, lease)?;
        }
        for (ip, age) in found.resting {
            pools.remember(ip, clock.now().saturating_sub(age));
        }
        let bridge = Bridge::up(&mut wire, &route, &settings, found.leases.len())?;
        let table = Table::new(&settings);
        let mut ports = Ports::new();
        for lease in &found.leases {
            index(&mut ports, lease);
        }
        let leases = found.leases.into_iter().map(|lease| (lease.uid.clone(), lease)).collect();
        let mut engine = Engine {
            settings,
            wire,
            route,
            nft,
            table,
            bridge,
            dir,
            pools,
            leases,
            ports,
            clock,
            watch,
            port_ids,
            closed: false,
        };
        engine.render()?;
        Ok(engine)
    }

    /// Wires a pod, or mends what is missing.
    pub(crate) fn attach(&mut self, wanted: &Wanted) -> Result<Attached, Error> {
        let mut steps = Steps::begin();
        wanted.check(&self.settings)?;
        let inside = self.look_inside(wanted)?;
        steps.done("look");
        self.check_ports(wanted)?;
        let before = self.leases.get(&wanted.uid).cloned();
        let lease = self.lease(wanted, before.as_ref(), &inside)?;
        steps.done("lease");
        match self.make(wanted, &lease, before.as_ref(), inside, &mut steps) {
            Ok(attached) => Ok(attached),
            Err(error) => {
                if before.is_none() {
                    self.take_back(&lease);
                }
                Err(error)
            }
        }
    }

    /// Ends a pod's part in the network: ports, link, lease. A pod that isn't attached is none to detach.
    pub(crate) fn detach(&mut self, uid: &str) -> Result<(), Error> {
        let Some(lease) = self.leases.get(uid).cloned() else { return Ok(()) };
        let mut errors = Vec::new();
        errors.extend(self.close_ports(&lease).err());
        match self.delete_links(&HashSet::from([lease.host_if.clone()])) {
            Ok(()) => errors.extend(self.release(&lease).err()),
            // The lease stays: what still has a link must not lose its address to another pod.
            Err(error) => errors.push(error),
        }
        Error::all(errors)
    }

    /// As [`Engine::detach`], but the namespace's end removes the link.
    pub(crate) fn release_when_netns_dies(&mut self, uid: &str) -> Result<(), Error> {
        let Some(lease) = self.leases.get(uid).cloned() else { return Ok(()) };
        let ports = self.close_ports(&lease).err();
        let release = self.release(&lease).err();
        Error::all(ports.into_iter().chain(release).collect())
    }

    /// Frees all that belongs to none of these pods, links included that no lease names.
    pub(crate) fn retain(&mut self, live: &HashSet<String>) -> Result<(), Error> {
        let dead: Vec<Lease> = self.leases.values().filter(|lease| !live.contains(&lease.uid)).cloned().collect();
        let kept: HashSet<String> =
            self.leases.values().filter(|lease| live.contains(&lease.uid)).map(|lease| lease.host_if.clone()).collect();
        let stray: HashSet<String> = self
            .ports_of_bridge()?
            .into_iter()
            .filter(|link| !kept.contains(&link.name) && is_ours(&link.name))
            .map(|link| link.name)
            .chain(dead.iter().map(|lease| lease.host_if.clone()))
            .collect();
        let mut errors = Vec::new();
        for lease in &dead {
            errors.extend(self.close_ports(lease).err());
        }
        match self.delete_links(&stray) {
            Ok(()) => errors.extend(dead.iter().filter_map(|lease| self.release(lease).err())),
            Err(error) => errors.push(error),
        }
        Error::all(errors)
    }

    /// All leases, by UID.
    pub(crate) fn attached(&self) -> Vec<Lease> {
        let mut leases: Vec<Lease> = self.leases.values().cloned().collect();
        leases.sort_by(|a, b| a.uid.cmp(&b.uid));
        leases
    }

    /// Ends the network: everything that it made is removed; a bridge that was there before stays.
    pub(crate) fn close(&mut self, remove: Remove) -> Result<(), Error> {
        self.closed = true;
        if remove == Remove::Nothing {
            return Ok(());
        }
        let mut errors = Vec::new();
        errors.extend(self.retain(&HashSet::new()).err());
        errors.extend(self.destroy_table().err());
        errors.extend(self.bridge.down(&mut self.wire, &self.route, &self.settings).err());
        if errors.is_empty() {
            errors.extend(self.dir.destroy().err());
        }
        Error::all(errors)
    }

    /// Puts back what somebody deleted by hand: the bridge, its settings, its ports, the table.
    pub(crate) fn repair(&mut self) -> Result<(), Error> {
        // The pods have this MTU, whatever the uplink's has become.
        let settings = Settings { mtu: Some(self.bridge.mtu), ..self.settings.clone() };
        self.bridge = Bridge::up(&mut self.wire, &self.route, &settings, self.leases.len())?;
        let ports = self.mend_ports().err();
        let table = self.render().err();
        Error::all(ports.into_iter().chain(table).collect())
    }

    /// Sleeps until there is something to do.
    pub(crate) fn sleep(&self, bell: BorrowedFd<'_>) -> Wake {
        self.watch.sleep(bell)
    }

    fn destroy_table(&mut self) -> Result<(), Error> {
        self.table.destroy(&mut self.wire, &self.nft).doing(|| format!("remove the nftables table inet {}", self.settings.table))
    }

    /// The whole table from what is known.
    fn render(&mut self) -> Result<(), Error> {
        self.table
            .render(&mut self.wire, &self.nft, self.leases.values())
            .doing(|| format!("set up the nftables table inet {}", self.settings.table))
    }

    /// Makes or renews the lease, on disk before anything else, so that a crash can't give the address twice.
    fn lease(&mut self, wanted: &Wanted, before: Option<&Lease>, inside: &pod::Inside) -> Result<Lease, Error> {
        let address = |refusal: Refusal| Error::Address { pod: wanted.pod.clone(), refusal };
        let (ips, host_if) = match before {
            Some(lease) => {
                if let Some(ip) = wanted.fixed.iter().find(|ip| !lease.ips.contains(ip)) {
                    let problem = format!("the address {ip} is asked for, but the pod runs with {}", show(&lease.ips));
                    return Err(Error::Attachment { pod: wanted.pod.clone(), problem });
                }
                (lease.ips.clone(), lease.host_if.clone())
            }
            None => {
                // A pod that has addresses but no lease keeps them: the lease was lost, not the pod.
                let fixed = if wanted.fixed.is_empty() { self.adoptable(inside) } else { wanted.fixed.clone() };
                let ips = self.pools.allocate(&fixed, self.clock.now()).map_err(address)?;
                (ips, inside.host_if.clone().unwrap_or_else(|| pod::host_link(&self.settings.bridge, &wanted.uid, 0)))
            }
        };
        let lease = Lease { uid: wanted.uid.clone(), pod: wanted.pod.clone(), ips, host_if, ports: wanted.ports.clone() };
        if before == Some(&lease) {
            return Ok(lease);
        }
        if let Err(error) = self.dir.write(&lease) {
            if before.is_none() {
                self.give_back(&lease);
            }
            return Err(error);
        }
        self.leases.insert(lease.uid.clone(), lease.clone());
        if let Some(before) = before {
            unindex(&mut self.ports, before);
        }
        index(&mut self.ports, &lease);
        Ok(lease)
    }

    /// The host's links, the pod's inside, its ports.
    fn make(
        &mut self,
        wanted: &Wanted,
        lease: &Lease,
        before: Option<&Lease>,
        inside: pod::Inside,
        steps: &mut Steps,
    ) -> Result<Attached, Error> {
        if before.is_some() && inside.link.is_none() {
            self.evict(&lease.host_if)?;
        }
        let (host_if, index) = match self.pair(wanted, lease, &inside) {
            Err(_) if self.bridge_is_gone()? => {
                self.repair()?;
                self.pair(wanted, lease, &inside)?
            }
            pair => pair?,
        };
        if host_if != lease.host_if {
            self.rename(&lease.uid, &host_if)?;
        }
        steps.done("veth");
        self.set_up_inside(wanted, lease, index, &inside)?;
        steps.done("address");
        self.open_ports(lease, before)?;
        steps.done("ports");
        Ok(Attached {
            ips: lease.ips.clone(),
            gateways: lease.ips.iter().filter_map(|ip| Some(self.pools.of(*ip)?.gateway())).collect(),
            mac: lease.ips.first().map(|ip| links::mac_of(*ip)).unwrap_or_default(),
            host_if,
            mtu: self.bridge.mtu,
            steps: std::mem::take(&mut steps.taken),
        })
    }

    /// The pod's link got another name than the lease says, because a link of that name was there.
    fn rename(&mut self, uid: &str, host_if: &str) -> Result<(), Error> {
        if let Some(lease) = self.leases.get_mut(uid) {
            host_if.clone_into(&mut lease.host_if);
            self.dir.write(lease)?;
        }
        Ok(())
    }

    /// Addresses of a pod without lease that it may keep.
    fn adoptable(&self, inside: &pod::Inside) -> Vec<IpAddr> {
        if inside.addresses.is_empty() {
            return Vec::new();
        }
        let mut pools = self.pools.clone();
        inside.addresses.iter().map(|address| address.ip).filter(|ip| pools.claim(*ip).is_ok()).collect()
    }

    fn check_ports(&self, wanted: &Wanted) -> Result<(), Error> {
        let mine: &[Port] = self.leases.get(&wanted.uid).map_or(&[], |lease| &lease.ports);
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
            if !mine.contains(port)
                && let Some(holder) = host_port::holder(port)
            {
                return taken(holder);
            }
        }
        Ok(())
    }

    /// In one batch; if the kernel doesn't have the table that we think it has, all of it anew.
    fn open_ports(&mut self, lease: &Lease, before: Option<&Lease>) -> Result<(), Error> {
        let changed = before.is_some_and(|before| before.ports != lease.ports);
        if !changed && lease.ports.is_empty() {
            return Ok(());
        }
        if changed || self.table.add(&mut self.wire, &self.nft, lease).is_err() {
            return self.render();
        }
        Ok(())
    }

    fn close_ports(&mut self, lease: &Lease) -> Result<(), Error> {
        unindex(&mut self.ports, lease);
        if self.table.remove(&mut self.wire, &self.nft, lease).is_ok() {
            return Ok(());
        }
        let leases = self.leases.values().filter(|other| other.uid != lease.uid);
        self.table
            .render(&mut self.wire, &self.nft, leases)
            .doing(|| format!("close the host ports of pod {} in the nftables table inet {}", lease.pod, self.settings.table))
    }

    fn release(&mut self, lease: &Lease) -> Result<(), Error> {
        self.dir.release(&lease.uid)?;
        self.leases.remove(&lease.uid);
        self.give_back(lease);
        Ok(())
    }

    fn give_back(&mut self, lease: &Lease) {
        for ip in &lease.ips {
            self.pools.release(*ip, self.clock.now());
        }
    }

    /// Rolls a failed attachment back. Its error is the one to tell, so others on the way aren't.
    fn take_back(&mut self, lease: &Lease) {
        let host_if = self.leases.get(&lease.uid).map_or(&lease.host_if, |lease| &lease.host_if).clone();
        if let Err(error) = self.close_ports(lease) {
            tracing::warn!(pod = lease.pod, %error, "roll back");
        }
        if let Err(error) = self.delete_links(&HashSet::from([host_if])) {
            tracing::warn!(pod = lease.pod, %error, "roll back");
        }
        self.leases.remove(&lease.uid);
        self.give_back(lease);
        if let Err(error) = self.dir.forget(&lease.uid) {
            tracing::warn!(pod = lease.pod, %error, "roll back");
        }
    }
}

/// A running pod keeps its address, also when the settings have since excluded it; one that is in no range any more can't be kept.
fn keep(pools: &mut Pools, lease: &Lease) -> Result<(), Error> {
    for ip in &lease.ips {
        match pools.claim(*ip) {
            Ok(()) | Err(Refusal::Barred(_)) => {}
            Err(refusal) => {
                let pod = format!("{} (running; remove it before the ranges are changed)", lease.pod);
                return Err(Error::Address { pod, refusal });
            }
        }
    }
    Ok(())
}

fn index(ports: &mut Ports, lease: &Lease) {
    for port in &lease.ports {
        ports.entry((port.protocol, port.host_port)).or_default().push((*port, lease.uid.clone()));
    }
}

fn unindex(ports: &mut Ports, lease: &Lease) {
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

fn is_ours(link: &str) -> bool {
    link.starts_with(pod::LINK_PREFIX)
}

fn show(ips: &[IpAddr]) -> String {
    ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}

/// A clock for the pools that began long enough ago to remember what rests.
struct Clock {
    started: Instant,
    before: Duration,
}

impl Clock {
    fn new(before: Duration) -> Clock {
        Clock { started: Instant::now(), before }
    }

    fn now(&self) -> Duration {
        self.before.saturating_add(self.started.elapsed())
    }
}

/// What each step took.
struct Steps {
    last: Instant,
    taken: Vec<(&'static str, Duration)>,
}

impl Steps {
    fn begin() -> Steps {
        Steps { last: Instant::now(), taken: Vec::new() }
    }

    fn done(&mut self, step: &'static str) {
        let now = Instant::now();
        self.taken.push((step, now - self.last));
        self.last = now;
    }
}
