//! grpc: one call of `grpc.health.v1.Health/Check`.
//! <https://github.com/grpc/grpc/blob/master/doc/health-checking.md>

use std::time::Duration;

use k8s_openapi::api::core::v1::GRPCAction;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Subject, Verdict, tls};
use crate::grpc::client::Origin;
use crate::grpc::{Channel, Code, Status};

/// No answer of a health service is longer.
const LONGEST_ANSWER: usize = 4096;

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
            converse(stream, "https", &address, (service, limit)).await
        } else {
            converse(stream, "http", &address, (service, limit)).await
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
    scheme: &'static str,
    authority: &str,
    (service, limit): (&str, Duration),
) -> Result<(), String> {
    let origin = Origin { scheme, authority: authority.into(), agent: "kube-probe/1.37", longest: LONGEST_ANSWER };
    let (channel, connection) = Channel::over(stream, origin).await.map_err(failed)?;
    let question = Question { service: service.into() };
    let call = channel.unary::<Answer>("grpc.health.v1.Health/Check", &question, limit);
    let (mut call, mut connection) = (std::pin::pin!(call), std::pin::pin!(connection));
    let answered = tokio::select! {
        biased;
        answered = &mut call => answered,
        ended = &mut connection => match ended {
            Ok(()) => call.await,
            Err(error) => Err(error.into()),
        },
    };
    match answered.map_err(failed)?.status {
        1 => Ok(()),
        0 => Err("service unhealthy (responded with \"UNKNOWN\")".into()),
        2 => Err("service unhealthy (responded with \"NOT_SERVING\")".into()),
        3 => Err("service unhealthy (responded with \"SERVICE_UNKNOWN\")".into()),
        other => Err(format!("service unhealthy (responded with \"{other}\")")),
    }
}

fn failed(status: Status) -> String {
    match status.code {
        Code::UNIMPLEMENTED => {
            let message = status.message;
            format!("error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {message}")
        }
        Code::DEADLINE_EXCEEDED => format!("timeout: health rpc did not complete: {}", status.message),
        _ => format!("error: health rpc probe failed: {status}"),
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct Question {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Answer {
    #[prost(int32, tag = "1")]
    status: i32,
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use hyper::HeaderMap;
    use hyper::header::HeaderValue;
    use rstest::rstest;

    use super::*;

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
    #[case::missing("missing", "rpc error: code = NotFound")]
    #[case::unimplemented("unimplemented", "does not implement the grpc health protocol")]
    #[tokio::test]
    async fn calls(#[case] service: &str, #[case] expected: &str) {
        let address = format!("127.0.0.1:{}", server().await);
        let stream = tokio::net::TcpStream::connect(&address).await.unwrap();
        match converse(stream, "http", &address, (service, Duration::from_secs(60))).await {
            Ok(()) => assert_eq!(expected, ""),
            Err(error) => assert!(!expected.is_empty() && error.contains(expected), "{error}"),
        }
    }
}
