//! What probes and hooks do: a command in the container, a request, a connection. Network handlers run in the agent, through sockets
//! that are in the pod's namespace: no process, and nothing that the image would have to have.

mod dial;
mod exec;
mod grpc;
mod http;
mod target;
#[cfg(test)]
mod tests;
mod tls;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1 as k8s;

pub use dial::{Dialer, Inside};
pub use exec::{Commands, Ended};
pub use grpc::check as grpc;
pub use http::{Answer, Caller, Error as HttpError};

use super::Node;
use crate::model::ValidPod;
use crate::runtime::Sandbox;

/// What a handler came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Success,
    /// As it should be, but somebody should look.
    Warning(String),
    /// Not as it should be.
    Failure(String),
    /// It couldn't be found out.
    Unknown(String),
}

/// A running container, as its probes and hooks need it.
#[derive(Debug, Clone)]
pub struct Subject {
    /// For what it shares.
    pub node: Arc<Node>,
    /// The pod, as it is now.
    pub pod: ValidPod,
    /// Where the container is.
    pub sandbox: Sandbox,
    /// Of the pod's spec.
    pub container: k8s::Container,
    /// The attempt's ID.
    pub id: String,
    /// The attempt's number.
    pub number: u32,
    /// The pod's address.
    pub ip: Option<std::net::IpAddr>,
}

impl Subject {
    /// Where a handler with this `host` field goes: to the pod from inside it, or from the node to wherever it says, as the kubelet.
    pub fn way(&self, host: Option<&str>) -> Result<(Dialer, String), String> {
        match (host.filter(|h| !h.is_empty()), self.ip) {
            (Some(host), _) => Ok((Dialer::Node, host.to_owned())),
            (None, Some(ip)) => Ok((Dialer::Pod(Inside::new(&self.node.sockets, &self.sandbox.holder)), ip.to_string())),
            (None, None) => Err("the pod has no address".into()),
        }
    }
}

/// tcpSocket: whether somebody takes the connection.
pub async fn tcp(subject: &Subject, action: &k8s::TCPSocketAction, limit: Duration) -> Verdict {
    let port = match target::port(&action.port, &subject.container) {
        Ok(port) => port,
        Err(error) => return Verdict::Unknown(error),
    };
    let (dialer, host) = match subject.way(action.host.as_deref()) {
        Ok(way) => way,
        Err(error) => return Verdict::Unknown(error),
    };
    match tokio::time::timeout(limit, dialer.connect(&host, port)).await {
        Ok(Ok(_)) => Verdict::Success,
        Ok(Err(error)) => Verdict::Failure(error.to_string()),
        Err(_) => Verdict::Failure(format!("dial tcp {host}:{port}: i/o timeout")),
    }
}

/// httpGet, to be asked as often as one likes.
#[derive(Debug)]
pub struct HttpGet {
    dialer: Dialer,
    request: http::Request,
}

impl HttpGet {
    /// Of a container.
    pub fn new(subject: &Subject, action: &k8s::HTTPGetAction, caller: Caller) -> Result<Self, http::Error> {
        let port = target::port(&action.port, &subject.container).map_err(http::Error::Request)?;
        let (dialer, host) = subject.way(action.host.as_deref()).map_err(http::Error::Request)?;
        Ok(Self { dialer, request: http::Request::new(action, &host, port, caller)? })
    }

    /// The answer, after its redirects.
    pub async fn ask(&self, limit: Duration) -> Result<Answer, http::Error> {
        http::get(&self.dialer, &self.request, limit).await
    }
}

/// httpGet of a hook: any answer will do. One that was told to speak TLS to a server that doesn't is tried without, as the kubelet does
/// it; then it says so.
pub async fn http_hook(subject: &Subject, action: &k8s::HTTPGetAction, limit: Duration) -> Result<Option<String>, http::Error> {
    let get = HttpGet::new(subject, action, Caller::Lifecycle)?;
    match get.ask(limit).await {
        Err(http::Error::NotTls(_)) => {
            http::get(&get.dialer, &get.request.clone().in_the_clear(), limit).await?;
            let host = get.request.authority();
            Ok(Some(format!("request to HTTPS lifecycle hook {host} got HTTP response, retry with HTTP succeeded")))
        }
        answered => answered.map(|_| None),
    }
}

/// What an httpGet probe's answer means.
pub fn judge(answer: Result<Answer, http::Error>) -> Verdict {
    match answer {
        Ok(Answer { status: 200..=299, .. }) => Verdict::Success,
        Ok(Answer { status: 300..=399, body }) => {
            Verdict::Warning(format!("Probe terminated redirects, Response body: {}", String::from_utf8_lossy(&body)))
        }
        // Never the body: events are read by people who may not see what the container serves.
        Ok(Answer { status, .. }) => Verdict::Failure(format!("HTTP probe failed with statuscode: {status}")),
        Err(http::Error::Request(error)) => Verdict::Unknown(error),
        Err(error) => Verdict::Failure(error.to_string()),
    }
}
