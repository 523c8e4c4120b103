//! What ended containers left: their logs, by which attempts are counted over a reboot, and their last words.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::readers::Reading;
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
    pub fn log_dir(&self, pod: &ValidPod, container: &str) -> PathBuf {
        self.settings.pod_logs(pod).join(container)
    }

    /// Keeps the pod's logs while they are read, also when the pod is removed meanwhile.
    pub fn read_logs(&self, uid: &PodUid) -> Reading {
        self.readers.enter(uid)
    }

    /// The number of the next attempt, by the logs that are there: a restart count that survives the loss of all else.
    pub fn next_attempt(&self, pod: &ValidPod, container: &str) -> u32 {
        self.logged(pod, container).map(|(number, _)| number.saturating_add(1)).max().unwrap_or(0)
    }

    /// Removes the logs of attempts that are older than the one before `current`.
    pub fn trim_logs(&self, pod: &ValidPod, container: &str, current: u32) {
        for (_, path) in self.logged(pod, container).filter(|(n, _)| n.saturating_add(KEPT_LOGS) <= current) {
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!("removing the old log {}: {error}", path.display());
            }
        }
    }

    /// Removes what its containers have logged, all of it: the pod is over and the disk is scarce.
    pub fn clear_logs(&self, pod: &ValidPod) {
        for container in pod.all_containers() {
            for (_, path) in self.logged(pod, &container.name) {
                if let Err(error) = fs::remove_file(&path) {
                    tracing::warn!("removing the log {} of a pod that is over: {error}", path.display());
                }
            }
        }
    }

    /// Log files with their attempts; rotated ones too.
    fn logged(&self, pod: &ValidPod, container: &str) -> impl Iterator<Item = (u32, PathBuf)> {
        let entries = fs::read_dir(self.log_dir(pod, container)).into_iter().flatten().flatten();
        entries.filter_map(|e| Some((e.file_name().to_str()?.split_once(".log")?.0.parse().ok()?, e.path())))
    }

    /// What a container left in its terminationMessagePath; with FallbackToLogsOnError, after an error, else the end of its log.
    pub fn termination_message(&self, pod: &ValidPod, container: &str, attempt: u32, code: i32) -> Option<String> {
        let path = self.settings.termination_log(pod.uid(), container, attempt);
        let words = tail(&path, LAST_WORDS).unwrap_or_default();
        if !words.is_empty() {
            return Some(words);
        }
        let spec = pod.container(container)?;
        if code == 0 || spec.termination_message_policy.as_deref() != Some("FallbackToLogsOnError") {
            return None;
        }
        let log = tail(&self.settings.container_log(pod, container, attempt), 4 * LOG_BYTES)?;
        // `TIME STREAM TAG TEXT`, the CRI's format.
        let lines: Vec<&str> = log.lines().filter_map(|l| l.splitn(4, ' ').nth(3)).collect();
        let text = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
        let start = text.len().saturating_sub(usize::try_from(LOG_BYTES).unwrap_or(usize::MAX));
        let start = (start..=text.len()).find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        Some(text[start..].to_owned()).filter(|t| !t.is_empty())
    }
}

/// Opens a file where a container may have put anything: a link is not followed, a pipe not waited for.
pub fn open_regular(path: &Path) -> io::Result<fs::File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = fs::File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::other(format!("{} is not a regular file", path.display())));
    }
    Ok(file)
}

/// The last bytes of a regular file that a container wrote: it may be of any size, but not a link, nor a pipe to wait on.
fn tail(path: &Path, limit: u64) -> Option<String> {
    let mut file = open_regular(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(limit))).ok()?;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::fs::{CWD, FileType, makedev, mknodat};

    use super::*;

    #[test]
    fn what_is_no_file_is_an_error_and_no_wait() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("file"), "x").unwrap();
        open_regular(&path("file")).unwrap();
        symlink("file", path("link")).unwrap();
        fs::create_dir(path("folder")).unwrap();
        mknodat(CWD, path("pipe"), FileType::Fifo, 0o600.into(), 0).unwrap();
        mknodat(CWD, path("zero"), FileType::CharacterDevice, 0o600.into(), makedev(1, 5)).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        for name in ["link", "folder", "pipe", "zero", "socket", "nothing"] {
            assert!(open_regular(&path(name)).is_err(), "{name}");
            assert_eq!(tail(&path(name), 100), None, "{name}");
        }
        assert_eq!(tail(&path("file"), 100).as_deref(), Some("x"));
    }
}
