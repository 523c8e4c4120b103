//! The program at the host's end of a pod's link: eBPF, assembled here. Pure. linux/bpf.h and the kernel's Documentation/bpf are the
//! reference.
//!
//! It finds both ends of a packet in a map (see [`key`] and [`value`]), and if the packet came from where its source is, hands it to the
//! receiver's own interface. Whatever it doesn't know goes the ordinary way. In another map it notes the TCP connections that begin, until
//! they end (see [`flow`]): connection tracking, which hasn't seen them, is told of them when they are to take the ordinary way.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::links::Mac;

/// Of a key: an IPv6 address, or an IPv4 address as one (`::ffff:a.b.c.d`).
pub(super) const KEY: usize = 16;
/// Of a value: the index of the host's end, the pod's MAC and the bridge's.
pub(super) const VALUE: usize = 16;
/// Of a connection: the keys of who opened it and of whom it was opened to, and their ports.
pub(super) const FLOW: usize = 2 * KEY + 4;
/// Of what is kept of a connection: whether it was answered.
pub(super) const NOTE: usize = 4;
const ASKED: i32 = 0;
const ANSWERED: i32 = 1;

/// `struct bpf_insn` in memory order.
type Instruction = [u8; 8];

const LOAD_BYTE: u8 = 0x71;
const LOAD_HALF: u8 = 0x69;
const LOAD_WORD: u8 = 0x61;
const LOAD_DOUBLE: u8 = 0x79;
const STORE_HALF: u8 = 0x6b;
const STORE_DOUBLE: u8 = 0x7b;
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
const JUMP_IF_BITS: u8 = 0x45;
const JUMP_UNLESS_REGISTER: u8 = 0x5d;
const JUMP_IF_ABOVE_REGISTER: u8 = 0x2d;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
/// Of [`LOAD_WIDE`]: the value is a map's descriptor.
const BPF_PSEUDO_MAP_FD: u8 = 1;

const MAP_LOOKUP_ELEM: i32 = 1;
const MAP_UPDATE_ELEM: i32 = 2;
const MAP_DELETE_ELEM: i32 = 3;
const SKB_STORE_BYTES: i32 = 9;
const SKB_CHANGE_TYPE: i32 = 32;
const REDIRECT_PEER: i32 = 155;
const PACKET_HOST: i32 = 0;
/// The packet goes on as if there were no program (TC_ACT_UNSPEC).
const GO_ON: i32 = -1;

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

const FIN: i32 = 0x01;
const SYN: i32 = 0x02;
const RST: i32 = 0x04;
const ACK: i32 = 0x10;

/// The stack, from below: the key of who sends, that of who receives, their ports (all as a connection has them), TCP's flags.
const SOURCE: i16 = -40;
const DESTINATION: i16 = -24;
const PORTS: i16 = -8;
const FLAGS: i16 = -4;
/// The same connection seen from the other side.
const REVERSE: i16 = -80;
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

/// As a connection is kept: who opened it, and to whom.
pub(super) fn flow(client: SocketAddr, server: SocketAddr) -> [u8; FLOW] {
    let mut flow = [0; FLOW];
    flow[..KEY].copy_from_slice(&key(client.ip()));
    flow[KEY..2 * KEY].copy_from_slice(&key(server.ip()));
    flow[2 * KEY..2 * KEY + 2].copy_from_slice(&client.port().to_be_bytes());
    flow[2 * KEY + 2..].copy_from_slice(&server.port().to_be_bytes());
    flow
}

/// A note of a connection that was answered.
pub(super) const fn answered() -> [u8; NOTE] {
    ANSWERED.to_ne_bytes()
}

/// What [`key`] made.
pub(super) fn address(key: [u8; KEY]) -> IpAddr {
    Ipv6Addr::from(key).to_canonical()
}

/// What [`flow`] made.
pub(super) fn ends(flow: &[u8; FLOW]) -> (SocketAddr, SocketAddr) {
    let ip = |at: usize| {
        let mut octets = [0; KEY];
        octets.copy_from_slice(&flow[at..at + KEY]);
        address(octets)
    };
    let port = |at: usize| u16::from_be_bytes([flow[at], flow[at + 1]]);
    (SocketAddr::new(ip(0), port(2 * KEY)), SocketAddr::new(ip(KEY), port(2 * KEY + 2)))
}

/// The program, in memory order. `pods`, `flows`: the descriptors of the maps.
pub(super) fn assemble(pods: i32, flows: i32) -> Vec<u8> {
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
    // r4: the protocol; r5: where its header begins.
    code.op(STORE_WORD_VALUE, STACK, 0, FLAGS, 0);
    code.jump(JUMP_IF, 4, 0, IPPROTO_UDP, Label::Carried);
    code.jump(JUMP_UNLESS, 4, 0, IPPROTO_TCP, Label::Ordinary);
    tcp(&mut code);
    code.here(Label::Carried);
    // Who says to be the sender must be behind the link that it came by.
    look_up(&mut code, pods, SOURCE);
    code.op(LOAD_WORD, 1, 0, 0, 0);
    code.op(LOAD_WORD, 2, CONTEXT, IFINDEX, 0);
    code.jump(JUMP_UNLESS_REGISTER, 1, 2, 0, Label::Ordinary);
    look_up(&mut code, pods, DESTINATION);
    code.op(MOVE_REGISTER, PEER, 0, 0, 0);
    take_note(&mut code, flows);
    code.here(Label::Noted);
    hand_over(&mut code);
    code.here(Label::Ordinary);
    code.op(MOVE, 0, 0, 0, GO_ON);
    code.op(EXIT, 0, 0, 0, 0);
    code.finish()
}

/// Puts the addresses on the stack, the protocol into r4 and what follows the header into r5. Neither options nor fragments.
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
    behind(code, ETHERNET + 20);
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
    behind(code, ETHERNET + 40);
}

fn behind(code: &mut Code, header: i16) {
    code.op(MOVE_REGISTER, 5, PACKET, 0, 0);
    code.op(ADD, 5, 0, 0, i32::from(header));
}

/// Puts ports and flags on the stack.
fn tcp(code: &mut Code) {
    code.op(MOVE_REGISTER, 2, 5, 0, 0);
    code.op(ADD, 2, 0, 0, 20);
    code.jump(JUMP_IF_ABOVE_REGISTER, 2, PACKET_END, 0, Label::Ordinary);
    code.op(LOAD_WORD, 2, 5, 0, 0);
    code.op(STORE_WORD, STACK, 2, PORTS, 0);
    code.op(LOAD_BYTE, 2, 5, 13, 0);
    code.op(AND, 2, 0, 0, FIN | SYN | RST | ACK);
    code.op(STORE_WORD, STACK, 2, FLAGS, 0);
}

/// Notes a connection that begins, and that it was answered, and forgets one that ends, whoever ends it.
fn take_note(code: &mut Code, flows: i32) {
    code.op(LOAD_WORD, 1, STACK, FLAGS, 0);
    code.jump(JUMP_IF_BITS, 1, 0, FIN | RST, Label::Ends);
    code.jump(JUMP_IF, 1, 0, SYN | ACK, Label::Answers);
    code.jump(JUMP_UNLESS, 1, 0, SYN, Label::Noted);
    code.op(STORE_WORD_VALUE, STACK, 0, FLAGS, ASKED);
    load_map(code, flows);
    point(code, 2, SOURCE);
    point(code, 3, FLAGS);
    code.op(MOVE, 4, 0, 0, 0);
    // When there are too many, connection tracking will have to guess.
    code.op(CALL, 0, 0, 0, MAP_UPDATE_ELEM);
    code.jump(JUMP, 0, 0, 0, Label::Noted);
    code.here(Label::Answers);
    turn_round(code);
    load_map(code, flows);
    point(code, 2, REVERSE);
    code.op(CALL, 0, 0, 0, MAP_LOOKUP_ELEM);
    code.jump(JUMP_IF, 0, 0, 0, Label::Noted);
    code.op(STORE_WORD_VALUE, 0, 0, 0, ANSWERED);
    code.jump(JUMP, 0, 0, 0, Label::Noted);
    code.here(Label::Ends);
    turn_round(code);
    for place in [SOURCE, REVERSE] {
        load_map(code, flows);
        point(code, 2, place);
        code.op(CALL, 0, 0, 0, MAP_DELETE_ELEM);
    }
}

/// Puts the connection as its other end has it on the stack.
fn turn_round(code: &mut Code) {
    for (from, to) in [(DESTINATION, REVERSE), (SOURCE, REVERSE + KEY as i16)] {
        for half in [0, 8] {
            code.op(LOAD_DOUBLE, 1, STACK, from + half, 0);
            code.op(STORE_DOUBLE, STACK, 1, to + half, 0);
        }
    }
    for (from, to) in [(PORTS, 2), (PORTS + 2, 0)] {
        code.op(LOAD_HALF, 1, STACK, from, 0);
        code.op(STORE_HALF, STACK, 1, REVERSE + 2 * KEY as i16 + to, 0);
    }
}

/// The kernel's verifier wants to see it before the packet is read.
fn bounds(code: &mut Code, length: i16) {
    code.op(MOVE_REGISTER, 2, PACKET, 0, 0);
    code.op(ADD, 2, 0, 0, i32::from(length));
    code.jump(JUMP_IF_ABOVE_REGISTER, 2, PACKET_END, 0, Label::Ordinary);
}

/// r1: a map.
fn load_map(code: &mut Code, map: i32) {
    code.op(LOAD_WIDE, 1, BPF_PSEUDO_MAP_FD, 0, map);
    code.op(0, 0, 0, 0, 0);
}

/// A register: a place on the stack.
fn point(code: &mut Code, register: u8, place: i16) {
    code.op(MOVE_REGISTER, register, STACK, 0, 0);
    code.op(ADD, register, 0, 0, i32::from(place));
}

/// r0: the value of a key on the stack.
fn look_up(code: &mut Code, map: i32, place: i16) {
    load_map(code, map);
    point(code, 2, place);
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
    Ends,
    Answers,
    Noted,
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
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn jumps_lead_forward_and_stay_within() {
        let program = assemble(3, 4);
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
        let flows = [("10.88.0.2:1234", "10.88.0.3:80"), ("[fd00:88::2]:1234", "[fd00:88::3]:80")];
        for (client, server) in flows.map(|(client, server)| (client.parse().unwrap(), server.parse().unwrap())) {
            assert_eq!(ends(&flow(client, server)), (client, server));
        }
        assert_eq!(value(1, [2; 6], [3; 6])[4..], [2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3]);
    }
}
