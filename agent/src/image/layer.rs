//! One layer from its compressed bytes to a directory: count and hash → decompress → hash again → unpack, in one pass and
//! with bounded memory. Runs on a blocking thread; a second thread decompresses ahead of the unpacking.

use std::io::{self, BufReader, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::digest::{Digest, Hasher, HashingReader};
use super::error::{Error, Result};
use super::store::Staging;
use super::unpack::{self, Bounds, Fault, Unpacked};

/// Chunks that the decompressing thread may be ahead, and their size.
const CHUNKS: usize = 8;
const CHUNK: usize = 128 * 1024;

/// What the manifest and the configuration promise of a layer.
#[derive(Debug, Clone)]
pub(super) struct Promise {
    /// The digest and size of the bytes as they travel. An archive of Docker's promises neither.
    pub blob: Option<(Digest, u64)>,
    /// The digest of the bytes uncompressed.
    pub diff_id: Digest,
}

impl Promise {
    /// How it is called in messages and progress: as in the manifest.
    pub(super) fn name(&self) -> &Digest {
        self.blob.as_ref().map_or(&self.diff_id, |(digest, _)| digest)
    }
}

/// Reads a layer from `source` and lays it out in `staging`. Nothing of it may be used where this fails.
pub(super) fn lay_out(source: impl Read + Send, promise: &Promise, staging: &Staging, bounds: Bounds) -> Result<Unpacked> {
    let label = promise.name().to_string();
    let limit = promise.blob.as_ref().map_or(u64::MAX, |(_, size)| *size);
    let hasher = promise.blob.as_ref().map_or_else(Hasher::sha256, |(digest, _)| Hasher::like(digest));
    let blob = HashingReader::new(source, hasher, limit);
    let (sender, receiver) = sync_channel(CHUNKS);
    let (unpacked, blob) = std::thread::scope(|scope| {
        let decompressing = scope.spawn(move || decompress(blob, &sender));
        let ahead = Ahead { receiver, chunk: Vec::new(), at: 0 };
        let mut tar = HashingReader::new(ahead, Hasher::like(&promise.diff_id), archive_limit(bounds));
        let unpacked = unpack::unpack(&mut tar, staging.root(), staging.trash(), bounds)
            .map_err(|fault| failure(fault, &label, staging))
            .and_then(|unpacked| {
                // The padding after the archive's end is a part of the digest.
                tar.drain().map_err(|error| unreadable(error, &label))?;
                check("layer", &label, &promise.diff_id, &tar.finish().0)?;
                Ok(unpacked)
            });
        let blob = decompressing.join().unwrap_or_else(|_| Err(io::Error::other("the decompressing thread broke off")));
        (unpacked, blob)
    });
    // The digest of the bytes that travelled is judged first: where they are wrong, what they unpack to says nothing.
    match blob {
        Ok(blob) => {
            if let Some((digest, size)) = &promise.blob {
                let (got, count) = blob.finish();
                check("layer", &label, digest, &got)?;
                if count != *size {
                    return Err(Error::malformed(format!("layer {label}"), format!("{count} bytes where {size} were promised")));
                }
            }
            unpacked
        }
        // Where unpacking failed first, the other thread broke off because of it.
        Err(error) => match unpacked {
            Err(first) if error.kind() == io::ErrorKind::BrokenPipe => Err(first),
            _ => Err(unreadable(error, &label)),
        },
    }
}

/// A bound on the archive beside the files' bytes: headers, padding, extended headers.
fn archive_limit(bounds: Bounds) -> u64 {
    bounds.bytes.saturating_add(bounds.entries.saturating_mul(4096))
}

/// Sends the uncompressed bytes in chunks, and gives the reader back once it is read to its end.
fn decompress<R: Read>(mut blob: HashingReader<R>, sender: &SyncSender<io::Result<Vec<u8>>>) -> io::Result<HashingReader<R>> {
    let outcome = forward(&mut blob, sender);
    match outcome {
        Ok(()) => {
            blob.drain()?;
            Ok(blob)
        }
        Err(error) => {
            // The unpacking side must not take this for the archive's end. It has its own kind of the error.
            let _ = sender.send(Err(io::Error::new(io::ErrorKind::BrokenPipe, error.to_string())));
            // A wrong byte shows as nonsense to the decompressor; the digest tells the truth about it.
            match error.kind() {
                io::ErrorKind::BrokenPipe => Err(error),
                _ if error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()).is_some() => Err(error),
                _ => blob.drain().map(|()| blob),
            }
        }
    }
}

fn forward<R: Read>(blob: &mut HashingReader<R>, sender: &SyncSender<io::Result<Vec<u8>>>) -> io::Result<()> {
    let mut tar = decoder(blob)?;
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        if tar.by_ref().take(CHUNK as u64).read_to_end(&mut chunk)? == 0 {
            return Ok(());
        }
        if sender.send(Ok(chunk)).is_err() {
            return Err(io::Error::from(io::ErrorKind::BrokenPipe));
        }
    }
}

/// Picks the decompressor by the first bytes: what the manifest calls the layer is often wrong.
pub(super) fn decoder<'a>(mut source: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = Vec::with_capacity(6);
    source.by_ref().take(6).read_to_end(&mut magic)?;
    let kind = magic.clone();
    let all = BufReader::with_capacity(CHUNK, io::Cursor::new(magic).chain(source));
    match kind.as_slice() {
        [0x1f, 0x8b, ..] => Ok(Box::new(flate2::bufread::MultiGzDecoder::new(all))),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Box::new(zstd::stream::read::Decoder::with_buffer(all)?)),
        [b'B', b'Z', b'h', ..] => Err(unknown("bzip2")),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => Err(unknown("xz")),
        _ => Ok(Box::new(all)),
    }
}

fn unknown(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("compressed with {what}, which images may not be: gzip, zstd or none"))
}

/// The chunks from the decompressing thread, as a reader.
struct Ahead {
    receiver: Receiver<io::Result<Vec<u8>>>,
    chunk: Vec<u8>,
    at: usize,
}

impl Read for Ahead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.chunk.len() {
            match self.receiver.recv() {
                Ok(chunk) => (self.chunk, self.at) = (chunk?, 0),
                Err(_) => return Ok(0),
            }
        }
        let count = buffer.len().min(self.chunk.len() - self.at);
        buffer[..count].copy_from_slice(&self.chunk[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

pub(super) fn check(what: &str, label: &str, want: &Digest, got: &Digest) -> Result<()> {
    if want == got {
        return Ok(());
    }
    Err(Error::DigestMismatch { what: format!("{what} {label}"), want: want.to_string(), got: got.to_string() })
}

fn failure(fault: Fault, label: &str, staging: &Staging) -> Error {
    match fault {
        Fault::Read(error) => unreadable(error, label),
        Fault::NoSpace => staging.full(),
        Fault::Entry { entry, why } => Error::Unpack { layer: label.to_owned(), entry, why },
    }
}

fn unreadable(error: io::Error, label: &str) -> Error {
    Error::from_read(error, |error| Error::malformed(format!("layer {label}"), format!("it can't be read: {error}")))
}
