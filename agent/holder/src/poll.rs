//! epoll with keys that are never used twice: an event for something that is gone finds nothing.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

pub use rustix::event::epoll::EventFlags as Interest;

/// What a key stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// The holder's socket.
    Listener,
    /// An agent's connection.
    Connection(u64),
    /// What a child says while it starts.
    Status(Task),
    /// A child's pidfd: it ended.
    Exit(Task),
    /// Output: container and which of its streams.
    Stream(u64, usize),
    /// An attached descriptor takes bytes again: container and attachment.
    Attachment(u64, u64),
    /// Some child ended, known or not.
    Children,
    /// A helper process ended.
    Helper(u64),
}

/// A process that an agent asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// A container's first, by the container's number.
    Container(u64),
    /// Another, by the exec's number.
    Exec(u64),
}

/// See the module's page.
pub struct Poll {
    epoll: OwnedFd,
    next: u64,
    tokens: BTreeMap<u64, Token>,
}

impl Poll {
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?, next: 1, tokens: BTreeMap::new() })
    }

    /// Watches `fd`, level-triggered, until [`Poll::remove`], which must come before it is closed: another process may hold it too.
    pub fn add(&mut self, fd: impl AsFd, interest: Interest, token: Token) -> io::Result<u64> {
        let key = self.next;
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(key), interest)?;
        self.next += 1;
        self.tokens.insert(key, token);
        Ok(key)
    }

    /// Watches `fd` for one event. It needs no removal, and is forgotten with [`Poll::forget`].
    pub fn add_once(&mut self, fd: impl AsFd, interest: Interest, token: Token) -> io::Result<()> {
        // Already watched: that event serves as well, once it is armed again.
        let key = self.tokens.iter().find(|(_, t)| **t == token).map_or(self.next, |(key, _)| *key);
        let data = epoll::EventData::new_u64(key);
        let interest = interest | Interest::ONESHOT;
        match epoll::add(&self.epoll, &fd, data, interest) {
            Err(Errno::EXIST) => epoll::modify(&self.epoll, &fd, data, interest)?,
            added => added?,
        }
        self.next = self.next.max(key + 1);
        self.tokens.insert(key, token);
        Ok(())
    }

    /// Forgets a key of [`Poll::add_once`] whose descriptor is closed.
    pub fn forget(&mut self, key: u64) {
        self.tokens.remove(&key);
    }

    pub fn modify(&mut self, fd: impl AsFd, key: u64, interest: Interest) {
        // Fails only for what was removed already.
        let _ = epoll::modify(&self.epoll, fd, epoll::EventData::new_u64(key), interest);
    }

    pub fn remove(&mut self, fd: impl AsFd, key: u64) {
        if self.tokens.remove(&key).is_some() {
            let _ = epoll::delete(&self.epoll, fd);
        }
    }

    pub fn token(&self, key: u64) -> Option<Token> {
        self.tokens.get(&key).copied()
    }

    /// Waits for events: keys and what happened.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<Vec<(u64, Interest)>> {
        let timeout = timeout.map(|t| Timespec { tv_sec: t.as_secs() as i64, tv_nsec: i64::from(t.subsec_nanos()) });
        let mut events = Vec::with_capacity(32);
        match epoll::wait(&self.epoll, spare_capacity(&mut events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(events.iter().map(|e| (e.data.u64(), e.flags)).collect()),
            Err(e) => Err(e.into()),
        }
    }
}
