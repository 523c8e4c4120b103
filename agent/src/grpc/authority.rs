//! Clients of unix sockets say their path as `:authority`, grpc-go percent-encoded, gRPC's C core and older ones as it is
//! (<https://github.com/grpc/grpc/issues/38142>). That is no authority, and h2 ends the call (<https://github.com/hyperium/h2/pull/487>).
//! So each request's headers are written anew before h2 sees them. All other frames pass as they are.

use std::io;

use loona_hpack::Decoder;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::net::UnixStream;

/// What is sent at first.
const PREFACE: usize = 24;
/// A frame's length, kind, flags and stream.
const HEAD: usize = 9;
/// As HTTP/2 has it, unless somebody asks for more, which h2 doesn't.
const LONGEST_FRAME: usize = 16_384;

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// The connection, as h2 takes it.
pub fn mended(socket: UnixStream) -> DuplexStream {
    let (near, far) = tokio::io::duplex(64 << 10);
    tokio::spawn(async move {
        let (from_client, mut to_client) = socket.into_split();
        let (mut from_server, to_server) = tokio::io::split(far);
        // Either side's end is the end.
        tokio::select! {
            _ = mend(from_client, to_server) => {}
            _ = tokio::io::copy(&mut from_server, &mut to_client) => {}
        }
        let _ = to_client.shutdown().await;
    });
    near
}

/// Copies frames, until the client has no more.
async fn mend(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
    let mut preface = [0; PREFACE];
    from.read_exact(&mut preface).await?;
    to.write_all(&preface).await?;
    let mut decoder = Decoder::new();
    loop {
        let frame = Frame::read(&mut from).await?;
        if frame.kind != HEADERS {
            frame.write(&mut to).await?;
            continue;
        }
        let mut block = frame.fragment()?.to_vec();
        let mut flags = frame.flags;
        while flags & END_HEADERS == 0 {
            let next = Frame::read(&mut from).await?;
            if next.kind != CONTINUATION || block.len() > LONGEST_FRAME {
                return Err(io::ErrorKind::InvalidData.into());
            }
            block.extend_from_slice(&next.payload);
            flags |= next.flags & END_HEADERS;
        }
        let payload = rewritten(&mut decoder, &block).ok_or(io::ErrorKind::InvalidData)?;
        let flags = frame.flags & END_STREAM | END_HEADERS;
        Frame { flags, payload, ..frame }.write(&mut to).await?;
    }
}

/// One of HTTP/2's.
struct Frame {
    kind: u8,
    flags: u8,
    stream: [u8; 4],
    payload: Vec<u8>,
}

impl Frame {
    async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        let mut head = [0; HEAD];
        from.read_exact(&mut head).await?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        if length > LONGEST_FRAME {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut payload = vec![0; length];
        from.read_exact(&mut payload).await?;
        Ok(Self { kind, flags, stream, payload })
    }

    async fn write(&self, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let [_, length @ ..] = u32::try_from(self.payload.len()).unwrap_or(0).to_be_bytes();
        let whole = [&length[..], &[self.kind, self.flags][..], &self.stream[..], self.payload.as_slice()].concat();
        to.write_all(&whole).await
    }

    /// Of the headers, without padding and priority.
    fn fragment(&self) -> io::Result<&[u8]> {
        let wrong = || io::Error::from(io::ErrorKind::InvalidData);
        let mut rest = self.payload.as_slice();
        if self.flags & PADDED != 0 {
            let (length, after) = rest.split_first().ok_or_else(wrong)?;
            rest = after.get(..after.len().checked_sub(usize::from(*length)).ok_or_else(wrong)?).ok_or_else(wrong)?;
        }
        if self.flags & PRIORITY != 0 {
            rest = rest.get(5..).ok_or_else(wrong)?;
        }
        Ok(rest)
    }
}

/// The same headers as literals that no table remembers, with an authority that is one.
fn rewritten(decoder: &mut Decoder<'_>, block: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(block.len() * 2);
    for (name, value) in decoder.decode(block).ok()? {
        let value = if name == b":authority" { b"localhost".to_vec() } else { value };
        out.push(0);
        for text in [&name, &value] {
            put_length(&mut out, text.len());
            out.extend_from_slice(text);
        }
    }
    (out.len() <= LONGEST_FRAME).then_some(out)
}

/// HPACK's number behind a bit that says that no Huffman code follows.
fn put_length(out: &mut Vec<u8>, length: usize) {
    let Some(mut rest) = length.checked_sub(127) else { return out.push(length as u8) };
    out.push(127);
    while rest >= 128 {
        out.push(rest as u8 | 128);
        rest >>= 7;
    }
    out.push(rest as u8);
}

#[cfg(test)]
mod tests {
    use loona_hpack::Encoder;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_path_for_an_authority_becomes_one_and_the_rest_stays() {
        let long = "v".repeat(300);
        let headers: Vec<(&[u8], &[u8])> = vec![
            (b":method", b"POST"),
            (b":authority", b"%2Fvar%2Flib%2Fkubelet%2Fdevice-plugins%2Fkubelet.sock"),
            (b"x", long.as_bytes()),
        ];
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
        // The second request refers to the client's table.
        for _ in 0..2 {
            let sent = encoder.encode(headers.iter().copied());
            let mended = rewritten(&mut decoder, &sent).unwrap();
            let seen = Decoder::new().decode(&mended).unwrap();
            assert_eq!(seen[1], (b":authority".to_vec(), b"localhost".to_vec()));
            assert_eq!((&seen[0].1, &seen[2].1), (&b"POST".to_vec(), &long.clone().into_bytes()));
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let whole = [&[0; PREFACE], bytes.as_slice()].concat();
            let _ = runtime.block_on(mend(whole.as_slice(), tokio::io::sink()));
        }
    }
}
