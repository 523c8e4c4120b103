//! One agent's connection: what it sends is read by the holder, what it is to get waits here until it takes it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use podholder::protocol::Message;
use podholder::wire::{self, Packet};
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::poll::{Interest, Poll, Token};

/// Messages that may wait. An agent that is so far behind is let go; it finds all it missed in the holder's state.
const MAX_WAITING: usize = 1024;

/// See the module's page.
pub struct Connection {
    socket: OwnedFd,
    key: u64,
    /// It wants events.
    pub subscribed: bool,
    waiting: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    broken: bool,
}

impl Connection {
    pub fn new(socket: OwnedFd, id: u64, poll: &mut Poll) -> io::Result<Self> {
        let key = poll.add(&socket, Interest::IN, Token::Connection(id))?;
        Ok(Self { socket, key, subscribed: false, waiting: VecDeque::new(), broken: false })
    }

    /// The next message, if one is there; none also when the connection [`Connection::is_broken`].
    pub fn receive(&mut self) -> Option<Packet> {
        match wire::receive(self.socket.as_fd()) {
            Ok(Some(packet)) => Some(packet),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => None,
            Ok(None) | Err(_) => {
                self.broken = true;
                None
            }
        }
    }

    pub fn send(&mut self, message: &Message, fds: Vec<OwnedFd>, poll: &mut Poll) {
        let Ok(body) = wire::encode(message) else { return };
        self.waiting.push_back((body, fds));
        self.broken |= self.waiting.len() > MAX_WAITING;
        self.flush(poll);
    }

    /// Sends what waits, as far as the other side takes it.
    pub fn flush(&mut self, poll: &mut Poll) {
        while let Some((body, fds)) = self.waiting.front() {
            let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            match wire::send(self.socket.as_fd(), body, &borrowed) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.broken = true;
                    return;
                }
                Ok(()) => drop(self.waiting.pop_front()),
            }
        }
        let interest = if self.waiting.is_empty() { Interest::IN } else { Interest::IN | Interest::OUT };
        poll.modify(&self.socket, self.key, interest);
    }

    /// The other side is there.
    pub fn is_open(&self) -> bool {
        let mut fds = [PollFd::new(&self.socket, PollFlags::empty())];
        let told = rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        told.is_ok() && !fds[0].revents().contains(PollFlags::HUP)
    }

    /// The other side is gone, or too far behind.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    pub fn close(self, poll: &mut Poll) {
        poll.remove(&self.socket, self.key);
    }
}
