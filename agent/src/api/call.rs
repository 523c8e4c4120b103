//! A request taken apart, and the pod that its path names: what the local API and the kubelet API have in common.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::Request;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, HeaderMap};
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::OwnedSemaphorePermit;

use super::ApiError;
use super::query::Query;
use crate::model::PodUid;
use crate::pod::node::Node;

/// The largest body of a request, but for manifests and images' archives.
const BODY_LIMIT: usize = 64 * 1024;
/// In which a body must have come.
const BODY_TIME: Duration = Duration::from_secs(10);

/// One of the connections that a server has at a time. A stream that outlives its request keeps it.
pub type Place = Arc<OwnedSemaphorePermit>;

/// A request, and whom it is for.
pub struct Call {
    /// The agent.
    pub node: Arc<dyn Node>,
    /// The query.
    pub query: Query,
    /// All else.
    pub request: Request<Incoming>,
    /// What the request's connection takes.
    pub place: Place,
}

impl Call {
    /// Reads a small body.
    pub async fn body(&mut self) -> Result<bytes::Bytes, ApiError> {
        self.body_of(BODY_LIMIT).await
    }

    /// Reads a body of at most `limit` bytes.
    pub async fn body_of(&mut self, limit: usize) -> Result<bytes::Bytes, ApiError> {
        let whole = Limited::new(self.request.body_mut(), limit).collect();
        match tokio::time::timeout(BODY_TIME, whole).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
                Err(ApiError::too_large(format!("the body is over {limit} bytes")))
            }
            Ok(Err(error)) => Err(ApiError::bad_request(format!("read the body: {error}"))),
            Err(_) => Err(ApiError::bad_request(format!("the body did not come within {} s", BODY_TIME.as_secs()))),
        }
    }
}

/// The kinds of answers that a client takes, as it writes them.
pub fn accept(headers: &HeaderMap) -> &str {
    headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// A pod that a path names.
pub struct Target {
    /// Its state when the request came.
    pub pod: Arc<Pod>,
    /// Its identity.
    pub uid: PodUid,
}

impl Target {
    /// By its names.
    pub fn find(node: &Arc<dyn Node>, namespace: &str, name: &str) -> Result<Self, ApiError> {
        let pod = node.store().pod_named(namespace, name).ok_or_else(|| ApiError::not_found("pods", name))?;
        let uid = PodUid::new(pod.metadata.uid.as_deref().unwrap_or_default());
        Ok(Self { pod, uid })
    }
}
