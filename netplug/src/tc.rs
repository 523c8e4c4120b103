//! Traffic control as route netlink messages: what limits of bandwidth and the direct way have in common. No I/O. linux/pkt_sched.h and
//! linux/pkt_cls.h are the reference.

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcHandle, TcHeader, TcMessage, TcOption},
};

use crate::netlink::Request;

/// Where the discipline of what leaves is.
pub(crate) const ROOT: TcHandle = TcHandle { major: 0xffff, minor: 0xffff };
/// Where filters of what comes in hang, in a discipline of ours as in a `clsact` of somebody else's.
pub(crate) const INGRESS: TcHandle = TcHandle { major: 0xffff, minor: 0xfff2 };
const QDISC: TcHandle = TcHandle { major: 0xffff, minor: 0 };
const OF_QDISC: TcHandle = TcHandle { major: 0xffff, minor: 0xfff1 };

pub(crate) const ETH_P_ALL: u16 = 3;
pub(crate) const NLA_F_NESTED: u16 = 0x8000;

/// What comes in by a link can be filtered.
pub(crate) fn ingress(link: u32) -> Request {
    let message = message(link, QDISC, OF_QDISC, 0, "ingress", Vec::new());
    Request::new(RouteNetlinkMessage::NewQueueDiscipline(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// It can't any more; its filters go with it.
pub(crate) fn no_ingress(link: u32) -> Request {
    Request::new(RouteNetlinkMessage::DelQueueDiscipline(message(link, QDISC, OF_QDISC, 0, "ingress", Vec::new())), 0)
}

pub(crate) fn message(link: u32, handle: TcHandle, parent: TcHandle, info: u32, kind: &str, options: Vec<TcOption>) -> TcMessage {
    let mut message = TcMessage::with_index(link as i32);
    message.header = TcHeader { handle, parent, info, ..message.header };
    message.attributes.push(TcAttribute::Kind(kind.into()));
    if !options.is_empty() {
        message.attributes.push(TcAttribute::Options(options));
    }
    message
}

/// An option that netlink-packet-route has no type for.
pub(crate) fn option(kind: u16, value: Vec<u8>) -> TcOption {
    TcOption::Other(DefaultNla::new(kind, value))
}

pub(crate) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = ((value.len() + 4) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}
