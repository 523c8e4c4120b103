//! The network's state and all that is done to the kernel for it, one thing at a time on a thread of its own: the kernel
//! serialises these requests anyway (RTNL), and they block.
//!
//! [`bridge`] is the host's side, [`pod`] one pod's; here is what ties them: leases, ports, the table.

mod bridge;
mod direct;
mod host_port;
mod leases;
mod pace;
mod picture;
mod pod;
mod ports;
mod probe;
mod record;
pub(crate) mod rules;
mod shape;
mod sockets;
mod wait;
mod watch;

use std::{
    collections::HashSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use netlink_sys::{
    Socket,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};

use self::bridge::Bridge;
pub use self::{direct::can_go_directly, shape::can_limit_bandwidth, sockets::can_lead_sockets};
use self::{
    leases::Leases,
    ports::{Ports, index, unindex},
    watch::Watch,
};
pub(crate) use self::{
    pod::{Via, Wanted},
    wait::{Host, Waiting},
    watch::Wake,
};
use crate::{
    bandwidth::ifb_of,
    error::{Doing, Error},
    ipam::{Pools, Refusal},
    lease::{Lease, LeaseDir},
    netlink::{self, Wire},
    network::{Attached, Remove},
    nft::{
        Obstacle, Table,
        others::{Survey, survey},
    },
    settings::Settings,
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
    leases: Leases,
    ports: Ports,
    clock: Clock,
    /// Services and policies.
    standing: rules::Standing,
    direct: direct::Direct,
    sockets: sockets::Sockets,
    /// None for [`Engine::for_one`]: that doesn't live long enough.
    watch: Option<Watch>,
    /// Whether `leases` and `ports` are all there are; see [`Engine::complete`].
    complete: bool,
    /// The numbers of `route` and `nft`: what they do needs no repair.
    port_ids: (u32, u32),
    closed: bool,
}

/// What [`Engine::for_one`] is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The bridge and the table are to be there.
    Attach,
    /// Nothing is made.
    Remove,
}

impl Engine {
    /// Brings the network up in the calling thread's network namespace, and takes over what an earlier process left.
    pub(crate) fn open(settings: Settings) -> Result<Engine, Error> {
        let mut engine = Engine::idle(settings)?;
        engine.watch = Some(Watch::new()?);
        engine.complete()?;
        engine.begin_direct()?;
        engine.begin_sockets();
        engine.recall()?;
        let pods = engine.links_of_pods();
        engine.bridge = Bridge::up(&mut engine.wire, &engine.route, &engine.settings, Some(&pods))?;
        engine.route_services();
        engine.render()?;
        engine.mend_links()?;
        engine.join_direct();
        Ok(engine)
    }

    /// For a process that does one thing for one pod and ends: reads no more than that pod's lease, and lists nothing, so that it
    /// costs the same however many pods there are. Somebody else keeps other processes away and chooses the address.
    pub(crate) fn for_one(settings: Settings, uid: &str, purpose: Purpose) -> Result<Engine, Error> {
        let mut engine = Engine::idle(settings)?;
        if let Some(lease) = engine.dir.load_one(uid)? {
            engine.adopt(lease)?;
        }
        match purpose {
            Purpose::Attach => {
                engine.bridge = Bridge::ready(&mut engine.wire, &engine.route, &engine.settings)?;
                let action = || format!("look for the nftables table inet {}", engine.settings.table);
                if !engine.table.stands(&mut engine.wire, &engine.nft).doing(action)? {
                    engine.render()?;
                }
            }
            Purpose::Remove => engine.bridge = Bridge::as_found(&mut engine.wire, &engine.route, &engine.settings)?,
        }
        Ok(engine)
    }

    /// With nothing done and nothing known.
    fn idle(settings: Settings) -> Result<Engine, Error> {
        settings.check()?;
        let route = netlink::socket(NETLINK_ROUTE).doing(|| "open a route netlink socket".into())?;
        let nft = netlink::socket(NETLINK_NETFILTER).doing(|| "open a netfilter netlink socket".into())?;
        let number = |socket| netlink::port_id(socket).doing(|| "ask for a netlink socket's number".into());
        let port_ids = (number(&route)?, number(&nft)?);
        Ok(Engine {
            wire: Wire::new(),
            route,
            nft,
            table: Table::new(&settings),
            bridge: Bridge::default(),
            dir: LeaseDir::open(&settings.state_dir)?,
            pools: Pools::new(&settings.ranges, settings.reuse_after),
            leases: Leases::default(),
            ports: Ports::new(),
            clock: Clock::new(settings.reuse_after),
            standing: rules::Standing::new(&settings),
            direct: direct::Direct::default(),
            sockets: sockets::Sockets::default(),
            watch: None,
            complete: false,
            port_ids,
            closed: false,
            settings,
        })
    }

    /// Reads all leases, unless that was done.
    fn complete(&mut self) -> Result<(), Error> {
        if self.complete {
            return Ok(());
        }
        let found = self.dir.load(self.settings.reuse_after)?;
        for lease in found.leases {
            if self.leases.get(&lease.uid).is_none() {
                self.adopt(lease)?;
            }
        }
        for (ip, age) in found.resting {
            self.pools.remember(ip, self.clock.now().saturating_sub(age));
        }
        self.complete = true;
        Ok(())
    }

    fn adopt(&mut self, lease: Lease) -> Result<(), Error> {
        keep(&mut self.pools, &lease)?;
        index(&mut self.ports, &lease);
        self.standing.watched().publish(&lease);
        self.leases.insert(lease);
        Ok(())
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
        match self.make(wanted, &lease, before.as_ref(), &inside, &mut steps) {
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
        self.leave_direct_with(uid)?;
        let mut errors = Vec::new();
        errors.extend(self.close_ports(&lease).err());
        match self.delete_links(&links_of(&lease)) {
            Ok(()) => errors.extend(self.release(&lease).err()),
            // The lease stays: what still has a link must not lose its address to another pod.
            Err(error) => errors.push(error),
        }
        Error::all(errors)
    }

    /// As [`Engine::detach`], but the namespace's end removes the link.
    pub(crate) fn release_when_netns_dies(&mut self, uid: &str) -> Result<(), Error> {
        let Some(lease) = self.leases.get(uid).cloned() else { return Ok(()) };
        self.leave_direct_with(uid)?;
        let ports = self.close_ports(&lease).err();
        // Its ifb is in no namespace that ends.
        let ifb = lease.bandwidth.and_then(|_| self.delete_links(&[ifb_of(&lease.host_if)].into()).err());
        let release = self.release(&lease).err();
        Error::all(ports.into_iter().chain(ifb).chain(release).collect())
    }

    /// Frees all that belongs to none of these pods, links included that no lease names.
    pub(crate) fn retain(&mut self, live: &HashSet<String>) -> Result<(), Error> {
        self.complete()?;
        let dead: Vec<Lease> = self.leases.values().filter(|lease| !live.contains(&lease.uid)).cloned().collect();
        let kept: HashSet<String> =
            self.leases.values().filter(|lease| live.contains(&lease.uid)).map(|lease| lease.host_if.clone()).collect();
        let stray: HashSet<String> = self
            .links_at_home()?
            .into_iter()
            .filter(|link| !kept.contains(&link.name) && is_ours(&link.name))
            .map(|link| link.name)
            .chain(dead.iter().flat_map(links_of))
            .collect();
        let mut errors = Vec::new();
        for lease in &dead {
            self.leave_direct_with(&lease.uid)?;
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
        self.end_sockets();
        self.forget_services();
        errors.extend(Bridge::down(&mut self.wire, &self.route, &self.settings).err());
        if errors.is_empty() {
            errors.extend(self.dir.destroy().err());
        }
        Error::all(errors)
    }

    /// Puts back what somebody deleted by hand: the bridge, its settings, pods' links, the table.
    /// `torn`: the table for certain. It is left as it is otherwise, since with it sessions would be forgotten.
    pub(crate) fn repair(&mut self, torn: bool) -> Result<(), Error> {
        // The pods have this MTU, whatever the uplink's has become.
        let settings = Settings { mtu: Some(self.bridge.mtu), ..self.settings.clone() };
        let pods = self.links_of_pods();
        self.bridge = Bridge::up(&mut self.wire, &self.route, &settings, Some(&pods))?;
        self.route_services();
        let links = self.mend_links().err();
        let shapes = self.mend_shapes().err();
        let stands = !torn && self.table.stands(&mut self.wire, &self.nft).is_ok_and(|stands| stands);
        let table = if stands { None } else { self.render().err() };
        Error::all(links.into_iter().chain(shapes).chain(table).collect())
    }

    /// Other people's chains that may drop what pods send and get.
    pub(crate) fn obstacles(&mut self) -> Result<Vec<Obstacle>, Error> {
        Ok(self.survey()?.obstacles)
    }

    fn survey(&mut self) -> Result<Survey, Error> {
        survey(&mut self.wire, &self.nft, &self.settings).doing(|| "look at other firewalls' chains".into())
    }

    /// The names of the host's ends.
    fn links_of_pods(&self) -> HashSet<String> {
        self.leases.values().map(|lease| lease.host_if.clone()).collect()
    }

    /// What a pod holds.
    pub(crate) fn lease_of(&self, uid: &str) -> Option<&Lease> {
        self.leases.get(uid)
    }

    /// Removes the table and the lease directory when no pod is left.
    pub(crate) fn tidy(&mut self) -> Result<(), Error> {
        if !self.dir.is_empty()? {
            return Ok(());
        }
        self.destroy_table()?;
        self.dir.destroy()
    }

    fn destroy_table(&mut self) -> Result<(), Error> {
        self.table.destroy(&mut self.wire, &self.nft).doing(|| format!("remove the nftables table inet {}", self.settings.table))
    }

    /// Makes or renews the lease, on disk before anything else, so that a crash can't give the address twice.
    fn lease(&mut self, wanted: &Wanted, before: Option<&Lease>, inside: &pod::Inside) -> Result<Lease, Error> {
        let (ips, host_if) = if let Some(lease) = before {
            if let Some(ip) = wanted.fixed.iter().find(|ip| !lease.ips.contains(ip)) {
                let problem = format!("the address {ip} is asked for, but the pod runs with {}", show(&lease.ips));
                return Err(Error::Attachment { pod: wanted.pod.clone(), problem });
            }
            (lease.ips.clone(), lease.host_if.clone())
        } else {
            // A pod that has addresses but no lease keeps them: the lease was lost, not the pod.
            let fixed = if wanted.fixed.is_empty() { self.adoptable(inside) } else { wanted.fixed.clone() };
            let ips = self.addresses(wanted, &fixed)?;
            (
                ips,
                inside
                    .host
                    .as_ref()
                    .map_or_else(|| pod::host_link(&self.settings.bridge, &wanted.uid, 0), |host| host.name.clone()),
            )
        };
        let lease = Lease {
            uid: wanted.uid.clone(),
            pod: wanted.pod.clone(),
            ips,
            host_if,
            ports: wanted.ports.clone(),
            bandwidth: wanted.bandwidth,
            mac: wanted.mac,
        };
        if before == Some(&lease) {
            return Ok(lease);
        }
        if let Err(error) = self.dir.write(&lease) {
            if before.is_none() {
                self.give_back(&lease);
            }
            return Err(error);
        }
        self.leases.insert(lease.clone());
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
        inside: &pod::Inside,
        steps: &mut Steps,
    ) -> Result<Attached, Error> {
        self.leave_direct_for_now(&lease.uid)?;
        if before.is_some() && inside.link.is_none() {
            self.evict(&lease.host_if)?;
        }
        let pair = match self.pair(wanted, lease, inside) {
            Err(_) if self.bridge_is_gone()? => {
                self.repair(false)?;
                self.pair(wanted, lease, inside)?
            }
            pair => pair?,
        };
        let host_if = pair.host_if.clone();
        if host_if != lease.host_if {
            self.rename(&lease.uid, &host_if)?;
        }
        steps.done("veth");
        self.set_up_inside(wanted, lease, &pair, inside)?;
        self.lead_to(lease, &pair)?;
        steps.done("address");
        if lease.bandwidth.is_some() || before.is_some_and(|before| before.bandwidth.is_some()) {
            self.shape(&Lease { host_if: host_if.clone(), ..lease.clone() }, before)?;
            steps.done("bandwidth");
        }
        self.open_ports(wanted, lease, before)?;
        steps.done("ports");
        self.direct.found(&lease.uid, pair.inside.peer);
        self.join_sockets_with(wanted, lease);
        self.join_direct_with(lease);
        steps.done("direct");
        Ok(Attached {
            ips: lease.ips.clone(),
            gateways: lease.ips.iter().filter_map(|ip| Some(self.pools.of(*ip)?.gateway())).collect(),
            mac: lease.mac(),
            host_if,
            mtu: self.bridge.mtu,
            steps: std::mem::take(&mut steps.taken),
        })
    }

    /// The pod's link got another name than the lease says, because a link of that name was there.
    fn rename(&mut self, uid: &str, host_if: &str) -> Result<(), Error> {
        let Some(lease) = self.leases.get(uid) else { return Ok(()) };
        let lease = Lease { host_if: host_if.to_owned(), ..lease.clone() };
        self.dir.write(&lease)?;
        self.leases.insert(lease);
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

    fn release(&mut self, lease: &Lease) -> Result<(), Error> {
        if self.settings.reuse_after.is_zero() {
            self.dir.forget(&lease.uid)?;
        } else {
            self.dir.release(&lease.uid)?;
        }
        self.leases.remove(&lease.uid);
        self.direct.found(&lease.uid, None);
        self.leave_sockets_with(&lease.uid);
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
        let made = links_of(self.leases.get(&lease.uid).unwrap_or(lease));
        if let Err(error) = self.leave_direct_with(&lease.uid) {
            tracing::warn!(pod = lease.pod, %error, "roll back");
        }
        self.direct.found(&lease.uid, None);
        self.leave_sockets_with(&lease.uid);
        if let Err(error) = self.close_ports(lease) {
            tracing::warn!(pod = lease.pod, %error, "roll back");
        }
        if let Err(error) = self.delete_links(&made) {
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

/// All links of the host that are a pod's.
fn links_of(lease: &Lease) -> HashSet<String> {
    let ifb = lease.bandwidth.map(|_| ifb_of(&lease.host_if));
    ifb.into_iter().chain([lease.host_if.clone()]).collect()
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

/// Chains of other firewalls, in the calling thread's network namespace, that may drop what pods of this network send and get.
pub fn obstacles_to(settings: &Settings) -> Result<Vec<Obstacle>, Error> {
    let action = || "look at other firewalls' chains".into();
    let nft = netlink::socket(NETLINK_NETFILTER).doing(action)?;
    Ok(survey(&mut Wire::new(), &nft, settings).doing(action)?.obstacles)
}
