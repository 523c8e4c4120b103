//! The files that the agent writes for a pod: /etc/hosts, /etc/hostname, /etc/resolv.conf. Contents are pure.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use super::error::{Cause, file};
use super::recipe::sandbox::{fqdn, hostname};
use super::settings::Settings;
use crate::model::ValidPod;

/// Name servers that the resolvers of C libraries look at.
const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
/// Bytes of the line of searches, and of one of them: longer ones make C libraries abort. All of these are the kubelet's.
const MAX_SEARCH_LINE: usize = 2048;
const MAX_SEARCH: usize = 253;

/// Where they are in a container, and below the pod's own folder.
pub const FILES: [(&str, &str); 3] =
    [("/etc/hosts", "etc-hosts"), ("/etc/hostname", "hostname"), ("/etc/resolv.conf", "resolv.conf")];

/// Writes all three. Again with other addresses, when they are known later. Says what was left out, in the kubelet's words.
pub fn write(pod: &ValidPod, settings: &Settings, pod_ips: &[IpAddr]) -> Result<Vec<String>, Cause> {
    let dir = settings.pod_lib(pod.uid());
    let host_network = pod.spec().host_network == Some(true);
    let hosts = if host_network {
        let own = fs::read_to_string("/etc/hosts").unwrap_or_default();
        hosts_of_host(&own, pod)
    } else {
        hosts_of_pod(pod, settings, pod_ips)
    };
    let name = if host_network { host_name() } else { hostname(pod) };
    let (resolver, omitted) = resolver(pod, settings, &host_resolver(settings, host_network));
    let texts = [hosts, format!("{name}\n"), resolver.render()];
    FILES.iter().zip(texts).try_for_each(|((_, name), text)| put(&dir.join(name), &text))?;
    Ok(omitted)
}

/// In place, not by rename: containers have the file bind-mounted and must see what it says now.
fn put(path: &Path, text: &str) -> Result<(), Cause> {
    fs::write(path, text).map_err(file("write", path))
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn hosts_of_pod(pod: &ValidPod, settings: &Settings, pod_ips: &[IpAddr]) -> String {
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
    );
    let names = match fqdn(pod, settings) {
        Some(whole) => format!("{whole}\t{}", hostname(pod)),
        None => hostname(pod),
    };
    for ip in pod_ips {
        let _ = writeln!(text, "{ip}\t{names}");
    }
    text + &aliases(pod)
}

fn hosts_of_host(own: &str, pod: &ValidPod) -> String {
    format!("# Kubernetes-managed hosts file (host network).\n{own}{}", aliases(pod))
}

fn aliases(pod: &ValidPod) -> String {
    let entries = pod.spec().host_aliases.as_deref().unwrap_or_default();
    if entries.is_empty() {
        return String::new();
    }
    let mut text = String::from("\n# Entries added by HostAliases.\n");
    for entry in entries {
        let _ = writeln!(text, "{}\t{}", entry.ip, entry.hostnames.as_deref().unwrap_or_default().join("\t"));
    }
    text
}

/// resolv.conf(5), as far as we carry it over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolver {
    /// Addresses of name servers.
    pub nameservers: Vec<String>,
    /// Domains that are tried for a short name.
    pub searches: Vec<String>,
    /// `ndots:5` and the like.
    pub options: Vec<String>,
}

/// How a pod resolves names.
pub fn resolver_of(pod: &ValidPod, settings: &Settings) -> Resolver {
    resolver(pod, settings, &host_resolver(settings, pod.spec().host_network == Some(true))).0
}

impl Resolver {
    fn parse(text: &str) -> Self {
        let mut resolver = Self::default();
        for line in text.lines() {
            let mut words = line.split(['#', ';']).next().unwrap_or_default().split_whitespace();
            let key = words.next();
            let rest = words.map(str::to_owned);
            match key {
                Some("nameserver") => resolver.nameservers.extend(rest.take(1)),
                // The last one counts.
                Some("search" | "domain") => resolver.searches = rest.collect(),
                Some("options") => resolver.options.extend(rest),
                _ => {}
            }
        }
        resolver
    }

    fn render(&self) -> String {
        let mut text = String::new();
        if !self.searches.is_empty() {
            let _ = writeln!(text, "search {}", self.searches.join(" "));
        }
        for server in &self.nameservers {
            let _ = writeln!(text, "nameserver {server}");
        }
        if !self.options.is_empty() {
            let _ = writeln!(text, "options {}", self.options.join(" "));
        }
        text
    }

    /// Leaves out what C libraries would not take, and says so.
    fn fit(&mut self) -> Vec<String> {
        let mut omitted = Vec::new();
        if self.nameservers.len() > MAX_NAMESERVERS {
            self.nameservers.truncate(MAX_NAMESERVERS);
            omitted.push(format!(
                "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}",
                self.nameservers.join(" ")
            ));
        }
        let before = self.searches.len();
        self.searches.truncate(MAX_SEARCHES);
        self.searches.retain(|search| search.len() <= MAX_SEARCH);
        while self.searches.join(" ").len() > MAX_SEARCH_LINE {
            self.searches.pop();
        }
        if self.searches.len() < before {
            omitted.push(format!(
                "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
                self.searches.join(" ")
            ));
        }
        omitted
    }

    /// A server on the host's loopback is out of reach of a pod with a network of its own.
    fn reachable(&self) -> bool {
        let local = |server: &String| server.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        !self.nameservers.iter().all(local)
    }
}

/// The host's; behind systemd-resolved's stub, the servers that it asks itself.
fn host_resolver(settings: &Settings, host_network: bool) -> Resolver {
    let read = |path: &Path| Resolver::parse(&fs::read_to_string(path).unwrap_or_default());
    let own = read(&settings.resolv_conf);
    if host_network || own.reachable() {
        return own;
    }
    let upstream = read(Path::new("/run/systemd/resolve/resolv.conf"));
    if upstream.nameservers.is_empty() { own } else { upstream }
}

/// dnsPolicy and dnsConfig: <https://kubernetes.io/docs/concepts/services-networking/dns-pod-service/>.
fn resolver(pod: &ValidPod, settings: &Settings, host: &Resolver) -> (Resolver, Vec<String>) {
    let spec = pod.spec();
    let cluster = !settings.cluster_dns.is_empty();
    let mut resolver = match spec.dns_policy.as_deref() {
        Some("None") => Resolver::default(),
        Some("ClusterFirstWithHostNet") if cluster => cluster_first(pod, settings, host),
        None | Some("ClusterFirst") if cluster && spec.host_network != Some(true) => cluster_first(pod, settings, host),
        _ => host.clone(),
    };
    if let Some(config) = &spec.dns_config {
        add_new(&mut resolver.nameservers, config.nameservers.iter().flatten().cloned());
        add_new(&mut resolver.searches, config.searches.iter().flatten().cloned());
        for option in config.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            resolver.options.retain(|old| old.split(':').next() != Some(&name));
            resolver.options.push(option.value.as_ref().map_or(name.clone(), |value| format!("{name}:{value}")));
        }
    }
    let omitted = resolver.fit();
    (resolver, omitted)
}

fn cluster_first(pod: &ValidPod, settings: &Settings, host: &Resolver) -> Resolver {
    let domain = &settings.cluster_domain;
    let mut searches = vec![format!("{}.svc.{domain}", pod.namespace()), format!("svc.{domain}"), domain.clone()];
    add_new(&mut searches, host.searches.iter().cloned());
    Resolver {
        nameservers: settings.cluster_dns.iter().map(ToString::to_string).collect(),
        searches,
        options: vec!["ndots:5".into()],
    }
}

fn add_new(list: &mut Vec<String>, more: impl Iterator<Item = String>) {
    for item in more {
        if !list.contains(&item) {
            list.push(item);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Origin;
    use rstest::rstest;

    fn pod(spec: &str) -> ValidPod {
        let yaml = format!("{{metadata: {{name: web, namespace: shop, uid: u}}, spec: {{containers: [], {spec}}}}}");
        ValidPod::trusted(serde_yaml::from_str(&yaml).unwrap(), Origin::Stdin)
    }

    fn settings(dns: &[&str]) -> Settings {
        Settings { cluster_dns: dns.iter().map(|ip| ip.parse().unwrap()).collect(), ..Settings::below("/r".as_ref(), "p") }
    }

    const HOST: &str = "# mine\nnameserver 9.9.9.9\nsearch lan # home\noptions edns0 ndots:1\n";

    #[rstest]
    #[case("", &[], "search lan\nnameserver 9.9.9.9\noptions edns0 ndots:1\n")]
    #[case("dnsPolicy: Default", &["10.0.0.10"], "search lan\nnameserver 9.9.9.9\noptions edns0 ndots:1\n")]
    #[case("", &["10.0.0.10"], "search shop.svc.cluster.local svc.cluster.local cluster.local lan\nnameserver 10.0.0.10\noptions ndots:5\n")]
    #[case("hostNetwork: true", &["10.0.0.10"], "search lan\nnameserver 9.9.9.9\noptions edns0 ndots:1\n")]
    #[case("dnsPolicy: None, dnsConfig: {nameservers: [1.1.1.1], searches: [a.b], options: [{name: ndots, value: '2'}, {name: rotate}]}", &[],
        "search a.b\nnameserver 1.1.1.1\noptions ndots:2 rotate\n")]
    #[case("dnsPolicy: Default, dnsConfig: {options: [{name: ndots, value: '2'}]}", &[],
        "search lan\nnameserver 9.9.9.9\noptions edns0 ndots:2\n")]
    fn resolvers(#[case] spec: &str, #[case] dns: &[&str], #[case] expected: &str) {
        let (resolver, omitted) = resolver(&pod(spec), &settings(dns), &Resolver::parse(HOST));
        assert_eq!((resolver.render().as_str(), omitted), (expected, Vec::new()));
    }

    #[rstest]
    #[case::servers("nameserver 1.1.1.1\nnameserver 1.1.1.2\nnameserver 1.1.1.3\nnameserver 1.1.1.4\n".into(), 3, 0,
        &["Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: 1.1.1.1 1.1.1.2 1.1.1.3"])]
    #[case::searches(format!("search{}\n", " a.b".repeat(33)), 0, 32, &["the applied search line is: a.b a.b"])]
    #[case::line(format!("search{}\n", format!(" {}", "x".repeat(200)).repeat(12)), 0, 10, &["Search Line limits were exceeded"])]
    #[case::one(format!("search a {} b\n", "x".repeat(254)), 0, 2, &["the applied search line is: a b"])]
    fn what_c_libraries_would_not_take_is_left_out_and_told(
        #[case] host: String,
        #[case] servers: usize,
        #[case] searches: usize,
        #[case] told: &[&str],
    ) {
        let (resolver, omitted) = resolver(&pod("dnsPolicy: Default"), &settings(&[]), &Resolver::parse(&host));
        assert_eq!((resolver.nameservers.len(), resolver.searches.len(), omitted.len()), (servers, searches, told.len()));
        assert!(omitted.iter().zip(told).all(|(said, words)| said.contains(words)), "{omitted:?}");
    }

    #[test]
    fn hosts_end_with_the_pods_own_names_and_aliases() {
        let spec = "hostname: db, subdomain: sub, hostAliases: [{ip: 1.2.3.4, hostnames: [x, y]}]";
        let text = hosts_of_pod(&pod(spec), &settings(&[]), &["10.1.0.2".parse().unwrap()]);
        let end = "10.1.0.2\tdb.sub.shop.svc.cluster.local\tdb\n\n# Entries added by HostAliases.\n1.2.3.4\tx\ty\n";
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n") && text.ends_with(end), "{text}");
    }

    #[rstest]
    #[case("nameserver 127.0.0.53\n", false)]
    #[case("nameserver ::1\nnameserver 10.0.0.1\n", true)]
    #[case("", false)]
    fn loopback_servers_are_out_of_reach(#[case] text: &str, #[case] expected: bool) {
        assert_eq!(Resolver::parse(text).reachable(), expected);
    }
}
