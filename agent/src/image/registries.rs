//! containers-registries.conf, version 2: which places serve an image. Pure but for reading the files.
//! `unqualified-search-registries` and short-name aliases are not used: a short name is Docker Hub's (see `reference`).

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::error::{Error, Result};
use super::reference::Reference;

/// The rules of all files together.
#[derive(Debug, Default)]
pub(super) struct Rules {
    rules: Vec<(Rule, PathBuf)>,
}

/// One place to ask for an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Host and port.
    pub host: String,
    /// The repository there.
    pub path: String,
    /// Neither certificates nor TLS are insisted on.
    pub insecure: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Document {
    #[serde(default)]
    registry: Vec<Rule>,
    /// Version 1's table.
    registries: Option<toml::Value>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Rule {
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror: Vec<Mirror>,
    #[serde(default)]
    mirror_by_digest_only: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Mirror {
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    pull_from_mirror: When,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum When {
    #[default]
    All,
    DigestOnly,
    TagOnly,
    /// Written as an empty string, which means all.
    #[serde(rename = "")]
    Unset,
}

impl Rules {
    /// Reads the files in order; a later rule for the same prefix replaces an earlier one.
    pub(super) fn read(paths: &[PathBuf]) -> Result<Self> {
        let mut rules = Self::default();
        for path in paths {
            if path.is_dir() {
                for file in conf_files(path)? {
                    rules.read_file(&file)?;
                }
            } else {
                rules.read_file(path)?;
            }
        }
        Ok(rules)
    }

    fn read_file(&mut self, path: &Path) -> Result<()> {
        match std::fs::read_to_string(path) {
            Ok(text) => self.add(&text, path),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::io("read", path, error)),
        }
    }

    fn add(&mut self, text: &str, path: &Path) -> Result<()> {
        let fault = |why: String| Error::Settings { path: path.to_owned(), why };
        let document: Document = toml::from_str(text).map_err(|error| fault(error.to_string()))?;
        if document.registries.is_some() {
            return Err(fault("[registries] is version 1 of this format: write [[registry]] tables (version 2)".into()));
        }
        for mut rule in document.registry {
            rule.check().map_err(fault)?;
            self.rules.retain(|(other, _)| other.prefix != rule.prefix);
            self.rules.push((rule, path.to_owned()));
        }
        Ok(())
    }

    /// The places for an image in the order in which to ask them: mirrors, then the registry itself.
    pub(super) fn places(&self, reference: &Reference) -> Result<Vec<Place>> {
        let name = reference.repository();
        let best = self.rules.iter().filter_map(|(rule, path)| Some((rule.matches(&name)?, rule, path)));
        let Some((matched, rule, path)) = best.max_by_key(|(_, rule, _)| rule.prefix.len()) else {
            return Ok(vec![place(&name, false)]);
        };
        if rule.blocked {
            let rule = format!("{} (prefix {:?})", path.display(), rule.prefix);
            return Err(Error::Blocked { name: reference.familiar(), rule });
        }
        let rest = &name[matched..];
        let wanted = |mirror: &&Mirror| match mirror.pull_from_mirror {
            When::DigestOnly => reference.digest().is_some(),
            When::TagOnly => reference.digest().is_none(),
            When::All | When::Unset => !rule.mirror_by_digest_only || reference.digest().is_some(),
        };
        let mirrors = rule.mirror.iter().filter(wanted);
        let mut places: Vec<Place> =
            mirrors.map(|mirror| place(&format!("{}{rest}", mirror.location), mirror.insecure)).collect();
        let own = if rule.location.is_empty() { name.clone() } else { format!("{}{rest}", rule.location) };
        places.push(place(&own, rule.insecure));
        Ok(places)
    }
}

impl Rule {
    fn check(&mut self) -> std::result::Result<(), String> {
        let trim = |text: &str| text.trim_end_matches('/').to_owned();
        (self.prefix, self.location) = (trim(&self.prefix), trim(&self.location));
        if self.prefix.is_empty() {
            self.prefix.clone_from(&self.location);
        }
        if self.prefix.is_empty() {
            return Err("a [[registry]] needs a prefix or a location".into());
        }
        if self.prefix.contains('*') && (!self.prefix.starts_with("*.") || self.prefix[1..].contains('*')) {
            return Err(format!("prefix {:?}: a wildcard stands only at the start, as in *.example.com", self.prefix));
        }
        for mirror in &mut self.mirror {
            mirror.location = trim(&mirror.location);
            if mirror.location.is_empty() {
                return Err(format!("a mirror of {:?} has no location", self.prefix));
            }
            if mirror.location.contains("://") {
                return Err(format!("location {:?} has a scheme: write host[:port][/path]", mirror.location));
            }
        }
        if self.location.contains("://") {
            return Err(format!("location {:?} has a scheme: write host[:port][/path]", self.location));
        }
        Ok(())
    }

    /// How much of the name the prefix covers.
    fn matches(&self, name: &str) -> Option<usize> {
        let end = match self.prefix.strip_prefix('*') {
            // `.example.com` must end the host, and something must stand before it.
            Some(suffix) => {
                let host_end = name.find('/').unwrap_or(name.len());
                let (suffix_host, suffix_path) = suffix.find('/').map_or((suffix, ""), |slash| suffix.split_at(slash));
                let host = &name[..host_end];
                if !host.ends_with(suffix_host) || host.len() == suffix_host.len() || !name[host_end..].starts_with(suffix_path) {
                    return None;
                }
                host_end + suffix_path.len()
            }
            None if name.starts_with(&self.prefix) => self.prefix.len(),
            None => return None,
        };
        matches!(name.as_bytes().get(end), None | Some(b'/')).then_some(end)
    }
}

fn place(name: &str, insecure: bool) -> Place {
    let (host, path) = name.split_once('/').unwrap_or((name, ""));
    Place { host: host.to_owned(), path: path.to_owned(), insecure }
}

fn conf_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).map_err(|error| Error::io("read the directory", dir, error))?;
    let mut files: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|end| end == "conf")).collect();
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const CONF: &str = r#"
        unqualified-search-registries = ["quay.io"]
        [[registry]]
        location = "docker.io"
        [[registry.mirror]]
        location = "mirror:5000"
        insecure = true
        [[registry.mirror]]
        location = "cache.example/hub"
        pull-from-mirror = "digest-only"
        [[registry]]
        prefix = "docker.io/secret"
        blocked = true
        [[registry]]
        prefix = "*.corp.example"
        location = "proxy.corp/all"
        [[registry]]
        prefix = "quay.io/team"
        location = "internal:443/quay-team"
        insecure = true
        [[registry]]
        prefix = "ghcr.io"
        mirror-by-digest-only = true
        [[registry.mirror]]
        location = "ghcr-mirror"
        [[registry]]
        prefix = "*.plain.example"
        insecure = true
    "#;
    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn rules(text: &str) -> Result<Rules> {
        let mut rules = Rules::default();
        rules.add(text, Path::new("test.conf"))?;
        Ok(rules)
    }

    #[rstest]
    #[case::mirror("nginx", &["mirror:5000/library/nginx!", "docker.io/library/nginx"])]
    #[case::digest_mirror("nginx@DIGEST", &["mirror:5000/library/nginx!", "cache.example/hub/library/nginx", "docker.io/library/nginx"])]
    #[case::wildcard("a.b.corp.example/x/y", &["proxy.corp/all/x/y"])]
    #[case::wildcard_needs_a_subdomain("corp.example/x", &["corp.example/x"])]
    #[case::wildcard_without_location("a.plain.example/x", &["a.plain.example/x!"])]
    #[case::rewrite("quay.io/team/app", &["internal:443/quay-team/app!"])]
    #[case::a_component_not_a_string("quay.io/teammate/app", &["quay.io/teammate/app"])]
    #[case::by_digest_only_tag("ghcr.io/a/b", &["ghcr.io/a/b"])]
    #[case::by_digest_only_digest("ghcr.io/a/b@DIGEST", &["ghcr-mirror/a/b", "ghcr.io/a/b"])]
    #[case::no_rule("registry.k8s.io/pause", &["registry.k8s.io/pause"])]
    fn places(#[case] name: &str, #[case] want: &[&str]) {
        let reference = Reference::parse(&name.replace("DIGEST", D)).unwrap();
        let places = rules(CONF).unwrap().places(&reference).unwrap();
        let got: Vec<String> =
            places.iter().map(|p| format!("{}/{}{}", p.host, p.path, if p.insecure { "!" } else { "" })).collect();
        assert_eq!(got, want);
    }

    #[test]
    fn the_longest_prefix_blocks() {
        let error = rules(CONF).unwrap().places(&Reference::parse("secret/app").unwrap()).unwrap_err();
        assert!(error.to_string().contains("docker.io/secret"), "{error}");
        assert_eq!(error.reason(), "ErrImagePull");
    }

    #[test]
    fn a_later_rule_replaces() {
        let mut rules = rules(CONF).unwrap();
        rules.add("[[registry]]\nprefix = 'docker.io'\nlocation = 'other'", Path::new("z.conf")).unwrap();
        let places = rules.places(&Reference::parse("nginx").unwrap()).unwrap();
        assert_eq!(places, [place("other/library/nginx", false)]);
    }

    #[rstest]
    #[case("[registries.search]\nregistries = ['a']", "version 1")]
    #[case("[[registry]]\ninsecure = true", "prefix or a location")]
    #[case("[[registry]]\nprefix = 'a.*.b'", "wildcard")]
    #[case("[[registry]]\nlocation = 'http://a'", "scheme")]
    #[case("[[registry]]\nlocation = 'a'\n[[registry.mirror]]\nlocation = ''", "no location")]
    #[case("[[registry]]\nlocation = 'a'\n[[registry.mirror]]\nlocation = 'b'\npull-from-mirror = 'x'", "line 5")]
    #[case("[[registry", "line 1")]
    fn refuses(#[case] text: &str, #[case] why: &str) {
        let error = rules(text).unwrap_err().to_string();
        assert!(error.contains(why) && error.starts_with("test.conf: "), "{error}");
    }
}
