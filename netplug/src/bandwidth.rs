//! How fast a pod may be: plain data, and the traffic control that keeps it, as messages. No I/O.
//!
//! What comes into the pod leaves the host by its veth: a token bucket (tbf) there holds it. What the pod sends arrives there, where
//! nothing can queue: it is redirected (ingress, u32, mirred) to an ifb, which has a token bucket of its own. So the limits are on the host, out of the
//! pod's reach. The CNI plugin `bandwidth` does the same.

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::InfoKind,
    tc::{TcAttribute, TcHandle, TcHeader, TcMessage, TcOption},
};
use rtnetlink::{LinkMessageBuilder, LinkUnspec};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::netlink::Request;

/// The limits of one pod; what is unset has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Bandwidth {
    /// Of what the pod gets.
    #[serde(default)]
    pub ingress: Option<Rate>,
    /// Of what the pod sends.
    #[serde(default)]
    pub egress: Option<Rate>,
}

/// A token bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rate {
    /// Bits per second, at least 8.
    pub bits: u64,
    /// Bits that may pass at once after a silence.
    pub burst: u64,
}

impl Rate {
    /// With a burst of 50 ms: short enough to be true to the rate, long enough for the largest packet that the kernel makes.
    pub fn new(bits: u64) -> Rate {
        const LARGEST_PACKET: u64 = 64 << 10;
        Rate { bits, burst: (bits / 20).max(LARGEST_PACKET * 8) }
    }

    fn bytes(self) -> u64 {
        (self.bits / 8).max(1)
    }

    fn burst_bytes(self) -> u32 {
        (self.burst / 8).clamp(1, u32::MAX.into()) as u32
    }

    /// Bytes that may wait: 25 ms beside the burst.
    fn limit(self) -> u32 {
        (self.bytes() / 40).saturating_add(self.burst_bytes().into()).min(u32::MAX.into()) as u32
    }
}

impl Bandwidth {
    /// As CNI's capability `bandwidth` has it.
    pub fn to_cni(&self) -> Value {
        let mut said = json!({});
        for (name, rate) in [("ingress", self.ingress), ("egress", self.egress)] {
            if let Some(Rate { bits, burst }) = rate {
                said[format!("{name}Rate")] = bits.into();
                said[format!("{name}Burst")] = burst.into();
            }
        }
        said
    }
}

const ROOT: TcHandle = TcHandle { major: 0xffff, minor: 0xffff };
const INGRESS: TcHandle = TcHandle { major: 0xffff, minor: 0xfff1 };
/// Where filters of what comes in hang.
const INGRESS_QDISC: TcHandle = TcHandle { major: 0xffff, minor: 0 };
const BUCKET: TcHandle = TcHandle { major: 1, minor: 0 };

const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const TC_LINKLAYER_ETHERNET: u8 = 1;
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TC_U32_TERMINAL: u8 = 1;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
const TC_ACT_STOLEN: u32 = 4;
const TCA_EGRESS_REDIR: u32 = 1;
const ETH_P_ALL: u16 = 3;
const NLA_F_NESTED: u16 = 0x8000;

/// The ifb that belongs to a host's end.
pub(crate) fn ifb_of(host_if: &str) -> String {
    let tail = host_if.strip_prefix("veth").unwrap_or(host_if);
    format!("ifb{}", tail.get(..12.min(tail.len())).unwrap_or(tail))
}

/// A new ifb, up.
pub(crate) fn new_ifb(name: &str, mtu: u32) -> Request {
    let message = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Ifb).name(name.to_owned()).mtu(mtu).up().build();
    Request::new(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// A token bucket for what leaves by a link; in place of what is there.
pub(crate) fn bucket(link: u32, rate: Rate) -> Request {
    // struct tc_tbf_qopt: two tc_ratespec of 12 bytes (cell_log, linklayer, overhead, cell_align, mpu, rate), limit, buffer, mtu. The burst is
    // in bytes in an attribute of its own: no ticks are needed.
    let mut options = vec![0, TC_LINKLAYER_ETHERNET, 0, 0, 0, 0, 0, 0];
    options.extend((rate.bytes().min(u32::MAX.into()) as u32).to_ne_bytes());
    options.extend([0; 12]);
    options.extend(rate.limit().to_ne_bytes());
    options.extend([0; 8]);
    let options = [
        (TCA_TBF_PARMS, options),
        (TCA_TBF_RATE64, rate.bytes().to_ne_bytes().to_vec()),
        (TCA_TBF_BURST, rate.burst_bytes().to_ne_bytes().to_vec()),
    ];
    Request::new(
        RouteNetlinkMessage::NewQueueDiscipline(message(link, BUCKET, ROOT, 0, "tbf", &options)),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

/// No token bucket any more.
pub(crate) fn no_bucket(link: u32) -> Request {
    Request::new(RouteNetlinkMessage::DelQueueDiscipline(message(link, TcHandle::default(), ROOT, 0, "tbf", &[])), 0)
}

/// What comes in by a link can be filtered.
pub(crate) fn ingress(link: u32) -> Request {
    let message = message(link, INGRESS_QDISC, INGRESS, 0, "ingress", &[]);
    Request::new(RouteNetlinkMessage::NewQueueDiscipline(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// It can't any more; its filters go with it.
pub(crate) fn no_ingress(link: u32) -> Request {
    Request::new(RouteNetlinkMessage::DelQueueDiscipline(message(link, INGRESS_QDISC, INGRESS, 0, "ingress", &[])), 0)
}

/// All that comes in by a link leaves by another.
pub(crate) fn redirect(link: u32, to: u32) -> Request {
    // struct tc_u32_sel with one key that fits everything: value and mask are 0.
    let mut selector = vec![TC_U32_TERMINAL, 0, 1, 0];
    selector.extend([0; 12 + 16]);
    // struct tc_mirred: tc_gen (index, capab, action, refcnt, bindcnt), eaction, ifindex.
    let words = [0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, to];
    let parameters: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
    let options = attribute(TCA_ACT_OPTIONS | NLA_F_NESTED, &attribute(TCA_MIRRED_PARMS, &parameters));
    let first = [attribute(TCA_ACT_KIND, b"mirred\0"), options].concat();
    let actions = attribute(1 | NLA_F_NESTED, &first);
    let info = 1 << 16 | u32::from(ETH_P_ALL.to_be());
    let options = [(TCA_U32_SEL, selector), (TCA_U32_ACT | NLA_F_NESTED, actions)];
    let message = message(link, TcHandle::default(), INGRESS_QDISC, info, "u32", &options);
    Request::new(RouteNetlinkMessage::NewTrafficFilter(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// For a dump of all queueing disciplines.
pub(crate) fn all_qdiscs() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default())
}

/// The links, among what a dump answered, that have a token bucket.
pub(crate) fn with_bucket(messages: &[RouteNetlinkMessage]) -> impl Iterator<Item = u32> {
    messages.iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewQueueDiscipline(qdisc) if qdisc.header.parent == ROOT => {
            let tbf = qdisc.attributes.iter().any(|attribute| matches!(attribute, TcAttribute::Kind(kind) if kind == "tbf"));
            tbf.then_some(qdisc.header.index as u32)
        }
        _ => None,
    })
}

fn message(link: u32, handle: TcHandle, parent: TcHandle, info: u32, kind: &str, options: &[(u16, Vec<u8>)]) -> TcMessage {
    let mut message = TcMessage::with_index(link as i32);
    message.header = TcHeader { handle, parent, info, ..message.header };
    message.attributes.push(TcAttribute::Kind(kind.into()));
    if !options.is_empty() {
        let options = options.iter().map(|(kind, value)| TcOption::Other(DefaultNla::new(*kind, value.clone())));
        message.attributes.push(TcAttribute::Options(options.collect()));
    }
    message
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = ((value.len() + 4) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_neither_too_short_nor_too_long() {
        assert_eq!(Rate::new(1_000), Rate { bits: 1_000, burst: 8 << 16 });
        assert_eq!(Rate::new(1_000_000_000).burst, 50_000_000);
        let widest = Rate { bits: u64::MAX, burst: u64::MAX };
        assert_eq!((widest.burst_bytes(), widest.limit()), (u32::MAX, u32::MAX));
    }

    #[test]
    fn an_ifbs_name_fits() {
        assert_eq!(ifb_of("veth0123456789"), "ifb0123456789");
        assert_eq!(ifb_of("a-name-of-fifteen").len(), 15);
    }
}
