//! What is special about reading a Secret: no error shows a value, and `stringData` ends up in `data`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;

use super::error::Problem;
use super::path::Path;
use super::yaml::{Node, Value};

/// The tree with base64 texts in one line each; or what is wrong with the values, without showing any.
pub fn readable(root: &Node) -> Result<Node, Vec<Problem>> {
    let mut root = root.clone();
    let mut problems = Vec::new();
    let Value::Map(entries) = &mut root.value else { return Ok(root) };
    for entry in entries.iter_mut() {
        let encoded = match entry.key.as_str() {
            "data" => true,
            "stringData" => false,
            _ => continue,
        };
        let path = Path::ROOT.child(&entry.key);
        match &mut entry.value.value {
            Value::Null => {}
            Value::Map(values) => {
                for value in values {
                    if let Err(wrong) = check(&mut value.value.value, encoded) {
                        let field = path.key(&value.key).to_string();
                        let message = format!("Invalid value: <secret contents redacted>: {wrong}");
                        problems.push(Problem { at: value.value.at, field, message });
                    }
                }
            }
            other => {
                let message = format!("Invalid value: <secret contents redacted>: must be a map, not {}", other.kind());
                problems.push(Problem { at: entry.value.at, field: path.to_string(), message });
            }
        }
    }
    if problems.is_empty() { Ok(root) } else { Err(problems) }
}

/// The problems of a Secret without what its fields have in them, but for its names: a value may stand in the wrong place.
pub fn hidden(root: &Node, mut problems: Vec<Problem>) -> Vec<Problem> {
    let mut values = Vec::new();
    if let Value::Map(entries) = &root.value {
        let named = |key: &str| matches!(key, "apiVersion" | "kind" | "metadata");
        entries.iter().filter(|entry| !named(&entry.key)).for_each(|entry| collect(&entry.value.value, &mut values));
    }
    for problem in &mut problems {
        for value in values.iter().filter(|value| problem.message.contains(value.as_str())).collect::<Vec<_>>() {
            problem.message = problem.message.replace(value, "<secret contents redacted>");
        }
    }
    problems
}

/// As errors show them.
fn collect(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Text(_) => found.push(value.shown()),
        Value::List(items) => items.iter().for_each(|item| collect(&item.value, found)),
        Value::Map(entries) => entries.iter().for_each(|entry| collect(&entry.value.value, found)),
        Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) => {}
    }
}

/// Line breaks inside of base64 are YAML's: the API server reads past them.
fn check(value: &mut Value, encoded: bool) -> Result<(), String> {
    match value {
        Value::Text(text) if encoded => {
            text.retain(|c| !matches!(c, '\n' | '\r'));
            let decoded = STANDARD.decode(text.as_bytes());
            decoded.map(drop).map_err(|_| "must be base64: put plain text into stringData".into())
        }
        Value::Null | Value::Text(_) => Ok(()),
        other => Err(format!("must be a string, not {}: put it in quotes", other.kind())),
    }
}

/// `stringData` is a way to write: it is never kept, and wins over `data`.
pub fn merged(mut secret: Secret) -> Secret {
    for (key, value) in secret.string_data.take().into_iter().flatten() {
        secret.data.get_or_insert_default().insert(key, ByteString(value.into_bytes()));
    }
    secret
}
