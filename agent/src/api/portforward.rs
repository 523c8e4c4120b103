//! `pods/portforward`: by WebSocket channels (one connection a request), and by SPDY, straight or inside a WebSocket (any number of
//! connections).

use std::sync::Arc;

use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;

use super::route::{Call, Target};
use super::websocket::{Socket, message};
use super::{ApiError, Response, remote, websocket};
use crate::model::PodUid;
use crate::pod::node::Node;

/// WebSocket protocol: each port of the request has a channel for data and one for errors, both beginning with the port.
pub const CHANNELS: &str = "v4.channel.k8s.io";
/// The first port's data.
pub const DATA: u8 = 0;
/// The first port's error.
pub const ERROR: u8 = 1;

/// Bytes moved at a time.
const CHUNK: usize = 32 * 1024;

/// Answers a request.
pub fn answer(mut call: Call, target: &Target) -> Result<Response, ApiError> {
    let (node, uid) = (call.node().clone(), target.uid.clone());
    if websocket::is_wanted(call.request.headers()) {
        let (response, _, socket) = websocket::accept(&mut call.request, &[CHANNELS])?;
        let port = port(&call)?;
        tokio::spawn(async move {
            if let Ok(socket) = socket.await {
                carry(socket, &node, &uid, port).await;
            }
        });
        return Ok(response);
    }
    Err(remote::upgrade_required())
}

fn port(call: &Call) -> Result<u16, ApiError> {
    let ports: Vec<&str> = call.query.all("ports").flat_map(|list| list.split(',')).collect();
    match ports[..] {
        [one] => one
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| ApiError::bad_request(format!("ports: {one:?} is not a port"))),
        [] => Err(ApiError::bad_request("query parameter \"ports\" is required")),
        _ => Err(ApiError::bad_request("ports: one port a WebSocket; open one for each")),
    }
}

async fn carry<S: AsyncRead + AsyncWrite + Unpin + Send>(socket: Socket<S>, node: &Arc<dyn Node>, uid: &PodUid, port: u16) {
    let (mut sink, mut messages) = socket.split();
    for channel in [DATA, ERROR] {
        if sink.send(message(channel, &port.to_le_bytes())).await.is_err() {
            return;
        }
    }
    let stream = match node.connect(uid, port).await {
        Ok(stream) => stream,
        Err(error) => {
            let _ = sink.send(message(ERROR, error.to_string().as_bytes())).await;
            let _ = sink.send(Message::Close(None)).await;
            return;
        }
    };
    let (mut reader, mut writer) = stream.into_split();
    let upload = async {
        while let Some(Ok(message)) = messages.next().await {
            match message {
                Message::Binary(bytes) if bytes.first() == Some(&DATA) => {
                    if writer.write_all(&bytes[1..]).await.is_err() {
                        return;
                    }
                }
                Message::Close(_) => return,
                _ => {}
            }
        }
    };
    let download = async {
        let mut chunk = vec![0; CHUNK];
        while let Ok(length @ 1..) = reader.read(&mut chunk).await {
            if sink.send(message(DATA, &chunk[..length])).await.is_err() {
                return;
            }
        }
        let _ = sink.send(Message::Close(None)).await;
    };
    tokio::select! {
        () = upload => {}
        () = download => {}
    }
}
