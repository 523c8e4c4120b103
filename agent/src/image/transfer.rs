//! The bytes of one layer from its registry to the thread that unpacks it. A connection that breaks is taken up where it
//! broke, by a range request, and at another place if this one fails for good: the content is the same by its digest.

use std::io::{self, Read};

use bytes::Bytes;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use tokio::sync::mpsc;

use super::error::{Error, Result};
use super::flight::Report;
use super::manifest::Content;
use super::progress::Progress;
use super::registry::{Session, chain};

/// Chunks between the connection and the unpacking thread.
pub(super) const CHUNKS: usize = 32;
/// A step of progress, in bytes.
const STEP: u64 = 256 * 1024;

/// What flows to the unpacking thread.
pub(super) type Chunk = std::result::Result<Bytes, Error>;

/// Sends a blob's bytes. The error goes the same way, so that the reader tells it.
pub(super) async fn send(sessions: &[Session], content: &Content, sink: mpsc::Sender<Chunk>, report: &Report) {
    let mut transfer = Transfer { content, sink: &sink, report, done: 0, told: 0 };
    let mut last = None;
    for session in sessions {
        match transfer.from(session).await {
            Ok(()) => return,
            Err(error) => last = Some(error),
        }
    }
    if let Some(error) = last {
        // Nobody to tell: the unpacking thread has its own error.
        let _ = sink.send(Err(error)).await;
    }
}

struct Transfer<'a> {
    content: &'a Content,
    sink: &'a mpsc::Sender<Chunk>,
    report: &'a Report,
    done: u64,
    told: u64,
}

impl Transfer<'_> {
    async fn from(&mut self, session: &Session) -> Result<()> {
        let what = format!("blobs/{}", self.content.digest);
        let mut attempt = 0;
        loop {
            let before = self.done;
            let Some(why) = self.once(session, &what).await? else { return Ok(()) };
            // A connection that brought something earns its tries anew.
            attempt = if self.done > before { 1 } else { attempt + 1 };
            session.pause(attempt, &what, &why, None).await?;
        }
    }

    /// One request from where we are; says why it broke off, if it did.
    async fn once(&mut self, session: &Session, what: &str) -> Result<Option<String>> {
        let mut headers = HeaderMap::new();
        if self.done > 0
            && let Ok(range) = HeaderValue::from_str(&format!("bytes={}-", self.done))
        {
            headers.insert(RANGE, range);
        }
        let mut answer = session.get(what, &headers).await?;
        // A server without ranges sends all of it again: what we have is skipped.
        let mut skip = match answer.status() {
            StatusCode::PARTIAL_CONTENT if starts_at(answer.headers(), self.done) => 0,
            StatusCode::PARTIAL_CONTENT => {
                let why = format!("a range other than asked for at byte {}", self.done);
                return Err(Error::Refused { registry: session.host().into(), what: what.into(), why });
            }
            _ => self.done,
        };
        loop {
            let mut chunk = match answer.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) if self.done >= self.content.size => return Ok(None),
                Ok(None) => return Ok(Some(format!("cut after {} of {} bytes", self.done, self.content.size))),
                Err(error) => return Ok(Some(chain(&error))),
            };
            let skipped = skip.min(chunk.len() as u64);
            skip -= skipped;
            let chunk = chunk.split_off(skipped as usize);
            if chunk.is_empty() {
                continue;
            }
            self.done += chunk.len() as u64;
            self.tell();
            if self.sink.send(Ok(chunk)).await.is_err() {
                // The unpacking thread has given up, and knows why.
                return Ok(None);
            }
        }
    }

    fn tell(&mut self) {
        if self.done - self.told >= STEP || self.done >= self.content.size {
            self.told = self.done;
            let (digest, total) = (self.content.digest.clone(), self.content.size);
            let _ = self.report.send(Progress::Fetched { digest, done: self.done, total });
        }
    }
}

fn starts_at(headers: &HeaderMap, offset: u64) -> bool {
    let range = headers.get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    range
        .and_then(|text| text.strip_prefix("bytes "))
        .and_then(|text| text.split_once('-'))
        .is_some_and(|(start, _)| start.trim().parse() == Ok(offset))
}

/// The other end, on a blocking thread.
pub(super) struct ChunkReader {
    chunks: mpsc::Receiver<Chunk>,
    chunk: Bytes,
}

impl ChunkReader {
    pub(super) fn new(chunks: mpsc::Receiver<Chunk>) -> Self {
        Self { chunks, chunk: Bytes::new() }
    }
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.chunks.blocking_recv() {
                Some(Ok(chunk)) => self.chunk = chunk,
                Some(Err(error)) => return Err(io::Error::other(error)),
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.chunk.len());
        buffer[..count].copy_from_slice(&self.chunk.split_to(count));
        Ok(count)
    }
}
