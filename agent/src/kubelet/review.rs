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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    /// An API server that answers each review by `answer`, and says what it was asked in `status.reason`.
    fn client(answer: fn(&Value) -> Value) -> kube::Client {
        let service = tower::service_fn(move |request: hyper::Request<Body>| async move {
            let path = request.uri().path().to_owned();
            let body = request.into_body().collect_bytes().await.unwrap_or_default();
            let mut review: Value = serde_json::from_slice(&body).unwrap_or_default();
            review["path"] = path.into();
            review["status"] = answer(&review);
            Ok::<_, Infallible>(hyper::Response::new(Body::from(review.to_string().into_bytes())))
        });
        kube::Client::new(service, "default")
    }

    #[tokio::test]
    async fn a_token_is_asked_about_as_kubernetes_wants_it() {
        let client = client(|review| {
            assert_eq!(review["path"], "/apis/authentication.k8s.io/v1/tokenreviews");
            assert_eq!((&review["kind"], &review["spec"]), (&"TokenReview".into(), &json!({ "token": "t0" })));
            json!({ "authenticated": true, "user": { "username": "ann", "groups": ["dev"], "uid": "7", "extra": { "a": ["b"] } } })
        });
        let user = client.token("t0".into()).await.unwrap().unwrap();
        assert_eq!((user.name.as_str(), user.uid.as_deref()), ("ann", Some("7")));
        assert_eq!(user.groups, ["dev", "system:authenticated"]);
        assert_eq!(user.extra["a"], ["b"]);
    }

    #[tokio::test]
    async fn a_token_of_nobody_is_nobodys() {
        for status in [
            (|_: &Value| json!({ "error": "expired" })) as fn(&Value) -> Value,
            |_| json!({}),
            |_| json!({ "authenticated": true, "user": { "username": "" } }),
        ] {
            assert_eq!(client(status).token("t".into()).await.unwrap(), None);
        }
    }

    #[tokio::test]
    async fn access_is_asked_for_by_node_and_subresource() {
        let client = client(|review| {
            assert_eq!(review["path"], "/apis/authorization.k8s.io/v1/subjectaccessreviews");
            let spec = &review["spec"];
            assert_eq!((&spec["user"], &spec["groups"]), (&"ann".into(), &json!(["dev"])));
            let wanted = json!({ "verb": "get", "version": "v1", "resource": "nodes", "subresource": "metrics", "name": "n1" });
            json!({ "allowed": spec["resourceAttributes"] == wanted })
        });
        let user = User { name: "ann".into(), groups: vec!["dev".into()], ..User::default() };
        let attributes = Attributes { verb: "get", subresource: "metrics", node: "n1".into() };
        assert!(client.access(user.clone(), attributes.clone()).await.unwrap());
        assert!(!client.access(user, Attributes { verb: "create", ..attributes }).await.unwrap());
    }
}
