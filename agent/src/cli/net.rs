//! `net`: the node's network as a tree, and what would become of a connection.

use std::fmt::Write;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use netplug::Verdict;

use super::client::{Client, own_path, pod_name};
use super::inspect::{Format, clean, print};
use super::{CliError, Namespace};
use crate::api::{GROUP, encode};
use crate::pod::network::view::{HostPort, LinkView, NetworkView, PodView, PolicyView, ServiceView, TraceView};

/// Looking at the network.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  nodeagent net\n  nodeagent net -o json | jq '.pods[].hostPorts'\n  nodeagent net trace client web:80"
)]
pub struct NetArgs {
    #[command(subcommand)]
    act: Option<NetCommand>,
    /// json or yaml instead of a tree
    #[arg(short = 'o', long)]
    output: Option<Format>,
}

#[derive(Debug, Subcommand)]
enum NetCommand {
    /// Tell which rule would accept, rewrite or drop a pod's connection, and why
    Trace(TraceArgs),
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nodeagent net trace client web:80\n  nodeagent net trace client 10.96.0.10:53 --protocol udp\n  nodeagent net trace client '[fd00::7]:443'"
)]
struct TraceArgs {
    /// The pod that calls
    pod: String,
    /// Where to: HOST:PORT, HOST being an address, a Service, a pod or a name of the world
    to: String,
    #[command(flatten)]
    namespace: Namespace,
    /// tcp, udp or sctp
    #[arg(long, default_value = "tcp", value_parser = ["tcp", "udp", "sctp"])]
    protocol: String,
    /// json or yaml instead of text
    #[arg(short = 'o', long)]
    output: Option<Format>,
}

/// Draws the network, or traces a connection.
pub async fn run(client: &Client, args: NetArgs) -> Result<ExitCode, CliError> {
    let Some(NetCommand::Trace(args)) = args.act else {
        let object = client.get(&format!("/apis/{GROUP}/v1/network")).await?;
        return print(args.output, object, tree);
    };
    let query = format!("/trace?to={}&protocol={}", encode(&args.to), args.protocol);
    let object = client.get(&own_path(&args.namespace.namespace, pod_name(&args.pod)?, &query)).await?;
    print(args.output, object, traced)
}

/// A node of a tree: its line, and what hangs below.
#[derive(Default)]
struct Branch {
    line: String,
    below: Vec<Branch>,
}

impl Branch {
    fn leaf(line: impl Into<String>) -> Self {
        Self { line: line.into(), below: Vec::new() }
    }

    fn draw(&self, out: &mut String, indent: &str) {
        for (number, branch) in self.below.iter().enumerate() {
            let last = number + 1 == self.below.len();
            let _ = writeln!(out, "{indent}{} {}", if last { "└─" } else { "├─" }, clean(&branch.line));
            branch.draw(out, &format!("{indent}{}  ", if last { " " } else { "│" }));
        }
    }
}

fn tree(view: &NetworkView) -> String {
    let mut root = Branch::default();
    root.below.extend(view.uplinks.iter().map(|link| Branch::leaf(format!("uplink {}", shown(link)))));
    root.below.push(pods(view));
    if view.bridge.is_some() {
        let way = view.no_direct_path.as_ref().map_or_else(
            || "directly, where no rule has to see it".to_owned(),
            |reason| format!("by the host's rules: {reason}"),
        );
        root.below.push(Branch::leaf(format!("from pod to pod {way}")));
    }
    if view.bridge.is_some() && !view.services.is_empty() {
        let way = view.no_service_sockets.as_ref().map_or_else(
            || "their sockets, which are connected to an endpoint (TCP, without affinity)".to_owned(),
            |reason| format!("the host's rules: {reason}"),
        );
        root.below.push(Branch::leaf(format!("from pods to services by {way}")));
    }
    root.below.extend(group("services", view.services.iter().map(service)));
    root.below.extend(group("network policies", view.policies.iter().map(|it| policy(it, view))));
    root.below.extend(group("other firewalls", view.obstacles.iter().map(Branch::leaf)));
    let mut out = String::from("node\n");
    root.draw(&mut out, "");
    out
}

fn group(name: &str, below: impl Iterator<Item = Branch>) -> Option<Branch> {
    let below: Vec<Branch> = below.collect();
    (!below.is_empty()).then(|| Branch { line: name.into(), below })
}

fn pods(view: &NetworkView) -> Branch {
    let mut below: Vec<Branch> = view.pods.iter().map(|it| pod(it, view)).collect();
    below.extend(view.strangers.iter().map(|link| Branch::leaf(format!("{} (of no pod)", shown(link)))));
    if view.wiring == "cni" {
        return Branch { line: "pods, wired by CNI plugins".into(), below };
    }
    let bridge = view.bridge.as_ref().map_or_else(|| "is gone".to_owned(), shown);
    let table = view
        .table
        .as_ref()
        .map(|table| format!(", rules in nftables table inet {}{}", table.name, if table.stands { "" } else { " (gone)" }));
    Branch { line: format!("bridge {bridge}{}", table.unwrap_or_default()), below }
}

fn shown(link: &LinkView) -> String {
    let addresses = if link.addresses.is_empty() { "no address".to_owned() } else { link.addresses.join(", ") };
    format!("{}  {addresses}  mtu {}{}", link.name, link.mtu, if link.up { "" } else { "  DOWN" })
}

fn pod(pod: &PodView, view: &NetworkView) -> Branch {
    let addresses = pod.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let mut below: Vec<Branch> = pod.host_ports.iter().map(|port| Branch::leaf(host_port(port))).collect();
    below.extend(pod.services.iter().map(|name| Branch::leaf(format!("service {name}"))));
    for name in &pod.policies {
        let of = view.policies.iter().find(|policy| policy.name == *name).map(directions).unwrap_or_default();
        below.push(Branch::leaf(format!("policy {name}{of}")));
    }
    for (what, rate) in [("gets", pod.ingress_bandwidth), ("sends", pod.egress_bandwidth)] {
        below.extend(rate.map(|bits| Branch::leaf(format!("{what} at most {bits} bit/s"))));
    }
    if let (Some(reason), None) = (&pod.no_direct_path, &view.no_direct_path) {
        below.push(Branch::leaf(format!("to and from pods by the host's rules: {reason}")));
    }
    let link = match (pod.host_interface.as_str(), pod.problem.as_str()) {
        ("", _) => String::new(),
        (link, "") => format!("{link} ↔ "),
        (link, problem) => format!("{link} ({problem}) ↔ "),
    };
    Branch { line: format!("{link}{}  {addresses}", pod.pod), below }
}

fn host_port(port: &HostPort) -> String {
    let at = match port.host_ip {
        None => port.host_port.to_string(),
        Some(ip) => std::net::SocketAddr::new(ip, port.host_port).to_string(),
    };
    format!("host port {at}/{} → {}", port.protocol, port.container_port)
}

fn service(service: &ServiceView) -> Branch {
    let mut line = service.name.clone();
    for ip in &service.addresses {
        let _ = write!(line, "  {}/{}", std::net::SocketAddr::new(*ip, service.port), service.protocol);
    }
    if let Some(port) = service.node_port {
        let _ = write!(line, "  node port {port}/{}", service.protocol);
    }
    if let Some(seconds) = service.affinity_seconds {
        let _ = write!(line, "  a client stays for {seconds} s");
    }
    let mut below: Vec<Branch> = service.endpoints.iter().map(|endpoint| Branch::leaf(format!("→ {endpoint}"))).collect();
    if below.is_empty() {
        below.push(Branch::leaf("no ready endpoint: connections are refused"));
    }
    Branch { line, below }
}

fn policy(policy: &PolicyView, view: &NetworkView) -> Branch {
    let selected = view.pods.iter().filter(|pod| pod.policies.contains(&policy.name));
    let mut below: Vec<Branch> = selected.map(|pod| Branch::leaf(format!("selects {}", pod.pod))).collect();
    if below.is_empty() {
        below.push(Branch::leaf("selects no pod"));
    }
    Branch { line: format!("{}{}", policy.name, directions(policy)), below }
}

/// ` (ingress: 2 rules allow, egress: nothing is allowed)`.
fn directions(policy: &PolicyView) -> String {
    let told = |name: &str, rules: Option<usize>| {
        rules.map(|count| match count {
            0 => format!("{name}: nothing is allowed"),
            1 => format!("{name}: 1 rule allows"),
            _ => format!("{name}: {count} rules allow"),
        })
    };
    let all: Vec<String> = [told("ingress", policy.ingress), told("egress", policy.egress)].into_iter().flatten().collect();
    if all.is_empty() { String::new() } else { format!(" ({})", all.join(", ")) }
}

fn traced(trace: &TraceView) -> String {
    let TraceView { pod, source, to, destination, protocol, ways, obstacles } = trace;
    let to = if to == destination { destination.clone() } else { format!("{to} ({destination})") };
    let mut out = format!("{pod} ({source}) → {to}, {protocol}\n");
    for (number, steps) in ways.iter().enumerate() {
        if ways.len() > 1 {
            let _ = writeln!(out, "\nWay {} of {}", number + 1, ways.len());
        }
        let width = steps.iter().map(|step| step.chain.chars().count()).max().unwrap_or(0);
        for step in steps {
            let _ = writeln!(out, "  {:width$}  {:7}  {}", step.chain, word(step.verdict), clean(&step.reason));
        }
        let _ = writeln!(out, "  {}", outcome(steps.last().map(|step| step.verdict)));
    }
    for obstacle in obstacles {
        let _ = writeln!(out, "\nBut {}", clean(obstacle));
    }
    out
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Accept => "accept",
        Verdict::Rewrite => "rewrite",
        Verdict::Reject => "reject",
        Verdict::Drop => "drop",
    }
}

fn outcome(last: Option<Verdict>) -> &'static str {
    match last {
        Some(Verdict::Drop) => "⇒ dropped: the caller waits in vain",
        Some(Verdict::Reject) => "⇒ refused: the caller is told",
        _ => "⇒ passes",
    }
}

#[cfg(test)]
mod tests {
    use netplug::Step;

    use super::*;

    #[test]
    fn a_tree_shows_what_hangs_where() {
        let link =
            |name: &str, address: &str| LinkView { name: name.into(), up: true, mtu: 1500, addresses: vec![address.into()] };
        let view = NetworkView {
            wiring: "bridge".into(),
            uplinks: vec![link("eth0", "192.0.2.7/24")],
            bridge: Some(link("nodeagent0", "10.85.0.1/16")),
            pods: vec![PodView {
                pod: "default/web".into(),
                addresses: vec!["10.85.0.2".parse().unwrap()],
                host_interface: "veth1".into(),
                host_ports: vec![HostPort { host_ip: None, host_port: 8088, container_port: 80, protocol: "TCP".into() }],
                services: vec!["default/web:http".into()],
                policies: vec!["default/shut".into()],
                no_direct_path: Some("network policies select it".into()),
                ..PodView::default()
            }],
            services: vec![ServiceView {
                name: "default/none".into(),
                protocol: "TCP".into(),
                addresses: vec!["10.96.0.1".parse().unwrap()],
                port: 80,
                ..ServiceView::default()
            }],
            policies: vec![PolicyView { name: "default/shut".into(), ingress: Some(0), ..PolicyView::default() }],
            ..NetworkView::default()
        };
        let expected = "\
node
├─ uplink eth0  192.0.2.7/24  mtu 1500
├─ bridge nodeagent0  10.85.0.1/16  mtu 1500
│  └─ veth1 ↔ default/web  10.85.0.2
│     ├─ host port 8088/TCP → 80
│     ├─ service default/web:http
│     ├─ policy default/shut (ingress: nothing is allowed)
│     └─ to and from pods by the host's rules: network policies select it
├─ from pod to pod directly, where no rule has to see it
├─ from pods to services by their sockets, which are connected to an endpoint (TCP, without affinity)
├─ services
│  └─ default/none  10.96.0.1:80/TCP
│     └─ no ready endpoint: connections are refused
└─ network policies
   └─ default/shut (ingress: nothing is allowed)
      └─ selects default/web
";
        assert_eq!(tree(&view), expected);
    }

    #[test]
    fn a_trace_ends_with_what_becomes_of_it() {
        let step = |chain: &str, verdict, reason: &str| Step { chain: chain.into(), verdict, reason: reason.into() };
        let trace = TraceView {
            pod: "default/client".into(),
            source: "10.85.0.2".into(),
            to: "web:80".into(),
            destination: "10.96.0.1:80".into(),
            protocol: "TCP".into(),
            ways: vec![vec![step("prerouting", Verdict::Rewrite, "a service"), step("ingress", Verdict::Drop, "a policy")]],
            obstacles: Vec::new(),
        };
        let expected = "\
default/client (10.85.0.2) → web:80 (10.96.0.1:80), TCP
  prerouting  rewrite  a service
  ingress     drop     a policy
  ⇒ dropped: the caller waits in vain
";
        assert_eq!(traced(&trace), expected);
    }
}
