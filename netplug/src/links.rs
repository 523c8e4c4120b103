//! Links, addresses and routes as route netlink messages: what to ask of the kernel and what its answers mean. No I/O here.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::RawFd,
};

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
    link::{
        AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoPortKind, InfoVeth, LinkAttribute,
        LinkFlags, LinkInfo, LinkMessage, State,
    },
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteScope, RouteType, RouteVia},
};
use rtnetlink::{LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use serde::{Deserialize, Serialize};

use crate::{cidr::Cidr, netlink::Request};

/// The name of a pod's interface, as Kubernetes has it.
pub(crate) const POD_LINK: &str = "eth0";
/// The loopback's index is the same in every namespace.
const LOOPBACK_INDEX: u32 = 1;
/// linux/rtnetlink.h
const RT_TABLE_LOCAL: u8 = 255;
/// Links that are about to be deleted are put into this group, so that one request deletes them all and the kernel waits for
/// its readers (RCU) once, not once a link. "nplg".
const DOOMED_GROUP: u32 = 0x6e70_6c67;
/// linux/ip.h, of `IPV4_DEVCONF_…`.
const FORWARDING: u16 = 1;
const PROXY_ARP: u16 = 3;
const ROUTE_LOCALNET: u16 = 26;
const IFLA_INET_CONF: u16 = 1;

pub(crate) type Mac = [u8; 6];

/// As people write it.
pub(crate) fn show_mac(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// What we want to know of a link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub index: u32,
    pub name: String,
    pub kind: Option<InfoKind>,
    pub bridge: Option<u32>,
    pub group: u32,
    /// A veth's other end: its index in its own namespace.
    pub peer: Option<u32>,
    pub mtu: u32,
    pub up: bool,
    /// Whether the kernel has noticed that the other end is there (IF_OPER_UP, RFC 2863).
    pub passes: bool,
    pub alias: Option<String>,
    pub mac: Option<Mac>,
}

impl Link {
    pub(crate) fn of(message: &LinkMessage) -> Link {
        let mut link = Link { index: message.header.index, up: message.header.flags.contains(LinkFlags::Up), ..Link::default() };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
                LinkAttribute::Controller(index) => link.bridge = Some(*index),
                LinkAttribute::Group(group) => link.group = *group,
                LinkAttribute::OperState(state) => link.passes = *state == State::Up,
                LinkAttribute::Link(index) => link.peer = Some(*index),
                LinkAttribute::Address(mac) => link.mac = mac.as_slice().try_into().ok(),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::LinkInfo(infos) => {
                    link.kind = infos.iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind.clone()),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        link
    }

    /// The links among messages.
    pub(crate) fn all(messages: &[RouteNetlinkMessage]) -> impl Iterator<Item = Link> {
        messages.iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewLink(link) => Some(Link::of(link)),
            _ => None,
        })
    }
}

/// Where the host's ends of pods' links belong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Home {
    /// They are ports of the bridge of this index.
    Ports(u32),
    /// They are links of their own, of this group. By the MAC their pods know the host.
    Group(u32, Mac),
}

impl Home {
    /// Whether a link is at home that has this bridge, group and MAC.
    pub(crate) fn holds(self, bridge: Option<u32>, group: u32, mac: Option<Mac>) -> bool {
        match self {
            Home::Ports(index) => bridge == Some(index),
            Home::Group(own, host) => bridge.is_none() && group == own && mac == Some(host),
        }
    }
}

/// One address of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Address {
    pub index: u32,
    pub ip: IpAddr,
    pub prefix: u8,
}

impl Address {
    /// The addresses among messages, less link-local ones, which the kernel makes by itself.
    pub(crate) fn all(messages: &[RouteNetlinkMessage]) -> impl Iterator<Item = Address> {
        messages.iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewAddress(message) if message.header.scope != AddressScope::Link => Address::of(message),
            _ => None,
        })
    }

    fn of(message: &AddressMessage) -> Option<Address> {
        let local = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(ip) => Some(*ip),
            _ => None,
        });
        let address = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        });
        Some(Address { index: message.header.index, ip: local.or(address)?, prefix: message.header.prefix_len })
    }
}

/// One route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    pub destination: Cidr,
    pub link: Option<u32>,
    pub metric: u32,
}

impl Route {
    /// The unicast routes of the main table among messages.
    pub(crate) fn all(messages: &[RouteNetlinkMessage]) -> impl Iterator<Item = Route> {
        messages.iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewRoute(route) => Route::of(route),
            _ => None,
        })
    }

    fn of(message: &RouteMessage) -> Option<Route> {
        if message.header.table != RouteHeader::RT_TABLE_MAIN || message.header.kind != RouteType::Unicast {
            return None;
        }
        let base = message.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
            RouteAttribute::Destination(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
            _ => None,
        });
        let any: IpAddr = match message.header.address_family {
            AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
            AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
            _ => return None,
        };
        let number = |wanted: fn(&RouteAttribute) -> Option<u32>| message.attributes.iter().find_map(wanted);
        Some(Route {
            destination: Cidr::new(base.unwrap_or(any), message.header.destination_prefix_length).ok()?,
            link: number(|attribute| if let RouteAttribute::Oif(index) = attribute { Some(*index) } else { None }),
            metric: number(|attribute| if let RouteAttribute::Priority(metric) = attribute { Some(*metric) } else { None })
                .unwrap_or(0),
        })
    }

    pub(crate) fn is_default(&self) -> bool {
        self.destination.prefix() == 0
    }
}

/// An address as MAC: locally administered, and the same whenever the pod has that address, so that no neighbour's cache is
/// ever wrong about it.
pub(crate) fn mac_of(ip: IpAddr) -> Mac {
    let tail = match ip {
        IpAddr::V4(ip) => ip.octets(),
        // The prefix is the same for all of a bridge: what differs is at the end.
        IpAddr::V6(ip) => {
            let octets = ip.octets();
            [octets[12], octets[13], octets[14], octets[15]]
        }
    };
    [0x0a, 0x58, tail[0], tail[1], tail[2], tail[3]]
}

/// The link-local address that the kernel gives a link (RFC 4291, appendix A).
pub(crate) fn link_local(mac: Mac) -> IpAddr {
    let mut octets = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe, 0, 0, 0];
    octets[8..11].copy_from_slice(&mac[..3]);
    octets[8] ^= 2;
    octets[13..].copy_from_slice(&mac[3..]);
    octets.into()
}

/// Ask for one link by name.
pub(crate) fn get_link(name: &str) -> Request {
    let message = LinkUnspec::new_with_name(name).build();
    Request::new(RouteNetlinkMessage::GetLink(message), 0)
}

/// Ask for one link by index.
pub(crate) fn get_link_by_index(index: u32) -> Request {
    Request::new(RouteNetlinkMessage::GetLink(LinkUnspec::new_with_index(index).build()), 0)
}

/// For a dump of all links.
pub(crate) fn all_links() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetLink(LinkMessage::default())
}

/// For a dump of all addresses.
pub(crate) fn all_addresses() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetAddress(AddressMessage::default())
}

/// For a dump of a family's routes.
pub(crate) fn all_routes(v4: bool) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(v4);
    RouteNetlinkMessage::GetRoute(message)
}

/// A new bridge, up. Its MAC is given, or it would change with its ports.
pub(crate) fn new_bridge(name: &str, mac: Mac, mtu: u32) -> Request {
    let message = LinkMessageBuilder::<LinkBridge>::new(name).forward_delay(0).mcast_snooping(false);
    let message = message.address(mac.to_vec()).mtu(mtu).up().build();
    Request::new(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// Marks a bridge as ours, and what it needs beside: up, and the MTU. `v4`: whether IPv4 is spoken there, and then whether pods are its ports.
/// If they are, the host reaches them from 127.0.0.1 by it (`route_localnet`); else it answers for them to who else is on it (`proxy_arp`).
pub(crate) fn set_bridge(name: &str, alias: Option<&str>, mtu: u32, v4: Option<bool>) -> Request {
    let mut builder = LinkUnspec::new_with_name(name).mtu(mtu).up();
    if let Some(alias) = alias {
        builder = builder.alias(alias);
    }
    if let Some(ports) = v4 {
        let settings = AfSpecUnspec::Inet(vec![inet(&[(ROUTE_LOCALNET, u32::from(ports)), (PROXY_ARP, u32::from(!ports))])]);
        builder = builder.append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![settings]));
    }
    Request::new(RouteNetlinkMessage::SetLink(builder.build()), 0)
}

/// Settings of a link, as below /proc/sys/net/ipv4/conf.
fn inet(settings: &[(u16, u32)]) -> AfSpecInet {
    let attribute = |(kind, value): &(u16, u32)| {
        let header = [8u16.to_ne_bytes(), kind.to_ne_bytes()].concat();
        [header, value.to_ne_bytes().to_vec()].concat()
    };
    AfSpecInet::Other(DefaultNla::new(IFLA_INET_CONF | 0x8000, settings.iter().flat_map(attribute).collect()))
}

/// A veth pair: the host's end at home, the pod's in its namespace from the start. Both are still down: a veth opens only when it has its
/// peer, and what [`set_port`], [`set_own`] and [`quiet`] set must be set before.
///
/// With one queue, as a veth has in use unless told otherwise; but unless told it makes one for each processor, takes them away again,
/// and waits for all processors (RCU) at each end: a fifth of what a veth costs, and more where many are.
pub(crate) fn new_veth(name: &str, home: Home, mtu: u32, netns: RawFd, mac: Mac, inside: &str) -> Request {
    let one_queue = || [LinkAttribute::NumTxQueues(1), LinkAttribute::NumRxQueues(1)];
    let peer = LinkUnspec::new_with_name(inside).address(mac.to_vec()).mtu(mtu).setns_by_fd(netns);
    let peer = one_queue().into_iter().fold(peer, LinkMessageBuilder::append_extra_attribute);
    let ends = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(name)
        .mtu(mtu)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())));
    let host = match home {
        Home::Group(group, mac) => ends.address(mac.to_vec()).link_group(group),
        Home::Ports(bridge) => ends.controller(bridge),
    };
    let host = one_queue().into_iter().fold(host, LinkMessageBuilder::append_extra_attribute);
    Request::new(RouteNetlinkMessage::NewLink(host.build()), NLM_F_CREATE | NLM_F_EXCL)
}

/// The host's end as a port of the bridge: packets may go back out where they came from (a pod that calls its own host port,
/// where br_netfilter is on), and with isolation none goes straight to another isolated port.
pub(crate) fn set_port(name: &str, alias: &str, isolated: bool) -> Request {
    let port = LinkMessageBuilder::<LinkBridgePort>::default()
        .set_port_kind(InfoPortKind::Bridge)
        .name(name)
        .alias(alias)
        .hairpin(true)
        .isolated(isolated);
    Request::new(RouteNetlinkMessage::NewLink(port.build()), 0)
}

/// The host's end as a link of its own: the host passes on what comes from it (`forwarding`), and may reach the pod from 127.0.0.1, as by the
/// pod's host port (`route_localnet`; see the rules of `guard`).
pub(crate) fn set_own(name: &str, alias: &str) -> Request {
    let settings = AfSpecUnspec::Inet(vec![inet(&[(FORWARDING, 1), (ROUTE_LOCALNET, 1)])]);
    let message =
        LinkUnspec::new_with_name(name).alias(alias).append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![settings])).build();
    Request::new(RouteNetlinkMessage::SetLink(message), 0)
}

/// A link without an IPv6 address of the kernel's making. A port of a bridge has no use for one, nor has a pod without IPv6,
/// and to announce it the kernel would send half a dozen packets, each to every port: that made a pod's start cost more the more
/// pods there were.
pub(crate) fn quiet(name: &str) -> Request {
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    let message = LinkUnspec::new_with_name(name)
        .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]));
    Request::new(RouteNetlinkMessage::SetLink(message.build()), 0)
}

/// A link by name, up.
pub(crate) fn up_by_name(name: &str) -> Request {
    Request::new(RouteNetlinkMessage::SetLink(LinkUnspec::new_with_name(name).up().build()), 0)
}

/// Brings an existing host end home, with the MTU.
pub(crate) fn bring_home(index: u32, home: Home, mtu: u32) -> Request {
    let message = LinkUnspec::new_with_index(index).mtu(mtu);
    let message = match home {
        Home::Group(group, mac) => message.controller(0).link_group(group).address(mac.to_vec()),
        Home::Ports(bridge) => message.controller(bridge),
    };
    Request::new(RouteNetlinkMessage::SetLink(message.build()), 0)
}

/// A link, up.
pub(crate) fn up(index: u32) -> Request {
    Request::new(RouteNetlinkMessage::SetLink(LinkUnspec::new_with_index(index).up().build()), 0)
}

/// The pod's loopback, up.
pub(crate) fn loopback_up() -> Request {
    up(LOOPBACK_INDEX)
}

/// A pod's interface that exists: MAC, MTU.
pub(crate) fn set_pod_link(index: u32, mac: Mac, mtu: u32) -> Request {
    let message = LinkUnspec::new_with_index(index).address(mac.to_vec()).mtu(mtu).build();
    Request::new(RouteNetlinkMessage::SetLink(message), 0)
}

/// Marks a link for [`delete_doomed`].
pub(crate) fn doom(index: u32) -> Request {
    let message = LinkUnspec::new_with_index(index).link_group(DOOMED_GROUP).build();
    Request::new(RouteNetlinkMessage::SetLink(message), 0)
}

/// Deletes all links that were marked.
pub(crate) fn delete_doomed() -> Request {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::Group(DOOMED_GROUP));
    Request::new(RouteNetlinkMessage::DelLink(message), 0)
}

/// Adds an address, or leaves it as it is. IPv6 without duplicate address detection: nobody else gives these out, and it
/// would take two seconds.
pub(crate) fn add_address(index: u32, ip: IpAddr, subnet: Cidr) -> Request {
    Request::new(RouteNetlinkMessage::NewAddress(address(index, ip, subnet.prefix())), NLM_F_CREATE | NLM_F_REPLACE)
}

/// Removes an address.
pub(crate) fn remove_address(found: Address) -> Request {
    Request::new(RouteNetlinkMessage::DelAddress(address(found.index, found.ip, found.prefix)), 0)
}

fn address(index: u32, ip: IpAddr, prefix: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(ip.is_ipv4());
    message.header.prefix_len = prefix;
    message.header.index = index;
    message.attributes.push(AddressAttribute::Local(ip));
    message.attributes.push(AddressAttribute::Address(ip));
    match ip {
        IpAddr::V4(v4) => {
            let host_bits = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
            message.attributes.push(AddressAttribute::Broadcast(Ipv4Addr::from(u32::from(v4) | host_bits)));
        }
        IpAddr::V6(_) => message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad)),
    }
    message
}

/// What a route may say beside where it leads, as CNI writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct RouteOptions {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

impl RouteOptions {
    /// Whether the route is in the table that is looked at first.
    pub(crate) fn is_main(&self) -> bool {
        self.table.is_none_or(|table| table == u32::from(RouteHeader::RT_TABLE_MAIN))
    }

    fn apply(self, message: &mut RouteMessage) {
        let metrics = [self.mtu.map(RouteMetric::Mtu), self.advmss.map(RouteMetric::Advmss)];
        let metrics: Vec<RouteMetric> = metrics.into_iter().flatten().collect();
        if !metrics.is_empty() {
            message.attributes.push(RouteAttribute::Metrics(metrics));
        }
        message.attributes.extend(self.priority.map(RouteAttribute::Priority));
        if let Some(table) = self.table {
            // The header has room for small numbers only; the attribute counts.
            message.header.table = u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
            message.attributes.push(RouteAttribute::Table(table));
        }
        if let Some(scope) = self.scope {
            message.header.scope = scope.into();
        }
    }
}

/// Has the host ask on a link who has an address, as if it had something to send there (NTF_USE).
pub(crate) fn ask_for_neighbour(index: u32, ip: IpAddr) -> Request {
    let mut message = neighbour_entry(index, ip);
    message.header.flags = NeighbourFlags::Use;
    Request::new(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
}

/// Takes what the host knows of an address.
pub(crate) fn forget_neighbour(index: u32, ip: IpAddr) -> Request {
    Request::new(RouteNetlinkMessage::DelNeighbour(neighbour_entry(index, ip)), 0)
}

fn neighbour_entry(index: u32, ip: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(ip.is_ipv4());
    message.header.ifindex = index;
    message.attributes.push(NeighbourAttribute::Destination(match ip {
        IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
        IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
    }));
    message
}

/// An address and who has it.
pub(crate) fn neighbour_of(message: &NeighbourMessage) -> Option<(IpAddr, Mac)> {
    let ip = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    })?;
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(mac) => Mac::try_from(mac.as_slice()).ok(),
        _ => None,
    })?;
    Some((ip, mac))
}

/// Who has an address on a link, so that nobody asks.
pub(crate) fn neighbour(index: u32, ip: IpAddr, mac: Mac) -> Request {
    let mut message = neighbour_entry(index, ip);
    message.header.state = NeighbourState::Permanent;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
    Request::new(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
}

/// One address is on a link; who sends there does it as `source`, if that is given.
pub(crate) fn reach(index: u32, ip: IpAddr, source: Option<IpAddr>) -> Request {
    let mut message = on_link(index, Cidr::host(ip));
    message.attributes.extend(source.map(|source| {
        RouteAttribute::PrefSource(match source {
            IpAddr::V4(ip) => RouteAddress::Inet(ip),
            IpAddr::V6(ip) => RouteAddress::Inet6(ip),
        })
    }));
    add_route(message)
}

/// What comes for this address of IPv6 is for us. The kernel says so itself, but by a worker that waits for its turn (addrconf_dad_work); until
/// then it drops what comes. The link is up.
pub(crate) fn own(index: u32, ip: IpAddr) -> Request {
    let mut message = on_link(index, Cidr::host(ip));
    message.header.kind = RouteType::Local;
    message.header.table = RT_TABLE_LOCAL;
    add_route(message)
}

/// These addresses are on a link, as far as the host knows.
pub(crate) fn lead(index: u32, to: Cidr) -> Request {
    Request::new(RouteNetlinkMessage::NewRoute(on_link(index, to)), NLM_F_CREATE | NLM_F_EXCL)
}

/// Takes that back.
pub(crate) fn lead_no_more(index: u32, to: Cidr) -> Request {
    Request::new(RouteNetlinkMessage::DelRoute(on_link(index, to)), 0)
}

/// An address that nobody has (240.0.0.0/4 is reserved, 3fff::/20 is for documentation, RFC 9637): what leads there is a default route.
pub(crate) const fn elsewhere(v4: bool) -> IpAddr {
    if v4 { IpAddr::V4(Ipv4Addr::new(240, 0, 0, 1)) } else { IpAddr::V6(Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 1)) }
}

/// By which way would the host send? None: refused.
pub(crate) fn way_to(ip: IpAddr) -> Request {
    let host = Cidr::host(ip);
    let message = match ip {
        IpAddr::V4(ip) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(ip, host.prefix()).build(),
        IpAddr::V6(ip) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(ip, host.prefix()).build(),
    };
    Request::new(RouteNetlinkMessage::GetRoute(message), 0)
}

fn add_route(message: RouteMessage) -> Request {
    Request::new(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
}

/// A route to what is on the link itself.
fn on_link(index: u32, to: Cidr) -> RouteMessage {
    match to.base() {
        IpAddr::V4(base) => {
            let route = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(base, to.prefix()).output_interface(index);
            route.scope(RouteScope::Link).build()
        }
        IpAddr::V6(base) => {
            RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(base, to.prefix()).output_interface(index).build()
        }
    }
}

/// A way out of the pod. Added, or put in place of the one to the same destination.
pub(crate) fn route(index: u32, to: Cidr, gateway: IpAddr, options: RouteOptions) -> Request {
    let mut message = match (to.base(), gateway) {
        (IpAddr::V4(base), IpAddr::V4(gateway)) => {
            let route = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(base, to.prefix());
            route.gateway(gateway).output_interface(index).build()
        }
        (IpAddr::V6(base), IpAddr::V6(gateway)) => {
            let route = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(base, to.prefix());
            route.gateway(gateway).output_interface(index).build()
        }
        // By a gateway of the other family (RTA_VIA): the kernel says whether it can.
        (_, gateway) => {
            let route = RouteMessageBuilder::<IpAddr>::new().output_interface(index);
            let mut message = route.build();
            message.header.address_family = family(to.is_v4());
            message.header.destination_prefix_length = to.prefix();
            message.attributes.push(RouteAttribute::Via(match gateway {
                IpAddr::V4(ip) => RouteVia::Inet(ip),
                IpAddr::V6(ip) => RouteVia::Inet6(ip),
            }));
            message
        }
    };
    options.apply(&mut message);
    add_route(message)
}

fn family(v4: bool) -> AddressFamily {
    if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 }
}
