//! Runs one plugin: what it reads goes in, what it says comes out, and it ends, by itself or not. No thread and no runtime is needed: one
//! `poll` over its three pipes and its pidfd.

use std::{
    io::{ErrorKind, Read, Write},
    os::{fd::AsFd, unix::process::CommandExt},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::ioctl_fionbio,
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};

use super::error::Failure;

/// A result has a few hundred bytes.
const OUTPUT_LIMIT: usize = 1 << 20;
/// Of what a plugin writes beside its answer, so much is kept to be told.
const COMPLAINT_LIMIT: usize = 4096;

/// What a plugin said and how it ended.
#[derive(Debug)]
pub(super) struct Said {
    pub status: ExitStatus,
    pub output: Vec<u8>,
    pub complaint: Vec<u8>,
}

impl Said {
    /// The beginning of what it wrote, for people: what it complained of, or else its answer.
    pub(super) fn excerpt(&self) -> String {
        excerpt(&self.complaint, &self.output)
    }
}

/// Executes a plugin with these variables over our own environment. Whatever comes of it, the process is gone when this returns, and
/// after a timeout its children too, as far as they stayed in its process group.
pub(super) fn execute(program: &Path, variables: &[(&str, String)], input: &[u8], patience: Duration) -> Result<Said, Failure> {
    let deadline = Instant::now() + patience;
    let mut child = Command::new(program)
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(Failure::NotExecuted)?;
    let talked = talk(&mut child, input, deadline);
    if talked.is_err() {
        // The group first: once the child is waited for, its number may be another's.
        if let Some(group) = Pid::from_raw(child.id() as i32) {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
    let status = child.wait().map_err(Failure::NotExecuted)?;
    match talked {
        Ok((output, complaint)) => Ok(Said { status, output, complaint }),
        Err(Stop::Late(output, complaint)) => Err(Failure::Hung { patience, said: excerpt(&complaint, &output) }),
        Err(Stop::TooMuch) => Err(Failure::TooMuch(OUTPUT_LIMIT)),
        Err(Stop::Broken(error)) => Err(Failure::NotExecuted(error)),
    }
}

enum Stop {
    Late(Vec<u8>, Vec<u8>),
    TooMuch,
    Broken(std::io::Error),
}

impl<E: Into<std::io::Error>> From<E> for Stop {
    fn from(error: E) -> Stop {
        Stop::Broken(error.into())
    }
}

/// Until it has ended. A child of its own may keep its pipes open for ever: nobody waits for that.
fn talk(child: &mut Child, mut input: &[u8], deadline: Instant) -> Result<(Vec<u8>, Vec<u8>), Stop> {
    let pid = Pid::from_raw(child.id() as i32).ok_or(rustix::io::Errno::SRCH)?;
    let ended = pidfd_open(pid, PidfdFlags::empty())?;
    let (mut stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (Some(mut stdout), Some(mut stderr)) = (stdout, stderr) else { return Err(rustix::io::Errno::PIPE.into()) };
    for pipe in [stdin.as_ref().map(AsFd::as_fd), Some(stdout.as_fd()), Some(stderr.as_fd())].into_iter().flatten() {
        ioctl_fionbio(pipe, true)?;
    }
    let (mut output, mut complaint) = (Vec::new(), Vec::new());
    let (mut talks, mut complains) = (true, true);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Stop::Late(output, complaint));
        }
        let mut fds = vec![PollFd::new(&ended, PollFlags::IN)];
        fds.extend(talks.then(|| PollFd::new(&stdout, PollFlags::IN)));
        fds.extend(complains.then(|| PollFd::new(&stderr, PollFlags::IN)));
        fds.extend(stdin.as_ref().map(|stdin| PollFd::new(stdin, PollFlags::OUT)));
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut fds, Some(&left)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let over = !fds[0].revents().is_empty();
        drop(fds);
        talks = talks && drain(&mut stdout, &mut output, OUTPUT_LIMIT)?;
        complains = complains && drain(&mut stderr, &mut complaint, usize::MAX)?;
        complaint.truncate(COMPLAINT_LIMIT);
        if over {
            return Ok((output, complaint));
        }
        if let Some(pipe) = &mut stdin {
            match pipe.write(input) {
                Ok(length) => input = &input[length..],
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                // It doesn't want to read: its answer will say what that means.
                Err(_) => input = &[],
            }
            if input.is_empty() {
                stdin = None;
            }
        }
    }
}

/// Reads what is there. Whether there may be more.
fn drain(pipe: &mut impl Read, into: &mut Vec<u8>, limit: usize) -> Result<bool, Stop> {
    let mut buffer = [0; 16 * 1024];
    loop {
        match pipe.read(&mut buffer) {
            Ok(0) => return Ok(false),
            Ok(length) => into.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
        if into.len() > limit {
            return Err(Stop::TooMuch);
        }
        // A flood of complaints must not hold us here beyond the deadline.
        if limit == usize::MAX && into.len() > COMPLAINT_LIMIT {
            return Ok(true);
        }
    }
}

fn excerpt(complaint: &[u8], output: &[u8]) -> String {
    const LENGTH: usize = 300;
    let text = if complaint.iter().all(u8::is_ascii_whitespace) { output } else { complaint };
    let text = String::from_utf8_lossy(text);
    let text = text.trim();
    match text.char_indices().nth(LENGTH) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn sh(script: &str, input: &[u8], patience: Duration) -> Result<Said, Failure> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plugin");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        execute(&path, &[("CNI_COMMAND", "ADD".into())], input, patience)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn what_goes_in_comes_out() {
        // More than pipes hold, both ways at once.
        let input = vec![b'x'; 500_000];
        let said = sh("cat; echo $CNI_COMMAND >&2; exit 3", &input, LONG).unwrap();
        assert_eq!((said.output.len(), said.status.code(), said.excerpt().as_str()), (500_000, Some(3), "ADD"));
    }

    #[test]
    fn one_that_hangs_is_killed_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("pid");
        let script = format!("echo why >&2; sleep 1000 & echo $! > {0}.new; mv {0}.new {0}; wait", mark.display());
        let failure = sh(&script, b"", Duration::from_secs(2)).unwrap_err();
        assert_eq!(failure.to_string(), "did not end within 2 s and was killed; what it had written: \"why\"");
        let pid: i32 = std::fs::read_to_string(&mark).unwrap().trim().parse().unwrap();
        let begun = Instant::now();
        // Killed, it may be a zombie for a while: its parent is PID 1 now.
        let alive = || std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
        while alive() {
            assert!(begun.elapsed() < LONG, "its child lives on");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn one_whose_child_keeps_the_pipes_is_not_waited_for() {
        let said = sh("echo '{}'; (sleep 3 >&1 2>&1 </dev/null &) ; exit 0", b"unread", LONG).unwrap();
        assert_eq!(said.output, b"{}\n");
    }

    #[test]
    fn one_that_never_ends_to_talk_is_stopped() {
        let failure = sh("yes", b"", LONG).unwrap_err();
        assert_eq!(failure.to_string(), "writes more than 1048576 bytes");
        let failure = sh("yes >&2", b"", Duration::from_millis(300)).unwrap_err();
        assert!(failure.to_string().starts_with("did not end within 0 s"), "{failure}");
    }

    #[test]
    fn one_that_is_no_program() {
        let failure = execute(Path::new("/dev/null"), &[], b"", LONG).unwrap_err();
        assert_eq!(failure.to_string(), "could not be executed: Permission denied (os error 13)");
    }
}
