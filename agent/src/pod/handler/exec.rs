//! Commands in a container: through the holder, with what they print, up to 10 KiB of it.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use podholder::protocol::{Process, Stage};
use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

use super::{Subject, Verdict};
use crate::runtime::holder::{CallError, Holder};

/// Of what a command prints no more is kept.
const LONGEST_OUTPUT: usize = 10 * 1024;

/// Runs a container's commands. What a process needs is asked for once, not each time.
#[derive(Debug, Default)]
pub struct Commands(Option<(Process, Vec<PathBuf>)>);

/// How a command ended.
#[derive(Debug)]
pub enum Ended {
    /// By itself, with this code.
    Exit(i32),
    /// It took too long and was killed.
    Late,
}

impl Commands {
    /// What the command's end means for a probe.
    pub async fn probe(&mut self, subject: &Subject, command: &[String], limit: Duration) -> Verdict {
        match self.run(subject, command, limit).await {
            Ok((Ended::Exit(0), _)) => Verdict::Success,
            Ok((Ended::Exit(_), output)) => Verdict::Failure(output),
            Ok((Ended::Late, _)) => {
                Verdict::Failure(format!("command timed out: {:?} timed out after {}s", command.join(" "), limit.as_secs()))
            }
            Err(error) => Verdict::Unknown(error),
        }
    }

    /// Runs a command to its end, which is no later than `limit` from now: its end, and what it printed.
    pub async fn run(&mut self, subject: &Subject, command: &[String], limit: Duration) -> Result<(Ended, String), String> {
        let (mut process, cgroups) = self.process(subject)?;
        process.argv = command.to_vec();
        let (output, stdio) = pipes().map_err(|error| format!("make the pipe of a command: {error}"))?;
        let mut output = Output::new(output).map_err(|error| format!("make the pipe of a command: {error}"))?;
        let holder = &subject.sandbox.holder;
        let started = match holder.exec(&subject.id, process, cgroups, stdio).await {
            Ok(started) => started,
            Err(error) => return not_started(&subject.container.name, &error),
        };
        let mut running = Running { holder, exec: Some(started.id) };
        let mut exit = started.exit;
        let ended = tokio::select! {
            exit = tokio::time::timeout(limit, &mut exit) => exit,
            never = output.read() => match never {},
        };
        let ended = match ended {
            Ok(Ok(exit)) => {
                running.exec = None;
                Ended::Exit(exit.code)
            }
            Ok(Err(_)) => return Err("the pod's holder ended, and the command with it".into()),
            Err(_) => Ended::Late,
        };
        output.rest();
        Ok((ended, output.text()))
    }

    fn process(&mut self, subject: &Subject) -> Result<(Process, Vec<PathBuf>), String> {
        if let Some(made) = &self.0 {
            return Ok(made.clone());
        }
        let identity = (&subject.container, subject.number, subject.id.as_str());
        let made = subject.node.runtime.exec_process(&subject.sandbox, identity, Vec::new(), false);
        let made = made.map_err(|error| error.to_string())?;
        Ok(self.0.insert(made).clone())
    }
}

/// A command that can't be executed has ended with 126 or 127, as a shell would have told; anything else is the node's trouble.
fn not_started(container: &str, error: &CallError) -> Result<(Ended, String), String> {
    match error.fault() {
        Some(fault) if fault.stage == Stage::Exec => Ok((Ended::Exit(error.exit_code()), error.to_string())),
        _ => Err(format!("container {container}: {error}")),
    }
}

/// A command that nobody waits for any more is killed.
struct Running<'a> {
    holder: &'a Holder,
    exec: Option<u64>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some(exec) = self.exec {
            let holder = self.holder.clone();
            tokio::spawn(async move { holder.kill_exec(exec).await });
        }
    }
}

/// The read end of one pipe for stdout and stderr, and what the command gets.
fn pipes() -> rustix::io::Result<(OwnedFd, Vec<OwnedFd>)> {
    let (read, stdout) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&read, true)?;
    let stderr = rustix::io::fcntl_dupfd_cloexec(&stdout, 3)?;
    let stdin = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    Ok((read, vec![stdin, stdout, stderr]))
}

struct Output {
    pipe: Receiver,
    kept: Vec<u8>,
}

impl Output {
    fn new(pipe: OwnedFd) -> std::io::Result<Self> {
        Ok(Self { pipe: Receiver::from_owned_fd(pipe)?, kept: Vec::new() })
    }

    /// Reads for as long as somebody polls it: also what isn't kept, so that the command never waits.
    async fn read(&mut self) -> std::convert::Infallible {
        let mut chunk = [0; 4096];
        while let Ok(length @ 1..) = self.pipe.read(&mut chunk).await {
            self.keep(&chunk[..length]);
        }
        std::future::pending().await
    }

    /// What is there when the command has ended: all that it printed. What its children still hold open isn't waited for.
    fn rest(&mut self) {
        let mut chunk = [0; 4096];
        while self.kept.len() < LONGEST_OUTPUT {
            // Not tokio's `try_read`: it knows only what the last round of epoll told.
            match rustix::io::read(&self.pipe, &mut chunk[..]) {
                Ok(length @ 1..) => self.keep(&chunk[..length]),
                _ => return,
            }
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = LONGEST_OUTPUT - self.kept.len();
        self.kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.kept).into_owned()
    }
}
