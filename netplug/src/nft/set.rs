//! What sets and maps of our table have in them: their types as `nft` numbers them, and elements as bytes.

use std::net::{IpAddr, SocketAddr};

use super::{
    rule::{Family, Verdict},
    wire::{Attrs, Op},
};
use crate::{cidr::Cidr, settings::Protocol};

const INTERVAL: u32 = 4;
const MAP: u32 = 8;
const TIMEOUT: u32 = 0x10;
const EVAL: u32 = 0x20;
const ELEMENT_INTERVAL_END: u32 = 1;
/// NFT_DATA_VERDICT.
const VERDICT: u32 = 0xffff_ff00;

/// nft's own numbers of data types; a concatenation shifts by six bits.
const PROTOCOL: (u32, u32) = (12, 4);
const PORT: (u32, u32) = (13, 4);
/// Numbers of endpoints: shown as marks are.
const NUMBER: (u32, u32) = (19, 4);

fn address(family: Family) -> (u32, u32) {
    if family.is_v4() { (7, 4) } else { (8, 16) }
}

/// The kinds of sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// address
    Addresses(Family),
    /// address ranges
    Intervals(Family),
    /// address . address
    Pairs(Family),
    /// address . protocol . port
    Endpoints(Family),
    /// address → verdict
    AddressVerdicts(Family),
    /// address . protocol . port → verdict
    ServiceVerdicts(Family),
    /// protocol . port → verdict
    PortVerdicts,
    /// protocol . port → address . port
    Ports(Family),
    /// address . protocol . port → address . port
    PortsAt(Family),
    /// number → address . port
    Backends(Family),
    /// address, for a time; 65,535 of them (nft_dynset_init)
    Clients(Family),
}

impl Kind {
    /// NFTA_SET_*, but for table, name and number.
    pub(crate) fn write(self, set: &mut Attrs) {
        let (flags, key, data) = self.parts();
        let is_address = key.len() == 1 && key != [NUMBER];
        set.u32(3, flags).u32(4, concatenated(&key)).u32(5, key.iter().map(|(_, length)| length).sum());
        match data {
            None => {}
            Some(Data::Verdict) => {
                set.u32(6, VERDICT);
            }
            Some(Data::Values(data)) => {
                set.u32(6, concatenated(&data)).u32(7, data.iter().map(|(_, length)| length).sum());
            }
        }
        if is_address {
            set.bytes(13, &BIG_ENDIAN_KEYS);
        }
    }

    fn parts(self) -> (u32, Vec<(u32, u32)>, Option<Data>) {
        let target = |family| Some(Data::Values(vec![address(family), PORT]));
        match self {
            Kind::Addresses(f) => (0, vec![address(f)], None),
            Kind::Intervals(f) => (INTERVAL, vec![address(f)], None),
            Kind::Pairs(f) => (0, vec![address(f), address(f)], None),
            Kind::Endpoints(f) => (0, vec![address(f), PROTOCOL, PORT], None),
            Kind::AddressVerdicts(f) => (MAP, vec![address(f)], Some(Data::Verdict)),
            Kind::ServiceVerdicts(f) => (MAP, vec![address(f), PROTOCOL, PORT], Some(Data::Verdict)),
            Kind::PortVerdicts => (MAP, vec![PROTOCOL, PORT], Some(Data::Verdict)),
            Kind::Ports(f) => (MAP, vec![PROTOCOL, PORT], target(f)),
            Kind::PortsAt(f) => (MAP, vec![address(f), PROTOCOL, PORT], target(f)),
            Kind::Backends(f) => (MAP, vec![NUMBER], target(f)),
            Kind::Clients(f) => (TIMEOUT | EVAL, vec![address(f)], None),
        }
    }
}

enum Data {
    Verdict,
    Values(Vec<(u32, u32)>),
}

fn concatenated(types: &[(u32, u32)]) -> u32 {
    types.iter().fold(0, |all, (number, _)| all << 6 | number)
}

/// Userdata that tells `nft list` to show keys as addresses: KEYBYTEORDER, four bytes, big-endian.
const BIG_ENDIAN_KEYS: [u8; 6] = {
    let order = 2u32.to_ne_bytes();
    [0, 4, order[0], order[1], order[2], order[3]]
};

/// What identifies an element of a set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    bytes: Vec<u8>,
    /// Past an interval.
    end: bool,
}

impl From<Vec<u8>> for Key {
    fn from(bytes: Vec<u8>) -> Key {
        Key { bytes, end: false }
    }
}

/// What a map has under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    /// Nothing: it is a set.
    None,
    Data(Vec<u8>),
    Goto(String),
}

/// One element.
pub(crate) fn write(list: &mut Attrs, op: Op, key: &Key, value: &Value) {
    list.nest(1, |element| {
        element.data(1, &key.bytes);
        if op == Op::NewElements {
            match value {
                Value::None => {}
                Value::Data(bytes) => {
                    element.data(2, bytes);
                }
                Value::Goto(chain) => {
                    element.nest(2, |data| Verdict::Goto(chain).write(data));
                }
            }
        }
        if key.end {
            element.u32(3, ELEMENT_INTERVAL_END);
        }
    });
}

/// A run of addresses as an interval set has it: an element where it begins and another, marked, past its end.
pub(crate) fn interval(first: IpAddr, last: IpAddr) -> impl Iterator<Item = Key> {
    let mut past = octets(last);
    // A run that reaches the very last address has no end.
    let ends = past.iter_mut().rev().any(|byte| {
        *byte = byte.wrapping_add(1);
        *byte != 0
    });
    std::iter::once(octets(first).into()).chain(ends.then_some(Key { bytes: past, end: true }))
}

/// A subnet as an interval.
pub(crate) fn subnet(subnet: Cidr) -> impl Iterator<Item = Key> {
    interval(subnet.base(), subnet.at(subnet.last_offset()))
}

pub(crate) fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// `address . port`
pub(crate) fn target(to: SocketAddr) -> Vec<u8> {
    [octets(to.ip()), port(to.port()).to_vec()].concat()
}

/// `protocol . port`
pub(crate) fn port_key(protocol: Protocol, number: u16) -> Vec<u8> {
    [[protocol.number(), 0, 0, 0], port(number)].concat()
}

/// `address . protocol . port`
pub(crate) fn service_key(ip: IpAddr, protocol: Protocol, number: u16) -> Vec<u8> {
    [octets(ip), port_key(protocol, number)].concat()
}

/// A port fills a word of four bytes, as each part of a concatenation does.
fn port(number: u16) -> [u8; 4] {
    let [high, low] = number.to_be_bytes();
    [high, low, 0, 0]
}
