//! The kernel's table of flows (ctnetlink), as far as it must be told of changes. A flow goes where its first packet went; what has
//! connections notices, the rest (UDP, and SCTP's flows outlive their hosts) would be sent to who is gone, or past who has come, as long
//! as the client goes on.
//! linux/netfilter/nfnetlink_conntrack.h is the reference.

use std::{collections::BTreeSet, net::IpAddr};

use netlink_sys::Socket;

use crate::{
    error::Refused,
    netlink::{self, Answer, Wire, attributes},
    nft::wire::{self, Attrs},
    settings::Protocol,
};

const SUBSYSTEM: u16 = 1;
const GET: u16 = 1;
const DELETE: u16 = 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const TUPLE_ADDRESSES: u16 = 1;
const TUPLE_PORTS: u16 = 2;
const FAMILIES: [u8; 2] = [2, 10];

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
        let Flow { protocol, client, asked, answers, hears } = *flow;
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
    for family in FAMILIES {
        let mut dead: Vec<Vec<u8>> = Vec::new();
        let request = message(GET, netlink_packet_core::NLM_F_DUMP, family, &[]);
        wire.exchange(socket, &request, |_, answer| {
            if let Answer::Message(message) = answer {
                dead.extend(original_if_stale(message, stale));
            }
        })?;
        for original in dead {
            let mut tuple = Attrs::default();
            tuple.bytes(TUPLE_ORIGINAL | 0x8000, &original);
            // Refused when it has ended meanwhile.
            wire.exchange(socket, &message(DELETE, netlink_packet_core::NLM_F_ACK, family, &tuple.0), |_, _| {})?;
        }
    }
    Ok(())
}

/// The addresses that connections were redirected to: what answers there must be translated back.
pub(crate) fn translated(wire: &mut Wire, socket: &Socket) -> Result<BTreeSet<IpAddr>, Refused> {
    let mut found = BTreeSet::new();
    for family in FAMILIES {
        let request = message(GET, netlink_packet_core::NLM_F_DUMP, family, &[]);
        let mut refused = None;
        wire.exchange(socket, &request, |_, answer| match answer {
            Answer::Message(message) => {
                found.extend(flow(message).filter(|flow| flow.asked != flow.answers).map(|flow| flow.answers.0));
            }
            Answer::Refused(refusal) => refused = Some(refusal),
            Answer::Ack => {}
        })?;
        if let Some(refused) = refused {
            return Err(refused);
        }
    }
    Ok(found)
}

/// A flow's two directions: who asks whom, and who answers whom.
#[derive(Debug, Clone, Copy)]
struct Flow {
    protocol: u8,
    client: End,
    asked: End,
    answers: End,
    hears: End,
}

/// A flow's original tuple, if it is stale.
fn original_if_stale(message: &[u8], stale: &Stale) -> Option<Vec<u8>> {
    if !stale.has(&flow(message)?) {
        return None;
    }
    part(message, TUPLE_ORIGINAL).map(<[u8]>::to_vec)
}

/// What a message tells of a flow.
fn flow(message: &[u8]) -> Option<Flow> {
    let (protocol, asked, client) = ends(part(message, TUPLE_ORIGINAL)?)?;
    let (_, hears, answers) = ends(part(message, TUPLE_REPLY)?)?;
    Some(Flow { protocol, client, asked, answers, hears })
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
        assert_eq!(stale.has(&Flow { protocol, client, asked, answers, hears }), expected);
    }
}
