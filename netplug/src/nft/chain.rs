//! Base chains of other people's tables, and what becomes of a packet that none of a chain's rules speaks of. linux/netfilter/nf_tables.h
//! is the reference.

use std::collections::HashSet;

use netlink_sys::Socket;

use super::wire::{Attrs, NFPROTO_INET, Op, dump, rule_of};
use crate::{
    error::Refused,
    netlink::{Answer, Wire, attributes, until_whole},
};

const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const HOOK_NUMBER: u16 = 1;
const HOOK_INPUT: u32 = 1;
const HOOK_FORWARD: u32 = 2;
const HOOK_OUTPUT: u32 = 3;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_ARP: u8 = 3;
const NFPROTO_NETDEV: u8 = 5;
const NFPROTO_BRIDGE: u8 = 7;
const NFPROTO_IPV6: u8 = 10;

const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const XT_NAME: u16 = 1;
const IMMEDIATE_DATA: u16 = 2;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
/// NFT_RETURN: of a base chain, to its policy.
const NFT_RETURN: u32 = -5i32 as u32;

/// Where in a packet's way a chain is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hook {
    /// Of packets for the node itself.
    Input,
    /// Of those that it passes on.
    Forward,
}

/// What a rule does to every packet that comes to it, or a chain's policy to those that are left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    Accept,
    Drop,
    /// To the policy.
    Return,
}

/// A chain that packets come to by a hook.
pub(super) struct BaseChain {
    family: u8,
    pub(super) table: String,
    pub(super) name: String,
    hook: u32,
    policy: Ending,
}

/// All chains of other tables.
pub(super) struct Chains {
    pub(super) base: Vec<BaseChain>,
    /// Tables in which ufw has its chains.
    ufw: HashSet<(u8, String)>,
}

/// Chains by whose rules something was judged: when these change, that is to be done anew.
#[derive(Debug, Default)]
pub(crate) struct Judged(HashSet<(u8, Vec<u8>, Vec<u8>)>);

impl Judged {
    /// Whether a message tells of a rule of one of these.
    pub(crate) fn has(&self, message: &[u8]) -> bool {
        let of = |(table, chain): (&[u8], &[u8])| (message.get(16).copied().unwrap_or_default(), table.to_vec(), chain.to_vec());
        !self.0.is_empty() && rule_of(message).is_some_and(|rule| self.0.contains(&of(rule)))
    }

    pub(super) fn add(&mut self, chain: &BaseChain) {
        self.0.insert((chain.family, chain.table.clone().into_bytes(), chain.name.clone().into_bytes()));
    }
}

impl BaseChain {
    fn of(family: u8, table: String, name: String, message: &[u8]) -> Option<BaseChain> {
        let hook = attributes(value(message, CHAIN_HOOK)?).find(|(kind, _)| *kind == HOOK_NUMBER)?.1;
        let drops = value(message, CHAIN_POLICY).and_then(number) == Some(NF_DROP);
        let policy = if drops { Ending::Drop } else { Ending::Accept };
        Some(BaseChain { family, table, name, hook: number(hook)?, policy })
    }

    pub(super) fn family_name(&self) -> &'static str {
        match self.family {
            NFPROTO_INET => "inet",
            NFPROTO_IPV4 => "ip",
            NFPROTO_ARP => "arp",
            NFPROTO_NETDEV => "netdev",
            NFPROTO_BRIDGE => "bridge",
            _ => "ip6",
        }
    }

    /// Whether it sees packets of IPv4 (or else IPv6).
    pub(super) fn sees(&self, v4: bool) -> bool {
        self.family == NFPROTO_INET || self.family == if v4 { NFPROTO_IPV4 } else { NFPROTO_IPV6 }
    }

    pub(super) fn hook(&self) -> Option<Hook> {
        match self.hook {
            HOOK_INPUT => Some(Hook::Input),
            HOOK_FORWARD => Some(Hook::Forward),
            _ => None,
        }
    }

    /// Whether what one pod sends to another passes it: what is for the node itself, or from it, doesn't count.
    pub(super) fn sees_forwarded(&self) -> bool {
        match self.family {
            // Pods that may go past it are in no bridge.
            NFPROTO_ARP | NFPROTO_BRIDGE => false,
            NFPROTO_NETDEV => true,
            _ => ![HOOK_INPUT, HOOK_OUTPUT].contains(&self.hook),
        }
    }

    /// Whether what no rule with a condition speaks of is dropped: by the first rule without one (firewalld's last), or by the policy.
    pub(super) fn drops(&self, wire: &mut Wire, socket: &Socket) -> Result<bool, Refused> {
        let ending = until_whole(|| self.ending(wire, socket))?;
        Ok(ending.filter(|ending| *ending != Ending::Return).unwrap_or(self.policy) == Ending::Drop)
    }

    fn ending(&self, wire: &mut Wire, socket: &Socket) -> Result<Option<Ending>, Refused> {
        let mut attrs = Attrs::default();
        attrs.str(RULE_TABLE, &self.table).str(RULE_CHAIN, &self.name);
        let own = Some((self.table.as_bytes(), self.name.as_bytes()));
        let mut first = None;
        list(wire, socket, &dump(Op::GetRule, self.family, &attrs), |rule| {
            // Kernels of old list all rules of the table.
            if first.is_none() && rule_of(rule) == own {
                first = ending_of(rule);
            }
        })?;
        Ok(first)
    }
}

impl Chains {
    /// Those of all tables but `own` (of family inet).
    pub(super) fn list(wire: &mut Wire, socket: &Socket, own: &str) -> Result<Chains, Refused> {
        until_whole(|| {
            let mut chains = Chains { base: Vec::new(), ufw: HashSet::new() };
            list(wire, socket, &dump(Op::GetChain, 0, &Attrs::default()), |message| {
                let Some((table, name)) = value(message, CHAIN_TABLE).zip(value(message, CHAIN_NAME)) else { return };
                let (family, table, name) = (message.get(16).copied().unwrap_or_default(), text(table), text(name));
                if family == NFPROTO_INET && table == own {
                    return;
                }
                if is_ufws(&name) {
                    chains.ufw.insert((family, table.clone()));
                }
                chains.base.extend(BaseChain::of(family, table, name, message));
            })?;
            Ok(chains)
        })
    }

    /// Whether ufw fills a chain's table.
    pub(super) fn is_ufws(&self, chain: &BaseChain) -> bool {
        self.ufw.contains(&(chain.family, chain.table.clone()))
    }
}

/// Whether a chain is one that ufw makes.
pub(super) fn is_ufws(chain: &str) -> bool {
    chain.starts_with("ufw-") || chain.starts_with("ufw6-")
}

/// What becomes of every packet that comes to a rule; None: it depends on the packet, or the next rule is asked.
fn ending_of(rule: &[u8]) -> Option<Ending> {
    for (_, expression) in attributes(value(rule, RULE_EXPRESSIONS)?) {
        let part = |wanted: u16| attributes(expression).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
        let (name, data) = (text(part(EXPRESSION_NAME)?), part(EXPRESSION_DATA).unwrap_or_default());
        let xt_name = || attributes(data).find(|(kind, _)| *kind == XT_NAME).map(|(_, name)| text(name)).unwrap_or_default();
        match name.as_str() {
            "counter" | "last" | "log" => {}
            "reject" => return Some(Ending::Drop),
            // iptables' own matches and targets, as iptables-nft has them here.
            "match" if xt_name() == "comment" => {}
            "target" if xt_name() == "REJECT" => return Some(Ending::Drop),
            "target" if ["LOG", "NFLOG"].contains(&xt_name().as_str()) => {}
            "immediate" => match verdict(data) {
                Some(NF_DROP) => return Some(Ending::Drop),
                Some(NF_ACCEPT) => return Some(Ending::Accept),
                Some(NFT_RETURN) => return Some(Ending::Return),
                // To another chain.
                Some(_) => return None,
                // A value for a register.
                None => {}
            },
            // A condition, or nothing that is known here.
            _ => return None,
        }
    }
    None
}

fn verdict(immediate: &[u8]) -> Option<u32> {
    let nested = |bytes, wanted| attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    number(nested(nested(nested(immediate, IMMEDIATE_DATA)?, DATA_VERDICT)?, VERDICT_CODE)?)
}

/// All that the kernel lists for one question.
fn list(wire: &mut Wire, socket: &Socket, question: &[u8], mut each: impl FnMut(&[u8])) -> Result<(), Refused> {
    let mut refused = None;
    wire.exchange(socket, question, |_, answer| match answer {
        Answer::Message(message) => each(message),
        Answer::Refused(refusal) => refused = Some(refusal),
        Answer::Ack => {}
    })?;
    refused.map_or(Ok(()), Err)
}

/// An attribute of a message.
fn value(message: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(message.get(20..)?).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
}

fn number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::wire::message;

    fn news(op: Op, family: u8, table: &str, chain: &str) -> Vec<u8> {
        let mut attrs = Attrs::of_table(table);
        attrs.str(RULE_CHAIN, chain);
        let mut packet = Vec::new();
        message(&mut packet, 10 << 8 | op as u16, 0, 7, family, 0, &attrs.0);
        packet
    }

    #[test]
    fn only_rules_of_chains_that_were_judged_are_news() {
        let chain = BaseChain {
            family: NFPROTO_INET,
            table: "firewalld".into(),
            name: "filter_FORWARD".into(),
            hook: HOOK_FORWARD,
            policy: Ending::Accept,
        };
        let mut judged = Judged::default();
        let rule = news(Op::NewRule, NFPROTO_INET, "firewalld", "filter_FORWARD");
        assert!(!judged.has(&rule));
        judged.add(&chain);
        assert!(judged.has(&rule) && judged.has(&news(Op::DelRule, NFPROTO_INET, "firewalld", "filter_FORWARD")));
        for other in [
            news(Op::NewRule, NFPROTO_INET, "firewalld", "filter_FORWARD_ZONES"),
            news(Op::NewRule, NFPROTO_INET, "nodeagent", "filter_FORWARD"),
            news(Op::NewRule, NFPROTO_IPV4, "firewalld", "filter_FORWARD"),
            news(Op::NewElements, NFPROTO_INET, "firewalld", "filter_FORWARD"),
            Vec::new(),
        ] {
            assert!(!judged.has(&other));
        }
    }
}
