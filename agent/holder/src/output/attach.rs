//! A descriptor that somebody attached to a stream: gets a copy of it, may hold it up a little, never for long.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::io::Errno;

/// Bytes that wait before the container has to wait too.
const FULL: usize = 256 * 1024;
/// How long it may take nothing at all while bytes wait, before it is let go: a terminal that somebody suspended must not stop a pod.
const PATIENCE: Duration = Duration::from_secs(5);

/// See the module's page.
pub struct Attachment {
    id: u64,
    fd: OwnedFd,
    waiting: Vec<u8>,
    since: Instant,
    gone: bool,
}

impl Attachment {
    pub fn new(id: u64, fd: OwnedFd) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        Ok(Self { id, fd, waiting: Vec::new(), since: Instant::now(), gone: false })
    }

    pub fn id(&self) -> u64 {
        self.id
    }

    pub fn is_full(&self) -> bool {
        self.waiting.len() >= FULL
    }

    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The other side is gone.
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    /// When it has taken nothing for too long.
    pub fn deadline(&self) -> Option<Instant> {
        self.is_waiting().then(|| self.since + PATIENCE)
    }

    pub fn push(&mut self, text: &[u8]) {
        if self.is_waiting() {
            return self.waiting.extend_from_slice(text);
        }
        self.since = Instant::now();
        let written = self.write(text);
        self.waiting.extend_from_slice(&text[written..]);
    }

    pub fn flush(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        let written = self.write(&waiting);
        if written > 0 {
            self.since = Instant::now();
        }
        self.waiting = waiting[written..].to_vec();
    }

    fn write(&mut self, text: &[u8]) -> usize {
        let mut done = 0;
        while done < text.len() && !self.gone {
            match rustix::io::write(&self.fd, &text[done..]) {
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => self.gone = true,
            }
        }
        if self.gone { text.len() } else { done }
    }
}

impl AsFd for Attachment {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
