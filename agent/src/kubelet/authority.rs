//! The CA of clients' certificates, from a file that may change at any time (certificates are renewed, mounts are swapped).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio_rustls::rustls::client::danger::HandshakeSignatureValid;
use tokio_rustls::rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::{self, DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};

use crate::api::descriptor::Descriptor;
use crate::tls::provider;

/// A file of certificates that can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {message}", path.display())]
pub struct AuthorityError {
    path: PathBuf,
    message: String,
}

/// See the module's page.
#[derive(Debug)]
pub struct ClientAuthority {
    path: PathBuf,
    current: RwLock<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    pem: Vec<u8>,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl ClientAuthority {
    /// Reads it.
    pub fn open(path: &Path) -> Result<Self, AuthorityError> {
        let failed = |message| AuthorityError { path: path.to_owned(), message };
        let pem = fs::read(path).map_err(|e| failed(e.to_string()))?;
        let verifier = verifier(&pem).map_err(failed)?;
        Ok(Self { path: path.to_owned(), current: RwLock::new(Loaded { pem, verifier }) })
    }

    /// The client's own certificate, if it is one of this CA's, for clients, and of today.
    pub fn verify<'a>(&self, chain: &'a [CertificateDer<'_>]) -> Option<&'a [u8]> {
        let (own, between) = chain.split_first()?;
        let verifier = self.current.read().unwrap_or_else(PoisonError::into_inner).verifier.clone();
        match verifier.verify_client_cert(own, between, UnixTime::now()) {
            Ok(_) => Some(own),
            Err(error) => {
                tracing::debug!(%error, "a client's certificate was not accepted");
                None
            }
        }
    }

    /// Reads it again when it changes, for ever. What can't be used leaves the last good one in force.
    pub async fn follow(self: Arc<Self>) {
        let watched = self.path.clone();
        let result = on_change(&watched, || match self.reload() {
            Ok(false) => {}
            Ok(true) => tracing::info!(file = %self.path.display(), "the CA of clients was read again"),
            Err(error) => tracing::warn!(%error, "the CA of clients stays as it was"),
        });
        if let Err(error) = result.await {
            tracing::warn!(file = %watched.display(), %error, "changes of the CA of clients go unnoticed until the next start");
        }
    }

    fn reload(&self) -> Result<bool, AuthorityError> {
        let failed = |message| AuthorityError { path: self.path.clone(), message };
        let pem = fs::read(&self.path).map_err(|e| failed(e.to_string()))?;
        if self.current.read().unwrap_or_else(PoisonError::into_inner).pem == pem {
            return Ok(false);
        }
        let verifier = verifier(&pem).map_err(failed)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Loaded { pem, verifier };
        Ok(true)
    }
}

fn verifier(pem: &[u8]) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots.add(certificate.map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
    }
    if roots.is_empty() {
        return Err("no certificate is in it".into());
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build().map_err(|e| e.to_string())
}

/// Calls back after each change of a file, also when it is replaced, or a link on the way to it is (a mounted ConfigMap).
pub async fn on_change(path: &Path, mut changed: impl FnMut()) -> io::Result<()> {
    let queue = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let events = WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::CREATE | WatchFlags::DELETE;
    inotify::add_watch(&queue, path.parent().unwrap_or(Path::new("/")), events)?;
    let queue = Descriptor::new(queue)?;
    let mut buffer = [0; 4096];
    loop {
        // Between the first look and the watch something may have changed; an event about a neighbour costs one read.
        changed();
        queue.read(&mut buffer).await?;
    }
}

/// The handshake asks for a certificate and takes any that the client has the key of: who it is, is decided a request, by
/// [`ClientAuthority::verify`], so that a renewed CA counts at once and a client with a token isn't sent away for its certificate.
#[derive(Debug)]
pub struct AnyClient(WebPkiSupportedAlgorithms);

impl AnyClient {
    /// With our cryptography.
    pub fn new() -> Self {
        Self(provider().signature_verification_algorithms)
    }
}

impl Default for AnyClient {
    fn default() -> Self {
        Self::new()
    }
}

impl ClientCertVerifier for AnyClient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
