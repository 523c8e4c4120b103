//! httpGet as the kubelet does it: one connection a request, redirects followed on the same host only, an answer read up to 10 KiB.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::header::{ACCEPT, CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION, USER_AGENT};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::HTTPGetAction;
use reqwest::Url;
use tokio::io::{AsyncRead, AsyncWrite};

use super::dial::Dialer;
use super::tls;

/// Of a body no more is read.
const LONGEST_BODY: usize = 10 * 1024;
/// A row of requests that lead on to each other is no longer.
const MOST_REQUESTS: usize = 10;

/// Who asks: the servers' logs tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// A probe.
    Probe,
    /// A hook.
    Lifecycle,
}

impl Caller {
    fn user_agent(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Probe => "kube-probe/1.37",
            Self::Lifecycle => "kube-lifecycle/1.37",
        })
    }
}

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Request {
    url: Url,
    headers: HeaderMap,
    wire: Wire,
}

/// How it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wire {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 in the clear, from the first byte on (RFC 9113, 3.3): `protocol: HTTP2`.
    Http2,
}

/// What came back, the last of a row of redirects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// 100..=999.
    pub status: u16,
    /// At most [`LONGEST_BODY`].
    pub body: Bytes,
}

/// Why nothing came back.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It couldn't even be asked.
    #[error("{0}")]
    Request(String),
    /// The server doesn't speak TLS.
    #[error("Get \"{0}\": http: server gave HTTP response to HTTPS client")]
    NotTls(Url),
    /// It took too long.
    #[error("Get \"{0}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)")]
    Late(Url),
    /// The connection, or what came over it.
    #[error("Get \"{url}\": {why}")]
    Failed {
        /// What was asked for.
        url: Url,
        /// What went wrong.
        why: String,
    },
}

impl Request {
    /// The action's request to this host and port.
    pub fn new(action: &HTTPGetAction, host: &str, port: u16, caller: Caller) -> Result<Self, Error> {
        let scheme = if action.scheme.as_deref() == Some("HTTPS") { "https" } else { "http" };
        let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() };
        let path = action.path.as_deref().unwrap_or_default().trim_start_matches('/');
        let url = format!("{scheme}://{host}:{port}/{path}");
        let url = Url::parse(&url).map_err(|error| Error::Request(format!("{url}: {error}")))?;
        let mut headers = HeaderMap::new();
        for header in action.http_headers.iter().flatten() {
            let wrong = |error: &dyn std::fmt::Display| Error::Request(format!("HTTP header {}: {error}", header.name));
            let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|e| wrong(&e))?;
            let value = HeaderValue::from_str(&header.value).map_err(|e| wrong(&e))?;
            headers.append(name, value);
        }
        for (name, usual) in [(USER_AGENT, caller.user_agent()), (ACCEPT, HeaderValue::from_static("*/*"))] {
            match headers.get(&name) {
                None => drop(headers.insert(name, usual)),
                // Said to be nothing: it isn't sent.
                Some(value) if value.is_empty() => drop(headers.remove(&name)),
                Some(_) => {}
            }
        }
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        let wire = if action.protocol.as_deref() == Some("HTTP2") { Wire::Http2 } else { Wire::Http1 };
        Ok(Self { url, headers, wire })
    }

    /// The same without TLS: for a hook whose server has none.
    #[must_use]
    pub fn in_the_clear(mut self) -> Self {
        let port = self.url.port_or_known_default();
        // The scheme first: port 443 is https's own, which the URL doesn't note.
        let _ = self.url.set_scheme("http").and_then(|()| self.url.set_port(port));
        self.headers.remove(hyper::header::AUTHORIZATION);
        self
    }

    /// `HOST:PORT`.
    pub fn authority(&self) -> String {
        format!("{}:{}", self.url.host_str().unwrap_or_default(), self.url.port_or_known_default().unwrap_or_default())
    }

    /// Where the answer leads on to; none: it is the last. Another host is never asked: a container could have the node ask anything.
    fn follow(&self, to: &HeaderValue) -> Option<Result<Self, String>> {
        let text = to.to_str().ok()?;
        let url = match self.url.join(text) {
            Ok(url) => url,
            Err(error) => return Some(Err(format!("failed to parse Location header {text:?}: {error}"))),
        };
        if url.host_str() != self.url.host_str() {
            return None;
        }
        if !matches!(url.scheme(), "http" | "https") {
            return Some(Err(format!("unsupported protocol scheme \"{}\"", url.scheme())));
        }
        let mut headers = self.headers.clone();
        // A Host of the probe's own is the server's, wherever on it the way leads; an absolute URL names another.
        if Url::parse(text).is_ok() {
            headers.remove(HOST);
        }
        Some(Ok(Self { url, headers, wire: self.wire }))
    }
}

/// Asks, and follows redirects.
pub async fn get(dialer: &Dialer, request: &Request, limit: Duration) -> Result<Answer, Error> {
    let mut asked = Cow::Borrowed(request);
    let answered = tokio::time::timeout(limit, follow_all(dialer, &mut asked)).await;
    answered.unwrap_or_else(|_| Err(Error::Late(asked.url.clone())))
}

async fn follow_all(dialer: &Dialer, request: &mut Cow<'_, Request>) -> Result<Answer, Error> {
    for _ in 0..MOST_REQUESTS {
        let (answer, location) = ask(dialer, request).await?;
        let next = match (answer.status, &location) {
            (301 | 302 | 303 | 307 | 308, Some(location)) => request.follow(location),
            _ => None,
        };
        match next {
            None => return Ok(answer),
            Some(Ok(next)) => *request = Cow::Owned(next),
            Some(Err(why)) => return Err(Error::Failed { url: request.url.clone(), why }),
        }
    }
    Err(Error::Failed { url: request.url.clone(), why: format!("stopped after {MOST_REQUESTS} redirects") })
}

async fn ask(dialer: &Dialer, request: &Request) -> Result<(Answer, Option<HeaderValue>), Error> {
    let url = &request.url;
    let failed = |error: std::io::Error| match error.get_ref() {
        Some(_) if tls::is_plain_text(&error) => Error::NotTls(url.clone()),
        _ => Error::Failed { url: url.clone(), why: error.to_string() },
    };
    let host = url.host_str().unwrap_or_default();
    let stream = dialer.connect(host, url.port_or_known_default().unwrap_or(80)).await.map_err(failed)?;
    let answered = if url.scheme() == "https" {
        converse(tls::wrap(stream, host, &[]).await.map_err(failed)?, request).await
    } else if request.wire == Wire::Http2 {
        converse_http2(stream, request).await
    } else {
        converse(stream, request).await
    };
    answered.map_err(|why| Error::Failed { url: url.clone(), why })
}

/// One request over a connection. It is driven here, by whoever waits for the answer: no task besides.
async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &Request,
) -> Result<(Answer, Option<HeaderValue>), String> {
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .title_case_headers(true)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|e| reason(&e))?;
    let exchange = async {
        let answer = sender.send_request(message(request)?).await.map_err(|e| reason(&e))?;
        let (status, location) = (answer.status().as_u16(), answer.headers().get(LOCATION).cloned());
        let body = read(answer.into_body()).await?;
        Ok((Answer { status, body }, location))
    };
    let mut connection = std::pin::pin!(connection);
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        biased;
        answered = &mut exchange => answered,
        ended = &mut connection => match ended {
            // What it had read until then is still to be taken.
            Ok(()) => exchange.await,
            Err(error) => Err(reason(&error)),
        },
    }
}

/// The same in HTTP/2.
async fn converse_http2(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &Request,
) -> Result<(Answer, Option<HeaderValue>), String> {
    let (sender, connection) = h2::client::handshake(stream).await.map_err(|e| e.to_string())?;
    let exchange = async {
        let mut sender = sender.ready().await.map_err(|e| e.to_string())?;
        let (answer, _) = sender.send_request(message_http2(request)?, true).map_err(|e| e.to_string())?;
        let answer = answer.await.map_err(|e| e.to_string())?;
        let (status, location) = (answer.status().as_u16(), answer.headers().get(LOCATION).cloned());
        let mut body = answer.into_body();
        let mut read = Vec::new();
        while let Some(data) = body.data().await {
            let data = data.map_err(|e| e.to_string())?;
            let _ = body.flow_control().release_capacity(data.len());
            read.extend_from_slice(&data[..data.len().min(LONGEST_BODY - read.len())]);
            if read.len() == LONGEST_BODY {
                break;
            }
        }
        Ok((Answer { status, body: read.into() }, location))
    };
    let (mut exchange, mut connection) = (std::pin::pin!(exchange), std::pin::pin!(connection));
    tokio::select! {
        biased;
        answered = &mut exchange => answered,
        ended = &mut connection => match ended {
            Ok(()) => exchange.await,
            Err(error) => Err(error.to_string()),
        },
    }
}

/// In HTTP/2 the host is a part of the target, and a connection has no header of its own (RFC 9113, 8.2.2 and 8.3.1).
fn message_http2(request: &Request) -> Result<hyper::Request<()>, String> {
    let mut headers = request.headers.clone();
    headers.remove(CONNECTION);
    let host = headers.remove(HOST).and_then(|host| host.to_str().ok().map(str::to_owned)).unwrap_or_else(|| request.authority());
    let query = request.url.query().map(|query| format!("?{query}")).unwrap_or_default();
    let target = format!("{}://{host}{}{query}", request.url.scheme(), request.url.path());
    let mut message = hyper::Request::get(target).body(()).map_err(|e| e.to_string())?;
    *message.headers_mut() = headers;
    Ok(message)
}

fn message(request: &Request) -> Result<hyper::Request<Empty<Bytes>>, String> {
    let url = &request.url;
    let target = url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()));
    let mut message = hyper::Request::get(target).body(Empty::new()).map_err(|e| e.to_string())?;
    message.headers_mut().clone_from(&request.headers);
    if !request.headers.contains_key(HOST) {
        let host = url.host_str().unwrap_or_default();
        let host = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        message.headers_mut().insert(HOST, HeaderValue::from_str(&host).map_err(|e| e.to_string())?);
    }
    Ok(message)
}

async fn read(mut body: hyper::body::Incoming) -> Result<Bytes, String> {
    let mut read = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|e| reason(&e))?.into_data() else { continue };
        read.extend_from_slice(&data[..data.len().min(LONGEST_BODY - read.len())]);
        if read.len() == LONGEST_BODY {
            break;
        }
    }
    Ok(read.into())
}

/// hyper's word and what is behind it.
fn reason(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None if error.is_incomplete_message() => "EOF".into(),
        None => error.to_string(),
    }
}
