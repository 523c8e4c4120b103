//! Every field of a Pod's schema has its line in the table, and the table says what is so: works, works with a limit, or refused with
//! a reason that the validator gives. `manifests/FIELDS.md` is the table for people: `UPDATE=1` writes it anew.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "fields/schema.rs"]
mod schema;
#[path = "fields/table.rs"]
mod table;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::PodSpec;
use nodeagent::model::{self, Defaults};
use table::{Fate, Table};

const TABLE: &str = include_str!("fields/table.txt");

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn the_table_names_every_field_of_the_schema_and_no_other() {
    let table = Table::parse(TABLE);
    let schema = schema::of::<PodSpec>();
    let mut missing = Vec::new();
    for (type_, fields) in &schema {
        let names: Vec<&str> = fields.iter().map(|f| f.name).collect();
        let Some(rows) = table.types.get(*type_) else {
            missing.push(format!("[{type_}] {names:?}"));
            continue;
        };
        if !rows.whole() {
            missing.extend(names.iter().filter(|name| !rows.fields.contains_key(**name)).map(|name| format!("{type_}.{name}")));
        }
        let unknown = rows.fields.keys().find(|name| *name != "*" && !names.contains(&name.as_str()));
        assert_eq!(unknown, None, "the table has it of {type_}, the schema has not");
    }
    assert!(missing.is_empty(), "the schema has what the table lacks: {missing:#?}");
    for type_ in table.types.keys() {
        assert!(schema.contains_key(type_.as_str()), "the table has {type_}, the schema has not");
    }
}

#[test]
fn a_field_that_shares_anothers_fate_names_one_that_is_there() {
    let table = Table::parse(TABLE);
    for (field, fate) in table.all() {
        if let Fate::As(other) = fate {
            assert!(table.fate(other).is_some(), "{field} is as {other}, which the table lacks");
        }
    }
}

#[test]
fn what_is_refused_is_refused_with_that_reason() {
    let table = Table::parse(TABLE);
    let mut wrong = Vec::new();
    for (field, fate) in table.all() {
        let Fate::Refused { reason, example } = fate else { continue };
        let manifest = manifest(example);
        let loaded = model::load(Path::new("pod.yaml"), manifest.as_bytes(), &Defaults { node_name: "node".into() });
        let errors: Vec<String> = loaded.errors.iter().map(ToString::to_string).collect();
        if !errors.iter().any(|e| e.contains(reason)) {
            wrong.push(format!("{field}: {reason}: the validator says {errors:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_works_has_a_test_that_is_there() {
    let table = Table::parse(TABLE);
    let mut tests = BTreeSet::new();
    for (name, rows) in &table.types {
        let own = rows.fields.values().any(|fate| matches!(fate, Fate::Works | Fate::Limit(_)));
        assert!(!own || rows.test.is_some(), "[{name}] names no test");
        tests.extend(rows.test.clone());
    }
    for test in tests {
        let (file, function) = test.split_once("::").unwrap_or_else(|| panic!("{test}: FILE::FUNCTION"));
        let path = workspace().join("e2e/tests").join(file);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{test}: {}: {e}", path.display()));
        assert!(text.contains(&format!("fn {function}(")), "{test}: there is no such test");
    }
}

#[test]
fn the_document_is_the_table() {
    let path = workspace().join("manifests/FIELDS.md");
    let wanted = Table::parse(TABLE).document();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == wanted, "{} isn't what the table says: UPDATE=1 cargo test --test fields", path.display());
}

/// A pod with these fields in its spec, or in its metadata.
fn manifest(example: &str) -> String {
    let mut pod: serde_yaml::Value =
        serde_yaml::from_str("{apiVersion: v1, kind: Pod, metadata: {name: web}, spec: {containers: [{name: c, image: i}]}}")
            .unwrap();
    let (part, fields) = match example.strip_prefix("metadata ") {
        Some(fields) => ("metadata", fields),
        None => ("spec", example),
    };
    let fields: serde_yaml::Mapping = serde_yaml::from_str(fields).unwrap_or_else(|e| panic!("{fields}: {e}"));
    let into = pod[part].as_mapping_mut().unwrap();
    if part == "metadata" {
        into.clear();
    }
    into.extend(fields);
    serde_yaml::to_string(&pod).unwrap()
}
