//! exec and attach over SPDY: the handshake, and which stream of the connection is which. What the streams mean is `remote`'s.

use std::future::Future;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;

use super::channels::WireSize;
use super::remote::{Options, Output, Transport};
use super::spdy::{self, Patience, Sender, Stream};
use super::{ApiError, Response, reply};
use crate::pod::node::TerminalSize;

/// Of exec and attach: the error stream carries a `Status`.
pub const REMOTE_COMMAND: &str = "v4.channel.k8s.io";
/// Of port-forward.
pub const PORT_FORWARD: &str = "portforward.k8s.io";

/// What a stream is, in the header `streamtype`.
pub const TYPE: &str = "streamtype";
/// In the header `Upgrade`.
pub const SPDY: &str = "SPDY/3.1";
/// The header in which a protocol is offered, and chosen.
pub const PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// In which the client must have opened all streams.
const OPENING: Duration = Duration::from_secs(30);
/// The longest word about a window.
const SIZE_LIMIT: usize = 4 * 1024;

/// Whether a request asks for SPDY.
pub fn is_wanted(headers: &HeaderMap) -> bool {
    headers.get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(SPDY.as_bytes()))
}

/// The answer to a handshake, and the byte stream that follows.
pub fn accept(
    request: &mut Request<Incoming>,
    protocol: &'static str,
) -> Result<(Response, impl Future<Output = Result<TokioIo<Upgraded>, hyper::Error>> + Send + use<>), ApiError> {
    let offered = request.headers().get_all(PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let offered: Vec<&str> = offered.flat_map(|value| value.split(',')).map(str::trim).collect();
    if !offered.contains(&protocol) {
        let message = format!("unable to negotiate protocol: client supports {offered:?}, server accepts [{protocol:?}]");
        return Err(ApiError::forbidden(message));
    }
    let mut response = reply::whole("text/plain", Bytes::new());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.clear();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(SPDY));
    headers.insert(PROTOCOL, HeaderValue::from_static(protocol));
    let upgraded = hyper::upgrade::on(request);
    Ok((response, async move { Ok(TokioIo::new(upgraded.await?)) }))
}

/// The streams of one remote command.
#[derive(Default)]
struct Set {
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    error: Option<Stream>,
    resize: Option<Stream>,
}

impl Set {
    /// Takes them as the client opens them, until all are there that the options tell of.
    async fn gather(streams: &mut mpsc::Receiver<Stream>, options: &Options) -> Option<Self> {
        let mut set = Self::default();
        let wanted = [options.stdin, options.stdout, options.stderr, options.tty, true].iter().filter(|wanted| **wanted).count();
        for _ in 0..wanted {
            let stream = streams.recv().await?;
            let place = match stream.header(TYPE) {
                Some("stdin") => &mut set.stdin,
                Some("stdout") => &mut set.stdout,
                Some("stderr") => &mut set.stderr,
                Some("error") => &mut set.error,
                Some("resize") => &mut set.resize,
                _ => return None,
            };
            *place = Some(stream);
        }
        Some(set)
    }
}

/// Carries a remote command's streams: `run` is its other end.
pub async fn carry(connection: TokioIo<Upgraded>, options: &Options, transport: Transport, run: impl Future<Output = ()> + Send) {
    let (mut streams, connection) = spdy::serve(connection, Patience::Endless);
    let conversation = async move {
        let set = tokio::time::timeout(OPENING, Set::gather(&mut streams, options)).await;
        let Ok(Some(set)) = set else { return };
        // `streams` lives on: its end would be the connection's.
        tokio::join!(run, converse(set, transport));
        drop(streams);
    };
    let drained = async {
        if let Err(error) = connection.await {
            tracing::debug!("a SPDY connection ended: {error}");
        }
    };
    // The conversation's end drops its streams; the connection then sends what is left, and ends. A client that goes ends both.
    tokio::pin!(conversation, drained);
    tokio::select! {
        () = &mut conversation => drained.await,
        () = &mut drained => {}
    }
}

async fn converse(set: Set, transport: Transport) {
    let Transport { stdin, sizes, mut output } = transport;
    let feeding = async {
        if let (Some(stream), Some(to)) = (set.stdin, stdin) {
            let (mut from, _open) = stream.split();
            while let Some(bytes) = from.recv().await {
                if to.send(bytes).await.is_err() {
                    break;
                }
            }
        }
        // Dropping `to` says the end of the client's stdin; the conversation goes on.
    };
    let sizing = async {
        if let Some(stream) = set.resize {
            resize(stream, sizes).await;
        }
    };
    let stdout = set.stdout.map(|stream| stream.split().1);
    let stderr = set.stderr.map(|stream| stream.split().1);
    let error = set.error.map(|stream| stream.split().1);
    let saying = async {
        while let Some(said) = output.recv().await {
            let (to, bytes) = match said {
                Output::Stdout(bytes) => (&stdout, bytes),
                Output::Stderr(bytes) => (&stderr, bytes),
                Output::Status(status) => (&error, status.to_string().into()),
            };
            if let Some(to) = to
                && to.send(&bytes).await.is_err()
            {
                return;
            }
        }
        for stream in [&stdout, &stderr, &error].into_iter().flatten() {
            let _ = stream.finish().await;
        }
    };
    tokio::pin!(saying);
    let listening = async { tokio::join!(feeding, sizing) };
    tokio::select! {
        () = async { listening.await; std::future::pending::<()>().await } => {}
        () = &mut saying => {}
    }
}

/// Sizes come as lines of JSON.
async fn resize(stream: Stream, sizes: mpsc::Sender<TerminalSize>) {
    let (mut from, _open): (_, Sender) = stream.split();
    let mut rest = BytesMut::new();
    while let Some(bytes) = from.recv().await {
        rest.extend_from_slice(&bytes);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            if let Some(size) = WireSize::parse(&rest.split_to(end + 1)) {
                let _ = sizes.try_send(size);
            }
        }
        if rest.len() > SIZE_LIMIT {
            return;
        }
    }
}
