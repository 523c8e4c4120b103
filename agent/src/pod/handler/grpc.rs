//! grpc: one call of `grpc.health.v1.Health/Check`, in as much gRPC as that takes.
//! <https://github.com/grpc/grpc/blob/master/doc/health-checking.md>, <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use hyper::HeaderMap;
use hyper::header::{CONTENT_TYPE, HeaderValue, TE, USER_AGENT};
use k8s_openapi::api::core::v1::GRPCAction;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Subject, Verdict, tls};

/// No answer of a health service is longer.
const LONGEST_ANSWER: usize = 4096;
/// `UNIMPLEMENTED`.
const UNIMPLEMENTED: &str = "12";
/// `DEADLINE_EXCEEDED`.
const DEADLINE_EXCEEDED: &str = "4";

/// Asks the health service of a pod's server.
pub async fn check(subject: &Subject, action: &GRPCAction, limit: Duration) -> Verdict {
    let Some(port) = u16::try_from(action.port).ok().filter(|port| *port > 0) else {
        return Verdict::Unknown(format!("invalid port number: {}", action.port));
    };
    let (dialer, host) = match subject.way(None) {
        Ok(way) => way,
        Err(error) => return Verdict::Unknown(error),
    };
    let address = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let service = action.service.as_deref().unwrap_or_default();
    let call = async {
        let stream = dialer.connect(&host, port).await;
        let stream = stream.map_err(|error| format!("error: failed to connect service at {address:?}: {error}"))?;
        if action.mode.as_deref() == Some("TLS") {
            let stream = tls::wrap(stream, &host, &[b"h2"]).await;
            let stream = stream.map_err(|error| format!("error: failed to connect service at {address:?}: {error}"))?;
            converse(stream, "https", &address, service).await
        } else {
            converse(stream, "http", &address, service).await
        }
    };
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(())) => Verdict::Success,
        Ok(Err(why)) => Verdict::Failure(why),
        Err(_) => Verdict::Failure(format!("timeout: health rpc did not complete within {}s", limit.as_secs())),
    }
}

async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    scheme: &str,
    authority: &str,
    service: &str,
) -> Result<(), String> {
    let failed = |error: h2::Error| format!("error: health rpc probe failed: {error}");
    let (sender, connection) = h2::client::handshake(stream).await.map_err(failed)?;
    let call = call(sender, scheme, authority, service);
    let (mut call, mut connection) = (std::pin::pin!(call), std::pin::pin!(connection));
    tokio::select! {
        biased;
        answered = &mut call => answered,
        ended = &mut connection => match ended {
            Ok(()) => call.await,
            Err(error) => Err(failed(error)),
        },
    }
}

async fn call(sender: h2::client::SendRequest<Bytes>, scheme: &str, authority: &str, service: &str) -> Result<(), String> {
    let failed = |error: h2::Error| format!("error: health rpc probe failed: {error}");
    let mut sender = sender.ready().await.map_err(failed)?;
    let uri = format!("{scheme}://{authority}/grpc.health.v1.Health/Check");
    let request = hyper::Request::post(uri)
        .header(CONTENT_TYPE, HeaderValue::from_static("application/grpc"))
        .header(TE, HeaderValue::from_static("trailers"))
        .header(USER_AGENT, HeaderValue::from_static("kube-probe/1.37"))
        .body(())
        .map_err(|error| format!("error: health rpc probe failed: {error}"))?;
    let (response, mut body) = sender.send_request(request, false).map_err(failed)?;
    body.send_data(question(service), true).map_err(failed)?;
    let response = response.await.map_err(failed)?;
    if !response.status().is_success() {
        return Err(format!("error: health rpc probe failed: unexpected HTTP status code {}", response.status().as_u16()));
    }
    // A call that comes to nothing may be answered by headers alone.
    tell_status(response.headers())?;
    let mut answer = BytesMut::new();
    let mut body = response.into_body();
    while let Some(data) = body.data().await {
        let data = data.map_err(failed)?;
        let _ = body.flow_control().release_capacity(data.len());
        if answer.len() + data.len() > LONGEST_ANSWER {
            return Err("error: health rpc probe failed: the answer is too long to be one".into());
        }
        answer.extend_from_slice(&data);
    }
    if let Some(trailers) = body.trailers().await.map_err(failed)? {
        tell_status(&trailers)?;
    }
    match serving_status(&answer) {
        Some(1) => Ok(()),
        Some(0) => Err("service unhealthy (responded with \"UNKNOWN\")".into()),
        Some(2) => Err("service unhealthy (responded with \"NOT_SERVING\")".into()),
        Some(3) => Err("service unhealthy (responded with \"SERVICE_UNKNOWN\")".into()),
        Some(other) => Err(format!("service unhealthy (responded with \"{other}\")")),
        None => Err("error: health rpc probe failed: the answer is no HealthCheckResponse".into()),
    }
}

/// The error that these headers or trailers tell.
fn tell_status(headers: &HeaderMap) -> Result<(), String> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match text("grpc-status") {
        "" | "0" => Ok(()),
        UNIMPLEMENTED => Err(format!(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {}",
            text("grpc-message")
        )),
        DEADLINE_EXCEEDED => Err(format!("timeout: health rpc did not complete: {}", text("grpc-message"))),
        code => Err(format!("error: health rpc probe failed: rpc error: code = {code} desc = {}", text("grpc-message"))),
    }
}

/// `HealthCheckRequest { string service = 1; }` behind gRPC's five bytes: not compressed, and the length.
fn question(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(1 << 3 | 2);
        put_varint(&mut message, service.len());
        message.put_slice(service.as_bytes());
    }
    let mut framed = BytesMut::with_capacity(5 + message.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.put_slice(&message);
    framed.freeze()
}

fn put_varint(to: &mut BytesMut, mut number: usize) {
    while number >= 0x80 {
        to.put_u8(number as u8 | 0x80);
        number >>= 7;
    }
    to.put_u8(number as u8);
}

/// `HealthCheckResponse { ServingStatus status = 1; }`; nothing at all is status 0.
fn serving_status(framed: &[u8]) -> Option<u64> {
    let (head, message) = framed.split_at_checked(5)?;
    let length = usize::try_from(u32::from_be_bytes(head[1..5].try_into().ok()?)).ok()?;
    // One that is compressed was not asked for.
    if head[0] != 0 || message.len() != length {
        return None;
    }
    let mut rest = message;
    let mut status = 0;
    while !rest.is_empty() {
        let tag = take_varint(&mut rest)?;
        match (tag >> 3, tag & 7) {
            (1, 0) => status = take_varint(&mut rest)?,
            (_, 0) => drop(take_varint(&mut rest)?),
            (_, 1) => rest = rest.get(8..)?,
            (_, 5) => rest = rest.get(4..)?,
            (_, 2) => {
                let length = usize::try_from(take_varint(&mut rest)?).ok()?;
                rest = rest.get(length..)?;
            }
            _ => return None,
        }
    }
    Some(status)
}

fn take_varint(from: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = from.split_first()?;
        *from = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::of_all("", &[0, 0, 0, 0, 0])]
    #[case::of_one("a.B", &[0, 0, 0, 0, 5, 10, 3, b'a', b'.', b'B'])]
    fn questions(#[case] service: &str, #[case] bytes: &[u8]) {
        assert_eq!(&question(service)[..], bytes);
    }

    #[rstest]
    #[case::serving(&[0, 0, 0, 0, 2, 8, 1], Some(1))]
    #[case::not_serving(&[0, 0, 0, 0, 2, 8, 2], Some(2))]
    #[case::unknown(&[0, 0, 0, 0, 0], Some(0))]
    #[case::with_more(&[0, 0, 0, 0, 6, 0x12, 2, 9, 9, 8, 1], Some(1))]
    #[case::compressed(&[1, 0, 0, 0, 2, 8, 1], None)]
    #[case::cut_short(&[0, 0, 0, 0, 3, 8, 1], None)]
    #[case::nothing(&[], None)]
    fn answers(#[case] bytes: &[u8], #[case] status: Option<u64>) {
        assert_eq!(serving_status(bytes), status);
    }

    proptest! {
        #[test]
        fn no_answer_is_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = serving_status(&bytes);
        }

        #[test]
        fn numbers_come_back(number in any::<u32>()) {
            let mut bytes = BytesMut::new();
            put_varint(&mut bytes, number as usize);
            prop_assert_eq!(take_varint(&mut &bytes[..]), Some(u64::from(number)));
        }
    }

    /// A server of this test: answers each call as the service's name says.
    async fn server() -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut connection = h2::server::handshake(stream).await.unwrap();
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        tokio::spawn(answer(request, respond));
                    }
                });
            }
        });
        port
    }

    async fn answer(request: hyper::Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>) {
        let path = request.uri().path().to_owned();
        let mut body = request.into_body();
        let question = body.data().await.unwrap().unwrap();
        let service = String::from_utf8(question.get(7..).unwrap_or_default().to_vec()).unwrap();
        let head = |status: Option<&str>| {
            let builder = hyper::Response::builder().header("content-type", "application/grpc");
            status.into_iter().fold(builder, |b, status| b.header("grpc-status", status).header("grpc-message", "why")).body(())
        };
        if path != "/grpc.health.v1.Health/Check" || service == "unimplemented" {
            respond.send_response(head(Some("12")).unwrap(), true).unwrap();
            return;
        }
        if service == "silent" {
            std::future::pending::<()>().await;
        }
        let mut stream = respond.send_response(head(None).unwrap(), false).unwrap();
        let status = if service == "ill" { 2 } else { 1 };
        stream.send_data(Bytes::copy_from_slice(&[0, 0, 0, 0, 2, 8, status]), false).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static(if service == "missing" { "5" } else { "0" }));
        stream.send_trailers(trailers).unwrap();
    }

    #[rstest]
    #[case::well("", "")]
    #[case::one_service("a.B", "")]
    #[case::ill("ill", "service unhealthy (responded with \"NOT_SERVING\")")]
    #[case::missing("missing", "rpc error: code = 5")]
    #[case::unimplemented("unimplemented", "does not implement the grpc health protocol")]
    #[tokio::test]
    async fn calls(#[case] service: &str, #[case] expected: &str) {
        let address = format!("127.0.0.1:{}", server().await);
        let stream = tokio::net::TcpStream::connect(&address).await.unwrap();
        match converse(stream, "http", &address, service).await {
            Ok(()) => assert_eq!(expected, ""),
            Err(error) => assert!(!expected.is_empty() && error.contains(expected), "{error}"),
        }
    }
}
