//! What other firewalls may do to pods: a chain of theirs that in the end drops what is forwarded (ufw, firewalld, Docker) has the last
//! word, whatever ours accepts, and one that drops what is for the node keeps pods from its resolver. They are only looked for and told:
//! their rules are theirs. And whoever has a chain where packets between pods pass is to see them: then none goes past it.

use std::fmt;

use netlink_sys::Socket;

use super::{
    chain::{BaseChain, Chains, Hook, Judged},
    legacy::{self, Filter},
};
use crate::{cidr::Cidr, error::Refused, netlink::Wire, settings::Settings};

/// firewalld's, as long as it loads its rules: gone in a moment.
const FIREWALLD_WHILE_LOADING: &str = "firewalld_policy_drop";

/// A chain that drops what comes to it, unless one of its rules accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// What it drops.
    pub hook: Hook,
    /// `ip`, `ip6` or `inet`.
    pub family: &'static str,
    /// Its table.
    pub table: String,
    /// Its name.
    pub chain: String,
    /// What to do about it.
    pub advice: String,
    owner: Owner,
}

/// Who fills a chain: rules that are brought in past him are lost when he loads his own, or he can't read them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Firewalld,
    Ufw(Kernel),
    Iptables(Kernel),
    Unknown,
}

/// Where iptables keep a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kernel {
    Nftables,
    Legacy,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Obstacle { hook, family, table, chain, advice, owner } = self;
        match owner {
            Owner::Ufw(Kernel::Legacy) | Owner::Iptables(Kernel::Legacy) => {
                write!(f, "the {family}tables (legacy) chain {chain} of table {table}")
            }
            _ => write!(f, "the nftables chain {chain} of table {family} {table}"),
        }?;
        match hook {
            Hook::Forward => write!(f, " drops forwarded packets by default, pods' too unless a rule accepts them: {advice}"),
            Hook::Input => write!(
                f,
                " drops packets for this node by default, pods' questions to its DNS resolver too unless a rule accepts them: {advice}"
            ),
        }
    }
}

/// All that stand in the way of a network, and the chains whose rules said so.
pub(crate) struct Survey {
    pub(crate) obstacles: Vec<Obstacle>,
    pub(crate) judged: Judged,
}

/// Looks at all chains that have a say.
pub(crate) fn survey(wire: &mut Wire, socket: &Socket, settings: &Settings) -> Result<Survey, Refused> {
    let network = Network::of(settings);
    let chains = Chains::list(wire, socket, &settings.table)?;
    let mut found = Survey { obstacles: Vec::new(), judged: Judged::default() };
    for chain in chains.base.iter().filter(|chain| chain.table != FIREWALLD_WHILE_LOADING) {
        let seen = network.seen_by(|v4| chain.sees(v4));
        let Some(hook) = chain.hook().filter(|hook| network.minds(*hook) && !seen.is_empty()) else { continue };
        found.judged.add(chain);
        if chain.drops(wire, socket)? {
            let (owner, family) = (owner(&chains, chain), chain.family_name());
            found.obstacles.push(network.obstacle(hook, owner, (family, &chain.table, &chain.name), &seen));
        }
    }
    for filter in legacy::filters()? {
        found.obstacles.extend(network.of_legacy(&filter));
    }
    Ok(found)
}

/// A chain of somebody else that what pods send each other passes, if there is one: in words.
pub(crate) fn onlooker(wire: &mut Wire, socket: &Socket, own: &str) -> Result<Option<String>, Refused> {
    let sees = Chains::list(wire, socket, own)?.base.into_iter().find(BaseChain::sees_forwarded);
    let seen = sees.map(|chain| format!("chain {} of table {} {}", chain.name, chain.family_name(), chain.table));
    Ok(seen.or_else(legacy::any).map(|who| format!("{who} sees what is forwarded")))
}

/// By what each is known: firewalld by its table, ufw by its chains, iptables by the names that it gives.
fn owner(chains: &Chains, chain: &BaseChain) -> Owner {
    let of_iptables = chain.table == "filter" && chain.family_name() != "inet" && ["INPUT", "FORWARD"].contains(&&*chain.name);
    match () {
        () if chain.table == "firewalld" => Owner::Firewalld,
        () if chains.is_ufws(chain) => Owner::Ufw(Kernel::Nftables),
        () if of_iptables => Owner::Iptables(Kernel::Nftables),
        () => Owner::Unknown,
    }
}

/// What of a network others' rules may speak of.
struct Network<'a> {
    settings: &'a Settings,
    /// Its links, as nftables name them: `name nodeagent0`, `group 5`.
    links: String,
}

impl Network<'_> {
    fn of(settings: &Settings) -> Network<'_> {
        let links = settings.group().map_or_else(|| format!("name {}", settings.bridge), |group| format!("group {group}"));
        Network { settings, links }
    }

    /// Whether it matters what is dropped there.
    fn minds(&self, hook: Hook) -> bool {
        hook == Hook::Forward || self.settings.resolver
    }

    /// The pods' ranges of families that somebody sees.
    fn seen_by(&self, sees: impl Fn(bool) -> bool) -> Vec<Cidr> {
        self.settings.ranges.iter().map(|range| range.subnet).filter(|subnet| sees(subnet.is_v4())).collect()
    }

    fn of_legacy(&self, filter: &Filter) -> Vec<Obstacle> {
        let seen = self.seen_by(|v4| v4 == filter.kind.v4);
        let owner = if filter.is_ufws() { Owner::Ufw(Kernel::Legacy) } else { Owner::Iptables(Kernel::Legacy) };
        let chains = [(Hook::Forward, "FORWARD"), (Hook::Input, "INPUT")].into_iter();
        let drop = chains.filter(|(hook, _)| self.minds(*hook) && !seen.is_empty() && filter.drops(*hook));
        drop.map(|(hook, chain)| self.obstacle(hook, owner, (filter.kind.name(), "filter", chain), &seen)).collect()
    }

    fn obstacle(
        &self,
        hook: Hook,
        owner: Owner,
        (family, table, chain): (&'static str, &str, &str),
        ranges: &[Cidr],
    ) -> Obstacle {
        let links = &self.links;
        let ranges: Vec<String> = ranges.iter().map(ToString::to_string).collect();
        let advice = match (owner, hook) {
            (Owner::Firewalld, _) => {
                let sources: String = ranges.iter().map(|range| format!(" --add-source={range}")).collect();
                format!("`firewall-cmd --permanent --zone=trusted{sources}`, then `firewall-cmd --reload`")
            }
            (Owner::Ufw(_), Hook::Forward) => {
                format!("{}, and the same with to for from", each(&ranges, |range| format!("ufw route allow from {range}")))
            }
            (Owner::Ufw(_), Hook::Input) => each(&ranges, |range| format!("ufw allow from {range} to any port 53")),
            (Owner::Iptables(kernel), Hook::Forward) => {
                let (program, ranges) = (program(family, kernel), ranges.join(","));
                format!("`{program} -I {chain} -s {ranges} -j ACCEPT`, and the same with -d for -s")
            }
            (Owner::Iptables(kernel), Hook::Input) => {
                let (program, ranges) = (program(family, kernel), ranges.join(","));
                format!("`{program} -I {chain} -s {ranges} -p udp --dport 53 -j ACCEPT`, and the same with tcp for udp")
            }
            (Owner::Unknown, Hook::Forward) => {
                format!("`nft insert rule {family} {table} {chain} iif{links} accept`, and the same with oif{links}")
            }
            (Owner::Unknown, Hook::Input) => {
                format!(
                    "`nft insert rule {family} {table} {chain} iif{links} udp dport 53 accept`, and the same with tcp for udp"
                )
            }
        };
        Obstacle { hook, family, table: table.into(), chain: chain.into(), advice, owner }
    }
}

fn each(ranges: &[String], command: impl Fn(&String) -> String) -> String {
    ranges.iter().map(|range| format!("`{}`", command(range))).collect::<Vec<_>>().join(", ")
}

/// By its exact name: which of the two `iptables` is differs from host to host.
fn program(family: &str, kernel: Kernel) -> String {
    let kind = match kernel {
        Kernel::Nftables => "nft",
        Kernel::Legacy => "legacy",
    };
    format!("{family}tables-{kind}")
}
