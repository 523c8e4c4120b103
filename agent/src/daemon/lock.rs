//! One agent a root: a lock that the kernel frees with its holder, whatever becomes of it.
//!
//! A record lock of fcntl(2), for it is the process's own. One of flock(2) would be shared with each child until its exec: an
//! agent that is killed while it spawns a holder would be dead and yet in its successor's way.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::Errno;

/// Held for as long as this lives.
#[derive(Debug)]
pub struct Lock(#[cfg_attr(not(test), expect(dead_code, reason = "closing it frees the lock"))] File);

/// Why there is no lock.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another agent has it.
    #[error(
        "another nodeagent holds {}: process {holder}. Stop it, or give this one a --root, --cgroup-parent, --bridge, --pod-cidr \
         and --nft-table of its own",
        path.display()
    )]
    Held {
        /// The file.
        path: PathBuf,
        /// What its holder wrote into it: process ID and command line.
        holder: String,
    },
    /// The file.
    #[error("lock {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Lock {
    /// Takes the lock, or says who has it.
    pub fn take(path: &Path) -> Result<Self, LockError> {
        let wrong = |source| LockError::File { path: path.to_owned(), source };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(wrong)?;
        }
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(wrong)?;
        match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::AGAIN | Errno::ACCESS) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                return Err(LockError::Held { path: path.to_owned(), holder: holder.trim().to_owned() });
            }
            Err(source) => return Err(wrong(source.into())),
        }
        let command: Vec<_> = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
        file.set_len(0).and_then(|()| file.rewind()).map_err(wrong)?;
        writeln!(file, "{} ({})", std::process::id(), command.join(" ")).map_err(wrong)?;
        Ok(Self(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    // That a second agent is refused, and told who is the first, takes two processes: e2e/tests/restart.rs.

    #[test]
    fn a_child_does_not_inherit_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.lock");
        let lock = Lock::take(&path).unwrap();
        // Its copy of the descriptor outlives ours, as in a child that hasn't reached its exec.
        let copy = lock.0.try_clone().unwrap();
        let mut child = Command::new("sleep").arg("100").stdin(Stdio::from(copy)).spawn().unwrap();
        drop(lock);
        let taken = Lock::take(&path);
        child.kill().unwrap();
        child.wait().unwrap();
        taken.unwrap();
    }
}
