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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// Words of a rule: what it asks (`-s`, `-m comment`, `-m state`), and its target.
    fn entry(kind: Kind, rule: &str) -> Vec<u8> {
        let mut bytes = vec![0; kind.header];
        let xt = |name: &str, data: &[u8]| {
            let mut block = vec![0; XT_DATA];
            block[..2].copy_from_slice(&((XT_DATA + data.len()) as u16).to_ne_bytes());
            block[2..2 + name.len()].copy_from_slice(name.as_bytes());
            block.extend(data);
            block
        };
        let mut words = rule.split(' ').peekable();
        let mut target = Vec::new();
        while let Some(word) = words.next() {
            match word {
                "-s" => bytes[0] = 10,
                "-m" => bytes.extend(xt(words.next().unwrap(), &[7; 8])),
                "chain" => target = xt("ERROR", format!("{:\0<32}", words.next().unwrap()).as_bytes()),
                "REJECT" | "LOG" => target = xt(word, &[0; 8]),
                verdict => {
                    let number = [("DROP", -1), ("ACCEPT", -2), ("RETURN", -5), ("JUMP", 0)];
                    let number: i32 = number.into_iter().find(|(name, _)| *name == verdict).unwrap().1;
                    target = xt("", &[number.to_ne_bytes(), [0; 4]].concat());
                }
            }
        }
        let target_offset = bytes.len() as u16;
        bytes.extend(target);
        let next_offset = bytes.len() as u16;
        bytes[kind.offsets..kind.offsets + 2].copy_from_slice(&target_offset.to_ne_bytes());
        bytes[kind.offsets + 2..kind.offsets + 4].copy_from_slice(&next_offset.to_ne_bytes());
        bytes
    }

    /// A table with these rules of FORWARD, the last of which is its policy; INPUT accepts.
    fn filter(kind: Kind, rules: &[&str]) -> Filter {
        let rules: Vec<Vec<u8>> = ["ACCEPT"].iter().chain(rules).map(|rule| entry(kind, rule)).collect();
        let forward = rules[0].len() as u32;
        let policy = rules[..rules.len() - 1].iter().map(Vec::len).sum::<usize>() as u32;
        let mut info = vec![0; INFO];
        let mut set = |at: usize, value: u32| info[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        set(VALID_HOOKS, 0b110);
        set(HOOK_ENTRY + 8, forward);
        set(UNDERFLOW + 8, policy);
        let user = entry(kind, "chain ufw-before-input");
        Filter { kind, info, entries: [rules.concat(), user].concat() }
    }

    #[rstest]
    #[case(&["DROP"], true)]
    #[case(&["ACCEPT"], false)]
    #[case(&["-s ACCEPT", "DROP"], true)]
    #[case(&["ACCEPT", "DROP"], false)]
    #[case(&["-s ACCEPT", "REJECT", "ACCEPT"], true)]
    #[case(&["LOG", "-m comment DROP", "ACCEPT"], true)]
    #[case(&["-m state DROP", "-s REJECT", "-m comment -m state DROP", "ACCEPT"], false)]
    #[case(&["JUMP", "RETURN", "DROP", "ACCEPT"], false)]
    fn a_chain_ends_as_its_first_unconditional_rule_or_its_policy(#[case] rules: &[&str], #[case] drops: bool) {
        for kind in [IP, IP6] {
            let whole = filter(kind, rules);
            assert_eq!((whole.drops(Hook::Forward), whole.drops(Hook::Input), whole.is_ufws()), (drops, false, true));
            // What the kernel would never say ends in an answer all the same.
            for length in 0..whole.entries.len() {
                let cut = Filter { kind, info: whole.info.clone(), entries: whole.entries[..length].to_vec() };
                let _ = (cut.drops(Hook::Forward), cut.is_ufws());
            }
        }
    }
}
