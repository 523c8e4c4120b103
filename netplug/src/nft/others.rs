//! What other people's tables may do to pods: a base chain at the forward hook whose policy is to drop (ufw, firewalld, Docker)
//! has the last word, whatever ours accepts. It is only looked for and told: their rules are theirs.

use std::fmt;

use netlink_sys::Socket;

use super::wire::{Attrs, Op, dump};
use crate::{
    error::Refused,
    netlink::{Answer, Wire, attributes, until_whole},
};

const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const HOOK_NUMBER: u16 = 1;
const HOOK_FORWARD: u32 = 2;
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
    /// The bridge that it must let through.
    pub bridge: String,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Obstacle { family, table, chain, bridge } = self;
        write!(
            f,
            "the nftables chain {chain} of table {family} {table} drops forwarded packets by default, pods' too unless a rule accepts \
             them: `nft insert rule {family} {table} {chain} iifname {bridge} accept`, and the same with oifname"
        )
    }
}

/// All that stand in the way.
pub(crate) fn obstacles(wire: &mut Wire, socket: &Socket, own: &str, bridge: &str) -> Result<Vec<Obstacle>, Refused> {
    until_whole(|| list(wire, socket, own, bridge))
}

fn list(wire: &mut Wire, socket: &Socket, own: &str, bridge: &str) -> Result<Vec<Obstacle>, Refused> {
    let mut found = Vec::new();
    let mut refused = None;
    wire.exchange(socket, &dump(Op::GetChain, &Attrs::default()), |_, answer| match answer {
        Answer::Message(message) => {
            found.extend(obstacle(message, bridge).filter(|chain| chain.family != "inet" || chain.table != own));
        }
        Answer::Refused(refusal) => refused = Some(refusal),
        Answer::Ack => {}
    })?;
    refused.map_or(Ok(found), Err)
}

fn obstacle(message: &[u8], bridge: &str) -> Option<Obstacle> {
    let family = match message.get(16)? {
        1 => "inet",
        2 => "ip",
        10 => "ip6",
        _ => return None,
    };
    let body = message.get(20..)?;
    let value = |wanted: u16| attributes(body).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let hook = attributes(value(CHAIN_HOOK)?).find(|(kind, _)| *kind == HOOK_NUMBER)?.1;
    let drops = number(hook) == Some(HOOK_FORWARD) && number(value(CHAIN_POLICY)?) == Some(NF_DROP);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned();
    drops.then_some(Obstacle { family, table: text(value(CHAIN_TABLE)?), chain: text(value(CHAIN_NAME)?), bridge: bridge.into() })
}

fn number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}
