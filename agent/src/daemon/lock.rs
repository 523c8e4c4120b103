//! One agent a root: a lock that the kernel frees with its holder, whatever becomes of it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

/// Held for as long as this lives.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "closing it frees the lock")] File);

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
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                return Err(LockError::Held { path: path.to_owned(), holder: holder.trim().to_owned() });
            }
            Err(TryLockError::Error(source)) => return Err(wrong(source)),
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

    #[test]
    fn the_second_learns_who_is_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/agent.lock");
        let first = Lock::take(&path).unwrap();
        let second = Lock::take(&path).unwrap_err().to_string();
        assert!(second.contains(&format!("process {} (", std::process::id())), "{second}");
        drop(first);
        Lock::take(&path).unwrap();
    }
}
