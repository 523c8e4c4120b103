//! Packets of the holder's protocol: JSON and descriptors, large bodies by memfd. Knows bytes, not what they mean.

use std::io;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use podholder::protocol::PACKET_LIMIT;
use rustix::fs::MemfdFlags;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// More descriptors than any message has.
const MAX_FDS: usize = 8;
/// A state of hundreds of containers stays far below; a holder gone mad doesn't take the agent's memory with it.
const BODY_LIMIT: u64 = 64 << 20;

/// What to send: made once, sent when the socket takes it.
pub struct Packet<'a> {
    body: &'a [u8],
    fds: Vec<BorrowedFd<'a>>,
}

/// Puts a body that is too large for a packet into a memfd.
pub fn spill(body: &[u8]) -> io::Result<Option<OwnedFd>> {
    if body.len() <= PACKET_LIMIT {
        return Ok(None);
    }
    let memfd = rustix::fs::memfd_create("body", MemfdFlags::CLOEXEC)?;
    let mut rest = body;
    while !rest.is_empty() {
        let written = rustix::io::write(&memfd, rest)?;
        rest = rest.get(written..).unwrap_or_default();
    }
    Ok(Some(memfd))
}

impl<'a> Packet<'a> {
    /// `spilled` is what [`spill`] said of `body`.
    pub fn new(body: &'a [u8], spilled: Option<&'a OwnedFd>, fds: &'a [OwnedFd]) -> Self {
        let mut fds: Vec<BorrowedFd<'a>> = fds.iter().map(AsFd::as_fd).collect();
        let body = if spilled.is_some() { &[][..] } else { body };
        fds.extend(spilled.map(AsFd::as_fd));
        Self { body, fds }
    }

    /// One sendmsg: a packet goes whole or not at all, so that many tasks may send on one socket.
    pub fn send(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS + 1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !self.fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&self.fds)) {
            return Err(io::Error::other("too many descriptors for one message"));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        sendmsg(socket, &[IoSlice::new(self.body)], &mut control, flags)?;
        Ok(())
    }
}

/// One packet, read into `buffer` ([`PACKET_LIMIT`] bytes or more). `None`: the other side is gone.
pub fn receive<T>(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    decode: impl FnOnce(&[u8]) -> io::Result<T>,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS + 1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let got = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    if got.bytes > 0 {
        let body = buffer.get(..got.bytes).unwrap_or_default();
        return Ok(Some((decode(body)?, fds)));
    }
    match fds.pop() {
        Some(memfd) => Ok(Some((decode(&read_memfd(&memfd)?)?, fds))),
        None => Ok(None),
    }
}

fn read_memfd(memfd: &OwnedFd) -> io::Result<Vec<u8>> {
    let size = u64::try_from(rustix::fs::fstat(memfd)?.st_size).unwrap_or(u64::MAX);
    if size > BODY_LIMIT {
        return Err(io::Error::other(format!("a message of {size} bytes")));
    }
    let mut body = vec![0; usize::try_from(size).unwrap_or_default()];
    let mut at = 0;
    while at < body.len() {
        match rustix::io::pread(memfd, body.get_mut(at..).unwrap_or_default(), at as u64)? {
            0 => break,
            n => at += n,
        }
    }
    body.truncate(at);
    Ok(body)
}
