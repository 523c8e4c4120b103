//! `debug`: one more container in a running pod, to look around with.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::client::{Client, Lines, body, pod_name, pod_path};
use super::exec::{self, AttachArgs};
use super::{CliError, Namespace};
use crate::api::encode;

/// Debugging a pod.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nodeagent debug -it web --image busybox:1 --target app -- sh\n  nodeagent debug web --image busybox:1 -- wget -qO- 127.0.0.1:8080\n\nThe container shares the pod's network; with --target also that container's processes. It ends with the pod and is never restarted."
)]
pub struct DebugArgs {
    /// The image with the tools
    #[arg(long, value_name = "IMAGE")]
    image: String,
    /// When its image is pulled: Always, IfNotPresent or Never [default: as in a manifest]
    #[arg(long, value_name = "POLICY")]
    image_pull_policy: Option<String>,
    /// The new container's name [default: debugger- and five letters]
    #[arg(short = 'c', long, value_name = "NAME")]
    container: Option<String>,
    /// See the processes of this container
    #[arg(long, value_name = "CONTAINER")]
    target: Option<String>,
    /// Set this in its environment
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Give it standard input, and join it
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Give it a terminal
    #[arg(short = 't', long, requires = "stdin")]
    tty: bool,
    #[command(flatten)]
    namespace: Namespace,
    /// The pod
    pod: String,
    /// The command and its arguments, after `--` [default: the image's]
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl DebugArgs {
    fn patch(&self, name: &str) -> Result<Value, CliError> {
        let env: Result<Vec<Value>, CliError> = self
            .env
            .iter()
            .map(|pair| {
                let (name, value) =
                    pair.split_once('=').ok_or_else(|| CliError::Usage(format!("--env {pair}: write NAME=VALUE")))?;
                Ok(json!({ "name": name, "value": value }))
            })
            .collect();
        let mut container = json!({ "name": name, "image": self.image, "stdin": self.stdin, "tty": self.tty, "env": env? });
        if self.stdin && !self.tty {
            // What is piped into it has an end.
            container["stdinOnce"] = json!(true);
        }
        let optional = [
            ("imagePullPolicy", self.image_pull_policy.as_ref().map(|policy| json!(policy))),
            ("targetContainerName", self.target.as_ref().map(|target| json!(target))),
            ("command", (!self.command.is_empty()).then(|| json!(self.command))),
        ];
        for (field, value) in optional {
            if let Some(value) = value {
                container[field] = value;
            }
        }
        Ok(json!({ "spec": { "ephemeralContainers": [container] } }))
    }
}

/// Starts the container; with `-i`, joins it until it ends.
pub async fn run(client: &Client, args: DebugArgs) -> Result<ExitCode, CliError> {
    let pod = pod_name(&args.pod)?.to_owned();
    let name = if let Some(name) = &args.container {
        name.clone()
    } else {
        let name = format!("debugger-{}", letters()?);
        eprintln!("Defaulting debug container name to {name}.");
        name
    };
    let path = pod_path(&args.namespace.namespace, &pod, "/ephemeralcontainers");
    let patch = serde_json::to_vec(&args.patch(&name)?).unwrap_or_default();
    client.patch(&path, body(patch)).await?;
    let state = until_it_began(client, &args.namespace.namespace, &pod, &name).await?;
    if !args.stdin {
        println!("{name}");
        return Ok(ExitCode::SUCCESS);
    }
    if state["terminated"].is_object() {
        // Too quick to be joined: what it said is in its log.
        return tell_end(client, &args, &pod, &name, &state["terminated"]).await;
    }
    exec::attach(client, AttachArgs::of(args.namespace, pod, name, args.tty)).await
}

/// Five letters that make no words.
fn letters() -> Result<String, CliError> {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    Ok(crate::random::bytes::<5>()?.iter().map(|b| char::from(LETTERS[usize::from(*b) % LETTERS.len()])).collect())
}

/// Watches the pod until the container runs or has ended: its state.
async fn until_it_began(client: &Client, namespace: &str, pod: &str, name: &str) -> Result<Value, CliError> {
    let path = pod_path(namespace, "", "");
    let path = format!("{}?watch=true&fieldSelector={}", path.trim_end_matches('/'), encode(&format!("metadata.name={pod}")));
    let mut lines = Lines::new(client.stream(&path, "application/json").await?);
    let mut told = Value::Null;
    while let Some(line) = lines.next().await? {
        let event: Value = serde_json::from_slice(&line).unwrap_or_default();
        if event["type"] == "DELETED" {
            return Err(CliError::Usage(format!("pod {pod} was deleted")));
        }
        let statuses = event["object"]["status"]["ephemeralContainerStatuses"].as_array().into_iter().flatten();
        let state =
            statuses.into_iter().find(|status| status["name"] == name).map_or(Value::Null, |status| status["state"].clone());
        if state["running"].is_object() || state["terminated"].is_object() {
            return Ok(state);
        }
        let waiting = &state["waiting"];
        if waiting["message"].is_string() && *waiting != told {
            eprintln!("{}: {}", waiting["reason"].as_str().unwrap_or_default(), waiting["message"].as_str().unwrap_or_default());
            told = waiting.clone();
        }
    }
    Err(CliError::Broken { doing: "wait for the container", message: "the agent ended the stream".to_owned() })
}

async fn tell_end(client: &Client, args: &DebugArgs, pod: &str, name: &str, end: &Value) -> Result<ExitCode, CliError> {
    let path = pod_path(&args.namespace.namespace, pod, &format!("/log?container={}", encode(name)));
    let mut lines = Lines::new(client.stream(&path, "*/*").await?);
    while let Some(line) = lines.next().await? {
        println!("{}", String::from_utf8_lossy(&line));
    }
    if let Some(message) = end["message"].as_str() {
        eprintln!("{message}");
    }
    Ok(ExitCode::from(u8::try_from(end["exitCode"].as_i64().unwrap_or(1)).unwrap_or(1)))
}
