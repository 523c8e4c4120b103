//! Answers: JSON objects, streams of bytes, and errors as Kubernetes' `Status`.

use std::borrow::Cow;
use std::convert::Infallible;
use std::task::Poll;

use bytes::Bytes;
use futures::StreamExt;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::StatusCode;
use hyper::body::Frame;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::pod::node::NodeError;

/// Body of an answer.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;
/// An answer.
pub type Response = hyper::Response<Body>;

/// Chunks that a slow client may be behind by before its producer waits.
const BACKLOG: usize = 8;

/// A refusal that becomes a `Status` object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    code: u16,
    reason: &'static str,
    message: Cow<'static, str>,
    details: Option<Value>,
}

impl ApiError {
    fn new(code: u16, reason: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, reason, message: message.into(), details: None }
    }
    /// 400.
    pub fn bad_request(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(400, "BadRequest", message)
    }
    /// 415.
    pub fn unsupported(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(415, "UnsupportedMediaType", message)
    }
    /// 422.
    pub fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(422, "Invalid", message)
    }
    /// 401.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "a client certificate is needed: `nodeagent kubeconfig` writes one")
    }
    /// 403.
    pub fn forbidden(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(403, "Forbidden", message)
    }
    /// 404, of an object.
    pub fn not_found(resource: &str, name: &str) -> Self {
        Self {
            details: Some(json!({ "name": name, "kind": resource })),
            ..Self::new(404, "NotFound", format!("{resource} \"{name}\" not found"))
        }
    }
    /// 404, of a path.
    pub fn no_such_path() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource")
    }
    /// 404, and why.
    pub fn no_such_path_but(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(404, "NotFound", message)
    }
    /// 405, whatever the method.
    pub fn not_served(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(405, "MethodNotAllowed", message)
    }
    /// 405.
    pub fn method_not_allowed() -> Self {
        Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
    }
    /// 405, of what files alone decide.
    pub fn read_only(resource: &str) -> Self {
        Self::new(405, "MethodNotAllowed", format!("{resource} are what the manifests say: edit or remove the file instead"))
    }
    /// 409.
    pub fn conflict(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(409, "Conflict", message)
    }
    /// 410: list again.
    pub fn expired(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(410, "Expired", message)
    }
    /// 413.
    pub fn too_large(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(413, "RequestEntityTooLarge", message)
    }
    /// 500.
    pub fn internal(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(500, "InternalError", message)
    }
    /// The HTTP status.
    pub fn code(&self) -> u16 {
        self.code
    }
    /// As a `Status` object.
    pub fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if let Some(details) = &self.details {
            status["details"] = details.clone();
        }
        status
    }
    /// As an answer.
    pub fn into_response(self) -> Response {
        let code = StatusCode::from_u16(self.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = json(&self.status());
        *response.status_mut() = code;
        response
    }
}

impl From<NodeError> for ApiError {
    fn from(error: NodeError) -> Self {
        let message = error.to_string();
        match error {
            NodeError::NotFound(_) => Self::new(404, "NotFound", message),
            NodeError::Invalid(_) => Self::bad_request(message),
            NodeError::Conflict(_) => Self::conflict(message),
            NodeError::Command { .. } | NodeError::Internal(_) => Self::internal(message),
        }
    }
}

/// An object as JSON.
pub fn json<T: Serialize + ?Sized>(object: &T) -> Response {
    match serde_json::to_vec(object) {
        Ok(bytes) => whole("application/json", bytes),
        Err(error) => {
            let mut response = whole("text/plain", format!("serialize the answer: {error}"));
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        }
    }
}

/// A body that is there as a whole.
pub fn whole(content_type: &'static str, body: impl Into<Bytes>) -> Response {
    with_type(content_type, Full::new(body.into()).boxed_unsync())
}

/// A body that comes bit by bit from whoever has the sender. The producer ends when the sender's `closed()` says so. The end is told after
/// all else was sent: an API server that carries logs in a WebSocket drops what comes to it together with the end.
pub fn streamed(content_type: &'static str) -> (mpsc::Sender<Bytes>, Response) {
    let (sender, mut receiver) = mpsc::channel(BACKLOG);
    let mut ends = false;
    let chunks = futures::stream::poll_fn(move |context| match receiver.poll_recv(context) {
        Poll::Ready(None) if !std::mem::replace(&mut ends, true) => {
            context.waker().wake_by_ref();
            Poll::Pending
        }
        next => next,
    });
    let body = StreamBody::new(chunks.map(|bytes| Ok(Frame::data(bytes)))).boxed_unsync();
    (sender, with_type(content_type, body))
}

fn with_type(content_type: &'static str, body: Body) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// `Status` of success, as DELETE answers.
pub fn success(details: &Value) -> Response {
    json(&json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details }))
}

/// Adds a warning that kubectl prints (RFC 9111, code 299).
pub fn warn(response: &mut Response, text: &str) {
    let quoted: String = text
        .chars()
        .filter(|c| !c.is_control())
        .flat_map(|c| ['"', '\\'].contains(&c).then_some('\\').into_iter().chain([c]))
        .collect();
    if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
        response.headers_mut().append("warning", value);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn the_end_of_a_stream_comes_after_what_was_sent() {
        let (sender, response) = streamed("text/plain");
        sender.send(Bytes::from_static(b"all")).await.unwrap();
        drop(sender);
        let mut body = response.into_body();
        let data = body.frame().now_or_never().unwrap().unwrap().unwrap();
        assert_eq!(data.into_data().unwrap(), "all");
        assert!(body.frame().now_or_never().is_none(), "whoever writes flushes here");
        assert!(body.frame().now_or_never().unwrap().is_none());
    }
}
