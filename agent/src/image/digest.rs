//! Content addresses: `sha256:…` and `sha512:…`, and readers that compute them while bytes pass by.
//! sha256 is ring's: it uses the processor's own instructions.

use std::fmt::{self, Write as _};
use std::io::{self, Read};
use std::str::FromStr;

use ring::digest::{Context, SHA256, SHA512};

/// A digest that was checked to be well-formed: safe as a path component.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(Box<str>);

impl Digest {
    /// `sha256` or `sha512`.
    pub fn algorithm(&self) -> &str {
        self.0.split_once(':').map_or("", |(algorithm, _)| algorithm)
    }

    /// The lower-case hexadecimal digits.
    pub fn hex(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, hex)| hex)
    }

    /// The whole text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The sha256 of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::sha256();
        hasher.update(bytes);
        hasher.finish()
    }
}

impl FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (algorithm, hex) = text.split_once(':').ok_or_else(|| format!("digest {text:?} has no algorithm, as in sha256:…"))?;
        let digits = match algorithm {
            "sha256" => 64,
            "sha512" => 128,
            other => return Err(format!("digest algorithm {other:?} is not known: sha256 and sha512 are")),
        };
        if hex.len() != digits || !hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(format!("a {algorithm} digest has {digits} lower-case hexadecimal digits"));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A digest in the making.
pub(super) struct Hasher {
    context: Context,
    algorithm: &'static str,
}

impl Hasher {
    pub(super) fn sha256() -> Self {
        Self { context: Context::new(&SHA256), algorithm: "sha256" }
    }

    /// One that can be compared with `digest`.
    pub(super) fn like(digest: &Digest) -> Self {
        match digest.algorithm() {
            "sha512" => Self { context: Context::new(&SHA512), algorithm: "sha512" },
            _ => Self::sha256(),
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
    }

    pub(super) fn finish(self) -> Digest {
        let mut text = format!("{}:", self.algorithm);
        for byte in self.context.finish().as_ref() {
            // Writing to a String can't fail.
            let _ = write!(text, "{byte:02x}");
        }
        Digest(text.into())
    }
}

/// Counts and hashes what is read through it; more than `limit` bytes are an error.
pub(super) struct HashingReader<R> {
    inner: R,
    hasher: Hasher,
    count: u64,
    limit: u64,
}

impl<R: Read> HashingReader<R> {
    pub(super) fn new(inner: R, hasher: Hasher, limit: u64) -> Self {
        Self { inner, hasher, count: 0, limit }
    }

    /// Reads what is left, so that the digest is that of everything.
    pub(super) fn drain(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        while self.read(&mut buffer)? > 0 {}
        Ok(())
    }

    /// The digest and the count of what went by.
    pub(super) fn finish(self) -> (Digest, u64) {
        (self.hasher.finish(), self.count)
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.count += read as u64;
        if self.count > self.limit {
            return Err(io::Error::other(format!("more than the {} bytes that it may have", self.limit)));
        }
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_known_bytes() {
        let empty = Digest::of(b"");
        assert_eq!(empty.as_str(), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!((empty.algorithm(), empty.hex().len()), ("sha256", 64));
    }

    #[rstest::rstest]
    #[case::no_algorithm("e3b0c4")]
    #[case::short("sha256:e3b0c4")]
    #[case::upper("sha256:E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855")]
    #[case::path("sha256:../../../../../../../../../../../../../../../../../../../../etc/passw")]
    #[case::unknown("md5:d41d8cd98f00b204e9800998ecf8427e")]
    fn refuses(#[case] text: &str) {
        assert!(text.parse::<Digest>().is_err());
    }
}
