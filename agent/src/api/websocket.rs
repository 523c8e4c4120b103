//! WebSocket: the handshake, Kubernetes' channels (one byte before each message) over it, and a byte stream in its messages.

use std::future::Future;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use hyper::body::Incoming;
use hyper::header::{
    CONNECTION, HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use hyper::upgrade::Upgraded;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::time::{Duration, Instant, interval_at};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

use super::remote::{Output, Transport};
use super::{ApiError, Response, reply};
use crate::pod::node::TerminalSize;

/// The largest message that is taken.
const MESSAGE_LIMIT: usize = 4 * 1024 * 1024;
/// Written over with zeros when a connection is made: the library's 128 KiB are a tenth of a millisecond on both sides.
const READ_BUFFER: usize = 16 * 1024;
/// Without hearing anything for a minute kubectl gives up, also when its pings wait behind stdin that the process doesn't read.
const HEARTBEAT: Duration = Duration::from_secs(20);

/// Bytes of a message of [`tunnel`].
const TUNNEL: usize = 32 * 1024;

/// Channels of a remote command.
pub mod channel {
    /// Client → process.
    pub const STDIN: u8 = 0;
    /// Process → client.
    pub const STDOUT: u8 = 1;
    /// Process → client.
    pub const STDERR: u8 = 2;
    /// How it ended.
    pub const ERROR: u8 = 3;
    /// Client's window.
    pub const RESIZE: u8 = 4;
    /// v5: the channel in the next byte is at its end.
    pub const CLOSE: u8 = 255;
}

/// For exec and attach; the first that the client offers, too, is taken.
pub const REMOTE_COMMAND: &[&str] = &["v5.channel.k8s.io", "v4.channel.k8s.io"];

/// A connection on which the handshake is done.
pub type Socket<S = TokioIo<Upgraded>> = WebSocketStream<S>;

/// Whether a request asks for WebSocket.
pub fn is_wanted(headers: &HeaderMap) -> bool {
    headers.get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// The answer to a handshake, the protocol that was chosen, and the connection that follows.
pub fn accept(
    request: &mut Request<Incoming>,
    protocols: &[&'static str],
) -> Result<(Response, &'static str, impl Future<Output = Result<Socket, hyper::Error>> + Send + use<>), ApiError> {
    let headers = request.headers();
    let key = headers.get(SEC_WEBSOCKET_KEY).ok_or_else(|| ApiError::bad_request("Sec-WebSocket-Key is missing"))?;
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(ApiError::bad_request("Sec-WebSocket-Version must be 13"));
    }
    let offered: Vec<&str> = offers(headers).collect();
    let chosen = protocols.iter().find(|known| offered.contains(known)).copied().ok_or_else(|| {
        ApiError::bad_request(format!(
            "unable to negotiate a protocol: client supports {offered:?}, server accepts {protocols:?}"
        ))
    })?;
    let mut response = reply::whole("text/plain", Bytes::new());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let answer = HeaderValue::from_str(&accept_key(key.as_bytes())).map_err(|error| ApiError::internal(error.to_string()))?;
    let headers = response.headers_mut();
    headers.clear();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, answer);
    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(chosen));
    let upgraded = hyper::upgrade::on(request);
    Ok((response, chosen, async move { Ok(open(TokioIo::new(upgraded.await?), Role::Server).await) }))
}

fn offers(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// RFC 6455, 4.2.2: what proves that the server knows WebSocket.
pub fn accept_key(key: &[u8]) -> String {
    let mut hash = ring::digest::Context::new(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key);
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(hash.finish())
}

/// Speaks WebSocket on a stream whose handshake is done.
pub async fn open<S: AsyncRead + AsyncWrite + Unpin>(stream: S, role: Role) -> Socket<S> {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .max_message_size(Some(MESSAGE_LIMIT))
        .max_frame_size(Some(MESSAGE_LIMIT));
    WebSocketStream::from_raw_socket(stream, role, Some(config)).await
}

/// A message of a channel.
pub fn message(channel: u8, bytes: &[u8]) -> Message {
    let mut framed = BytesMut::with_capacity(bytes.len() + 1);
    framed.put_u8(channel);
    framed.extend_from_slice(bytes);
    Message::Binary(framed.freeze())
}

/// A window's size as it travels.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct WireSize {
    width: u16,
    height: u16,
}

impl WireSize {
    /// Reads one; anything else is none.
    pub fn parse(bytes: &[u8]) -> Option<TerminalSize> {
        let size: Self = serde_json::from_slice(bytes).ok()?;
        Some(TerminalSize { rows: size.height, columns: size.width })
    }
}

/// Carries a byte stream in binary messages, whatever their bounds, until either end is over.
pub async fn tunnel<S: AsyncRead + AsyncWrite + Unpin + Send>(socket: Socket<S>, stream: DuplexStream) {
    let (mut sink, mut messages) = socket.split();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let inward = async {
        while let Some(Ok(message)) = messages.next().await {
            match message {
                Message::Binary(bytes) if writer.write_all(&bytes).await.is_err() => return,
                Message::Close(_) => return,
                _ => {}
            }
        }
    };
    let outward = async {
        let mut chunk = vec![0; TUNNEL];
        while let Ok(length @ 1..) = reader.read(&mut chunk).await {
            if sink.send(Message::Binary(Bytes::copy_from_slice(&chunk[..length]))).await.is_err() {
                return;
            }
        }
        let _ = sink.send(Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))).await;
    };
    tokio::select! {
        () = inward => {}
        () = outward => {}
    }
}

/// Carries a remote command's streams until the process has ended or the client is gone.
pub async fn carry<S: AsyncRead + AsyncWrite + Unpin + Send>(socket: Socket<S>, version: &str, transport: Transport) {
    let (mut sink, mut messages) = socket.split();
    let Transport { mut stdin, sizes, mut output } = transport;
    let closes = version == REMOTE_COMMAND[0];
    let reading = async {
        while let Some(Ok(message)) = messages.next().await {
            let bytes = match message {
                Message::Binary(bytes) => bytes,
                Message::Close(_) => return,
                _ => continue,
            };
            match bytes.first() {
                Some(&channel::STDIN) => {
                    if let Some(open) = &stdin
                        && open.send(bytes.slice(1..)).await.is_err()
                    {
                        stdin = None;
                    }
                }
                Some(&channel::RESIZE) => {
                    if let Some(size) = WireSize::parse(&bytes[1..]) {
                        // A window that changes faster than the process is told has a newer size coming.
                        let _ = sizes.try_send(size);
                    }
                }
                Some(&channel::CLOSE) if closes && bytes.get(1) == Some(&channel::STDIN) => stdin = None,
                _ => {}
            }
        }
    };
    let writing = async {
        let mut beats = interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
        loop {
            let message = tokio::select! {
                said = output.recv() => match said {
                    Some(Output::Stdout(bytes)) => message(channel::STDOUT, &bytes),
                    Some(Output::Stderr(bytes)) => message(channel::STDERR, &bytes),
                    Some(Output::Status(status)) => message(channel::ERROR, status.to_string().as_bytes()),
                    None => break,
                },
                _ = beats.tick() => Message::Pong(Bytes::new()),
            };
            if sink.send(message).await.is_err() {
                return;
            }
        }
        let goodbye = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        let _ = sink.send(Message::Close(Some(goodbye))).await;
    };
    // Whichever ends first ends the other; dropping `output` tells the process's side that the client is gone.
    tokio::select! {
        () = reading => {}
        () = writing => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_the_rfc() {
        assert_eq!(accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn sizes() {
        assert_eq!(WireSize::parse(br#"{"Width":80,"Height":24}"#), Some(TerminalSize { rows: 24, columns: 80 }));
        assert_eq!(WireSize::parse(b"{}"), None);
    }
}
