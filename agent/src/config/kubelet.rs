//! The kubelet API's port: the kubelet's settings under the kubelet's names. What the kubelet lets one open wide (anonymous clients, a
//! port without TLS) can be written only as it is: shut.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::Deserialize;

use super::check::Checker;
use super::file::Declared;

/// The kubelet's port.
const PORT: u16 = 10250;

/// Where and with what the kubelet API is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kubelet {
    /// Where it listens. Port 0: one that the kernel picks.
    pub address: SocketAddr,
    /// The CA of clients' certificates. Without a cluster and without this, nothing is served.
    pub client_ca: Option<PathBuf>,
    /// Certificate and key of the port; unset: the cluster's, or one that the agent makes.
    pub certificate: Option<(PathBuf, PathBuf)>,
}

/// `authentication`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AuthenticationSection {
    pub(super) anonymous: Switch,
    pub(super) webhook: Switch,
    pub(super) x509: X509Section,
}

/// `authentication.x509`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct X509Section {
    #[serde(rename = "clientCAFile")]
    pub(super) client_ca_file: Option<PathBuf>,
}

/// What can be on or off.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Switch {
    pub(super) enabled: Option<bool>,
}

/// `authorization`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AuthorizationSection {
    pub(super) mode: Option<String>,
}

pub(super) fn kubelet(c: &mut Checker<'_>, declared: &Declared) -> Kubelet {
    let text = declared.address.as_deref().unwrap_or("0.0.0.0");
    let ip = text.parse::<IpAddr>().unwrap_or_else(|_| {
        c.file("address", format!("Invalid value: {text:?}: must be an IP address, such as \"0.0.0.0\" or \"::\""));
        [0, 0, 0, 0].into()
    });
    if declared.authentication.anonymous.enabled == Some(true) {
        c.file("authentication.anonymous.enabled", "Unsupported value: true: nobody is served without an identity".into());
    }
    if declared.authentication.webhook.enabled == Some(false) {
        let message =
            "Unsupported value: false: in a cluster the API server is always asked about tokens, without one nobody can be";
        c.file("authentication.webhook.enabled", message.into());
    }
    if let Some(mode) = declared.authorization.mode.as_deref().filter(|mode| *mode != "Webhook") {
        let message = format!("Unsupported value: {mode:?}: supported values: \"Webhook\"");
        c.file("authorization.mode", message);
    }
    if let Some(port) = declared.read_only_port.filter(|port| *port != 0) {
        c.file("readOnlyPort", format!("Unsupported value: {port}: there is no port without TLS and authentication; leave it 0"));
    }
    let certificate = c.path("tlsCertFile", declared.tls_cert_file.as_ref());
    let key = c.path("tlsPrivateKeyFile", declared.tls_private_key_file.as_ref());
    if certificate.is_some() != key.is_some() {
        let (there, lacking) =
            if key.is_none() { ("tlsCertFile", "tlsPrivateKeyFile") } else { ("tlsPrivateKeyFile", "tlsCertFile") };
        c.file(
            there,
            format!("{lacking} is missing: a certificate is of no use without its key, nor a key without its certificate"),
        );
    }
    Kubelet {
        address: SocketAddr::new(ip, declared.port.unwrap_or(PORT)),
        client_ca: c.path("authentication.x509.clientCAFile", declared.authentication.x509.client_ca_file.as_ref()),
        certificate: certificate.zip(key),
    }
}
