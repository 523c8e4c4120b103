//! Certificates of the loopback port: our own CA, kept 0600, and what it signed. `kubeconfig` writes a client's.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::{Timestamp, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
    date_time_ymd,
};
use serde_json::{Value, json};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;

use crate::durable;
use crate::tls::provider;

/// The CA's life in years; what it signs lives no longer, as nothing renews a kubeconfig.
const YEARS: i32 = 10;

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file.
    #[error("{}: {source}", path.display())]
    File {
        /// Its path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Making a certificate, or reading one.
    #[error("certificates in {}: {message}; remove the folder to have new ones made", folder.display())]
    Certificate {
        /// Where they are.
        folder: PathBuf,
        /// What is wrong.
        message: String,
    },
}

/// The CA of this agent.
struct Authority<'a> {
    folder: &'a Path,
    pem: String,
    key: KeyPair,
}

impl<'a> Authority<'a> {
    /// Reads it, or makes it the first time.
    fn open(folder: &'a Path) -> Result<Self, TlsError> {
        let (pem_path, key_path) = (folder.join("ca.pem"), folder.join("ca.key"));
        match (fs::read_to_string(&pem_path), fs::read_to_string(&key_path)) {
            (Ok(pem), Ok(key)) => {
                let key = KeyPair::from_pem(&key).map_err(|error| wrong(folder, &error))?;
                Ok(Self { folder, pem, key })
            }
            (Err(error), _) | (_, Err(error)) if error.kind() != io::ErrorKind::NotFound => {
                Err(TlsError::File { path: pem_path, source: error })
            }
            _ => Self::create(folder, &pem_path, &key_path),
        }
    }

    fn create(folder: &'a Path, pem_path: &Path, key_path: &Path) -> Result<Self, TlsError> {
        let key = KeyPair::generate().map_err(|error| wrong(folder, &error))?;
        let pem = authority_params().self_signed(&key).map_err(|error| wrong(folder, &error))?.pem();
        let made = |path: &Path, source| TlsError::File { path: path.to_owned(), source };
        fs::create_dir_all(folder).map_err(|source| made(folder, source))?;
        // The certificate comes last: with it both are there.
        durable::write(key_path, key.serialize_pem().as_bytes()).map_err(|source| made(key_path, source))?;
        durable::write(pem_path, pem.as_bytes()).map_err(|source| made(pem_path, source))?;
        Ok(Self { folder, pem, key })
    }

    /// Signs a new key: certificate and key as PEM.
    fn issue(&self, mut params: CertificateParams, usage: ExtendedKeyUsagePurpose) -> Result<(String, String), TlsError> {
        params.extended_key_usages = vec![usage];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().map_err(|error| wrong(self.folder, &error))?;
        let authority = authority_params();
        let issuer = Issuer::from_params(&authority, &self.key);
        let signed = params.signed_by(&key, &issuer).map_err(|error| wrong(self.folder, &error))?;
        Ok((signed.pem(), key.serialize_pem()))
    }
}

/// What serves the port: only clients with a certificate of our CA come in.
pub fn acceptor(folder: &Path) -> Result<TlsAcceptor, TlsError> {
    let authority = Authority::open(folder)?;
    let mut params = named("nodeagent", None);
    params.subject_alt_names = ["localhost", "nodeagent"]
        .into_iter()
        .filter_map(|name| Some(SanType::DnsName(name.try_into().ok()?)))
        .chain([SanType::IpAddress(Ipv4Addr::LOCALHOST.into()), SanType::IpAddress(Ipv6Addr::LOCALHOST.into())])
        .collect();
    // A new one for each life of the agent: its key is never on disk.
    let (certificate, key) = authority.issue(params, ExtendedKeyUsagePurpose::ServerAuth)?;
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(|error| wrong(folder, &error))?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| wrong(folder, &error))?;
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(authority.pem.as_bytes()).map_err(|error| wrong(folder, &error))?;
    roots.add(root).map_err(|error| wrong(folder, &error))?;

    let provider = provider();
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    // Whoever has none is let in as far as a 401 that says so; a wrong one ends the handshake.
    let clients = clients.allow_unauthenticated().build().map_err(|error| wrong(folder, &error))?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(folder, &error))?
        .with_client_cert_verifier(clients)
        .with_single_cert(vec![certificate], key)
        .map_err(|error| wrong(folder, &error))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Whether the client of a connection has shown a certificate of ours: others are never accepted.
pub fn is_known<S>(stream: &TlsStream<S>) -> bool {
    stream.get_ref().1.peer_certificates().is_some_and(|chain| !chain.is_empty())
}

/// A kubeconfig with a new client certificate in it: as good as a password.
pub fn kubeconfig(folder: &Path, server: &str) -> Result<Value, TlsError> {
    let authority = Authority::open(folder)?;
    let params = named("nodeagent-admin", Some("system:masters"));
    let (certificate, key) = authority.issue(params, ExtendedKeyUsagePurpose::ClientAuth)?;
    let cluster = json!({ "server": server, "certificate-authority-data": STANDARD.encode(&authority.pem) });
    let user = json!({ "client-certificate-data": STANDARD.encode(certificate), "client-key-data": STANDARD.encode(key) });
    let name = "nodeagent";
    Ok(json!({
        "apiVersion": "v1", "kind": "Config", "preferences": {}, "current-context": name,
        "clusters": [{ "name": name, "cluster": cluster }],
        "users": [{ "name": name, "user": user }],
        "contexts": [{ "name": name, "context": { "cluster": name, "user": name } }],
    }))
}

fn authority_params() -> CertificateParams {
    let mut params = named("nodeagent-ca", None);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params
}

fn named(common_name: &str, organization: Option<&str>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    if let Some(organization) = organization {
        params.distinguished_name.push(DnType::OrganizationName, organization);
    }
    let year = i32::from(Timestamp::now().to_zoned(TimeZone::UTC).year());
    params.not_before = date_time_ymd(year - 1, 1, 1);
    params.not_after = date_time_ymd(year + YEARS, 1, 1);
    params
}

fn wrong(folder: &Path, error: &impl ToString) -> TlsError {
    TlsError::Certificate { folder: folder.to_owned(), message: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_authority_is_made_once_and_kept_private() {
        let folder = tempfile::tempdir().unwrap();
        let first = kubeconfig(folder.path(), "https://127.0.0.1:6443").unwrap();
        let second = kubeconfig(folder.path(), "https://127.0.0.1:6443").unwrap();
        let authority = |config: &Value| config["clusters"][0]["cluster"]["certificate-authority-data"].clone();
        assert_eq!(authority(&first), authority(&second));
        assert_ne!(first["users"], second["users"]);
        for name in ["ca.key", "ca.pem"] {
            let mode = fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        acceptor(folder.path()).unwrap();
    }

    #[test]
    fn a_broken_authority_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("ca.pem"), "x").unwrap();
        fs::write(folder.path().join("ca.key"), "x").unwrap();
        let error = kubeconfig(folder.path(), "").unwrap_err().to_string();
        assert!(error.contains("remove the folder"), "{error}");
    }
}
