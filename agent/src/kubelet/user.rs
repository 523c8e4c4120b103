//! Who asks: a name and groups, from a client certificate or from the API server's word about a token.

use std::collections::BTreeMap;

use k8s_openapi::api::authentication::v1::UserInfo;
use serde::Serialize;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The group of all whose identity is known.
const AUTHENTICATED: &str = "system:authenticated";

/// Who asks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct User {
    /// Never empty.
    pub name: String,
    /// Of a ServiceAccount, its object's.
    pub uid: Option<String>,
    /// With `system:authenticated`.
    pub groups: Vec<String>,
    /// What else the authenticator knows.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// The subject of a certificate that is known to be good: its common name is the user's, its organizations are the groups.
    /// A certificate without a common name is nobody's.
    pub fn of_certificate(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().find_map(|n| n.as_str().ok()).filter(|n| !n.is_empty())?.to_owned();
        let groups = subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
        Some(Self { name, groups, ..Self::default() }.authenticated())
    }

    /// From the API server.
    pub fn of_review(user: UserInfo) -> Option<Self> {
        let name = user.username.filter(|n| !n.is_empty())?;
        let (uid, groups, extra) = (user.uid, user.groups.unwrap_or_default(), user.extra.unwrap_or_default());
        Some(Self { name, uid, groups, extra }.authenticated())
    }

    fn authenticated(mut self) -> Self {
        if !self.groups.iter().any(|g| g == AUTHENTICATED) {
            self.groups.push(AUTHENTICATED.to_owned());
        }
        self
    }
}
