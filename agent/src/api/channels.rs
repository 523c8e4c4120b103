//! Kubernetes' channels over a WebSocket: before each message stands whose it is. Which subprotocols there are, how their messages are
//! written, and exec and attach over them. The API server hands a client's handshake on to the node as it is.
//! Source: <https://pkg.go.dev/k8s.io/streaming/pkg/httpstream/wsstream>.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Duration, Instant, interval_at};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::remote::{Options, Output, Transport};
use super::websocket::Socket;
use crate::pod::node::TerminalSize;

/// Without hearing anything for a minute kubectl gives up, also when its pings wait behind stdin that the process doesn't read.
const HEARTBEAT: Duration = Duration::from_secs(20);

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

/// The newest for exec and attach: with an end for each channel.
pub const NEWEST: &str = "v5.channel.k8s.io";
/// All for exec and attach; the first that the client offers, too, is taken. Browsers' clients offer the old ones, or none.
pub const REMOTE_COMMAND: &[&str] =
    &[NEWEST, "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "channel.k8s.io", "base64.channel.k8s.io", ""];

/// How a channel and its bytes stand in a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// A byte, then the bytes.
    Binary,
    /// A digit, then base64: for clients that can't handle binary messages.
    Base64,
}

impl Codec {
    /// A subprotocol's.
    pub fn of(protocol: &str) -> Self {
        if protocol.contains("base64.") { Self::Base64 } else { Self::Binary }
    }

    /// A message of a channel.
    pub fn message(self, channel: u8, bytes: &[u8]) -> Message {
        match self {
            Self::Binary => {
                let mut framed = BytesMut::with_capacity(bytes.len() + 1);
                framed.put_u8(channel);
                framed.extend_from_slice(bytes);
                Message::Binary(framed.freeze())
            }
            Self::Base64 => {
                let mut text = String::from(char::from(b'0'.saturating_add(channel)));
                STANDARD.encode_string(bytes, &mut text);
                Message::Text(text.into())
            }
        }
    }

    /// Whose message it is, and what it says; none: nothing that a channel says.
    pub fn parse(self, message: Message) -> Option<(u8, Bytes)> {
        let bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => Bytes::copy_from_slice(text.as_bytes()),
            _ => return None,
        };
        let first = *bytes.first()?;
        match self {
            Self::Binary => Some((first, bytes.slice(1..))),
            Self::Base64 => Some((first.checked_sub(b'0')?, STANDARD.decode(&bytes[1..]).ok()?.into())),
        }
    }
}

/// A message of a channel, as the newest protocols write it.
pub fn message(channel: u8, bytes: &[u8]) -> Message {
    Codec::Binary.message(channel, bytes)
}

/// What the error channel says of a command's end: before v4 a failure's message alone.
fn ending(protocol: &str, status: &Value) -> Option<String> {
    if protocol.starts_with('v') {
        return Some(status.to_string());
    }
    let message = || status["message"].as_str().unwrap_or_default().to_owned();
    (status["status"] != "Success").then(message)
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

/// Carries a remote command's streams until the process has ended or the client is gone.
pub async fn carry<S>(socket: Socket<S>, protocol: &str, options: &Options, transport: Transport)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (mut sink, mut messages) = socket.split();
    let Transport { mut stdin, sizes, mut output } = transport;
    let (codec, newest) = (Codec::of(protocol), protocol == NEWEST);
    let reading = async {
        while let Some(Ok(message)) = messages.next().await {
            if message.is_close() {
                return;
            }
            match codec.parse(message) {
                Some((channel::STDIN, bytes)) => {
                    if let Some(open) = &stdin
                        && open.send(bytes).await.is_err()
                    {
                        stdin = None;
                    }
                }
                Some((channel::RESIZE, bytes)) => {
                    if let Some(size) = WireSize::parse(&bytes) {
                        // A window that changes faster than the process is told has a newer size coming.
                        let _ = sizes.try_send(size);
                    }
                }
                Some((channel::CLOSE, bytes)) if newest && bytes.first() == Some(&channel::STDIN) => stdin = None,
                _ => {}
            }
        }
    };
    let writing = async {
        if !newest {
            // Older clients take an empty message for the sign that the connection stands.
            let first = [(options.stdout, channel::STDOUT), (options.stderr, channel::STDERR)];
            let first = first.into_iter().find_map(|(wanted, channel)| wanted.then_some(channel)).unwrap_or(channel::ERROR);
            if sink.send(codec.message(first, b"")).await.is_err() {
                return;
            }
        }
        let mut beats = interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
        loop {
            let message = tokio::select! {
                said = output.recv() => match said {
                    Some(Output::Stdout(bytes)) => codec.message(channel::STDOUT, &bytes),
                    Some(Output::Stderr(bytes)) => codec.message(channel::STDERR, &bytes),
                    Some(Output::Status(status)) => match ending(protocol, &status) {
                        Some(text) => codec.message(channel::ERROR, text.as_bytes()),
                        None => continue,
                    },
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
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case("v5.channel.k8s.io", Message::binary(&b"\x01hello\n"[..]))]
    #[case("", Message::binary(&b"\x01hello\n"[..]))]
    #[case("base64.channel.k8s.io", Message::text("1aGVsbG8K"))]
    #[case("v4.base64.channel.k8s.io", Message::text("1aGVsbG8K"))]
    fn a_message_and_whose_it_is(#[case] protocol: &str, #[case] message: Message) {
        let codec = Codec::of(protocol);
        assert_eq!(codec.message(1, b"hello\n"), message);
        assert_eq!(codec.parse(message), Some((1, Bytes::from_static(b"hello\n"))));
    }

    #[test]
    fn what_is_no_message_of_a_channel() {
        for codec in [Codec::Binary, Codec::Base64] {
            assert_eq!(codec.parse(Message::binary(&b""[..])), None);
            assert_eq!(codec.parse(Message::Ping(Bytes::from_static(b"\0x"))), None);
        }
        assert_eq!(Codec::Base64.parse(Message::text("0no base64!")), None);
        assert_eq!(Codec::Base64.parse(Message::text("\u{1}aGVsbG8K")), None);
    }

    #[test]
    fn how_it_ended_is_told_as_the_protocol_has_it() {
        let (good, bad) = (json!({"status": "Success"}), json!({"status": "Failure", "message": "exit status 3"}));
        assert_eq!(ending("v4.base64.channel.k8s.io", &good), Some(good.to_string()));
        assert_eq!(ending("v4.channel.k8s.io", &bad), Some(bad.to_string()));
        assert_eq!(ending("channel.k8s.io", &good), None);
        assert_eq!(ending("", &bad), Some("exit status 3".into()));
    }

    #[test]
    fn sizes() {
        assert_eq!(WireSize::parse(br#"{"Width":80,"Height":24}"#), Some(TerminalSize { rows: 24, columns: 80 }));
        assert_eq!(WireSize::parse(b"{}"), None);
    }
}
