//! Calls of a server: one answer, or a stream of them.

use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::Request;
use hyper::header::{CONTENT_TYPE, HeaderValue, TE, USER_AGENT};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio_util::task::AbortOnDropHandle;

use super::frame::{self, Body};
use super::{Code, LONGEST_MESSAGE, Status};

/// Who is called, as requests name it.
#[derive(Debug, Clone)]
pub struct Origin {
    /// `http`, `https`.
    pub scheme: &'static str,
    /// `HOST:PORT`.
    pub authority: String,
    /// Who calls.
    pub agent: &'static str,
    /// Bytes of an answer that is read at all.
    pub longest: usize,
}

/// A connection; its last clone's drop ends it.
#[derive(Debug, Clone)]
pub struct Channel {
    sender: h2::client::SendRequest<Bytes>,
    origin: Arc<Origin>,
    _driver: Option<Arc<AbortOnDropHandle<()>>>,
}

impl Channel {
    /// A plugin's.
    pub async fn connect(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket).await?;
        let origin = Origin { scheme: "http", authority: "localhost".into(), agent: "nodeagent", longest: LONGEST_MESSAGE };
        let (channel, connection) = Self::over(stream, origin).await.map_err(|status| io::Error::other(status.message))?;
        let driver = AbortOnDropHandle::new(tokio::spawn(async move { drop(connection.await) }));
        Ok(Self { _driver: Some(Arc::new(driver)), ..channel })
    }

    /// Over any stream. Calls go on while the second is polled.
    pub async fn over(
        stream: impl AsyncRead + AsyncWrite + Unpin,
        origin: Origin,
    ) -> Result<(Self, impl Future<Output = Result<(), h2::Error>>), Status> {
        let (sender, connection) = h2::client::handshake(stream).await?;
        Ok((Self { sender, origin: Arc::new(origin), _driver: None }, connection))
    }

    /// One question, one answer. `method`: `package.Service/Method`.
    pub async fn unary<A: Message + Default>(&self, method: &str, question: &impl Message, limit: Duration) -> Result<A, Status> {
        let call = async {
            let mut body = self.send(method, question, Some(limit)).await?;
            let Some(message) = body.message().await? else {
                body.trailers().await?;
                return Err(Status::new(Code::INTERNAL, format!("{method} was answered without a message")));
            };
            // To the end, where trailers are.
            while body.message().await?.is_some() {}
            body.trailers().await?;
            frame::read(message)
        };
        let late = || Status::new(Code::DEADLINE_EXCEEDED, format!("{method} was not answered within {} s", limit.as_secs()));
        tokio::time::timeout(limit, call).await.unwrap_or_else(|_| Err(late()))
    }

    /// One question, many answers.
    pub async fn stream<A: Message + Default>(&self, method: &str, question: &impl Message) -> Result<Answers<A>, Status> {
        let body = self.send(method, question, None).await?;
        Ok(Answers { body, _channel: self.clone(), answer: std::marker::PhantomData })
    }

    async fn send(&self, method: &str, question: &impl Message, limit: Option<Duration>) -> Result<Body, Status> {
        let mut sender = self.sender.clone().ready().await?;
        let Origin { scheme, authority, agent, longest } = &*self.origin;
        let mut request = Request::post(format!("{scheme}://{authority}/{method}"))
            .header(CONTENT_TYPE, HeaderValue::from_static("application/grpc"))
            .header(TE, HeaderValue::from_static("trailers"))
            .header(USER_AGENT, HeaderValue::from_static(agent));
        if let Some(limit) = limit {
            request = request.header("grpc-timeout", format!("{}m", limit.as_millis().min(99_999_999)));
        }
        let request = request.body(()).map_err(|error| Status::new(Code::INTERNAL, error.to_string()))?;
        let (response, mut body) = sender.send_request(request, false)?;
        body.send_data(frame::pack(question), true)?;
        let response = response.await?;
        if !response.status().is_success() {
            let code = response.status().as_u16();
            return Err(Status::new(Code::UNKNOWN, format!("unexpected HTTP status code {code}")));
        }
        // A call that comes to nothing may be answered by headers alone.
        Status::told(response.headers())?;
        Ok(Body::new(response.into_body(), *longest))
    }
}

/// What a server has to say, one after the other.
pub struct Answers<A> {
    body: Body,
    _channel: Channel,
    answer: std::marker::PhantomData<fn() -> A>,
}

impl<A: Message + Default> Answers<A> {
    /// The next one; none: there are no more, and all went well.
    pub async fn next(&mut self) -> Result<Option<A>, Status> {
        match self.body.message().await? {
            Some(message) => frame::read(message).map(Some),
            None => self.body.trailers().await.map(|()| None),
        }
    }
}
