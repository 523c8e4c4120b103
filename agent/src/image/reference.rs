//! Image names. A short name means Docker Hub, as in Docker and Kubernetes: `nginx` is docker.io/library/nginx:latest.
//! registries.conf's `unqualified-search-registries` is not consulted on purpose: which registry answers to a short name first
//! would decide whose program runs.

use std::fmt;
use std::str::FromStr;

use super::digest::Digest;
use super::error::Error;

const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_NAMESPACE: &str = "library/";
const DEFAULT_TAG: &str = "latest";
/// As the distribution specification and every registry have it.
const NAME_LIMIT: usize = 255;
const TAG_LIMIT: usize = 128;

/// A name that was parsed and completed. Displays as the full name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Parses and completes a name as a pod spec or a user writes it.
    pub fn parse(name: &str) -> Result<Self, Error> {
        parse(name).map_err(|why| Error::InvalidName { name: name.chars().take(2 * NAME_LIMIT).collect(), why })
    }

    /// The registry: host and port.
    pub fn registry(&self) -> &str {
        &self.domain
    }

    /// The path at the registry, without tag or digest.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Registry and path.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The tag: `latest` where the name had neither tag nor digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, which decides over the tag where both are given.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What to ask a registry for: the digest, or else the tag.
    pub fn version(&self) -> &str {
        self.digest.as_ref().map(Digest::as_str).or(self.tag.as_deref()).unwrap_or(DEFAULT_TAG)
    }

    /// The same repository at a digest: `registry/path@digest`.
    pub fn at(&self, digest: &Digest) -> String {
        format!("{}/{}@{digest}", self.domain, self.path)
    }

    /// As people write it: without docker.io and library.
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        match full.strip_prefix("docker.io/") {
            Some(rest) => rest.strip_prefix(DEFAULT_NAMESPACE).filter(|name| !name.contains('/')).unwrap_or(rest).to_owned(),
            None => full,
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self, Error> {
        Self::parse(name)
    }
}

fn parse(name: &str) -> Result<Reference, String> {
    if name.is_empty() {
        return Err("it is empty".into());
    }
    if name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return Err("64 hexadecimal digits are an image's id, not a name".into());
    }
    let (rest, digest) = match name.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
        None => (name, None),
    };
    // A colon after the last slash starts the tag; one before it belongs to the registry's port.
    let (repository, tag) = match rest.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, Some(check_tag(tag)?)),
        _ => (rest, None),
    };
    let (domain, path) = split_domain(repository);
    check_domain(&domain)?;
    check_path(&path)?;
    if domain.len() + 1 + path.len() > NAME_LIMIT {
        return Err(format!("registry and path together have more than {NAME_LIMIT} characters"));
    }
    let tag = tag.or_else(|| digest.is_none().then_some(DEFAULT_TAG)).map(str::to_owned);
    Ok(Reference { domain, path, tag, digest })
}

/// The first component is a registry if it looks like a host; otherwise all of it is a path at Docker Hub.
fn split_domain(repository: &str) -> (String, String) {
    let (domain, path) = match repository.split_once('/') {
        Some((first, rest)) if looks_like_host(first) => (first, rest),
        _ => (DEFAULT_REGISTRY, repository),
    };
    let domain = if domain == "index.docker.io" { DEFAULT_REGISTRY } else { domain };
    if domain == DEFAULT_REGISTRY && !path.contains('/') {
        (domain.into(), format!("{DEFAULT_NAMESPACE}{path}"))
    } else {
        (domain.into(), path.into())
    }
}

fn looks_like_host(component: &str) -> bool {
    component == "localhost" || component.contains(['.', ':']) || component.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn check_domain(domain: &str) -> Result<(), String> {
    let (host, port) = match domain.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (domain, None),
    };
    if let Some(port) = port
        && port.parse::<u16>().is_err()
    {
        return Err(format!("the registry's port {port:?} is not a number from 0 to 65535"));
    }
    if let Some(address) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return address.parse::<std::net::Ipv6Addr>().map(|_| ()).map_err(|_| format!("{address:?} is not an IPv6 address"));
    }
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if host.split('.').all(label) { Ok(()) } else { Err(format!("{host:?} is not a registry's host name")) }
}

fn check_path(path: &str) -> Result<(), String> {
    path.split('/').try_for_each(|component| {
        if component.is_empty() {
            return Err("it has an empty path component: too many slashes, or nothing between them".into());
        }
        if component.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(format!("{component:?} has upper-case letters: repository names are lower case"));
        }
        if is_path_component(component) {
            return Ok(());
        }
        Err(format!("{component:?} may have a-z and 0-9, and between them single `.` or `_`, `__`, or any number of `-`"))
    })
}

fn is_path_component(component: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut rest = component.as_bytes();
    loop {
        let letters = rest.iter().take_while(|byte| word(**byte)).count();
        if letters == 0 {
            return false;
        }
        rest = &rest[letters..];
        if rest.is_empty() {
            return true;
        }
        let separators = rest.iter().take_while(|byte| !word(**byte)).count();
        let (separator, tail) = rest.split_at(separators);
        if !matches!(separator, b"." | b"_" | b"__") && !separator.iter().all(|byte| *byte == b'-') {
            return false;
        }
        rest = tail;
    }
}

fn check_tag(tag: &str) -> Result<&str, String> {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let good = tag.bytes().next().is_some_and(word) && tag.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-'));
    if good && tag.len() <= TAG_LIMIT {
        Ok(tag)
    } else {
        Err(format!("tag {tag:?} must be 1 to {TAG_LIMIT} letters, digits, `_`, `.` or `-`, and not start with `.` or `-`"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[rstest]
    #[case("nginx", "docker.io/library/nginx:latest", "nginx:latest")]
    #[case("nginx:1.27", "docker.io/library/nginx:1.27", "nginx:1.27")]
    #[case("team/app", "docker.io/team/app:latest", "team/app:latest")]
    #[case("docker.io/nginx", "docker.io/library/nginx:latest", "nginx:latest")]
    #[case("index.docker.io/nginx", "docker.io/library/nginx:latest", "nginx:latest")]
    #[case("docker.io/library/nginx", "docker.io/library/nginx:latest", "nginx:latest")]
    #[case("docker.io/library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest")]
    #[case("localhost/app", "localhost/app:latest", "localhost/app:latest")]
    #[case("localhost:5000/app:v1", "localhost:5000/app:v1", "localhost:5000/app:v1")]
    #[case("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10")]
    #[case("[::1]:5000/app", "[::1]:5000/app:latest", "[::1]:5000/app:latest")]
    #[case("Uppercase/app", "Uppercase/app:latest", "Uppercase/app:latest")]
    #[case("a__b/c--d.e_f", "docker.io/a__b/c--d.e_f:latest", "a__b/c--d.e_f:latest")]
    fn completes(#[case] name: &str, #[case] full: &str, #[case] familiar: &str) {
        let reference = Reference::parse(name).unwrap();
        assert_eq!((reference.to_string().as_str(), reference.familiar().as_str()), (full, familiar));
        assert_eq!(Reference::parse(full).unwrap(), reference, "a full name is its own full name");
    }

    #[test]
    fn digests() {
        let only = Reference::parse(&format!("nginx@{D}")).unwrap();
        assert_eq!((only.to_string(), only.tag(), only.version()), (format!("docker.io/library/nginx@{D}"), None, D));
        let both = Reference::parse(&format!("nginx:1@{D}")).unwrap();
        assert_eq!((both.to_string(), both.tag(), both.version()), (format!("docker.io/library/nginx:1@{D}"), Some("1"), D));
    }

    #[rstest]
    #[case("", "empty")]
    #[case("Nginx", "lower case")]
    #[case("a/B", "lower case")]
    #[case("nginx:", "tag")]
    #[case("nginx:-1", "tag")]
    #[case("nginx:a b", "tag")]
    #[case("a//b", "empty path component")]
    #[case("/a", "empty path component")]
    #[case("a/", "empty path component")]
    #[case("a/../b", "may have")]
    #[case("a/.b", "may have")]
    #[case("a___b", "may have")]
    #[case("a..b/c", "host name")]
    #[case("-a.b/c", "host name")]
    #[case("localhost:99999/a", "port")]
    #[case("[::zz]/a", "IPv6")]
    #[case("nginx@sha256:12", "64 lower-case")]
    #[case("nginx@md5:12", "not known")]
    #[case("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "id")]
    #[case("nginx\n", "may have")]
    #[case("nginx latest", "may have")]
    #[case("http://registry/app", "")]
    #[case("docker.io", "may have")]
    fn refuses(#[case] name: &str, #[case] why: &str) {
        if name == "docker.io" {
            // It is a fine name of a repository at Docker Hub.
            assert_eq!(Reference::parse(name).unwrap().to_string(), "docker.io/library/docker.io:latest");
            return;
        }
        let error = Reference::parse(name).unwrap_err();
        assert_eq!(error.reason(), "InvalidImageName");
        assert!(error.to_string().contains(why), "{error}");
    }

    #[test]
    fn long_names_are_refused() {
        assert!(Reference::parse(&"a".repeat(300)).unwrap_err().to_string().contains("255"));
        assert!(Reference::parse(&format!("a:{}", "t".repeat(129))).is_err());
    }

    proptest::proptest! {
        #[test]
        fn never_panics_and_is_stable(name in "\\PC{0,80}") {
            if let Ok(reference) = Reference::parse(&name) {
                assert_eq!(Reference::parse(&reference.to_string()).unwrap(), reference);
            }
        }
        #[test]
        fn plausible_names_are_stable(name in "([a-zA-Z0-9.:\\-]{1,12}/)?[a-z0-9._/\\-]{1,20}(:[a-zA-Z0-9._\\-]{1,8})?") {
            if let Ok(reference) = Reference::parse(&name) {
                assert_eq!(Reference::parse(&reference.to_string()).unwrap(), reference);
                assert_eq!(Reference::parse(&reference.familiar()).unwrap(), reference);
            }
        }
    }
}
