//! A child that an agent asked for: how far its start is, and how it ended.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use podholder::protocol::{Exit, Fault, Stage, Step};
use podholder::wire;
use rustix::process::{WaitId, WaitIdOptions, waitid};

use crate::child::{Child, Report};
use crate::clock;
use crate::fault::refused;
use crate::poll::{Interest, Poll, Task, Token};

/// Who waits for an answer: connection and call.
#[derive(Debug, Clone, Copy)]
pub struct Asker {
    pub connection: u64,
    pub call: u64,
}

/// A terminal as the holder has it.
pub struct Pty {
    pub master: OwnedFd,
    /// Keeps the terminal alive while its processes come and go.
    pub slave: OwnedFd,
}

/// A start that isn't decided yet.
struct Start {
    asker: Asker,
    status: OwnedFd,
    status_key: u64,
    steps: Option<Vec<Step>>,
    moved: bool,
    pty: Option<Pty>,
}

/// What came of a start.
pub enum Outcome {
    /// exec happened.
    Running { asker: Asker, steps: Vec<Step>, pty: Option<Pty> },
    /// It came to nothing.
    Failed { asker: Asker, fault: Fault },
}

/// Whether this is a child of the holder's, and has that number.
fn is_own(pidfd: &OwnedFd, pid: i32) -> bool {
    let child =
        waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT).is_ok();
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).unwrap_or_default();
    child && info.lines().any(|line| line.strip_prefix("Pid:").is_some_and(|number| number.trim() == pid.to_string()))
}

fn killed() -> Fault {
    refused(Stage::Fork, "", "the process was killed before it could execute its command")
}

/// A live child.
pub struct Live {
    pub pid: i32,
    pub pidfd: OwnedFd,
    exit_key: u64,
    start: Option<Start>,
}

impl Live {
    pub fn new(child: Child, asker: Asker, task: Task, poll: &mut Poll) -> io::Result<Self> {
        let exit_key = poll.add(&child.pidfd, Interest::IN, Token::Exit(task))?;
        let status_key = poll.add(&child.status, Interest::IN, Token::Status(task))?;
        let start = Some(Start { asker, status: child.status, status_key, steps: None, moved: false, pty: None });
        Ok(Self { pid: child.pid, pidfd: child.pidfd, exit_key, start })
    }

    /// exec hasn't happened yet.
    pub fn is_starting(&self) -> bool {
        self.start.is_some()
    }

    /// Reads what the child says. `moved` gets the process that made way for another.
    pub fn progress(&mut self, task: Task, poll: &mut Poll, mut moved: impl FnMut(&mut Poll, OwnedFd)) -> Option<Outcome> {
        loop {
            let start = self.start.as_mut()?;
            let packet = match wire::receive(start.status.as_fd()) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return None,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                packet => packet.ok().flatten(),
            };
            let report = packet.as_ref().and_then(|p| p.decode::<Report>().ok());
            let mut fds = packet.into_iter().flat_map(|p| p.fds);
            match (report, fds.next(), fds.next()) {
                // Once, and to a child of the holder's: by then another may speak in its name, who traces it.
                (Some(Report::Moved(pid)), Some(pidfd), None) if !start.moved && is_own(&pidfd, pid) => {
                    start.moved = true;
                    poll.remove(&self.pidfd, self.exit_key);
                    self.exit_key = poll.add(&pidfd, Interest::IN, Token::Exit(task)).unwrap_or_default();
                    self.pid = pid;
                    moved(poll, std::mem::replace(&mut self.pidfd, pidfd));
                }
                (Some(Report::Terminal), Some(master), Some(slave)) if !start.moved => start.pty = Some(Pty { master, slave }),
                (Some(Report::Ready(steps)), ..) => start.steps = Some(steps),
                (Some(Report::Moved(_) | Report::Terminal), ..) => {}
                (Some(Report::Failed(fault)), ..) => return self.decided(poll, |_| Err(fault)),
                // End of file: exec closed the socket, or death did.
                _ => {
                    return self.decided(poll, |start| match start.steps.take() {
                        Some(steps) => Ok((steps, start.pty.take())),
                        None => Err(killed()),
                    });
                }
            }
        }
    }

    /// Decides a start whose process has ended while another still has an end of the conversation: the one that it came from, which
    /// isn't quite gone; or one that it went on in and didn't come to tell of, and which is nothing without that.
    pub fn decide(&mut self, poll: &mut Poll) -> Option<Outcome> {
        self.decided(poll, |start| match start.steps.take() {
            Some(steps) if start.moved => Ok((steps, start.pty.take())),
            _ => Err(killed()),
        })
    }

    fn decided(
        &mut self,
        poll: &mut Poll,
        how: impl FnOnce(&mut Start) -> Result<(Vec<Step>, Option<Pty>), Fault>,
    ) -> Option<Outcome> {
        let mut start = self.start.take()?;
        poll.remove(&start.status, start.status_key);
        let asker = start.asker;
        Some(match how(&mut start) {
            Ok((steps, pty)) => Outcome::Running { asker, steps, pty },
            Err(fault) => Outcome::Failed { asker, fault },
        })
    }

    /// How it ended, if it has; it's gone then.
    pub fn reap(&self) -> Option<Exit> {
        let status = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG).ok()??;
        let signal = status.terminating_signal();
        let code = signal.map_or_else(|| status.exit_status().unwrap_or_default(), |s| 128 + s);
        Some(Exit { code, signal, finished_at: clock::now() })
    }

    /// No longer watched: its descriptor.
    pub fn release(self, poll: &mut Poll) -> OwnedFd {
        poll.remove(&self.pidfd, self.exit_key);
        if let Some(start) = &self.start {
            poll.remove(&start.status, start.status_key);
        }
        self.pidfd
    }
}
