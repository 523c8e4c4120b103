//! The parts of services, put together from the settings.

use std::net::IpAddr;
use std::sync::Arc;

use netplug::Cidr;
use netplug::dns::{Resolver, Zone};

use crate::config::Settings;
use crate::pod::recorder::{Level, Recorder};
use crate::pod::store::Store;
use crate::service::controller::Controller;
use crate::service::{Addresses, Inbox, Services};

/// The controller, and what it listens to.
pub(super) type Parts = (Controller, Inbox);

/// Services and policies are of our own bridge: where CNI plugins wire the pods, they are the network add-on's.
pub(super) fn parts(
    settings: &Settings,
    network: Option<&netplug::Network>,
    store: &Arc<Store>,
    recorder: &Recorder,
    resolver: Option<Resolver>,
) -> (Services, Option<Parts>) {
    let ranges: Vec<Cidr> = settings.network.service_cidrs.clone();
    let Some(network) = network else { return (Services::foreign(), None) };
    if ranges.is_empty() {
        // No name is ours: nobody shall wait for any.
        if let Some(resolver) = resolver {
            resolver.set(Zone::default());
        }
        return (Services::default(), None);
    }
    let addresses = Addresses::open(ranges.clone(), settings.paths.lib().join("services.json"));
    let (services, inbox) = Services::new(addresses);
    let controller = Controller {
        node: settings.node_name.clone(),
        domain: settings.security.cluster_domain.clone(),
        ranges,
        store: store.clone(),
        recorder: recorder.clone(),
        network: network.clone(),
        resolver,
    };
    (services, Some((controller, inbox)))
}

/// The bridge's addresses, where pods ask for names.
pub(super) fn gateways(settings: &Settings) -> Vec<IpAddr> {
    settings.network.pod_ranges.iter().map(netplug::Range::gateway).collect()
}

/// Listens for questions at the bridge. Where it can't, pods ask the host's resolvers as if there were none here, and the node tells why.
pub(super) fn resolver(settings: &Settings, network: Option<&netplug::Network>, recorder: &Recorder) -> Option<Resolver> {
    if network.is_none() || !settings.network.dns {
        return None;
    }
    let clients = settings.network.pod_ranges.iter().map(|range| range.subnet).collect();
    let domain = &settings.security.cluster_domain;
    match Resolver::start(&gateways(settings), clients, domain, settings.resolv_conf.clone()) {
        Ok(resolver) => Some(resolver),
        Err(error) => {
            let message = format!(
                "pods find no names of Services, for their resolver could not be started: {error}: another resolver may listen on \
                 all addresses of this host; bind it to those that it is for, or set `dns: false`"
            );
            recorder.node(Level::Warning, "ResolverFailed", &message);
            tracing::warn!("{message}");
            None
        }
    }
}
