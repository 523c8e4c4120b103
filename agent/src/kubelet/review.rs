//! What the API server is asked: whose a token is, and whether somebody may do something.

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::{Api, PostParams};

use super::user::User;

/// The API server gave no answer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("ask the API server: {0}")]
pub struct ReviewError(pub String);

/// What somebody wants to do with the node.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Attributes {
    /// `get`, `create`…
    pub verb: &'static str,
    /// Of `nodes`: `log`, `metrics`, `proxy`…
    pub subresource: &'static str,
    /// The node's name.
    pub node: String,
}

/// Answers to these questions; an API server, or a test's script.
pub trait Reviewer: Send + Sync + 'static {
    /// Whose token it is. None: nobody's.
    fn token(&self, token: String) -> BoxFuture<'_, Result<Option<User>, ReviewError>>;
    /// Whether that is allowed.
    fn access(&self, user: User, attributes: Attributes) -> BoxFuture<'_, Result<bool, ReviewError>>;
}

impl Reviewer for kube::Client {
    fn token(&self, token: String) -> BoxFuture<'_, Result<Option<User>, ReviewError>> {
        let review = TokenReview { spec: TokenReviewSpec { token, audiences: None }, ..TokenReview::default() };
        async move {
            let reviews: Api<TokenReview> = Api::all(self.clone());
            let answer = reviews.create(&PostParams::default(), &review).await.map_err(|e| ReviewError(e.to_string()))?;
            let Some(status) = answer.status else { return Ok(None) };
            match (status.authenticated, status.error.filter(|e| !e.is_empty())) {
                (Some(true), _) => Ok(status.user.and_then(User::of_review)),
                // The kubelet says 401 to both; a cause helps whoever reads the log.
                (_, Some(error)) => {
                    tracing::debug!(error, "a token was not accepted");
                    Ok(None)
                }
                _ => Ok(None),
            }
        }
        .boxed()
    }

    fn access(&self, user: User, attributes: Attributes) -> BoxFuture<'_, Result<bool, ReviewError>> {
        let resource = ResourceAttributes {
            verb: Some(attributes.verb.into()),
            version: Some("v1".into()),
            resource: Some("nodes".into()),
            subresource: Some(attributes.subresource.into()),
            name: Some(attributes.node),
            ..ResourceAttributes::default()
        };
        let spec = SubjectAccessReviewSpec {
            user: Some(user.name),
            uid: user.uid,
            groups: Some(user.groups),
            extra: Some(user.extra).filter(|e| !e.is_empty()),
            resource_attributes: Some(resource),
            ..SubjectAccessReviewSpec::default()
        };
        async move {
            let reviews: Api<SubjectAccessReview> = Api::all(self.clone());
            let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
            let answer = reviews.create(&PostParams::default(), &review).await.map_err(|e| ReviewError(e.to_string()))?;
            Ok(answer.status.is_some_and(|s| s.allowed && s.denied != Some(true)))
        }
        .boxed()
    }
}
