//! The program at the host's end of a pod's link: eBPF, assembled here. Pure. linux/bpf.h and the kernel's Documentation/bpf are the
//! reference.
//!
//! It finds both ends of a packet in the map (see [`key`] and [`value`]), and if the packet came from where its source is, hands it to the
//! receiver's own interface. Whatever it doesn't know goes the ordinary way.

use std::net::IpAddr;

use crate::links::Mac;

/// Of a key: an IPv6 address, or an IPv4 address as one (`::ffff:a.b.c.d`).
pub(super) const KEY: usize = 16;
/// Of a value: the index of the host's end, the pod's MAC and the bridge's.
pub(super) const VALUE: usize = 16;

/// `struct bpf_insn` in memory order.
type Instruction = [u8; 8];

const LOAD_BYTE: u8 = 0x71;
const LOAD_HALF: u8 = 0x69;
const LOAD_WORD: u8 = 0x61;
const STORE_WORD: u8 = 0x63;
const STORE_WORD_VALUE: u8 = 0x62;
const MOVE_REGISTER: u8 = 0xbf;
const MOVE: u8 = 0xb7;
const ADD: u8 = 0x07;
const AND: u8 = 0x57;
const LOAD_WIDE: u8 = 0x18;
const JUMP: u8 = 0x05;
const JUMP_IF: u8 = 0x15;
const JUMP_UNLESS: u8 = 0x55;
const JUMP_UNLESS_REGISTER: u8 = 0x5d;
const JUMP_IF_ABOVE_REGISTER: u8 = 0x2d;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
/// Of [`LOAD_WIDE`]: the value is a map's descriptor.
const BPF_PSEUDO_MAP_FD: u8 = 1;

const MAP_LOOKUP_ELEM: i32 = 1;
const SKB_STORE_BYTES: i32 = 9;
const SKB_CHANGE_TYPE: i32 = 32;
const REDIRECT_PEER: i32 = 155;
const PACKET_HOST: i32 = 0;
/// The packet goes on as if there were no program.
const TCX_NEXT: i32 = -1;

// Of `struct __sk_buff`.
const PROTOCOL: i16 = 16;
const IFINDEX: i16 = 40;
const DATA: i16 = 76;
const DATA_END: i16 = 80;

const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
const ETHERNET: i16 = 14;
const IPPROTO_TCP: i32 = 6;
const IPPROTO_UDP: i32 = 17;

/// The stack: the key of who sends, and of who receives.
const SOURCE: i16 = -16;
const DESTINATION: i16 = -32;
const STACK: u8 = 10;
const CONTEXT: u8 = 6;
const PACKET: u8 = 7;
const PACKET_END: u8 = 8;
const PEER: u8 = 9;

/// Where a pod's address is kept.
pub(super) fn key(ip: IpAddr) -> [u8; KEY] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// What is kept of a pod: the host's end of its link, and what is written over the Ethernet addresses of what it gets. They are those that
/// the ordinary way would write.
pub(super) fn value(link: u32, pod: Mac, bridge: Mac) -> [u8; VALUE] {
    let mut value = [0; VALUE];
    value[..4].copy_from_slice(&link.to_ne_bytes());
    value[4..10].copy_from_slice(&pod);
    value[10..].copy_from_slice(&bridge);
    value
}

/// The program, in memory order. `map`: the descriptor of a map with such keys and values.
pub(super) fn assemble(map: i32) -> Vec<u8> {
    let mut code = Code::default();
    code.op(MOVE_REGISTER, CONTEXT, 1, 0, 0);
    code.op(LOAD_WORD, 2, CONTEXT, PROTOCOL, 0);
    code.op(LOAD_WORD, PACKET, CONTEXT, DATA, 0);
    code.op(LOAD_WORD, PACKET_END, CONTEXT, DATA_END, 0);
    code.jump(JUMP_IF, 2, 0, network(ETH_P_IPV6), Label::Ipv6);
    code.jump(JUMP_UNLESS, 2, 0, network(ETH_P_IP), Label::Ordinary);
    ipv4(&mut code);
    code.jump(JUMP, 0, 0, 0, Label::Addressed);
    code.here(Label::Ipv6);
    ipv6(&mut code);
    code.here(Label::Addressed);
    code.jump(JUMP_IF, 4, 0, IPPROTO_TCP, Label::Carried);
    code.jump(JUMP_UNLESS, 4, 0, IPPROTO_UDP, Label::Ordinary);
    code.here(Label::Carried);
    // Who says to be the sender must be behind the link that it came by.
    look_up(&mut code, map, SOURCE);
    code.op(LOAD_WORD, 1, 0, 0, 0);
    code.op(LOAD_WORD, 2, CONTEXT, IFINDEX, 0);
    code.jump(JUMP_UNLESS_REGISTER, 1, 2, 0, Label::Ordinary);
    look_up(&mut code, map, DESTINATION);
    code.op(MOVE_REGISTER, PEER, 0, 0, 0);
    hand_over(&mut code);
    code.here(Label::Ordinary);
    code.op(MOVE, 0, 0, 0, TCX_NEXT);
    code.op(EXIT, 0, 0, 0, 0);
    code.finish()
}

/// Puts the addresses on the stack and the protocol into r4. Neither options nor fragments.
fn ipv4(code: &mut Code) {
    bounds(code, ETHERNET + 20);
    code.op(LOAD_BYTE, 2, PACKET, ETHERNET, 0);
    code.jump(JUMP_UNLESS, 2, 0, 0x45, Label::Ordinary);
    // The offset, and whether more follow.
    code.op(LOAD_HALF, 2, PACKET, ETHERNET + 6, 0);
    code.op(AND, 2, 0, 0, network(0x3fff));
    code.jump(JUMP_UNLESS, 2, 0, 0, Label::Ordinary);
    code.op(LOAD_BYTE, 4, PACKET, ETHERNET + 9, 0);
    for (place, offset) in [(SOURCE, 12), (DESTINATION, 16)] {
        code.op(STORE_WORD_VALUE, STACK, 0, place, 0);
        code.op(STORE_WORD_VALUE, STACK, 0, place + 4, 0);
        code.op(STORE_WORD_VALUE, STACK, 0, place + 8, i32::from_be(0xffff));
        code.op(LOAD_WORD, 2, PACKET, ETHERNET + offset, 0);
        code.op(STORE_WORD, STACK, 2, place + 12, 0);
    }
}

/// As [`ipv4`]. A next header that isn't the transport's own (fragments, options) is none of those that are handed over.
fn ipv6(code: &mut Code) {
    bounds(code, ETHERNET + 40);
    code.op(LOAD_BYTE, 4, PACKET, ETHERNET + 6, 0);
    for (place, offset) in [(SOURCE, 8), (DESTINATION, 24)] {
        for word in [0, 4, 8, 12] {
            code.op(LOAD_WORD, 2, PACKET, ETHERNET + offset + word, 0);
            code.op(STORE_WORD, STACK, 2, place + word, 0);
        }
    }
}

/// The kernel's verifier wants to see it before the packet is read.
fn bounds(code: &mut Code, length: i16) {
    code.op(MOVE_REGISTER, 2, PACKET, 0, 0);
    code.op(ADD, 2, 0, 0, i32::from(length));
    code.jump(JUMP_IF_ABOVE_REGISTER, 2, PACKET_END, 0, Label::Ordinary);
}

/// r0: the value of a key on the stack.
fn look_up(code: &mut Code, map: i32, place: i16) {
    code.op(LOAD_WIDE, 1, BPF_PSEUDO_MAP_FD, 0, map);
    code.op(0, 0, 0, 0, 0);
    code.op(MOVE_REGISTER, 2, STACK, 0, 0);
    code.op(ADD, 2, 0, 0, i32::from(place));
    code.op(CALL, 0, 0, 0, MAP_LOOKUP_ELEM);
    code.jump(JUMP_IF, 0, 0, 0, Label::Ordinary);
}

/// Writes the Ethernet addresses, says that it is for who gets it, and gives it to the other end of its link.
fn hand_over(code: &mut Code) {
    code.op(MOVE_REGISTER, 1, CONTEXT, 0, 0);
    code.op(MOVE, 2, 0, 0, 0);
    code.op(MOVE_REGISTER, 3, PEER, 0, 0);
    code.op(ADD, 3, 0, 0, 4);
    code.op(MOVE, 4, 0, 0, 12);
    code.op(MOVE, 5, 0, 0, 0);
    code.op(CALL, 0, 0, 0, SKB_STORE_BYTES);
    code.jump(JUMP_UNLESS, 0, 0, 0, Label::Ordinary);
    code.op(MOVE_REGISTER, 1, CONTEXT, 0, 0);
    code.op(MOVE, 2, 0, 0, PACKET_HOST);
    code.op(CALL, 0, 0, 0, SKB_CHANGE_TYPE);
    code.op(LOAD_WORD, 1, PEER, 0, 0);
    code.op(MOVE, 2, 0, 0, 0);
    code.op(CALL, 0, 0, 0, REDIRECT_PEER);
    code.op(EXIT, 0, 0, 0, 0);
}

/// As a number of the packet is read.
fn network(value: u16) -> i32 {
    i32::from(value.to_be())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Label {
    Ipv6,
    Addressed,
    Carried,
    Ordinary,
}

/// Instructions, and where jumps are to lead.
#[derive(Default)]
struct Code {
    instructions: Vec<Instruction>,
    jumps: Vec<(usize, Label)>,
    labels: Vec<(Label, usize)>,
}

impl Code {
    fn op(&mut self, code: u8, to: u8, from: u8, offset: i16, value: i32) {
        let ([o0, o1], [v0, v1, v2, v3]) = (offset.to_ne_bytes(), value.to_ne_bytes());
        self.instructions.push([code, from << 4 | to, o0, o1, v0, v1, v2, v3]);
    }

    fn jump(&mut self, code: u8, register: u8, other: u8, value: i32, label: Label) {
        self.jumps.push((self.instructions.len(), label));
        self.op(code, register, other, 0, value);
    }

    fn here(&mut self, label: Label) {
        self.labels.push((label, self.instructions.len()));
    }

    /// A jump counts from behind itself.
    fn finish(mut self) -> Vec<u8> {
        for (at, label) in self.jumps {
            let place = self.labels.iter().find(|(other, _)| *other == label).map_or(at + 1, |(_, place)| *place);
            let offset = (place - at - 1) as i16;
            self.instructions[at][2..4].copy_from_slice(&offset.to_ne_bytes());
        }
        self.instructions.concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_lead_forward_and_stay_within() {
        let program = assemble(3);
        let instructions: Vec<&[u8]> = program.chunks(8).collect();
        for (at, instruction) in instructions.iter().enumerate() {
            let is_jump = instruction[0] & 0x07 == JUMP && ![CALL, EXIT].contains(&instruction[0]);
            let offset = i16::from_ne_bytes([instruction[2], instruction[3]]);
            assert!(!is_jump || (offset > 0 && at + 1 + (offset as usize) < instructions.len()), "{at}: {instruction:?}");
        }
        assert_eq!(instructions.last().map(|last| last[0]), Some(EXIT));
    }

    #[test]
    fn both_families_have_keys_of_their_own() {
        let mapped = "::ffff:10.88.0.2".parse::<std::net::Ipv6Addr>().map(IpAddr::V6);
        assert_eq!(mapped.map(key), Ok(key([10, 88, 0, 2].into())));
        assert_ne!(key([10, 88, 0, 2].into()), key([10, 88, 0, 3].into()));
        assert_eq!(value(1, [2; 6], [3; 6])[4..], [2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3]);
    }
}
