//! nftables expressions: what `nft` compiles a rule's words to. A rule is a list of them over registers; each method below is
//! one phrase of a rule and says in its name what `nft list ruleset` shows.

use std::{
    borrow::Cow,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use super::{set, wire::Attrs};
use crate::settings::Protocol;

const LIST_ELEM: u16 = 1;
const DATA_VERDICT: u16 = 2;

/// 16-byte register 1, which is also the 4-byte registers 8 to 11.
const R1: u32 = 1;
/// The second 4 bytes of [`R1`].
const R1_WORD1: u32 = 9;
const R1_WORD2: u32 = 10;
/// 16-byte register 2, whose first word is 12.
const R2: u32 = 2;
const R2_WORD1: u32 = 13;

const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_IIFGROUP: u32 = 21;
const META_OIFGROUP: u32 = 22;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const BASE_NETWORK: u32 = 1;
const BASE_TRANSPORT: u32 = 2;
const CT_STATE: u32 = 0;
const CT_STATUS: u32 = 2;
/// NFT_CT_STATE_BIT of IP_CT_ESTABLISHED and IP_CT_RELATED.
const STATE_KNOWN: u32 = 2 | 4;
/// IPS_DST_NAT.
const STATUS_DNAT: u32 = 0x20;
const CMP_EQ: u32 = 0;
const CMP_NEQ: u32 = 1;
const LOOKUP_INVERT: u32 = 1;
const FIB_OIF: u32 = 1;
const FIB_ADDRTYPE: u32 = 3;
const FIB_SADDR: u32 = 1;
const FIB_DADDR: u32 = 2;
const FIB_IIF: u32 = 8;
const RTN_LOCAL: u32 = 2;
const NAT_SNAT: u32 = 0;
const NAT_DNAT: u32 = 1;
const RANDOM: u32 = 1;
const DYNSET_UPDATE: u32 = 1;
const TCP_RESET: u32 = 1;
const ICMPX_UNREACHABLE: u32 = 2;
const ICMPX_PORT: u8 = 1;
const VERDICT_REGISTER: u32 = 0;
/// IPPROTO_ICMP and its type "redirect"; the same of ICMPv6.
const REDIRECTS: [(u8, u8); 2] = [(1, 5), (58, 137)];

/// The n-th of the 4-byte registers: where a service's rules keep what they compute, one word beside the other.
const fn at(n: u32) -> u32 {
    8 + n
}

/// IPv4 or IPv6, as rules tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const BOTH: [Family; 2] = [Family::V4, Family::V6];

    pub(crate) fn of(ip: IpAddr) -> Family {
        if ip.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    pub(crate) fn is_v4(self) -> bool {
        self == Family::V4
    }

    /// `4` or `6`, for the names of sets.
    pub(crate) fn digit(self) -> char {
        if self.is_v4() { '4' } else { '6' }
    }

    /// NFPROTO_IPV4 or NFPROTO_IPV6.
    pub(crate) fn number(self) -> u8 {
        if self.is_v4() { 2 } else { 10 }
    }

    pub(crate) fn address_len(self) -> u32 {
        if self.is_v4() { 4 } else { 16 }
    }

    fn source_offset(self) -> u32 {
        if self.is_v4() { 12 } else { 8 }
    }

    fn destination_offset(self) -> u32 {
        self.source_offset() + self.address_len()
    }
}

/// What a rule does in the end.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Verdict<'a> {
    Accept,
    Drop,
    Goto(&'a str),
    Jump(&'a str),
}

impl Verdict<'_> {
    /// As the value of a verdict: NFTA_DATA_VERDICT.
    pub(crate) fn write(self, data: &mut Attrs) {
        data.nest(DATA_VERDICT, |attrs| match self {
            Verdict::Drop => {
                attrs.u32(1, 0);
            }
            Verdict::Accept => {
                attrs.u32(1, 1);
            }
            Verdict::Jump(chain) => {
                attrs.u32(1, -3i32 as u32).str(2, chain);
            }
            Verdict::Goto(chain) => {
                attrs.u32(1, -4i32 as u32).str(2, chain);
            }
        });
    }
}

/// Is or is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Is {
    In,
    NotIn,
}

/// A rule in the making.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    /// Shown by `nft list ruleset`.
    pub(crate) comment: Cow<'static, str>,
    expressions: Attrs,
}

impl Rule {
    pub(crate) fn new(comment: impl Into<Cow<'static, str>>) -> Rule {
        Rule { comment: comment.into(), expressions: Attrs::default() }
    }

    /// The list of expressions.
    pub(crate) fn expressions(&self) -> &[u8] {
        &self.expressions.0
    }

    /// `meta nfproto ipv4`
    pub(crate) fn family(self, family: Family) -> Rule {
        self.meta(META_NFPROTO, R1).compare(CMP_EQ, &[family.number()])
    }

    /// `iifname "…"`
    pub(crate) fn input_link(self, name: &str) -> Rule {
        self.meta(META_IIFNAME, R1).compare(CMP_EQ, &link_name(name))
    }

    /// `oifname "…"`
    pub(crate) fn output_link(self, name: &str) -> Rule {
        self.meta(META_OIFNAME, R1).compare(CMP_EQ, &link_name(name))
    }

    /// `oifname != "…"`
    pub(crate) fn not_output_link(self, name: &str) -> Rule {
        self.meta(META_OIFNAME, R1).compare(CMP_NEQ, &link_name(name))
    }

    /// `iifgroup …`
    pub(crate) fn input_group(self, group: u32) -> Rule {
        self.meta(META_IIFGROUP, R1).compare(CMP_EQ, &group.to_ne_bytes())
    }

    /// `oifgroup …`
    pub(crate) fn output_group(self, group: u32) -> Rule {
        self.meta(META_OIFGROUP, R1).compare(CMP_EQ, &group.to_ne_bytes())
    }

    /// `oifgroup != …`
    pub(crate) fn not_output_group(self, group: u32) -> Rule {
        self.meta(META_OIFGROUP, R1).compare(CMP_NEQ, &group.to_ne_bytes())
    }

    /// `ip saddr 127.0.0.0/8`
    pub(crate) fn loopback_source(self) -> Rule {
        self.payload(BASE_NETWORK, Family::V4.source_offset(), 1, R1).compare(CMP_EQ, &[127])
    }

    /// `ip daddr 127.0.0.0/8`
    pub(crate) fn loopback_destination(self) -> Rule {
        self.payload(BASE_NETWORK, Family::V4.destination_offset(), 1, R1).compare(CMP_EQ, &[127])
    }

    /// `ip6 daddr ::1`
    pub(crate) fn loopback6_destination(self) -> Rule {
        let own = Ipv6Addr::LOCALHOST.octets();
        self.payload(BASE_NETWORK, Family::V6.destination_offset(), Family::V6.address_len(), R1).compare(CMP_EQ, &own)
    }

    /// `ip saddr @set`
    pub(crate) fn source(self, family: Family, is: Is, set: &str) -> Rule {
        self.payload(BASE_NETWORK, family.source_offset(), family.address_len(), R1).lookup(set, is)
    }

    /// `ip daddr @set`
    pub(crate) fn destination(self, family: Family, is: Is, set: &str) -> Rule {
        self.payload(BASE_NETWORK, family.destination_offset(), family.address_len(), R1).lookup(set, is)
    }

    /// `fib daddr type local`: addressed to this node.
    pub(crate) fn local_destination(self) -> Rule {
        self.expression("fib", |data| {
            data.u32(1, R1).u32(2, FIB_ADDRTYPE).u32(3, FIB_DADDR);
        })
        .compare(CMP_EQ, &RTN_LOCAL.to_ne_bytes())
    }

    /// `fib saddr . iif oif missing`: from an address that isn't behind the link.
    pub(crate) fn strayed(self) -> Rule {
        self.expression("fib", |data| {
            data.u32(1, R1).u32(2, FIB_OIF).u32(3, FIB_SADDR | FIB_IIF);
        })
        .compare(CMP_EQ, &0u32.to_ne_bytes())
    }

    /// `ct status dnat`
    pub(crate) fn redirected(self) -> Rule {
        self.status_dnat().compare(CMP_NEQ, &[0; 4])
    }

    /// `dnat ip to meta l4proto . th dport map @map`
    pub(crate) fn redirect_by_port(self, family: Family, map: &str) -> Rule {
        self.meta(META_L4PROTO, R1)
            .payload(BASE_TRANSPORT, 2, 2, R1_WORD1)
            .map(map)
            .dnat(family, if family.is_v4() { R1_WORD1 } else { R2 })
    }

    /// `dnat ip to ip daddr . meta l4proto . th dport map @map`
    pub(crate) fn redirect_by_address(self, family: Family, map: &str) -> Rule {
        let (protocol, port) = if family.is_v4() { (R1_WORD1, R1_WORD2) } else { (R2, R2_WORD1) };
        self.payload(BASE_NETWORK, family.destination_offset(), family.address_len(), R1)
            .meta(META_L4PROTO, protocol)
            .payload(BASE_TRANSPORT, 2, 2, port)
            .map(map)
            .dnat(family, if family.is_v4() { R1_WORD1 } else { R2 })
    }

    /// `masquerade`
    pub(crate) fn masquerade(self) -> Rule {
        self.expression("masq", |_| {})
    }

    /// `snat to …`
    pub(crate) fn source_becomes(self, ip: IpAddr) -> Rule {
        let rule = self.expression("immediate", |data| {
            data.u32(1, R1).data(2, &set::octets(ip));
        });
        rule.expression("nat", |data| {
            data.u32(1, NAT_SNAT).u32(2, u32::from(Family::of(ip).number())).u32(3, R1);
        })
    }

    /// `accept`, `drop`, `goto …`, `jump …`
    pub(crate) fn then(self, verdict: Verdict<'_>) -> Rule {
        self.expression("immediate", |data| {
            data.u32(1, VERDICT_REGISTER).nest(2, |value| verdict.write(value));
        })
    }

    /// `ct state established,related`
    pub(crate) fn known(self) -> Rule {
        self.expression("ct", |data| {
            data.u32(1, R1).u32(2, CT_STATE);
        })
        .expression("bitwise", |data| {
            data.u32(1, R1).u32(2, R1).u32(3, 4);
            data.data(4, &STATE_KNOWN.to_ne_bytes());
            data.data(5, &[0; 4]);
        })
        .compare(CMP_NEQ, &[0; 4])
    }

    /// `meta l4proto …`
    pub(crate) fn protocol(self, protocol: Protocol) -> Rule {
        self.meta(META_L4PROTO, R1).compare(CMP_EQ, &[protocol.number()])
    }

    /// `th dport FIRST-LAST`
    pub(crate) fn ports(self, first: u16, last: u16) -> Rule {
        let rule = self.payload(BASE_TRANSPORT, 2, 2, R1);
        if first == last {
            return rule.compare(CMP_EQ, &first.to_be_bytes());
        }
        rule.expression("range", |data| {
            data.u32(1, R1).u32(2, CMP_EQ).data(3, &first.to_be_bytes()).data(4, &last.to_be_bytes());
        })
    }

    /// What the kernel tells pods of shorter ways to each other (ICMP redirect): there is none.
    pub(crate) fn redirects() -> impl Iterator<Item = Rule> {
        REDIRECTS.into_iter().map(|(protocol, kind)| {
            let rule = Rule::new("pods reach each other by the host alone").meta(META_L4PROTO, R1).compare(CMP_EQ, &[protocol]);
            rule.payload(BASE_TRANSPORT, 0, 1, R1).compare(CMP_EQ, &[kind])
        })
    }

    /// `ip saddr vmap @map`
    pub(crate) fn source_decides(self, family: Family, map: &str) -> Rule {
        self.payload(BASE_NETWORK, family.source_offset(), family.address_len(), R1).decide(map)
    }

    /// `ip daddr vmap @map`
    pub(crate) fn destination_decides(self, family: Family, map: &str) -> Rule {
        self.payload(BASE_NETWORK, family.destination_offset(), family.address_len(), R1).decide(map)
    }

    /// `ip daddr . meta l4proto . th dport vmap @map`
    pub(crate) fn service_decides(self, family: Family, map: &str) -> Rule {
        self.destination_and_port(family).decide(map)
    }

    /// `meta l4proto . th dport vmap @map`
    pub(crate) fn port_decides(self, map: &str) -> Rule {
        self.meta(META_L4PROTO, R1).payload(BASE_TRANSPORT, 2, 2, R1_WORD1).decide(map)
    }

    /// `ip daddr . meta l4proto . th dport @set`
    pub(crate) fn destination_port(self, family: Family, set: &str) -> Rule {
        self.destination_and_port(family).lookup(set, Is::In)
    }

    /// `ip saddr . ip daddr @set`
    pub(crate) fn source_and_destination(self, family: Family, set: &str) -> Rule {
        let length = family.address_len();
        self.payload(BASE_NETWORK, family.source_offset(), length, at(0))
            .payload(BASE_NETWORK, family.destination_offset(), length, at(length / 4))
            .lookup(set, Is::In)
    }

    /// `dnat ip to numgen random mod COUNT map @backends`
    pub(crate) fn balance(self, family: Family, count: u32, backends: &str) -> Rule {
        self.number(count, at(0)).map_from(backends, at(0), at(0)).dnat_to(family, at(0))
    }

    /// `numgen random mod COUNT 0`: one packet of so many.
    pub(crate) fn one_of(self, count: u32) -> Rule {
        self.number(count, R1).compare(CMP_EQ, &0u32.to_ne_bytes())
    }

    /// `update @clients { ip saddr timeout … }`. Where there is no room for another, the rule ends.
    pub(crate) fn remember(self, family: Family, clients: &str, timeout: Duration) -> Rule {
        let milliseconds = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        self.payload(BASE_NETWORK, family.source_offset(), family.address_len(), R1).expression("dynset", |data| {
            data.str(1, clients).u32(3, DYNSET_UPDATE).u32(4, R1).bytes(6, &milliseconds.to_be_bytes());
        })
    }

    /// `dnat ip to …:…`
    pub(crate) fn redirect_to(self, endpoint: SocketAddr) -> Rule {
        let (family, port) = (Family::of(endpoint.ip()), endpoint.port().to_be_bytes());
        let rule = self.value(at(0), &set::octets(endpoint.ip())).value(at(family.address_len() / 4), &port);
        rule.dnat_to(family, at(0))
    }

    /// `reject with tcp reset`, for what is TCP: the kernel sends any number of these, but few ICMP messages a second to one host.
    pub(crate) fn reset(self) -> Rule {
        self.expression("reject", |data| {
            data.u32(1, TCP_RESET);
        })
    }

    /// `reject with icmpx port-unreachable`
    pub(crate) fn reject(self) -> Rule {
        self.expression("reject", |data| {
            data.u32(1, ICMPX_UNREACHABLE).bytes(2, &[ICMPX_PORT]);
        })
    }

    /// `numgen random mod COUNT`
    fn number(self, count: u32, to: u32) -> Rule {
        self.expression("numgen", |data| {
            data.u32(1, to).u32(2, count).u32(3, RANDOM).u32(4, 0);
        })
    }

    fn value(self, register: u32, value: &[u8]) -> Rule {
        self.expression("immediate", |data| {
            data.u32(1, register).data(2, value);
        })
    }

    fn destination_and_port(self, family: Family) -> Rule {
        let words = family.address_len() / 4;
        self.payload(BASE_NETWORK, family.destination_offset(), family.address_len(), at(0))
            .meta(META_L4PROTO, at(words))
            .payload(BASE_TRANSPORT, 2, 2, at(words + 1))
    }

    fn dnat_to(self, family: Family, register: u32) -> Rule {
        self.expression("nat", |data| {
            data.u32(1, NAT_DNAT).u32(2, u32::from(family.number())).u32(3, register);
            data.u32(5, register + family.address_len() / 4);
        })
    }

    fn decide(self, map: &str) -> Rule {
        self.map_from(map, R1, VERDICT_REGISTER)
    }

    fn map_from(self, map: &str, from: u32, to: u32) -> Rule {
        self.expression("lookup", |data| {
            data.str(1, map).u32(2, from).u32(3, to);
        })
    }

    fn status_dnat(self) -> Rule {
        self.expression("ct", |data| {
            data.u32(1, R1).u32(2, CT_STATUS);
        })
        .expression("bitwise", |data| {
            data.u32(1, R1).u32(2, R1).u32(3, 4);
            data.data(4, &STATUS_DNAT.to_ne_bytes());
            data.data(5, &[0; 4]);
        })
    }

    fn meta(self, key: u32, register: u32) -> Rule {
        self.expression("meta", |data| {
            data.u32(1, register).u32(2, key);
        })
    }

    fn payload(self, base: u32, offset: u32, length: u32, register: u32) -> Rule {
        self.expression("payload", |data| {
            data.u32(1, register).u32(2, base).u32(3, offset).u32(4, length);
        })
    }

    fn compare(self, operator: u32, value: &[u8]) -> Rule {
        self.expression("cmp", |data| {
            data.u32(1, R1).u32(2, operator).data(3, value);
        })
    }

    fn lookup(self, set: &str, is: Is) -> Rule {
        self.expression("lookup", |data| {
            data.str(1, set).u32(2, R1);
            if is == Is::NotIn {
                data.u32(5, LOOKUP_INVERT);
            }
        })
    }

    /// Replaces the key in register 1 by the map's value; a key that isn't there ends the rule.
    fn map(self, map: &str) -> Rule {
        self.expression("lookup", |data| {
            data.str(1, map).u32(2, R1).u32(3, R1);
        })
    }

    fn dnat(self, family: Family, port: u32) -> Rule {
        self.expression("nat", |data| {
            data.u32(1, NAT_DNAT).u32(2, u32::from(family.number())).u32(3, R1).u32(5, port);
        })
    }

    fn expression(mut self, name: &str, fill: impl FnOnce(&mut Attrs)) -> Rule {
        self.expressions.nest(LIST_ELEM, |expression| {
            expression.str(1, name).nest(2, fill);
        });
        self
    }
}

/// Names are compared with their padding: IFNAMSIZ bytes.
fn link_name(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    bytes
}
