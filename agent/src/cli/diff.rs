//! `diff`: what manifests would change of what runs, field by field. The agent compares; it alone knows what is there.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use hyper::Method;
use serde_json::Value;

use super::client::{Client, body};
use super::get::show;
use super::{CliError, Local, manifests, read};
use crate::api::{GROUP, encode};
use crate::workload::diff::Difference;

/// Comparing.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nodeagent diff -f web.yaml\n  kustomize build overlay | nodeagent diff -f -\n  nodeagent diff -f manifests/ && echo nothing would change"
)]
pub struct DiffArgs {
    /// Files or folders; `-` is standard input
    #[arg(short = 'f', long = "filename", required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// 0: nothing would change; 1: something would; 2: that can't be told.
pub async fn run(client: &Client, args: &DiffArgs, local: &Local<'_>) -> ExitCode {
    match compare(client, args, local).await {
        Ok(true) => ExitCode::from(1),
        Ok(false) => ExitCode::SUCCESS,
        Err(CliError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::from(1),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

async fn compare(client: &Client, args: &DiffArgs, local: &Local<'_>) -> Result<bool, CliError> {
    let mut all = Vec::new();
    let mut wrong = Vec::new();
    for file in manifests(&args.files)? {
        let mut answer = ask(client, &file, read(&file, local)?).await?;
        wrong.extend(answer["errors"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned));
        let differences: Vec<Difference> = serde_json::from_value(answer["differences"].take())
            .map_err(|error| CliError::Broken { doing: "read the agent's answer", message: error.to_string() })?;
        all.extend(differences);
    }
    if args.json {
        show(&(super::client::pretty(&serde_json::json!({ "differences": all, "errors": wrong })) + "\n"))?;
    } else {
        show(&all.iter().map(text).collect::<String>())?;
    }
    if wrong.is_empty() { Ok(!all.is_empty()) } else { Err(CliError::Usage(wrong.join("\n"))) }
}

async fn ask(client: &Client, file: &Path, manifest: Vec<u8>) -> Result<Value, CliError> {
    let path = format!("/apis/{GROUP}/v1/diff?file={}", encode(&file.display().to_string()));
    client.send(Method::POST, &path, body(manifest)).await
}

fn text(difference: &Difference) -> String {
    let Difference { kind, namespace, name, effect, fields } = difference;
    let mut text = format!("{} {namespace}/{name} {effect}\n", kind.to_lowercase());
    for field in fields {
        let (path, old, new) = (&field.path, &field.old, &field.new);
        // Writing into a string can't fail.
        let _ = match (old.is_null(), new.is_null()) {
            (true, _) => writeln!(text, "  + {path}: {new}"),
            (_, true) => writeln!(text, "  - {path}: {old}"),
            _ => writeln!(text, "  ~ {path}: {old} → {new}"),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::difference::Field;

    #[test]
    fn a_difference_reads_as_a_sentence_and_its_fields() {
        let field = |path: &str, old, new| Field { path: path.into(), old, new };
        let difference = Difference {
            kind: "Pod".into(),
            namespace: "shop".into(),
            name: "web".into(),
            effect: "would be recreated".into(),
            fields: vec![
                field("spec.hostname", json!("a"), json!("b")),
                field("spec.subdomain", Value::Null, json!("x")),
                field("metadata.labels[app]", json!("web"), Value::Null),
            ],
        };
        let expected = "pod shop/web would be recreated\n  ~ spec.hostname: \"a\" → \"b\"\n  + spec.subdomain: \"x\"\n  - \
                        metadata.labels[app]: \"web\"\n";
        assert_eq!(text(&difference), expected);
    }
}
