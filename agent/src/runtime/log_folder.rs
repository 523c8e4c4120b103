//! A container's folder of logs, opened once. A pod may be given the node's logs to write to: a link that it puts in the place of a folder
//! or file leads nowhere.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use podholder::beneath;
use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, ResolveFlags};

use super::history::open_regular_at;

/// See the module's page.
#[derive(Debug)]
pub struct LogFolder {
    folder: OwnedFd,
    path: PathBuf,
}

impl LogFolder {
    /// `below` is the folder's path in `logs`, which may be a link itself.
    pub fn open(logs: &Path, below: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let top = rustix::fs::openat(CWD, logs, flags, Mode::empty())?;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        // To be listed, not only to be walked through.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let folder = beneath::open(top, below, flags, resolve)?;
        Ok(Self { folder, path: logs.join(below) })
    }

    /// For messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// By which the kernel finds this very folder, as long as it is open.
    pub fn by_descriptor(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.folder.as_raw_fd()).into()
    }

    /// What is in it, in no order; what can't be read isn't there.
    pub fn names(&self) -> impl Iterator<Item = String> {
        let entries = Dir::read_from(&self.folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| Some(entry.file_name().to_str().ok()?.to_owned()))
    }

    /// A file in it; anything but a regular one is an error.
    pub fn file(&self, name: &str) -> io::Result<File> {
        open_regular_at(&self.folder, Path::new(name))
    }

    /// Removes a file.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.folder, name, AtFlags::empty())?)
    }
}

impl AsFd for LogFolder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_lead_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let (logs, elsewhere) = (dir.path().join("logs"), dir.path().join("elsewhere"));
        for folder in [logs.join("pod/app"), elsewhere.join("app")] {
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("0.log"), "").unwrap();
        }
        // Where the logs are may be a link.
        symlink(&logs, dir.path().join("linked")).unwrap();
        let folder = LogFolder::open(&dir.path().join("linked"), Path::new("pod/app")).unwrap();
        symlink(elsewhere.join("app/0.log"), logs.join("pod/app/1.log")).unwrap();
        assert!(folder.file("0.log").is_ok() && folder.file("1.log").is_err());
        let logs_in = |folder: &LogFolder| folder.names().filter(|name| !name.starts_with('.')).count();
        assert_eq!(logs_in(&folder), 2);
        for place in ["pod/app", "pod"] {
            fs::rename(logs.join(place), dir.path().join("taken")).unwrap();
            symlink(&elsewhere, logs.join(place)).unwrap();
            assert!(LogFolder::open(&logs, Path::new("pod/app")).is_err(), "{place}");
            // What is open is still what it was.
            folder.remove(if place == "pod" { "1.log" } else { "0.log" }).unwrap();
            fs::remove_file(logs.join(place)).unwrap();
            fs::rename(dir.path().join("taken"), logs.join(place)).unwrap();
        }
        assert_eq!(logs_in(&folder), 0);
        assert!(elsewhere.join("app/0.log").exists());
    }
}
