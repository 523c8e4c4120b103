//! Frames of SPDY/3.1, written and read: no I/O here. <https://www.chromium.org/spdy/spdy-protocol/spdy-protocol-draft3-1/>

use bytes::{BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::dictionary::dictionary;

/// Before each frame's payload.
pub const HEADER: usize = 8;
/// The largest payload of a control frame that is taken.
pub const CONTROL_LIMIT: usize = 64 * 1024;
/// The largest block of headers, unpacked.
pub const HEADERS_LIMIT: usize = 32 * 1024;
/// Headers of a stream: kubectl sends four, a browser's worth is twenty.
const HEADERS: usize = 64;
/// This is the stream's last frame from here.
pub const FIN: u8 = 1;

/// Why a stream is reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Reset {
    /// Of an ended stream, or one that never was.
    InvalidStream = 2,
    /// Too many streams.
    Refused = 3,
    /// Nobody wants it any more.
    Cancel = 5,
}

/// Names, in lower case as they come, and values.
pub type Headers = Vec<(String, String)>;

/// A frame's first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub kind: Kind,
    /// [`FIN`] and others.
    pub flags: u8,
    /// Of the payload.
    pub length: usize,
}

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Bytes of a stream.
    Data(u32),
    /// One of the types of control frames.
    Control(u16),
}

/// The control frames that mean something here.
pub mod control {
    /// The other end opens a stream.
    pub const SYN_STREAM: u16 = 1;
    /// Ours is open.
    pub const SYN_REPLY: u16 = 2;
    /// A stream is over at once.
    pub const RST_STREAM: u16 = 3;
    /// To be answered alike.
    pub const PING: u16 = 6;
    /// The other end opens no more.
    pub const GOAWAY: u16 = 7;
    /// More headers of a stream.
    pub const HEADERS: u16 = 8;
}

/// Why a connection can't go on.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Another protocol, or none.
    #[error("not a SPDY/3 frame: version {0}")]
    Version(u16),
    /// More than is taken.
    #[error("a control frame of {0} bytes: at most {CONTROL_LIMIT} are taken")]
    TooLarge(usize),
    /// A frame that ends too soon, or headers that don't unpack.
    #[error("a malformed {0}")]
    Malformed(&'static str),
}

impl Header {
    /// Reads it.
    pub fn parse(bytes: [u8; HEADER]) -> Result<Self, FrameError> {
        let [a, b, c, d, flags, length @ ..] = bytes;
        let length = u32::from_be_bytes([0, length[0], length[1], length[2]]) as usize;
        if a & 0x80 == 0 {
            return Ok(Self { kind: Kind::Data(u32::from_be_bytes([a, b, c, d])), flags, length });
        }
        let version = u16::from_be_bytes([a & 0x7f, b]);
        if version != 3 {
            return Err(FrameError::Version(version));
        }
        if length > CONTROL_LIMIT {
            return Err(FrameError::TooLarge(length));
        }
        Ok(Self { kind: Kind::Control(u16::from_be_bytes([c, d])), flags, length })
    }
}

/// A stream's number at the beginning of a control frame's payload.
pub fn stream_id(payload: &[u8]) -> Result<u32, FrameError> {
    let first = payload.first_chunk().ok_or(FrameError::Malformed("stream number"))?;
    Ok(u32::from_be_bytes(*first) & 0x7fff_ffff)
}

/// A frame of bytes.
pub fn data(stream: u32, flags: u8, bytes: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(HEADER + bytes.len());
    frame.put_u32(stream);
    frame.put_u32(u32::from(flags) << 24 | bytes.len() as u32);
    frame.put_slice(bytes);
    frame.freeze()
}

fn control_frame(kind: u16, payload: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(HEADER + payload.len());
    frame.put_u16(0x8003);
    frame.put_u16(kind);
    frame.put_u32(payload.len() as u32);
    frame.put_slice(payload);
    frame.freeze()
}

/// The answer to a PING.
pub fn pong(payload: &[u8]) -> Bytes {
    control_frame(control::PING, payload)
}

/// Ends a stream at once.
pub fn reset(stream: u32, why: Reset) -> Bytes {
    control_frame(control::RST_STREAM, &[stream.to_be_bytes(), (why as u32).to_be_bytes()].concat())
}

/// Nothing is opened any more.
pub fn go_away(last: u32) -> Bytes {
    control_frame(control::GOAWAY, &[last.to_be_bytes(), [0; 4]].concat())
}

/// Headers to be sent: the compressor's state lasts as long as the connection.
#[derive(Debug)]
pub struct Packer(Compress);

impl Packer {
    /// Of a new connection.
    pub fn new() -> Result<Self, FrameError> {
        let mut zlib = Compress::new(Compression::fast(), true);
        zlib.set_dictionary(&dictionary()).map_err(|_| FrameError::Malformed("dictionary"))?;
        Ok(Self(zlib))
    }

    /// Says that a stream is open. There are no headers to say.
    pub fn reply(&mut self, stream: u32) -> Result<Bytes, FrameError> {
        let block = self.pack(&[])?;
        Ok(control_frame(control::SYN_REPLY, &[&stream.to_be_bytes()[..], &block].concat()))
    }

    fn pack(&mut self, headers: &[(String, String)]) -> Result<Vec<u8>, FrameError> {
        let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend((text.len() as u32).to_be_bytes());
            plain.extend(text.as_bytes());
        }
        let mut packed = Vec::with_capacity(plain.len() + 64);
        let begun = self.0.total_in();
        loop {
            let used = (self.0.total_in() - begun) as usize;
            let done = self.0.compress_vec(&plain[used..], &mut packed, FlushCompress::Sync);
            done.map_err(|_| FrameError::Malformed("block of headers"))?;
            // Room that is left says that the flush is whole.
            if packed.len() < packed.capacity() {
                return Ok(packed);
            }
            packed.reserve(packed.len());
        }
    }
}

/// Headers that come.
#[derive(Debug)]
pub struct Unpacker(Decompress);

impl Unpacker {
    /// Of a new connection.
    pub fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// Reads a block. Every block must be read, wanted or not: the next one is packed with it in mind.
    pub fn unpack(&mut self, packed: &[u8]) -> Result<Headers, FrameError> {
        let malformed = FrameError::Malformed("block of headers");
        let mut plain = Vec::with_capacity(4 * 1024);
        let begun = self.0.total_in();
        loop {
            let used = (self.0.total_in() - begun) as usize;
            let before = (used, plain.len());
            match self.0.decompress_vec(&packed[used..], &mut plain, FlushDecompress::Sync) {
                Ok(Status::StreamEnd) => return Err(malformed),
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&dictionary()).map_err(|_| FrameError::Malformed("dictionary"))?;
                    continue;
                }
                Err(_) => return Err(malformed),
            }
            let used = (self.0.total_in() - begun) as usize;
            let room = plain.len() < plain.capacity();
            if room && used == packed.len() {
                return parse(&plain).ok_or(malformed);
            }
            if plain.len() >= HEADERS_LIMIT || room && (used, plain.len()) == before {
                return Err(malformed);
            }
            if !room {
                plain.reserve(plain.len());
            }
        }
    }
}

fn parse(mut plain: &[u8]) -> Option<Headers> {
    // An empty one costs a peer nothing on the wire, and us memory for as long as the stream lasts.
    let count = take_number(&mut plain).filter(|count| *count <= HEADERS)?;
    let mut headers = Vec::with_capacity(count);
    for _ in 0..count {
        let name = take_text(&mut plain)?.to_ascii_lowercase();
        headers.push((name, take_text(&mut plain)?));
    }
    plain.is_empty().then_some(headers)
}

fn take_number(from: &mut &[u8]) -> Option<usize> {
    let (number, rest) = from.split_first_chunk()?;
    *from = rest;
    Some(u32::from_be_bytes(*number) as usize)
}

fn take_text(from: &mut &[u8]) -> Option<String> {
    let length = take_number(from)?;
    let (text, rest) = from.split_at_checked(length)?;
    *from = rest;
    String::from_utf8(text.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn blocks_one_after_the_other() {
        let (mut packer, mut unpacker) = (Packer::new().unwrap(), Unpacker::new());
        for number in 0..50 {
            let sent = headers(&[("streamtype", "data"), ("port", "80"), ("requestid", &number.to_string())]);
            assert_eq!(unpacker.unpack(&packer.pack(&sent).unwrap()).unwrap(), sent);
        }
    }

    #[test]
    fn a_block_that_explodes_is_refused() {
        let (mut packer, mut unpacker) = (Packer::new().unwrap(), Unpacker::new());
        let block = packer.pack(&headers(&[("a", &"x".repeat(10_000_000))]));
        assert!(unpacker.unpack(&block.unwrap()).is_err());
    }

    proptest! {
        #[test]
        fn any_headers_come_back(sent in prop::collection::vec(("[a-z-]{0,20}", ".{0,200}"), 0..20)) {
            let (mut packer, mut unpacker) = (Packer::new().unwrap(), Unpacker::new());
            prop_assert_eq!(unpacker.unpack(&packer.pack(&sent).unwrap()).unwrap(), sent);
        }
        #[test]
        fn nonsense_is_refused_or_read_but_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            let _ = Unpacker::new().unpack(&bytes);
            let _ = parse(&bytes);
            let _ = stream_id(&bytes);
            if let Some(first) = bytes.first_chunk() {
                let _ = Header::parse(*first);
            }
        }
    }
}
