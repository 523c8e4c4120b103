//! TLS as the kubelet's probes speak it: whoever answers is believed. A probe asks whether something works, not who it is.

use std::io;
use std::sync::{Arc, OnceLock};

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, ClientConfig};

use crate::tls::{Credulous, provider};

/// TLS over a connection, with these protocols offered.
pub async fn wrap(stream: TcpStream, host: &str, alpn: &[&[u8]]) -> io::Result<TlsStream<TcpStream>> {
    let mut config = settings().map_err(io::Error::other)?;
    if !alpn.is_empty() {
        let mut own = ClientConfig::clone(&config);
        own.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        config = Arc::new(own);
    }
    let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(bare).map_err(|error| io::Error::other(format!("tls: {host}: {error}")))?;
    let error = |error: io::Error| {
        let inner = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()).cloned();
        io::Error::new(error.kind(), Refused(inner, error.to_string()))
    };
    TlsConnector::from(config).connect(name, stream).await.map_err(error)
}

/// Made once: all probes share it.
fn settings() -> Result<Arc<ClientConfig>, rustls::Error> {
    static SETTINGS: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if let Some(settings) = SETTINGS.get() {
        return Ok(settings.clone());
    }
    let provider = provider();
    let credulous = Arc::new(Credulous::new(&provider));
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(credulous)
        .with_no_client_auth();
    // Each probe is a client of its own, as it is for the kubelet.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(SETTINGS.get_or_init(|| Arc::new(config)).clone())
}

/// Whether the other side answered the handshake with something that isn't TLS.
pub fn is_plain_text(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|e| e.downcast_ref::<Refused>());
    inner.is_some_and(|refused| refused.0 == Some(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)))
}

/// A handshake that came to nothing.
#[derive(Debug)]
struct Refused(Option<rustls::Error>, String);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "tls: {}", self.1)
    }
}

impl std::error::Error for Refused {}
