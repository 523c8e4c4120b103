//! What a pod asks of its network by annotations: bandwidth as Kubernetes has it, more interfaces as Multus has them, and a fixed address.
//! The same reading serves validation, where a file's mistake is told with its place, and the wiring.

use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::Value;

use super::quantity::Quantity;

/// Bits per second that may come into the pod.
pub const INGRESS_BANDWIDTH: &str = "kubernetes.io/ingress-bandwidth";
/// Bits per second that may go out of it.
pub const EGRESS_BANDWIDTH: &str = "kubernetes.io/egress-bandwidth";
/// Networks beside the pod's own.
pub const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";
/// What the pod got of them; written by us.
pub const NETWORK_STATUS: &str = "k8s.v1.cni.cncf.io/network-status";
/// Addresses that the pod must have, with commas between them.
pub const IPS: &str = "nodeagent.dev/ips";
/// The MAC that its eth0 must have; only where plugins wire pods.
pub const MAC: &str = "nodeagent.dev/mac";

/// The kubelet's bounds of bandwidth: 1 kbit/s to 1 Pbit/s.
const BANDWIDTH: std::ops::RangeInclusive<i64> = 1_000..=1_000_000_000_000_000;
/// IFNAMSIZ less the NUL.
const LINK_NAME_MAX: usize = 15;

/// See the module's page.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asks {
    /// Bits per second into the pod.
    pub ingress: Option<u64>,
    /// Bits per second out of it.
    pub egress: Option<u64>,
    /// Fixed addresses of eth0.
    pub ips: Vec<IpAddr>,
    /// Fixed MAC of eth0.
    pub mac: Option<String>,
    /// More interfaces.
    pub networks: Vec<Selection>,
}

/// One more interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// The network, by the `name` in its conflist.
    pub name: String,
    /// The interface in the pod: `net1` and so on unless said.
    pub interface: String,
    /// Addresses that are asked for, as written.
    pub ips: Vec<String>,
    /// A MAC that is asked for.
    pub mac: Option<String>,
    /// As CNI's capability of that name has it.
    pub port_mappings: Option<Value>,
    /// As CNI's capability of that name has it.
    pub bandwidth: Option<Value>,
}

/// Which annotation is wrong, its value, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("metadata.annotations[{annotation}]: Invalid value: {value:?}: {problem}")]
pub struct Wrong {
    /// Its key.
    pub annotation: &'static str,
    /// As written.
    pub value: String,
    /// What would be right.
    pub problem: String,
}

impl Asks {
    /// What these annotations ask for, or all that is wrong with them.
    pub fn of(meta: &ObjectMeta) -> Result<Asks, Vec<Wrong>> {
        let mut asks = Asks::default();
        let mut wrong = Vec::new();
        let Some(annotations) = &meta.annotations else { return Ok(asks) };
        let mut read = |annotation: &'static str, take: &mut dyn FnMut(&str) -> Result<(), String>| {
            if let Some(value) = annotations.get(annotation)
                && let Err(problem) = take(value)
            {
                wrong.push(Wrong { annotation, value: value.clone(), problem });
            }
        };
        read(INGRESS_BANDWIDTH, &mut |text| bandwidth(text).map(|bits| asks.ingress = Some(bits)));
        read(EGRESS_BANDWIDTH, &mut |text| bandwidth(text).map(|bits| asks.egress = Some(bits)));
        read(IPS, &mut |text| ips(text).map(|ips| asks.ips = ips));
        read(MAC, &mut |text| mac(text).map(|mac| asks.mac = Some(mac)));
        read(NETWORKS, &mut |text| networks(text).map(|networks| asks.networks = networks));
        if wrong.is_empty() { Ok(asks) } else { Err(wrong) }
    }
}

fn bandwidth(text: &str) -> Result<u64, String> {
    let quantity: Quantity = text.parse().map_err(|error| format!("{error}"))?;
    match quantity.value() {
        bits if BANDWIDTH.contains(&bits) => Ok(bits.unsigned_abs()),
        bits if bits < *BANDWIDTH.start() => Err("resource is unreasonably small (< 1kbit)".into()),
        _ => Err("resource is unreasonably large (> 1Pbit)".into()),
    }
}

fn ips(text: &str) -> Result<Vec<IpAddr>, String> {
    let mut ips: Vec<IpAddr> = Vec::new();
    for word in text.split(',').map(str::trim) {
        let ip: IpAddr = word.parse().map_err(|_| format!("{word:?} is not an IP address"))?;
        if ips.iter().any(|other| other.is_ipv4() == ip.is_ipv4()) {
            return Err("a pod has one address a family".into());
        }
        ips.push(ip);
    }
    Ok(ips)
}

fn mac(text: &str) -> Result<String, String> {
    let bytes: Option<Vec<u8>> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok().filter(|_| byte.len() == 2)).collect();
    match bytes.as_deref() {
        Some([first, _, _, _, _, _]) if first & 1 == 0 => Ok(text.to_ascii_lowercase()),
        Some([_, _, _, _, _, _]) => Err("is a multicast address".into()),
        _ => Err("must have six bytes, such as 0a:58:0a:55:00:07".into()),
    }
}

/// `[NAMESPACE/]NAME[@INTERFACE]` with commas between them, or a JSON list.
fn networks(text: &str) -> Result<Vec<Selection>, String> {
    #[derive(Debug, Default, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Element {
        name: String,
        /// Of a network in a cluster; files have none.
        #[serde(default)]
        namespace: String,
        #[serde(default)]
        interface: String,
        #[serde(default)]
        ips: Vec<String>,
        #[serde(default)]
        mac: Option<String>,
        #[serde(default)]
        port_mappings: Option<Value>,
        #[serde(default)]
        bandwidth: Option<Value>,
    }
    let elements: Vec<Element> = if text.trim_start().starts_with('[') {
        serde_json::from_str(text).map_err(|error| error.to_string())?
    } else {
        let read = |word: &str| {
            let (name, interface) = word.split_once('@').unwrap_or((word, ""));
            let (namespace, name) = name.split_once('/').unwrap_or(("", name));
            Element { name: name.into(), namespace: namespace.into(), interface: interface.into(), ..Element::default() }
        };
        text.split(',').map(str::trim).filter(|word| !word.is_empty()).map(read).collect()
    };
    let mut selections: Vec<Selection> = Vec::new();
    for (number, element) in elements.into_iter().enumerate() {
        let Element { name, namespace, interface, ips, mac: wanted, port_mappings, bandwidth } = element;
        let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
        if name.is_empty() || !plain(&name) || !plain(&namespace) {
            return Err(format!("{name:?} is no name of a network: write [NAMESPACE/]NAME[@INTERFACE]"));
        }
        let interface = if interface.is_empty() { format!("net{}", number + 1) } else { interface };
        if interface.len() > LINK_NAME_MAX || !plain(&interface) || matches!(interface.as_str(), "." | ".." | "lo" | "eth0") {
            return Err(format!("{interface:?} is no name for another interface"));
        }
        if selections.iter().any(|other| other.interface == interface) {
            return Err(format!("the interface {interface} is there twice"));
        }
        let mac = wanted.as_deref().map(mac).transpose()?;
        selections.push(Selection { name, interface, ips, mac, port_mappings, bandwidth });
    }
    Ok(selections)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use rstest::rstest;

    use super::*;

    fn asks(annotation: &str, value: &str) -> Result<Asks, String> {
        let annotations = [(annotation.to_owned(), value.to_owned())].into();
        Asks::of(&ObjectMeta { annotations: Some(annotations), ..ObjectMeta::default() })
            .map_err(|wrong| wrong[0].problem.clone())
    }

    #[rstest]
    #[case("10M", Ok(10_000_000))]
    #[case("1k", Ok(1000))]
    #[case("1Mi", Ok(1 << 20))]
    #[case("999", Err("resource is unreasonably small (< 1kbit)"))]
    #[case("2P", Err("resource is unreasonably large (> 1Pbit)"))]
    fn bandwidths(#[case] text: &str, #[case] expected: Result<u64, &str>) {
        let read = |annotation, field: fn(&Asks) -> Option<u64>| asks(annotation, text).map(|asks| field(&asks).unwrap());
        assert_eq!(read(INGRESS_BANDWIDTH, |asks| asks.ingress), expected.map_err(Into::into));
        assert_eq!(read(EGRESS_BANDWIDTH, |asks| asks.egress), expected.map_err(Into::into));
    }

    #[rstest]
    #[case("storage", "storage@net1")]
    #[case("default/storage@fast, backup", "storage@fast backup@net2")]
    #[case(
        r#"[{"name": "storage", "namespace": "x", "interface": "fast", "ips": ["10.1.0.9/24"], "mac": "02:00:00:00:00:09"}]"#,
        "storage@fast"
    )]
    #[case("", "")]
    fn networks_are_read(#[case] text: &str, #[case] expected: &str) {
        let read = asks(NETWORKS, text).unwrap().networks;
        let words: Vec<String> = read.iter().map(|network| format!("{}@{}", network.name, network.interface)).collect();
        assert_eq!(words.join(" "), expected);
    }

    #[rstest]
    #[case(NETWORKS, "a@eth0", "\"eth0\" is no name for another interface")]
    #[case(NETWORKS, "a@x,b@x", "the interface x is there twice")]
    #[case(NETWORKS, "a b", "\"a b\" is no name of a network")]
    #[case(NETWORKS, "a@much-too-long-a-name", "\"much-too-long-a-name\" is no name")]
    #[case(NETWORKS, r#"[{"name": "a", "default-route": []}]"#, "unknown field `default-route`")]
    #[case(NETWORKS, r#"[{"name": "a", "mac": "1:2"}]"#, "must have six bytes")]
    #[case(MAC, "01:00:5e:00:00:01", "is a multicast address")]
    #[case(IPS, "10.1.0.2,10.1.0.3", "a pod has one address a family")]
    #[case(IPS, "ten", "\"ten\" is not an IP address")]
    #[case(INGRESS_BANDWIDTH, "fast", "")]
    fn what_is_wrong_is_told(#[case] annotation: &str, #[case] text: &str, #[case] words: &str) {
        let problem = asks(annotation, text).unwrap_err();
        assert!(problem.starts_with(words), "{problem}");
    }
}
