//! A certificate and its key on the disk, as the kubelet keeps them: `NAME-TIME.pem`, certificate first, and `NAME-current.pem`, a link
//! to the newest.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::durable;

/// See the module's page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    folder: PathBuf,
    name: String,
}

impl Pair {
    /// One of that name: `kubelet-client`, `kubelet-server`.
    pub fn new(folder: &Path, name: &str) -> Self {
        Self { folder: folder.to_owned(), name: name.to_owned() }
    }

    /// The pair that a link `NAME-current.pem` is of; none: the path isn't one.
    pub fn of_link(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?.strip_suffix("-current.pem")?;
        Some(Self::new(path.parent()?, name))
    }

    /// The link, which is both the certificate's file and the key's.
    pub fn current(&self) -> PathBuf {
        self.folder.join(format!("{}-current.pem", self.name))
    }

    /// Where the key of a request is that isn't answered yet.
    pub fn pending_key(&self) -> PathBuf {
        self.folder.join(format!("{}.key.tmp", self.name))
    }

    /// From when to when the certificate is valid; none: there is none that can be read.
    pub fn life(&self) -> Option<Life> {
        Life::of_pem(&fs::read(self.current()).ok()?)
    }

    /// From now on it is these. The ones before stay beside them, once.
    pub fn put(&self, certificate: &str, key: &str) -> io::Result<()> {
        durable::private_folder(&self.folder)?;
        let now = Timestamp::now().strftime("%Y-%m-%d-%H-%M-%S");
        let fresh = self.folder.join(format!("{}-{now}.pem", self.name));
        let link = self.current();
        let before = fs::read_link(&link).ok();
        durable::write(&fresh, format!("{}\n{}", certificate.trim_end(), key).as_bytes())?;
        let new_link = self.folder.join(format!("{}-current.pem.new", self.name));
        let _ = fs::remove_file(&new_link);
        symlink(fresh.file_name().unwrap_or_default(), &new_link)?;
        fs::rename(&new_link, &link)?;
        durable::sync_folder(&self.folder)?;
        self.remove_all_but([before.as_deref(), Some(&fresh)]);
        Ok(())
    }

    fn remove_all_but(&self, kept: [Option<&Path>; 2]) {
        let kept: Vec<_> = kept.into_iter().flatten().filter_map(Path::file_name).collect();
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let dated = format!("{}-2", self.name);
            let pem = Path::new(&name).extension().is_some_and(|extension| extension == "pem");
            let ours = pem && name.to_str().is_some_and(|name| name.starts_with(&dated));
            if ours && !kept.contains(&name.as_os_str()) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// From when to when a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    from: Timestamp,
    until: Timestamp,
}

impl Life {
    /// Of the first certificate of a PEM text.
    pub fn of_pem(pem: &[u8]) -> Option<Self> {
        let der = CertificateDer::pem_slice_iter(pem).next()?.ok()?;
        let (_, certificate) = X509Certificate::from_der(&der).ok()?;
        let validity = certificate.validity();
        let time = |time: x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp()).ok();
        Some(Self { from: time(validity.not_before)?, until: time(validity.not_after)? })
    }

    /// Its last moment.
    pub fn until(self) -> Timestamp {
        self.until
    }

    /// Whether nobody takes it any more.
    pub fn is_over(self, now: Timestamp) -> bool {
        now >= self.until
    }

    /// When the next one is asked for: after 70 to 90 % of its life, by a number from 0 to 1, so that nodes that were made together don't all
    /// ask together. As client-go has it.
    pub fn renew_at(self, random: f64) -> Timestamp {
        let whole = self.until.duration_since(self.from).as_secs_f64();
        let part = jiff::SignedDuration::try_from_secs_f64((whole * (0.7 + 0.2 * random)).round()).unwrap_or_default();
        self.from.checked_add(part).unwrap_or(self.until)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn certificate(days: i64) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = params.not_before + std::time::Duration::from_secs(86400 * days as u64);
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn the_link_is_of_the_newest_and_the_one_before_stays() {
        let folder = tempfile::tempdir().unwrap();
        let pair = Pair::new(folder.path(), "kubelet-client");
        assert_eq!(pair.life(), None);
        fs::write(folder.path().join("kubelet-client-2001-01-01-00-00-00.pem"), "long ago").unwrap();
        fs::write(folder.path().join("ca.crt"), "another's").unwrap();
        let (pem, key) = certificate(100);
        pair.put(&pem, &key).unwrap();
        let life = pair.life().unwrap();
        assert_eq!(life.until().to_string(), "2026-04-11T00:00:00Z");
        let text = fs::read_to_string(pair.current()).unwrap();
        assert!(text.contains(&key) && text.starts_with("-----BEGIN CERTIFICATE-----"));
        assert_eq!(fs::metadata(pair.current()).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3, "the link, its file, another's");
        assert_eq!(Pair::of_link(&pair.current()), Some(pair));
        assert_eq!(Pair::of_link(Path::new("/etc/kubernetes/client.crt")), None);
    }

    #[test]
    fn it_is_renewed_between_70_and_90_percent_of_its_life() {
        let (pem, _) = certificate(100);
        let life = Life::of_pem(pem.as_bytes()).unwrap();
        assert_eq!(life.renew_at(0.0).to_string(), "2026-03-12T00:00:00Z");
        assert_eq!(life.renew_at(1.0).to_string(), "2026-04-01T00:00:00Z");
        assert!(!life.is_over(life.renew_at(1.0)) && life.is_over(life.until()));
        assert_eq!(Life::of_pem(b"no certificate"), None);
    }
}
