//! `logs`: one container's or all of them, followed side by side, whole lines at a time.

use std::fmt::Write as _;
use std::io::Write;
use std::process::ExitCode;

use clap::Args;
use futures::future::try_join_all;
use serde_json::Value;

use super::client::{Client, Lines, pod_name, pod_path};
use super::{CliError, Namespace};
use crate::api::encode;

/// Printing logs.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nodeagent logs web\n  nodeagent logs web -c app -f --tail 20\n  nodeagent logs web --all-containers --prefix --since 5m\n  nodeagent logs web --previous"
)]
pub struct LogsArgs {
    /// The pod
    pod: String,
    #[command(flatten)]
    namespace: Namespace,
    /// The container [default: the pod's default or first one]
    #[arg(short = 'c', long)]
    container: Option<String>,
    /// Of all containers
    #[arg(long, conflicts_with = "container")]
    all_containers: bool,
    /// Go on until the container ends
    #[arg(short = 'f', long)]
    follow: bool,
    /// Of the container's previous life
    #[arg(short = 'p', long)]
    previous: bool,
    /// The last lines only; -1: all
    #[arg(long, value_name = "LINES", default_value_t = -1, allow_hyphen_values = true)]
    tail: i64,
    /// Nothing older, e.g. 10s, 5m, 2h30m
    #[arg(long, value_name = "DURATION")]
    since: Option<String>,
    /// Nothing older than this time, e.g. 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", conflicts_with = "since")]
    since_time: Option<String>,
    /// Begin each line with its time
    #[arg(long)]
    timestamps: bool,
    /// Begin each line with [pod/NAME/CONTAINER]
    #[arg(long)]
    prefix: bool,
    /// No more bytes than this
    #[arg(long, value_name = "BYTES")]
    limit_bytes: Option<u64>,
}

/// Prints.
pub async fn run(client: &Client, args: LogsArgs) -> Result<ExitCode, CliError> {
    let pod = pod_name(&args.pod)?;
    let containers = if args.all_containers || (args.prefix && args.container.is_none()) {
        all(&client.get(&pod_path(&args.namespace.namespace, pod, "")).await?)
    } else {
        vec![args.container.clone().unwrap_or_default()]
    };
    let query = query(&args)?;
    let one = |container: String| {
        let query = &query;
        let args = &args;
        async move {
            let container_query = if container.is_empty() { String::new() } else { format!("&container={}", encode(&container)) };
            let path = pod_path(&args.namespace.namespace, pod, "/log") + query + &container_query;
            let prefix = if args.prefix { format!("[pod/{pod}/{container}] ") } else { String::new() };
            copy(client, &path, &prefix).await
        }
    };
    if args.follow {
        try_join_all(containers.into_iter().map(one)).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let several = containers.len() > 1;
    for container in containers {
        match one(container).await {
            // Of several containers, one that hasn't started yet has nothing to say.
            Err(error @ CliError::Server { .. }) if several => eprintln!("{error}"),
            done => done?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn query(args: &LogsArgs) -> Result<String, CliError> {
    let mut query = format!("?follow={}&previous={}&timestamps={}", args.follow, args.previous, args.timestamps);
    if args.tail >= 0 {
        let _ = write!(query, "&tailLines={}", args.tail);
    }
    if let Some(since) = &args.since {
        let duration: jiff::SignedDuration =
            since.parse().map_err(|error| CliError::Usage(format!("--since {since}: {error}: write e.g. 10s, 5m, 2h30m")))?;
        let _ = write!(query, "&sinceSeconds={}", duration.as_secs().max(1));
    }
    if let Some(time) = &args.since_time {
        let _ = write!(query, "&sinceTime={}", encode(time));
    }
    if let Some(bytes) = args.limit_bytes {
        let _ = write!(query, "&limitBytes={bytes}");
    }
    Ok(query)
}

/// The names of all containers, init containers first.
fn all(pod: &Value) -> Vec<String> {
    let names = |list: &Value| {
        list.as_array().into_iter().flatten().filter_map(|c| c["name"].as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    [names(&pod["spec"]["initContainers"]), names(&pod["spec"]["containers"])].concat()
}

async fn copy(client: &Client, path: &str, prefix: &str) -> Result<(), CliError> {
    let mut lines = Lines::new(client.stream(path, "*/*").await?);
    let mut block = Vec::new();
    while let Some(line) = lines.next().await? {
        block.extend_from_slice(prefix.as_bytes());
        block.extend_from_slice(&line);
        // Whole lines, as many as have come: quick for a long log, at once for a followed one.
        if block.len() > 64 * 1024 || !lines.has_more() {
            let mut out = std::io::stdout().lock();
            out.write_all(&block)?;
            out.flush()?;
            block.clear();
        }
    }
    Ok(())
}
