//! A small SPDY/3.1 server over any byte stream, as kubectl and other clients of Kubernetes speak it for exec, attach and
//! port-forward: straight after an upgrade, or inside WebSocket messages. The client opens streams; each is a pipe both ways.
//!
//! # Memory
//! Those clients never send WINDOW_UPDATE and pay no heed to ours, so there are no windows here: a stream holds [`BACKLOG`] pieces
//! of at most [`PIECE`] bytes until they are taken, and where streams have nothing to do with each other, more of those that the
//! connection has in [`COMMON`], at most [`DEEPEST`]. Then the whole connection waits; [`Patience`] says for how long. All that a connection can
//! have us keep is [`MEMORY`].

mod dictionary;
mod frame;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, ReadHalf, WriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use frame::{FIN, FrameError, HEADER, Header, Kind, Packer, Reset, Unpacker, control};

/// Bytes that travel in one piece.
pub const PIECE: usize = 16 * 1024;
/// Pieces of a stream that wait to be taken, whatever other streams keep.
const BACKLOG: usize = 4;
/// Pieces beyond that of all streams of a connection.
const COMMON: usize = 1024;
/// Pieces of a stream, all in all.
const DEEPEST: usize = 256;
/// Frames that wait to be sent.
const UNSENT: usize = 16;
/// Streams at a time. A forwarded connection has two.
const STREAMS: usize = 512;
/// Bytes that one connection's streams keep at most, with what they were opened with.
const MEMORY: usize = STREAMS * (BACKLOG * PIECE + frame::HEADERS_LIMIT) + COMMON * PIECE;
const _: () = assert!(MEMORY <= 64 << 20);
/// New streams that nobody has taken yet.
const UNTAKEN: usize = 64;

/// How long all streams of a connection wait for one whose reader is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// As long as it takes: they belong together, as those of an exec.
    Endless,
    /// Until it has taken nothing for so long: that stream is reset and the others go on.
    Until(Duration),
}

/// Why a connection ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum SpdyError {
    /// The byte stream.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What came on it.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// A stream that the client has opened.
#[derive(Debug)]
pub struct Stream {
    headers: frame::Headers,
    incoming: mpsc::Receiver<Bytes>,
    outgoing: Sender,
}

/// The sending half of a stream.
#[derive(Debug)]
pub struct Sender {
    id: u32,
    frames: mpsc::Sender<Bytes>,
    reset: CancellationToken,
    /// Of [`STREAMS`].
    _place: Arc<OwnedSemaphorePermit>,
}

/// How long a client has to end a connection on which all is said.
const FAREWELL: Duration = Duration::from_secs(5);

/// The connection is gone, or the client has reset the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the stream is gone")]
pub struct Gone;

impl Stream {
    /// A header that the stream was opened with; its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
    /// What the client sends, in pieces to its end, and the way to answer.
    pub fn split(self) -> (mpsc::Receiver<Bytes>, Sender) {
        (self.incoming, self.outgoing)
    }
}

impl Sender {
    /// Sends bytes, once there is room.
    pub async fn send(&self, bytes: &[u8]) -> Result<(), Gone> {
        for piece in bytes.chunks(PIECE) {
            self.say(frame::data(self.id, 0, piece)).await?;
        }
        Ok(())
    }
    /// Says that no more comes.
    pub async fn finish(&self) -> Result<(), Gone> {
        self.say(frame::data(self.id, FIN, &[])).await
    }
    /// Until nobody would hear what is sent.
    pub async fn closed(&self) {
        tokio::select! {
            () = self.reset.cancelled() => {}
            () = self.frames.closed() => {}
        }
    }
    async fn say(&self, frame: Bytes) -> Result<(), Gone> {
        tokio::select! {
            biased;
            () = self.reset.cancelled() => Err(Gone),
            sent = self.frames.send(frame) => sent.map_err(|_| Gone),
        }
    }
}

/// A connection's streams come from the receiver as long as the future is polled. It ends when the client goes, or when
/// the receiver and all streams are dropped, what they said is sent, and the client has had time to go first.
pub fn serve<S>(io: S, patience: Patience) -> (mpsc::Receiver<Stream>, impl Future<Output = Result<(), SpdyError>> + Send)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (streams, receiver) = mpsc::channel(UNTAKEN);
    let (frames, unsent) = mpsc::channel(UNSENT);
    let (reading, writing) = tokio::io::split(io);
    let connection = async move {
        let reader = Reader {
            from: BufReader::with_capacity(PIECE, reading),
            unpacker: Unpacker::new(),
            packer: Packer::new()?,
            open: HashMap::new(),
            last: 0,
            places: Arc::new(Semaphore::new(STREAMS)),
            common: Arc::new(Semaphore::new(if patience == Patience::Endless { 0 } else { COMMON })),
            streams: streams.clone(),
            frames: frames.downgrade(),
            patience,
        };
        // Streams have senders of their own: when nobody takes new ones and the last is dropped, all is said.
        let hold = async move {
            streams.closed().await;
            drop(frames);
            std::future::pending().await
        };
        tokio::select! {
            read = reader.run() => read,
            written = write(writing, unsent) => written.map_err(SpdyError::from),
            never = hold => never,
        }
    };
    (receiver, connection)
}

/// Sends frames until there is nobody left who could have more.
async fn write<S: AsyncWrite>(mut to: WriteHalf<S>, mut frames: mpsc::Receiver<Bytes>) -> io::Result<()> {
    while let Some(frame) = frames.recv().await {
        to.write_all(&frame).await?;
        if frames.is_empty() {
            to.flush().await?;
        }
    }
    // It is the client's to end the connection: many drop what they haven't read when it ends, and so does a proxy on the way.
    tokio::time::sleep(FAREWELL).await;
    to.shutdown().await
}

struct Reader<S> {
    from: BufReader<ReadHalf<S>>,
    unpacker: Unpacker,
    packer: Packer,
    /// Streams that aren't reset, with the way to their takers as long as their client may send more.
    open: HashMap<u32, Open>,
    last: u32,
    places: Arc<Semaphore>,
    /// Of [`COMMON`].
    common: Arc<Semaphore>,
    streams: mpsc::Sender<Stream>,
    frames: mpsc::WeakSender<Bytes>,
    patience: Patience,
}

struct Open {
    sender: Option<mpsc::Sender<Bytes>>,
    /// Of [`BACKLOG`].
    backlog: Arc<Semaphore>,
    reset: CancellationToken,
    /// Held by the stream's [`Sender`]: gone when that is.
    place: Weak<OwnedSemaphorePermit>,
}

impl Open {
    /// A piece's place in the stream's backlog, or in the common one as long as that has any.
    async fn place(&self, common: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
        for backlog in [&self.backlog, common] {
            if let Ok(place) = backlog.clone().try_acquire_owned() {
                return Some(place);
            }
        }
        self.backlog.clone().acquire_owned().await.ok()
    }
}

/// Bytes that have their place until whoever takes them is done with them.
struct Piece {
    bytes: BytesMut,
    _place: Option<OwnedSemaphorePermit>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl<S: AsyncRead> Reader<S> {
    async fn run(mut self) -> Result<(), SpdyError> {
        loop {
            let mut header = [0; HEADER];
            match self.from.read_exact(&mut header).await {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            let header = Header::parse(header)?;
            match header.kind {
                Kind::Data(stream) => self.data(stream, header).await?,
                Kind::Control(kind) => {
                    let mut payload = vec![0; header.length];
                    self.from.read_exact(&mut payload).await?;
                    self.control(kind, header.flags, &payload).await?;
                }
            }
        }
    }

    /// A frame's bytes go to their stream as they come, whatever length it claims.
    async fn data(&mut self, id: u32, header: Header) -> Result<(), SpdyError> {
        let mut left = header.length;
        while left > 0 {
            let mut piece = BytesMut::zeroed(left.min(PIECE));
            self.from.read_exact(&mut piece).await?;
            left -= piece.len();
            self.deliver(id, piece).await;
        }
        if header.flags & FIN != 0
            && let Some(open) = self.open.get_mut(&id)
        {
            open.sender = None;
        }
        Ok(())
    }

    async fn deliver(&mut self, id: u32, bytes: BytesMut) {
        let Some(open) = self.open.get_mut(&id) else { return };
        let Some(sender) = &open.sender else { return };
        let sent = async {
            let place = open.place(&self.common).await;
            sender.send(Bytes::from_owner(Piece { bytes, _place: place })).await
        };
        let taken = match self.patience {
            Patience::Endless => Ok(sent.await),
            Patience::Until(limit) => tokio::time::timeout(limit, sent).await,
        };
        match taken {
            Ok(Ok(())) => {}
            // Whoever had it wants no more of it, but may have more to say.
            Ok(Err(_)) => open.sender = None,
            Err(_) => {
                open.reset.cancel();
                self.open.remove(&id);
                self.say(frame::reset(id, Reset::Cancel)).await;
            }
        }
    }

    async fn control(&mut self, kind: u16, flags: u8, payload: &[u8]) -> Result<(), SpdyError> {
        match kind {
            control::SYN_STREAM => self.opened(flags, payload).await?,
            control::RST_STREAM => {
                if let Some(open) = self.open.remove(&frame::stream_id(payload)?) {
                    open.reset.cancel();
                }
            }
            control::PING => self.say(frame::pong(payload)).await,
            control::HEADERS => {
                self.unpacker.unpack(payload.get(4..).ok_or(FrameError::Malformed("HEADERS"))?)?;
            }
            // SETTINGS, GOAWAY, WINDOW_UPDATE, and what later versions may have: nothing that matters here.
            _ => {}
        }
        Ok(())
    }

    async fn opened(&mut self, flags: u8, payload: &[u8]) -> Result<(), SpdyError> {
        let id = frame::stream_id(payload)?;
        let headers = self.unpacker.unpack(payload.get(10..).ok_or(FrameError::Malformed("SYN_STREAM"))?)?;
        if id <= self.last || id % 2 == 0 {
            self.say(frame::reset(id, Reset::InvalidStream)).await;
            return Ok(());
        }
        self.last = id;
        let Some(frames) = self.frames.upgrade() else { return Ok(()) };
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            self.say(frame::reset(id, Reset::Refused)).await;
            return Ok(());
        };
        let (sender, incoming) = mpsc::channel(DEEPEST);
        let backlog = Arc::new(Semaphore::new(BACKLOG));
        let reset = CancellationToken::new();
        let _ = frames.send(self.packer.reply(id)?).await;
        let place = Arc::new(place);
        // What is left of streams that are over.
        self.open.retain(|_, open| open.place.strong_count() > 0);
        let sender = (flags & FIN == 0).then_some(sender);
        self.open.insert(id, Open { sender, backlog, reset: reset.clone(), place: Arc::downgrade(&place) });
        let stream = Stream { headers, incoming, outgoing: Sender { id, frames, reset, _place: place } };
        if self.streams.send(stream).await.is_err() {
            self.open.remove(&id);
            self.say(frame::go_away(id)).await;
        }
        Ok(())
    }

    async fn say(&mut self, frame: Bytes) {
        if let Some(frames) = self.frames.upgrade() {
            let _ = frames.send(frame).await;
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
