//! The only module that owns YAML: text to trees that know their lines, and objects to text.
//!
//! A scalar means here what it means to kubectl (YAML 1.1 as goyaml v2 reads it): `0644` is 420, `yes` is true, a time stays a
//! string. Other than there, a duplicate key is an error. JSON is read by the same code: it is YAML.

mod build;
mod scalar;

use serde::Serialize;

pub use super::error::Position;
use super::error::Problem;

/// Nesting beyond this is an error: recursion over a tree must end before the stack does.
pub const DEPTH_LIMIT: usize = 100;
/// What all aliases of one file may add, in nodes (a long text counts for more): a bomb is an error, not a full memory.
pub const ALIAS_LIMIT: usize = 100_000;

/// A value and where it starts.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Where it starts.
    pub at: Position,
    /// What it is.
    pub value: Value,
}

/// What JSON knows, with whole numbers kept whole.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `null`, `~` or nothing.
    Null,
    /// true or false.
    Bool(bool),
    /// A whole number.
    Int(i128),
    /// Any other number.
    Float(f64),
    /// Text.
    Text(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the text's order; no key is there twice.
    Map(Vec<Entry>),
}

/// A key with its value.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The key; a number or boolean as JSON would write it.
    pub key: String,
    /// Where the key starts.
    pub at: Position,
    /// The value.
    pub value: Node,
}

impl Node {
    /// A mapping's value by its key.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|e| &e.value)
    }

    /// A mapping's entry by its key.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|e| e.key == key),
            _ => None,
        }
    }

    /// A sequence's element.
    pub fn item(&self, index: usize) -> Option<&Node> {
        match &self.value {
            Value::List(items) => items.get(index),
            _ => None,
        }
    }

    /// The text, if it is one.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }
}

impl Value {
    /// The kind of value, with its article: `a string`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Int(_) => "an integer",
            Self::Float(_) => "a number",
            Self::Text(_) => "a string",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
        }
    }

    /// The value as an error message shows it: short, on one line.
    pub fn shown(&self) -> String {
        match self {
            Self::Null => "null".into(),
            Self::Bool(b) => b.to_string(),
            Self::Int(i) => i.to_string(),
            Self::Float(x) => x.to_string(),
            Self::Text(text) => shown_text(text),
            Self::List(_) => "[…]".into(),
            Self::Map(_) => "{…}".into(),
        }
    }
}

/// A text in quotes, cut where it is too long to help.
pub(crate) fn shown_text(text: &str) -> String {
    const LIMIT: usize = 256;
    if text.chars().nth(LIMIT).is_none() {
        return format!("{text:?}");
    }
    let cut: String = text.chars().take(LIMIT).collect();
    format!("{:?}", cut + "…")
}

/// One document of a text.
#[derive(Debug)]
pub struct Document {
    /// Its tree.
    pub root: Node,
    /// What is wrong with its text: duplicate keys, aliases that explode. With any, the tree isn't what the author meant.
    pub problems: Vec<Problem>,
}

/// What a text holds.
#[derive(Debug, Default)]
pub struct Parsed {
    /// The documents that aren't empty.
    pub documents: Vec<Document>,
    /// Why reading ended before the end.
    pub broken: Option<Problem>,
}

/// Reads a text of any number of documents, in time and memory linear in its length.
pub fn parse(bytes: &[u8]) -> Parsed {
    match text_of(bytes) {
        Ok(text) => build::documents(&text),
        Err(problem) => Parsed { documents: Vec::new(), broken: Some(problem) },
    }
}

/// An object as `kubectl get -o yaml` writes it: keys in alphabetical order.
pub fn to_yaml<T: Serialize>(object: &T) -> Result<String, serde_yaml::Error> {
    use serde::ser::Error as _;
    // serde_json's map is ordered by key, as kubectl's output is.
    let sorted = serde_json::to_value(object).map_err(serde_yaml::Error::custom)?;
    serde_yaml::to_string(&sorted)
}

fn text_of(bytes: &[u8]) -> Result<std::borrow::Cow<'_, str>, Problem> {
    if bytes.starts_with(&[0xFF, 0xFE]) || bytes.starts_with(&[0xFE, 0xFF]) {
        return Err(Problem::text(Position { line: 1, column: 1 }, "the text is UTF-16: save it as UTF-8"));
    }
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let bad = bytes.get(e.valid_up_to()).copied().unwrap_or_default();
        Problem::text(position(bytes, e.valid_up_to()), format!("byte 0x{bad:02x} is no UTF-8: save the file as UTF-8"))
    })?;
    let unprintable =
        |c: char| (c.is_control() && !matches!(c, '\n' | '\r' | '\t' | '\u{85}')) || c == '\u{FFFE}' || c == '\u{FFFF}';
    if let Some((at, c)) = text.char_indices().find(|(_, c)| unprintable(*c)) {
        let name = if c == '\0' { "a NUL character".into() } else { format!("the control character U+{:04X}", c as u32) };
        return Err(Problem::text(position(bytes, at), format!("{name} can't be in a text file")));
    }
    Ok(scalar::join_surrogates(text))
}

fn position(bytes: &[u8], offset: usize) -> Position {
    let before = &bytes[..offset.min(bytes.len())];
    let line_start = before.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
    let line = before.split(|b| *b == b'\n').count();
    Position { line, column: String::from_utf8_lossy(&before[line_start..]).chars().count() + 1 }
}
