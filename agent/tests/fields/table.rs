//! The table of fields, as it is written and as people read it.

use std::collections::BTreeMap;
use std::fmt::Write;

/// What becomes of a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// As in Kubernetes.
    Works,
    /// As in Kubernetes, but for this.
    Limit(String),
    /// The manifest is wrong, for this reason; with a pod's fields that show it.
    Refused {
        /// What the validator says.
        reason: String,
        /// Fields of a spec, or `metadata` and fields of that, in YAML's flow style.
        example: String,
    },
    /// What becomes of this other one.
    As(String),
}

/// The fields of one type.
#[derive(Debug, Default)]
pub struct Rows {
    /// `FILE::FUNCTION` below e2e/tests.
    pub test: Option<String>,
    /// By name; `*` stands for all.
    pub fields: BTreeMap<String, Fate>,
}

impl Rows {
    /// Whether all fields share one fate.
    pub fn whole(&self) -> bool {
        self.fields.contains_key("*")
    }
}

/// All of it.
#[derive(Debug, Default)]
pub struct Table {
    /// By name.
    pub types: BTreeMap<String, Rows>,
    /// In the order of the text.
    order: Vec<String>,
}

impl Table {
    /// Reads the text. It is the tests' own: what is wrong in it fails them.
    pub fn parse(text: &str) -> Self {
        let mut table = Self::default();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            if let Some((name, test)) = line.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
                let test = Some(test.trim().to_owned()).filter(|test| !test.is_empty());
                let before = table.types.insert(name.to_owned(), Rows { test, ..Rows::default() });
                assert!(before.is_none(), "{name} is there twice");
                table.order.push(name.to_owned());
                continue;
            }
            let (field, fate) = line.split_once(' ').unwrap_or_else(|| panic!("{line}: what becomes of it?"));
            let type_ = table.order.last().expect("a type comes first");
            let rows = table.types.get_mut(type_).expect("it was just inserted");
            let before = rows.fields.insert(field.to_owned(), self::fate(fate.trim()));
            assert!(before.is_none(), "{type_}.{field} is there twice");
        }
        table
    }

    /// What becomes of `TYPE.FIELD`.
    pub fn fate(&self, field: &str) -> Option<&Fate> {
        let (type_, name) = field.split_once('.')?;
        self.types.get(type_)?.fields.get(name)
    }

    /// `TYPE.FIELD`, and what becomes of it.
    pub fn all(&self) -> impl Iterator<Item = (String, &Fate)> {
        self.types.iter().flat_map(|(type_, rows)| rows.fields.iter().map(move |(name, fate)| (format!("{type_}.{name}"), fate)))
    }

    /// For people, in Markdown.
    pub fn document(&self) -> String {
        let mut text = String::from(HEAD);
        let count = |is: fn(&Fate) -> bool| self.all().filter(|(name, fate)| !name.ends_with('*') && is(fate)).count();
        let works = count(|fate| matches!(fate, Fate::Works));
        let limited = count(|fate| matches!(fate, Fate::Limit(_)));
        let refused = count(|fate| matches!(fate, Fate::Refused { .. }));
        let _ = writeln!(text, "{works} fields work, {limited} work with a limit, {refused} are refused.");
        for type_ in &self.order {
            let rows = &self.types[type_];
            if let Some(Fate::As(other)) = rows.fields.get("*") {
                let _ = writeln!(text, "\n### {type_}\nAs {other}.");
            } else {
                let _ = writeln!(text, "\n### {type_}\n| field | | |\n|---|---|---|");
                for (name, fate) in &rows.fields {
                    let (word, more) = match fate {
                        Fate::Works => ("works", ""),
                        Fate::Limit(limit) => ("works with a limit", limit.as_str()),
                        Fate::Refused { reason, .. } => ("refused", reason.as_str()),
                        Fate::As(other) => ("as", other.as_str()),
                    };
                    let _ = writeln!(text, "| {name} | {word} | {more} |");
                }
            }
        }
        text
    }
}

const HEAD: &str = "# Every field of a Pod

What becomes of each field of `PodSpec` and of all that is in it (Kubernetes 1.37) when a pod comes from a file, on a node that is part of
no cluster. Made from the schema by `agent/tests/fields.rs`, which fails when a field has no line here.

";

fn fate(text: &str) -> Fate {
    if text == "works" {
        return Fate::Works;
    }
    if let Some(limit) = text.strip_prefix("limit: ") {
        return Fate::Limit(limit.to_owned());
    }
    if let Some(other) = text.strip_prefix("as ") {
        return Fate::As(other.to_owned());
    }
    let refused = text.strip_prefix("refused: ").and_then(|rest| rest.split_once(" <- "));
    let (reason, example) = refused.unwrap_or_else(|| panic!("{text}: no such fate, or no example"));
    Fate::Refused { reason: reason.to_owned(), example: example.to_owned() }
}
