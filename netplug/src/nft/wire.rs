//! nftables messages as bytes: attributes, and batches that the kernel takes whole or not at all.
//! linux/netfilter/nf_tables.h is the reference; numbers in attributes are big-endian.

use crate::netlink;

pub(crate) const NLM_F_REQUEST: u16 = 1;
pub(crate) const NLM_F_ACK: u16 = 4;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
pub(crate) const NLM_F_APPEND: u16 = 0x800;

const NLA_F_NESTED: u16 = 0x8000;
const DATA_VALUE: u16 = 1;
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NFPROTO_UNSPEC: u8 = 0;
/// The family of tables that see IPv4 and IPv6.
pub(crate) const NFPROTO_INET: u8 = 1;

/// NFT_MSG_*
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Op {
    NewTable = 0,
    GetTable = 1,
    DelTable = 2,
    NewChain = 3,
    GetChain = 4,
    DelChain = 5,
    NewRule = 6,
    GetRule = 7,
    DelRule = 8,
    NewSet = 9,
    DelSet = 11,
    NewElements = 12,
    DelElements = 14,
}

/// Attributes, one after the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Attrs(pub(crate) Vec<u8>);

impl Attrs {
    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Attrs {
        self.0.extend(((value.len() + 4) as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(crate) fn u32(&mut self, kind: u16, value: u32) -> &mut Attrs {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn str(&mut self, kind: u16, value: &str) -> &mut Attrs {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Attrs)) -> &mut Attrs {
        let start = self.0.len();
        self.0.extend([0; 4]);
        fill(self);
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0[start + 2..start + 4].copy_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        self
    }
}

impl Attrs {
    /// What every message about a table's parts begins with.
    pub(crate) fn of_table(name: &str) -> Attrs {
        let mut attrs = Attrs::default();
        attrs.str(1, name);
        attrs
    }

    /// NFTA_DATA_VALUE within `kind`: how keys, values and operands travel.
    pub(crate) fn data(&mut self, kind: u16, value: &[u8]) -> &mut Attrs {
        self.nest(kind, |data| {
            data.bytes(DATA_VALUE, value);
        })
    }
}

/// A transaction.
#[derive(Debug)]
pub(crate) struct Batch {
    packet: Vec<u8>,
    first: u32,
    count: u32,
    last: usize,
}

impl Batch {
    /// `room`: at least as many operations as will be added.
    pub(crate) fn new(room: usize) -> Batch {
        let mut batch = Batch { packet: Vec::new(), first: netlink::sequence(room + 2), count: 0, last: 0 };
        batch.message(BATCH_BEGIN, NLM_F_REQUEST, NFPROTO_UNSPEC, SUBSYSTEM, &[]);
        batch
    }

    pub(crate) fn add(&mut self, op: Op, flags: u16, attrs: &Attrs) {
        self.last = self.packet.len();
        self.message(SUBSYSTEM << 8 | op as u16, NLM_F_REQUEST | flags, NFPROTO_INET, 0, &attrs.0);
    }

    /// Whether there is nothing to do.
    pub(crate) fn is_empty(&self) -> bool {
        self.last == 0
    }

    /// A number that a new set needs, different from all others of the batch.
    pub(crate) fn id(&self) -> u32 {
        self.count
    }

    /// The packet. Refusals are always answered; of what succeeds, only the last operation asks to be told.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let at = self.last + 6;
        let flags = u16::from_ne_bytes([self.packet[at], self.packet[at + 1]]) | NLM_F_ACK;
        self.packet[at..at + 2].copy_from_slice(&flags.to_ne_bytes());
        self.message(BATCH_END, NLM_F_REQUEST, NFPROTO_UNSPEC, SUBSYSTEM, &[]);
        self.packet
    }

    fn message(&mut self, kind: u16, flags: u16, family: u8, resource: u16, attrs: &[u8]) {
        message(&mut self.packet, kind, flags, self.first + self.count, family, resource, attrs);
        self.count += 1;
    }
}

/// One question outside a batch.
pub(crate) fn single(op: Op, attrs: &Attrs) -> Vec<u8> {
    question(op, NLM_F_ACK, NFPROTO_INET, attrs)
}

/// A question for all objects of a kind, of a family or of every one (0).
pub(crate) fn dump(op: Op, family: u8, attrs: &Attrs) -> Vec<u8> {
    question(op, netlink_packet_core::NLM_F_DUMP, family, attrs)
}

fn question(op: Op, flags: u16, family: u8, attrs: &Attrs) -> Vec<u8> {
    let mut packet = Vec::new();
    let kind = SUBSYSTEM << 8 | op as u16;
    message(&mut packet, kind, NLM_F_REQUEST | flags, netlink::sequence(1), family, 0, &attrs.0);
    packet
}

/// Whether a message tells that something was deleted: a table, chain, rule, set or element.
pub(crate) fn deletes_from(message: &[u8]) -> bool {
    const DELETIONS: [u16; 5] = [2, 5, 8, 11, 14];
    let kind = netlink::kind(message);
    kind >> 8 == SUBSYSTEM && DELETIONS.contains(&(kind & 0xff))
}

/// Whether a message tells that a base chain of somebody's may have come, changed or gone: of chains and of whole tables.
pub(crate) fn concerns_chains(message: &[u8]) -> bool {
    const CHAINS: [u16; 3] = [2, 3, 5];
    let kind = netlink::kind(message);
    kind >> 8 == SUBSYSTEM && CHAINS.contains(&(kind & 0xff))
}

/// The table that a message is about: the first attribute of each kind of object.
pub(crate) fn table_of(message: &[u8]) -> Option<&[u8]> {
    let (_, name) = netlink::attributes(message.get(20..)?).find(|(kind, _)| *kind == 1)?;
    Some(name.strip_suffix(&[0]).unwrap_or(name))
}

/// The table and the chain of a rule that a message tells of, if it does.
pub(crate) fn rule_of(message: &[u8]) -> Option<(&[u8], &[u8])> {
    const RULES: [u16; 2] = [6, 8];
    let kind = netlink::kind(message);
    if kind >> 8 != SUBSYSTEM || !RULES.contains(&(kind & 0xff)) {
        return None;
    }
    let (_, chain) = netlink::attributes(message.get(20..)?).find(|(kind, _)| *kind == 2)?;
    Some((table_of(message)?, chain.strip_suffix(&[0]).unwrap_or(chain)))
}

/// nlmsghdr, nfgenmsg, attributes: of any subsystem of netfilter.
pub(crate) fn message(packet: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, family: u8, resource: u16, attrs: &[u8]) {
    packet.extend((20 + attrs.len() as u32).to_ne_bytes());
    packet.extend(kind.to_ne_bytes());
    packet.extend(flags.to_ne_bytes());
    packet.extend(sequence.to_ne_bytes());
    packet.extend(0u32.to_ne_bytes());
    packet.extend([family, 0]);
    packet.extend(resource.to_be_bytes());
    packet.extend(attrs);
}
