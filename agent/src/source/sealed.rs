//! Manifests encrypted at rest: `NAME.yaml.age`, as `age --encrypt --recipient …` writes them, opened by the identities of one file that
//! the configuration names. The cryptography is the age crate's.

use std::ffi::OsStr;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use age::armor::ArmoredReader;

/// The largest manifest that comes out of one.
const PLAIN_LIMIT: u64 = 64 << 20;

/// The identities that open sealed manifests. Shows none.
#[derive(Default)]
pub struct Keys(Vec<age::x25519::Identity>);

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} identities", self.0.len())
    }
}

impl Keys {
    /// Reads a file as `age-keygen` writes it. It must be for its owner's eyes alone.
    pub fn read(path: &Path) -> io::Result<Self> {
        let mode = std::fs::metadata(path)?.mode();
        if mode & 0o077 != 0 {
            let message = format!("its mode is {:04o}: others may read it; chmod 0600 {}", mode & 0o7777, path.display());
            return Err(io::Error::other(message));
        }
        let text = std::fs::read_to_string(path)?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let parsed =
            lines.map(|line| line.parse().map_err(|error: &str| io::Error::other(format!("not an age identity: {error}"))));
        let keys = Self(parsed.collect::<io::Result<_>>()?);
        if keys.0.is_empty() { Err(io::Error::other("it has no AGE-SECRET-KEY line")) } else { Ok(keys) }
    }

    /// What is sealed, binary or armored.
    pub fn open(&self, sealed: &[u8]) -> Result<Vec<u8>, String> {
        if self.0.is_empty() {
            return Err("the file is encrypted, and no key is configured: set ageIdentityFile in the configuration".into());
        }
        let failed = |error: &dyn std::fmt::Display| format!("decrypt with the keys of ageIdentityFile: {error}");
        let decryptor = age::Decryptor::new_buffered(ArmoredReader::new(sealed)).map_err(|e| failed(&e))?;
        let identities = self.0.iter().map(|key| -> &dyn age::Identity { key });
        let reader = decryptor.decrypt(identities).map_err(|e| failed(&e))?;
        let mut plain = Vec::new();
        reader.take(PLAIN_LIMIT + 1).read_to_end(&mut plain).map_err(|e| failed(&e))?;
        if plain.len() as u64 > PLAIN_LIMIT {
            Err(format!("larger than {} MiB: no manifest is", PLAIN_LIMIT >> 20))
        } else {
            Ok(plain)
        }
    }
}

/// The name without `.age`, for a name that has it.
pub fn unsealed_name(name: &OsStr) -> Option<&OsStr> {
    let path = Path::new(name);
    path.extension().filter(|extension| *extension == "age").and(path.file_stem())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;

    use age::secrecy::ExposeSecret as _;

    use super::*;

    fn keys(identity: &age::x25519::Identity, mode: u32) -> io::Result<Keys> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("# created: today\n{}\n", identity.to_string().expose_secret())).unwrap();
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        Keys::read(file.path())
    }

    #[test]
    fn only_the_right_key_opens() {
        let (own, other) = (age::x25519::Identity::generate(), age::x25519::Identity::generate());
        let binary = age::encrypt(&own.to_public(), b"kind: Secret").unwrap();
        let armored = age::encrypt_and_armor(&own.to_public(), b"kind: Secret").unwrap();
        let right = keys(&own, 0o600).unwrap();
        assert_eq!(right.open(&binary).unwrap(), b"kind: Secret");
        assert_eq!(right.open(armored.as_bytes()).unwrap(), b"kind: Secret");
        assert!(keys(&other, 0o600).unwrap().open(&binary).unwrap_err().contains("ageIdentityFile"));
        assert!(Keys::default().open(&binary).unwrap_err().contains("no key is configured"));
        for end in 0..binary.len() {
            assert!(right.open(&binary[..end]).is_err());
        }
        let mut passphrase = age::Encryptor::with_user_passphrase("x".to_owned().into()).wrap_output(Vec::new()).unwrap();
        passphrase.write_all(b"x").unwrap();
        assert!(right.open(&passphrase.finish().unwrap()).is_err());
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let error = keys(&age::x25519::Identity::generate(), 0o644).unwrap_err();
        assert!(error.to_string().contains("chmod 0600"), "{error}");
    }
}
