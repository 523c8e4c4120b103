//! What stands in our table. It is one function of the settings and the leases, so that a table that somebody flushed is put
//! back whole; a pod's coming and going is one batch of map elements, however many ports there are.
//!
//! `nft list table inet NAME` shows it, with a comment on each rule.

use std::net::IpAddr;

use netlink_sys::Socket;

use super::{
    rule::{Family, Is, Rule, Verdict},
    wire::{Attrs, Batch, NLM_F_APPEND, NLM_F_CREATE, Op, single},
};
use crate::{
    cidr::Cidr,
    error::Refused,
    lease::Lease,
    netlink::{Answer, Wire, attributes},
    settings::{Isolation, Port, Settings},
};

const HOOK_PREROUTING: u32 = 0;
const HOOK_FORWARD: u32 = 2;
const HOOK_OUTPUT: u32 = 3;
const HOOK_POSTROUTING: u32 = 4;
const PRIORITY_RAW: i32 = -300;
const PRIORITY_DNAT: i32 = -100;
const PRIORITY_FILTER: i32 = 0;
const PRIORITY_SNAT: i32 = 100;

const USERDATA_OF_TABLE: u16 = 6;
const SET_INTERVAL: u32 = 4;
const SET_MAP: u32 = 8;
const ELEMENT_INTERVAL_END: u32 = 1;
/// So many elements fit into the 64 kB of an attribute with ease.
const ELEMENTS_PER_MESSAGE: usize = 256;

/// nft's own numbers of data types; a concatenation shifts by six bits.
const TYPE_IPV4: u32 = 7;
const TYPE_IPV6: u32 = 8;
const TYPE_PROTOCOL: u32 = 12;
const TYPE_SERVICE: u32 = 13;

/// The table of one network.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    name: String,
    bridge: String,
    subnets: Vec<Cidr>,
    /// Where pods' own addresses are seen.
    unmasked: Vec<Cidr>,
    masquerade: bool,
    isolation: Isolation,
}

impl Table {
    pub(crate) fn new(settings: &Settings) -> Table {
        let subnets: Vec<Cidr> = settings.ranges.iter().map(|range| range.subnet).collect();
        Table {
            name: settings.table.clone(),
            bridge: settings.bridge.clone(),
            unmasked: outermost(subnets.iter().chain(&settings.masquerade_except).copied().collect()),
            subnets,
            masquerade: settings.masquerade,
            isolation: settings.isolation,
        }
    }

    /// Puts the whole table in place of whatever bears its name, at once.
    pub(crate) fn render<'a>(
        &self,
        wire: &mut Wire,
        socket: &Socket,
        leases: impl Iterator<Item = &'a Lease>,
    ) -> Result<(), Refused> {
        let elements = group(leases.flat_map(elements_of));
        let rules = self.rules();
        let mut batch = Batch::new(64 + rules.len() + elements.iter().map(|(_, list)| list.len()).sum::<usize>());
        // Added first, so that there is one to delete.
        batch.add(Op::NewTable, NLM_F_CREATE, &self.attrs());
        batch.add(Op::DelTable, 0, &self.attrs());
        let mut named = self.attrs();
        named.bytes(USERDATA_OF_TABLE, &comment(&self.fingerprint()));
        batch.add(Op::NewTable, NLM_F_CREATE, &named);
        self.add_sets(&mut batch);
        self.add_chains(&mut batch);
        for rule in &rules {
            batch.add(Op::NewRule, NLM_F_CREATE | NLM_F_APPEND, &self.rule_attrs(rule));
        }
        for (set, list) in &elements {
            self.add_elements(&mut batch, Op::NewElements, set, list);
        }
        commit(wire, socket, batch)
    }

    /// Opens a pod's ports.
    pub(crate) fn add(&self, wire: &mut Wire, socket: &Socket, lease: &Lease) -> Result<(), Refused> {
        self.change(wire, socket, Op::NewElements, lease)
    }

    /// Closes a pod's ports.
    pub(crate) fn remove(&self, wire: &mut Wire, socket: &Socket, lease: &Lease) -> Result<(), Refused> {
        self.change(wire, socket, Op::DelElements, lease)
    }

    /// Removes the table, if there is one.
    pub(crate) fn destroy(&self, wire: &mut Wire, socket: &Socket) -> Result<(), Refused> {
        let mut batch = Batch::new(2);
        batch.add(Op::NewTable, NLM_F_CREATE, &self.attrs());
        batch.add(Op::DelTable, 0, &self.attrs());
        commit(wire, socket, batch)
    }

    /// Whether the table is there and was made of these settings by this version.
    pub(crate) fn stands(&self, wire: &mut Wire, socket: &Socket) -> Result<bool, Refused> {
        let wanted = comment(&self.fingerprint());
        let mut stands = false;
        wire.exchange(socket, &single(Op::GetTable, &self.attrs()), |_, answer| {
            if let Answer::Message(message) = answer {
                let mut attributes = attributes(message.get(20..).unwrap_or_default());
                stands |= attributes.any(|(kind, value)| kind == USERDATA_OF_TABLE && value == wanted);
            }
        })?;
        Ok(stands)
    }

    /// What the table is made of, but for the ports. FNV-1a.
    fn fingerprint(&self) -> String {
        let text = format!("{} {self:?}", env!("CARGO_PKG_VERSION"));
        let hash =
            text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        format!("netplug {hash:016x}")
    }

    fn change(&self, wire: &mut Wire, socket: &Socket, op: Op, lease: &Lease) -> Result<(), Refused> {
        let elements = group(elements_of(lease));
        if elements.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new(elements.iter().map(|(_, list)| list.len()).sum());
        for (set, list) in &elements {
            self.add_elements(&mut batch, op, set, list);
        }
        commit(wire, socket, batch)
    }

    fn add_sets(&self, batch: &mut Batch) {
        for family in Family::BOTH {
            let digit = family.digit();
            self.add_subnets(batch, family, &format!("pods{digit}"), &self.subnets);
            self.add_subnets(batch, family, &format!("unmasked{digit}"), &self.unmasked);
            self.add_map(batch, family, &format!("ports{digit}"), false);
            self.add_map(batch, family, &format!("ports_at{digit}"), true);
        }
    }

    fn add_subnets(&self, batch: &mut Batch, family: Family, name: &str, subnets: &[Cidr]) {
        let mut set = self.attrs();
        set.str(2, name).u32(3, SET_INTERVAL).u32(4, address_type(family)).u32(5, family.address_len());
        set.u32(10, batch.id()).bytes(13, &BIG_ENDIAN_KEYS);
        batch.add(Op::NewSet, NLM_F_CREATE, &set);
        let elements: Vec<Element> =
            subnets.iter().filter(|subnet| subnet.is_v4() == family.is_v4()).flat_map(|subnet| interval(*subnet)).collect();
        self.add_elements(batch, Op::NewElements, name, &elements);
    }

    /// protocol . port → address . port, with or without the host's address before it.
    fn add_map(&self, batch: &mut Batch, family: Family, name: &str, by_address: bool) {
        let address = address_type(family);
        let key = TYPE_PROTOCOL << 6 | TYPE_SERVICE;
        let (key, length) = if by_address { (address << 12 | key, family.address_len() + 8) } else { (key, 8) };
        let mut map = self.attrs();
        map.str(2, name).u32(3, SET_MAP).u32(4, key).u32(5, length);
        map.u32(6, address << 6 | TYPE_SERVICE).u32(7, family.address_len() + 4).u32(10, batch.id());
        batch.add(Op::NewSet, NLM_F_CREATE, &map);
    }

    fn add_chains(&self, batch: &mut Batch) {
        self.add_chain(batch, "ports", None);
        self.add_chain(batch, "guard", Some(("filter", HOOK_PREROUTING, PRIORITY_RAW)));
        self.add_chain(batch, "prerouting", Some(("nat", HOOK_PREROUTING, PRIORITY_DNAT)));
        self.add_chain(batch, "output", Some(("nat", HOOK_OUTPUT, PRIORITY_DNAT)));
        self.add_chain(batch, "forward", Some(("filter", HOOK_FORWARD, PRIORITY_FILTER)));
        self.add_chain(batch, "postrouting", Some(("nat", HOOK_POSTROUTING, PRIORITY_SNAT)));
    }

    fn add_chain(&self, batch: &mut Batch, name: &str, base: Option<(&str, u32, i32)>) {
        let mut chain = self.attrs();
        chain.str(3, name);
        if let Some((kind, hook, priority)) = base {
            chain.str(7, kind).nest(4, |attrs| {
                attrs.u32(1, hook).u32(2, priority as u32);
            });
        }
        batch.add(Op::NewChain, NLM_F_CREATE, &chain);
    }

    fn rules(&self) -> Vec<Rule> {
        let bridge = self.bridge.as_str();
        // The bridge has route_localnet, for the host's own way to host ports by 127.0.0.1. Without this rule a pod could reach
        // what listens on the host's loopback (CVE-2020-8558). Answers pass: conntrack rewrites them later.
        let guard = Rule::new("guard", "pods never reach the host's loopback").input_link(bridge).family(Family::V4);
        let mut rules = vec![guard.loopback_destination().then(Verdict::Drop)];
        for chain in ["prerouting", "output"] {
            rules.push(Rule::new(chain, "host ports").local_destination().then(Verdict::Jump("ports")));
        }
        for family in Family::BOTH {
            let (at, any) = (format!("ports_at{}", family.digit()), format!("ports{}", family.digit()));
            rules.push(Rule::new("ports", "of one host address").family(family).redirect_by_address(family, &at));
            rules.push(Rule::new("ports", "of any host address").family(family).redirect_by_port(family, &any));
        }
        if self.isolation == Isolation::Pods {
            let rule = Rule::new("forward", "pods are isolated").input_link(bridge).output_link(bridge);
            rules.push(rule.then(Verdict::Drop));
        }
        let loopback = Rule::new("postrouting", "host ports from the host's loopback").output_link(bridge).family(Family::V4);
        rules.push(loopback.loopback_source().masquerade());
        for family in Family::BOTH {
            let (pods, unmasked) = (format!("pods{}", family.digit()), format!("unmasked{}", family.digit()));
            // Pod and pod are neighbours on the bridge: without this the answer would take the short way, past conntrack.
            let hairpin = Rule::new("postrouting", "host ports from pods").output_link(bridge).redirected().family(family);
            rules.push(hairpin.source(family, Is::In, &pods).masquerade());
            if self.masquerade {
                let leaving = Rule::new("postrouting", "pods to the world").family(family).source(family, Is::In, &pods);
                let leaving = leaving.destination(family, Is::NotIn, &unmasked).not_output_link(bridge);
                rules.push(leaving.masquerade());
            }
        }
        rules
    }

    fn rule_attrs(&self, rule: &Rule) -> Attrs {
        let mut attrs = self.attrs();
        attrs.str(2, rule.chain).bytes(4 | 0x8000, rule.expressions());
        attrs.bytes(7, &comment(rule.comment));
        attrs
    }

    fn add_elements(&self, batch: &mut Batch, op: Op, set: &str, elements: &[Element]) {
        for chunk in elements.chunks(ELEMENTS_PER_MESSAGE) {
            let mut attrs = self.attrs();
            attrs.str(2, set).nest(3, |list| {
                for element in chunk {
                    element.write(list, op);
                }
            });
            batch.add(op, if op == Op::NewElements { NLM_F_CREATE } else { 0 }, &attrs);
        }
    }

    /// Every message begins with the table's name.
    fn attrs(&self) -> Attrs {
        let mut attrs = Attrs::default();
        attrs.str(1, &self.name);
        attrs
    }
}

/// Userdata that tells `nft list` to show keys as addresses: KEYBYTEORDER, four bytes, big-endian.
const BIG_ENDIAN_KEYS: [u8; 6] = {
    let order = 2u32.to_ne_bytes();
    [0, 4, order[0], order[1], order[2], order[3]]
};

/// One entry of a set or map.
#[derive(Debug)]
pub(crate) struct Element {
    key: Vec<u8>,
    value: Option<Vec<u8>>,
    flags: u32,
}

impl Element {
    fn write(&self, list: &mut Attrs, op: Op) {
        list.nest(1, |element| {
            element.data(1, &self.key);
            if let Some(value) = self.value.as_ref().filter(|_| op == Op::NewElements) {
                element.data(2, value);
            }
            if self.flags != 0 {
                element.u32(3, self.flags);
            }
        });
    }
}

/// Userdata of type 0 is a comment: type, length, text with its NUL.
fn comment(text: &str) -> Vec<u8> {
    let mut bytes = vec![0, text.len() as u8 + 1];
    bytes.extend(text.bytes());
    bytes.push(0);
    bytes
}

/// A pod's ports as elements, each with the map that it belongs to.
fn elements_of(lease: &Lease) -> Vec<(String, Element)> {
    let mut elements = Vec::new();
    for port in &lease.ports {
        for ip in lease.ips.iter().filter(|ip| port.serves(ip.is_ipv4())) {
            elements.push(element(port, *ip));
        }
    }
    elements
}

fn element(port: &Port, pod: IpAddr) -> (String, Element) {
    let digit = if pod.is_ipv4() { '4' } else { '6' };
    let mut key = Vec::new();
    let map = match port.specific_ip() {
        Some(host) => {
            key.extend(octets(host));
            format!("ports_at{digit}")
        }
        None => format!("ports{digit}"),
    };
    key.extend([port.protocol.number(), 0, 0, 0]);
    key.extend(word(port.host_port));
    let mut value = octets(pod);
    value.extend(word(port.container_port));
    (map, Element { key, value: Some(value), flags: 0 })
}

/// A port fills a word of four bytes, as each part of a concatenation does.
fn word(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// A set of intervals has an element where one begins and another, marked, past its end.
fn interval(subnet: Cidr) -> Vec<Element> {
    let mut elements = vec![Element { key: octets(subnet.base()), value: None, flags: 0 }];
    let mut past = octets(subnet.at(subnet.last_offset()));
    for byte in past.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            // The loop runs out only for an interval that reaches the very last address, which has no end.
            elements.push(Element { key: past, value: None, flags: ELEMENT_INTERVAL_END });
            break;
        }
    }
    elements
}

fn address_type(family: Family) -> u32 {
    if family.is_v4() { TYPE_IPV4 } else { TYPE_IPV6 }
}

/// Intervals of a set may not overlap: subnets within others of the list are left out.
fn outermost(mut subnets: Vec<Cidr>) -> Vec<Cidr> {
    subnets.sort_by_key(|subnet| (subnet.base(), subnet.prefix()));
    let mut outer: Vec<Cidr> = Vec::new();
    for subnet in subnets {
        if !outer.iter().any(|wide| wide.overlaps(&subnet)) {
            outer.push(subnet);
        }
    }
    outer
}

/// Elements by map, each map once.
fn group(elements: impl IntoIterator<Item = (String, Element)>) -> Vec<(String, Vec<Element>)> {
    let mut groups: Vec<(String, Vec<Element>)> = Vec::new();
    for (map, element) in elements {
        match groups.iter_mut().find(|(name, _)| *name == map) {
            Some((_, list)) => list.push(element),
            None => groups.push((map, vec![element])),
        }
    }
    groups
}

/// Sends a batch; the first refusal of it is the error, and then nothing was changed.
fn commit(wire: &mut Wire, socket: &Socket, batch: Batch) -> Result<(), Refused> {
    let mut settled = false;
    let mut refused = None;
    wire.exchange(socket, &batch.finish(), |_, answer| match answer {
        Answer::Ack => settled = true,
        Answer::Refused(refusal) => drop(refused.get_or_insert(refusal)),
        Answer::Message(_) => {}
    })?;
    match refused {
        Some(refused) => Err(refused),
        None if settled => Ok(()),
        None => Err(rustix::io::Errno::NOBUFS.into()),
    }
}
