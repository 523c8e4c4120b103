//! Who may do what: the client's certificate or token → a user → the API server's word, kept for as long as the kubelet keeps it.
//! Pure but for the questions to the [`Reviewer`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::Method;
use hyper::header::{AUTHORIZATION, HeaderMap};
use tokio_rustls::rustls::pki_types::CertificateDer;

use super::authority::ClientAuthority;
use super::cache::Cache;
use super::review::{Attributes, ReviewError, Reviewer};
use super::user::User;
use crate::api::query::{Plus, decode};

/// How long whose token it is holds: the kubelet's `authentication.webhook.cacheTTL`.
const TOKEN_HOLDS: Duration = Duration::from_secs(120);
/// `authorization.webhook.cacheAuthorizedTTL`.
const GRANT_HOLDS: Duration = Duration::from_secs(300);
/// `authorization.webhook.cacheUnauthorizedTTL`.
const DENIAL_HOLDS: Duration = Duration::from_secs(30);
/// In which the API server must have answered.
const REVIEW_TIME: Duration = Duration::from_secs(10);
/// Answers that are kept, of each kind.
const ROOM: usize = 4096;
/// The longest token that is asked about.
const TOKEN_LIMIT: usize = 32 * 1024;

/// Why somebody isn't let in. The words are the kubelet's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// 401.
    #[error("Unauthorized")]
    Unauthenticated,
    /// 403.
    #[error("Forbidden (user={user}, verb={verb}, resource=nodes, subresource(s)=[{subresources}])")]
    Forbidden {
        /// Who.
        user: String,
        /// What.
        verb: &'static str,
        /// All that would have been enough.
        subresources: String,
    },
    /// 500: the API server can't be asked.
    #[error("Authorization error (user={user}, verb={verb}, resource=nodes, subresource={subresource})")]
    Unknown {
        /// Who.
        user: String,
        /// What.
        verb: &'static str,
        /// Of the node.
        subresource: &'static str,
    },
}

/// Who decides.
pub enum Policy {
    /// The API server.
    Reviews(Arc<dyn Reviewer>),
    /// Nobody: there is no API server. Whoever has a certificate of the client CA may do all; tokens are worth nothing.
    Certificates,
}

/// See the module's page.
pub struct Access {
    node: String,
    authority: Arc<ClientAuthority>,
    policy: Policy,
    tokens: Cache<Option<User>>,
    grants: Cache<bool>,
}

impl Access {
    /// To that node.
    pub fn new(node: String, authority: Arc<ClientAuthority>, policy: Policy) -> Self {
        Self { node, authority, policy, tokens: Cache::new(ROOM), grants: Cache::new(ROOM) }
    }

    /// Lets a request in, or says why not. `chain` is what the client has shown in its handshake.
    pub async fn admit(
        &self,
        chain: &[CertificateDer<'_>],
        headers: &HeaderMap,
        method: &Method,
        path: &str,
    ) -> Result<User, Refusal> {
        let user = self.user(chain, headers).await?;
        let verb = verb(method);
        let Policy::Reviews(reviewer) = &self.policy else { return Ok(user) };
        let subresources = subresources(path);
        for &subresource in &subresources {
            let attributes = Attributes { verb, subresource, node: self.node.clone() };
            match self.allowed(&**reviewer, &user, attributes).await {
                Ok(true) => return Ok(user),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(user = user.name, verb, subresource, %error, "a request could not be authorized");
                    return Err(Refusal::Unknown { user: user.name, verb, subresource });
                }
            }
        }
        tracing::debug!(user = user.name, verb, path, "a request was forbidden");
        Err(Refusal::Forbidden { user: user.name, verb, subresources: subresources.join(" ") })
    }

    async fn user(&self, chain: &[CertificateDer<'_>], headers: &HeaderMap) -> Result<User, Refusal> {
        if let Some(user) = self.authority.verify(chain).and_then(User::of_certificate) {
            return Ok(user);
        }
        let (Policy::Reviews(reviewer), Some(token)) = (&self.policy, bearer(headers)) else {
            return Err(Refusal::Unauthenticated);
        };
        let (key, now) = (self.tokens.key(token.as_bytes()), Instant::now());
        if let Some(known) = self.tokens.get(&key, now) {
            return known.ok_or(Refusal::Unauthenticated);
        }
        match in_time(reviewer.token(token.to_owned())).await {
            Ok(user) => {
                self.tokens.put(key, user.clone(), now, TOKEN_HOLDS);
                user.ok_or(Refusal::Unauthenticated)
            }
            Err(error) => {
                tracing::warn!(%error, "a token could not be authenticated");
                Err(Refusal::Unauthenticated)
            }
        }
    }

    async fn allowed(&self, reviewer: &dyn Reviewer, user: &User, attributes: Attributes) -> Result<bool, ReviewError> {
        let question = serde_json::to_vec(&(user, &attributes)).map_err(|e| ReviewError(e.to_string()))?;
        let (key, now) = (self.grants.key(&question), Instant::now());
        if let Some(known) = self.grants.get(&key, now) {
            return Ok(known);
        }
        let allowed = in_time(reviewer.access(user.clone(), attributes)).await?;
        self.grants.put(key, allowed, now, if allowed { GRANT_HOLDS } else { DENIAL_HOLDS });
        Ok(allowed)
    }
}

async fn in_time<T>(question: impl Future<Output = Result<T, ReviewError>>) -> Result<T, ReviewError> {
    let late = |_| ReviewError(format!("no answer within {} s", REVIEW_TIME.as_secs()));
    tokio::time::timeout(REVIEW_TIME, question).await.map_err(late)?
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.trim().split_once(' ')?;
    let token = token.trim();
    let fine = scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && token.len() <= TOKEN_LIMIT;
    fine.then_some(token)
}

/// The API's verb for a request. HTTP's others have none, and nobody is allowed the empty one but by `*`.
fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::GET => "get",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    }
}

/// Any of which is enough: the fine-grained one (KubeletFineGrainedAuthz), and the one that was there before.
fn subresources(path: &str) -> Vec<&'static str> {
    // Taken apart as `route` does: what is authorized is what is answered.
    let first = path.split('/').find(|part| !part.is_empty()).unwrap_or_default();
    match decode(first, Plus::Itself).as_str() {
        "pods" | "runningpods" => vec!["pods", "proxy"],
        "healthz" => vec!["healthz", "proxy"],
        "configz" => vec!["configz", "proxy"],
        "stats" => vec!["stats"],
        "metrics" => vec!["metrics"],
        "logs" => vec!["log"],
        "checkpoint" => vec!["checkpoint"],
        _ => vec!["proxy"],
    }
}

#[cfg(test)]
mod tests;
