//! Who we are to a registry: imagePullSecrets, Docker's config.json, containers' auth.json, credential helpers.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use serde::Deserialize;

use super::error::{Error, Result};

/// A login. Its Debug form shows no secret.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Credential {
    /// For which registry: host, host:port, with a path or not; `*` stands for a part of the host.
    pub registry: String,
    /// The user's name.
    pub username: String,
    /// The password.
    pub password: String,
    /// An OAuth2 refresh token that stands for name and password.
    pub identity_token: Option<String>,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("registry", &self.registry).field("username", &self.username).finish_non_exhaustive()
    }
}

/// config.json, auth.json, and `.dockerconfigjson` of a Secret.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ConfigFile {
    auths: HashMap<String, AuthEntry>,
    cred_helpers: HashMap<String, String>,
    creds_store: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AuthEntry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

impl fmt::Debug for AuthEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthEntry")
    }
}

impl Credential {
    /// A name and a password.
    pub fn basic(registry: impl Into<String>, username: impl Into<String>, password: impl Into<String>) -> Self {
        Self { registry: normal(&registry.into()), username: username.into(), password: password.into(), identity_token: None }
    }

    /// The logins of a Secret's `.dockerconfigjson`, or of the older `.dockercfg`, which has no `auths` around them.
    pub fn from_docker_config(json: &[u8]) -> std::result::Result<Vec<Self>, String> {
        let value: serde_json::Value = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        let auths = value.get("auths").unwrap_or(&value);
        let entries = HashMap::<String, AuthEntry>::deserialize(auths).map_err(|error| error.to_string())?;
        logins(entries)
    }

    /// How specific this login is for a place: None if it isn't meant for it.
    fn fits(&self, host: &str, path: &str) -> Option<usize> {
        let (pattern_host, pattern_path) = self.registry.split_once('/').unwrap_or((&self.registry, ""));
        let path_fits = pattern_path.is_empty()
            || path.strip_prefix(pattern_path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        (path_fits && host_fits(pattern_host, host)).then_some(self.registry.len())
    }
}

/// Whether a pattern of matchImages is meant for an image, `host/path`: the kubelet's rule.
pub(super) fn matches(pattern: &str, image: &str) -> bool {
    let pattern = pattern.trim_start_matches("https://").trim_start_matches("http://");
    let (pattern_host, pattern_path) = pattern.split_once('/').unwrap_or((pattern, ""));
    let (host, path) = image.split_once('/').unwrap_or((image, ""));
    host_fits(pattern_host, host) && path.starts_with(pattern_path)
}

/// Part by part, as the kubelet compares: `*.example.com` isn't a.b.example.com, and ports must be equal.
fn host_fits(pattern: &str, host: &str) -> bool {
    let (pattern, pattern_port) = split_port(pattern);
    let (host, port) = split_port(host);
    let parts: Vec<&str> = pattern.split('.').collect();
    let own: Vec<&str> = host.split('.').collect();
    pattern_port == port && parts.len() == own.len() && parts.iter().zip(own).all(|(part, own)| glob(part, own))
}

fn split_port(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (host, None),
    }
}

fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => {
            let Some(rest) = text.strip_prefix(before) else { return false };
            (0..=rest.len()).filter(|at| rest.is_char_boundary(*at)).any(|at| glob(after, &rest[at..]))
        }
    }
}

/// `https://index.docker.io/v1/` is Docker's own name for docker.io.
fn normal(key: &str) -> String {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let bare = bare.trim_end_matches('/');
    let bare = bare.strip_suffix("/v1").or_else(|| bare.strip_suffix("/v2")).unwrap_or(bare);
    match bare {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".into(),
        other => other.to_owned(),
    }
}

fn logins(entries: HashMap<String, AuthEntry>) -> std::result::Result<Vec<Credential>, String> {
    let mut logins = Vec::new();
    for (key, entry) in entries {
        let (mut username, mut password) = (entry.username, entry.password);
        if !entry.auth.is_empty() {
            let decoded = base64::engine::general_purpose::STANDARD
                .decode(entry.auth.trim())
                .ok()
                .and_then(|bytes| String::from_utf8(bytes).ok())
                .ok_or_else(|| format!("the auth of {key:?} is not base64 text"))?;
            let (name, secret) = decoded.split_once(':').ok_or_else(|| format!("the auth of {key:?} is not user:password"))?;
            (username, password) = (name.to_owned(), secret.trim_end_matches('\0').to_owned());
        }
        let identity_token = (!entry.identitytoken.is_empty()).then_some(entry.identitytoken);
        if !username.is_empty() || identity_token.is_some() {
            logins.push(Credential { registry: normal(&key), username, password, identity_token });
        }
    }
    logins.sort_by(|a, b| a.registry.cmp(&b.registry));
    Ok(logins)
}

/// The logins to try at a place, the most specific first: those that came with the request, then those of the files.
pub(super) async fn candidates(given: &[Credential], files: &[PathBuf], host: &str, path: &str) -> Result<Vec<Credential>> {
    let mut found = fitting(given, host, path);
    for file in files {
        let Some(config) = read(file)? else { continue };
        let from_file = config.lookup(file, host, path).await?;
        if !from_file.is_empty() {
            found.extend(from_file);
            break;
        }
    }
    Ok(found)
}

fn fitting(logins: &[Credential], host: &str, path: &str) -> Vec<Credential> {
    let mut fitting: Vec<(usize, &Credential)> =
        logins.iter().filter_map(|login| Some((login.fits(host, path)?, login))).collect();
    fitting.sort_by_key(|(specific, _)| std::cmp::Reverse(*specific));
    fitting.into_iter().map(|(_, login)| login.clone()).collect()
}

fn read(path: &Path) -> Result<Option<ConfigFile>> {
    match std::fs::read(path) {
        Ok(bytes) => {
            let fault = |why: serde_json::Error| Error::Settings { path: path.to_owned(), why: why.to_string() };
            serde_json::from_slice(&bytes).map(Some).map_err(fault)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", path, error)),
    }
}

impl ConfigFile {
    async fn lookup(self, file: &Path, host: &str, path: &str) -> Result<Vec<Credential>> {
        let helper = self.cred_helpers.iter().find(|(registry, _)| normal(registry) == host).map(|(_, helper)| helper.clone());
        let helper = helper.or_else(|| (!self.creds_store.is_empty()).then_some(self.creds_store));
        if let Some(helper) = helper
            && let Some(login) = ask_helper(&helper, host).await?
        {
            return Ok(vec![login]);
        }
        let logins = logins(self.auths).map_err(|why| Error::Settings { path: file.to_owned(), why })?;
        Ok(fitting(&logins, host, path))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// Runs `docker-credential-NAME get`: the server on its standard input, JSON on its standard output.
async fn ask_helper(name: &str, host: &str) -> Result<Option<Credential>> {
    let program = format!("docker-credential-{name}");
    let fault = |why: String| Error::Helper { helper: program.clone(), registry: host.to_owned(), why };
    if name.contains('/') {
        return Err(fault("its name may have no slash: it is looked up in PATH".into()));
    }
    let server = if host == "docker.io" { "https://index.docker.io/v1/" } else { host };
    let mut command = tokio::process::Command::new(&program);
    command.arg("get");
    let output = match tokio::time::timeout(Duration::from_secs(30), super::program::ask(command, server.as_bytes())).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Err(fault(format!("it can't be run: {error}; install it or remove it from the configuration"))),
        Err(_) => return Err(fault("no answer in 30 seconds".into())),
    };
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() {
        // The protocol's own words for "I have none".
        if said.contains("credentials not found") {
            return Ok(None);
        }
        let errors = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(fault(format!("{}: {said} {errors}", output.status)));
    }
    let answer: HelperAnswer = serde_json::from_slice(&output.stdout).map_err(|error| fault(format!("its answer: {error}")))?;
    let is_token = answer.username == "<token>";
    Ok(Some(Credential {
        registry: host.to_owned(),
        identity_token: is_token.then(|| answer.secret.clone()),
        username: if is_token { String::new() } else { answer.username },
        password: if is_token { String::new() } else { answer.secret },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("example.com", "example.com", "a", true)]
    #[case("example.com", "example.com:443", "a", false)]
    #[case("example.com:5000", "example.com:5000", "a", true)]
    #[case("*.example.com", "a.example.com", "a", true)]
    #[case("*.example.com", "a.b.example.com", "a", false)]
    #[case("r*y.example.com", "registry.example.com", "a", true)]
    #[case("example.com/team", "example.com", "team/app", true)]
    #[case("example.com/team", "example.com", "teammate/app", false)]
    #[case("example.com/team", "example.com", "team", true)]
    #[case("https://index.docker.io/v1/", "docker.io", "library/nginx", true)]
    #[case("http://example.com/v2/", "example.com", "x", true)]
    fn fits(#[case] pattern: &str, #[case] host: &str, #[case] path: &str, #[case] want: bool) {
        let login = Credential::basic(pattern, "u", "p");
        assert_eq!(login.fits(host, path).is_some(), want);
    }

    #[test]
    fn the_most_specific_comes_first() {
        let logins = [Credential::basic("a.b", "host", "p"), Credential::basic("a.b/team", "team", "p")];
        let found = fitting(&logins, "a.b", "team/app");
        assert_eq!(found.iter().map(|login| login.username.as_str()).collect::<Vec<_>>(), ["team", "host"]);
    }

    #[rstest]
    #[case::dockerconfigjson(r#"{"auths":{"a.b":{"auth":"dXNlcjpwYTpzcw=="}}}"#)]
    #[case::dockercfg(r#"{"a.b":{"username":"user","password":"pa:ss","email":"x"}}"#)]
    fn secrets(#[case] json: &str) {
        assert_eq!(Credential::from_docker_config(json.as_bytes()).unwrap(), [Credential::basic("a.b", "user", "pa:ss")]);
    }

    #[rstest]
    #[case(r#"{"auths":{"a.b":{"auth":"%%%"}}}"#, "base64")]
    #[case(r#"{"auths":{"a.b":{"auth":"dXNlcg=="}}}"#, "user:password")]
    #[case("{", "EOF")]
    fn bad_secrets(#[case] json: &str, #[case] why: &str) {
        assert!(Credential::from_docker_config(json.as_bytes()).unwrap_err().contains(why));
    }

    #[test]
    fn debug_hides_the_secret() {
        assert!(!format!("{:?}", Credential::basic("a", "u", "hunter2")).contains("hunter2"));
    }
}
