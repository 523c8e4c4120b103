//! The program at the host's end of a pod's link: eBPF, assembled here. Pure. linux/bpf.h and the kernel's Documentation/bpf are the
//! reference.
//!
//! It finds both ends of a packet in a map (see [`key`] and [`value`]), and if the packet came from where its source is, hands it to the
//! receiver's own interface. Whatever it doesn't know goes the ordinary way. In another map it notes the TCP connections that begin, until
//! they end (see [`flow`]): connection tracking, which hasn't seen them, is told of them when they are to take the ordinary way. Where
//! connections are translated to one of the ends ([`Care::Noted`]), packets of noted connections alone are handed over: what answers a
//! translated one must be translated back.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::{
    ebpf::{
        ADD, AND, Code, JUMP, JUMP_IF, JUMP_IF_ABOVE_REGISTER, JUMP_IF_BITS, JUMP_UNLESS, JUMP_UNLESS_REGISTER, LOAD_BYTE,
        LOAD_DOUBLE, LOAD_HALF, LOAD_WORD, MAP_DELETE_ELEM, MAP_UPDATE_ELEM, MOVE, MOVE_REGISTER, OR_REGISTER, REDIRECT_PEER,
        SKB_CHANGE_TYPE, SKB_STORE_BYTES, STACK, STORE_BYTE_VALUE, STORE_DOUBLE, STORE_HALF, STORE_WORD, STORE_WORD_VALUE,
    },
    links::Mac,
};

/// Of a key: an IPv6 address, or an IPv4 address as one (`::ffff:a.b.c.d`).
pub(super) const KEY: usize = 16;
/// Of a value: the index of the host's end, the pod's MAC and the bridge's, and which packets are handed over.
pub(super) const VALUE: usize = 20;
/// Of a connection: the keys of who opened it and of whom it was opened to, and their ports.
pub(super) const FLOW: usize = 2 * KEY + 4;
/// Of what is kept of a connection: a byte each for whether it was answered, closed by the client, and closed by the server. They are
/// written by several processors.
pub(super) const NOTE: usize = 4;
const ANSWERED: usize = 0;
const CLIENT_CLOSED: usize = 1;
const SERVER_CLOSED: usize = 2;

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
const CONTEXT: u8 = 6;
const PACKET: u8 = 7;
const PACKET_END: u8 = 8;
const PEER: u8 = 9;
/// When the packet has been read: the key under which its connection is noted, and whether one must be.
const NOTED: u8 = PACKET;
const CARE: u8 = PACKET_END;
const PACKET_HOST: i32 = 0;
/// The packet goes on as if there were no program (TC_ACT_UNSPEC).
const GO_ON: i32 = -1;

/// Where a pod's address is kept.
pub(crate) fn key(ip: IpAddr) -> [u8; KEY] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// Which packets of a pod are handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Care {
    /// All.
    None,
    /// Those of TCP connections that were seen to begin between the two ends.
    Noted,
}

/// What is kept of a pod: the host's end of its link, and what is written over the Ethernet addresses of what it gets. They are those that
/// the ordinary way would write.
pub(super) fn value(link: u32, pod: Mac, bridge: Mac, care: Care) -> [u8; VALUE] {
    let mut value = [0; VALUE];
    value[..4].copy_from_slice(&link.to_ne_bytes());
    value[4..10].copy_from_slice(&pod);
    value[10..16].copy_from_slice(&bridge);
    value[16..].copy_from_slice(&u32::from(care == Care::Noted).to_ne_bytes());
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
    let mut note = [0; NOTE];
    note[ANSWERED] = 1;
    note
}

/// Whether a connection is open, at one end at least.
pub(super) fn is_open(note: &[u8]) -> bool {
    note.get(ANSWERED) == Some(&1) && note.get(CLIENT_CLOSED..=SERVER_CLOSED) != Some(&[1, 1])
}

/// What [`key`] made.
pub(crate) fn address(key: [u8; KEY]) -> IpAddr {
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
    let mut code = Code::new();
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
    // Ports, too: an old verifier doesn't follow that without flags no connection is looked up.
    code.op(STORE_WORD_VALUE, STACK, 0, PORTS, 0);
    code.op(STORE_WORD_VALUE, STACK, 0, FLAGS, 0);
    code.jump(JUMP_IF, 4, 0, IPPROTO_UDP, Label::Carried);
    code.jump(JUMP_UNLESS, 4, 0, IPPROTO_TCP, Label::Ordinary);
    tcp(&mut code);
    code.here(Label::Carried);
    // Who says to be the sender must be behind the link that it came by.
    code.look_up(pods, SOURCE);
    code.jump(JUMP_IF, 0, 0, 0, Label::Ordinary);
    code.op(LOAD_WORD, 1, 0, 0, 0);
    code.op(LOAD_WORD, 2, CONTEXT, IFINDEX, 0);
    code.jump(JUMP_UNLESS_REGISTER, 1, 2, 0, Label::Ordinary);
    code.op(LOAD_WORD, CARE, 0, 16, 0);
    code.look_up(pods, DESTINATION);
    code.jump(JUMP_IF, 0, 0, 0, Label::Ordinary);
    code.op(MOVE_REGISTER, PEER, 0, 0, 0);
    code.op(LOAD_WORD, 1, 0, 16, 0);
    code.op(OR_REGISTER, CARE, 1, 0, 0);
    follow(&mut code, flows);
    code.here(Label::Handed);
    hand_over(&mut code);
    code.here(Label::Ordinary);
    code.answer(GO_ON);
    code.finish()
}

/// Puts the addresses on the stack, the protocol into r4 and what follows the header into r5. Neither options nor fragments.
fn ipv4(code: &mut Code<Label>) {
    bounds(code, ETHERNET + 20);
    code.op(LOAD_BYTE, 2, PACKET, ETHERNET, 0);
    code.jump(JUMP_UNLESS, 2, 0, 0x45, Label::Ordinary);
    // The offset, and whether more follow.
    code.op(LOAD_HALF, 2, PACKET, ETHERNET + 6, 0);
    code.op(AND, 2, 0, 0, network(0x3fff));
    code.jump(JUMP_UNLESS, 2, 0, 0, Label::Ordinary);
    code.op(LOAD_BYTE, 4, PACKET, ETHERNET + 9, 0);
    code.copy_mapped((PACKET, ETHERNET + 12), SOURCE);
    code.copy_mapped((PACKET, ETHERNET + 16), DESTINATION);
    behind(code, ETHERNET + 20);
}

/// As [`ipv4`]. A next header that isn't the transport's own (fragments, options) is none of those that are handed over.
fn ipv6(code: &mut Code<Label>) {
    bounds(code, ETHERNET + 40);
    code.op(LOAD_BYTE, 4, PACKET, ETHERNET + 6, 0);
    code.copy(4, (PACKET, ETHERNET + 8), (STACK, SOURCE));
    code.copy(4, (PACKET, ETHERNET + 24), (STACK, DESTINATION));
    behind(code, ETHERNET + 40);
}

fn behind(code: &mut Code<Label>, header: i16) {
    code.op(MOVE_REGISTER, 5, PACKET, 0, 0);
    code.op(ADD, 5, 0, 0, i32::from(header));
}

/// Puts ports and flags on the stack.
fn tcp(code: &mut Code<Label>) {
    code.op(MOVE_REGISTER, 2, 5, 0, 0);
    code.op(ADD, 2, 0, 0, 20);
    code.jump(JUMP_IF_ABOVE_REGISTER, 2, PACKET_END, 0, Label::Ordinary);
    code.op(LOAD_WORD, 2, 5, 0, 0);
    code.op(STORE_WORD, STACK, 2, PORTS, 0);
    code.op(LOAD_BYTE, 2, 5, 13, 0);
    code.op(AND, 2, 0, 0, FIN | SYN | RST | ACK);
    code.op(STORE_WORD, STACK, 2, FLAGS, 0);
}

/// Notes a connection that begins, and that it was answered, and forgets one that has ended, whoever ends it. Where connections must be
/// noted, one that isn't goes the ordinary way, and one that both have closed is forgotten with the packet after: that acknowledges it.
fn follow(code: &mut Code<Label>, flows: i32) {
    code.op(LOAD_WORD, 1, STACK, FLAGS, 0);
    code.jump(JUMP_IF, 1, 0, SYN, Label::Begins);
    code.jump(JUMP_IF_BITS, 1, 0, FIN | RST, Label::Known);
    code.jump(JUMP_IF, 1, 0, SYN | ACK, Label::Known);
    code.jump(JUMP_IF, CARE, 0, 0, Label::Handed);
    // No TCP.
    code.jump(JUMP_IF, 1, 0, 0, Label::Ordinary);
    code.here(Label::Known);
    code.point(NOTED, SOURCE);
    code.look_up(flows, SOURCE);
    code.jump(JUMP_UNLESS, 0, 0, 0, Label::Client);
    turn_round(code);
    code.point(NOTED, REVERSE);
    code.look_up(flows, REVERSE);
    code.jump(JUMP_UNLESS, 0, 0, 0, Label::Server);
    code.jump(JUMP_IF, CARE, 0, 0, Label::Handed);
    code.jump(JUMP, 0, 0, 0, Label::Ordinary);

    code.here(Label::Client);
    code.op(LOAD_WORD, 1, STACK, FLAGS, 0);
    code.jump(JUMP_IF_BITS, 1, 0, RST, Label::Over);
    code.jump(JUMP_IF_BITS, 1, 0, FIN, Label::ClientCloses);
    code.jump(JUMP, 0, 0, 0, Label::Goes);
    code.here(Label::ClientCloses);
    code.op(STORE_BYTE_VALUE, 0, 0, CLIENT_CLOSED as i16, 1);
    code.jump(JUMP, 0, 0, 0, Label::Closes);

    code.here(Label::Server);
    code.op(LOAD_WORD, 1, STACK, FLAGS, 0);
    code.jump(JUMP_IF_BITS, 1, 0, RST, Label::Over);
    code.jump(JUMP_IF_BITS, 1, 0, FIN, Label::ServerCloses);
    code.jump(JUMP_UNLESS, 1, 0, SYN | ACK, Label::Goes);
    code.op(STORE_BYTE_VALUE, 0, 0, ANSWERED as i16, 1);
    code.jump(JUMP, 0, 0, 0, Label::Handed);
    code.here(Label::ServerCloses);
    code.op(STORE_BYTE_VALUE, 0, 0, SERVER_CLOSED as i16, 1);
    code.here(Label::Closes);
    code.jump(JUMP_UNLESS, CARE, 0, 0, Label::Handed);
    code.here(Label::Goes);
    for closed in [CLIENT_CLOSED, SERVER_CLOSED] {
        code.op(LOAD_BYTE, 1, 0, closed as i16, 0);
        code.jump(JUMP_IF, 1, 0, 0, Label::Handed);
    }
    code.here(Label::Over);
    code.load_map(flows);
    code.op(MOVE_REGISTER, 2, NOTED, 0, 0);
    code.call(MAP_DELETE_ELEM);
    code.jump(JUMP, 0, 0, 0, Label::Handed);

    code.here(Label::Begins);
    code.op(STORE_WORD_VALUE, STACK, 0, FLAGS, 0);
    code.load_map(flows);
    code.point(2, SOURCE);
    code.point(3, FLAGS);
    code.op(MOVE, 4, 0, 0, 0);
    code.call(MAP_UPDATE_ELEM);
    code.jump(JUMP_IF, 0, 0, 0, Label::Handed);
    // When there are too many, connection tracking will have to guess.
    code.jump(JUMP_UNLESS, CARE, 0, 0, Label::Ordinary);
}

/// Puts the connection as its other end has it on the stack.
fn turn_round(code: &mut Code<Label>) {
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
fn bounds(code: &mut Code<Label>, length: i16) {
    code.op(MOVE_REGISTER, 2, PACKET, 0, 0);
    code.op(ADD, 2, 0, 0, i32::from(length));
    code.jump(JUMP_IF_ABOVE_REGISTER, 2, PACKET_END, 0, Label::Ordinary);
}

/// Writes the Ethernet addresses, says that it is for who gets it, and gives it to the other end of its link.
fn hand_over(code: &mut Code<Label>) {
    code.op(MOVE_REGISTER, 1, CONTEXT, 0, 0);
    code.op(MOVE, 2, 0, 0, 0);
    code.op(MOVE_REGISTER, 3, PEER, 0, 0);
    code.op(ADD, 3, 0, 0, 4);
    code.op(MOVE, 4, 0, 0, 12);
    code.op(MOVE, 5, 0, 0, 0);
    code.call(SKB_STORE_BYTES);
    code.jump(JUMP_UNLESS, 0, 0, 0, Label::Ordinary);
    code.op(MOVE_REGISTER, 1, CONTEXT, 0, 0);
    code.op(MOVE, 2, 0, 0, PACKET_HOST);
    code.call(SKB_CHANGE_TYPE);
    code.op(LOAD_WORD, 1, PEER, 0, 0);
    code.op(MOVE, 2, 0, 0, 0);
    code.call(REDIRECT_PEER);
    code.exit();
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
    Known,
    Client,
    ClientCloses,
    Server,
    ServerCloses,
    Closes,
    Goes,
    Over,
    Begins,
    Handed,
    Ordinary,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::ebpf::assert_forward;

    #[test]
    fn jumps_lead_forward_and_stay_within() {
        assert_forward(&assemble(3, 4));
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
        assert_eq!(value(1, [2; 6], [3; 6], Care::None)[4..], [2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 0, 0, 0, 0]);
        assert!(is_open(&answered()) && is_open(&[1, 1, 0, 0]) && !is_open(&[1, 1, 1, 0]) && !is_open(&[0; 4]));
    }
}
