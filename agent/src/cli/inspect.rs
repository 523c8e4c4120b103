//! `inspect` and `explain`: what Kubernetes has no words for.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::Value;

use super::client::{Client, own_path, pod_name, pretty};
use super::get::show;
use super::{CliError, Namespace};
use crate::api::human;
use crate::model::text;
use crate::pod::node::{Explanation, InspectedContainer, Inspection};

/// Looking into a pod.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  nodeagent inspect web\n  nodeagent inspect web -o json | jq '.containers[].processes'")]
pub struct InspectArgs {
    /// The pod
    pod: String,
    #[command(flatten)]
    namespace: Namespace,
    /// json or yaml instead of text
    #[arg(short = 'o', long)]
    output: Option<Format>,
}

/// Explaining a start.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  nodeagent explain web")]
pub struct ExplainArgs {
    /// The pod
    pod: String,
    #[command(flatten)]
    namespace: Namespace,
    /// json or yaml instead of text
    #[arg(short = 'o', long)]
    output: Option<Format>,
}

/// Instead of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Json,
    Yaml,
}

/// Looks into a pod.
pub async fn run(client: &Client, args: InspectArgs) -> Result<ExitCode, CliError> {
    let object = client.get(&own_path(&args.namespace.namespace, pod_name(&args.pod)?, "/inspect")).await?;
    print(args.output, object, inspection)
}

/// Explains a start.
pub async fn explain(client: &Client, args: ExplainArgs) -> Result<ExitCode, CliError> {
    let object = client.get(&own_path(&args.namespace.namespace, pod_name(&args.pod)?, "/explain")).await?;
    print(args.output, object, explanation)
}

/// An answer as it is wanted: as data, or as text for people.
pub(super) fn print<T: serde::de::DeserializeOwned>(
    format: Option<Format>,
    object: Value,
    text: fn(&T) -> String,
) -> Result<ExitCode, CliError> {
    let read = |error: serde_json::Error| CliError::Broken { doing: "read the agent's answer", message: error.to_string() };
    show(&match format {
        Some(Format::Json) => pretty(&object) + "\n",
        Some(Format::Yaml) => text::write(&object),
        None => text(&serde_json::from_value(object).map_err(read)?),
    })?;
    Ok(ExitCode::SUCCESS)
}

fn inspection(it: &Inspection) -> String {
    let mut out = String::new();
    line(&mut out, 0, "UID", &it.uid);
    line(&mut out, 0, "IPs", &or_none(it.ips.join(", ")));
    line(&mut out, 0, "Holder", &format!("PID {}, {} of memory", it.holder.pid, human::size(it.holder.pss)));
    line(&mut out, 0, "Namespaces", &namespaces(&it.namespaces));
    line(&mut out, 0, "Cgroups", &paths(&it.cgroups));
    for container in &it.containers {
        one(&mut out, container);
    }
    out
}

fn one(out: &mut String, container: &InspectedContainer) {
    let _ = writeln!(out, "\nContainer {} ({}, attempt {})", container.name, container.state, container.attempt);
    line(out, 2, "ID", &container.id);
    line(out, 2, "Namespaces", &namespaces(&container.namespaces));
    line(out, 2, "Cgroups", &paths(&container.cgroups));
    line(out, 2, "Rootfs", &format!("{} (written), over", container.rootfs.upper.display()));
    for lower in &container.rootfs.lower {
        let _ = writeln!(out, "{:14}{}", "", lower.display());
    }
    let _ = writeln!(out, "  Processes:\n    {:>8}  {:>8}  COMMAND", "HOST PID", "INSIDE");
    for process in &container.processes {
        let _ = writeln!(out, "    {:>8}  {:>8}  {}", process.pid, process.container_pid, clean(&process.command));
    }
    let width = |get: fn(&crate::pod::node::InspectedMount) -> &str| {
        container.mounts.iter().map(|m| get(m).chars().count()).max().unwrap_or(0)
    };
    let (targets, kinds, options) = (width(|m| &m.target), width(|m| &m.kind), width(|m| &m.options));
    let _ = writeln!(out, "  Mounts:");
    for mount in &container.mounts {
        let (target, kind, source) = (clean(&mount.target), clean(&mount.kind), clean(&mount.source));
        let _ = writeln!(out, "    {target:targets$}  {kind:kinds$}  {:options$}  {source}", mount.options);
    }
}

fn line(out: &mut String, indent: usize, name: &str, value: &str) {
    let _ = writeln!(out, "{:indent$}{:width$}{value}", "", format!("{name}:"), width = 14 - indent);
}

fn namespaces(all: &std::collections::BTreeMap<String, u64>) -> String {
    or_none(all.iter().map(|(kind, inode)| format!("{kind}:[{inode}]")).collect::<Vec<_>>().join("  "))
}

fn paths(all: &[PathBuf]) -> String {
    or_none(all.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join("\n              "))
}

fn or_none(text: String) -> String {
    if text.is_empty() { "<none>".to_owned() } else { text }
}

/// What a container chose must not move the terminal's cursor.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn explanation(it: &Explanation) -> String {
    let mut out = format!("{:>10}  {:>10}  STEP\n", "AT", "TOOK");
    for step in &it.steps {
        let container = step.container.as_deref().map(|name| format!("{name}: ")).unwrap_or_default();
        let _ =
            writeln!(out, "{:>10}  {:>10}  {container}{}", human::micros(step.started), human::micros(step.micros), step.name);
    }
    if let Some(end) = it.steps.iter().map(|step| step.started + step.micros).max() {
        let _ = writeln!(out, "{:>10}              done", human::micros(end));
    }
    let _ = match &it.waiting_for {
        Some(what) => writeln!(out, "\nWaiting for: {}", clean(what)),
        None => writeln!(out, "\nIt waits for nothing."),
    };
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::node::{ExplainedStep, Holder, InspectedMount, InspectedProcess};

    #[test]
    fn inspection_as_text() {
        let it = Inspection {
            uid: "u-1".into(),
            ips: vec!["10.1.0.2".into()],
            holder: Holder { pid: 41, pss: 96_000 },
            namespaces: [("net".to_owned(), 4_026_532_001)].into(),
            containers: vec![InspectedContainer {
                name: "app".into(),
                state: "running".into(),
                processes: vec![InspectedProcess { pid: 42, container_pid: 1, command: "sh\u{1b}[2J".into() }],
                mounts: vec![InspectedMount {
                    target: "/proc".into(),
                    kind: "proc".into(),
                    source: "proc".into(),
                    options: "rw".into(),
                }],
                ..InspectedContainer::default()
            }],
            ..Inspection::default()
        };
        let text = inspection(&it);
        for expected in [
            "IPs:          10.1.0.2\n",
            "PID 41, 96.0kB",
            "net:[4026532001]",
            "      42         1  sh [2J\n",
            "/proc  proc  rw  proc",
        ] {
            assert!(text.contains(expected), "{expected:?} in\n{text}");
        }
    }

    #[test]
    fn explanation_as_text() {
        let step =
            |name: &str, started, micros| ExplainedStep { name: name.into(), container: Some("app".into()), started, micros };
        let it = Explanation { steps: vec![step("overlay", 100, 400), step("exec", 500, 1000)], waiting_for: None };
        let text = explanation(&it);
        assert!(text.contains("     100µs       400µs  app: overlay\n"), "{text}");
        assert!(text.contains("     1.5ms              done\n"), "{text}");
    }
}
