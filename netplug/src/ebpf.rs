//! An assembler for eBPF, as much of it as the programs here need. Pure. linux/bpf.h and RFC 9669 are the reference.

/// `struct bpf_insn` in memory order.
type Instruction = [u8; 8];

pub(crate) const LOAD_BYTE: u8 = 0x71;
pub(crate) const LOAD_HALF: u8 = 0x69;
pub(crate) const LOAD_WORD: u8 = 0x61;
pub(crate) const LOAD_DOUBLE: u8 = 0x79;
pub(crate) const STORE_HALF: u8 = 0x6b;
pub(crate) const STORE_WORD: u8 = 0x63;
pub(crate) const STORE_DOUBLE: u8 = 0x7b;
pub(crate) const STORE_BYTE_VALUE: u8 = 0x72;
pub(crate) const STORE_HALF_VALUE: u8 = 0x6a;
pub(crate) const STORE_WORD_VALUE: u8 = 0x62;
pub(crate) const MOVE_REGISTER: u8 = 0xbf;
pub(crate) const MOVE: u8 = 0xb7;
pub(crate) const ADD: u8 = 0x07;
pub(crate) const AND: u8 = 0x57;
pub(crate) const OR_REGISTER: u8 = 0x4f;
pub(crate) const MODULO_REGISTER: u8 = 0x9f;
pub(crate) const JUMP: u8 = 0x05;
pub(crate) const JUMP_IF: u8 = 0x15;
pub(crate) const JUMP_UNLESS: u8 = 0x55;
pub(crate) const JUMP_IF_BITS: u8 = 0x45;
pub(crate) const JUMP_UNLESS_REGISTER: u8 = 0x5d;
pub(crate) const JUMP_IF_ABOVE_REGISTER: u8 = 0x2d;
const LOAD_WIDE: u8 = 0x18;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
/// Of [`LOAD_WIDE`]: the value is a map's descriptor.
const BPF_PSEUDO_MAP_FD: u8 = 1;

// Helpers.
pub(crate) const MAP_LOOKUP_ELEM: i32 = 1;
pub(crate) const MAP_UPDATE_ELEM: i32 = 2;
pub(crate) const MAP_DELETE_ELEM: i32 = 3;
pub(crate) const GET_PRANDOM_U32: i32 = 7;
pub(crate) const SKB_STORE_BYTES: i32 = 9;
pub(crate) const SKB_CHANGE_TYPE: i32 = 32;
pub(crate) const SK_STORAGE_GET: i32 = 107;
pub(crate) const SK_STORAGE_DELETE: i32 = 108;
pub(crate) const GET_NETNS_COOKIE: i32 = 122;
pub(crate) const REDIRECT_PEER: i32 = 155;

/// The register that points behind the stack.
pub(crate) const STACK: u8 = 10;

/// Instructions, and where jumps are to lead.
pub(crate) struct Code<Label> {
    instructions: Vec<Instruction>,
    jumps: Vec<(usize, Label)>,
    labels: Vec<(Label, usize)>,
}

impl<Label: Copy + PartialEq> Code<Label> {
    pub(crate) fn new() -> Code<Label> {
        Code { instructions: Vec::new(), jumps: Vec::new(), labels: Vec::new() }
    }

    pub(crate) fn op(&mut self, code: u8, to: u8, from: u8, offset: i16, value: i32) {
        let ([o0, o1], [v0, v1, v2, v3]) = (offset.to_ne_bytes(), value.to_ne_bytes());
        self.instructions.push([code, from << 4 | to, o0, o1, v0, v1, v2, v3]);
    }

    pub(crate) fn jump(&mut self, code: u8, register: u8, other: u8, value: i32, label: Label) {
        self.jumps.push((self.instructions.len(), label));
        self.op(code, register, other, 0, value);
    }

    /// Where jumps to that label lead.
    pub(crate) fn here(&mut self, label: Label) {
        self.labels.push((label, self.instructions.len()));
    }

    /// r0: what a helper answers; r1 to r5 are its own from then on.
    pub(crate) fn call(&mut self, helper: i32) {
        self.op(CALL, 0, 0, 0, helper);
    }

    /// r1: a map.
    pub(crate) fn load_map(&mut self, map: i32) {
        self.op(LOAD_WIDE, 1, BPF_PSEUDO_MAP_FD, 0, map);
        self.op(0, 0, 0, 0, 0);
    }

    /// A register: a place on the stack.
    pub(crate) fn point(&mut self, register: u8, place: i16) {
        self.op(MOVE_REGISTER, register, STACK, 0, 0);
        self.op(ADD, register, 0, 0, i32::from(place));
    }

    /// Copies so many words from where a register points, and on, to another such place, by r2.
    pub(crate) fn copy(&mut self, words: i16, (from, source): (u8, i16), (to, place): (u8, i16)) {
        for word in (0..words).map(|word| 4 * word) {
            self.op(LOAD_WORD, 2, from, source + word, 0);
            self.op(STORE_WORD, to, 2, place + word, 0);
        }
    }

    /// Copies an IPv4 address to the stack as an IPv6 one (`::ffff:a.b.c.d`), as [`crate::direct::key`] has it.
    pub(crate) fn copy_mapped(&mut self, from: (u8, i16), place: i16) {
        self.op(STORE_WORD_VALUE, STACK, 0, place, 0);
        self.op(STORE_WORD_VALUE, STACK, 0, place + 4, 0);
        self.op(STORE_WORD_VALUE, STACK, 0, place + 8, i32::from_be(0xffff));
        self.copy(1, from, (STACK, place + 12));
    }

    /// r0: where the value of a key on the stack is; 0: it has none.
    pub(crate) fn look_up(&mut self, map: i32, key: i16) {
        self.load_map(map);
        self.point(2, key);
        self.call(MAP_LOOKUP_ELEM);
    }

    /// The end, with what r0 has.
    pub(crate) fn exit(&mut self) {
        self.op(EXIT, 0, 0, 0, 0);
    }

    /// The end, with that value.
    pub(crate) fn answer(&mut self, value: i32) {
        self.op(MOVE, 0, 0, 0, value);
        self.exit();
    }

    /// In memory order. A jump counts from behind itself.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        for (at, label) in self.jumps {
            let place = self.labels.iter().find(|(other, _)| *other == label).map_or(at + 1, |(_, place)| *place);
            let offset = (place - at - 1) as i16;
            self.instructions[at][2..4].copy_from_slice(&offset.to_ne_bytes());
        }
        self.instructions.concat()
    }
}

/// That all jumps lead forward and stay within, and that the end is an exit: old kernels want it so.
#[cfg(test)]
pub(crate) fn assert_forward(program: &[u8]) {
    let instructions: Vec<&[u8]> = program.chunks(8).collect();
    for (at, instruction) in instructions.iter().enumerate() {
        let is_jump = instruction[0] & 0x07 == JUMP && ![CALL, EXIT].contains(&instruction[0]);
        let offset = i16::from_ne_bytes([instruction[2], instruction[3]]);
        assert!(!is_jump || (offset > 0 && at + 1 + (offset as usize) < instructions.len()), "{at}: {instruction:?}");
    }
    assert_eq!(instructions.last().map(|last| last[0]), Some(EXIT));
}
