//! `/logs`: the node's log files, as a file server shows a folder. A pod may have part of that folder mounted (hostPath), so nothing in
//! it is trusted: paths are resolved below it by openat2, links don't lead out of it, and only regular files are read.

use std::fmt::Write;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{CONTENT_LENGTH, HeaderValue, LOCATION};
use podholder::beneath;
use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::api::call::Call;
use crate::api::query::encode;
use crate::api::{ApiError, Response, reply};

/// Bytes read at a time.
const CHUNK: usize = 64 * 1024;
/// Names of a folder that are shown.
const NAMES: usize = 10_000;

/// What a path leads to.
enum Found {
    File(File, u64),
    Folder(Vec<String>),
}

/// Answers a request for a file or a folder of `root`.
pub async fn answer(root: &Path, call: &Call, path: &[&str]) -> Result<Response, ApiError> {
    if call.query.all("query").next().is_some() {
        return Err(ApiError::not_served("queries of the node's journal are not served; /logs shows files"));
    }
    let shown = path.join("/");
    if path.iter().any(|part| part.contains(['/', '\0']) || *part == "..") {
        return Err(ApiError::bad_request(format!("not a path below the logs: {shown}")));
    }
    let (root, relative) = (root.to_owned(), shown.clone());
    let found = tokio::task::spawn_blocking(move || find(&root, &relative)).await;
    let found = found.map_err(|e| ApiError::internal(e.to_string()))?.map_err(|error| match error.raw_os_error() {
        Some(code) if code == Errno::NOENT.raw_os_error() => ApiError::no_such_path_but("404 page not found"),
        Some(code) if [Errno::LOOP, Errno::XDEV, Errno::ACCESS].iter().any(|e| e.raw_os_error() == code) => {
            ApiError::forbidden(format!("{shown}: not a file below the logs"))
        }
        _ => ApiError::internal(format!("open the log {shown}: {error}")),
    })?;
    match found {
        Found::Folder(_) if !call.request.uri().path().ends_with('/') => Ok(redirect(path)),
        Found::Folder(names) => Ok(reply::whole("text/html; charset=utf-8", listing(&names))),
        Found::File(file, size) => Ok(stream(file, size)),
    }
}

fn find(root: &Path, relative: &str) -> io::Result<Found> {
    let root = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    // NONBLOCK: a pipe that somebody put there must not hold a thread. Looked at before it is opened for reading.
    let place = beneath::open(&root, relative, OFlags::PATH, resolve)?;
    let stat = rustix::fs::fstat(&place)?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            let folder = beneath::open(&root, relative, flags | OFlags::DIRECTORY, resolve)?;
            Ok(Found::Folder(names(folder)?))
        }
        FileType::RegularFile => {
            let file = beneath::open(&root, relative, flags, resolve)?;
            // It may be another by now.
            let stat = rustix::fs::fstat(&file)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                return Err(Errno::ACCESS.into());
            }
            Ok(Found::File(File::from(file), u64::try_from(stat.st_size).unwrap_or(0)))
        }
        _ => Err(Errno::ACCESS.into()),
    }
}

fn names(folder: OwnedFd) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::new(folder)?.take(NAMES) {
        let entry = entry?;
        let name = String::from_utf8_lossy(entry.file_name().to_bytes()).into_owned();
        if name != "." && name != ".." {
            names.push(if entry.file_type() == FileType::Directory { name + "/" } else { name });
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn redirect(path: &[&str]) -> Response {
    let last = path.last().map_or_else(|| "logs".to_owned(), |name| encode(name));
    let mut response = reply::whole("text/plain", Bytes::new());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    if let Ok(place) = HeaderValue::from_str(&format!("{last}/")) {
        response.headers_mut().insert(LOCATION, place);
    }
    response
}

fn listing(names: &[String]) -> String {
    let mut page = String::from("<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n");
    for name in names {
        let (bare, slash) = name.strip_suffix('/').map_or((name.as_str(), ""), |bare| (bare, "/"));
        let shown: String = name.chars().map(escaped).collect();
        let _ = writeln!(page, "<a href=\"{}{slash}\">{shown}</a>", encode(bare));
    }
    page + "</pre>\n"
}

fn escaped(character: char) -> String {
    match character {
        '&' => "&amp;".into(),
        '<' => "&lt;".into(),
        '>' => "&gt;".into(),
        '"' => "&#34;".into(),
        '\'' => "&#39;".into(),
        other => other.into(),
    }
}

/// Exactly as many bytes as there were when it was opened: a file that grows meanwhile has no end.
fn stream(file: File, size: u64) -> Response {
    let (sender, mut response) = reply::streamed("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(size));
    tokio::task::spawn(async move {
        let mut file = file.take(size);
        loop {
            let read = tokio::task::spawn_blocking(move || {
                let mut chunk = vec![0; CHUNK];
                let length = file.read(&mut chunk).unwrap_or(0);
                chunk.truncate(length);
                (file, chunk)
            });
            let Ok((rest, chunk)) = read.await else { return };
            file = rest;
            if chunk.is_empty() || sender.send(chunk.into()).await.is_err() {
                return;
            }
        }
    });
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn nothing_outside_is_shown() {
        let top = tempfile::tempdir().unwrap();
        let root = top.path().join("log");
        std::fs::create_dir_all(root.join("pods/web")).unwrap();
        std::fs::write(root.join("pods/web/0.log"), "line\n").unwrap();
        std::fs::write(top.path().join("secret"), "secret").unwrap();
        symlink("../secret", root.join("out")).unwrap();
        symlink("/etc/passwd", root.join("absolute")).unwrap();
        symlink("pods/web/0.log", root.join("inside")).unwrap();
        symlink("/proc/self/fd/0", root.join("magic")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, root.join("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        for name in ["out", "absolute", "magic", "pipe"] {
            assert!(find(&root, name).is_err(), "{name}");
        }
        for name in ["pods/web/0.log", "inside"] {
            assert!(matches!(find(&root, name), Ok(Found::File(_, 5))), "{name}");
        }
        let Ok(Found::Folder(names)) = find(&root, "") else { panic!("no folder") };
        assert_eq!(names, ["absolute", "inside", "magic", "out", "pipe", "pods/"]);
    }

    #[test]
    fn names_are_escaped() {
        assert!(listing(&["<script>\"".into()]).contains("<a href=\"%3Cscript%3E%22\">&lt;script&gt;&#34;</a>"));
    }
}
