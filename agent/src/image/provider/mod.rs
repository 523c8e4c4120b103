//! Image credential providers: programs of others that give logins for images, by the kubelet's protocol.
//! <https://kubernetes.io/docs/tasks/administer-cluster/kubelet-credential-provider/>
//!
//! They are asked only when an image is pulled. What they can't give is no error: the image may be public, and the registry's own words
//! tell when it isn't.

mod cache;
mod config;
mod exec;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures::future::BoxFuture;
use jiff::Timestamp;
use ring::digest::{SHA256, digest};

use self::cache::{Cache, Scope, Who};
use self::config::{Provider, TokenAttributes};
use self::exec::Identity;
use super::auth::{self, Credential};
use super::reference::Reference;
use crate::model::{Subject, duration};
use crate::turns::Turns;

/// A service account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Its own.
    pub uid: String,
    /// All of them.
    pub annotations: BTreeMap<String, String>,
}

/// A token and when it expires.
pub type TokenResult = Result<(String, Timestamp), String>;

/// Who knows service accounts: a cluster.
pub trait Accounts: Send + Sync {
    /// A service account.
    fn account<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<Account, String>>;
    /// A token for this audience that is bound to the pod, and when it expires; it is to live so many seconds, or as usual.
    fn token<'a>(&'a self, subject: &'a Subject, audience: &'a str, seconds: Option<i64>) -> BoxFuture<'a, TokenResult>;
}

/// All of a node.
pub struct Providers {
    programs: Vec<Program>,
    accounts: Option<Arc<dyn Accounts>>,
}

struct Program {
    provider: Provider,
    path: PathBuf,
    cache: Mutex<Cache>,
    /// The same question is asked once.
    turns: Turns<(String, Who)>,
}

impl Providers {
    /// From a CredentialProviderConfig, or a folder of such; every program must be in `folder`.
    pub fn open(config: &Path, folder: &Path, accounts: Option<Arc<dyn Accounts>>) -> Result<Self, String> {
        let mut programs = Vec::new();
        for provider in config::read(config)? {
            let path = folder.join(&provider.name);
            if rustix::fs::access(&path, rustix::fs::Access::EXEC_OK).is_err() || !path.is_file() {
                let (config, name) = (config.display(), &provider.name);
                return Err(format!("{config}: providers.name: Invalid value: {name:?}: {} is no program", path.display()));
            }
            programs.push(Program { provider, path, cache: Mutex::default(), turns: Turns::default() });
        }
        Ok(Self { programs, accounts })
    }

    /// The logins for an image; `subject`: for whose pod.
    pub async fn logins(&self, reference: &Reference, subject: Option<&Subject>) -> Vec<Credential> {
        let image = reference.repository();
        let mut logins = Vec::new();
        for program in &self.programs {
            if !program.provider.match_images.iter().any(|pattern| auth::matches(pattern, &image)) {
                continue;
            }
            match program.logins(&image, subject, self.accounts.as_deref()).await {
                Ok(found) => logins.extend(found),
                Err(why) => {
                    tracing::warn!(
                        image,
                        provider = program.provider.name,
                        why,
                        "a credential provider gave no logins for an image"
                    );
                }
            }
        }
        logins
    }
}

impl fmt::Debug for Providers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.programs.iter().map(|program| &program.provider.name)).finish()
    }
}

impl Program {
    async fn logins(
        &self,
        image: &str,
        subject: Option<&Subject>,
        accounts: Option<&dyn Accounts>,
    ) -> Result<Vec<Credential>, String> {
        let Some((who, identity)) = self.identify(subject, accounts).await? else { return Ok(Vec::new()) };
        let _turn = self.turns.take((image.to_owned(), who.clone())).await;
        if let Some(known) = lock(&self.cache).find(image, &who, Instant::now()) {
            return Ok(known);
        }
        let answer = exec::ask(&self.path, &self.provider, image, &identity).await?;
        let auth = answer.auth.unwrap_or_default();
        let by_token = self.provider.token_attributes.as_ref().is_some_and(TokenAttributes::by_token);
        if let Some(token) = identity.token.as_ref().filter(|_| !by_token)
            && auth.values().any(|login| login.password == **token)
        {
            let why = "which is not allowed when service account cache type is not set to 'Token'";
            return Err(format!("credential provider plugin returned the service account token as the password {why}"));
        }
        let wrong = || format!("credential provider plugin did not return a valid cacheKeyType: {}", answer.cache_key_type);
        let scope = Scope::named(&answer.cache_key_type, image).ok_or_else(wrong)?;
        let long = match &answer.cache_duration {
            None => self.provider.cached_for(),
            Some(text) => duration::parse(text).ok_or_else(|| format!("its cacheDuration {text:?} is no duration"))?,
        };
        let logins = auth.into_iter().map(|(place, login)| Credential::basic(place, login.username, login.password));
        let logins: Vec<Credential> = logins.collect();
        lock(&self.cache).keep(scope, who, logins.clone(), Instant::now(), long);
        Ok(logins)
    }

    /// Who asks, and what the program is told of that; none: it isn't to be asked.
    async fn identify(
        &self,
        subject: Option<&Subject>,
        accounts: Option<&dyn Accounts>,
    ) -> Result<Option<(Who, Identity)>, String> {
        let Some(attributes) = &self.provider.token_attributes else { return Ok(Some(Default::default())) };
        let known = subject.and_then(|subject| Some((subject, subject.account.as_ref()?, accounts?)));
        let Some((subject, account, accounts)) = known else {
            return Ok((!attributes.needs_account()).then(Default::default));
        };
        let found = accounts.account(&subject.namespace, account).await;
        let Account { uid, annotations: all } = found.map_err(|why| format!("failed to get service account: {why}"))?;
        let required = &attributes.required_service_account_annotation_keys;
        if required.iter().any(|key| !all.contains_key(key)) {
            return Ok(None);
        }
        let wanted = required.iter().chain(&attributes.optional_service_account_annotation_keys);
        let annotations: BTreeMap<_, _> = wanted.filter_map(|key| Some((key.clone(), all.get(key)?.clone()))).collect();
        let token = accounts.token(subject, &attributes.service_account_token_audience, None).await;
        let (token, _) = token.map_err(|why| format!("failed to get service account token: {why}"))?;
        let mut who = Who { account: Some((subject.namespace.clone(), account.clone(), uid, annotations.clone())), token: None };
        if attributes.by_token() {
            let hash = digest(&SHA256, token.as_bytes()).as_ref().try_into().unwrap_or_default();
            who.token = Some((subject.uid.clone(), hash));
        }
        Ok(Some((who, Identity { token: Some(token), annotations })))
    }
}

fn lock<T>(what: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use futures::FutureExt as _;

    use super::*;

    const VERSION: &str = "credentialprovider.kubelet.k8s.io/v1";

    /// A program that counts its calls, and answers with what it was asked.
    fn program(folder: &Path, scope: &str) {
        let script = format!(
            "#!/bin/sh\nq=$(cat)\necho \"$q\" >> {0}/asked\n[ -n \"$BROKEN\" ] && {{ echo out of order >&2; exit 3; }}\n\
             echo '{{\"apiVersion\":\"{VERSION}\",\"kind\":\"CredentialProviderResponse\",\"cacheKeyType\":\"{scope}\",\"auth\":{{\"a.b\":{{\"username\":\"'$1'\",\"password\":\"p\"}}}}}}'\n",
            folder.display()
        );
        let path = folder.join("give");
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn providers(folder: &Path, more: &str, accounts: Option<Arc<dyn Accounts>>) -> Providers {
        let text = format!(
            "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n\
             - {{name: give, apiVersion: {VERSION}, matchImages: ['*.b'], defaultCacheDuration: 10m, args: [me]{more}}}\n"
        );
        let config = folder.join("config.yaml");
        std::fs::write(&config, text).unwrap();
        Providers::open(&config, folder, accounts).unwrap()
    }

    fn asked(folder: &Path) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(folder.join("asked")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn image(name: &str) -> Reference {
        Reference::parse(name).unwrap()
    }

    #[tokio::test]
    async fn it_is_asked_once_for_what_it_matches() {
        let folder = tempfile::tempdir().unwrap();
        program(folder.path(), "Registry");
        let providers = providers(folder.path(), "", None);
        assert_eq!(providers.logins(&image("c.d/app:1"), None).await, []);
        for name in ["a.b/team/app:1", "a.b/other@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"] {
            assert_eq!(providers.logins(&image(name), None).await, [Credential::basic("a.b", "me", "p")]);
        }
        let questions = asked(folder.path());
        assert_eq!(questions.len(), 1);
        assert_eq!(
            (&questions[0]["image"], &questions[0]["kind"]),
            (&"a.b/team/app".into(), &"CredentialProviderRequest".into())
        );
    }

    #[tokio::test]
    async fn one_that_fails_gives_none_and_is_asked_again() {
        let folder = tempfile::tempdir().unwrap();
        program(folder.path(), "Global");
        let providers = providers(folder.path(), ", env: [{name: BROKEN, value: 'yes'}]", None);
        for _ in 0..2 {
            assert_eq!(providers.logins(&image("a.b/app"), None).await, []);
        }
        assert_eq!(asked(folder.path()).len(), 2);
    }

    struct Cluster;

    impl Accounts for Cluster {
        fn account<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<Account, String>> {
            let annotations = [("role".into(), "reader".into()), ("secret".into(), "x".into())].into();
            async { Ok(Account { uid: "u1".into(), annotations }) }.boxed()
        }
        fn token<'a>(&'a self, subject: &'a Subject, audience: &'a str, _: Option<i64>) -> BoxFuture<'a, TokenResult> {
            async move { Ok((format!("{}-for-{audience}", subject.pod), Timestamp::MAX)) }.boxed()
        }
    }

    #[tokio::test]
    async fn it_is_told_whose_pod_it_is_and_pods_of_one_account_share_an_answer() {
        let folder = tempfile::tempdir().unwrap();
        program(folder.path(), "Registry");
        let attributes = ", tokenAttributes: {serviceAccountTokenAudience: aud, cacheType: ServiceAccount, requireServiceAccount: true, requiredServiceAccountAnnotationKeys: [role]}";
        let providers = providers(folder.path(), attributes, Some(Arc::new(Cluster)));
        assert_eq!(providers.logins(&image("a.b/app"), None).await, [], "it needs an account");
        for pod in ["one", "two"] {
            let subject = Subject { namespace: "ns".into(), pod: pod.into(), uid: pod.into(), account: Some("robot".into()) };
            assert_eq!(providers.logins(&image("a.b/app"), Some(&subject)).await.len(), 1);
        }
        let questions = asked(folder.path());
        assert_eq!(questions.len(), 1);
        assert_eq!(questions[0]["serviceAccountToken"], "one-for-aud");
        assert_eq!(questions[0]["serviceAccountAnnotations"], serde_json::json!({"role": "reader"}));
    }

    #[test]
    fn a_program_that_is_not_there_is_told() {
        let folder = tempfile::tempdir().unwrap();
        program(folder.path(), "Image");
        providers(folder.path(), "", None);
        std::fs::rename(folder.path().join("give"), folder.path().join("other")).unwrap();
        let error = Providers::open(&folder.path().join("config.yaml"), folder.path(), None).unwrap_err();
        assert!(error.contains("providers.name: Invalid value: \"give\""), "{error}");
    }
}
