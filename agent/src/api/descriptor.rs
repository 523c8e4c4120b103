//! A descriptor that is read and written without blocking: a pipe's end, a terminal's master, an inotify queue.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::{Errno, ioctl_fionbio};
use tokio::io::unix::AsyncFd;

/// A pipe's end or a terminal's master, never blocking.
#[derive(Debug)]
pub struct Descriptor(AsyncFd<OwnedFd>);

impl Descriptor {
    /// Takes a descriptor and makes it non-blocking.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        ioctl_fionbio(&fd, true)?;
        // `AsyncFd::new` is deprecated because of types whose descriptor may change under it: an OwnedFd's doesn't.
        #[allow(deprecated)]
        AsyncFd::new(fd).map(Self)
    }

    /// The descriptor itself.
    pub fn get_ref(&self) -> &OwnedFd {
        self.0.get_ref()
    }

    /// 0: end of file. Of a terminal also when its last process closed it.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            // Reads first and waits only if there is nothing: what is there is always found, even by one poll.
            match rustix::io::read(self.0.get_ref(), &mut *buffer) {
                Ok(length) => return Ok(length),
                Err(Errno::IO) => return Ok(0),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let mut ready = self.0.readable().await?;
                    match rustix::io::read(self.0.get_ref(), &mut *buffer) {
                        Err(Errno::AGAIN) => ready.clear_ready(),
                        Ok(length) => return Ok(length),
                        Err(Errno::IO) => return Ok(0),
                        Err(Errno::INTR) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Writes all.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.0.writable().await?;
            match rustix::io::write(self.0.get_ref(), bytes) {
                Ok(length) => bytes = &bytes[length..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
