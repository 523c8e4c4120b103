//! HTTP over the agent's unix socket: one connection a request, as connecting costs microseconds there.

use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT, CONNECTION, CONTENT_TYPE, HOST, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::api::websocket::{self, Socket};

/// A table is wanted, and of the same kind JSON if there is none.
pub const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

/// Why a command failed, as its user reads it.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// Nobody listens.
    #[error("no agent answers at {}: {source}. Is it running? Start it with `nodeagent --manifests DIR`, or say which one by --socket or --root", socket.display())]
    NoAgent {
        /// The socket.
        socket: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It isn't ours.
    #[error("{}: permission denied: only root and the agent's group may use it; try sudo", socket.display())]
    NotAllowed {
        /// The socket.
        socket: PathBuf,
    },
    /// The agent said no.
    #[error("Error from server ({reason}): {message}")]
    Server {
        /// `NotFound`…
        reason: String,
        /// What it said.
        message: String,
    },
    /// The conversation broke.
    #[error("error: {doing}: {message}")]
    Broken {
        /// What was being done.
        doing: &'static str,
        /// What went wrong.
        message: String,
    },
    /// The command line is wrong in a way that its grammar doesn't tell.
    #[error("error: {0}")]
    Usage(String),
    /// A file of the user's.
    #[error("error: {}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Standard output or the terminal.
    #[error("error: write the output: {0}")]
    Output(#[from] io::Error),
}

impl CliError {
    /// The conversation broke while doing this.
    pub fn broken(doing: &'static str) -> impl Fn(hyper::Error) -> Self {
        move |error| Self::Broken { doing, message: error.to_string() }
    }
    /// Of a file.
    pub fn file(path: &Path, source: io::Error) -> Self {
        Self::File { path: path.to_owned(), source }
    }
    /// From a `Status` object.
    pub fn status(status: &Value) -> Self {
        let text = |name: &str| status[name].as_str().unwrap_or_default().to_owned();
        Self::Server { reason: text("reason"), message: text("message") }
    }
    /// Whether the server said that there is no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Server { reason, .. } if reason == "NotFound")
    }
}

type RequestBody = UnsyncBoxBody<Bytes, io::Error>;

/// The agent's API.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// Connects when asked something.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// GET of a JSON object.
    pub async fn get(&self, path: &str) -> Result<Value, CliError> {
        whole(self.request(Method::GET, path, "application/json").await?).await
    }

    /// GET as a table.
    pub async fn get_table(&self, path: &str) -> Result<crate::api::table::Table, CliError> {
        let object = whole(self.request(Method::GET, path, TABLE).await?).await?;
        serde_json::from_value(object)
            .map_err(|error| CliError::Broken { doing: "read the agent's answer", message: error.to_string() })
    }

    /// GET of an answer that comes bit by bit.
    pub async fn stream(&self, path: &str, accept: &str) -> Result<Response<Incoming>, CliError> {
        self.request(Method::GET, path, accept).await
    }

    /// Any request without a body.
    pub async fn act(&self, method: Method, path: &str) -> Result<Value, CliError> {
        whole(self.request(method, path, "application/json").await?).await
    }

    /// POST whose answer comes bit by bit.
    pub async fn post_stream(&self, path: &str) -> Result<Response<Incoming>, CliError> {
        self.request(Method::POST, path, "application/json").await
    }

    /// POST with a JSON body or any other.
    pub async fn send(&self, method: Method, path: &str, body: RequestBody) -> Result<Value, CliError> {
        let request = Request::builder().method(method).uri(path).header(HOST, "nodeagent").header(ACCEPT, "application/json");
        whole(self.exchange(request.body(body)).await?).await
    }

    /// A strategic merge patch.
    pub async fn patch(&self, path: &str, body: RequestBody) -> Result<Value, CliError> {
        let request = Request::patch(path)
            .header(HOST, "nodeagent")
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, "application/strategic-merge-patch+json");
        whole(self.exchange(request.body(body)).await?).await
    }

    async fn request(&self, method: Method, path: &str, accept: &str) -> Result<Response<Incoming>, CliError> {
        let request = Request::builder().method(method).uri(path).header(HOST, "nodeagent").header(ACCEPT, accept);
        self.exchange(request.body(nothing())).await
    }

    /// A WebSocket of that protocol.
    pub async fn websocket(&self, path: &str, protocol: &str) -> Result<Socket, CliError> {
        let nonce = crate::random::bytes::<16>()?;
        let request = Request::get(path)
            .header(HOST, "nodeagent")
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, "websocket")
            .header(SEC_WEBSOCKET_VERSION, "13")
            .header(SEC_WEBSOCKET_KEY, STANDARD.encode(nonce))
            .header(SEC_WEBSOCKET_PROTOCOL, protocol);
        let response = self.exchange(request.body(nothing())).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let message = format!("the agent answered {}", response.status());
            return Err(CliError::Broken { doing: "open a stream", message });
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(CliError::broken("open a stream"))?;
        Ok(websocket::open(TokioIo::new(upgraded), Role::Client).await)
    }

    async fn exchange(&self, request: Result<Request<RequestBody>, hyper::http::Error>) -> Result<Response<Incoming>, CliError> {
        let request = request.map_err(|error| CliError::Usage(error.to_string()))?;
        let stream = UnixStream::connect(&self.socket).await.map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied => CliError::NotAllowed { socket: self.socket.clone() },
            _ => CliError::NoAgent { socket: self.socket.clone(), source },
        })?;
        let doing = "talk to the agent";
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(CliError::broken(doing))?;
        tokio::spawn(connection.with_upgrades());
        let response = sender.send_request(request).await.map_err(CliError::broken(doing))?;
        remarks(&response);
        let status = response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let body = response.into_body().collect().await.map_err(CliError::broken(doing))?.to_bytes();
        Err(match serde_json::from_slice::<Value>(&body) {
            Ok(object) if object["kind"] == "Status" => CliError::status(&object),
            _ => CliError::Broken { doing, message: format!("{status}: {}", String::from_utf8_lossy(&body)) },
        })
    }
}

/// Prints what the server has to say beside its answer.
fn remarks(response: &Response<Incoming>) {
    for warning in response.headers().get_all("warning") {
        let text = warning.to_str().unwrap_or_default();
        let text = text.split_once('"').map_or(text, |(_, quoted)| quoted.strip_suffix('"').unwrap_or(quoted));
        eprintln!("Warning: {}", text.replace("\\\"", "\""));
    }
    if let Some(remark) = response.headers().get(crate::api::DEFAULTED).and_then(|value| value.to_str().ok()) {
        eprintln!("{remark}");
    }
}

/// A request's body that is there as a whole.
pub fn body(bytes: impl Into<Bytes>) -> RequestBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

fn nothing() -> RequestBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

async fn whole(response: Response<Incoming>) -> Result<Value, CliError> {
    let doing = "read the agent's answer";
    let body = response.into_body().collect().await.map_err(CliError::broken(doing))?.to_bytes();
    serde_json::from_slice(&body).map_err(|error| CliError::Broken { doing, message: error.to_string() })
}

/// Lines of an answer that comes bit by bit.
pub struct Lines {
    body: Incoming,
    rest: BytesMut,
    /// How far `rest` has been searched.
    seen: usize,
}

impl Lines {
    /// Of this answer.
    pub fn new(response: Response<Incoming>) -> Self {
        Self { body: response.into_body(), rest: BytesMut::new(), seen: 0 }
    }

    /// Whether another line is here already.
    pub fn has_more(&self) -> bool {
        self.rest[self.seen..].contains(&b'\n')
    }

    /// The next line, with its end if it has one.
    pub async fn next(&mut self) -> Result<Option<Bytes>, CliError> {
        loop {
            if let Some(end) = self.rest[self.seen..].iter().position(|byte| *byte == b'\n') {
                let line = self.rest.split_to(self.seen + end + 1).freeze();
                self.seen = 0;
                return Ok(Some(line));
            }
            self.seen = self.rest.len();
            match self.body.frame().await {
                Some(frame) => {
                    if let Some(data) = frame.map_err(CliError::broken("read the agent's answer"))?.data_ref() {
                        self.rest.extend_from_slice(data);
                    }
                }
                None if self.rest.is_empty() => return Ok(None),
                None => {
                    self.seen = 0;
                    return Ok(Some(self.rest.split().freeze()));
                }
            }
        }
    }
}

/// The path of a pod's API.
pub fn pod_path(namespace: &str, name: &str, rest: &str) -> String {
    use crate::api::encode;
    format!("/api/v1/namespaces/{}/pods/{}{rest}", encode(namespace), encode(name))
}

/// The path of what Kubernetes lacks.
pub fn own_path(namespace: &str, name: &str, rest: &str) -> String {
    use crate::api::{GROUP, encode};
    format!("/apis/{GROUP}/v1/namespaces/{}/pods/{}{rest}", encode(namespace), encode(name))
}

/// `pod/web` and `pods/web` are `web`.
pub fn pod_name(argument: &str) -> Result<&str, CliError> {
    match argument.split_once('/') {
        None => Ok(argument),
        Some(("pod" | "pods" | "po", name)) => Ok(name),
        Some((kind, _)) => Err(CliError::Usage(format!("{kind}: only pods can be named here: write NAME or pod/NAME"))),
    }
}

/// JSON for people.
pub fn pretty(object: &Value) -> String {
    serde_json::to_string_pretty(object).unwrap_or_default()
}
