//! One question to a credential provider: a CredentialProviderRequest on its standard input, the answer on its standard output.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::process::Command;

use super::super::program;
use super::config::Provider;

/// The kubelet's.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a program is told of who asks.
#[derive(Default)]
pub(super) struct Identity {
    /// Of the pod's service account.
    pub token: Option<String>,
    /// Of the pod's service account.
    pub annotations: BTreeMap<String, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Question<'a> {
    api_version: &'a str,
    kind: &'a str,
    image: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_account_token: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    service_account_annotations: &'a BTreeMap<String, String>,
}

/// A CredentialProviderResponse. It has no `Debug`: passwords are in it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Answer {
    api_version: String,
    kind: String,
    /// What the answer counts for.
    #[serde(default)]
    pub cache_key_type: String,
    /// For how long; none: the configuration says it.
    #[serde(default)]
    pub cache_duration: Option<String>,
    /// Logins by what they are for.
    #[serde(default)]
    pub auth: Option<BTreeMap<String, Login>>,
}

#[derive(Deserialize)]
pub(super) struct Login {
    #[serde(default)]
    pub username: String,
    #[serde(default)]
    pub password: String,
}

/// Asks about an image (`host/path`, without tag). No error has anything of an answer's logins in it.
pub(super) async fn ask(program: &Path, provider: &Provider, image: &str, identity: &Identity) -> Result<Answer, String> {
    let question = Question {
        api_version: &provider.api_version,
        kind: "CredentialProviderRequest",
        image,
        service_account_token: identity.token.as_deref(),
        service_account_annotations: &identity.annotations,
    };
    let question = serde_json::to_vec(&question).map_err(|error| error.to_string())?;
    let mut command = Command::new(program);
    command.args(&provider.args).envs(provider.env.iter().map(|variable| (&variable.name, &variable.value)));
    let output = tokio::time::timeout(PATIENCE, program::ask(command, &question)).await;
    let output = output.map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))?.map_err(|error| error.to_string())?;
    if !output.status.success() {
        let said: String = String::from_utf8_lossy(&output.stderr).trim().chars().take(1000).collect();
        return Err(format!("{}: {said}", output.status));
    }
    // serde's words would show what it stumbled over.
    let answer: Answer =
        serde_json::from_slice(&output.stdout).map_err(|_| "its answer is no CredentialProviderResponse".to_owned())?;
    if answer.kind != "CredentialProviderResponse" || answer.api_version != provider.api_version {
        let Answer { kind, api_version, .. } = answer;
        return Err(format!("it answers with a {kind} of {api_version}, and {} was asked for", provider.api_version));
    }
    Ok(answer)
}
