//! A container's output: read from its pipes or terminal, written to its log, copied to whoever is attached.

mod attach;
mod lines;
mod log;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::io::Errno;

use crate::clock;
use attach::Attachment;
use lines::Splitter;
pub use lines::StreamName;
pub use log::Log;

/// Read at once. A buffer of this size lives only while there is output.
const CHUNK: usize = 128 * 1024;
/// Chunks of one stream before the others get their turn.
const TURN: usize = 8;
/// The same of a container that ended: more than any pipe holds. What somebody else writes all the time must not stop us.
const LAST_TURN: usize = 64;
/// The kernel's default is 64 KiB: too few to keep a fast writer and a fast reader both running.
pub const PIPE_SIZE: usize = 1 << 20;
/// Between tries to write to a disk that refused.
const LOG_RETRY: Duration = Duration::from_millis(500);

/// How a stream stands after a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Nothing more for now.
    Empty,
    /// There may be more: come again.
    More,
    /// Reading has to wait: for the disk or for somebody who is attached.
    Blocked,
    /// Nothing more for ever.
    Ended,
}

/// One of a container's streams, open for reading and not blocking.
pub struct Stream {
    fd: OwnedFd,
    splitter: Splitter,
    attachments: Vec<Attachment>,
}

impl Stream {
    pub fn new(fd: OwnedFd, name: StreamName) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
        Ok(Self { fd, splitter: Splitter::new(name), attachments: Vec::new() })
    }

    /// Copies what is there, for one turn or, with `to_the_end`, until nothing is left, whoever is attached and slow.
    pub fn pump(&mut self, log: &mut Option<Log>, to_the_end: bool) -> Flow {
        let mut input: Vec<u8> = Vec::with_capacity(CHUNK);
        let mut formatted = vec![0; lines::BUFFER];
        let mut turns = 0;
        loop {
            if log.as_ref().is_some_and(Log::is_blocked) || (!to_the_end && self.is_held_up()) {
                return Flow::Blocked;
            }
            if turns == if to_the_end { LAST_TURN } else { TURN } {
                return Flow::More;
            }
            turns += 1;
            input.clear();
            match rustix::io::read(&self.fd, spare_capacity(&mut input)) {
                // A terminal's master says EIO when the last slave is closed.
                Ok(0) | Err(Errno::IO) => return Flow::Ended,
                Err(Errno::INTR) => continue,
                Err(_) => return Flow::Empty,
                Ok(_) => {}
            }
            if let Some(log) = log {
                self.splitter.split(&input, clock::now(), &mut formatted, |lines| log.append(lines));
            }
            for attachment in &mut self.attachments {
                attachment.push(&input);
            }
            self.attachments.retain(|a| !a.is_gone());
        }
    }

    /// The stream ended: a last line that lacks its end goes to the log as it is.
    pub fn finish(&mut self, log: &mut Option<Log>) {
        if let Some(log) = log {
            log.append(&self.splitter.finish(clock::now()));
        }
    }

    /// Somebody who is attached has too much to take.
    pub fn is_held_up(&self) -> bool {
        self.attachments.iter().any(Attachment::is_full)
    }

    pub fn attach(&mut self, id: u64, fd: OwnedFd) -> io::Result<()> {
        self.attachments.push(Attachment::new(id, fd)?);
        Ok(())
    }

    /// The attachments that have bytes to take: their numbers and descriptors.
    pub fn waiting(&self) -> impl Iterator<Item = (u64, BorrowedFd<'_>)> {
        self.attachments.iter().filter(|a| a.is_waiting()).map(|a| (a.id(), a.as_fd()))
    }

    /// Writes on to one attachment. Whether it was one of this stream's.
    pub fn flush(&mut self, id: u64) -> bool {
        let Some(attachment) = self.attachments.iter_mut().find(|a| a.id() == id) else { return false };
        attachment.flush();
        true
    }

    /// Takes away the attachments that are gone or took nothing for too long.
    pub fn drop_stalled(&mut self, now: Instant) {
        self.attachments.retain(|a| !a.is_gone() && a.deadline().is_none_or(|d| d > now));
    }

    /// When [`Stream::drop_stalled`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.attachments.iter().filter_map(Attachment::deadline).min()
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// When a log that the disk refused is tried again.
pub fn log_retry(now: Instant) -> Instant {
    now + LOG_RETRY
}
