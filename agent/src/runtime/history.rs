//! What ended containers left: their logs, by which attempts are counted over a reboot, their last words, their volumes.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};

use super::log_folder::LogFolder;
use super::readers::Reading;
use super::remove::remove_tree;
use super::run::Runtime;
use crate::model::{PodUid, ValidPod};

/// Bytes of a termination message that are kept, as the kubelet's.
const LAST_WORDS: u64 = 4096;
/// Of a log that stands in for the message: bytes and lines, as the kubelet's.
const LOG_BYTES: u64 = 2048;
const LOG_LINES: usize = 80;
/// Logs kept of a container's attempts: the present one and the one before, for `logs --previous`.
const KEPT_LOGS: u32 = 2;

impl Runtime {
    /// The folder of a container's `N.log`.
    pub fn log_folder(&self, pod: &ValidPod, container: &str) -> io::Result<LogFolder> {
        self.settings.log_folder(pod, container)
    }

    /// Keeps the pod's logs while they are read, also when the pod is removed meanwhile.
    pub fn read_logs(&self, uid: &PodUid) -> Reading {
        self.readers.enter(uid)
    }

    /// The number of the next attempt, by the logs that are there: a restart count that survives the loss of all else.
    pub fn next_attempt(&self, pod: &ValidPod, container: &str) -> u32 {
        if let Some(number) = self.prepared.attempt(pod.uid(), container) {
            return number;
        }
        let folder = self.log_folder(pod, container);
        let attempts = folder.iter().flat_map(LogFolder::names).filter_map(|name| attempt_of(&name));
        attempts.map(|number| number.saturating_add(1)).max().unwrap_or(0)
    }

    /// Removes the logs of attempts that are older than the one before `current`.
    pub fn trim_logs(&self, pod: &ValidPod, container: &str, current: u32) {
        self.remove_logs(pod, container, |number| number.saturating_add(KEPT_LOGS) <= current);
    }

    /// Removes what its containers have logged, all of it: the pod is over and the disk is scarce.
    pub fn clear_logs(&self, pod: &ValidPod) {
        for container in pod.all_containers() {
            self.remove_logs(pod, &container.name, |_| true);
        }
    }

    /// Removes what is in its emptyDirs: the pod is over and the disk is scarce.
    pub fn clear_volumes(&self, pod: &ValidPod) {
        for volume in pod.spec().volumes.iter().flatten().filter(|volume| volume.empty_dir.is_some()) {
            let folder = self.settings.empty_dir(pod.uid(), &volume.name);
            if let Err(error) = remove_tree(&folder) {
                tracing::warn!("removing the volume {}: {error}", folder.display());
            }
        }
    }

    /// Removes the logs of such attempts, rotated ones too.
    fn remove_logs(&self, pod: &ValidPod, container: &str, unwanted: impl Fn(u32) -> bool) {
        let Ok(folder) = self.log_folder(pod, container) else { return };
        for name in folder.names().filter(|name| attempt_of(name).is_some_and(&unwanted)) {
            if let Err(error) = folder.remove(&name) {
                tracing::warn!("removing the log {}: {error}", folder.path().join(name).display());
            }
        }
    }

    /// What a container left in its terminationMessagePath; with FallbackToLogsOnError, after an error, else the end of its log.
    pub fn termination_message(&self, pod: &ValidPod, container: &str, attempt: u32, code: i32) -> Option<String> {
        let path = self.settings.termination_log(pod.uid(), container, attempt);
        let words = open_regular_at(CWD, &path).and_then(|file| tail(file, LAST_WORDS)).unwrap_or_default();
        if !words.is_empty() {
            return Some(words);
        }
        let spec = pod.container(container)?;
        if code == 0 || spec.termination_message_policy.as_deref() != Some("FallbackToLogsOnError") {
            return None;
        }
        let log = self.log_folder(pod, container).and_then(|folder| folder.file(&format!("{attempt}.log")));
        let log = log.and_then(|file| tail(file, 4 * LOG_BYTES)).ok()?;
        // `TIME STREAM TAG TEXT`, the CRI's format.
        let lines: Vec<&str> = log.lines().filter_map(|l| l.splitn(4, ' ').nth(3)).collect();
        let text = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
        let start = text.len().saturating_sub(usize::try_from(LOG_BYTES).unwrap_or(usize::MAX));
        let start = (start..=text.len()).find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        Some(text[start..].to_owned()).filter(|t| !t.is_empty())
    }
}

/// Of the name of a log, rotated or not.
fn attempt_of(name: &str) -> Option<u32> {
    name.split_once(".log")?.0.parse().ok()
}

/// Opens a file where a container may have put anything: a link is not followed, a pipe not waited for.
pub(super) fn open_regular_at(folder: impl AsFd, path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::from(rustix::fs::openat(folder, path, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::other(format!("{} is not a regular file", path.display())));
    }
    Ok(file)
}

/// The last bytes of a file that a container wrote: it may be of any size.
fn tail(mut file: File, limit: u64) -> io::Result<String> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(limit)))?;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::fs::{FileType, makedev, mknodat};

    use super::*;

    #[test]
    fn what_is_no_file_is_an_error_and_no_wait() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("file"), "x").unwrap();
        symlink("file", path("link")).unwrap();
        fs::create_dir(path("folder")).unwrap();
        mknodat(CWD, path("pipe"), FileType::Fifo, 0o600.into(), 0).unwrap();
        mknodat(CWD, path("zero"), FileType::CharacterDevice, 0o600.into(), makedev(1, 5)).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        for name in ["link", "folder", "pipe", "zero", "socket", "nothing"] {
            assert!(open_regular_at(CWD, &path(name)).is_err(), "{name}");
        }
        assert_eq!(tail(open_regular_at(CWD, &path("file")).unwrap(), 100).unwrap(), "x");
    }
}
