//! TLS to a registry: the system's roots, and what certs.d adds for one host. ring does the mathematics.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::error::{Error, Result};
use crate::tls::{Credulous, provider};

/// Client settings for `host`: `*.crt` in a directory of its name are roots, `X.cert` with `X.key` is who we are.
pub(super) fn client_config(host: &str, insecure: bool, certs_dirs: &[PathBuf]) -> Result<ClientConfig> {
    let provider = provider();
    let fail = |why: rustls::Error| Error::Network { registry: host.to_owned(), why: format!("TLS: {why}") };
    let dirs: Vec<PathBuf> = certs_dirs.iter().map(|dir| dir.join(host)).filter(|dir| dir.is_dir()).collect();
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().map_err(fail)?;
    let builder = if insecure {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Credulous::new(&provider)))
    } else {
        builder.with_root_certificates(roots(&dirs)?)
    };
    match identity(&dirs)? {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(fail),
        None => Ok(builder.with_no_client_auth()),
    }
}

fn roots(dirs: &[PathBuf]) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    // A root that can't be parsed is the system's business; the others still count.
    store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    for file in files(dirs, "crt")? {
        for certificate in certificates(&file)? {
            store.add(certificate).map_err(|error| fault(&file, error))?;
        }
    }
    Ok(store)
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn identity(dirs: &[PathBuf]) -> Result<Option<Identity>> {
    let Some(file) = files(dirs, "cert")?.into_iter().next() else { return Ok(None) };
    let key_file = file.with_extension("key");
    let key = PrivateKeyDer::from_pem_file(&key_file).map_err(|error| fault(&key_file, error))?;
    Ok(Some((certificates(&file)?, key)))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_file_iter(file).and_then(Iterator::collect).map_err(|error| fault(file, error))
}

fn files(dirs: &[PathBuf], extension: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for dir in dirs {
        let entries = std::fs::read_dir(dir).map_err(|error| Error::io("read the directory", dir, error))?;
        files.extend(
            entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|end| end == extension)),
        );
    }
    files.sort();
    Ok(files)
}

fn fault(path: &Path, why: impl ToString) -> Error {
    Error::Settings { path: path.to_owned(), why: why.to_string() }
}
