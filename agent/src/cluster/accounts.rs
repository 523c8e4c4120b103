//! Service accounts of pods: their annotations, and tokens that are bound to a pod.

use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt as _, TryFutureExt as _};
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::api::PostParams;

use super::{Cluster, Failure, answer};
use crate::image::provider::{Account, Accounts, TokenResult};
use crate::model::Subject;

impl Cluster {
    /// A token of the pod's service account, bound to the pod. For the API server itself, if no audience is named; to live an hour, if
    /// `seconds` doesn't say otherwise.
    pub(crate) async fn token(&self, subject: &Subject, audience: Option<&str>, seconds: Option<i64>) -> Result<Token, Failure> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client(), &subject.namespace);
        let seconds = seconds.unwrap_or(3600);
        let bound = BoundObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: Some(subject.pod.clone()),
            uid: Some(subject.uid.clone()),
        };
        let spec = TokenRequestSpec {
            audiences: audience.filter(|audience| !audience.is_empty()).map(|audience| vec![audience.to_owned()]),
            bound_object_ref: Some(bound),
            expiration_seconds: Some(seconds),
            ..TokenRequestSpec::default()
        };
        let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
        let (options, account) = (PostParams::default(), subject.account.as_deref().unwrap_or("default"));
        let answered: TokenRequest = answer(accounts.create_subresource("token", account, &options, &request)).await?;
        let (text, expires) = answered.status.map(|status| (status.token, status.expiration_timestamp)).unwrap_or_default();
        let text = text.ok_or_else(|| Failure { code: 0, message: "the answer has no token".into() })?;
        let seconds = answered.spec.and_then(|spec| spec.expiration_seconds).filter(|given| *given > 0).unwrap_or(seconds);
        let life = Duration::from_secs(seconds.max(0).unsigned_abs());
        let expires = expires.map(|time| time.0).or_else(|| Timestamp::now().checked_add(life).ok());
        Ok(Token { text, life, expires: expires.unwrap_or(Timestamp::MAX) })
    }
}

/// A service account's token.
#[derive(Debug)]
pub(crate) struct Token {
    /// The token itself.
    pub text: String,
    /// How long it lives from its making on: so much is right whatever this machine's clock says.
    pub life: Duration,
    /// When it ends, by the API server's clock.
    pub expires: Timestamp,
}

impl Accounts for Cluster {
    fn account<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<Account, String>> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client(), namespace);
        async move {
            let metadata = answer(accounts.get(name)).await.map_err(|failure| failure.to_string())?.metadata;
            let (uid, annotations) = (metadata.uid.unwrap_or_default(), metadata.annotations.unwrap_or_default());
            Ok(Account { uid, annotations })
        }
        .boxed()
    }

    fn token<'a>(&'a self, subject: &'a Subject, audience: &'a str, seconds: Option<i64>) -> BoxFuture<'a, TokenResult> {
        let token = self.token(subject, Some(audience), seconds);
        token.map_ok(|token| (token.text, token.expires)).map_err(|failure| failure.to_string()).boxed()
    }
}
