//! Trees to typed objects, by serde: every wrong type and every unknown field is told with its place and, where there is one, the
//! nearest name. serde says at each structure which fields it knows, so this is complete for any type.

use std::cell::{Cell, RefCell};
use std::fmt::Display;

use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeOwned, DeserializeSeed, Expected, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::forward_to_deserialize_any;

use super::error::Problem;
use super::path::Path;
use super::yaml::{Entry, Node, Value, shown_text};

/// Wrong values that are told of one document.
const ERROR_LIMIT: usize = 20;

/// Reads an object. A value that is wrong is told, then read as if it were null, so that one run tells all of them.
pub fn decode<T: DeserializeOwned>(root: &Node) -> Result<T, Vec<Problem>> {
    let state = State::default();
    for _ in 0..ERROR_LIMIT {
        state.failed.set(None);
        match T::deserialize(Decoder { node: root, path: &Path::ROOT, state: &state }) {
            Ok(value) if state.problems.borrow().is_empty() => return Ok(value),
            Ok(_) => break,
            Err(_) => match state.failed.get() {
                Some(node) if state.is_blank(node) => break,
                Some(node) => state.blank.borrow_mut().push(node),
                None => break,
            },
        }
    }
    let mut problems = state.problems.into_inner();
    problems.sort_by_key(|p| p.at);
    Err(problems)
}

#[derive(Default)]
struct State {
    problems: RefCell<Vec<Problem>>,
    /// Nodes that were told already, and now count as null.
    blank: RefCell<Vec<*const Node>>,
    /// The innermost node at which this run failed.
    failed: Cell<Option<*const Node>>,
}

impl State {
    fn is_blank(&self, node: *const Node) -> bool {
        self.blank.borrow().contains(&node)
    }

    fn tell(&self, problem: Problem) {
        let mut problems = self.problems.borrow_mut();
        if !problems.contains(&problem) {
            problems.push(problem);
        }
    }
}

/// Why a value doesn't fit. Its place is noted by the decoder at which it arose.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Misfit {
    message: String,
    /// Whether the message stands for itself, or needs the value before it.
    complete: bool,
}

impl de::Error for Misfit {
    fn custom<T: Display>(message: T) -> Self {
        Self { message: message.to_string(), complete: false }
    }
    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::custom(format_args!("must be {expected}"))
    }
    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::custom(format_args!("must be {expected}"))
    }
    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let mut message = format!("Unsupported value: {}: supported values: ", shown_text(variant));
        message.push_str(&expected.iter().map(|v| format!("{v:?}")).collect::<Vec<_>>().join(", "));
        Self { message, complete: true }
    }
    fn missing_field(field: &'static str) -> Self {
        Self { message: format!("Required value: {field}"), complete: true }
    }
}

#[derive(Clone, Copy)]
struct Decoder<'a> {
    node: &'a Node,
    path: &'a Path<'a>,
    state: &'a State,
}

impl<'a> Decoder<'a> {
    fn value(&self) -> &'a Value {
        if self.state.is_blank(self.node) { &Value::Null } else { &self.node.value }
    }

    /// Notes the place of an error, unless one further in did so already.
    fn note<T>(&self, result: Result<T, Misfit>) -> Result<T, Misfit> {
        if let Err(misfit) = &result
            && self.state.failed.get().is_none()
        {
            self.state.failed.set(Some(self.node));
            let message = if misfit.complete {
                misfit.message.clone()
            } else {
                format!("Invalid value: {}: {}", self.node.value.shown(), misfit.message)
            };
            self.state.tell(Problem { at: self.node.at, field: self.path.to_string(), message });
        }
        result
    }

    fn mismatch<T>(&self, expected: &str) -> Result<T, Misfit> {
        let value = self.value();
        let hint = match (expected, value) {
            ("a string", Value::Bool(_) | Value::Int(_) | Value::Float(_)) => ": put it in quotes",
            ("an integer" | "a boolean", Value::Text(_)) if fits_unquoted(expected, value) => ": write it without quotes",
            ("a list", Value::Map(_) | Value::Text(_)) => ": begin each element with \"- \"",
            _ => "",
        };
        let message = format!("must be {expected}, not {}{hint}", value.kind());
        self.note(Err(Misfit { message, complete: false }))
    }

    fn integer<'de, V: Visitor<'de>>(self, visitor: V, min: i128, max: i128) -> Result<V::Value, Misfit> {
        let number = match self.value() {
            Value::Null => 0,
            Value::Int(number) => *number,
            // As JSON has it, 1.0 is an integer.
            Value::Float(number) if number.fract() == 0.0 && number.abs() < 1e18 => *number as i128,
            _ => return self.mismatch("an integer"),
        };
        if number < min || number > max {
            let message = format!("must be between {min} and {max}");
            return self.note(Err(Misfit { message, complete: false }));
        }
        self.note(match i64::try_from(number) {
            Ok(number) => visitor.visit_i64(number),
            Err(_) => visitor.visit_u64(u64::try_from(number).unwrap_or_default()),
        })
    }

    fn entries(&self) -> Result<&'a [Entry], Misfit> {
        match self.value() {
            Value::Null => Ok(&[]),
            Value::Map(entries) => Ok(entries),
            _ => self.mismatch("a map"),
        }
    }

    fn unknown_fields(&self, entries: &[Entry], known: &[&str]) {
        for entry in entries.iter().filter(|e| !known.contains(&e.key.as_str())) {
            let message = match nearest(&entry.key, known) {
                Some(name) => format!("unknown field, did you mean {name:?}?"),
                None => "unknown field".into(),
            };
            self.state.tell(Problem { at: entry.at, field: self.path.child(&entry.key).to_string(), message });
        }
    }
}

fn fits_unquoted(expected: &str, value: &Value) -> bool {
    let Value::Text(text) = value else { return false };
    match expected {
        "an integer" => text.parse::<i64>().is_ok(),
        _ => matches!(text.as_str(), "true" | "false"),
    }
}

/// The known name that the author most likely meant: the same but for case and separators, or a few typing errors away.
pub(crate) fn nearest<'n>(name: &str, known: &[&'n str]) -> Option<&'n str> {
    let plain = |s: &str| s.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect::<String>();
    let wanted = plain(name);
    let limit = (wanted.len() / 3).clamp(1, 3);
    let distances = known.iter().map(|k| (distance(&wanted, &plain(k), limit), *k));
    distances.filter(|(d, _)| *d <= limit).min_by_key(|(d, _)| *d).map(|(_, k)| k)
}

/// Edits (insert, remove, replace, swap of neighbours) from one to the other; `limit + 1` for any more than `limit`.
fn distance(a: &str, b: &str, limit: usize) -> usize {
    if a.len().abs_diff(b.len()) > limit || a.len() > 64 {
        return limit + 1;
    }
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replace = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

impl<'de> de::Deserializer<'de> for Decoder<'_> {
    type Error = Misfit;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match self.value() {
            Value::Null => self.note(visitor.visit_unit()),
            Value::Bool(b) => self.note(visitor.visit_bool(*b)),
            Value::Int(_) => self.integer(visitor, i64::MIN.into(), u64::MAX.into()),
            Value::Float(x) => self.note(visitor.visit_f64(*x)),
            Value::Text(text) => self.note(visitor.visit_str(text)),
            Value::List(_) => self.deserialize_seq(visitor),
            Value::Map(_) => self.deserialize_map(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match self.value() {
            Value::Null => self.note(visitor.visit_bool(false)),
            Value::Bool(b) => self.note(visitor.visit_bool(*b)),
            _ => self.mismatch("a boolean"),
        }
    }

    fn deserialize_i8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        self.integer(visitor, i8::MIN.into(), i8::MAX.into())
    }
    fn deserialize_i16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        self.integer(visitor, i16::MIN.into(), i16::MAX.into())
    }
    fn deserialize_i32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        self.integer(visitor, i32::MIN.into(), i32::MAX.into())
    }
    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        self.integer(visitor, i64::MIN.into(), i64::MAX.into())
    }
    fn deserialize_u8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        self.integer(visitor, 0, u8::MAX.into())
    }
    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        self.integer(visitor, 0, u16::MAX.into())
    }
    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        self.integer(visitor, 0, u32::MAX.into())
    }
    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        self.integer(visitor, 0, u64::MAX.into())
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        self.deserialize_f64(visitor)
    }
    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match self.value() {
            Value::Null => self.note(visitor.visit_f64(0.0)),
            Value::Int(i) => self.note(visitor.visit_f64(*i as f64)),
            Value::Float(x) => self.note(visitor.visit_f64(*x)),
            _ => self.mismatch("a number"),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match self.value() {
            Value::Null => self.note(visitor.visit_str("")),
            Value::Text(text) => self.note(visitor.visit_str(text)),
            _ => self.mismatch("a string"),
        }
    }
    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match self.value() {
            Value::Null => self.note(visitor.visit_none()),
            _ => self.note(visitor.visit_some(self)),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Misfit> {
        // A quantity may be written as a number: `cpu: 2`.
        if name == "Quantity"
            && let number @ (Value::Int(_) | Value::Float(_)) = self.value()
        {
            let text = number.shown();
            return self.note(visitor.visit_newtype_struct(StrDeserializer::new(&text)));
        }
        self.note(visitor.visit_newtype_struct(self))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        let items: &[Node] = match self.value() {
            Value::Null => &[],
            Value::List(items) => items,
            _ => return self.mismatch("a list"),
        };
        self.note(visitor.visit_seq(Items { rest: items.iter(), index: 0, of: self }))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        let entries = self.entries()?;
        self.note(visitor.visit_map(Entries { rest: entries.iter(), next: None, fields: None, of: self }))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        let entries = self.entries()?;
        self.unknown_fields(entries, fields);
        self.note(visitor.visit_map(Entries { rest: entries.iter(), next: None, fields: Some(fields), of: self }))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        match self.value() {
            Value::Text(text) => self.note(visitor.visit_enum(StrDeserializer::new(text))),
            _ => self.mismatch("a string"),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! { i128 u128 char bytes byte_buf unit unit_struct tuple tuple_struct identifier }
}

struct Items<'a> {
    rest: std::slice::Iter<'a, Node>,
    index: usize,
    of: Decoder<'a>,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Misfit;
    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Misfit> {
        let Some(node) = self.rest.next() else { return Ok(None) };
        let path = self.of.path.index(self.index);
        self.index += 1;
        seed.deserialize(Decoder { node, path: &path, state: self.of.state }).map(Some)
    }
    fn size_hint(&self) -> Option<usize> {
        Some(self.rest.len())
    }
}

struct Entries<'a> {
    rest: std::slice::Iter<'a, Entry>,
    next: Option<&'a Entry>,
    /// The structure's fields; none for a map whose keys are data.
    fields: Option<&'static [&'static str]>,
    of: Decoder<'a>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Misfit;
    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Misfit> {
        let known = |e: &&Entry| self.fields.is_none_or(|fields| fields.contains(&e.key.as_str()));
        self.next = self.rest.by_ref().find(known);
        match self.next {
            Some(entry) => seed.deserialize(StrDeserializer::new(&entry.key)).map(Some),
            None => Ok(None),
        }
    }
    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Misfit> {
        let Some(entry) = self.next else {
            return Err(de::Error::custom("a value was asked for before its key"));
        };
        let path = if self.fields.is_some() { self.of.path.child(&entry.key) } else { self.of.path.key(&entry.key) };
        seed.deserialize(Decoder { node: &entry.value, path: &path, state: self.of.state })
    }
}
