//! The network as it is, read in four dumps: for who asks, on no pod's way.

use std::collections::HashMap;

use super::Engine;
use crate::{
    error::{Doing, Error},
    links::{self, Address, Link, Route},
    picture::{LinkState, Picture, PodState},
};

impl Engine {
    /// See [`Picture`].
    pub(crate) fn picture(&mut self) -> Result<Picture, Error> {
        self.complete()?;
        let found = self.wire.dump(&self.route, links::all_links).doing(|| "list links".into())?;
        let all: Vec<Link> = Link::all(&found).collect();
        let found = self.wire.dump(&self.route, links::all_addresses).doing(|| "list addresses".into())?;
        let mut addresses: HashMap<u32, Vec<_>> = HashMap::new();
        for Address { index, ip, prefix } in Address::all(&found) {
            addresses.entry(index).or_default().push((ip, prefix));
        }
        let state = |link: &Link| LinkState {
            name: link.name.clone(),
            up: link.up,
            mtu: link.mtu,
            addresses: addresses.get(&link.index).cloned().unwrap_or_default(),
        };
        let uplinks = self.default_routes()?;
        let uplinks = uplinks.iter().filter_map(|index| all.iter().find(|link| link.index == *index)).map(state).collect();
        let bridge = all.iter().find(|link| link.name == self.settings.bridge);
        let within = |link: &Link| bridge.is_some_and(|bridge| link.bridge == Some(bridge.index));
        let pods = self.attached().into_iter().map(|lease| {
            let link = all.iter().find(|link| link.name == lease.host_if);
            let not_direct = self.why_not_directly(&lease);
            PodState { link: link.map(state), in_place: link.is_some_and(|link| self.is_home(link)), not_direct, lease }
        });
        let mut pods: Vec<PodState> = pods.collect();
        pods.sort_by(|a, b| a.lease.pod.cmp(&b.lease.pod));
        let stranger = |link: &&Link| within(link) && !pods.iter().any(|pod| pod.lease.host_if == link.name);
        let action = || format!("look for the nftables table inet {}", self.settings.table);
        Ok(Picture {
            uplinks,
            bridge: bridge.map(state),
            table: self.settings.table.clone(),
            table_stands: self.table.stands(&mut self.wire, &self.nft).doing(action)?,
            no_direct_way: self.direct.closed().map(str::to_owned),
            no_led_sockets: self.sockets.closed().map(str::to_owned),
            strangers: all.iter().filter(stranger).map(state).collect(),
            pods,
        })
    }

    /// The links that default routes lead to, each once, by metric.
    fn default_routes(&mut self) -> Result<Vec<u32>, Error> {
        let mut routes: Vec<Route> = Vec::new();
        for v4 in [true, false].into_iter().filter(|v4| *v4 || self.bridge.ipv6) {
            let found = self.wire.dump(&self.route, || links::all_routes(v4)).doing(|| "list routes".into())?;
            routes.extend(Route::all(&found).filter(Route::is_default));
        }
        routes.sort_by_key(|route| route.metric);
        let mut indices: Vec<u32> = Vec::new();
        for index in routes.iter().filter_map(|route| route.link) {
            if !indices.contains(&index) {
                indices.push(index);
            }
        }
        Ok(indices)
    }
}
