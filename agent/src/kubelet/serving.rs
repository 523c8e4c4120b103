//! The certificate that the port shows when no cluster signs one: from files, read again when they change; or one of our own, as the
//! kubelet makes itself, which proves nothing but encrypts.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, SanType};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;

use super::authority::on_change;
use crate::tls::provider;

/// A certificate or key that can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {message}", path.display())]
pub struct ServingError {
    path: PathBuf,
    message: String,
}

/// See the module's page.
#[derive(Debug)]
pub struct Serving {
    files: Option<(PathBuf, PathBuf)>,
    current: RwLock<Arc<CertifiedKey>>,
}

impl Serving {
    /// From a certificate's file (its chain below it) and its key's.
    pub fn open(certificate: &Path, key: &Path) -> Result<Self, ServingError> {
        let current = RwLock::new(Arc::new(read(certificate, key)?));
        Ok(Self { files: Some((certificate.to_owned(), key.to_owned())), current })
    }

    /// Makes one for these names, for this life of the agent: its key is never on disk.
    pub fn self_signed(name: &str, addresses: &[IpAddr]) -> Result<Self, ServingError> {
        let failed = |message: String| ServingError { path: "the port's own certificate".into(), message };
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.subject_alt_names = [name, "localhost"]
            .into_iter()
            .filter_map(|name| Some(SanType::DnsName(name.try_into().ok()?)))
            .chain(addresses.iter().map(|ip| SanType::IpAddress(*ip)))
            .collect();
        let key = KeyPair::generate().map_err(|e| failed(e.to_string()))?;
        let signed = params.self_signed(&key).map_err(|e| failed(e.to_string()))?;
        let der = PrivateKeyDer::try_from(key.serialize_der()).map_err(|e| failed(e.to_string()))?;
        let certified =
            CertifiedKey::from_der(vec![signed.der().clone()], der, &provider()).map_err(|e| failed(e.to_string()))?;
        Ok(Self { files: None, current: RwLock::new(Arc::new(certified)) })
    }

    /// Until there is one in this file, its key below it.
    #[must_use]
    pub fn until(mut self, pair: &Path) -> Self {
        self.files = Some((pair.to_owned(), pair.to_owned()));
        self
    }

    /// Reads the files again when they change, for ever; a pair that doesn't fit (one file is written before the other) waits.
    pub async fn follow(self: Arc<Self>) {
        let Some((certificate, key)) = &self.files else { return };
        let reload = || match read(certificate, key) {
            Ok(fresh) => *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh),
            Err(_) if !certificate.exists() => {}
            Err(error) => tracing::warn!(%error, "the port's certificate stays as it was"),
        };
        if let Err(error) = on_change(certificate, reload).await {
            tracing::warn!(%error, "changes of the port's certificate go unnoticed until the next start");
        }
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

fn read(certificate: &Path, key: &Path) -> Result<CertifiedKey, ServingError> {
    let failed = |path: &Path, message: String| ServingError { path: path.to_owned(), message };
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect).map_err(|e| failed(certificate, e.to_string()))?;
    let der = PrivateKeyDer::from_pem_file(key).map_err(|e| failed(key, e.to_string()))?;
    let certified = CertifiedKey::from_der(chain, der, &provider()).map_err(|e| failed(certificate, e.to_string()))?;
    certified.keys_match().map_err(|e| failed(key, e.to_string()))?;
    Ok(certified)
}
