//! The kernel's table of flows (ctnetlink), as far as it must be told of endpoints that are gone.
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

/// Deletes the flows of services that lead to these endpoints.
pub(crate) fn forget(wire: &mut Wire, socket: &Socket, endpoints: &BTreeSet<(Protocol, IpAddr, u16)>) -> Result<(), Refused> {
    for family in FAMILIES {
        let mut dead: Vec<Vec<u8>> = Vec::new();
        let request = message(GET, netlink_packet_core::NLM_F_DUMP, family, &[]);
        wire.exchange(socket, &request, |_, answer| {
            if let Answer::Message(flow) = answer {
                dead.extend(original_if_dead(flow, endpoints));
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

/// A flow's original tuple, if its answers come from one of the endpoints and it was redirected there.
fn original_if_dead(flow: &[u8], endpoints: &BTreeSet<(Protocol, IpAddr, u16)>) -> Option<Vec<u8>> {
    let body = flow.get(20..)?;
    let part = |wanted: u16| attributes(body).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let (original, reply) = (part(TUPLE_ORIGINAL)?, part(TUPLE_REPLY)?);
    let (_, asked, _) = ends(original)?;
    let (protocol, _, answers) = ends(reply)?;
    let dead = endpoints.iter().any(|(p, ip, port)| p.number() == protocol && answers == (*ip, *port));
    (dead && asked != answers).then(|| original.to_vec())
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
