//! The kubelet's CredentialProviderConfig: which programs give logins for which images.
//! <https://kubernetes.io/docs/reference/config-api/kubelet-config.v1/#kubelet-config-k8s-io-v1-CredentialProviderConfig>

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::model::duration;
use crate::model::validate::names;

/// The file's versions.
const CONFIG: [&str; 3] = ["kubelet.config.k8s.io/v1", "kubelet.config.k8s.io/v1alpha1", "kubelet.config.k8s.io/v1beta1"];
/// What programs speak.
const PROTOCOLS: [&str; 3] = [V1, "credentialprovider.kubelet.k8s.io/v1alpha1", "credentialprovider.kubelet.k8s.io/v1beta1"];
const V1: &str = "credentialprovider.kubelet.k8s.io/v1";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    #[serde(default)]
    providers: Vec<Provider>,
}

/// One program.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Provider {
    /// Its file's in the folder of programs.
    pub name: String,
    /// What it speaks.
    #[serde(default)]
    pub api_version: String,
    /// The images that it is asked about.
    #[serde(default)]
    pub match_images: Vec<String>,
    /// How long an answer counts that doesn't say so.
    #[serde(default, deserialize_with = "go_duration")]
    default_cache_duration: Option<Duration>,
    /// Words of its command line.
    #[serde(default)]
    pub args: Vec<String>,
    /// Beside the agent's own environment.
    #[serde(default)]
    pub env: Vec<Variable>,
    /// It wants to know whose pod it is.
    #[serde(default)]
    pub token_attributes: Option<TokenAttributes>,
}

/// A variable.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// What a program wants to know of the pod's service account.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokenAttributes {
    /// For whom the token is.
    #[serde(default)]
    pub service_account_token_audience: String,
    #[serde(default)]
    cache_type: String,
    #[serde(default)]
    require_service_account: Option<bool>,
    /// Without them it isn't asked.
    #[serde(default)]
    pub required_service_account_annotation_keys: Vec<String>,
    /// It gets them, where there are any.
    #[serde(default)]
    pub optional_service_account_annotation_keys: Vec<String>,
}

impl Provider {
    /// How long an answer counts that doesn't say so.
    pub fn cached_for(&self) -> Duration {
        self.default_cache_duration.unwrap_or_default()
    }
}

impl TokenAttributes {
    /// Pods without a service account are none of its business.
    pub fn needs_account(&self) -> bool {
        self.require_service_account == Some(true)
    }

    /// Whether an answer counts for one token alone.
    pub fn by_token(&self) -> bool {
        self.cache_type == "Token"
    }
}

fn go_duration<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Duration>, D::Error> {
    let Some(text) = Option::<String>::deserialize(value)? else { return Ok(None) };
    let wrong = || D::Error::custom(format!("{text:?} is not a duration such as \"10m\""));
    duration::parse(&text).map(Some).ok_or_else(wrong)
}

/// Reads a file, or all files of a folder in the order of their names, as the kubelet does. An error names the file.
pub fn read(path: &Path) -> Result<Vec<Provider>, String> {
    let mut all = Vec::new();
    for file in files(path).map_err(|error| format!("{}: {error}", path.display()))? {
        let told = |why: String| format!("{}: {why}", file.display());
        let text = fs::read_to_string(&file).map_err(|error| told(error.to_string()))?;
        all.extend(parse(&text).map_err(told)?);
    }
    let mut names = BTreeSet::new();
    match all.iter().find(|provider| !names.insert(&provider.name)) {
        Some(twice) => Err(format!("{}: providers.name: Duplicate value: {:?}", path.display(), twice.name)),
        None if all.is_empty() => {
            Err(format!("{}: providers: Required value: at least 1 item in plugins is required", path.display()))
        }
        None => Ok(all),
    }
}

fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()?;
    let is_one = |path: &PathBuf| path.extension().is_some_and(|end| end == "json" || end == "yaml" || end == "yml");
    let mut files: Vec<PathBuf> = entries.into_iter().filter(|path| is_one(path) && !path.is_dir()).collect();
    files.sort();
    Ok(files)
}

/// An error is the kubelet's sentence about a field.
fn parse(text: &str) -> Result<Vec<Provider>, String> {
    let File { api_version, kind, providers } = serde_yaml::from_str(text).map_err(|error| error.to_string())?;
    if kind != "CredentialProviderConfig" || !CONFIG.contains(&api_version.as_str()) {
        return Err(format!("it is a {kind} of {api_version}: CredentialProviderConfig of one of {CONFIG:?} is wanted"));
    }
    providers.iter().try_for_each(check)?;
    Ok(providers)
}

fn check(provider: &Provider) -> Result<(), String> {
    let Provider { name, api_version, match_images, .. } = provider;
    let bad_name = match name.as_str() {
        "" => Some("must not be empty"),
        "." => Some("provider name cannot be '.'"),
        ".." => Some("provider name cannot be '..'"),
        name if name.contains('/') => Some("provider name cannot contain '/'"),
        name if name.contains(' ') => Some("provider name cannot contain spaces"),
        _ => None,
    };
    if let Some(why) = bad_name {
        return Err(format!("providers.name: Invalid value: {name:?}: {why}"));
    }
    if !PROTOCOLS.contains(&api_version.as_str()) {
        return Err(format!("providers.apiVersion: Unsupported value: {api_version:?}: supported values: {PROTOCOLS:?}"));
    }
    if match_images.is_empty() {
        return Err("providers.matchImages: Required value: at least 1 item in matchImages is required".into());
    }
    if let Some(bad) = match_images.iter().find(|pattern| pattern.is_empty() || pattern.contains(char::is_whitespace)) {
        return Err(format!("providers.matchImages: Invalid value: {bad:?}: must be HOST[:PORT][/PATH]"));
    }
    if provider.default_cache_duration.is_none() {
        return Err("providers.defaultCacheDuration: Required value".into());
    }
    match &provider.token_attributes {
        Some(_) if api_version != V1 => {
            Err(format!("providers.tokenAttributes: Forbidden: tokenAttributes is only supported for {V1} API version"))
        }
        Some(attributes) => check_token(attributes).map_err(|why| format!("providers.tokenAttributes.{why}")),
        None => Ok(()),
    }
}

fn check_token(attributes: &TokenAttributes) -> Result<(), String> {
    if attributes.service_account_token_audience.is_empty() {
        return Err("serviceAccountTokenAudience: Required value".into());
    }
    let required = &attributes.required_service_account_annotation_keys;
    let optional = &attributes.optional_service_account_annotation_keys;
    match attributes.require_service_account {
        None => return Err("requireServiceAccount: Required value".into()),
        Some(false) if !required.is_empty() => {
            let why = "requireServiceAccount cannot be false when requiredServiceAccountAnnotationKeys is set";
            return Err(format!("requiredServiceAccountAnnotationKeys: Forbidden: {why}"));
        }
        Some(_) => {}
    }
    check_keys(required).map_err(|why| format!("requiredServiceAccountAnnotationKeys: {why}"))?;
    check_keys(optional).map_err(|why| format!("optionalServiceAccountAnnotationKeys: {why}"))?;
    if let Some(both) = required.iter().find(|key| optional.contains(key)) {
        let why = "annotation keys cannot be both required and optional";
        return Err(format!("optionalServiceAccountAnnotationKeys: Invalid value: {both:?}: {why}"));
    }
    match attributes.cache_type.as_str() {
        "ServiceAccount" | "Token" => Ok(()),
        other => Err(format!("cacheType: Unsupported value: {other:?}: supported values: \"ServiceAccount\", \"Token\"")),
    }
}

fn check_keys(keys: &[String]) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for key in keys {
        if let Some(why) = names::qualified_name(&key.to_lowercase()).first() {
            return Err(format!("Invalid value: {key:?}: {why}"));
        }
        if !seen.insert(key) {
            return Err(format!("Duplicate value: {key:?}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn config(providers: &str) -> String {
        format!("apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders: [{providers}]")
    }

    fn read_one(providers: &str) -> Result<Vec<Provider>, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), config(providers)).unwrap();
        read(file.path())
    }

    const FINE: &str = "name: p, apiVersion: credentialprovider.kubelet.k8s.io/v1, matchImages: [a.b], defaultCacheDuration: 5s";
    const TOKEN: &str = "serviceAccountTokenAudience: a, cacheType: Token, requireServiceAccount: true";

    #[test]
    fn a_provider_is_read() {
        let all =
            read_one(&format!("{{{FINE}, args: [get], env: [{{name: A, value: b}}], tokenAttributes: {{{TOKEN}}}}}")).unwrap();
        assert_eq!((all[0].name.as_str(), all[0].cached_for()), ("p", Duration::from_secs(5)));
        assert_eq!((&all[0].args, all[0].env[0].value.as_str()), (&vec!["get".to_owned()], "b"));
    }

    #[test]
    fn a_folders_files_are_read_by_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let put = |file: &str, name: &str| {
            let text = config(&format!("{{{}}}", FINE.replace("name: p", &format!("name: {name}"))));
            fs::write(folder.path().join(file), text).unwrap();
        };
        put("2.yaml", "second");
        put("1.yml", "first");
        put("readme", "none");
        let names = |all: Vec<Provider>| all.into_iter().map(|provider| provider.name).collect::<Vec<_>>();
        assert_eq!(names(read(folder.path()).unwrap()), ["first", "second"]);
        put("3.json", "first");
        assert!(read(folder.path()).unwrap_err().contains("Duplicate value: \"first\""));
    }

    #[rstest]
    #[case("", "at least 1 item in plugins is required")]
    #[case(&format!("{{{FINE}, nonsense: 1}}"), "unknown field `nonsense`")]
    #[case(&format!("{{{FINE}}}, {{{FINE}}}"), "providers.name: Duplicate value: \"p\"")]
    #[case(&format!("{{{}}}", FINE.replace("name: p", "name: a/b")), "provider name cannot contain '/'")]
    #[case(&format!("{{{}}}", FINE.replace("k8s.io/v1", "k8s.io/v2")), "providers.apiVersion: Unsupported value: \"credentialprovider.kubelet.k8s.io/v2\"")]
    #[case(&format!("{{{}}}", FINE.replace("[a.b]", "[]")), "at least 1 item in matchImages is required")]
    #[case(&format!("{{{}}}", FINE.replace("[a.b]", "['a b']")), "providers.matchImages: Invalid value: \"a b\"")]
    #[case(&format!("{{{}}}", FINE.replace(", defaultCacheDuration: 5s", "")), "providers.defaultCacheDuration: Required value")]
    #[case(&format!("{{{}}}", FINE.replace("5s", "-5s")), "\"-5s\" is not a duration")]
    #[case(&format!("{{{FINE}, tokenAttributes: {{{}}}}}", TOKEN.replace("serviceAccountTokenAudience: a, ", "")), "serviceAccountTokenAudience: Required value")]
    #[case(&format!("{{{FINE}, tokenAttributes: {{{}}}}}", TOKEN.replace("cacheType: Token, ", "")), "cacheType: Unsupported value: \"\"")]
    #[case(&format!("{{{FINE}, tokenAttributes: {{{}}}}}", TOKEN.replace(", requireServiceAccount: true", "")), "requireServiceAccount: Required value")]
    #[case(&format!("{{{FINE}, tokenAttributes: {{{TOKEN}, requiredServiceAccountAnnotationKeys: [a, a]}}}}"), "requiredServiceAccountAnnotationKeys: Duplicate value: \"a\"")]
    #[case(&format!("{{{FINE}, tokenAttributes: {{{TOKEN}, optionalServiceAccountAnnotationKeys: ['a b']}}}}"), "optionalServiceAccountAnnotationKeys: Invalid value: \"a b\"")]
    #[case(&format!("{{{}, tokenAttributes: {{{TOKEN}}}}}", FINE.replace("k8s.io/v1", "k8s.io/v1beta1")), "only supported for credentialprovider.kubelet.k8s.io/v1 API")]
    fn what_is_wrong_is_told(#[case] providers: &str, #[case] why: &str) {
        let error = read_one(providers).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}
