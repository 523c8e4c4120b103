//! A log file: appended to, rotated by size, and patient with a disk that is full.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use podholder::protocol::LogFile;

use crate::clock;

/// See the module's page.
pub struct Log {
    file: File,
    path: PathBuf,
    size: u64,
    max_size: u64,
    max_files: usize,
    /// Oldest first.
    rotated: VecDeque<PathBuf>,
    /// Unix time in seconds of the last rotation's name.
    last_stamp: u64,
    /// What the disk refused. Never grows: nothing is read while it isn't empty.
    unwritten: Vec<u8>,
    /// The file ends amid a line.
    in_line: bool,
}

impl Log {
    pub fn open(log: &LogFile) -> io::Result<Self> {
        let file = open(&log.path)?;
        let size = file.metadata()?.len();
        let max_files = log.max_files.max(2) as usize;
        let (path, max_size) = (log.path.clone(), log.max_size);
        Ok(Self {
            file,
            path,
            size,
            max_size,
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
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{}", clock::rotation_stamp(stamp)));
        let rotated = PathBuf::from(name);
        match std::fs::rename(&self.path, &rotated) {
            // Somebody removed it: what comes is to be seen again.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            // The folder is read-only: go on with the file that is open.
            Err(_) => return false,
            Ok(()) => self.rotated.push_back(rotated.clone()),
        }
        let Ok(file) = open(&self.path) else {
            if self.rotated.back() == Some(&rotated) {
                self.rotated.pop_back();
                let _ = std::fs::rename(&rotated, &self.path);
            }
            return false;
        };
        (self.file, self.size, self.last_stamp) = (file, 0, stamp);
        while self.rotated.len() + 1 > self.max_files {
            if let Some(oldest) = self.rotated.pop_front() {
                let _ = std::fs::remove_file(oldest);
            }
        }
        true
    }
}

fn open(path: &Path) -> io::Result<File> {
    // Never waits, as it would for the reader of a FIFO that somebody put there.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(flags).open(path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn rotation_keeps_the_newest_files_under_kubelet_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = Log::open(&LogFile { path: path.clone(), max_size: 10, max_files: 3 }).unwrap();
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
        let mut log = Log::open(&LogFile { path, max_size: 100, max_files: 1000 }).unwrap();
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
        let mut log = Log::open(&LogFile { path: path.clone(), max_size: 10, max_files: 2 }).unwrap();
        log.append(b"before\n");
        std::fs::remove_file(&path).unwrap();
        log.append(b"after it\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "after it\n");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_fifo_for_a_log_is_an_error_not_a_wait() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(Log::open(&LogFile { path, max_size: 0, max_files: 2 }).is_err());
    }

    #[test]
    fn what_the_disk_refuses_is_kept() {
        // Every write to /dev/full is refused with ENOSPC.
        let mut log = Log::open(&LogFile { path: "/dev/full".into(), max_size: 0, max_files: 2 }).unwrap();
        log.append(b"one\n");
        assert!(log.is_blocked() && !log.retry());
        log.append(b"two\n");
        let dir = tempfile::tempdir().unwrap();
        log.file = open(&dir.path().join("log")).unwrap();
        assert!(log.retry());
        assert_eq!(std::fs::read_to_string(dir.path().join("log")).unwrap(), "one\ntwo\n");
    }
}
