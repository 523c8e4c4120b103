//! Starts a podholder from memory. Cheap for a large agent: posix_spawn is a vfork, so the agent's page tables aren't copied.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::signal::SigSet;
use nix::sys::stat::Mode;
use podholder::protocol::FIRST_CONNECTION_FD;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::Pid;

/// The holder that build.rs made.
const PODHOLDER: &[u8] = include_bytes!(env!("NODEAGENT_PODHOLDER"));

/// Descriptors that a child keeps are below; ours are lifted above, so that no file action overwrites one that a later one needs.
const ABOVE: i32 = 10;

/// podholder's bytes in a sealed memfd: nobody, not even root in a container that finds it under /proc/PID/exe, can change what
/// the next pod will run (CVE-2019-5736). Made once for an agent's life; its pages are shared by all holders.
#[derive(Debug)]
pub struct Program {
    memfd: OwnedFd,
}

impl Program {
    /// The holder of this very build.
    pub fn embedded() -> io::Result<Self> {
        Self::new(PODHOLDER)
    }

    fn new(bytes: &[u8]) -> io::Result<Self> {
        let memfd = executable_memfd()?;
        let mut rest = bytes;
        while !rest.is_empty() {
            let written = rustix::io::write(&memfd, rest)?;
            rest = rest.get(written..).unwrap_or_default();
        }
        rustix::fs::fcntl_add_seals(&memfd, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        Ok(Self { memfd: rustix::io::fcntl_dupfd_cloexec(&memfd, ABOVE)? })
    }

    /// A new holder and the agent's end of its first connection. It has a session of its own: no signal meant for the agent's
    /// terminal or process group reaches it.
    pub fn spawn(&self, title: &str) -> io::Result<(Pid, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        // The holder's end blocks: both ends are descriptions of their own, so this changes only its.
        rustix::io::ioctl_fionbio(&theirs, false)?;
        let theirs = rustix::io::fcntl_dupfd_cloexec(&theirs, ABOVE)?;
        let pid = self.posix_spawn(&theirs, title)?;
        Ok((pid, ours))
    }

    fn posix_spawn(&self, connection: &OwnedFd, title: &str) -> io::Result<Pid> {
        let mut actions = PosixSpawnFileActions::init()?;
        for fd in 0..=2 {
            actions.add_open(fd, c"/dev/null", OFlag::O_RDWR, Mode::empty())?;
        }
        actions.add_dup2(connection.as_raw_fd(), FIRST_CONNECTION_FD)?;
        let mut attributes = PosixSpawnAttr::init()?;
        let setsid = PosixSpawnFlags::from_bits_retain(i32::from(nix::libc::POSIX_SPAWN_SETSID));
        let signals = PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF;
        attributes.set_flags(setsid | signals)?;
        attributes.set_sigmask(&SigSet::empty())?;
        attributes.set_sigdefault(&SigSet::all())?;
        let path = CString::new(format!("/proc/self/fd/{}", self.memfd.as_raw_fd()))?;
        let title = CString::new(if title.is_empty() { "podholder" } else { title })?;
        let environment: [CString; 0] = [];
        let pid = posix_spawn(path.as_c_str(), &actions, &attributes, &[title], &environment)?;
        Pid::from_raw(pid.as_raw()).ok_or_else(|| io::Error::other("posix_spawn gave PID 0"))
    }
}

/// vm.memfd_noexec may be 1 (new memfds aren't executable unless asked) since Linux 6.3; older kernels don't know the flag.
fn executable_memfd() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match rustix::fs::memfd_create("podholder", flags | MemfdFlags::EXEC) {
        Err(Errno::INVAL) => Ok(rustix::fs::memfd_create("podholder", flags)?),
        made => Ok(made?),
    }
}
