//! Children of the holder: how one is forked, what it keeps, and how it tells the holder how far it is.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use podholder::protocol::{Fault, Stage, Step};
use podholder::sys::{self, Fork, ns};
use podholder::wire;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde::{Deserialize, Serialize};

use crate::cgroups::Group;
use crate::fault::{OrFault, kernel, refused};

/// What a child says to the holder. End of file after [`Report::Ready`] means that exec happened.
#[derive(Debug, Serialize, Deserialize)]
pub enum Report {
    /// The start goes on in another child of the holder (its pidfd comes along); this one ends.
    Moved(i32),
    /// The terminal: master and slave come along.
    Terminal,
    /// All is done but exec.
    Ready(Vec<Step>),
    /// It came to nothing.
    Failed(Fault),
}

/// A child as the holder sees it.
pub struct Child {
    /// In the host's PID namespace.
    pub pid: i32,
    /// The same by descriptor.
    pub pidfd: OwnedFd,
    /// Where its [`Report`]s arrive.
    pub status: OwnedFd,
}

/// What to fork.
pub struct Spawn<'a> {
    /// Namespaces to make.
    pub flags: u64,
    /// What the child joins.
    pub cgroups: &'a [Group],
    /// A process whose cgroup v2 will do as well, if the one of `cgroups` takes none: a container that runs containers, or
    /// systemd, hands controllers down, and v2 wants no processes where that is done.
    pub beside: Option<i32>,
    /// Its descriptors 0, 1 and 2.
    pub stdio: [BorrowedFd<'a>; 3],
    /// More that it needs, in the order in which [`Parts::kept`] has them.
    pub keep: &'a [BorrowedFd<'a>],
}

/// What a child has.
pub struct Parts {
    /// To tell the holder.
    pub status: Status,
    /// [`Spawn::keep`].
    pub kept: Vec<OwnedFd>,
}

/// The child's side of the conversation.
pub struct Status(OwnedFd);

impl Status {
    /// Tells the holder, who may be gone: then this process is about to be killed, so that an error is no news.
    pub fn send(&self, report: &Report, fds: &[BorrowedFd<'_>]) {
        if let Ok(body) = wire::encode(report) {
            let _ = wire::send(self.0.as_fd(), &body, fds);
        }
    }

    /// Asks to be killed when the holder dies, and sees that it didn't die before. Again after each change of credentials.
    pub fn die_with_holder(&self) -> io::Result<()> {
        sys::die_with_parent(libc::SIGKILL)?;
        let mut fds = [PollFd::new(&self.0, PollFlags::empty())];
        rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        if fds[0].revents().contains(PollFlags::HUP) {
            sys::exit_now(1);
        }
        Ok(())
    }

    /// Waits until the holder says go (a byte) or is gone.
    pub fn wait_for_holder(&self) -> bool {
        let mut byte = [0; 1];
        matches!(rustix::io::read(&self.0, &mut byte), Ok(1))
    }
}

/// Forks. `body` runs in the child, which has the descriptors of `spawn` and no others, no signals blocked, is its own session
/// and dies with the holder.
pub fn spawn(spawn: &Spawn<'_>, body: impl FnOnce(Parts) -> Result<Infallible, Fault>) -> Result<Child, Fault> {
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).or_fault(Stage::Fork, "")?;
    match fork(spawn.cgroups, spawn.flags, spawn.beside)? {
        Fork::Parent { pid, pidfd } => Ok(Child { pid, pidfd, status: ours }),
        Fork::Child => {
            let status = Status(theirs);
            let result = enter(spawn.cgroups, &status).and_then(|()| {
                let mut fds: Vec<BorrowedFd<'_>> = spawn.stdio.to_vec();
                fds.push(status.0.as_fd());
                fds.extend(spawn.keep);
                let mut kept = sys::keep_only(&fds).or_fault(Stage::Fork, "")?.into_iter();
                let Some(status) = kept.next() else { return Err(refused(Stage::Fork, "", "a descriptor is missing")) };
                run(Parts { status: Status(status), kept: kept.collect() }, body)
            });
            if let Err(fault) = result {
                status.send(&Report::Failed(fault), &[]);
            }
            // The holder's own values lie on this stack: they must not be dropped here.
            sys::exit_now(1)
        }
    }
}

fn enter(cgroups: &[Group], status: &Status) -> Result<(), Fault> {
    sys::reset_signals();
    join(cgroups)?;
    status.die_with_holder().or_fault(Stage::Fork, "")?;
    rustix::process::setsid().or_fault(Stage::Fork, "").map(drop)
}

/// Runs `body` where the old descriptors are closed: `status` of the caller is of no more use, so a fault is told here.
fn run(parts: Parts, body: impl FnOnce(Parts) -> Result<Infallible, Fault>) -> Result<(), Fault> {
    let teller = Status(parts.status.0.try_clone().or_fault(Stage::Fork, "")?);
    let Err(fault) = body(parts);
    teller.send(&Report::Failed(fault), &[]);
    sys::exit_now(1)
}

/// The one of v2 is joined by birth: no lock of the whole machine.
fn by_birth(cgroups: &[Group]) -> Option<usize> {
    cgroups.iter().position(|group| group.hierarchy.is_unified())
}

fn fork(cgroups: &[Group], flags: u64, beside: Option<i32>) -> Result<Fork, Fault> {
    let Some(group) = by_birth(cgroups).map(|at| &cgroups[at]) else {
        return sys::clone3(flags, None).or_fault(Stage::Fork, "");
    };
    let fault = |e: io::Error| kernel(Stage::Cgroup, group.path.display(), e);
    match (sys::clone3(flags, Some(group.folder.as_fd())), beside) {
        (Err(e), Some(process)) if e.raw_os_error() == Some(libc::EBUSY) => {
            let path = unified_of(process, &group.hierarchy.mount_point).map_err(fault)?;
            let dir = rustix::fs::open(&path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .or_fault(Stage::Cgroup, path.display())?;
            sys::clone3(flags, Some(dir.as_fd())).or_fault(Stage::Cgroup, path.display())
        }
        (forked, _) => forked.map_err(fault),
    }
}

/// Those that aren't joined by birth.
fn join(cgroups: &[Group]) -> Result<(), Fault> {
    let born = by_birth(cgroups);
    cgroups.iter().enumerate().filter(|(at, _)| Some(*at) != born).try_for_each(|(_, group)| join_one(group))
}

/// Moves this process into cgroups. To be moved within v2 is to wait for a grace period of RCU, 5 to 20 ms: instead, a child of the
/// same parent is born there, and goes on in this one's place. It has everything of this process but its number.
pub fn move_into(cgroups: &[Group]) -> Result<(), Fault> {
    if by_birth(cgroups).is_some() {
        match fork(cgroups, ns::PARENT, None)? {
            Fork::Parent { .. } => sys::exit_now(0),
            Fork::Child => rustix::process::setsid().or_fault(Stage::Fork, "").map(drop)?,
        }
    }
    join(cgroups)
}

/// The cgroup v2 of a process, in the tree that is mounted there.
fn unified_of(process: i32, mount_point: &Path) -> io::Result<PathBuf> {
    let text = std::fs::read_to_string(format!("/proc/{process}/cgroup"))?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/")).ok_or(io::ErrorKind::NotFound)?;
    Ok(mount_point.join(path))
}

/// Moves this process into a cgroup.
fn join_one(group: &Group) -> Result<(), Fault> {
    // v1 lets a thread move itself by `tasks` without the lock that stops every fork and exec of the machine; v2 lacks that file.
    let write = |file: &str| {
        let file = rustix::fs::openat(&group.folder, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::write(file, b"0")
    };
    let joined = match write("tasks") {
        Err(Errno::NOENT) => write("cgroup.procs"),
        joined => joined,
    };
    joined.map(drop).or_fault(Stage::Cgroup, group.path.display())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_unified_cgroup_of_a_process_is_found() {
        let root =
            ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(Path::new).into_iter().find(|p| p.join("cgroup.procs").exists());
        let own = unified_of(rustix::process::getpid().as_raw_nonzero().get(), root.unwrap()).unwrap();
        let members = std::fs::read_to_string(own.join("cgroup.procs")).unwrap();
        assert!(members.lines().any(|pid| pid == std::process::id().to_string()), "{}", own.display());
    }
}
