//! `pods/log`: a container's files in order, across rotations, then whatever is written next. Woken by inotify and by the pod's
//! state, never by a timer.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use hyper::header::HeaderValue;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::sync::{broadcast, mpsc};

use super::call::Call;
use super::cri::{self, Renderer, Wanted};
use super::descriptor::Descriptor;
use super::query::Query;
use super::{ApiError, DEFAULTED, Response, reply};
use crate::model::PodUid;
use crate::pod::node::Node;
use crate::pod::store::Change;
use crate::runtime::LogFolder;

/// Bytes read at a time.
const CHUNK: usize = 64 * 1024;

/// Answers a request for a log.
pub fn answer(call: &Call, pod: &Pod) -> Result<Response, ApiError> {
    let container = container(pod, call.query.get("container"))?;
    let reading = call.node.read_logs(&uid(pod));
    let source = Source::find(&*call.node, pod, container, call.query.flag("previous"))?;
    let wanted = wanted(&call.query)?;
    let tail: Option<i64> = call.query.number("tailLines")?;
    if tail.is_some_and(|lines| lines < 0) {
        return Err(ApiError::bad_request("tailLines: must be 0 or more"));
    }
    let (sender, mut response) = reply::streamed("text/plain");
    remark(&mut response, pod, call.query.get("container"), container);
    // Subscribed before the first byte is read: no end of the container goes unnoticed.
    let follow = call.query.flag("follow").then(|| Follow::new(&call.node, pod, container, &source)).transpose()?;
    let mut reader = Reader { source, renderer: Renderer::new(wanted), sender, open: None };
    tokio::spawn(async move {
        let _reading = reading;
        let done = reader.run(tail.map(i64::unsigned_abs), follow).await;
        if let Err(Stopped::Failed(error)) = done {
            let _ = reader
                .sender
                .send(format!("nodeagent: read the log in {}: {error}\n", reader.source.folder.path().display()).into())
                .await;
        }
    });
    Ok(response)
}

fn uid(pod: &Pod) -> PodUid {
    PodUid::new(pod.metadata.uid.as_deref().unwrap_or_default())
}

fn wanted(query: &Query) -> Result<Wanted, ApiError> {
    let since = match (query.number::<i64>("sinceSeconds")?, query.get("sinceTime")) {
        (Some(_), Some(_)) => return Err(ApiError::bad_request("at most one of sinceTime or sinceSeconds may be specified")),
        (Some(seconds), None) if seconds < 1 => return Err(ApiError::bad_request("sinceSeconds: must be greater than 0")),
        (Some(seconds), None) => Timestamp::now().checked_sub(SignedDuration::from_secs(seconds)).ok(),
        (None, Some(text)) => Some(
            text.parse()
                .map_err(|error| ApiError::bad_request(format!("sinceTime: {text:?}: {error}; write 2026-01-31T12:00:00Z")))?,
        ),
        (None, None) => None,
    };
    let limit: Option<u64> = query.number("limitBytes")?;
    if limit == Some(0) {
        return Err(ApiError::bad_request("limitBytes: must be greater than 0"));
    }
    Ok(Wanted { timestamps: query.flag("timestamps"), stream: stream(query)?, since, limit })
}

/// `stream`, as the kubelet takes it: not together with `tailLines`, which counts lines of both.
fn stream(query: &Query) -> Result<Option<cri::Stream>, ApiError> {
    let stream = match query.get("stream") {
        None | Some("All") => None,
        Some("Stdout") => Some(cri::Stream::Stdout),
        Some("Stderr") => Some(cri::Stream::Stderr),
        Some(other) => {
            return Err(ApiError::bad_request(format!(
                "stream: Unsupported value: {other:?}: supported values: \"All\", \"Stdout\", \"Stderr\""
            )));
        }
    };
    if stream.is_some() && query.get("tailLines").is_some() {
        return Err(ApiError::bad_request(
            "tailLines: Forbidden: `tailLines` and specific `stream` are mutually exclusive for now",
        ));
    }
    Ok(stream)
}

/// Which container a pod's user may leave out.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// The container that is meant: the one that is named, or the pod's default or first one.
pub fn container<'a>(pod: &'a Pod, asked: Option<&str>) -> Result<&'a str, ApiError> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let spec = pod.spec.as_ref().ok_or_else(|| ApiError::internal(format!("pod {name} has no spec")))?;
    let ephemeral = || spec.ephemeral_containers.iter().flatten().map(|c| &c.name);
    let all = || spec.containers.iter().chain(spec.init_containers.iter().flatten()).map(|c| &c.name).chain(ephemeral());
    let preferred = pod.metadata.annotations.as_ref().and_then(|all| all.get(DEFAULT_CONTAINER));
    let found = match asked.or(preferred.map(String::as_str)) {
        Some(wanted) => all().find(|name| *name == wanted),
        None => spec.containers.first().map(|c| &c.name),
    };
    found.map(String::as_str).ok_or_else(|| {
        let names = all().map(String::as_str).collect::<Vec<_>>().join(" ");
        let wanted = asked.or(preferred.map(String::as_str)).unwrap_or_default();
        ApiError::bad_request(format!("container {wanted} is not valid for pod {name}; choose one of: [{names}]"))
    })
}

/// Tells a client that named no container which one it was given.
pub fn remark(response: &mut Response, pod: &Pod, asked: Option<&str>, given: &str) {
    let all: Vec<&str> = pod.spec.iter().flat_map(|spec| &spec.containers).map(|c| c.name.as_str()).collect();
    if asked.is_some() || all.len() < 2 {
        return;
    }
    if let Ok(value) = HeaderValue::from_str(&format!("Defaulted container \"{given}\" out of: {}", all.join(", "))) {
        response.headers_mut().insert(DEFAULTED, value);
    }
}

fn status<'a>(pod: &'a Pod, container: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let all = [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    all.into_iter().flatten().flatten().find(|s| s.name == container)
}

/// The files of one attempt.
struct Source {
    folder: LogFolder,
    attempt: u32,
}

impl Source {
    fn find(node: &dyn Node, pod: &Pod, container: &str, previous: bool) -> Result<Self, ApiError> {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let folder = node.log_folder(pod, container);
        let attempts = folder.as_ref().map_or_else(|_| Vec::new(), attempts);
        let waiting = status(pod, container).and_then(|s| s.state.as_ref()).and_then(|s| s.waiting.as_ref());
        // While a container waits for its next start, the last one to have run is the previous one.
        let attempt = match (previous, waiting) {
            (false, _) | (true, Some(_)) => attempts.last(),
            (true, None) => attempts.iter().rev().nth(1),
        };
        if let (Ok(folder), Some(attempt)) = (folder, attempt) {
            return Ok(Self { folder, attempt: *attempt });
        }
        Err(ApiError::bad_request(match waiting.and_then(|w| w.reason.as_deref()) {
            _ if previous => format!("previous terminated container \"{container}\" in pod \"{name}\" not found"),
            Some(reason) => format!("container \"{container}\" in pod \"{name}\" is waiting to start: {reason}"),
            None => format!("container \"{container}\" in pod \"{name}\" is not available: it has not started yet"),
        }))
    }

    /// The attempt's files that were rotated after the one of that name, oldest first.
    fn rotated_after(&self, name: &str) -> Vec<String> {
        let rotated = format!("{}.log.", self.attempt);
        let mut all: Vec<String> = self
            .folder
            .names()
            .filter(|other| other.starts_with(&rotated) && Path::new(other).extension().is_none_or(|e| e != "tmp"))
            .filter(|other| other.as_str() > name)
            .collect();
        all.sort_unstable();
        all
    }

    /// The file after this one, or the oldest one. None: this one is still written to.
    ///
    /// The writer renames `N.log` to `N.log.DATE` (each date later than the one before), opens a new `N.log`, and removes the oldest,
    /// all while we look. A rotated file keeps its name, so it is found by that; `N.log` is believed only if none was rotated since.
    fn after(&self, part: Option<&Part>) -> io::Result<Option<Part>> {
        let mut last = part.map_or_else(String::new, |part| part.last.clone());
        loop {
            if let Some(name) = self.rotated_after(&last).into_iter().next() {
                // A folder that changes while it is listed may hide a name, and show a later one: not twice the same.
                if self.rotated_after(&last).first() != Some(&name) {
                    continue;
                }
                let file = open(&self.folder, &name)?;
                last = name;
                match file {
                    Some(file) if !same(part, &file)? => return Ok(Some(Part { file, last })),
                    // Ours; or the oldest, removed just now.
                    _ => continue,
                }
            }
            let Some(file) = open(&self.folder, &format!("{}.log", self.attempt))? else { return Ok(None) };
            if same(part, &file)? {
                return Ok(None);
            }
            if self.rotated_after(&last).is_empty() {
                return Ok(Some(Part { file, last }));
            }
        }
    }

    /// What there is now, oldest first.
    fn parts(&self) -> io::Result<Vec<Part>> {
        let mut parts = Vec::new();
        let mut rotated = self.rotated_after("");
        // As in `after`: until two lists are the same, one may lack a name.
        loop {
            let again = self.rotated_after("");
            if again == rotated {
                break;
            }
            rotated = again;
        }
        for name in rotated {
            if let Some(file) = open(&self.folder, &name)? {
                parts.push(Part { file, last: name });
            }
        }
        if let Some(newest) = self.after(parts.last())? {
            parts.push(newest);
        }
        Ok(parts)
    }
}

/// One file of an attempt's log.
struct Part {
    file: File,
    /// The newest name of a rotated file that isn't newer than this one: its own, if it was rotated when it was opened.
    last: String,
}

fn same(part: Option<&Part>, file: &File) -> io::Result<bool> {
    let Some(part) = part else { return Ok(false) };
    let (ours, other) = (part.file.metadata()?, file.metadata()?);
    Ok((ours.dev(), ours.ino()) == (other.dev(), other.ino()))
}

/// None: there is no such file.
fn open(folder: &LogFolder, name: &str) -> io::Result<Option<File>> {
    match folder.file(name) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The attempts that have a log, in order.
fn attempts(folder: &LogFolder) -> Vec<u32> {
    let mut all: Vec<u32> = folder.names().filter_map(|name| name.strip_suffix(".log")?.parse().ok()).collect();
    all.sort_unstable();
    all
}

/// Why reading came to an end before the files did.
enum Stopped {
    /// The client went away or has as many bytes as it wanted.
    Enough,
    /// A file can't be read.
    Failed(io::Error),
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

struct Reader {
    source: Source,
    renderer: Renderer,
    sender: mpsc::Sender<Bytes>,
    /// The file that is being read.
    open: Option<Part>,
}

impl Reader {
    async fn run(&mut self, tail: Option<u64>, follow: Option<Follow>) -> Result<(), Stopped> {
        let measured = |part: Part| Ok((part.file.metadata()?.len(), part));
        let mut parts = self.source.parts()?.into_iter().map(measured).collect::<io::Result<Vec<(u64, Part)>>>()?;
        if let Some(lines) = tail {
            let files: Vec<(&File, u64)> = parts.iter().map(|(length, part)| (&part.file, *length)).collect();
            let (index, offset) = cri::tail(&files, lines)?;
            parts.drain(..index);
            if let Some((length, first)) = parts.first_mut() {
                first.file.seek(SeekFrom::Start(offset))?;
                *length -= offset;
            }
        }
        for (left, part) in parts {
            self.open = Some(part);
            // Who doesn't follow gets what there was: a log that grows while it is read would have no end.
            self.read(if follow.is_some() { u64::MAX } else { left }).await?;
        }
        let Some(mut follow) = follow else { return Ok(()) };
        while follow.more(&self.sender).await? {
            self.catch_up().await?;
        }
        self.catch_up().await
    }

    /// Reads what has been written, over any number of rotations since.
    async fn catch_up(&mut self) -> Result<(), Stopped> {
        loop {
            let next = self.source.after(self.open.as_ref())?;
            // Looked first, read after: if there is a next one, nothing is added to ours any more.
            self.read(u64::MAX).await?;
            let Some(next) = next else { return Ok(()) };
            self.open = Some(next);
        }
    }

    /// Reads on to the file's end, but not more than these bytes.
    async fn read(&mut self, mut left: u64) -> Result<(), Stopped> {
        let mut chunk = vec![0; CHUNK];
        loop {
            // From the page cache, where a log that was just written is: quicker than a hop to another thread.
            let Some(part) = &mut self.open else { return Ok(()) };
            let most = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            let length = part.file.read(&mut chunk[..most])?;
            if length == 0 {
                return Ok(());
            }
            left -= length as u64;
            let mut out = BytesMut::with_capacity(length);
            let more = self.renderer.feed(&chunk[..length], &mut out);
            if !out.is_empty() {
                self.sender.send(out.freeze()).await.map_err(|_| Stopped::Enough)?;
            }
            if !more {
                return Err(Stopped::Enough);
            }
            tokio::task::coop::consume_budget().await;
        }
    }
}

/// Waits for more output, or for the end of the attempt.
struct Follow {
    inotify: Descriptor,
    changes: broadcast::Receiver<Change<Pod>>,
    node: Arc<dyn Node>,
    uid: PodUid,
    container: String,
    attempt: u32,
}

impl Follow {
    fn new(node: &Arc<dyn Node>, pod: &Pod, container: &str, source: &Source) -> Result<Self, ApiError> {
        let failed =
            |error: &dyn std::fmt::Display| ApiError::internal(format!("watch {}: {error}", source.folder.path().display()));
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(|error| failed(&error))?;
        let events = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::DELETE_SELF;
        inotify::add_watch(&inotify, source.folder.by_descriptor(), events).map_err(|error| failed(&error))?;
        Ok(Self {
            inotify: Descriptor::new(inotify).map_err(|error| failed(&error))?,
            changes: node.store().pods().changes,
            node: node.clone(),
            uid: uid(pod),
            container: container.to_owned(),
            attempt: source.attempt,
        })
    }

    /// Returns when there may be more. False: the attempt has ended, and all of its output is in the files.
    async fn more(&mut self, sender: &mpsc::Sender<Bytes>) -> Result<bool, Stopped> {
        let mut events = [0; 4096];
        loop {
            if self.ended() {
                return Ok(false);
            }
            tokio::select! {
                // What happened doesn't matter, only that something did.
                read = self.inotify.read(&mut events) => {
                    read?;
                    return Ok(true);
                }
                change = self.changes.recv() => match change {
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return Ok(false),
                },
                () = sender.closed() => return Err(Stopped::Enough),
            }
        }
    }

    fn ended(&self) -> bool {
        self.node.store().pod(&self.uid).is_none_or(|pod| has_ended(status(&pod, &self.container), self.attempt))
    }
}

/// Whether the status says that this attempt is over. A status that lags behind says nothing.
fn has_ended(status: Option<&ContainerStatus>, attempt: u32) -> bool {
    let Some(status) = status else { return false };
    let count = u32::try_from(status.restart_count).unwrap_or(0);
    let state = status.state.as_ref();
    let terminated = state.is_some_and(|s| s.terminated.is_some());
    let waits_again =
        state.is_some_and(|s| s.waiting.is_some()) && status.last_state.as_ref().is_some_and(|s| s.terminated.is_some());
    count > attempt || (count == attempt && (terminated || waits_again))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    fn source(folder: &Path) -> Source {
        Source { folder: LogFolder::open(folder, Path::new(".")).unwrap(), attempt: 7 }
    }

    /// What the holder does, as quickly as it can: a line a file.
    fn write_and_rotate(folder: &Path, files: u32) {
        let current = folder.join("7.log");
        for number in 0..files {
            let mut file = File::options().append(true).create(true).open(&current).unwrap();
            writeln!(file, "{number}").unwrap();
            fs::rename(&current, folder.join(format!("7.log.{number:08}"))).unwrap();
        }
        fs::write(&current, format!("{files}\n")).unwrap();
    }

    fn read_on(part: Option<&mut Part>, text: &mut String) {
        if let Some(part) = part {
            part.file.read_to_string(text).unwrap();
        }
    }

    #[test]
    fn files_follow_each_other_while_they_are_rotated() {
        let folder = tempfile::tempdir().unwrap();
        let source = source(folder.path());
        let expected: String = (0..=1000).map(|number| format!("{number}\n")).collect();
        std::thread::scope(|threads| {
            let writer = threads.spawn(|| write_and_rotate(folder.path(), 1000));
            let (mut part, mut text) = (None, String::new());
            loop {
                let at_end = writer.is_finished();
                let next = source.after(part.as_ref()).unwrap();
                read_on(part.as_mut(), &mut text);
                match next {
                    Some(next) => part = Some(next),
                    None if at_end => break,
                    None => {}
                }
            }
            assert_eq!(text, expected);
        });
        let mut whole = String::new();
        source.parts().unwrap().iter_mut().for_each(|part| read_on(Some(part), &mut whole));
        assert_eq!(whole, expected);
    }

    #[tokio::test]
    async fn what_is_written_meanwhile_is_for_followers() {
        let folder = tempfile::tempdir().unwrap();
        let line = |text: &str| format!("2026-01-01T00:00:01Z stdout F {text}\n");
        fs::write(folder.path().join("7.log"), line("before").repeat(3 * CHUNK / 36)).unwrap();
        let source = source(folder.path());
        // With room for one chunk: the reader waits for us before it has read all.
        let (sender, mut read) = mpsc::channel(1);
        let mut reader = Reader { source, renderer: Renderer::new(Wanted::default()), sender, open: None };
        let reading = tokio::spawn(async move { drop(reader.run(None, None).await) });
        let mut text = read.recv().await.unwrap().to_vec();
        let mut log = File::options().append(true).open(folder.path().join("7.log")).unwrap();
        log.write_all(line("after").as_bytes()).unwrap();
        while let Some(more) = read.recv().await {
            text.extend(more);
        }
        reading.await.unwrap();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text.lines().count(), 3 * CHUNK / 36);
        assert!(text.lines().all(|line| line == "before"));
    }

    #[test]
    fn of_files_that_were_removed_the_rest_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let source = source(folder.path());
        write_and_rotate(folder.path(), 1);
        let newest = source.parts().unwrap().pop();
        fs::remove_file(folder.path().join("7.log.00000000")).unwrap();
        assert!(source.after(newest.as_ref()).unwrap().is_none());
        // Ours and the one after it, both rotated away.
        fs::rename(folder.path().join("7.log"), folder.path().join("7.log.00000001")).unwrap();
        fs::remove_file(folder.path().join("7.log.00000001")).unwrap();
        fs::write(folder.path().join("7.log.00000003"), "3\n").unwrap();
        fs::write(folder.path().join("7.log"), "4\n").unwrap();
        let (mut text, mut next) = (String::new(), source.after(newest.as_ref()).unwrap());
        while let Some(mut part) = next {
            read_on(Some(&mut part), &mut text);
            next = source.after(Some(&part)).unwrap();
        }
        assert_eq!(text, "3\n4\n");
    }
}
