//! Device rules as an eBPF program of type CGROUP_DEVICE: 1 for what a rule allows, else 0. Pure.
//! <https://docs.kernel.org/admin-guide/cgroup-v2.html#device-controller>

use super::devices::Rule;

/// `struct bpf_insn` in memory order.
type Instruction = [u8; 8];

const LOAD_WORD: u8 = 0x61;
const MOVE_REGISTER: u8 = 0xbf;
const MOVE: u8 = 0xb7;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_UNLESS: u8 = 0x55;
const JUMP_UNLESS_REGISTER: u8 = 0x5d;
const EXIT: u8 = 0x95;

// Of `struct bpf_cgroup_dev_ctx`, in r1 at the start, and where its fields are kept.
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// The program, in memory order.
pub fn compile(rules: &[Rule]) -> Vec<u8> {
    let mut program = vec![
        // access_type is ACCESS << 16 | KIND.
        instruction(LOAD_WORD, KIND, 1, 0, 0),
        instruction(MOVE_REGISTER, ACCESS, KIND, 0, 0),
        instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        instruction(AND, KIND, 0, 0, 0xffff),
        instruction(LOAD_WORD, MAJOR, 1, 4, 0),
        instruction(LOAD_WORD, MINOR, 1, 8, 0),
    ];
    for rule in rules {
        program.extend(allow(rule));
    }
    program.extend(answer(0));
    program.concat()
}

/// Answers 1 if the rule fits; else goes on behind itself.
fn allow(rule: &Rule) -> Vec<Instruction> {
    let kind = if rule.kind == 'b' { 1 } else { 2 };
    let bit = |letter, value| if rule.access.contains(letter) { value } else { 0 };
    let access = bit('m', 1) | bit('r', 2) | bit('w', 4);
    let mut tests = vec![(JUMP_UNLESS, KIND, 0, kind)];
    let mut prelude = Vec::new();
    if access != 7 {
        // r1 = what is asked for and allowed: it must be all that is asked for.
        prelude = vec![instruction(MOVE_REGISTER, 1, ACCESS, 0, 0), instruction(AND, 1, 0, 0, access)];
        tests.push((JUMP_UNLESS_REGISTER, 1, ACCESS, 0));
    }
    let number = |value: u32| i32::from_ne_bytes(value.to_ne_bytes());
    tests.extend(rule.major.map(|major| (JUMP_UNLESS, MAJOR, 0, number(major))));
    tests.extend(rule.minor.map(|minor| (JUMP_UNLESS, MINOR, 0, number(minor))));
    let count = tests.len() as i16;
    // A jump counts from behind itself: over the tests that follow, and over the two instructions of the answer.
    let jumps = tests
        .into_iter()
        .zip(1_i16..)
        .map(|((code, register, other, value), nth)| instruction(code, register, other, count - nth + 2, value));
    prelude.into_iter().chain(jumps).chain(answer(1)).collect()
}

fn answer(value: i32) -> [Instruction; 2] {
    [instruction(MOVE, 0, 0, 0, value), instruction(EXIT, 0, 0, 0, 0)]
}

fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> Instruction {
    let ([o0, o1], [v0, v1, v2, v3]) = (offset.to_ne_bytes(), value.to_ne_bytes());
    [code, from << 4 | to, o0, o1, v0, v1, v2, v3]
}
