//! One message of [`crate::protocol`] over a `SOCK_SEQPACKET` socket, with descriptors beside it.
//!
//! Never blocks (`MSG_DONTWAIT`): `ErrorKind::WouldBlock` says to wait for the socket, by epoll or `AsyncFd`, and call again.

use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, MemfdFlags};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::protocol::PACKET_LIMIT;

/// Most descriptors beside a message, the memfd of a long body included.
pub const DESCRIPTOR_LIMIT: usize = 8;
/// The longest body, in a memfd.
pub const BODY_LIMIT: u64 = 64 << 20;

/// One message as it came.
#[derive(Debug)]
pub struct Packet {
    /// JSON.
    pub body: Vec<u8>,
    /// In the sender's order, CLOEXEC.
    pub fds: Vec<OwnedFd>,
}

impl Packet {
    /// The body as what it says it is.
    pub fn decode<T: DeserializeOwned>(&self) -> io::Result<T> {
        Ok(serde_json::from_slice(&self.body)?)
    }
}

/// The body of a message.
pub fn encode<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    Ok(serde_json::to_vec(message)?)
}

/// Sends all or nothing.
///
/// # Errors
/// `WouldBlock`: the receiver is behind, nothing was sent. `InvalidInput`: more than [`DESCRIPTOR_LIMIT`] descriptors.
pub fn send(socket: BorrowedFd<'_>, body: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if body.len() <= PACKET_LIMIT && !body.is_empty() {
        return send_packet(socket, body, fds);
    }
    let mut long = std::fs::File::from(rustix::fs::memfd_create("message", MemfdFlags::CLOEXEC)?);
    long.write_all(body)?;
    let fds: Vec<BorrowedFd<'_>> = fds.iter().copied().chain([long.as_fd()]).collect();
    send_packet(socket, &[], &fds)
}

fn send_packet(socket: BorrowedFd<'_>, body: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTOR_LIMIT))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if fds.len() > DESCRIPTOR_LIMIT || (!fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds))) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors beside one message"));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(body)], &mut control, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The next message; none at the end of the stream.
///
/// # Errors
/// `WouldBlock`: nothing is there yet. `InvalidData`: it was cut, has too many descriptors or a body over [`BODY_LIMIT`]: the
/// connection is of no more use.
pub fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<Packet>> {
    // Its length first, so that an idle process keeps no buffer of the largest size.
    let mut empty: [u8; 0] = [];
    let peek = RecvFlags::PEEK | RecvFlags::TRUNC | RecvFlags::DONTWAIT;
    let (_, length) = match rustix::net::recv(socket, &mut empty, peek) {
        // The other side left with messages of ours unread: the end all the same.
        Err(Errno::CONNRESET) => return Ok(None),
        length => length?,
    };
    let mut body = vec![0; length];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTOR_LIMIT))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut body)], &mut control, flags)?;
    let mut fds: Vec<OwnedFd> = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message was cut"));
    }
    if received.bytes > 0 {
        return Ok(Some(Packet { body, fds }));
    }
    let Some(long) = fds.pop() else { return Ok(None) };
    Ok(Some(Packet { body: read_long(long)?, fds }))
}

fn read_long(memfd: OwnedFd) -> io::Result<Vec<u8>> {
    let stat = rustix::fs::fstat(&memfd)?;
    // Anything but a file could block.
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_size as u64 > BODY_LIMIT {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message's body is no memfd or too long"));
    }
    let mut file = std::fs::File::from(memfd);
    let mut body = Vec::with_capacity(stat.st_size as usize);
    file.rewind()?;
    file.take(BODY_LIMIT).read_to_end(&mut body)?;
    Ok(body)
}
