//! `delete` and `stop`.

use std::process::ExitCode;

use clap::Args;
use hyper::Method;
use serde_json::{Value, json};

use super::client::{Client, Lines, body, own_path, pod_name, pod_path};
use super::get::show;
use super::{CliError, Namespace};
use crate::api::encode;

/// Deleting.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nodeagent delete web\n  nodeagent delete pod web db --grace-period 5\n  nodeagent delete web --now"
)]
pub struct DeleteArgs {
    /// The pods, by name; a leading `pod` is allowed, as kubectl has it
    #[arg(required = true, value_name = "POD")]
    pods: Vec<String>,
    #[command(flatten)]
    namespace: Namespace,
    /// Seconds between SIGTERM and SIGKILL [default: the pod's own]
    #[arg(long, value_name = "SECONDS")]
    grace_period: Option<u32>,
    /// As --grace-period 1
    #[arg(long, conflicts_with = "grace_period")]
    now: bool,
    /// As --grace-period 0
    #[arg(long, conflicts_with_all = ["now", "grace_period"])]
    force: bool,
    /// Return at once instead of when the pods are gone
    #[arg(long)]
    no_wait: bool,
}

/// Stopping.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  nodeagent stop web\n  nodeagent start web     (undoes it)")]
pub struct StopArgs {
    /// The pods
    #[arg(required = true, value_name = "POD")]
    pods: Vec<String>,
    #[command(flatten)]
    namespace: Namespace,
}

/// Deletes.
pub async fn run(client: &Client, args: DeleteArgs) -> Result<ExitCode, CliError> {
    let grace = match (args.force, args.now) {
        (true, _) => Some(0),
        (_, true) => Some(1),
        _ => args.grace_period,
    };
    let options = json!({ "kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": grace });
    let mut gone = Vec::new();
    for name in names(&args.pods)? {
        let path = pod_path(&args.namespace.namespace, name, "");
        let before = client.get(&path).await?;
        client.send(Method::DELETE, &path, body(options.to_string())).await?;
        show(&format!("pod \"{name}\" deleted\n"))?;
        gone.push((name, before));
    }
    if !args.no_wait {
        for (name, before) in gone {
            wait(client, &args.namespace.namespace, name, &before).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Without a leading kind.
fn names(arguments: &[String]) -> Result<Vec<&str>, CliError> {
    let bare = match arguments {
        [kind, rest @ ..] if matches!(kind.as_str(), "pod" | "pods" | "po") && !rest.is_empty() => rest,
        all => all,
    };
    bare.iter().map(|argument| pod_name(argument)).collect()
}

/// Until that pod is gone, or a successor has its name.
async fn wait(client: &Client, namespace: &str, name: &str, before: &Value) -> Result<(), CliError> {
    let version = before["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    let path = format!(
        "/api/v1/namespaces/{}/pods?watch=true&resourceVersion={version}&fieldSelector={}",
        encode(namespace),
        encode(&format!("metadata.name={name}"))
    );
    let mut lines = Lines::new(client.stream(&path, "application/json").await?);
    while let Some(line) = lines.next().await? {
        let event: Value = serde_json::from_slice(&line).unwrap_or_default();
        let same = event["object"]["metadata"]["uid"] == before["metadata"]["uid"];
        match event["type"].as_str() {
            Some("ERROR") => return Err(CliError::status(&event["object"])),
            Some("DELETED") if same => return Ok(()),
            _ => {}
        }
    }
    Ok(())
}

/// Stops.
pub async fn stop(client: &Client, args: StopArgs) -> Result<ExitCode, CliError> {
    for name in names(&args.pods)? {
        client.act(Method::POST, &own_path(&args.namespace.namespace, name, "/stop")).await?;
        show(&format!("pod \"{name}\" stopped: it starts again by `nodeagent start {name}`, or when its manifest changes\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Starting what was stopped.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  nodeagent start web")]
pub struct StartArgs {
    /// The pods
    #[arg(required = true, value_name = "POD")]
    pods: Vec<String>,
    #[command(flatten)]
    namespace: Namespace,
}

/// Starts.
pub async fn start(client: &Client, args: StartArgs) -> Result<ExitCode, CliError> {
    for name in names(&args.pods)? {
        client.act(Method::POST, &own_path(&args.namespace.namespace, name, "/start")).await?;
        show(&format!("pod \"{name}\" started\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}
