//! Names and what they stand for: a pure function of zone and question.
//! <https://github.com/kubernetes/dns/blob/master/docs/specification.md>, and pods by their own names.

use std::{collections::HashMap, net::IpAddr};

use crate::settings::Protocol;

/// The type of records of an IPv4 address (RFC 1035).
pub const A: u16 = 1;
/// Of an IPv6 address (RFC 3596).
pub const AAAA: u16 = 28;
// Others that the zone has records of.
pub(crate) const CNAME: u16 = 5;
pub(crate) const PTR: u16 = 12;
pub(crate) const TXT: u16 = 16;
pub(crate) const SRV: u16 = 33;
pub(crate) const ANY: u16 = 255;

/// The version of the specification that is followed.
const VERSION: &str = "1.1.0";

/// All names of a node. Names are in lower case, without a final dot.
#[derive(Debug, Clone, Default)]
pub struct Zone {
    /// Such as `cluster.local`.
    pub domain: String,
    /// By namespace and name.
    pub services: HashMap<(String, String), Entry>,
    /// Pods' addresses, by namespace and name.
    pub pods: HashMap<(String, String), Vec<IpAddr>>,
    /// Names of addresses, below the domain.
    pub reverse: HashMap<IpAddr, String>,
}

/// What a Service's name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// Addresses of its own, and its named ports.
    Cluster(Vec<IpAddr>, Vec<(String, Protocol, u16)>),
    /// Those of its endpoints.
    Headless(Vec<Target>),
    /// Another name.
    External(String),
}

/// An endpoint of a headless Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its address.
    pub ip: IpAddr,
    /// A name of its own below the Service's; without one, the address serves as such.
    pub hostname: Option<String>,
    /// Named ports.
    pub ports: Vec<(String, Protocol, u16)>,
}

/// One record's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A or AAAA.
    Address(IpAddr),
    /// CNAME.
    Alias(String),
    /// SRV: port, target.
    Service(u16, String),
    /// PTR.
    Pointer(String),
    /// TXT.
    Text(String),
}

impl Record {
    pub(crate) fn kind(&self) -> u16 {
        match self {
            Record::Address(IpAddr::V4(_)) => A,
            Record::Address(IpAddr::V6(_)) => AAAA,
            Record::Alias(_) => CNAME,
            Record::Service(..) => SRV,
            Record::Pointer(_) => PTR,
            Record::Text(_) => TXT,
        }
    }
}

/// What the zone says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// Whether there is such a name, if not of that type.
    pub exists: bool,
    /// Records of the name that was asked for.
    pub records: Vec<Record>,
    /// Addresses of names in `records`.
    pub additional: Vec<(String, Record)>,
}

impl Zone {
    /// None: not a name of this zone.
    pub fn answer(&self, name: &str, kind: u16) -> Option<Answer> {
        if let Some(ip) = address_of(name) {
            let found = self.reverse.get(&ip)?;
            return Some(only(kind, vec![Record::Pointer(found.clone())]));
        }
        let inside = name.strip_suffix(&self.domain)?;
        let inside = if inside.is_empty() { inside } else { inside.strip_suffix('.')? };
        let labels: Vec<&str> = inside.split('.').filter(|label| !label.is_empty()).rev().collect();
        Some(match labels.as_slice() {
            [] | ["svc" | "pod"] => Answer { exists: true, ..Answer::default() },
            ["dns-version"] => only(kind, vec![Record::Text(VERSION.into())]),
            ["svc", namespace] => Answer { exists: self.has(namespace), ..Answer::default() },
            ["svc", namespace, service] => self.service(namespace, service, kind),
            ["svc", namespace, service, rest @ ..] => self.below(namespace, service, rest, kind),
            ["pod", namespace, dashed] => self.pod(namespace, dashed, kind),
            _ => Answer::default(),
        })
    }

    fn has(&self, namespace: &str) -> bool {
        self.services.keys().chain(self.pods.keys()).any(|(known, _)| known == namespace)
    }

    fn entry(&self, namespace: &str, service: &str) -> Option<&Entry> {
        self.services.get(&(namespace.to_owned(), service.to_owned()))
    }

    fn service(&self, namespace: &str, service: &str, kind: u16) -> Answer {
        match self.entry(namespace, service) {
            Some(Entry::Cluster(ips, _)) => only(kind, ips.iter().copied().map(Record::Address).collect()),
            Some(Entry::Headless(targets)) => only(kind, targets.iter().map(|target| Record::Address(target.ip)).collect()),
            // An alias stands for all types.
            Some(Entry::External(name)) => {
                Answer { exists: true, records: vec![Record::Alias(name.clone())], ..Answer::default() }
            }
            None => match self.pods.get(&(namespace.to_owned(), service.to_owned())) {
                Some(ips) => only(kind, ips.iter().copied().map(Record::Address).collect()),
                None => Answer::default(),
            },
        }
    }

    /// `_port._protocol.service`, `hostname.service`.
    fn below(&self, namespace: &str, service: &str, rest: &[&str], kind: u16) -> Answer {
        let Some(entry) = self.entry(namespace, service) else { return self.dotted(namespace, service, rest, kind) };
        let whole = format!("{service}.{namespace}.svc.{}", self.domain);
        match (rest, entry) {
            ([protocol, port], _) if protocol.starts_with('_') && port.starts_with('_') => {
                ports(entry, &whole, &protocol[1..], &port[1..], kind)
            }
            ([hostname], Entry::Headless(targets)) => {
                let named = targets.iter().filter(|target| label(target) == *hostname);
                let records: Vec<Record> = named.map(|target| Record::Address(target.ip)).collect();
                if records.is_empty() { Answer::default() } else { only(kind, records) }
            }
            // Where names of ports are.
            ([protocol], _) if matches!(*protocol, "_tcp" | "_udp" | "_sctp") => Answer { exists: true, ..Answer::default() },
            _ => Answer::default(),
        }
    }

    /// A pod's name may have dots. `last`, then `rest`: its labels, from the last on.
    fn dotted(&self, namespace: &str, last: &str, rest: &[&str], kind: u16) -> Answer {
        let labels: Vec<&str> = rest.iter().rev().copied().chain([last]).collect();
        match self.pods.get(&(namespace.to_owned(), labels.join("."))) {
            Some(ips) => only(kind, ips.iter().copied().map(Record::Address).collect()),
            None => Answer::default(),
        }
    }

    /// `10-88-0-5.namespace.pod`, for pods that there are.
    fn pod(&self, namespace: &str, dashed: &str, kind: u16) -> Answer {
        let pods = self.pods.iter().filter(|((known, _), _)| known == namespace);
        let found = pods.flat_map(|(_, ips)| ips).find(|ip| dashes(**ip) == dashed);
        found.map_or_else(Answer::default, |ip| only(kind, vec![Record::Address(*ip)]))
    }
}

fn ports(entry: &Entry, whole: &str, protocol: &str, port: &str, kind: u16) -> Answer {
    let fits = |(name, own, _): &&(String, Protocol, u16)| name == port && own.to_string().eq_ignore_ascii_case(protocol);
    let mut found: Vec<(u16, String, IpAddr)> = Vec::new();
    match entry {
        Entry::Cluster(ips, ports) => {
            for (_, _, number) in ports.iter().filter(fits) {
                found.extend(ips.iter().map(|ip| (*number, whole.to_owned(), *ip)));
            }
        }
        Entry::Headless(targets) => {
            for target in targets {
                let name = format!("{}.{whole}", label(target));
                found.extend(target.ports.iter().filter(fits).map(|(_, _, number)| (*number, name.clone(), target.ip)));
            }
        }
        Entry::External(_) => {}
    }
    let mut answer = Answer { exists: !found.is_empty(), ..Answer::default() };
    if matches!(kind, SRV | ANY) {
        for (number, name, ip) in found {
            let record = Record::Service(number, name.clone());
            if !answer.records.contains(&record) {
                answer.records.push(record);
            }
            answer.additional.push((name, Record::Address(ip)));
        }
    }
    answer
}

/// The records of the type that was asked for.
fn only(kind: u16, records: Vec<Record>) -> Answer {
    let records = records.into_iter().filter(|record| kind == ANY || record.kind() == kind).collect();
    Answer { exists: true, records, ..Answer::default() }
}

fn label(target: &Target) -> String {
    target.hostname.clone().unwrap_or_else(|| dashes(target.ip))
}

/// An address as a label.
pub(crate) fn dashes(ip: IpAddr) -> String {
    ip.to_string().replace(['.', ':'], "-")
}

/// The address of a reverse name.
fn address_of(name: &str) -> Option<IpAddr> {
    if let Some(v4) = name.strip_suffix(".in-addr.arpa") {
        let mut octets = [0u8; 4];
        let mut labels = v4.split('.');
        for octet in octets.iter_mut().rev() {
            *octet = labels.next()?.parse().ok()?;
        }
        return labels.next().is_none().then(|| octets.into());
    }
    let nibbles: Vec<u8> = name
        .strip_suffix(".ip6.arpa")?
        .split('.')
        .map(|label| u8::from_str_radix(label, 16).ok().filter(|nibble| *nibble < 16))
        .collect::<Option<_>>()?;
    let mut octets = [0u8; 16];
    if nibbles.len() != 32 {
        return None;
    }
    for (octet, pair) in octets.iter_mut().rev().zip(nibbles.chunks(2)) {
        *octet = pair[0] | pair[1] << 4;
    }
    Some(octets.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn zone() -> Zone {
        let key = |name: &str| ("shop".to_owned(), name.to_owned());
        let http = |port| vec![("http".to_owned(), Protocol::Tcp, port)];
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let targets = vec![
            Target { ip: ip("10.88.0.2"), hostname: Some("db-0".into()), ports: http(5432) },
            Target { ip: ip("10.88.0.3"), hostname: None, ports: http(5433) },
        ];
        Zone {
            domain: "cluster.local".into(),
            services: [
                (key("web"), Entry::Cluster(vec![ip("10.96.0.5"), ip("fd00::5")], http(80))),
                (key("db"), Entry::Headless(targets)),
                (key("out"), Entry::External("example.org".into())),
            ]
            .into(),
            pods: [(key("web"), vec![ip("10.88.0.9")]), (key("job"), vec![ip("10.88.0.4")])].into(),
            reverse: [
                (ip("10.96.0.5"), "web.shop.svc.cluster.local".into()),
                (ip("fd00::5"), "web.shop.svc.cluster.local".into()),
            ]
            .into(),
        }
    }

    fn show(record: &Record) -> String {
        match record {
            Record::Address(ip) => ip.to_string(),
            Record::Alias(name) => format!("={name}"),
            Record::Service(port, name) => format!("{name}:{port}"),
            Record::Pointer(name) | Record::Text(name) => name.clone(),
        }
    }

    #[rstest]
    #[case("web.shop.svc.cluster.local", A, "10.96.0.5")]
    #[case("web.shop.svc.cluster.local", AAAA, "fd00::5")]
    #[case("web.shop.svc.cluster.local", TXT, "")]
    #[case("db.shop.svc.cluster.local", A, "10.88.0.2 10.88.0.3")]
    #[case("db-0.db.shop.svc.cluster.local", A, "10.88.0.2")]
    #[case("10-88-0-3.db.shop.svc.cluster.local", A, "10.88.0.3")]
    #[case("10-88-0-2.db.shop.svc.cluster.local", A, "none")]
    #[case("job.shop.svc.cluster.local", A, "10.88.0.4")]
    #[case("out.shop.svc.cluster.local", AAAA, "=example.org")]
    #[case("_http._tcp.web.shop.svc.cluster.local", SRV, "web.shop.svc.cluster.local:80")]
    #[case(
        "_http._tcp.db.shop.svc.cluster.local",
        SRV,
        "db-0.db.shop.svc.cluster.local:5432 10-88-0-3.db.shop.svc.cluster.local:5433"
    )]
    #[case("_http._udp.web.shop.svc.cluster.local", SRV, "none")]
    #[case("_http._tcp.web.shop.svc.cluster.local", A, "")]
    #[case("10-88-0-9.shop.pod.cluster.local", A, "10.88.0.9")]
    #[case("10-88-0-8.shop.pod.cluster.local", A, "none")]
    #[case("shop.svc.cluster.local", A, "")]
    #[case("nope.svc.cluster.local", A, "none")]
    #[case("nope.shop.svc.cluster.local", A, "none")]
    #[case("web.shop.cluster.local", A, "none")]
    #[case("cluster.local", A, "")]
    #[case("notcluster.local", A, "elsewhere")]
    #[case("example.org", A, "elsewhere")]
    #[case("dns-version.cluster.local", TXT, "1.1.0")]
    #[case("5.0.96.10.in-addr.arpa", PTR, "web.shop.svc.cluster.local")]
    #[case("6.0.96.10.in-addr.arpa", PTR, "elsewhere")]
    #[case("5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa", PTR, "web.shop.svc.cluster.local")]
    fn answers(#[case] name: &str, #[case] kind: u16, #[case] expected: &str) {
        let found = match zone().answer(name, kind) {
            None => "elsewhere".into(),
            Some(answer) if !answer.exists => "none".into(),
            Some(answer) => answer.records.iter().map(show).collect::<Vec<_>>().join(" "),
        };
        assert_eq!(found, expected);
    }
}
