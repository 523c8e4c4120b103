//! When a process comes into a PID namespace that is there already: at its fork, or last.
//!
//! Whoever is in a PID namespace finds what is born there in its /proc, and with CAP_SYS_PTRACE (in the USER namespace of the holder) may
//! do there all that the newborn may. At its fork that is everything: the host's root, the holder's rights. So where such a neighbour
//! may be, a child stays in the host's PID namespace, which no container sees, until it has nothing but what its command will have;
//! then it goes on in a process that is born in the other. This costs one more fork, so only those pay it who need it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use podholder::protocol::{Fault, Stage};
use podholder::sys::{self, Fork, OneThread, ns};
use rustix::fs::{CWD, Mode, OFlags};

use crate::child::{Report, Status};
use crate::fault::OrFault;

/// CAP_SYS_PTRACE
const TRACE: u64 = 1 << 19;

/// Whether a process with these capabilities may look into others.
pub fn may_trace(capabilities: u64) -> bool {
    capabilities & TRACE != 0
}

/// When a child comes into the PID namespace that it joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// At its fork.
    First,
    /// When it has nothing left to lose.
    Last,
}

/// A child's way into its PID namespace.
pub enum Birth {
    /// It is there.
    Done,
    /// Its next child will be.
    Due(Due),
}

/// See [`Birth::Due`].
pub struct Due {
    alone: OneThread,
    namespace: OwnedFd,
}

impl Birth {
    /// The next child of this process is born into the PID namespace of `target`, a pidfd. While the host's /proc and the holder's rights
    /// are there.
    pub fn prepare(target: BorrowedFd<'_>) -> Result<Self, Fault> {
        let alone = OneThread::check().or_fault(Stage::Fork, "")?;
        sys::setns(target, ns::PID).or_fault(Stage::Namespace, "pid")?;
        let path = "/proc/thread-self/ns/pid_for_children";
        let namespace = rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        Ok(Self::Due(Due { alone, namespace: namespace.or_fault(Stage::Namespace, "pid")? }))
    }

    /// The PID namespace that isn't this process's own, but will be its successor's.
    pub fn namespace(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Done => None,
            Self::Due(due) => Some(due.namespace.as_fd()),
        }
    }

    /// Goes on in the PID namespace: returns in another process, without a terminal, where that is still due. Whatever seccomp filter is
    /// there already must allow clone(2).
    pub fn complete(self, status: &Status) -> Result<(), Fault> {
        let Self::Due(due) = self else { return Ok(()) };
        let fork = sys::clone_sibling(&due.alone).or_fault(Stage::Fork, "into the PID namespace")?;
        go_on(fork, status)?;
        // A signal for the parent's death is not inherited.
        status.die_with_holder().or_fault(Stage::Namespace, "pid")
    }
}

/// After a fork with `CLONE_PARENT`: the new process is the holder's child too, which is told of it, and goes on in the old one's place
/// as the leader of a session.
pub fn go_on(fork: Fork, status: &Status) -> Result<(), Fault> {
    match fork {
        Fork::Parent { pid, pidfd } => {
            status.send(&Report::Moved(pid), &[pidfd.as_fd()]);
            sys::exit_now(0);
        }
        Fork::Child => rustix::process::setsid().or_fault(Stage::Fork, "").map(drop),
    }
}
