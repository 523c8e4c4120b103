//! iptables' tables of the old kind, which nftables don't know: what their chains do in the end, by getsockopt(2). A table is one block of
//! bytes, entry behind entry: linux/netfilter/x_tables.h, linux/netfilter_ipv4/ip_tables.h and linux/netfilter_ipv6/ip6_tables.h.

use std::io;

use podholder::sys::xtables::{self, Family};
use rustix::io::Errno;

use super::chain::{Ending, Hook, is_ufws};
use crate::{error::Refused, netlink::u32_at};

/// XT_TABLE_MAXNAMELEN
const NAME: usize = 32;
/// Of struct ipt_getinfo: the hooks that there are, where each begins, where each has its policy, and how many bytes all entries have.
const VALID_HOOKS: usize = NAME;
const HOOK_ENTRY: usize = 36;
const UNDERFLOW: usize = 56;
const SIZE: usize = 80;
const INFO: usize = 84;
/// struct ipt_get_entries, before the entries.
const ENTRIES: usize = 40;
/// Of struct xt_entry_target and xt_entry_match: the size, the name, what belongs to it.
const XT_NAME: std::ops::Range<usize> = 2..31;
const XT_DATA: usize = 32;
/// The verdict of a target without a name: -1 less NF_DROP or NF_ACCEPT, XT_RETURN; from 0 on it is where another chain begins.
const DROP: i32 = -1;
const ACCEPT: i32 = -2;
const RETURN: i32 = -5;

/// Of whose chains: their tables' names, and how long parts of their entries are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    pub(super) v4: bool,
    family: Family,
    /// Addresses, links and protocol that are asked for: struct ipt_ip, ip6t_ip6.
    conditions: usize,
    /// Where target_offset is, and next_offset behind it.
    offsets: usize,
    /// Where matches begin, or the target.
    header: usize,
}

const IP: Kind = Kind { v4: true, family: Family::V4, conditions: 84, offsets: 88, header: 112 };
const IP6: Kind = Kind { v4: false, family: Family::V6, conditions: 136, offsets: 140, header: 168 };

/// The table `filter` of a family.
#[derive(Debug)]
pub(super) struct Filter {
    pub(super) kind: Kind,
    info: Vec<u8>,
    entries: Vec<u8>,
}

/// The name of a table that there is, if there is one.
pub(super) fn any() -> Option<String> {
    [IP, IP6].into_iter().find_map(|kind| Some(format!("table {} of {} (legacy)", names(kind).first()?, kind.program())))
}

/// All that there are.
pub(super) fn filters() -> Result<Vec<Filter>, Refused> {
    // Who asks for a table makes it: only for those that are there.
    let there = [IP, IP6].into_iter().filter(|kind| names(*kind).iter().any(|name| name == "filter"));
    there.map(Filter::read).collect()
}

fn names(kind: Kind) -> Vec<String> {
    let path = format!("/proc/thread-self/net/{}_names", kind.program());
    std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

impl Kind {
    /// `ip` or `ip6`, as nftables have it.
    pub(super) fn name(self) -> &'static str {
        if self.v4 { "ip" } else { "ip6" }
    }

    fn program(self) -> String {
        format!("{}_tables", self.name())
    }
}

impl Filter {
    fn read(kind: Kind) -> Result<Filter, Refused> {
        let refused = |error: io::Error| Refused::from(Errno::from_io_error(&error).unwrap_or(Errno::IO));
        for _ in 0..64 {
            let mut info = named("filter", INFO);
            xtables::info(kind.family, &mut info).map_err(refused)?;
            let size = u32_at(&info, SIZE);
            let mut entries = named("filter", ENTRIES + size as usize);
            entries[NAME..NAME + 4].copy_from_slice(&size.to_ne_bytes());
            match xtables::entries(kind.family, &mut entries) {
                // It became another in between.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => {
                    read.map_err(refused)?;
                    return Ok(Filter { kind, info, entries: entries.split_off(ENTRIES) });
                }
            }
        }
        Err(Errno::AGAIN.into())
    }

    /// Whether what no rule with a condition speaks of is dropped: by the first rule without one, or by the policy.
    pub(super) fn drops(&self, hook: Hook) -> bool {
        // NF_INET_LOCAL_IN, NF_INET_FORWARD
        let number = match hook {
            Hook::Input => 1,
            Hook::Forward => 2,
        };
        if u32_at(&self.info, VALID_HOOKS) & 1 << number == 0 {
            return false;
        }
        let (first, policy) = (u32_at(&self.info, HOOK_ENTRY + 4 * number), u32_at(&self.info, UNDERFLOW + 4 * number));
        let rules = self.entries(first as usize).take_while(|(at, _)| *at < policy as usize).map(|(_, entry)| entry);
        let ending = rules.filter(Entry::is_unconditional).find_map(Entry::ending);
        let ending = ending.filter(|ending| *ending != Ending::Return);
        ending.or_else(|| self.entries(policy as usize).next()?.1.ending()) == Some(Ending::Drop)
    }

    /// Whether ufw made chains in it.
    pub(super) fn is_ufws(&self) -> bool {
        self.entries(0).any(|(_, entry)| entry.chain().is_some_and(|name| is_ufws(&name)))
    }

    /// The entries from one on, each with its place.
    fn entries(&self, mut at: usize) -> impl Iterator<Item = (usize, Entry<'_>)> {
        std::iter::from_fn(move || {
            let rest = self.entries.get(at..)?;
            let next = usize::from(u16_at(rest, self.kind.offsets + 2)?);
            let entry = Entry { kind: self.kind, bytes: rest.get(..next).filter(|bytes| !bytes.is_empty())? };
            let place = at;
            at += next;
            Some((place, entry))
        })
    }
}

/// A rule, a policy, or the begin of a chain.
struct Entry<'a> {
    kind: Kind,
    bytes: &'a [u8],
}

impl Entry<'_> {
    fn target_offset(&self) -> usize {
        u16_at(self.bytes, self.kind.offsets).map_or(0, usize::from)
    }

    fn target(&self) -> &[u8] {
        self.bytes.get(self.target_offset()..).unwrap_or_default()
    }

    /// A comment is no condition.
    fn is_unconditional(&self) -> bool {
        let asks = self.bytes.get(..self.kind.conditions).is_none_or(|asked| asked.iter().any(|byte| *byte != 0));
        let matches = self.bytes.get(self.kind.header..self.target_offset()).unwrap_or_default();
        !asks && (matches.is_empty() || name(matches) == "comment" && u16_at(matches, 0).map(usize::from) == Some(matches.len()))
    }

    /// What becomes of who comes to its target for good.
    fn ending(self) -> Option<Ending> {
        match (name(self.target()).as_str(), u32_at(self.target(), XT_DATA) as i32) {
            ("REJECT", _) | ("", DROP) => Some(Ending::Drop),
            ("", ACCEPT) => Some(Ending::Accept),
            ("", RETURN) => Some(Ending::Return),
            _ => None,
        }
    }

    /// The name of the chain that begins here.
    fn chain(&self) -> Option<String> {
        (name(self.target()) == "ERROR").then(|| text(self.target().get(XT_DATA..).unwrap_or_default()))
    }
}

/// A block that begins with a table's name.
fn named(table: &str, length: usize) -> Vec<u8> {
    let mut block = vec![0; length];
    block.iter_mut().zip(table.bytes()).for_each(|(to, from)| *to = from);
    block
}

fn name(target: &[u8]) -> String {
    target.get(XT_NAME).map(text).unwrap_or_default()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}
