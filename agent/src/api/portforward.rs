//! `pods/portforward`: by WebSocket channels (a connection for each port that the request names), and by SPDY, straight or inside a WebSocket (any number of
//! connections).

pub mod channels;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::call::{Call, Target};
use super::channels::Codec;
use super::spdy::{self, Patience, Sender, Stream};
use super::{ApiError, Response, remote, streams, websocket};
use crate::model::PodUid;
use crate::pod::node::Node;

/// WebSocket protocol: SPDY in binary messages.
pub const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// How long the other connections wait for one whose server in the pod doesn't read, once megabytes of it wait.
const STUCK: Patience = Patience::Until(Duration::from_secs(30));
/// In which a connection's second stream must follow the first.
const PAIRING: Duration = Duration::from_secs(30);
/// Bytes moved at a time.
const CHUNK: usize = 32 * 1024;

/// Answers a request.
pub fn answer(mut call: Call, target: &Target) -> Result<Response, ApiError> {
    let (node, uid, place) = (call.node.clone(), target.uid.clone(), call.place.clone());
    if websocket::is_wanted(call.request.headers()) {
        let [newest, base64, nameless] = channels::PROTOCOLS;
        let (response, protocol, socket) = websocket::accept(&mut call.request, &[TUNNEL, newest, base64, nameless])?;
        if protocol == TUNNEL {
            tokio::spawn(async move {
                let _place = place;
                if let Ok(socket) = socket.await {
                    let (near, far) = tokio::io::duplex(CHUNK);
                    tokio::join!(websocket::tunnel(socket, far), forward_all(near, node, uid));
                }
            });
            return Ok(response);
        }
        let ports = channels::ports(&call.query)?;
        tokio::spawn(async move {
            let _place = place;
            if let Ok(socket) = socket.await {
                channels::carry(socket, Codec::of(protocol), &node, &uid, &ports).await;
            }
        });
        return Ok(response);
    }
    if streams::is_wanted(call.request.headers()) {
        let (response, connection) = streams::accept(&mut call.request, streams::PORT_FORWARD)?;
        tokio::spawn(async move {
            let _place = place;
            if let Ok(connection) = connection.await {
                forward_all(connection, node, uid).await;
            }
        });
        return Ok(response);
    }
    Err(remote::upgrade_required())
}

/// Serves a SPDY connection: each forwarded connection is a stream for data and one for an error, with the same request number.
pub async fn forward_all<S>(io: S, node: Arc<dyn Node>, uid: PodUid)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (streams, connection) = spdy::serve(io, STUCK);
    let pairing = pair(streams, move |data, error| {
        let (node, uid) = (node.clone(), uid.clone());
        async move { forward(data, error, &node, &uid).await }
    });
    // The client's end ends all that is forwarded.
    tokio::select! {
        () = pairing => {}
        ended = connection => if let Err(error) = ended {
            tracing::debug!("a connection of port-forward ended: {error}");
        },
    }
}

/// Brings the two streams of each connection together. One whose other doesn't follow is given up when its time is over, whether
/// more streams come or not.
async fn pair<F>(mut streams: mpsc::Receiver<Stream>, forward: impl Fn(Stream, Stream) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut forwarded = JoinSet::new();
    let mut halves: HashMap<String, Half> = HashMap::new();
    loop {
        let due = halves.values().map(|half| half.since + PAIRING).min();
        let stream = tokio::select! {
            stream = streams.recv() => stream,
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                for (_, half) in halves.extract_if(|_, half| half.since.elapsed() >= PAIRING) {
                    forwarded.spawn(half.give_up());
                }
                continue;
            }
        };
        let Some(stream) = stream else { return };
        while forwarded.try_join_next().is_some() {}
        let request = stream.header("requestid").unwrap_or_default().to_owned();
        let half = halves.entry(request.clone()).or_insert_with(Half::new);
        match stream.header(streams::TYPE) {
            Some("data") => half.data = Some(stream),
            Some("error") => half.error = Some(stream),
            _ => {}
        }
        if half.is_whole()
            && let Some(Half { data: Some(data), error: Some(error), .. }) = halves.remove(&request)
        {
            forwarded.spawn(forward(data, error));
        }
    }
}

struct Half {
    since: Instant,
    data: Option<Stream>,
    error: Option<Stream>,
}

impl Half {
    fn new() -> Self {
        Self { since: Instant::now(), data: None, error: None }
    }
    fn is_whole(&self) -> bool {
        self.data.is_some() && self.error.is_some()
    }
    /// Says so, and ends what there is.
    async fn give_up(self) {
        if let Some(error) = self.error {
            let (_, error) = error.split();
            let _ = error.send(b"the connection's stream for data did not follow").await;
            let _ = error.finish().await;
        }
        if let Some(data) = self.data {
            let _ = data.split().1.finish().await;
        }
    }
}

/// One connection into the pod.
async fn forward(data: Stream, error: Stream, node: &Arc<dyn Node>, uid: &PodUid) {
    let port = data.header("port").and_then(|port| port.parse().ok()).filter(|port| *port != 0);
    let (incoming, data) = data.split();
    let (_, error) = error.split();
    let connected = match port {
        Some(port) => node.connect(uid, port).await.map_err(|error| error.to_string()),
        None => Err("the stream's header `port` is not a port".to_owned()),
    };
    match connected {
        Ok(stream) => {
            tokio::select! {
                () = splice(stream, incoming, &data) => {}
                () = data.closed() => {}
            }
        }
        Err(message) => {
            let _ = error.send(message.as_bytes()).await;
            let _ = data.finish().await;
        }
    }
    let _ = error.finish().await;
}

/// Both directions, each to its own end: one that is closed doesn't end the other.
async fn splice(stream: TcpStream, mut incoming: mpsc::Receiver<Bytes>, data: &Sender) {
    let (mut reader, mut writer) = stream.into_split();
    let upload = async {
        while let Some(bytes) = incoming.recv().await {
            if writer.write_all(&bytes).await.is_err() {
                break;
            }
        }
        let _ = writer.shutdown().await;
    };
    let download = async {
        let mut chunk = vec![0; spdy::PIECE];
        while let Ok(length @ 1..) = reader.read(&mut chunk).await {
            if data.send(&chunk[..length]).await.is_err() {
                return;
            }
        }
        // Said at once: the client may wait for it before it closes its side.
        let _ = data.finish().await;
    };
    tokio::pin!(upload);
    tokio::select! {
        // A server that has said all and closed reads no more either.
        () = download => {}
        () = async { upload.await; std::future::pending::<()>().await } => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::spdy::tests::Client;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_half_that_stays_alone_is_given_up_though_nothing_more_comes() {
        let (mut client, streams, _connection) = Client::connect(STUCK);
        let (told, mut pairs) = mpsc::unbounded_channel();
        let pairing = pair(streams, move |data, error| {
            let request = data.header("requestid").unwrap_or_default().to_owned();
            let _ = told.send((request, data, error));
            std::future::ready(())
        });
        let talk = async {
            for (id, kind, request) in [(1, "error", "alone"), (3, "error", "whole"), (5, "data", "whole"), (7, "", "nothing")] {
                client.open_with(id, &[("streamtype", kind), ("requestid", request)]).await;
            }
            let (request, ..) = pairs.recv().await.unwrap();
            assert_eq!(request, "whole");
            // The clock goes on by itself while everybody waits.
            let mut said = Vec::new();
            while !String::from_utf8_lossy(&said).contains("did not follow") {
                said = client.next().await.2;
            }
            assert!(pairs.try_recv().is_err());
        };
        tokio::select! {
            () = pairing => panic!("the client is there"),
            () = talk => {}
        }
    }
}
