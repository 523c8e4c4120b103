//! Netlink by hand: many requests in one `send`, and their answers read back at once. The kernel works on a request inside
//! `send`, so when it returns every answer is in the socket already: nothing is waited for, and one pair of system calls
//! carries a whole step. rtnetlink's own connection sends one request a system call and wakes a task for each answer.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::atomic::{AtomicU32, Ordering},
};

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::Socket;
use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send, sockopt},
};

use crate::error::Refused;

const HEADER: usize = 16;
const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLM_F_DUMP_INTR: u16 = 0x10;
const RECEIVE_BUFFER: usize = 256 * 1024;
/// A table with thousands of ports is one message batch.
const SOCKET_BUFFER: usize = 8 * 1024 * 1024;

/// Numbers are never used twice in a process, so that a late answer can't be taken for another request's.
static SEQUENCE: AtomicU32 = AtomicU32::new(1);

/// The next `count` sequence numbers; the first is returned.
pub(crate) fn sequence(count: usize) -> u32 {
    SEQUENCE.fetch_add(count as u32, Ordering::Relaxed)
}

/// A socket of the calling thread's network namespace.
pub(crate) fn socket(protocol: isize) -> std::io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    // Bound from the start: its number then stands in what the kernel tells others of our requests.
    socket.bind_auto()?;
    socket.set_ext_ack(true)?;
    socket.set_cap_ack(true)?;
    // Best effort: without CAP_NET_ADMIN nothing else will work either, and that error is the better one.
    let _ = sockopt::set_socket_send_buffer_size_force(&socket, SOCKET_BUFFER);
    let _ = sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER);
    Ok(socket)
}

/// A route socket of the calling thread's network namespace, to be used from others.
pub(crate) fn inside() -> std::io::Result<OwnedFd> {
    socket(netlink_sys::protocols::NETLINK_ROUTE)?.as_fd().try_clone_to_owned()
}

/// The number by which the kernel names a socket.
pub(crate) fn port_id(socket: &Socket) -> std::io::Result<u32> {
    let mut address = netlink_sys::SocketAddr::new(0, 0);
    socket.get_address(&mut address)?;
    Ok(address.port_number())
}

/// What the kernel said to one message.
#[derive(Debug)]
pub(crate) enum Answer<'a> {
    Ack,
    Refused(Refused),
    Message(&'a [u8]),
}

/// Sends and receives, with a buffer that is kept.
pub(crate) struct Wire {
    buffer: Vec<u8>,
}

impl Wire {
    pub(crate) fn new() -> Wire {
        Wire { buffer: vec![0; RECEIVE_BUFFER] }
    }

    /// Sends one packet of messages and gives every answer, with its sequence number, to `each`.
    pub(crate) fn exchange(
        &mut self,
        socket: impl AsFd,
        packet: &[u8],
        mut each: impl FnMut(u32, Answer<'_>),
    ) -> Result<(), Refused> {
        send(&socket, packet, SendFlags::empty())?;
        loop {
            let length = match recv(&socket, &mut self.buffer[..], RecvFlags::DONTWAIT | RecvFlags::TRUNC) {
                Ok((_, length)) => length,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            };
            let Some(mut rest) = self.buffer.get(..length) else { return Err(Errno::MSGSIZE.into()) };
            while let Some((message, after)) = split(rest) {
                let seq = u32_at(message, 8);
                if let Some(answer) = answer(message) {
                    each(seq, answer);
                }
                rest = after;
            }
        }
    }

    /// Sends route requests in one packet. The outcome has one entry a request, in order.
    pub(crate) fn route(&mut self, socket: impl AsFd, requests: Vec<Request>) -> Result<Vec<Outcome>, Refused> {
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        let first = sequence(requests.len());
        let mut outcomes: Vec<Outcome> = requests.iter().map(|_| Outcome::default()).collect();
        let packet = encode(requests, first);
        self.exchange(socket, &packet, |seq, answer| {
            let Some(outcome) = outcomes.get_mut(seq.wrapping_sub(first) as usize) else { return };
            match answer {
                Answer::Ack => outcome.settled = true,
                Answer::Refused(refused) => outcome.refused = Some(refused),
                Answer::Message(bytes) => outcome.messages.extend(decode(bytes)),
            }
        })?;
        Ok(outcomes)
    }

    /// As [`Wire::route`], for one request whose refusal is an error.
    pub(crate) fn route_one(&mut self, socket: impl AsFd, request: Request) -> Result<Vec<RouteNetlinkMessage>, Refused> {
        match self.route(socket, vec![request])?.pop() {
            Some(outcome) => outcome.ok(),
            None => Ok(Vec::new()),
        }
    }

    /// A dump, begun again when the kernel says that it changed on the way.
    pub(crate) fn dump(
        &mut self,
        socket: impl AsFd,
        message: impl Fn() -> RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, Refused> {
        until_whole(|| self.route_one(&socket, Request::dump(message())))
    }
}

/// Lists again when what is listed changed on the way. A host where that never ends is told of.
pub(crate) fn until_whole<T>(mut list: impl FnMut() -> Result<T, Refused>) -> Result<T, Refused> {
    let interrupted = Errno::INTR.raw_os_error();
    for _ in 0..64 {
        match list() {
            Err(refused) if refused.errno == interrupted => {}
            outcome => return outcome,
        }
    }
    Err(Errno::INTR.into())
}

/// A message and how it is meant.
pub(crate) struct Request {
    message: RouteNetlinkMessage,
    flags: u16,
}

impl Request {
    pub(crate) fn new(message: RouteNetlinkMessage, flags: u16) -> Request {
        Request { message, flags: flags | NLM_F_REQUEST | NLM_F_ACK }
    }

    fn dump(message: RouteNetlinkMessage) -> Request {
        Request { message, flags: NLM_F_REQUEST | netlink_packet_core::NLM_F_DUMP }
    }
}

/// What came of one request.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    settled: bool,
    refused: Option<Refused>,
    messages: Vec<RouteNetlinkMessage>,
}

impl Outcome {
    pub(crate) fn ok(self) -> Result<Vec<RouteNetlinkMessage>, Refused> {
        match self.refused {
            Some(refused) => Err(refused),
            None if self.settled => Ok(self.messages),
            // The kernel always answers; only a full receive buffer loses what it said.
            None => Err(Errno::NOBUFS.into()),
        }
    }

    pub(crate) fn refusal(self) -> Option<Refused> {
        self.ok().err()
    }
}

fn encode(requests: Vec<Request>, first: u32) -> Vec<u8> {
    let mut packet = Vec::new();
    for (index, request) in requests.into_iter().enumerate() {
        let mut message = NetlinkMessage::from(request.message);
        message.header.flags = request.flags;
        message.header.sequence_number = first.wrapping_add(index as u32);
        message.finalize();
        let start = packet.len();
        packet.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut packet[start..start + message.header.length as usize]);
    }
    packet
}

/// A message that the crate can't read is none that was asked for.
pub(crate) fn decode(bytes: &[u8]) -> Option<RouteNetlinkMessage> {
    match NetlinkMessage::deserialize(bytes).ok()?.payload {
        NetlinkPayload::InnerMessage(message) => Some(message),
        _ => None,
    }
}

/// The first message of a packet, and what follows it.
pub(crate) fn split(packet: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = u32::from_ne_bytes(packet.get(..4)?.try_into().ok()?) as usize;
    if length < HEADER {
        return None;
    }
    let message = packet.get(..length)?;
    Some((message, packet.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

fn answer(message: &[u8]) -> Option<Answer<'_>> {
    match kind(message) {
        // A part of a list that changed while it was told: something may be missing, or be there twice.
        _ if flags(message) & NLM_F_DUMP_INTR != 0 => Some(Answer::Refused(Errno::INTR.into())),
        NLMSG_NOOP => None,
        NLMSG_ERROR | NLMSG_DONE => Some(match u32_at(message, HEADER) as i32 {
            0 => Answer::Ack,
            code => Answer::Refused(Refused { errno: code.saturating_abs(), detail: detail(message) }),
        }),
        _ => Some(Answer::Message(message)),
    }
}

/// The text that the kernel adds to a refusal.
fn detail(message: &[u8]) -> Option<String> {
    if flags(message) & NLM_F_ACK_TLVS == 0 || kind(message) != NLMSG_ERROR {
        return None;
    }
    // An error carries its number, the refused message's header and, unless capped, the message itself.
    let refused = message.get(HEADER + 4..)?;
    let skip = if flags(message) & NLM_F_CAPPED != 0 { HEADER } else { u32_at(refused, 0) as usize };
    let text = attributes(refused.get(skip.next_multiple_of(4)..)?).find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG)?.1;
    let text = String::from_utf8_lossy(text).trim_end_matches(['\0', '\n', '.']).to_owned();
    (!text.is_empty()).then_some(text)
}

/// The attributes of a message's tail: type without its flags, and value.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

pub(crate) fn kind(message: &[u8]) -> u16 {
    message.get(4..6).and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_ne_bytes)
}

fn flags(message: &[u8]) -> u16 {
    message.get(6..8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_ne_bytes)
}

/// Whose request a message answers or tells of: the port of the socket that it came by.
pub(crate) fn sender(message: &[u8]) -> u32 {
    u32_at(message, 12)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn message(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
        let mut message = (HEADER as u32 + body.len() as u32).to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend(sequence.to_ne_bytes());
        message.extend([0; 4]);
        message.extend(body);
        message
    }

    /// What a kernel answers, in place of one.
    fn exchange(answers: &[Vec<u8>]) -> Vec<String> {
        let (ours, mut kernel) = std::os::unix::net::UnixStream::pair().unwrap();
        kernel.write_all(&answers.concat()).unwrap();
        let mut heard = Vec::new();
        Wire::new().exchange(&ours, b"question", |sequence, answer| heard.push(format!("{sequence} {answer:?}"))).unwrap();
        let mut asked = [0; 8];
        kernel.read_exact(&mut asked).unwrap();
        heard
    }

    #[test]
    fn a_list_that_changed_while_it_was_told_is_no_list() {
        let done = message(NLMSG_DONE, 0, 7, &[0; 4]);
        assert_eq!(exchange(&[message(16, 0, 7, b"link"), done.clone()]).len(), 2);
        assert!(exchange(std::slice::from_ref(&done))[0].contains("Ack"));
        for interrupted in [
            [message(16, NLM_F_DUMP_INTR, 7, b"link"), done.clone()],
            [message(16, 0, 7, b"link"), message(NLMSG_DONE, NLM_F_DUMP_INTR, 7, &[0; 4])],
        ] {
            let heard = exchange(&interrupted).join(", ");
            assert!(heard.contains("Refused") && heard.contains(&Errno::INTR.raw_os_error().to_string()), "{heard}");
        }
    }

    #[test]
    fn it_is_asked_for_again_until_it_is_whole() {
        let mut left = 3;
        let listed = until_whole(|| {
            left -= 1;
            if left > 0 { Err(Errno::INTR.into()) } else { Ok("all") }
        });
        assert_eq!((listed.unwrap(), left), ("all", 0));
        let refused = until_whole(|| Err::<(), _>(Errno::PERM.into())).unwrap_err();
        assert_eq!(refused.errno, Errno::PERM.raw_os_error(), "another refusal is one");
        assert!(until_whole(|| Err::<(), _>(Errno::INTR.into())).is_err(), "there is an end to it");
    }
}
