//! Collects what is wrong, in the API server's wording (k8s.io/apimachinery's field errors).

use std::collections::HashSet;
use std::fmt::Display;

use serde::Serialize;

use crate::model::error::Problem;
use crate::model::path::Path;
use crate::model::yaml::{Node, shown_text};

/// The errors of one object so far.
#[derive(Debug)]
pub struct Report<'n> {
    root: &'n Node,
    problems: Vec<Problem>,
}

/// A value as an error shows it: texts in quotes, numbers plain.
pub trait Shown {
    /// The value's text.
    fn shown(&self) -> String;
}
impl Shown for str {
    fn shown(&self) -> String {
        shown_text(self)
    }
}
impl Shown for String {
    fn shown(&self) -> String {
        shown_text(self)
    }
}
macro_rules! shown_plain {
    ($($t:ty)*) => { $(impl Shown for $t { fn shown(&self) -> String { self.to_string() } })* };
}
shown_plain!(i32 i64 bool usize);

/// A list or a map as the API server shows it, cut where it is too long to help.
pub(super) fn json<T: Serialize + ?Sized>(value: &T) -> String {
    const LIMIT: usize = 1024;
    let text = serde_json::to_string(value).unwrap_or_default();
    match text.char_indices().nth(LIMIT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

impl<'n> Report<'n> {
    /// Nothing is wrong yet.
    pub fn new(root: &'n Node) -> Self {
        Self { root, problems: Vec::new() }
    }

    /// What was found, in the order of the text.
    pub fn finish(mut self) -> Vec<Problem> {
        self.problems.sort_by_key(|p| p.at);
        self.problems
    }

    /// How many problems there are so far.
    pub fn count(&self) -> usize {
        self.problems.len()
    }

    /// Whether the text has something at this place.
    pub fn has(&self, path: &Path<'_>) -> bool {
        path.node(self.root).is_some()
    }

    /// Any sentence.
    pub fn say(&mut self, path: &Path<'_>, message: impl Into<String>) {
        self.problems.push(Problem { at: path.position(self.root), field: path.to_string(), message: message.into() });
    }

    fn with_detail(&mut self, path: &Path<'_>, what: &str, detail: &dyn Display) {
        let detail = detail.to_string();
        let colon = if detail.is_empty() { "" } else { ": " };
        self.say(path, format!("{what}{colon}{detail}"));
    }

    /// The field must be there.
    pub fn required(&mut self, path: &Path<'_>, detail: impl Display) {
        self.with_detail(path, "Required value", &detail);
    }

    /// The field must not be there (with what else is there).
    pub fn forbidden(&mut self, path: &Path<'_>, detail: impl Display) {
        self.with_detail(path, "Forbidden", &detail);
    }

    /// The value can't be.
    pub fn invalid<V: Shown + ?Sized>(&mut self, path: &Path<'_>, value: &V, detail: impl Display) {
        self.with_detail(path, &format!("Invalid value: {}", value.shown()), &detail);
    }

    /// The value is there already.
    pub fn duplicate<V: Shown + ?Sized>(&mut self, path: &Path<'_>, value: &V) {
        self.say(path, format!("Duplicate value: {}", value.shown()));
    }

    /// The value names what isn't there.
    pub fn not_found(&mut self, path: &Path<'_>, value: &str) {
        self.say(path, format!("Not found: {}", value.shown()));
    }

    /// The value is none of those that there are, which are told in this order: the API server has most of them sorted, not all.
    pub fn unsupported(&mut self, path: &Path<'_>, value: &str, known: &[&str]) {
        let known: Vec<String> = known.iter().map(|k| format!("{k:?}")).collect();
        self.say(path, format!("Unsupported value: {}: supported values: {}", value.shown(), known.join(", ")));
    }

    /// An optional value that must be one of a few.
    pub fn one_of(&mut self, path: &Path<'_>, value: Option<&str>, known: &[&str]) {
        if let Some(value) = value.filter(|v| !known.contains(v)) {
            self.unsupported(path, value, known);
        }
    }

    /// Each of these is told as an invalid value.
    pub fn each_invalid(&mut self, path: &Path<'_>, value: &str, details: Vec<String>) {
        for detail in details {
            self.invalid(path, value, detail);
        }
    }

    /// A name that must be there and be right.
    pub fn name(&mut self, path: &Path<'_>, value: &str, check: fn(&str) -> Vec<String>) {
        if value.is_empty() {
            self.required(path, "");
        } else {
            self.each_invalid(path, value, check(value));
        }
    }

    /// A path that must stay below the place that it starts from.
    pub fn descending(&mut self, path: &Path<'_>, value: &str) {
        if value.starts_with('/') {
            self.invalid(path, value, "must be a relative path");
        }
        self.no_backsteps(path, value);
    }

    /// As [`Self::descending`], for a name that becomes a file of a volume whose own files begin with `..`.
    pub fn file_name(&mut self, path: &Path<'_>, value: &str) {
        if value.is_empty() {
            return self.required(path, "");
        }
        self.descending(path, value);
        if value.starts_with("..") && !value.split('/').any(|part| part == "..") {
            self.invalid(path, value, "must not start with '..'");
        }
    }

    /// A path that must not go up.
    pub fn no_backsteps(&mut self, path: &Path<'_>, value: &str) {
        if value.split('/').any(|part| part == "..") {
            self.invalid(path, value, "must not contain '..'");
        }
    }

    /// An IP address.
    pub fn ip(&mut self, path: &Path<'_>, value: &str) {
        let valid = |text: &str| text.parse::<std::net::IpAddr>().is_ok();
        if valid(value) {
            return;
        }
        // Some read a part that begins with 0 as octal.
        let plain = |part: &str| part.parse::<u8>().map_or_else(|_| part.to_owned(), |number| number.to_string());
        if valid(&value.split('.').map(plain).collect::<Vec<_>>().join(".")) {
            self.invalid(path, value, "must not have leading 0s");
        } else {
            self.invalid(path, value, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
        }
    }

    /// The permission bits of a file.
    pub fn mode(&mut self, path: &Path<'_>, value: Option<i32>) {
        if let Some(mode) = value.filter(|m| !(0..=0o777).contains(m)) {
            self.invalid(path, &mode, "must be a number between 0 and 0777 (octal), both inclusive");
        }
    }

    /// A user's or group's number.
    pub fn id(&mut self, path: &Path<'_>, value: Option<i64>) {
        if let Some(id) = value.filter(|id| !(0..=i64::from(i32::MAX)).contains(id)) {
            self.invalid(path, &id, "must be between 0 and 2147483647, inclusive");
        }
    }

    /// A number that can't be below zero.
    pub fn not_negative(&mut self, path: &Path<'_>, value: Option<i64>) {
        if let Some(value) = value.filter(|v| *v < 0) {
            self.invalid(path, &value, "must be greater than or equal to 0");
        }
    }
}

/// Values that were seen, each once.
#[derive(Debug, Default)]
pub struct Unique<'a>(HashSet<std::borrow::Cow<'a, str>>);

impl<'a> Unique<'a> {
    /// Tells of a value that was seen before.
    pub fn check(&mut self, report: &mut Report<'_>, path: &Path<'_>, value: impl Into<std::borrow::Cow<'a, str>>) {
        let value = value.into();
        if self.0.contains(&value) {
            report.duplicate(path, &*value);
        } else {
            self.0.insert(value);
        }
    }

    /// As [`Self::check`], in the other words that the API server has for it.
    pub fn check_unique(&mut self, report: &mut Report<'_>, path: &Path<'_>, value: &'a str) {
        if !self.0.insert(value.into()) {
            report.invalid(path, value, "must be unique");
        }
    }

    /// Remembers a value.
    pub fn insert(&mut self, value: &'a str) {
        self.0.insert(value.into());
    }

    /// Whether a value was seen.
    pub fn has(&self, value: &str) -> bool {
        self.0.contains(value)
    }
}
