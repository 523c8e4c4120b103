//! What stands in our table. It is one function of the settings and the leases, so that a table that somebody flushed is put
//! back whole; a pod's coming and going is one batch of map elements, however many ports there are.
//!
//! `nft list table inet NAME` shows it, with a comment on each rule.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use netlink_sys::Socket;

use super::{
    fragment::{self, Fragment, Step, comment},
    rule::{Family, Is, Rule, Verdict},
    set::{self, Kind, Value},
    wire::{Attrs, Batch, NLM_F_CREATE, Op, single},
};
use crate::{
    cidr::Cidr,
    error::Refused,
    hash::fnv1a,
    lease::Lease,
    netlink::{Answer, Wire, attributes},
    settings::{Isolation, Protocol, Range, Settings},
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

/// The base chains, beside `ports`: name, type, hook, priority. What accepts in one goes on to the next, so egress and ingress are two.
const CHAINS: [(&str, &str, u32, i32); 8] = [
    ("guard", "filter", HOOK_PREROUTING, PRIORITY_RAW),
    ("prerouting", "nat", HOOK_PREROUTING, PRIORITY_DNAT),
    ("output", "nat", HOOK_OUTPUT, PRIORITY_DNAT),
    ("local", "filter", HOOK_OUTPUT, PRIORITY_FILTER),
    ("forward", "filter", HOOK_FORWARD, PRIORITY_FILTER),
    ("egress", "filter", HOOK_FORWARD, PRIORITY_FILTER + 1),
    ("ingress", "filter", HOOK_FORWARD, PRIORITY_FILTER + 2),
    ("postrouting", "nat", HOOK_POSTROUTING, PRIORITY_SNAT),
];

/// A set's name in each family: `pods4`, `pods6`.
pub(crate) fn named(name: &str, family: Family) -> String {
    format!("{name}{}", family.digit())
}

/// The table of one network.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    name: String,
    bridge: String,
    /// Of pods' links, if they are no ports of the bridge.
    group: Option<u32>,
    subnets: Vec<Cidr>,
    /// The host's addresses in them.
    gateways: Vec<IpAddr>,
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
            group: settings.group(),
            unmasked: outermost(subnets.iter().chain(&settings.masquerade_except).copied().collect()),
            subnets,
            gateways: settings.ranges.iter().map(Range::gateway).collect(),
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
        fragments: impl Iterator<Item = Arc<Fragment>>,
    ) -> Result<(), Refused> {
        let nothing = Arc::new(Fragment::default());
        let mut ports = Fragment::default();
        leases.for_each(|lease| add_ports(&mut ports, lease));
        let parts: Vec<Arc<Fragment>> = [Arc::new(self.base()), Arc::new(ports)].into_iter().chain(fragments).collect();
        let mut batch = Batch::new(16 + parts.iter().map(|part| part.size()).sum::<usize>());
        // Added first, so that there is one to delete.
        batch.add(Op::NewTable, NLM_F_CREATE, &self.attrs());
        batch.add(Op::DelTable, 0, &self.attrs());
        let mut named = self.attrs();
        named.bytes(USERDATA_OF_TABLE, &comment(&self.fingerprint()));
        batch.add(Op::NewTable, NLM_F_CREATE, &named);
        for (name, kind, hook, priority) in CHAINS {
            self.add_base_chain(&mut batch, name, kind, hook, priority);
        }
        let steps: Vec<Step> = parts.into_iter().map(|part| (nothing.clone(), part)).collect();
        fragment::change(&mut batch, &self.name, &steps);
        commit(wire, socket, batch)
    }

    /// Replaces parts of the table.
    pub(crate) fn change(&self, wire: &mut Wire, socket: &Socket, steps: &[Step]) -> Result<(), Refused> {
        let room = steps.iter().map(|(old, new)| old.size() + new.size()).sum();
        let mut batch = Batch::new(room);
        fragment::change(&mut batch, &self.name, steps);
        if batch.is_empty() { Ok(()) } else { commit(wire, socket, batch) }
    }

    /// Opens a pod's ports.
    pub(crate) fn add(&self, wire: &mut Wire, socket: &Socket, lease: &Lease) -> Result<(), Refused> {
        self.change(wire, socket, &[(Arc::default(), Arc::new(ports_of(lease)))])
    }

    /// Closes a pod's ports.
    pub(crate) fn remove(&self, wire: &mut Wire, socket: &Socket, lease: &Lease) -> Result<(), Refused> {
        self.change(wire, socket, &[(Arc::new(ports_of(lease)), Arc::default())])
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

    /// What the table is made of, but for the ports.
    fn fingerprint(&self) -> String {
        let text = format!("{} {self:?}", env!("CARGO_PKG_VERSION"));
        format!("netplug {:016x}", fnv1a(text.bytes()))
    }

    fn add_base_chain(&self, batch: &mut Batch, name: &str, kind: &str, hook: u32, priority: i32) {
        let mut chain = self.attrs();
        chain.str(3, name).str(7, kind).nest(4, |attrs| {
            attrs.u32(1, hook).u32(2, priority as u32);
        });
        batch.add(Op::NewChain, NLM_F_CREATE, &chain);
    }

    /// What is in the table whatever pods there are.
    fn base(&self) -> Fragment {
        let mut base = Fragment { chains: self.rules(), ..Fragment::default() };
        for family in Family::BOTH {
            let kinds = [
                ("pods", Kind::Intervals(family)),
                ("unmasked", Kind::Intervals(family)),
                ("virtual", Kind::Intervals(family)),
                ("unserved", Kind::Endpoints(family)),
                ("ports", Kind::Ports(family)),
                ("ports_at", Kind::PortsAt(family)),
                ("selves", Kind::Pairs(family)),
                ("selves_of_services", Kind::Pairs(family)),
                ("services", Kind::ServiceVerdicts(family)),
                ("ports_of_services", Kind::PortVerdicts),
                ("egress_of", Kind::AddressVerdicts(family)),
                ("ingress_of", Kind::AddressVerdicts(family)),
            ];
            base.sets.extend(kinds.map(|(name, kind)| (named(name, family), kind)));
            for (name, subnets) in [("pods", &self.subnets), ("unmasked", &self.unmasked)] {
                let subnets = subnets.iter().filter(|subnet| subnet.is_v4() == family.is_v4());
                subnets.flat_map(|subnet| set::subnet(*subnet)).for_each(|key| base.add(&named(name, family), key, Value::None));
            }
        }
        base
    }

    fn rules(&self) -> BTreeMap<String, Vec<Rule>> {
        let mut forward = Vec::new();
        let mut local = Vec::new();
        // Pods' links have route_localnet, for the host's own way to host ports by 127.0.0.1. Without this rule a pod could reach
        // what listens on the host's loopback (CVE-2020-8558). Answers pass: conntrack rewrites them later.
        let guard = self.sent_by_pods(Rule::new("pods never reach the host's loopback")).family(Family::V4);
        let mut guard = vec![guard.loopback_destination().then(Verdict::Drop)];
        if self.group.is_some() {
            // The kernel's own check (rp_filter) isn't for IPv6, and systemd loosens it on links that come.
            let stray = self.sent_by_pods(Rule::new("pods send from their own addresses"));
            guard.push(stray.strayed().then(Verdict::Drop));
        }
        if self.isolation == Isolation::Pods {
            forward.push(self.sent_to_pods(self.sent_by_pods(Rule::new("pods are isolated"))).then(Verdict::Drop));
        }
        if self.isolation == Isolation::Routed {
            local.extend(Rule::redirects().map(|rule| self.sent_to_pods(rule).then(Verdict::Drop)));
        }
        // Most packets are of connections that passed all of this: they are spared the look-ups.
        for chain in [&mut forward, &mut local] {
            chain.push(Self::known());
        }
        for family in Family::BOTH {
            let none = Rule::new("a service without endpoints, or none").family(family);
            let none = none.destination(family, Is::In, &named("virtual", family));
            let dead =
                Rule::new("a service without endpoints").family(family).destination_port(family, &named("unserved", family));
            for dead in [none, dead] {
                for rule in [dead.clone().protocol(Protocol::Tcp).reset(), dead.reject()] {
                    forward.push(rule.clone());
                    local.push(rule);
                }
            }
        }
        BTreeMap::from([
            ("guard".into(), guard),
            ("ports".into(), Self::ports()),
            ("prerouting".into(), Self::entrance()),
            ("output".into(), Self::entrance()),
            ("local".into(), local),
            ("forward".into(), forward),
            ("egress".into(), Self::policies("egress_of", Rule::source_decides)),
            ("ingress".into(), Self::policies("ingress_of", Rule::destination_decides)),
            ("postrouting".into(), self.postrouting()),
        ])
    }

    fn sent_by_pods(&self, rule: Rule) -> Rule {
        match self.group {
            Some(group) => rule.input_group(group),
            None => rule.input_link(&self.bridge),
        }
    }

    fn sent_to_pods(&self, rule: Rule) -> Rule {
        match self.group {
            Some(group) => rule.output_group(group),
            None => rule.output_link(&self.bridge),
        }
    }

    fn not_sent_to_pods(&self, rule: Rule) -> Rule {
        match self.group {
            Some(group) => rule.not_output_group(group),
            None => rule.not_output_link(&self.bridge),
        }
    }

    /// With the host's address among pods for source. Their links of their own have none by which `masquerade` could choose.
    fn sent_by_host(&self, rule: Rule, family: Family) -> Rule {
        let gateway = self.gateways.iter().find(|ip| ip.is_ipv4() == family.is_v4()).filter(|_| self.group.is_some());
        match gateway {
            Some(ip) => rule.source_becomes(*ip),
            None => rule.masquerade(),
        }
    }

    /// Where new connections meet services and host ports.
    fn entrance() -> Vec<Rule> {
        let services = Family::BOTH
            .map(|family| Rule::new("services").family(family).service_decides(family, &named("services", family)))
            .into_iter();
        // What is from ::1 leaves by no other link, as 127.0.0.1 does by route_localnet: redirected, it would be lost without a word.
        let own = Rule::new("::1 leads to nobody but the host").family(Family::V6).loopback6_destination().then(Verdict::Accept);
        services.chain([own, Rule::new("host ports").local_destination().then(Verdict::Jump("ports"))]).collect()
    }

    fn ports() -> Vec<Rule> {
        let rules = Family::BOTH.map(|family| {
            let at = Rule::new("of one host address").family(family).redirect_by_address(family, &named("ports_at", family));
            let any = Rule::new("of any host address").family(family).redirect_by_port(family, &named("ports", family));
            let services = Rule::new("node ports").family(family).port_decides(&named("ports_of_services", family));
            [at, any, services]
        });
        rules.into_iter().flatten().collect()
    }

    fn known() -> Rule {
        Rule::new("what was allowed before").known().then(Verdict::Accept)
    }

    /// Pods that policies select, and what is known already.
    fn policies(map: &str, decides: fn(Rule, Family, &str) -> Rule) -> Vec<Rule> {
        let pods = Family::BOTH.map(|family| decides(Rule::new("network policies").family(family), family, &named(map, family)));
        std::iter::once(Self::known()).chain(pods).collect()
    }

    fn postrouting(&self) -> Vec<Rule> {
        let loopback = self.sent_to_pods(Rule::new("host ports from the host's loopback")).family(Family::V4);
        let mut rules = vec![self.sent_by_host(loopback.loopback_source(), Family::V4)];
        for family in Family::BOTH {
            let (pods, unmasked) = (named("pods", family), named("unmasked", family));
            if self.isolation == Isolation::Routed {
                for (name, way) in [("selves", "a host port"), ("selves_of_services", "a service")] {
                    let own = self.sent_to_pods(Rule::new(format!("a pod that reaches itself by {way}"))).redirected();
                    let own = own.family(family).source_and_destination(family, &named(name, family));
                    rules.push(self.sent_by_host(own, family));
                }
            } else {
                // Pod and pod are neighbours on the bridge: without this the answer would take the short way, past conntrack.
                let hairpin = self.sent_to_pods(Rule::new("host ports from pods")).redirected().family(family);
                rules.push(hairpin.source(family, Is::In, &pods).masquerade());
            }
            if self.masquerade {
                let leaving = Rule::new("pods to the world").family(family).source(family, Is::In, &pods);
                let leaving = leaving.destination(family, Is::NotIn, &unmasked);
                rules.push(self.not_sent_to_pods(leaving).masquerade());
            }
        }
        rules
    }

    fn attrs(&self) -> Attrs {
        Attrs::of_table(&self.name)
    }
}

/// A pod's host ports as elements.
fn ports_of(lease: &Lease) -> Fragment {
    let mut ports = Fragment::default();
    add_ports(&mut ports, lease);
    ports
}

fn add_ports(ports: &mut Fragment, lease: &Lease) {
    for port in &lease.ports {
        for ip in lease.ips.iter().filter(|ip| port.serves(ip.is_ipv4())) {
            let family = Family::of(*ip);
            let (name, key) = match port.specific_ip() {
                Some(host) => ("ports_at", set::service_key(host, port.protocol, port.host_port)),
                None => ("ports", set::port_key(port.protocol, port.host_port)),
            };
            ports.add(&named(name, family), key, Value::Data(set::target(SocketAddr::new(*ip, port.container_port))));
            let own = [set::octets(*ip), set::octets(*ip)].concat();
            ports.add(&named("selves", family), own, Value::None);
        }
    }
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
