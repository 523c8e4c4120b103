//! Other firewalls of the node: what they drop is told, and what is said to do about it helps.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use lab::{Lab, NODE, OUTSIDE, Pod, eventually, wait};
use netplug::{Hook, Network, Obstacle, Protocol::Tcp, Protocol::Udp, Settings};
use rstest::rstest;

const PODS: &str = "10.88.0.0/24";
const RESOLVER: &str = "10.88.0.1:53";

/// As firewalld 1.3 has it, with its zones public (the default) and trusted, which nobody is in yet; less chains that are empty.
const FIREWALLD: &str = r#"
table inet firewalld {
    chain filter_IN_public {
        tcp dport 22 accept
        meta l4proto { icmp, ipv6-icmp } accept
        reject with icmpx admin-prohibited
    }
    chain filter_IN_trusted { accept; }
    chain filter_FWD_public { reject with icmpx admin-prohibited; }
    chain filter_FWD_trusted { accept; }
    chain filter_INPUT_ZONES { goto filter_IN_public; }
    chain filter_FORWARD_ZONES { goto filter_FWD_public; }
    chain filter_INPUT {
        type filter hook input priority filter + 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname "lo" accept
        ct state invalid drop
        jump filter_INPUT_ZONES
        reject with icmpx admin-prohibited
    }
    chain filter_FORWARD {
        type filter hook forward priority filter + 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname "lo" accept
        ct state invalid drop
        jump filter_FORWARD_ZONES
        reject with icmpx admin-prohibited
    }
}"#;

/// As ufw 0.36 has it, less what it logs, drops in silence and lets through for ICMP and DHCP.
const UFW: &str = "
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:ufw-before-input - [0:0]
:ufw-before-forward - [0:0]
:ufw-user-input - [0:0]
:ufw-user-forward - [0:0]
:ufw-reject-input - [0:0]
:ufw-not-local - [0:0]
-A INPUT -j ufw-before-input
-A INPUT -j ufw-reject-input
-A FORWARD -j ufw-before-forward
-A ufw-before-input -i lo -j ACCEPT
-A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-input -m conntrack --ctstate INVALID -j DROP
-A ufw-before-input -j ufw-not-local
-A ufw-before-input -j ufw-user-input
-A ufw-not-local -m addrtype --dst-type LOCAL -j RETURN
-A ufw-not-local -j DROP
-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-forward -j ufw-user-forward
COMMIT
";

/// As of old, before there were zones: by the last rule, where the policy accepts.
const PLAIN: &str = "
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p tcp --dport 22 -j ACCEPT
-A INPUT -j REJECT --reject-with icmp-host-prohibited
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -m comment --comment last -j REJECT --reject-with icmp-host-prohibited
COMMIT
";

const BY_HAND: &str = r#"
table inet fence {
    chain in { type filter hook input priority 0; policy drop; ct state established,related accept; iif "lo" accept; }
    chain through { type filter hook forward priority 0; policy drop; ct state established,related accept; }
}"#;

/// A firewall: its rules, and what loads them.
#[derive(Debug, Clone, Copy)]
struct Firewall(&'static str, &'static str);

impl Firewall {
    fn comes_up(self, lab: &Lab) {
        let file = lab.state.path().join("rules");
        std::fs::write(&file, self.0).unwrap();
        let (program, args) = self.1.split_once(' ').unwrap();
        lab.node.command(program, &args.replace("FILE", &file.display().to_string())).unwrap();
    }
}

/// All commands that an advice names.
fn commands(advice: &str) -> Vec<String> {
    let mut commands: Vec<String> = advice.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    assert!(!commands.is_empty(), "{advice}");
    if let Some(again) = advice.split("the same with ").nth(1) {
        let (new, old) = again.split_once(" for ").unwrap_or(("oif", "iif"));
        commands.extend(commands.clone().iter().map(|command| command.replacen(old, new, 1)));
    }
    commands
}

/// Does what a command does; for ufw and firewalld, which needn't be installed, what theirs were seen to do.
fn run(lab: &Lab, command: &str, iptables: &str) {
    let words: Vec<&str> = command.split(' ').collect();
    let filter = |args: String| drop(lab.node.command(iptables, &args).unwrap());
    match words[..] {
        ["ufw", "route", "allow", "from", range] => filter(format!("-A ufw-user-forward -s {range} -j ACCEPT")),
        ["ufw", "route", "allow", "to", range] => filter(format!("-A ufw-user-forward -d {range} -j ACCEPT")),
        ["ufw", "allow", "from", range, "to", "any", "port", port] => {
            for protocol in ["tcp", "udp"] {
                filter(format!("-A ufw-user-input -p {protocol} --dport {port} -s {range} -j ACCEPT"));
            }
        }
        ["firewall-cmd", "--permanent", "--zone=trusted", ref sources @ ..] => {
            for source in sources.iter().map(|option| option.strip_prefix("--add-source=").unwrap()) {
                let family = if source.contains(':') { "ip6" } else { "ip" };
                for (hook, short) in [("INPUT", "IN"), ("FORWARD", "FWD")] {
                    let rule = format!("{family} saddr {source} goto filter_{short}_trusted");
                    lab.node.nft(&format!("insert rule inet firewalld filter_{hook}_ZONES {rule}"));
                }
            }
        }
        ["firewall-cmd", "--reload"] => {}
        _ => drop(lab.node.command(words[0], &words[1..].join(" ")).unwrap()),
    }
}

fn told(network: &Network) -> Vec<Obstacle> {
    wait(network.obstacles()).unwrap()
}

#[rstest]
#[case::firewalld(Firewall(FIREWALLD, "nft -f FILE"), "firewall-cmd --permanent")]
#[case::ufw(Firewall(UFW, "iptables-nft-restore FILE"), "ufw ")]
#[case::ufw_of_old(Firewall(UFW, "iptables-legacy-restore FILE"), "ufw ")]
#[case::iptables(Firewall(PLAIN, "iptables-nft-restore FILE"), "iptables-nft -I")]
#[case::iptables_of_old(Firewall(PLAIN, "iptables-legacy-restore FILE"), "iptables-legacy -I")]
#[case::nftables(Firewall(BY_HAND, "nft -f FILE"), "nft insert rule inet fence")]
fn what_is_said_to_do_about_a_firewall_helps(
    #[case] firewall: Firewall,
    #[case] begins: &str,
    #[values(false, true)] routed: bool,
) {
    let lab = Lab::new();
    let network = lab.open(Settings { resolver: true, ..if routed { lab.routed() } else { lab.settings() } });
    let pod = Pod::new("pod").port("8080:80/TCP");
    let (_, _pod) = pod.up(&network);
    let _world = lab.outside.serve(Tcp, &format!("{OUTSIDE}:80"), "world");
    let _resolver = lab.node.serve(Udp, RESOLVER, "resolver");
    let (world, node) = (format!("{OUTSIDE}:80"), format!("{NODE}:8080"));
    assert_eq!(told(&network), []);

    firewall.comes_up(&lab);
    pod.netns.assert_unreachable(Tcp, &world);
    pod.netns.assert_unreachable(Udp, RESOLVER);
    let mut found = told(&network);
    found.sort_by_key(|obstacle| obstacle.hook == Hook::Forward);
    assert_eq!(found.iter().map(|obstacle| obstacle.hook).collect::<Vec<_>>(), [Hook::Input, Hook::Forward], "{found:?}");
    for obstacle in &found {
        let said = obstacle.to_string();
        assert!(said.contains(&obstacle.chain) && said.contains(&format!(": `{begins}")), "{said}");
        assert!(!begins.contains("iptables") || said.contains(PODS), "{said}");
        assert_eq!(said.contains("(legacy)"), firewall.1.contains("legacy"), "{said}");
        println!("{said}");
    }

    let iptables = if firewall.1.contains("legacy") { "iptables-legacy" } else { "iptables-nft" };
    commands(&found[0].advice).iter().for_each(|command| run(&lab, command, iptables));
    assert!(pod.netns.ask(Udp, RESOLVER).is_ok_and(|answer| answer.starts_with("resolver ")));
    commands(&found[1].advice).iter().for_each(|command| run(&lab, command, iptables));
    assert_eq!(pod.netns.ask(Tcp, &world), Ok(format!("world {NODE}")));
    assert_eq!(lab.outside.ask(Tcp, &node), Ok(format!("pod ::ffff:{OUTSIDE}")));
    if begins.starts_with("iptables") {
        let rules = lab.node.command(iptables, "-S").unwrap();
        assert!(rules.contains(&format!("-A FORWARD -s {PODS} -j ACCEPT")), "its own program still reads them: {rules}");
    }
}

#[test]
fn what_is_for_the_node_is_told_where_a_resolver_answers_there() {
    let lab = Lab::new();
    let network = lab.open(lab.routed());
    Firewall(FIREWALLD, "nft -f FILE").comes_up(&lab);
    Firewall(UFW, "iptables-legacy-restore FILE").comes_up(&lab);
    assert!(told(&network).iter().all(|obstacle| obstacle.hook == Hook::Forward), "{:?}", told(&network));
    assert_eq!(told(&network).len(), 2);
}

/// A network without IPv6 doesn't mind what becomes of it.
#[test]
fn only_families_that_pods_have_count() {
    let lab = Lab::new();
    let network = lab.open(lab.settings());
    for program in ["ip6tables-nft", "ip6tables-legacy"] {
        lab.node.command(program, "-P FORWARD DROP").unwrap();
    }
    assert_eq!(told(&network), []);
    let second =
        Settings { bridge: "pods1".into(), table: "second".into(), ranges: vec![lab::range("fd00:89::/64")], ..lab.settings() };
    let second = lab.open(Settings { state_dir: lab.state.path().join("second"), ..second });
    let advice: Vec<String> = told(&second).into_iter().map(|obstacle| obstacle.advice).collect();
    assert_eq!(advice.len(), 2, "{advice:?}");
    assert!(advice[0].starts_with("`ip6tables-nft -I FORWARD -s fd00:89::/64 -j ACCEPT`"), "{advice:?}");
    assert!(advice[1].starts_with("`ip6tables-legacy -I FORWARD -s fd00:89::/64 -j ACCEPT`"), "{advice:?}");
}

/// The first rule that doesn't ask anything of a packet ends a chain; where there is none, the policy does.
#[rstest]
#[case("drop", &[], true)]
#[case("drop", &["ct state established,related accept"], true)]
#[case("drop", &["ct state established,related accept", "accept"], false)]
#[case("accept", &["ct state established,related accept"], false)]
#[case("accept", &["ct state established,related accept", "drop"], true)]
#[case("accept", &["counter log prefix gone reject with icmpx admin-prohibited comment last"], true)]
#[case("accept", &["tcp dport 22 drop", "limit rate 1/second reject", "iifname lo drop"], false)]
#[case("accept", &["counter accept", "drop"], false)]
#[case("accept", &["return", "drop"], false)]
#[case("drop", &["return", "accept"], true)]
#[case("accept", &["jump other"], false)]
fn a_chain_is_judged_by_what_ends_it(#[case] policy: &str, #[case] rules: &[&str], #[case] drops: bool) {
    let lab = Lab::new();
    let network = lab.open(lab.settings());
    lab.node.nft("add table inet fence");
    lab.node.nft("add chain inet fence other");
    lab.node.nft("add rule inet fence other drop");
    lab.node.nft(&format!("add chain inet fence through {{ type filter hook forward priority 0; policy {policy}; }}"));
    for rule in rules {
        lab.node.nft(&format!("add rule inet fence through {rule}"));
    }
    assert_eq!(told(&network).len(), usize::from(drops), "{}", lab.node.nft("list table inet fence"));
}

#[test]
fn a_firewall_that_comes_or_goes_is_told_of() {
    let lab = Lab::new();
    let network = lab.open(lab.settings());
    let mut firewalls = wait(network.firewalls()).unwrap();
    assert!(firewalls.borrow_and_update().is_empty());
    let mut next = || {
        eventually("it is told", || firewalls.has_changed().unwrap());
        firewalls
            .borrow_and_update()
            .iter()
            .map(|chain| format!("{} {} {}", chain.family, chain.table, chain.chain))
            .collect::<Vec<_>>()
    };
    lab.node.nft("add table ip6 mangle");
    lab.node.nft("add table ip filter");
    lab.node.nft("add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }");
    assert_eq!(next(), ["ip filter FORWARD"]);
    lab.node.nft("add table inet firewalld");
    lab.node.nft("add chain inet firewalld filter_FORWARD { type filter hook forward priority 10; policy accept; }");
    lab.node.nft("add rule inet firewalld filter_FORWARD ct state established accept");
    lab.node.nft("add rule inet firewalld filter_FORWARD reject");
    assert_eq!(next().len(), 2, "by a rule that came to a chain that was there");
    lab.node.nft("add chain ip filter FORWARD { policy accept; }");
    assert_eq!(next(), ["inet firewalld filter_FORWARD"]);
    lab.node.nft("flush chain inet firewalld filter_FORWARD");
    assert!(next().is_empty(), "its rules go");
    lab.node.nft("add rule inet firewalld filter_FORWARD drop");
    assert_eq!(next(), ["inet firewalld filter_FORWARD"]);
    lab.node.nft("delete table inet firewalld");
    assert!(next().is_empty());
}

/// Rules of iptables' old kind come without a word: they are found when pods come.
#[test]
fn iptables_of_the_old_kind_are_found_when_a_pod_comes() {
    let lab = Lab::new();
    let network = lab.open(lab.routed());
    let mut firewalls = wait(network.firewalls()).unwrap();
    lab.node.command("iptables-legacy", "-P FORWARD DROP").unwrap();
    let pod = Pod::new("pod");
    pod.attach(&network).unwrap();
    eventually("it is told", || firewalls.has_changed().unwrap());
    let found = firewalls.borrow_and_update()[0].to_string();
    assert!(found.contains("iptables (legacy) chain FORWARD of table filter"), "{found}");
}
