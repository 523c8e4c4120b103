//! A policy as a classic BPF program: <https://docs.kernel.org/userspace-api/seccomp_filter.html>. Pure.
//!
//! The calls of an ABI become ranges of numbers with the same answer, and the ranges a balanced tree of comparisons: about eight
//! instructions decide a call, where a list would take hundreds.

use std::collections::BTreeMap;

use super::abi::{Abi, X32_BIT};
use super::profile::{Action, Compare, Condition, ERRNO, Policy, Rule};
use crate::runtime::error::ConfigError;

/// `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Insn {
    pub code: u16,
    pub jt: u8,
    pub jf: u8,
    pub k: u32,
}

pub const LD: u16 = 0x20;
pub const AND: u16 = 0x54;
pub const JA: u16 = 0x05;
pub const JEQ: u16 = 0x15;
pub const JGT: u16 = 0x25;
pub const JGE: u16 = 0x35;
pub const RET: u16 = 0x06;

/// Of `struct seccomp_data`.
const NR: u32 = 0;
const ARCH: u32 = 4;
const ARGS: u32 = 16;

const KILL_PROCESS: Action = 0x8000_0000;
const ENOSYS: u32 = 38;
/// The kernel's BPF_MAXINSNS.
const MAX_INSNS: usize = 4096;

/// The program.
pub fn compile(policy: &Policy) -> Result<Vec<Insn>, ConfigError> {
    let mut program = Backwards::default();
    let has = |abi| policy.abis.contains(&abi);
    // A way of making system calls that the profile doesn't know.
    let mut otherwise = program.ret(KILL_PROCESS);
    for abi in policy.abis.iter().rev().filter(|abi| **abi != Abi::X32) {
        let mut answers = calls(&mut program, policy, *abi);
        if *abi == Abi::X86_64 {
            // Numbers with bit 30 are x32's, or, where it isn't wanted, nobody's.
            let x32 = if has(Abi::X32) {
                let answers = calls(&mut program, policy, Abi::X32);
                program.before(&[insn(AND, !X32_BIT)], answers)
            } else {
                program.ret(policy.default)
            };
            answers = program.branch(JGE, X32_BIT, x32, answers);
        }
        let body = program.before(&[insn(LD, NR)], answers);
        otherwise = program.branch(JEQ, abi.audit(), body, otherwise);
    }
    program.before(&[insn(LD, ARCH)], otherwise);
    let program = program.finish();
    if program.len() > MAX_INSNS {
        return Err(ConfigError::new(format!(
            "seccomp profile: it takes {} instructions, the kernel takes {MAX_INSNS}",
            program.len()
        )));
    }
    Ok(program)
}

/// A program that is written from its end, as jumps only lead forward: whatever is jumped to is there already. Places are counted from
/// the end. A return is shared by all that can reach it: the kernel translates the program for each process that gets it, which is
/// most of what a filter costs.
#[derive(Default)]
struct Backwards {
    code: Vec<Insn>,
    returns: BTreeMap<Action, usize>,
}

impl Backwards {
    /// How far conditional jumps reach, with one more instruction between.
    const REACH: usize = 254;

    fn push(&mut self, insn: Insn) -> usize {
        self.code.push(insn);
        self.code.len() - 1
    }

    /// From the next instruction.
    fn distance(&self, place: usize) -> usize {
        self.code.len() - place - 1
    }

    fn ret(&mut self, action: Action) -> usize {
        if let Some(place) = self.returns.get(&action)
            && self.distance(*place) <= Self::REACH
        {
            return *place;
        }
        let place = self.push(insn(RET, action));
        self.returns.insert(action, place);
        place
    }

    /// `if A op k { yes } else { no }`
    fn branch(&mut self, code: u16, k: u32, yes: usize, no: usize) -> usize {
        let (yes, no) = (self.near(yes), self.near(no));
        let [jt, jf] = [yes, no].map(|place| u8::try_from(self.distance(place)).unwrap_or(u8::MAX));
        self.push(Insn { code, jt, jf, k })
    }

    /// The same place, or one near by that leads there.
    fn near(&mut self, place: usize) -> usize {
        if self.distance(place) <= Self::REACH { place } else { self.jump(place) }
    }

    /// Unconditional jumps reach anywhere.
    fn jump(&mut self, place: usize) -> usize {
        let distance = u32::try_from(self.distance(place)).unwrap_or(u32::MAX);
        self.push(insn(JA, distance))
    }

    /// Does this, and goes on there.
    fn before(&mut self, insns: &[Insn], place: usize) -> usize {
        if self.distance(place) > 0 {
            self.jump(place);
        }
        self.code.extend(insns.iter().rev());
        self.code.len() - 1
    }

    /// Code that ends in returns.
    fn block(&mut self, insns: &[Insn]) -> usize {
        self.code.extend(insns.iter().rev());
        self.code.len() - 1
    }

    fn finish(mut self) -> Vec<Insn> {
        self.code.reverse();
        self.code
    }
}

/// As the kernel takes it: in memory order.
pub fn bytes(program: &[Insn]) -> Vec<u8> {
    let one = |i: &Insn| [&i.code.to_ne_bytes()[..], &[i.jt, i.jf], &i.k.to_ne_bytes()[..]].concat();
    program.iter().flat_map(one).collect()
}

fn insn(code: u16, k: u32) -> Insn {
    Insn { code, jt: 0, jf: 0, k }
}

fn ret(action: Action) -> Insn {
    insn(RET, action)
}

/// Code that answers the calls of one ABI, with the number in the accumulator.
fn calls(program: &mut Backwards, policy: &Policy, abi: Abi) -> usize {
    let mut by_number: BTreeMap<u32, Vec<&Rule>> = BTreeMap::new();
    for rule in &policy.rules {
        if let Some(number) = abi.number(&rule.name) {
            by_number.entry(number).or_default().push(rule);
        }
    }
    let default = vec![ret(policy.default)];
    let mut ranges: Vec<(u32, Vec<Insn>)> = vec![(0, default.clone())];
    let mut put = |start: u32, code: Vec<Insn>| {
        if ranges.last().is_some_and(|(at, _)| *at == start) {
            ranges.pop();
        }
        if ranges.last().is_none_or(|(_, before)| *before != code) {
            ranges.push((start, code));
        }
    };
    for (number, rules) in &by_number {
        put(*number, answer(rules, policy.default));
        put(number + 1, default.clone());
    }
    // A call that is newer than the profile: a program must see that as an old kernel, not as a prohibition, or it won't fall
    // back to what it used before.
    if let Some(last) = by_number.keys().next_back()
        && policy.default & 0xffff_0000 == ERRNO
    {
        put(last + 1, vec![ret(ERRNO | ENOSYS)]);
    }
    tree(program, &ranges)
}

/// Compares with the middle, then one half or the other.
fn tree(program: &mut Backwards, ranges: &[(u32, Vec<Insn>)]) -> usize {
    match ranges {
        // There is always one.
        [] => program.ret(KILL_PROCESS),
        [(_, code)] => match code.as_slice() {
            [Insn { code: RET, k: action, .. }] => program.ret(*action),
            code => program.block(code),
        },
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            let middle = high.first().map(|(start, _)| *start).unwrap_or_default();
            let high = tree(program, high);
            let low = tree(program, low);
            program.branch(JGE, middle, high, low)
        }
    }
}

/// One call's rules, in their order; the first that holds decides.
fn answer(rules: &[&Rule], default: Action) -> Vec<Insn> {
    let mut code = Vec::new();
    for rule in rules {
        code.extend(one_rule(rule));
        if rule.conditions.is_empty() {
            return code;
        }
    }
    code.push(ret(default));
    code
}

/// Falls through to what follows when a condition doesn't hold.
fn one_rule(rule: &Rule) -> Vec<Insn> {
    let mut code = vec![ret(rule.action)];
    for condition in rule.conditions.iter().rev() {
        let mut with = test(condition, code.len());
        with.extend(code);
        code = with;
    }
    code
}

/// Jumps over the next `rest` instructions unless the condition holds.
fn test(condition: &Condition, rest: usize) -> Vec<Insn> {
    let low = ARGS + 8 * condition.index;
    let (low, high) = if cfg!(target_endian = "little") { (low, low + 4) } else { (low + 4, low) };
    let halves = |value: u64| ((value >> 32) as u32, value as u32);
    // At most six instructions a condition and six conditions a rule: always within a jump's reach.
    let away = |after: usize| u8::try_from(rest + after).unwrap_or(u8::MAX);
    let jump = |code, k, jt, jf| Insn { code, jt, jf, k };
    match condition.compare {
        Compare::Equal(value) => {
            let (hi, lo) = halves(value);
            vec![insn(LD, high), jump(JEQ, hi, 0, away(2)), insn(LD, low), jump(JEQ, lo, 0, away(0))]
        }
        Compare::NotEqual(value) => {
            let (hi, lo) = halves(value);
            vec![insn(LD, high), jump(JEQ, hi, 0, 2), insn(LD, low), jump(JEQ, lo, away(0), 0)]
        }
        Compare::Masked { mask, value } => {
            let ((mask_hi, mask_lo), (hi, lo)) = (halves(mask), halves(value));
            vec![
                insn(LD, high),
                insn(AND, mask_hi),
                jump(JEQ, hi, 0, away(3)),
                insn(LD, low),
                insn(AND, mask_lo),
                jump(JEQ, lo, 0, away(0)),
            ]
        }
        Compare::Greater(value) => above(halves(value), JGT, (low, high), away(0), &away),
        Compare::GreaterOrEqual(value) => above(halves(value), JGE, (low, high), away(0), &away),
        Compare::Less(value) => below(halves(value), JGE, (low, high), away(0)),
        Compare::LessOrEqual(value) => below(halves(value), JGT, (low, high), away(0)),
    }
}

fn above((hi, lo): (u32, u32), last: u16, (low, high): (u32, u32), fail: u8, away: &impl Fn(usize) -> u8) -> Vec<Insn> {
    vec![
        insn(LD, high),
        Insn { code: JGT, jt: 3, jf: 0, k: hi },
        Insn { code: JEQ, jt: 0, jf: away(2), k: hi },
        insn(LD, low),
        Insn { code: last, jt: 0, jf: fail, k: lo },
    ]
}

/// Not above.
fn below((hi, lo): (u32, u32), last: u16, (low, high): (u32, u32), fail: u8) -> Vec<Insn> {
    vec![
        insn(LD, high),
        Insn { code: JGT, jt: fail.saturating_add(3), jf: 0, k: hi },
        Insn { code: JEQ, jt: 0, jf: 2, k: hi },
        insn(LD, low),
        Insn { code: last, jt: fail, jf: 0, k: lo },
    ]
}
