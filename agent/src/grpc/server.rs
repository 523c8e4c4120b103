//! Answers calls on a unix socket, one question and one answer each.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use h2::server::SendResponse;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{HeaderMap, Request, Response};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

pub use super::frame::{pack as answer, read};

use super::frame::Body;
use super::{Code, LONGEST_MESSAGE, Status, authority, encoded};

/// Connections at a time: whoever has more than plugins need is none.
const CONNECTIONS: usize = 64;

/// What is served.
pub trait Service: Send + Sync + 'static {
    /// Answers `package.Service/Method`, by [`read`] and [`answer`]; none: there is no such method.
    fn call<'a>(&'a self, method: &'a str, question: Bytes) -> Option<BoxFuture<'a, Result<Bytes, Status>>>;
}

/// Serves until the task is ended.
pub async fn serve(listener: UnixListener, service: Arc<dyn Service>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = room.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let service = service.clone();
                tokio::spawn(async move {
                    if let Err(error) = converse(stream, service).await {
                        tracing::debug!(%error, "a plugin's connection ended");
                    }
                    drop(place);
                });
            }
            // Descriptors have run out: others must end first.
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
        }
    }
}

async fn converse(stream: UnixStream, service: Arc<dyn Service>) -> Result<(), h2::Error> {
    let mut connection = h2::server::handshake(authority::mended(stream)).await?;
    while let Some(request) = connection.accept().await {
        let (request, respond) = request?;
        let service = service.clone();
        tokio::spawn(async move {
            if let Err(error) = respond_to(request, respond, &*service).await {
                tracing::debug!(%error, "a plugin's call was not answered");
            }
        });
    }
    Ok(())
}

async fn respond_to(
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    service: &dyn Service,
) -> Result<(), h2::Error> {
    let (head, body) = request.into_parts();
    let answered = answered(head.uri.path().trim_start_matches('/'), Body::new(body, LONGEST_MESSAGE), service).await;
    let mut response = Response::new(());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    match answered {
        Ok(message) => {
            let mut stream = respond.send_response(response, false)?;
            stream.send_data(message, false)?;
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            stream.send_trailers(trailers)
        }
        Err(status) => {
            let headers = response.headers_mut();
            headers.insert("grpc-status", HeaderValue::from(status.code.0));
            if let Ok(message) = HeaderValue::from_str(&encoded(&status.message)) {
                headers.insert("grpc-message", message);
            }
            respond.send_response(response, true).map(drop)
        }
    }
}

async fn answered(method: &str, mut body: Body, service: &dyn Service) -> Result<Bytes, Status> {
    let question = body.message().await?.ok_or_else(|| Status::new(Code::INTERNAL, "the call has no message"))?;
    match service.call(method, question) {
        Some(answer) => answer.await,
        None => Err(Status::new(Code::UNIMPLEMENTED, format!("unknown method {method}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt as _;

    use super::super::Channel;
    use super::*;

    struct Echo;

    impl Service for Echo {
        fn call<'a>(&'a self, method: &'a str, question: Bytes) -> Option<BoxFuture<'a, Result<Bytes, Status>>> {
            let echo = async {
                match read::<String>(question)?.as_str() {
                    "refuse" => Err(Status::new(Code::INVALID_ARGUMENT, "100 % no\n")),
                    "wait" => std::future::pending().await,
                    text => Ok(answer(&text.to_owned())),
                }
            };
            (method == "test.Echo/Say").then(|| echo.boxed())
        }
    }

    #[tokio::test]
    async fn calls_are_answered_refused_unknown_or_late() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let served = tokio::spawn(serve(UnixListener::bind(&socket).unwrap(), Arc::new(Echo)));
        let channel = Channel::connect(&socket).await.unwrap();
        let say = async |method, text: &str, limit| channel.unary::<String>(method, &text.to_owned(), limit).await;
        let (long, limit) = ("x".repeat(1 << 20), Duration::from_secs(60));
        assert_eq!(say("test.Echo/Say", &long, limit).await.unwrap(), long);
        let refused = say("test.Echo/Say", "refuse", limit).await.unwrap_err();
        assert_eq!(refused, Status::new(Code::INVALID_ARGUMENT, "100 % no\n"));
        assert_eq!(say("test.Echo/Other", "x", limit).await.unwrap_err().code, Code::UNIMPLEMENTED);
        assert_eq!(say("test.Echo/Say", "wait", Duration::from_millis(1)).await.unwrap_err().code, Code::DEADLINE_EXCEEDED);
        served.abort();
    }
}
