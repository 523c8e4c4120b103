//! A log file: appended to, rotated by size, and patient with a disk that is full.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use podholder::beneath;
use podholder::protocol::LogFile;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, openat, renameat, unlinkat};
use rustix::io::Errno;

use crate::clock;

/// See the module's page.
pub struct Log {
    file: File,
    /// Its folder, as it was when the log was opened: whatever is put in its place is another's.
    folder: OwnedFd,
    name: OsString,
    size: u64,
    max_size: u64,
    max_files: usize,
    /// Oldest first.
    rotated: VecDeque<OsString>,
    /// Unix time in seconds of the last rotation's name.
    last_stamp: u64,
    /// What the disk refused. Never grows: nothing is read while it isn't empty.
    unwritten: Vec<u8>,
    /// The file ends amid a line.
    in_line: bool,
}

impl Log {
    pub fn open(log: &LogFile) -> io::Result<Self> {
        let name = log.path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        let folder = open_folder(log)?;
        let file = open(folder.as_fd(), &name)?;
        let size = file.metadata()?.len();
        let max_files = log.max_files.max(2) as usize;
        Ok(Self {
            file,
            folder,
            name,
            size,
            max_size: log.max_size,
            max_files,
            rotated: VecDeque::new(),
            last_stamp: 0,
            unwritten: Vec::new(),
            in_line: false,
        })
    }

    /// Whether the disk refused something: nothing may be appended until [`Log::retry`] says that it was written.
    pub fn is_blocked(&self) -> bool {
        !self.unwritten.is_empty()
    }

    /// Appends whole lines. What the disk refuses is kept.
    pub fn append(&mut self, lines: &[u8]) {
        if self.is_blocked() {
            return self.unwritten.extend_from_slice(lines);
        }
        let written = self.write_rotating(lines);
        self.unwritten.extend_from_slice(&lines[written..]);
    }

    /// Writes what was refused. Whether all is written now.
    pub fn retry(&mut self) -> bool {
        let unwritten = std::mem::take(&mut self.unwritten);
        let written = self.write_rotating(&unwritten);
        self.unwritten = unwritten[written..].to_vec();
        !self.is_blocked()
    }

    /// Fills the file up to its size with whole lines, goes on with the next one, and so on.
    fn write_rotating(&mut self, text: &[u8]) -> usize {
        let mut done = 0;
        while done < text.len() {
            let piece = self.piece(&text[done..]);
            if piece.is_empty() && self.rotate() {
                continue;
            }
            // Where it couldn't be rotated, the file that is open takes it all.
            let piece = if piece.is_empty() { &text[done..] } else { piece };
            let written = self.write(piece);
            done += written;
            if written < piece.len() {
                break;
            }
        }
        done
    }

    /// As many lines as there is room for; at least one in a new file, and the rest of one that was begun.
    fn piece<'a>(&self, text: &'a [u8]) -> &'a [u8] {
        let room = usize::try_from(self.max_size.saturating_sub(self.size)).unwrap_or(usize::MAX);
        if self.max_size == 0 || text.len() <= room {
            return text;
        }
        let end = match memchr::memrchr(b'\n', &text[..room]) {
            Some(end) => end + 1,
            None if self.size == 0 || self.in_line => memchr::memchr(b'\n', text).map_or(text.len(), |end| end + 1),
            None => 0,
        };
        &text[..end]
    }

    fn write(&mut self, text: &[u8]) -> usize {
        let mut done = 0;
        while done < text.len() {
            match self.file.write(&text[done..]) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // A full disk, a broken one, a quota: it may pass.
                Ok(0) | Err(_) => break,
                Ok(n) => done += n,
            }
        }
        self.size += done as u64;
        self.in_line = text[..done].last().map_or(self.in_line, |last| *last != b'\n');
        done
    }

    /// Between two lines only. Whether there is a new file.
    fn rotate(&mut self) -> bool {
        // Two rotations in one second must not have one name: then the later borrows from the future.
        let stamp = (clock::now() / 1_000_000_000).max(self.last_stamp + 1);
        let mut rotated = self.name.clone();
        rotated.push(format!(".{}", clock::rotation_stamp(stamp)));
        match renameat(&self.folder, &self.name, &self.folder, &rotated) {
            // Somebody removed it: what comes is to be seen again.
            Err(Errno::NOENT) => {}
            // The folder is read-only: go on with the file that is open.
            Err(_) => return false,
            Ok(()) => self.rotated.push_back(rotated.clone()),
        }
        let Ok(file) = open(self.folder.as_fd(), &self.name) else {
            if self.rotated.back() == Some(&rotated) {
                self.rotated.pop_back();
                let _ = renameat(&self.folder, &rotated, &self.folder, &self.name);
            }
            return false;
        };
        (self.file, self.size, self.last_stamp) = (file, 0, stamp);
        while self.rotated.len() + 1 > self.max_files {
            if let Some(oldest) = self.rotated.pop_front() {
                let _ = unlinkat(&self.folder, oldest, AtFlags::empty());
            }
        }
        true
    }
}

/// The folder of a log. A pod that may write where logs are could put a link in its place.
fn open_folder(log: &LogFile) -> io::Result<OwnedFd> {
    let folder = log.path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Some(below) =
        folder.strip_prefix(&log.within).ok().filter(|below| !below.as_os_str().is_empty() && log.within != Path::new(""))
    else {
        return Ok(openat(CWD, folder, flags, Mode::empty())?);
    };
    let within = openat(CWD, &log.within, flags, Mode::empty())?;
    Ok(beneath::open(within, below, flags, ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)?)
}

fn open(folder: BorrowedFd<'_>, name: &OsStr) -> io::Result<File> {
    // Never waits, as it would for the reader of a FIFO that somebody put there.
    let flags =
        OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(openat(folder, name, flags, Mode::from_raw_mode(0o640))?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    Ok(file)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn log(path: &Path, max_size: u64, max_files: u32) -> io::Result<Log> {
        Log::open(&LogFile { path: path.to_owned(), max_size, max_files, ..LogFile::default() })
    }

    #[test]
    fn rotation_keeps_the_newest_files_under_kubelet_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = log(&path, 10, 3).unwrap();
        for n in 0..5 {
            log.append(format!("line number {n}\n").as_bytes());
        }
        log.append(b"last\n");
        let mut names: Vec<PathBuf> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
        names.sort();
        let texts: Vec<String> = names.iter().map(|p| std::fs::read_to_string(p).unwrap()).collect();
        assert_eq!(texts, ["last\n", "line number 3\n", "line number 4\n"]);
        assert_eq!(names[0], path);
        for name in &names[1..] {
            let stamp = name.extension().unwrap().to_str().unwrap();
            assert!(stamp.len() == 15 && stamp.as_bytes()[8] == b'-', "{stamp}");
        }
    }

    #[test]
    fn no_file_is_larger_than_it_may_be_and_no_line_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = log(&path, 100, 1000).unwrap();
        let all: String = (0..500).map(|n| format!("line {n}\n")).collect();
        for chunk in all.as_bytes().chunks(1009) {
            log.append(chunk);
        }
        let mut names: Vec<PathBuf> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
        names.sort();
        names.rotate_left(1);
        let texts: Vec<String> = names.iter().map(|p| std::fs::read_to_string(p).unwrap()).collect();
        assert_eq!(texts.concat(), all);
        assert!(texts.iter().all(|text| text.len() <= 120 && text.ends_with('\n')), "{texts:?}");
    }

    #[test]
    fn a_log_that_was_removed_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = log(&path, 10, 2).unwrap();
        log.append(b"before\n");
        std::fs::remove_file(&path).unwrap();
        log.append(b"after it\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "after it\n");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_file_is_an_error_and_no_wait() {
        use rustix::fs::{FileType, makedev, mknodat};
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for (name, kind, device) in [("pipe", FileType::Fifo, 0), ("device", FileType::CharacterDevice, makedev(1, 3))] {
            mknodat(CWD, path(name), kind, 0o600.into(), device).unwrap();
            assert!(log(&path(name), 0, 2).is_err(), "{name}");
        }
        // Also with somebody at its other end.
        let _reader = rustix::fs::open(path("pipe"), OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap();
        assert!(log(&path("pipe"), 0, 2).is_err());
        std::os::unix::fs::symlink("elsewhere", path("link")).unwrap();
        assert!(log(&path("link"), 0, 2).is_err() && !path("elsewhere").exists());
    }

    #[test]
    fn a_link_in_the_place_of_a_folder_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let (pods, host) = (dir.path().join("pods"), dir.path().join("host"));
        std::fs::create_dir_all(pods.join("pod/app")).unwrap();
        std::fs::create_dir(&host).unwrap();
        // Where the logs are may be a link itself.
        let within = dir.path().join("logs");
        std::os::unix::fs::symlink(&pods, &within).unwrap();
        let log = LogFile { path: within.join("pod/app/0.log"), within: within.clone(), max_size: 10, max_files: 3 };
        let mut open = Log::open(&log).unwrap();
        open.append(b"first\n");
        for linked in ["pod/app", "pod"] {
            std::fs::rename(pods.join(linked), dir.path().join("taken")).unwrap();
            std::fs::create_dir_all(host.join("app")).unwrap();
            std::os::unix::fs::symlink(&host, pods.join(linked)).unwrap();
            // One that is open writes on, and rotates, where it was.
            (0..5).for_each(|n| open.append(format!("line {n}\n").as_bytes()));
            assert_eq!(Log::open(&log).map(drop).unwrap_err().raw_os_error(), Some(libc::ELOOP), "{linked}");
            assert_eq!(std::fs::read_dir(&host).unwrap().count(), 1, "the folder that this test made");
            assert_eq!(std::fs::read_dir(host.join("app")).unwrap().count(), 0);
            std::fs::remove_file(pods.join(linked)).unwrap();
            std::fs::rename(dir.path().join("taken"), pods.join(linked)).unwrap();
        }
        assert_eq!(std::fs::read_dir(pods.join("pod/app")).unwrap().count(), 3);
    }

    #[test]
    fn what_the_disk_refuses_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = log(&path, 0, 2).unwrap();
        // Every write to /dev/full is refused with ENOSPC.
        let file = std::mem::replace(&mut log.file, File::options().write(true).open("/dev/full").unwrap());
        log.append(b"one\n");
        assert!(log.is_blocked() && !log.retry());
        log.append(b"two\n");
        log.file = file;
        assert!(log.retry());
        assert_eq!(std::fs::read_to_string(path).unwrap(), "one\ntwo\n");
    }
}
