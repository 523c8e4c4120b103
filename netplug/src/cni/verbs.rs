//! What each command does. The order is the same in all: the network's lock, then the engine with that pod's lease, then the kernel.

use std::{collections::HashSet, fs::File, io, net::IpAddr, os::fd::OwnedFd, path::Path, thread};

use nix::sched::{CloneFlags, setns};

use super::{
    Request,
    answer::{Complaint, Interface, Ip, Outcome, Route},
    config::Config,
    store::{Owner, Store},
};
use crate::{
    Attached, Settings,
    engine::{Engine, Purpose, Wanted},
    netlink,
};

/// IFNAMSIZ less the NUL.
const LINK_NAME_MAX: usize = 15;

/// ADD: wires the pod; asked twice, it answers twice the same.
pub(super) fn add(request: &Request, config: &Config) -> Result<Outcome, Complaint> {
    let owner = owner(request)?;
    let settings = config.settings()?;
    let (routes, dns) = (config.routes()?, config.dns()?);
    let (netns, netlink) = enter(&request.netns)?;
    let store = Store::open(&config.reservations(), &config.state_dir())?;
    let mut engine = Engine::for_one(settings.clone(), &owner.uid(), Purpose::Attach)?;
    let known = engine.lease_of(&owner.uid()).is_some();
    let fixed = if let Some(lease) = engine.lease_of(&owner.uid()) {
        lease.ips.clone()
    } else {
        store.intend(&owner)?;
        reserve(&store, config, &config.fixed(&request.args)?, &owner)?
    };
    let wanted = Wanted {
        uid: owner.uid(),
        pod: format!("{} ({})", request.container, request.ifname),
        netns: netns.into(),
        netlink,
        ports: config.ports()?,
        fixed,
        bandwidth: config.bandwidth()?,
        mac: config.mac(&request.args)?,
        link: request.ifname.clone(),
        routes: Some(routes.clone()),
    };
    match engine.attach(&wanted) {
        Ok(attached) => {
            store.settle()?;
            let mut outcome = outcome(request, &settings, &attached);
            outcome.routes =
                routes.iter().map(|via| Route { dst: via.to.to_string(), gw: via.gateway, options: via.options }).collect();
            outcome.dns = dns;
            Ok(match &config.prev_result {
                Some(earlier) => outcome.after(earlier.clone()),
                None => outcome,
            })
        }
        Err(error) => {
            if !known {
                store.free(&wanted.fixed, &owner)?;
                store.settle()?;
            }
            Err(error.into())
        }
    }
}

/// DEL: takes back what there is, also without namespace, and after a crash.
pub(super) fn delete(request: &Request, config: &Config) -> Result<(), Complaint> {
    let owner = owner(request)?;
    let store = Store::open(&config.reservations(), &config.state_dir())?;
    let mut engine = Engine::for_one(config.settings()?, &owner.uid(), Purpose::Remove)?;
    match engine.lease_of(&owner.uid()).cloned() {
        Some(lease) => {
            engine.detach(&owner.uid())?;
            store.free(&lease.ips, &owner)?;
        }
        // A crash between reservation and lease, or host-local's own.
        None => store.retain(|found| !owner.is(found))?,
    }
    Ok(engine.tidy()?)
}

/// CHECK: whether all is still as ADD left it.
pub(super) fn check(request: &Request, config: &Config) -> Result<(), Complaint> {
    let owner = owner(request)?;
    let changed = |problem: String| Complaint::new(Complaint::CHECK, "the network is not as ADD left it", problem);
    let Some(earlier) = &config.prev_result else {
        return Err(Complaint::new(Complaint::INVALID_CONFIG, "invalid network config", "prevResult: CHECK needs it"));
    };
    let (netns, netlink) = enter(&request.netns)?;
    let _store = Store::open(&config.reservations(), &config.state_dir())?;
    let mut engine = Engine::for_one(config.settings()?, &owner.uid(), Purpose::Remove)?;
    let Some(lease) = engine.lease_of(&owner.uid()).cloned() else {
        return Err(changed(format!("nothing is known of interface {} of {}", request.ifname, request.container)));
    };
    let said: Vec<IpAddr> = earlier.ips.iter().filter_map(|ip| ip.address.split('/').next()?.parse().ok()).collect();
    if let Some(ip) = lease.ips.iter().find(|ip| !said.contains(ip)) {
        return Err(changed(format!("{} has address {ip}, which prevResult doesn't have", request.ifname)));
    }
    let wanted = Wanted {
        uid: owner.uid(),
        pod: format!("{} ({})", request.container, request.ifname),
        netns: netns.into(),
        netlink,
        ports: lease.ports.clone(),
        fixed: lease.ips.clone(),
        bandwidth: lease.bandwidth,
        mac: lease.mac,
        link: request.ifname.clone(),
        routes: Some(config.routes()?),
    };
    match engine.examine(&wanted, &lease)? {
        Some(problem) => Err(changed(problem)),
        None => Ok(()),
    }
}

/// GC: frees whatever belongs to none of those that live on.
pub(super) fn collect(config: &Config) -> Result<(), Complaint> {
    let store = Store::open(&config.reservations(), &config.state_dir())?;
    let valid: Vec<Owner<'_>> =
        config.valid.iter().map(|valid| Owner { container: &valid.container, ifname: &valid.ifname }).collect();
    let mut engine = Engine::for_one(config.settings()?, "", Purpose::Remove)?;
    engine.retain(&valid.iter().map(Owner::uid).collect::<HashSet<_>>())?;
    store.retain(|found| valid.iter().any(|owner| owner.is(found)))?;
    Ok(engine.tidy()?)
}

/// STATUS: whether an ADD could succeed.
pub(super) fn status(config: &Config) -> Result<(), Complaint> {
    let unavailable = |details: String| Complaint::new(Complaint::NOT_AVAILABLE, "the plugin is not available", details);
    Engine::for_one(config.settings()?, "", Purpose::Remove).map_err(|error| unavailable(error.to_string()))?;
    let store = Store::open(&config.reservations(), &config.state_dir())?;
    for set in config.sets()? {
        if !store.has_room(&set)? {
            let subnets: Vec<String> = set.iter().map(|range| range.subnet.to_string()).collect();
            return Err(unavailable(format!("range {} is full: end pods, or add a range", subnets.join(", "))));
        }
    }
    Ok(())
}

/// One address of each set; none if one has none.
fn reserve(store: &Store, config: &Config, fixed: &[IpAddr], owner: &Owner<'_>) -> Result<Vec<IpAddr>, Complaint> {
    let mut ips = Vec::new();
    for (number, ranges) in config.sets()?.iter().enumerate() {
        let fixed = fixed.iter().copied().find(|ip| ip.is_ipv4() == ranges[0].subnet.is_v4());
        match store.reserve(number, ranges, fixed, owner) {
            Ok(ip) => ips.push(ip),
            Err(complaint) => {
                store.free(&ips, owner)?;
                store.settle()?;
                return Err(complaint);
            }
        }
    }
    Ok(ips)
}

fn outcome(request: &Request, settings: &Settings, attached: &Attached) -> Outcome {
    let mac = crate::links::show_mac(attached.mac);
    let bridge = Interface { name: settings.bridge.clone(), ..Interface::default() };
    let host = Interface { name: attached.host_if.clone(), mtu: Some(attached.mtu), ..Interface::default() };
    let pod = Interface {
        name: request.ifname.clone(),
        mac,
        mtu: Some(attached.mtu),
        sandbox: Some(request.netns.clone()),
        more: serde_json::Map::new(),
    };
    let prefix = |ip: IpAddr| settings.ranges.iter().map(|range| range.subnet).find(|subnet| subnet.contains(ip));
    let ips = attached.ips.iter().zip(&attached.gateways).map(|(ip, gateway)| Ip {
        version: None,
        address: format!("{ip}/{}", prefix(*ip).map_or(0, |subnet| subnet.prefix())),
        gateway: Some(*gateway),
        interface: Some(2),
    });
    Outcome { ips: ips.collect(), interfaces: vec![bridge, host, pod], ..Outcome::default() }
}

fn owner(request: &Request) -> Result<Owner<'_>, Complaint> {
    let wrong = |problem: String| Err(Complaint::new(Complaint::INVALID_ENVIRONMENT, "invalid environment", problem));
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let id = request.container.as_str();
    if !id.starts_with(|first: char| first.is_ascii_alphanumeric()) || !id.bytes().all(allowed) {
        return wrong(format!("CNI_CONTAINERID: {id:?} must begin with a letter or digit, then have those, - _ ."));
    }
    let name = request.ifname.as_str();
    let unfit = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    if name.is_empty() || name.len() > LINK_NAME_MAX || matches!(name, "." | "..") || name.contains(unfit) {
        return wrong(format!("CNI_IFNAME: {name:?} is no name of an interface"));
    }
    Ok(Owner { container: id, ifname: name })
}

/// The namespace, and a socket of it. A thread goes there, and ends there: this one stays where it is.
fn enter(path: &str) -> Result<(File, OwnedFd), Complaint> {
    let wrong = |error: io::Error| {
        Complaint::new(Complaint::INVALID_ENVIRONMENT, "invalid environment", format!("CNI_NETNS: enter {path:?}: {error}"))
    };
    let netns = File::open(Path::new(path)).map_err(wrong)?;
    let inside = || -> io::Result<OwnedFd> {
        setns(&netns, CloneFlags::CLONE_NEWNET)?;
        netlink::inside()
    };
    let socket = thread::scope(|scope| scope.spawn(inside).join());
    let socket = socket.unwrap_or_else(|_| Err(io::ErrorKind::Other.into())).map_err(wrong)?;
    Ok((netns, socket))
}
