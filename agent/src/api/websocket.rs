//! WebSocket: the handshake, and a byte stream in its messages. What else travels in messages is `channels`'.

use std::future::Future;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use hyper::body::Incoming;
use hyper::header::{
    CONNECTION, HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use hyper::upgrade::Upgraded;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

use super::{ApiError, Response, reply};

/// The largest message that is taken.
const MESSAGE_LIMIT: usize = 4 * 1024 * 1024;
/// Written over with zeros when a connection is made: the library's 128 KiB are a tenth of a millisecond on both sides.
const READ_BUFFER: usize = 16 * 1024;
/// Bytes of a message of [`tunnel`].
const TUNNEL: usize = 32 * 1024;

/// A connection on which the handshake is done.
pub type Socket<S = TokioIo<Upgraded>> = WebSocketStream<S>;

/// Whether a request asks for WebSocket.
pub fn is_wanted(headers: &HeaderMap) -> bool {
    headers.get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// The answer to a handshake, the protocol that was chosen, and the connection that follows. Who offers none gets the nameless one, where
/// there is one.
pub fn accept(
    request: &mut Request<Incoming>,
    protocols: &[&'static str],
) -> Result<(Response, &'static str, impl Future<Output = Result<Socket, hyper::Error>> + Send + use<>), ApiError> {
    let headers = request.headers();
    let key = headers.get(SEC_WEBSOCKET_KEY).ok_or_else(|| ApiError::bad_request("Sec-WebSocket-Key is missing"))?;
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(ApiError::bad_request("Sec-WebSocket-Version must be 13"));
    }
    let mut offered: Vec<&str> = offers(headers).collect();
    if offered.is_empty() {
        offered.push("");
    }
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
    if !chosen.is_empty() {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(chosen));
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_the_rfc() {
        assert_eq!(accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
