//! What other people's tables may do to pods: a base chain at the forward hook whose policy is to drop (ufw, firewalld, Docker)
//! has the last word, whatever ours accepts. It is only looked for and told: their rules are theirs. And whoever has a chain where
//! packets between pods pass is to see them: then none goes past it.

use std::fmt;

use netlink_sys::Socket;

use super::wire::{Attrs, Op, dump};
use crate::{
    error::Refused,
    netlink::{Answer, Wire, attributes, until_whole},
    settings::Settings,
};

const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const HOOK_NUMBER: u16 = 1;
const HOOK_INPUT: u32 = 1;
const HOOK_FORWARD: u32 = 2;
const HOOK_OUTPUT: u32 = 3;
const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_ARP: u8 = 3;
const NFPROTO_NETDEV: u8 = 5;
const NFPROTO_BRIDGE: u8 = 7;
const NFPROTO_IPV6: u8 = 10;
const NF_DROP: u32 = 0;

/// A chain that drops what it forwards, unless one of its rules accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// `ip`, `ip6` or `inet`.
    pub family: &'static str,
    /// Its table.
    pub table: String,
    /// Its name.
    pub chain: String,
    /// The links that it must let through, as nftables names them: `name nodeagent0`, `group 5`.
    pub links: String,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Obstacle { family, table, chain, links } = self;
        write!(
            f,
            "the nftables chain {chain} of table {family} {table} drops forwarded packets by default, pods' too unless a rule accepts \
             them: `nft insert rule {family} {table} {chain} iif{links} accept`, and the same with oif{links}"
        )
    }
}

/// All that stand in the way of a network.
pub(crate) fn obstacles(wire: &mut Wire, socket: &Socket, settings: &Settings) -> Result<Vec<Obstacle>, Refused> {
    let links = settings.group().map_or_else(|| format!("name {}", settings.bridge), |group| format!("group {group}"));
    let chains = until_whole(|| base_chains(wire, socket, &settings.table))?;
    Ok(chains.into_iter().filter_map(|chain| chain.obstacle(&links)).collect())
}

/// A chain of somebody else that what pods send each other passes, if there is one: in words.
pub(crate) fn onlooker(wire: &mut Wire, socket: &Socket, own: &str) -> Result<Option<String>, Refused> {
    let chains = until_whole(|| base_chains(wire, socket, own))?;
    let sees = chains.into_iter().find(BaseChain::sees_forwarded);
    let seen = sees.map(|chain| format!("chain {} of table {} {}", chain.name, chain.family_name(), chain.table));
    Ok(seen.or_else(legacy).map(|who| format!("{who} sees what is forwarded")))
}

/// A table of iptables' old kind, which nftables doesn't know.
fn legacy() -> Option<String> {
    ["ip", "ip6"].into_iter().find_map(|family| {
        let names = std::fs::read_to_string(format!("/proc/thread-self/net/{family}_tables_names")).ok()?;
        names.lines().next().map(|table| format!("table {table} of {family}tables (legacy)"))
    })
}

/// A chain that packets come to by a hook.
struct BaseChain {
    family: u8,
    table: String,
    name: String,
    hook: u32,
    drops: bool,
}

impl BaseChain {
    fn of(message: &[u8]) -> Option<BaseChain> {
        let body = message.get(20..)?;
        let value = |wanted: u16| attributes(body).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
        let hook = attributes(value(CHAIN_HOOK)?).find(|(kind, _)| *kind == HOOK_NUMBER)?.1;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned();
        Some(BaseChain {
            family: *message.get(16)?,
            table: text(value(CHAIN_TABLE)?),
            name: text(value(CHAIN_NAME)?),
            hook: number(hook)?,
            drops: value(CHAIN_POLICY).and_then(number) == Some(NF_DROP),
        })
    }

    fn family_name(&self) -> &'static str {
        match self.family {
            NFPROTO_INET => "inet",
            NFPROTO_IPV4 => "ip",
            NFPROTO_ARP => "arp",
            NFPROTO_NETDEV => "netdev",
            NFPROTO_BRIDGE => "bridge",
            _ => "ip6",
        }
    }

    fn is_of_ip(&self) -> bool {
        [NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6].contains(&self.family)
    }

    /// Whether what one pod sends to another passes it: what is for the node itself, or from it, doesn't count.
    fn sees_forwarded(&self) -> bool {
        match self.family {
            // Pods that may go past it are in no bridge.
            NFPROTO_ARP | NFPROTO_BRIDGE => false,
            NFPROTO_NETDEV => true,
            _ => ![HOOK_INPUT, HOOK_OUTPUT].contains(&self.hook),
        }
    }

    fn obstacle(self, links: &str) -> Option<Obstacle> {
        let drops = self.is_of_ip() && self.hook == HOOK_FORWARD && self.drops;
        let family = self.family_name();
        drops.then(|| Obstacle { family, table: self.table, chain: self.name, links: links.into() })
    }
}

/// All of other tables.
fn base_chains(wire: &mut Wire, socket: &Socket, own: &str) -> Result<Vec<BaseChain>, Refused> {
    let mut found = Vec::new();
    let mut refused = None;
    wire.exchange(socket, &dump(Op::GetChain, &Attrs::default()), |_, answer| match answer {
        Answer::Message(message) => {
            found.extend(BaseChain::of(message).filter(|chain| chain.family != NFPROTO_INET || chain.table != own));
        }
        Answer::Refused(refusal) => refused = Some(refusal),
        Answer::Ack => {}
    })?;
    refused.map_or(Ok(found), Err)
}

fn number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}
