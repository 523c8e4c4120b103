//! Where a connection is to lead, as a person writes it: `HOST:PORT`, HOST being an address, or a name as the pod would say it. Pure.

use std::net::IpAddr;

use netplug::dns::{A, AAAA, Record, Zone};

/// A place to call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target<'a> {
    /// An address or a name.
    pub host: &'a str,
    /// 1 to 65535.
    pub port: u16,
}

impl<'a> Target<'a> {
    /// `HOST:PORT`, an IPv6 address in brackets.
    pub fn parse(text: &'a str) -> Result<Self, String> {
        let wrong = || format!("{text:?}: write HOST:PORT, such as web:80, 10.96.0.10:53 or [fd00::7]:443");
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
        let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        if inner.is_some_and(|host| host.parse::<std::net::Ipv6Addr>().is_err()) || inner.is_none() && host.contains(':') {
            return Err(wrong());
        }
        let host = inner.unwrap_or(host);
        if host.is_empty() { Err(wrong()) } else { Ok(Self { host, port }) }
    }

    /// Its address, if it is one.
    pub fn address(&self) -> Option<IpAddr> {
        self.host.parse().ok().map(|ip: IpAddr| ip.to_canonical())
    }

    /// The names that a pod of that namespace asks for in turn, in the form that the zone has them: a cluster's search list, and the name as it is.
    /// <https://kubernetes.io/docs/concepts/services-networking/dns-pod-service/#namespaces-of-services>
    pub fn names(&self, namespace: &str, domain: &str) -> Vec<String> {
        let host = self.host.to_ascii_lowercase();
        if let Some(whole) = host.strip_suffix('.') {
            return vec![whole.to_owned()];
        }
        vec![format!("{host}.{namespace}.svc.{domain}"), format!("{host}.svc.{domain}"), format!("{host}.{domain}"), host]
    }
}

/// What a name of this node is.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// Of one family or of both.
    Addresses(Vec<IpAddr>),
    /// Another name, which may be the world's.
    Alias(String),
}

/// None: no such name here, or one without an address.
pub fn find(zone: &Zone, name: &str) -> Option<Found> {
    let records: Vec<Record> =
        [A, AAAA].iter().filter_map(|kind| zone.answer(name, *kind)).flat_map(|answer| answer.records).collect();
    if let Some(Record::Alias(other)) = records.first() {
        return Some(Found::Alias(other.to_ascii_lowercase().trim_end_matches('.').to_owned()));
    }
    let ips: Vec<IpAddr> =
        records.iter().filter_map(|record| if let Record::Address(ip) = record { Some(*ip) } else { None }).collect();
    if ips.is_empty() { None } else { Some(Found::Addresses(ips)) }
}

#[cfg(test)]
mod tests {
    use netplug::dns::Entry;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("web:80", Some(("web", 80)))]
    #[case("10.0.0.1:53", Some(("10.0.0.1", 53)))]
    #[case("[fd00::7]:443", Some(("fd00::7", 443)))]
    #[case("fd00::7:443", None)]
    #[case("[web]:443", None)]
    #[case("web", None)]
    #[case("web:0", None)]
    #[case("web:65536", None)]
    #[case(":80", None)]
    fn places(#[case] text: &str, #[case] expected: Option<(&str, u16)>) {
        let found = Target::parse(text);
        assert_eq!(found.as_ref().ok().map(|target| (target.host, target.port)), expected, "{found:?}");
    }

    #[rstest]
    #[case("Web", &["web.shop.svc.cluster.local", "web.svc.cluster.local", "web.cluster.local", "web"])]
    #[case("Example.com.", &["example.com"])]
    fn a_name_is_asked_for_as_pods_do(#[case] host: &str, #[case] names: &[&str]) {
        assert_eq!(Target { host, port: 80 }.names("shop", "cluster.local"), names);
    }

    #[rstest]
    #[case("10.1.2.3", Some("10.1.2.3"))]
    #[case("::ffff:10.1.2.3", Some("10.1.2.3"))]
    #[case("fd00::7", Some("fd00::7"))]
    #[case("web", None)]
    fn an_address_is_one(#[case] host: &str, #[case] ip: Option<&str>) {
        assert_eq!(Target { host, port: 80 }.address(), ip.map(|ip| ip.parse().unwrap()));
    }

    #[test]
    fn names_lead_to_addresses_or_to_other_names() {
        let ips: Vec<IpAddr> = ["10.85.0.2", "fd00::2"].map(|ip| ip.parse().unwrap()).into();
        let mut zone = Zone { domain: "cluster.local".into(), ..Zone::default() };
        zone.pods.insert(("shop".into(), "db".into()), ips.clone());
        zone.services.insert(("shop".into(), "out".into()), Entry::External("Example.com".into()));
        assert_eq!(find(&zone, "db.shop.svc.cluster.local"), Some(Found::Addresses(ips)));
        assert_eq!(find(&zone, "out.shop.svc.cluster.local"), Some(Found::Alias("example.com".into())));
        assert_eq!(find(&zone, "no.shop.svc.cluster.local"), None);
        assert_eq!(find(&zone, "example.com"), None);
    }
}
