//! Port-forward over a WebSocket's channels: one connection for each port that the request names, with a channel for its data and one for
//! its error.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::FuturesUnordered;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

use super::CHUNK;
use crate::api::ApiError;
use crate::api::channels::Codec;
use crate::api::query::Query;
use crate::api::websocket::Socket;
use crate::model::PodUid;
use crate::pod::node::Node;

/// The subprotocols; each port of the request has two channels, both beginning with the port.
pub const PROTOCOLS: [&str; 3] = ["v4.channel.k8s.io", "v4.base64.channel.k8s.io", ""];
/// The first port's data; the next has the second channel after it.
pub const DATA: u8 = 0;
/// The first port's error.
pub const ERROR: u8 = 1;
/// A byte says which channel, and the newest protocol keeps the last for itself.
const MOST: usize = 127;

/// The ports that a request names.
pub fn ports(query: &Query) -> Result<Vec<u16>, ApiError> {
    let named: Vec<&str> = query.all("ports").flat_map(|list| list.split(',')).collect();
    if named.is_empty() {
        return Err(ApiError::bad_request("query parameter \"ports\" is required"));
    }
    if named.len() > MOST {
        return Err(ApiError::bad_request(format!("ports: {} are too many for a connection, {MOST} at most", named.len())));
    }
    let port = |text: &&str| text.parse().ok().filter(|port| *port != 0);
    let bad = |text: &&str| ApiError::bad_request(format!("ports: {text:?} is not a port"));
    named.iter().map(|text| port(text).ok_or_else(|| bad(text))).collect()
}

/// Carries them until all have ended in the pod, or the client is gone.
pub async fn carry<S>(socket: Socket<S>, codec: Codec, node: &Arc<dyn Node>, uid: &PodUid, ports: &[u16])
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (mut sink, mut messages) = socket.split();
    let (out, mut outward) = mpsc::channel::<Message>(8);
    let (writers, connections): (Vec<_>, FuturesUnordered<_>) = (ports.iter().zip((DATA..).step_by(2)))
        .map(|(&port, channel)| {
            let (writer, incoming) = mpsc::channel(4);
            let (data, error) = (channel + DATA, channel + ERROR);
            (writer, Connection { port, data, error, codec, out: out.clone() }.run(node, uid, incoming))
        })
        .unzip();
    drop(out);
    let reading = async {
        while let Some(Ok(message)) = messages.next().await {
            if message.is_close() {
                return;
            }
            let Some((channel, bytes)) = codec.parse(message).filter(|(channel, _)| channel % 2 == DATA) else { continue };
            if let Some(writer) = writers.get(usize::from(channel / 2)) {
                // One that has ended wants no more.
                let _ = writer.send(bytes).await;
            }
        }
    };
    let writing = async {
        while let Some(message) = outward.recv().await {
            if sink.send(message).await.is_err() {
                return;
            }
        }
        let _ = sink.send(Message::Close(None)).await;
    };
    let forwarding = async {
        let () = connections.collect().await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = reading => {}
        () = writing => {}
        () = forwarding => {}
    }
}

struct Connection {
    port: u16,
    data: u8,
    error: u8,
    codec: Codec,
    out: mpsc::Sender<Message>,
}

impl Connection {
    async fn run(self, node: &Arc<dyn Node>, uid: &PodUid, mut incoming: mpsc::Receiver<Bytes>) {
        for channel in [self.data, self.error] {
            self.say(channel, &self.port.to_le_bytes()).await;
        }
        let stream = match node.connect(uid, self.port).await {
            Ok(stream) => stream,
            Err(error) => return self.say(self.error, error.to_string().as_bytes()).await,
        };
        let (mut reader, mut writer) = stream.into_split();
        let upload = async {
            while let Some(bytes) = incoming.recv().await {
                if writer.write_all(&bytes).await.is_err() {
                    break;
                }
            }
            // What the server has still to say is the other direction's.
            std::future::pending::<()>().await;
        };
        let download = async {
            let mut chunk = vec![0; CHUNK];
            while let Ok(length @ 1..) = reader.read(&mut chunk).await {
                self.say(self.data, &chunk[..length]).await;
            }
        };
        tokio::select! {
            () = upload => {}
            () = download => {}
        }
    }

    async fn say(&self, channel: u8, bytes: &[u8]) {
        let _ = self.out.send(self.codec.message(channel, bytes)).await;
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("ports=80", Ok(vec![80]))]
    #[case("ports=80,81&ports=82", Ok(vec![80, 81, 82]))]
    #[case("", Err("query parameter \"ports\" is required"))]
    #[case("ports=80,0", Err("ports: \"0\" is not a port"))]
    #[case("ports=", Err("ports: \"\" is not a port"))]
    fn the_ports_of_a_request(#[case] query: &str, #[case] expected: Result<Vec<u16>, &str>) {
        let got = ports(&Query::parse(query)).map_err(|error| error.status()["message"].as_str().map(ToOwned::to_owned));
        assert_eq!(got, expected.map_err(|message| Some(message.to_owned())));
    }
}
