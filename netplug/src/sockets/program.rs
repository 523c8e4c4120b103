//! What the kernel runs when a pod's process calls connect() or getpeername(): eBPF, assembled here. Pure. linux/bpf.h is the reference,
//! `struct bpf_sock_addr` above all.
//!
//! connect() to a Service's address is given an endpoint's in its place, drawn as the rules would draw it, and the socket remembers what was
//! asked for, which is what getpeername() is told.

use crate::ebpf::{
    Code, GET_NETNS_COOKIE, GET_PRANDOM_U32, JUMP_IF, JUMP_UNLESS, JUMP_UNLESS_REGISTER, LOAD_DOUBLE, LOAD_HALF, LOAD_WORD,
    MODULO_REGISTER, MOVE, MOVE_REGISTER, SK_STORAGE_DELETE, SK_STORAGE_GET, STACK, STORE_DOUBLE, STORE_HALF, STORE_HALF_VALUE,
    STORE_WORD,
};

/// Of a pod's key: its network namespace's cookie.
pub(super) const COOKIE: usize = 8;
/// Of an address: 16 bytes as in [`crate::direct::key`], the port as packets have it, and nothing.
pub(super) const ADDRESS: usize = 20;
/// Of what is kept of a Service: the number of its list of endpoints, and how long that is.
pub(super) const LIST: usize = 8;
/// Of an endpoint's key: its list's number, and its place in it.
pub(super) const PLACE: usize = 8;
/// Of an endpoint: the address that leads to it, and its own. The kernel may use an element for another while it is read: what is read
/// first counts if the other is right after that.
pub(super) const ENDPOINT: usize = 2 * ADDRESS;

/// What a pod's key leads to: the pod's first address, for who comes after.
pub(super) const POD: usize = 16;

// Of `struct bpf_sock_addr`.
const USER_IP4: i16 = 4;
const USER_IP6: i16 = 8;
const USER_PORT: i16 = 24;
const PROTOCOL: i16 = 36;
const SOCKET: i16 = 64;

const IPPROTO_TCP: i32 = 6;
const SK_STORAGE_GET_F_CREATE: i32 = 1;
/// The call goes on.
const GO_ON: i32 = 1;

const CONTEXT: u8 = 6;
const COUNT: u8 = 7;
/// The stack, from below: the endpoint's address, the one that was asked for, an endpoint's key or a cookie.
const CHOSEN: i16 = -56;
const ASKED: i16 = -32;
const KEY: i16 = -8;

/// The descriptors of the maps.
#[derive(Debug, Clone, Copy)]
pub(super) struct Maps {
    pub(super) pods: i32,
    pub(super) services: i32,
    pub(super) endpoints: i32,
    pub(super) asked: i32,
}

/// Of what sockets: IPv6 ones may be connected to IPv4 addresses, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sockets {
    V4,
    V6,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Label {
    Lead,
    GoOn,
}

/// connect().
pub(super) fn connect(sockets: Sockets, maps: Maps) -> Vec<u8> {
    let mut code = Code::new();
    code.op(MOVE_REGISTER, CONTEXT, 1, 0, 0);
    code.op(LOAD_WORD, 1, CONTEXT, PROTOCOL, 0);
    code.jump(JUMP_UNLESS, 1, 0, IPPROTO_TCP, Label::GoOn);
    // A pod may have networks within its own, in which such an address is somebody else's.
    code.op(MOVE_REGISTER, 1, CONTEXT, 0, 0);
    code.call(GET_NETNS_COOKIE);
    code.op(STORE_DOUBLE, STACK, 0, KEY, 0);
    code.look_up(maps.pods, KEY);
    code.jump(JUMP_IF, 0, 0, 0, Label::GoOn);
    // What it asked for before, if it failed then.
    code.load_map(maps.asked);
    code.op(LOAD_DOUBLE, 2, CONTEXT, SOCKET, 0);
    code.call(SK_STORAGE_DELETE);
    read_address(&mut code, sockets);
    code.look_up(maps.services, ASKED);
    code.jump(JUMP_IF, 0, 0, 0, Label::GoOn);
    // Number and count at once.
    code.op(LOAD_DOUBLE, 1, 0, 0, 0);
    code.op(STORE_DOUBLE, STACK, 1, KEY, 0);
    code.op(LOAD_WORD, COUNT, STACK, KEY + 4, 0);
    code.call(GET_PRANDOM_U32);
    code.op(MODULO_REGISTER, 0, COUNT, 0, 0);
    code.op(STORE_WORD, STACK, 0, KEY + 4, 0);
    code.look_up(maps.endpoints, KEY);
    // The list has just been replaced: the rules know.
    code.jump(JUMP_IF, 0, 0, 0, Label::GoOn);
    code.copy(ADDRESS as i16 / 4, (0, ADDRESS as i16), (STACK, CHOSEN));
    for word in (0..ADDRESS as i16).step_by(4) {
        code.op(LOAD_WORD, 1, 0, word, 0);
        code.op(LOAD_WORD, 2, STACK, ASKED + word, 0);
        code.jump(JUMP_UNLESS_REGISTER, 1, 2, 0, Label::GoOn);
    }
    code.load_map(maps.asked);
    code.op(LOAD_DOUBLE, 2, CONTEXT, SOCKET, 0);
    code.point(3, ASKED);
    code.op(MOVE, 4, 0, 0, SK_STORAGE_GET_F_CREATE);
    // Without memory for that it connects all the same, and knows its endpoint's name.
    code.call(SK_STORAGE_GET);
    write_address(&mut code, sockets, STACK, CHOSEN);
    code.here(Label::GoOn);
    code.answer(GO_ON);
    code.finish()
}

/// getpeername().
pub(super) fn peer_name(sockets: Sockets, maps: Maps) -> Vec<u8> {
    let mut code = Code::new();
    code.op(MOVE_REGISTER, CONTEXT, 1, 0, 0);
    code.load_map(maps.asked);
    code.op(LOAD_DOUBLE, 2, CONTEXT, SOCKET, 0);
    code.op(MOVE, 3, 0, 0, 0);
    code.op(MOVE, 4, 0, 0, 0);
    code.call(SK_STORAGE_GET);
    code.jump(JUMP_UNLESS, 0, 0, 0, Label::Lead);
    code.answer(GO_ON);
    code.here(Label::Lead);
    write_address(&mut code, sockets, 0, 0);
    code.answer(GO_ON);
    code.finish()
}

/// The address that was given → the stack.
fn read_address(code: &mut Code<Label>, sockets: Sockets) {
    match sockets {
        Sockets::V4 => code.copy_mapped((CONTEXT, USER_IP4), ASKED),
        Sockets::V6 => code.copy(4, (CONTEXT, USER_IP6), (STACK, ASKED)),
    }
    code.op(LOAD_WORD, 1, CONTEXT, USER_PORT, 0);
    code.op(STORE_HALF, STACK, 1, ASKED + 16, 0);
    code.op(STORE_HALF_VALUE, STACK, 0, ASKED + 18, 0);
}

/// The address that is so far from where a register points → what is given.
fn write_address(code: &mut Code<Label>, sockets: Sockets, from: u8, at: i16) {
    match sockets {
        Sockets::V4 => code.copy(1, (from, at + 12), (CONTEXT, USER_IP4)),
        Sockets::V6 => code.copy(4, (from, at), (CONTEXT, USER_IP6)),
    }
    code.op(LOAD_HALF, 1, from, at + 16, 0);
    code.op(STORE_WORD, CONTEXT, 1, USER_PORT, 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ebpf::assert_forward;

    #[test]
    fn jumps_lead_forward_and_stay_within() {
        let maps = Maps { pods: 3, services: 4, endpoints: 5, asked: 6 };
        for sockets in [Sockets::V4, Sockets::V6] {
            assert_forward(&connect(sockets, maps));
            assert_forward(&peer_name(sockets, maps));
        }
    }
}
