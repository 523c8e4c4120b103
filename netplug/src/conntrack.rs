//! The kernel's table of flows (ctnetlink), as far as it must be told of changes. A flow goes where its first packet went; what has
//! connections notices, the rest (UDP, and SCTP's flows outlive their hosts) would be sent to who is gone, or past who has come, as long
//! as the client goes on.
//! linux/netfilter/nfnetlink_conntrack.h is the reference.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use netlink_sys::Socket;

use crate::{
    error::Refused,
    netlink::{self, Answer, Wire, attributes},
    nft::wire::{self, Attrs},
    settings::Protocol,
};

const SUBSYSTEM: u16 = 1;
const NEW: u16 = 0;
const GET: u16 = 1;
const DELETE: u16 = 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const PROTOINFO: u16 = 4;
const TIMEOUT: u16 = 7;
const PROTOINFO_TCP: u16 = 1;
const TCP_STATE: u16 = 1;
const TCP_FLAGS_ORIGINAL: u16 = 4;
const TCP_FLAGS_REPLY: u16 = 5;
const TCP_ESTABLISHED: u8 = 3;
/// Flags and their mask: SACK is taken for agreed upon, and windows, whose scale isn't known, are not held against packets.
const LENIENT: u8 = 0x02 | 0x08;
const SEEN_REPLY: u32 = 1 << 1;
const ASSURED: u32 = 1 << 2;
const CONFIRMED: u32 = 1 << 3;
/// How long a connection that says nothing stays known; as soon as it says something, it is as long as for every other.
const IDLE_SECONDS: u32 = 24 * 3600;
const TUPLE_ADDRESSES: u16 = 1;
const TUPLE_PORTS: u16 = 2;
/// Of addresses: AF_UNSPEC asks for all of the table in one walk.
const ANY: u8 = 0;
const V4: u8 = 2;
const V6: u8 = 10;

/// Flows that go astray.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Stale {
    /// They were redirected to endpoints that are gone.
    pub(crate) gone: BTreeSet<(Protocol, IpAddr, u16)>,
    /// They went to a port of the host, at one of its addresses or any, before it led anywhere.
    pub(crate) opened: BTreeSet<(Protocol, Option<IpAddr>, u16)>,
}

impl Stale {
    pub(crate) fn is_empty(&self) -> bool {
        self.gone.is_empty() && self.opened.is_empty()
    }

    fn has(&self, flow: &Flow) -> bool {
        let Flow { protocol, client, asked, answers, hears, .. } = *flow;
        if asked != answers {
            return self.gone.iter().any(|(p, ip, port)| p.number() == protocol && answers == (*ip, *port));
        }
        let at = |host: Option<IpAddr>| host.is_none_or(|ip| ip == asked.0);
        // What is masqueraded is on its way out.
        client == hears && self.opened.iter().any(|(p, host, port)| p.number() == protocol && at(*host) && asked.1 == *port)
    }
}

/// Whether flows of a protocol outlive what they lead to.
pub(crate) fn lingers(protocol: Protocol) -> bool {
    protocol != Protocol::Tcp
}

/// Deletes flows; their next packet begins them anew.
pub(crate) fn forget(wire: &mut Wire, socket: &Socket, stale: &Stale) -> Result<(), Refused> {
    if stale.is_empty() {
        return Ok(());
    }
    let mut dead: Vec<(u8, Vec<u8>)> = Vec::new();
    wire.exchange(socket, &message(GET, netlink_packet_core::NLM_F_DUMP, ANY, &[]), |_, answer| {
        if let Answer::Message(message) = answer {
            dead.extend(original_if_stale(message, stale));
        }
    })?;
    for (family, original) in dead {
        let mut tuple = Attrs::default();
        tuple.bytes(TUPLE_ORIGINAL | 0x8000, &original);
        delete(wire, socket, family, &tuple)?;
    }
    Ok(())
}

/// A flow that has ended meanwhile is as good as deleted.
fn delete(wire: &mut Wire, socket: &Socket, family: u8, original: &Attrs) -> Result<(), Refused> {
    wire.exchange(socket, &message(DELETE, netlink_packet_core::NLM_F_ACK, family, &original.0), |_, _| {})
}

/// A flow that was redirected: what answers it must be translated back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Redirected {
    /// Of the IP header.
    pub(crate) protocol: u8,
    /// Who asked.
    pub(crate) client: IpAddr,
    /// Who was to answer.
    pub(crate) endpoint: IpAddr,
}

/// Those that are known.
pub(crate) fn redirected(wire: &mut Wire, socket: &Socket) -> Result<Vec<Redirected>, Refused> {
    let flows = netlink::until_whole(|| list(wire, socket))?.into_iter().filter(|flow| flow.asked != flow.answers);
    Ok(flows.map(|flow| Redirected { protocol: flow.protocol, client: flow.client.0, endpoint: flow.answers.0 }).collect())
}

/// A TCP connection that nobody translates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Connection {
    /// Who opened it.
    pub(crate) client: SocketAddr,
    /// To whom.
    pub(crate) server: SocketAddr,
}

/// The open connections between these that are known, which are not from now on: they are somebody else's to know.
pub(crate) fn take_connections(
    wire: &mut Wire,
    socket: &Socket,
    fit: impl Fn(IpAddr) -> bool,
) -> Result<Vec<Connection>, Refused> {
    let plain = |flow: &Flow| flow.established && flow.asked == flow.answers && flow.client == flow.hears;
    let flows = netlink::until_whole(|| list(wire, socket))?
        .into_iter()
        .filter(plain)
        .filter(|flow| fit(flow.client.0) && fit(flow.asked.0));
    let taken: Vec<Connection> = flows.map(|flow| Connection { client: flow.client.into(), server: flow.asked.into() }).collect();
    for connection in &taken {
        let mut tuple = Attrs::default();
        write_tuple(&mut tuple, TUPLE_ORIGINAL, connection.client, connection.server);
        delete(wire, socket, family(connection.client.ip()), &tuple)?;
    }
    Ok(taken)
}

/// Makes connections known as such that have been there for long: what passes for it goes on to pass. The kernel picks up their windows from
/// what it sees, as it does with connections that it comes upon. All are tried; the last refusal is told.
pub(crate) fn know(wire: &mut Wire, socket: &Socket, connections: &[Connection]) -> Result<(), Refused> {
    let flags = netlink_packet_core::NLM_F_ACK | netlink_packet_core::NLM_F_CREATE;
    let mut outcome = Ok(());
    for connection in connections {
        let request = message(NEW, flags, family(connection.client.ip()), &standing(connection).0);
        wire.exchange(socket, &request, |_, answer| {
            if let Answer::Refused(refusal) = answer {
                outcome = Err(refusal);
            }
        })?;
    }
    outcome
}

fn standing(connection: &Connection) -> Attrs {
    let Connection { client, server } = *connection;
    let mut attrs = Attrs::default();
    write_tuple(&mut attrs, TUPLE_ORIGINAL, client, server);
    write_tuple(&mut attrs, TUPLE_REPLY, server, client);
    attrs.u32(STATUS, SEEN_REPLY | ASSURED | CONFIRMED).u32(TIMEOUT, IDLE_SECONDS);
    attrs.nest(PROTOINFO, |info| {
        info.nest(PROTOINFO_TCP, |tcp| {
            tcp.bytes(TCP_STATE, &[TCP_ESTABLISHED])
                .bytes(TCP_FLAGS_ORIGINAL, &[LENIENT; 2])
                .bytes(TCP_FLAGS_REPLY, &[LENIENT; 2]);
        });
    });
    attrs
}

fn write_tuple(attrs: &mut Attrs, kind: u16, source: SocketAddr, destination: SocketAddr) {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let (from, to) = if source.is_ipv4() { (1, 2) } else { (3, 4) };
    attrs.nest(kind, |tuple| {
        tuple.nest(TUPLE_ADDRESSES, |ips| {
            ips.bytes(from, &octets(source.ip())).bytes(to, &octets(destination.ip()));
        });
        tuple.nest(TUPLE_PORTS, |ports| {
            ports
                .bytes(1, &[Protocol::Tcp.number()])
                .bytes(2, &source.port().to_be_bytes())
                .bytes(3, &destination.port().to_be_bytes());
        });
    });
}

fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { V4 } else { V6 }
}

fn list(wire: &mut Wire, socket: &Socket) -> Result<Vec<Flow>, Refused> {
    let mut found = Vec::new();
    let mut refused = None;
    wire.exchange(socket, &message(GET, netlink_packet_core::NLM_F_DUMP, ANY, &[]), |_, answer| match answer {
        Answer::Message(message) => found.extend(flow(message)),
        Answer::Refused(refusal) => refused = Some(refusal),
        Answer::Ack => {}
    })?;
    refused.map_or(Ok(found), Err)
}

/// A flow's two directions: who asks whom, and who answers whom.
#[derive(Debug, Clone, Copy)]
struct Flow {
    protocol: u8,
    client: End,
    asked: End,
    answers: End,
    hears: End,
    /// Of TCP: opened, and not closed yet.
    established: bool,
}

/// A flow's family and original tuple, if it is stale.
fn original_if_stale(message: &[u8], stale: &Stale) -> Option<(u8, Vec<u8>)> {
    let flow = flow(message)?;
    let original = part(message, TUPLE_ORIGINAL)?;
    stale.has(&flow).then(|| (family(flow.client.0), original.to_vec()))
}

/// What a message tells of a flow.
fn flow(message: &[u8]) -> Option<Flow> {
    let (protocol, asked, client) = ends(part(message, TUPLE_ORIGINAL)?)?;
    let (_, hears, answers) = ends(part(message, TUPLE_REPLY)?)?;
    let tcp = part(message, PROTOINFO).and_then(|info| attributes(info).find(|(kind, _)| *kind == PROTOINFO_TCP));
    let state = tcp.and_then(|(_, tcp)| attributes(tcp).find(|(kind, _)| *kind == TCP_STATE));
    let established = state.is_some_and(|(_, state)| state == [TCP_ESTABLISHED]);
    Some(Flow { protocol, client, asked, answers, hears, established })
}

fn part(message: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(message.get(20..)?).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// Address and port.
type End = (IpAddr, u16);

/// Protocol, destination, source.
fn ends(tuple: &[u8]) -> Option<(u8, End, End)> {
    let part = |wanted: u16| attributes(tuple).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let (addresses, ports) = (part(TUPLE_ADDRESSES)?, part(TUPLE_PORTS)?);
    let address = |v4: u16, v6: u16| {
        attributes(addresses).find_map(|(kind, value)| match value.len() {
            4 if kind == v4 => <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
            16 if kind == v6 => <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
            _ => None,
        })
    };
    let port = |wanted: u16| {
        let found = attributes(ports).find(|(kind, _)| *kind == wanted)?;
        Some(u16::from_be_bytes(found.1.try_into().ok()?))
    };
    let protocol = *attributes(ports).find(|(kind, _)| *kind == 1)?.1.first()?;
    Some((protocol, (address(2, 4)?, port(3)?), (address(1, 3)?, port(2)?)))
}

fn message(kind: u16, flags: u16, family: u8, attrs: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    let flags = flags | netlink_packet_core::NLM_F_REQUEST;
    wire::message(&mut packet, SUBSYSTEM << 8 | kind, flags, netlink::sequence(1), family, 0, attrs);
    packet
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::to_who_is_gone(17, "192.0.2.2:7 192.0.2.1:53 10.88.0.2:5353 192.0.2.2:7", true)]
    #[case::to_another(17, "192.0.2.2:7 192.0.2.1:53 10.88.0.3:5353 192.0.2.2:7", false)]
    #[case::straight_to_the_pod(17, "192.0.2.2:7 10.88.0.2:5353 10.88.0.2:5353 192.0.2.2:7", false)]
    #[case::past_a_new_port(17, "192.0.2.2:7 192.0.2.1:99 192.0.2.1:99 192.0.2.2:7", true)]
    #[case::of_another_protocol(6, "192.0.2.2:7 192.0.2.1:99 192.0.2.1:99 192.0.2.2:7", false)]
    #[case::out_to_the_world(17, "10.88.0.9:7 198.51.100.1:99 198.51.100.1:99 192.0.2.1:7", false)]
    #[case::past_the_port_of_one_address(17, "192.0.2.2:7 192.0.2.11:88 192.0.2.11:88 192.0.2.2:7", true)]
    #[case::at_another_address(17, "192.0.2.2:7 192.0.2.1:88 192.0.2.1:88 192.0.2.2:7", false)]
    fn what_goes_astray(#[case] protocol: u8, #[case] ends: &str, #[case] expected: bool) {
        let ends: Vec<std::net::SocketAddr> = ends.split(' ').map(|end| end.parse().unwrap()).collect();
        let [client, asked, answers, hears] = [0, 1, 2, 3].map(|n: usize| (ends[n].ip(), ends[n].port()));
        let stale = Stale {
            gone: [(Protocol::Udp, "10.88.0.2".parse().unwrap(), 5353)].into(),
            opened: [(Protocol::Udp, None, 99), (Protocol::Udp, Some("192.0.2.11".parse().unwrap()), 88)].into(),
        };
        assert_eq!(stale.has(&Flow { protocol, client, asked, answers, hears, established: false }), expected);
    }
}
