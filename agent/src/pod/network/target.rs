//! Where a connection is to lead, as a person writes it: `HOST:PORT`, HOST being an address, or a name as the pod would say it. Pure.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, Service};

use crate::service::facts::addresses;

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

    /// The addresses of a name that a pod of that namespace calls: a Service's, or another pod's. None: no such name here.
    pub fn known(&self, namespace: &str, domain: &str, services: &[&Service], pods: &[&Pod]) -> Option<Vec<IpAddr>> {
        if let Ok(ip) = self.host.parse() {
            return Some(vec![ip]);
        }
        let host = self.host.trim_end_matches('.');
        let host = host.strip_suffix(domain).and_then(|rest| rest.strip_suffix('.')).unwrap_or(host);
        let host = host.strip_suffix(".svc").unwrap_or(host);
        let (name, namespace) = match host.split('.').collect::<Vec<_>>().as_slice() {
            [name] => (*name, namespace),
            [name, namespace] => (*name, *namespace),
            _ => return None,
        };
        let is = |meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| {
            meta.name.as_deref() == Some(name) && meta.namespace.as_deref().unwrap_or("default") == namespace
        };
        let service = services.iter().find(|service| is(&service.metadata)).and_then(|service| service.spec.as_ref());
        let cluster: Vec<IpAddr> =
            service.into_iter().flat_map(|spec| spec.cluster_ips.iter().flatten()).filter_map(|ip| ip.parse().ok()).collect();
        if !cluster.is_empty() {
            return Some(cluster);
        }
        // A headless one's pods each have a way of their own; the first stands for all.
        let selector = service.and_then(|spec| spec.selector.as_ref()).filter(|selector| !selector.is_empty());
        let has = |pod: &Pod, key, value| pod.metadata.labels.as_ref().and_then(|labels| labels.get(key)) == Some(value);
        let fits = |pod: &&&Pod| match selector {
            Some(selector) => {
                pod.metadata.namespace.as_deref() == Some(namespace) && selector.iter().all(|(key, value)| has(pod, key, value))
            }
            None => is(&pod.metadata),
        };
        let ips = addresses(pods.iter().find(fits)?);
        if ips.is_empty() { None } else { Some(ips) }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

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
    #[case("web", &["10.96.0.1"])]
    #[case("web.shop", &["10.96.0.1"])]
    #[case("web.shop.svc", &["10.96.0.1"])]
    #[case("web.shop.svc.cluster.local.", &["10.96.0.1"])]
    #[case("each", &["10.85.0.2"])]
    #[case("db", &["10.85.0.2"])]
    #[case("10.1.2.3", &["10.1.2.3"])]
    #[case("web.other", &[])]
    #[case("example.com.", &[])]
    fn names(#[case] host: &str, #[case] expected: &[&str]) {
        let service = |name: &str, spec: serde_json::Value| -> Service {
            serde_json::from_value(json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec})).unwrap()
        };
        let web = service("web", json!({"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"]}));
        let each = service("each", json!({"clusterIP": "None", "clusterIPs": ["None"], "selector": {"app": "db"}}));
        let db = json!({
            "metadata": {"name": "db", "namespace": "shop", "labels": {"app": "db"}}, "status": {"podIPs": [{"ip": "10.85.0.2"}]},
        });
        let db: Pod = serde_json::from_value(db).unwrap();
        let found = Target { host, port: 80 }.known("shop", "cluster.local", &[&web, &each], &[&db]);
        let expected: Vec<IpAddr> = expected.iter().map(|ip| ip.parse().unwrap()).collect();
        assert_eq!(found.unwrap_or_default(), expected);
    }
}
