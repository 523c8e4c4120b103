//! How fast a pod may be: plain data, and the traffic control that keeps it, as messages. No I/O.
//!
//! What comes into the pod leaves the host by its veth: a token bucket (tbf) there holds it. What the pod sends arrives there, where
//! nothing can queue: it is redirected (ingress, u32, mirred) to an ifb, which has a token bucket of its own. So the limits are on the host, out of the
//! pod's reach. The CNI plugin `bandwidth` does the same.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::InfoKind,
    tc::{TcAttribute, TcHandle, TcMessage},
};
use rtnetlink::{LinkMessageBuilder, LinkUnspec};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    netlink::Request,
    tc::{ETH_P_ALL, INGRESS, NLA_F_NESTED, ROOT, attribute, message, option},
};

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
    let options = vec![
        option(TCA_TBF_PARMS, options),
        option(TCA_TBF_RATE64, rate.bytes().to_ne_bytes().to_vec()),
        option(TCA_TBF_BURST, rate.burst_bytes().to_ne_bytes().to_vec()),
    ];
    Request::new(
        RouteNetlinkMessage::NewQueueDiscipline(message(link, BUCKET, ROOT, 0, "tbf", options)),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

/// No token bucket any more.
pub(crate) fn no_bucket(link: u32) -> Request {
    Request::new(RouteNetlinkMessage::DelQueueDiscipline(message(link, TcHandle::default(), ROOT, 0, "tbf", Vec::new())), 0)
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
    let options = vec![option(TCA_U32_SEL, selector), option(TCA_U32_ACT | NLA_F_NESTED, actions)];
    let message = message(link, TcHandle::default(), INGRESS, info, "u32", options);
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
