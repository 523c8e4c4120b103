//! A registry as a client sees it: one session for one repository at one place, with its login, retries and bounds.
//! Written on reqwest, with oci-spec's types. oci-client reads manifests without a bound, has no retries, no mirrors' TLS settings
//! per host and no credential fallback; its transfer can't hand a broken download on to another mirror.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Client, Response, StatusCode, Url};
use serde::Deserialize;

use super::auth::{self, Credential};
use super::challenge::{self, Challenge};
use super::digest::{Digest, Hasher};
use super::error::{Error, Result};
use super::flight::Report;
use super::layer;
use super::manifest;
use super::progress::Progress;
use super::reference::Reference;
use super::registries::{Place, Rules};
use super::settings::Settings;
use super::tls;

/// Where a redirect may lead to, one after the other.
const REDIRECTS: usize = 5;
/// Longest wait that a registry may ask for before a retry.
const RETRY_AFTER_LIMIT: Duration = Duration::from_secs(30);
/// Of a token server's answer and of an error's text.
const ANSWER_LIMIT: u64 = 1 << 20;

/// All registries, and the connections to them.
#[derive(Debug)]
pub(super) struct Registries {
    settings: Settings,
    clients: Mutex<HashMap<(String, bool), Client>>,
    /// Insecure hosts that turned out to speak plain HTTP.
    plain: Mutex<HashMap<String, bool>>,
}

/// One repository at one place.
#[derive(Debug)]
pub(super) struct Session {
    registries: Arc<Registries>,
    place: Place,
    name: String,
    client: Client,
    logins: Vec<Credential>,
    /// What the next request says about us.
    access: tokio::sync::Mutex<Access>,
    report: Report,
}

#[derive(Debug, Clone, Default)]
struct Access {
    header: Option<HeaderValue>,
    /// Which login made the header.
    login: usize,
    /// Counts changes, so that of many requests that are refused at once one logs in.
    version: u64,
    /// Whether the registry has ever taken this header: then a refusal means that the token has run out.
    taken: bool,
}

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

impl Registries {
    pub(super) fn new(settings: Settings) -> Self {
        Self { settings, clients: Mutex::default(), plain: Mutex::default() }
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Sessions with all places that may have the image, in the order in which to ask. Files are read anew: an
    /// administrator's change counts from the next pull on.
    pub(super) async fn sessions(
        self: &Arc<Self>,
        reference: &Reference,
        given: &[Credential],
        report: &Report,
    ) -> Result<Vec<Session>> {
        let rules = Rules::read(&self.settings.registries_conf)?;
        let mut sessions = Vec::new();
        for mut place in rules.places(reference)? {
            let logins = auth::candidates(given, &self.settings.auth_files, &place.host, &place.path).await?;
            // As Docker and containerd do: nobody else can listen between us and this machine.
            place.insecure |= is_loopback(&place.host);
            sessions.push(Session {
                registries: self.clone(),
                client: self.client(&place)?,
                place,
                name: reference.familiar(),
                logins,
                access: tokio::sync::Mutex::default(),
                report: report.clone(),
            });
        }
        Ok(sessions)
    }

    fn client(&self, place: &Place) -> Result<Client> {
        let key = (place.host.clone(), place.insecure);
        if let Some(client) = self.clients.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(client.clone());
        }
        let tls = tls::client_config(&place.host, place.insecure, &self.settings.certs_dirs)?;
        let mut builder = Client::builder()
            .tls_backend_preconfigured(tls)
            .user_agent(concat!("nodeagent/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(10))
            .read_timeout(self.settings.limits.silence)
            .redirect(redirects(place.insecure));
        if is_loopback(&place.host) {
            builder = builder.no_proxy();
        }
        let fail = |error: reqwest::Error| Error::Network { registry: place.host.clone(), why: chain(&error) };
        let client = builder.build().map_err(fail)?;
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).insert(key, client.clone());
        Ok(client)
    }
}

/// Bounded, and never from TLS down to plain text.
fn redirects(insecure: bool) -> reqwest::redirect::Policy {
    reqwest::redirect::Policy::custom(move |attempt| {
        let downgrade =
            attempt.previous().last().is_some_and(|from| from.scheme() == "https") && attempt.url().scheme() == "http";
        if attempt.previous().len() > REDIRECTS {
            attempt.error(format!("more than {REDIRECTS} redirects"))
        } else if downgrade && !insecure {
            attempt.error("a redirect from https to http")
        } else {
            attempt.follow()
        }
    })
}

pub(super) fn is_loopback(host: &str) -> bool {
    let name = host.rsplit_once(':').filter(|(_, port)| !port.contains(']')).map_or(host, |(name, _)| name);
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || address.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

impl Session {
    /// Host and port, as in messages.
    pub(super) fn host(&self) -> &str {
        &self.place.host
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.registries.settings
    }

    /// A manifest or index by tag or digest, verified against `want` or what the registry says.
    pub(super) async fn manifest(&self, version: &str, want: Option<&Digest>) -> Result<(Vec<u8>, Digest)> {
        let what = format!("manifests/{version}");
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(manifest::ACCEPT));
        let limit = self.settings().limits.manifest;
        let (bytes, answer) = self.document(&what, &headers, limit).await?;
        let said = answer.get("docker-content-digest").and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok());
        let want: Option<Digest> = want.cloned().or(said);
        let got = match &want {
            Some(want) => {
                let mut hasher = Hasher::like(want);
                hasher.update(&bytes);
                hasher.finish()
            }
            None => Digest::of(&bytes),
        };
        if let Some(want) = &want {
            layer::check("manifest of", &self.name, want, &got)?;
        }
        Ok((bytes, got))
    }

    /// A small blob, whole.
    pub(super) async fn small_blob(&self, content: &manifest::Content, limit: u64) -> Result<Vec<u8>> {
        let what = format!("blobs/{}", content.digest);
        if content.size > limit {
            return Err(Error::TooLarge { what, size: content.size, limit });
        }
        let (bytes, _) = self.document(&what, &HeaderMap::new(), content.size).await?;
        let mut hasher = Hasher::like(&content.digest);
        hasher.update(&bytes);
        layer::check("configuration of", &self.name, &content.digest, &hasher.finish())?;
        Ok(bytes)
    }

    /// A whole answer of at most `limit` bytes. One that breaks off is asked for again.
    async fn document(&self, what: &str, headers: &HeaderMap, limit: u64) -> Result<(Vec<u8>, HeaderMap)> {
        let mut attempt = 0;
        loop {
            let answer = self.get(what, headers).await?;
            let answer_headers = answer.headers().clone();
            match read_bounded(answer, limit).await {
                Ok(Some(bytes)) => return Ok((bytes, answer_headers)),
                Ok(None) => {
                    return Err(Error::TooLarge { what: format!("{what} of {}", self.name), size: limit + 1, limit });
                }
                Err(error) => {
                    attempt += 1;
                    self.pause(attempt, what, &chain(&error), None).await?;
                }
            }
        }
    }

    /// A successful answer to GET below this repository, after as many logins and retries as it takes.
    pub(super) async fn get(&self, what: &str, headers: &HeaderMap) -> Result<Response> {
        let mut attempt = 0;
        loop {
            let access = self.access.lock().await.clone();
            let sent = self.send(what, headers, access.header.as_ref()).await;
            let answer = match sent {
                Ok(answer) => answer,
                Err(error) if error.is_redirect() => {
                    let why = format!("it redirects without end: {}", chain(&error));
                    return Err(Error::Refused { registry: self.host().into(), what: what.into(), why });
                }
                Err(error) => {
                    attempt += 1;
                    self.pause(attempt, what, &chain(&error), None).await?;
                    continue;
                }
            };
            match answer.status() {
                status if status.is_success() => {
                    self.taken(access.version).await;
                    return Ok(answer);
                }
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.log_in(answer, access).await?,
                StatusCode::NOT_FOUND => {
                    return Err(Error::NotFound { name: format!("{} ({what})", self.name), registry: self.host().into() });
                }
                status if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() => {
                    let wait = retry_after(answer.headers());
                    attempt += 1;
                    self.pause(attempt, what, &describe(answer).await, wait).await?;
                }
                _ => {
                    let why = describe(answer).await;
                    return Err(Error::Refused { registry: self.host().into(), what: what.into(), why });
                }
            }
        }
    }

    /// Waits before the next attempt, twice as long each time; the error after the last one.
    pub(super) async fn pause(&self, attempt: u32, what: &str, why: &str, asked: Option<Duration>) -> Result<()> {
        let limits = &self.settings().limits;
        if attempt >= limits.attempts {
            return Err(Error::Network { registry: self.host().into(), why: format!("{what}: {why} (after {attempt} tries)") });
        }
        let _ = self.report.send(Progress::Retrying { what: what.to_owned(), why: why.to_owned() });
        let backoff = limits.backoff * 2_u32.saturating_pow(attempt - 1).min(64);
        // Nodes that failed together shouldn't come back together.
        let jitter = backoff.mul_f64(f64::from(jiff::Timestamp::now().subsec_nanosecond().unsigned_abs() % 1000) / 4000.0);
        tokio::time::sleep(asked.unwrap_or(backoff + jitter)).await;
        Ok(())
    }

    async fn send(&self, what: &str, headers: &HeaderMap, access: Option<&HeaderValue>) -> reqwest::Result<Response> {
        let host = self.host();
        if !self.place.insecure {
            return self.send_by("https", what, headers, access).await;
        }
        let known = self.registries.plain.lock().unwrap_or_else(PoisonError::into_inner).get(host).copied();
        if let Some(plain) = known {
            return self.send_by(if plain { "http" } else { "https" }, what, headers, access).await;
        }
        let (answer, plain) = match self.send_by("https", what, headers, access).await {
            Err(error) if error.is_connect() => (self.send_by("http", what, headers, access).await?, true),
            other => (other?, false),
        };
        self.registries.plain.lock().unwrap_or_else(PoisonError::into_inner).insert(host.to_owned(), plain);
        Ok(answer)
    }

    async fn send_by(
        &self,
        scheme: &str,
        what: &str,
        headers: &HeaderMap,
        access: Option<&HeaderValue>,
    ) -> reqwest::Result<Response> {
        let host = if self.host() == "docker.io" { "registry-1.docker.io" } else { self.host() };
        let url = format!("{scheme}://{host}/v2/{}/{what}", self.place.path);
        let mut request = self.client.get(url).headers(headers.clone());
        if let Some(access) = access {
            request = request.header(AUTHORIZATION, access);
        }
        request.send().await
    }

    async fn taken(&self, version: u64) {
        let mut access = self.access.lock().await;
        access.taken |= access.version == version;
    }

    /// Answers the registry's challenge with the next login that may work.
    async fn log_in(&self, answer: Response, refused: Access) -> Result<()> {
        let mut access = self.access.lock().await;
        if access.version != refused.version {
            return Ok(());
        }
        let challenges: Vec<Challenge> = answer
            .headers()
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(challenge::parse)
            .collect();
        let base = answer.url().clone();
        let mut why = describe(answer).await;
        // A header that was refused: its login won't do, unless it was a token that has run out. With none, start.
        let first = match (&refused.header, access.taken) {
            (None, _) => 0,
            (Some(_), true) => refused.login,
            (Some(_), false) => refused.login + 1,
        };
        // Without any login, ask as anybody.
        for login in first..self.logins.len().max(1) {
            match self.authorize(&challenges, self.logins.get(login), &base).await {
                Ok(Some(header)) => {
                    *access = Access { header: Some(header), login, version: access.version + 1, taken: false };
                    return Ok(());
                }
                Ok(None) => {}
                Err(Error::Unauthorized { why: refusal, .. }) => why = refusal,
                Err(error) => return Err(error),
            }
        }
        Err(self.unauthorized(why))
    }

    fn unauthorized(&self, why: String) -> Error {
        Error::Unauthorized { name: self.name.clone(), registry: self.host().into(), why }
    }

    async fn authorize(&self, challenges: &[Challenge], login: Option<&Credential>, base: &Url) -> Result<Option<HeaderValue>> {
        for challenge in challenges {
            let header = match (challenge, login) {
                (Challenge::Bearer { realm, service, scope }, login) => {
                    let token = self.token(realm, service.as_deref(), scope.as_deref(), login, base).await?;
                    format!("Bearer {token}")
                }
                (Challenge::Basic, Some(login)) if login.identity_token.is_none() => basic(login),
                (Challenge::Basic, _) => continue,
            };
            let mut header = HeaderValue::from_str(&header).map_err(|_| self.unauthorized("its token has odd bytes".into()))?;
            header.set_sensitive(true);
            return Ok(Some(header));
        }
        Ok(None)
    }

    /// Gets a token: a GET with name and password, or OAuth2's POST with a refresh token.
    async fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        scope: Option<&str>,
        login: Option<&Credential>,
        base: &Url,
    ) -> Result<String> {
        let mut url = Url::parse(realm).map_err(|error| self.unauthorized(format!("token server {realm:?}: {error}")))?;
        if url.scheme() != "https" && base.scheme() == "https" && !self.place.insecure {
            return Err(self.unauthorized(format!("token server {realm:?} would see the login unencrypted")));
        }
        let own_scope = format!("repository:{}:pull", self.place.path);
        let scope = scope.unwrap_or(&own_scope);
        let refresh = login.and_then(|login| login.identity_token.as_deref());
        let request = if let Some(refresh) = refresh {
            let form = form(&[
                ("grant_type", "refresh_token"),
                ("refresh_token", refresh),
                ("service", service.unwrap_or_default()),
                ("scope", scope),
                ("client_id", "nodeagent"),
            ]);
            self.client.post(url).header("content-type", "application/x-www-form-urlencoded").body(form)
        } else {
            let mut query = url.query_pairs_mut();
            query.extend_pairs(service.map(|service| ("service", service))).append_pair("scope", scope);
            drop(query);
            let request = self.client.get(url);
            match login {
                Some(login) => request.header(AUTHORIZATION, basic(login)),
                None => request,
            }
        };
        let fail =
            |error: reqwest::Error| Error::Network { registry: self.host().into(), why: format!("token: {}", chain(&error)) };
        let answer = request.send().await.map_err(fail)?;
        match answer.status() {
            status if status.is_success() => {}
            status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                let why = format!("token server: {}", describe(answer).await);
                return Err(Error::Network { registry: self.host().into(), why });
            }
            _ => return Err(self.unauthorized(format!("token server: {}", describe(answer).await))),
        }
        let bytes = read_bounded(answer, ANSWER_LIMIT).await.map_err(fail)?.unwrap_or_default();
        let token: Token = serde_json::from_slice(&bytes).map_err(|error| self.unauthorized(format!("token server: {error}")))?;
        let token = if token.token.is_empty() { token.access_token } else { token.token };
        if token.is_empty() { Err(self.unauthorized("the token server gave no token".into())) } else { Ok(token) }
    }
}

/// Pairs as a form's body. The URL type does the escaping.
fn form(pairs: &[(&str, &str)]) -> String {
    let url = Url::parse_with_params("http://form/", pairs);
    url.ok().and_then(|url| url.query().map(str::to_owned)).unwrap_or_default()
}

fn basic(login: &Credential) -> String {
    use base64::Engine as _;
    let pair = format!("{}:{}", login.username, login.password);
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_LIMIT))
}

/// The body, unless it has more than `limit` bytes.
async fn read_bounded(mut answer: Response, limit: u64) -> reqwest::Result<Option<Vec<u8>>> {
    if answer.content_length().is_some_and(|length| length > limit) {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        if (bytes.len() + chunk.len()) as u64 > limit {
            return Ok(None);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Some(bytes))
}

/// Status and the registry's own message.
async fn describe(answer: Response) -> String {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<One>,
    }
    #[derive(Deserialize)]
    struct One {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let status = answer.status();
    let bytes = read_bounded(answer, 64 * 1024).await.ok().flatten().unwrap_or_default();
    match serde_json::from_slice::<Errors>(&bytes).ok().and_then(|errors| errors.errors.into_iter().next()) {
        Some(one) => format!("HTTP {status}: {} {}", one.code, one.message.chars().take(300).collect::<String>()),
        None => format!("HTTP {status}"),
    }
}

/// An error with its causes: reqwest's own text leaves them out.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
