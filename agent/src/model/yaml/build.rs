//! Events of the YAML parser to trees. One loop and a stack, no recursion: the text decides how deep it nests, not our stack.

use std::collections::{HashMap, HashSet};

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span, Tag};

use super::{ALIAS_LIMIT, DEPTH_LIMIT, Document, Entry, Node, Parsed, Position, Value, scalar};
use crate::model::error::Problem;

/// Problems that are told per document: of more, the first ones are enough.
const PROBLEM_LIMIT: usize = 20;
/// Mappings above this size find their duplicates by a set.
const SMALL_MAP: usize = 16;

pub(super) fn documents(text: &str) -> Parsed {
    let mut builder = Builder::default();
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        match event {
            Ok((event, span)) => {
                if let Err(problem) = builder.take(event, span) {
                    builder.parsed.broken = Some(problem);
                    break;
                }
            }
            Err(error) => {
                builder.parsed.broken = Some(syntax(text, *error.marker(), error.info()));
                break;
            }
        }
    }
    builder.parsed
}

fn syntax(text: &str, marker: Marker, info: &str) -> Problem {
    let at = position(marker);
    // The scanner may see the tab only as what follows the line before.
    for (line, number) in text.lines().skip(at.line - 1).zip(at.line..).take(2) {
        if line.trim_start_matches(' ').starts_with('\t') {
            let column = line.chars().take_while(|c| *c == ' ').count() + 1;
            return Problem::text(Position { line: number, column }, "a tab can't indent in YAML: use spaces");
        }
    }
    Problem::text(at, format!("this is no YAML: {info}"))
}

fn position(marker: Marker) -> Position {
    Position { line: marker.line().max(1), column: marker.col() + 1 }
}

/// A node, with what it costs to copy it and how deep it is.
#[derive(Clone)]
struct Built {
    node: Node,
    weight: usize,
    depth: usize,
}

enum Open {
    List(Vec<Node>),
    Map(OpenMap),
}

#[derive(Default)]
struct OpenMap {
    entries: Vec<Entry>,
    /// The key whose value comes next.
    key: Option<Key>,
    merges: Vec<Node>,
    seen: HashSet<String>,
}

enum Key {
    Name(String, Position),
    Merge,
    /// Was wrong, and told: its value is dropped.
    Bad,
}

struct Frame {
    at: Position,
    anchor: usize,
    weight: usize,
    depth: usize,
    open: Open,
}

#[derive(Default)]
struct Builder {
    stack: Vec<Frame>,
    anchors: HashMap<usize, Built>,
    expanded: usize,
    problems: Vec<Problem>,
    parsed: Parsed,
}

impl Builder {
    /// An error here ends the reading of the whole text.
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Problem> {
        let at = position(span.start);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let merge = style == ScalarStyle::Plain && tag.is_none() && text == "<<";
                let value = self.scalar(&text, style, tag.as_deref(), at);
                let weight = 1 + text.len() / 32;
                self.finish(Built { node: Node { at, value }, weight, depth: 1 }, anchor, merge);
            }
            Event::SequenceStart(anchor, tag) => {
                self.collection_tag(tag.as_deref(), "seq", at);
                self.open(at, anchor, Open::List(Vec::new()))?;
            }
            Event::MappingStart(anchor, tag) => {
                self.collection_tag(tag.as_deref(), "map", at);
                self.open(at, anchor, Open::Map(OpenMap::default()))?;
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Alias(anchor) => self.alias(anchor, at)?,
            Event::DocumentEnd => {
                self.anchors.clear();
                self.stack.clear();
                // Tells of an empty document's anchors and the like belong to the next one that isn't empty.
                if let Some(document) = self.parsed.documents.last_mut() {
                    document.problems.append(&mut self.problems);
                }
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) => {}
        }
        Ok(())
    }

    fn problem(&mut self, at: Position, message: impl Into<String>) {
        if self.problems.len() < PROBLEM_LIMIT {
            self.problems.push(Problem::text(at, message));
        }
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, tag: Option<&Tag>, at: Position) -> Value {
        let Some(tag) = tag else {
            return if style == ScalarStyle::Plain { scalar::resolve(text) } else { Value::Text(text.to_owned()) };
        };
        let resolved = scalar::resolve(text);
        let core = tag.is_yaml_core_schema();
        match (core, tag.suffix.as_str(), resolved) {
            (true, "str" | "timestamp", _) => Value::Text(text.to_owned()),
            (true, "int", value @ Value::Int(_))
            | (true, "bool", value @ Value::Bool(_))
            | (true, "null", value @ Value::Null)
            | (true, "float", value @ Value::Float(_)) => value,
            (true, "float", Value::Int(value)) => Value::Float(value as f64),
            (true, name @ ("int" | "bool" | "null" | "float"), _) => {
                self.problem(at, format!("this text can't be read as !!{name}"));
                Value::Null
            }
            _ => {
                self.problem(at, format!("the tag {}{} has no meaning here", tag.handle, tag.suffix));
                Value::Null
            }
        }
    }

    fn collection_tag(&mut self, tag: Option<&Tag>, expected: &str, at: Position) {
        if let Some(tag) = tag
            && !(tag.is_yaml_core_schema() && tag.suffix == expected)
        {
            self.problem(at, format!("the tag {}{} has no meaning here", tag.handle, tag.suffix));
        }
    }

    fn open(&mut self, at: Position, anchor: usize, open: Open) -> Result<(), Problem> {
        if self.stack.len() >= DEPTH_LIMIT {
            return Err(Problem::text(at, format!("nested deeper than {DEPTH_LIMIT} levels")));
        }
        self.stack.push(Frame { at, anchor, weight: 1, depth: 1, open });
        Ok(())
    }

    fn close(&mut self) {
        let Some(frame) = self.stack.pop() else { return };
        let value = match frame.open {
            Open::List(items) => Value::List(items),
            Open::Map(map) => Value::Map(merged(map)),
        };
        let built = Built { node: Node { at: frame.at, value }, weight: frame.weight, depth: frame.depth };
        self.finish(built, frame.anchor, false);
    }

    fn alias(&mut self, anchor: usize, at: Position) -> Result<(), Problem> {
        let Some(built) = self.anchors.get(&anchor) else {
            return Err(Problem::text(at, "this alias is inside of what it stands for"));
        };
        self.expanded += built.weight;
        if self.expanded > ALIAS_LIMIT || self.stack.len() + built.depth > DEPTH_LIMIT {
            return Err(Problem::text(
                at,
                format!("the aliases expand to more than {ALIAS_LIMIT} values or {DEPTH_LIMIT} levels"),
            ));
        }
        let copy = built.clone();
        self.finish(copy, 0, false);
        Ok(())
    }

    /// Puts a finished node where it belongs: the document, the list, the map's key or the map's value.
    fn finish(&mut self, built: Built, anchor: usize, merge: bool) {
        if anchor > 0 {
            self.anchors.insert(anchor, built.clone());
        }
        let Some(frame) = self.stack.last_mut() else {
            if built.node.value != Value::Null || !self.problems.is_empty() {
                self.parsed.documents.push(Document { root: built.node, problems: Vec::new() });
            }
            return;
        };
        frame.weight += built.weight;
        frame.depth = frame.depth.max(built.depth + 1);
        let at = built.node.at;
        let told = match &mut frame.open {
            Open::List(items) => {
                items.push(built.node);
                None
            }
            Open::Map(map) => map.take(built.node, merge),
        };
        if let Some(message) = told {
            self.problem(at, message);
        }
    }
}

impl OpenMap {
    /// Takes a key, or the value of the key before. What it gives back is wrong.
    fn take(&mut self, node: Node, merge: bool) -> Option<String> {
        match self.key.take() {
            None => {
                let (key, told) = self.key_of(node, merge);
                self.key = Some(key);
                told
            }
            Some(Key::Name(key, at)) => {
                self.entries.push(Entry { key, at, value: node });
                None
            }
            Some(Key::Merge) => self.merge(node),
            Some(Key::Bad) => None,
        }
    }

    fn key_of(&mut self, node: Node, merge: bool) -> (Key, Option<String>) {
        if merge {
            return (Key::Merge, None);
        }
        let key = match node.value {
            Value::Text(text) => text,
            Value::Bool(_) | Value::Int(_) | Value::Float(_) => node.value.shown(),
            Value::Null => return (Key::Bad, Some("a key is missing before the colon".into())),
            Value::List(_) | Value::Map(_) => {
                return (Key::Bad, Some(format!("a key must be a string, not {}", node.value.kind())));
            }
        };
        match self.first(&key) {
            Some(first) => {
                let told = format!(
                    "duplicate key {}: it is on line {}, column {} already",
                    super::shown_text(&key),
                    first.line,
                    first.column
                );
                (Key::Bad, Some(told))
            }
            None => (Key::Name(key, node.at), None),
        }
    }

    /// Where the key is already.
    fn first(&mut self, key: &str) -> Option<Position> {
        if self.entries.len() >= SMALL_MAP {
            if self.seen.is_empty() {
                self.seen.extend(self.entries.iter().map(|e| e.key.clone()));
            }
            if self.seen.insert(key.to_owned()) {
                return None;
            }
        }
        self.entries.iter().find(|e| e.key == key).map(|e| e.at)
    }

    fn merge(&mut self, node: Node) -> Option<String> {
        match node.value {
            Value::Map(_) => self.merges.push(node),
            Value::List(items) if items.iter().all(|n| matches!(n.value, Value::Map(_))) => self.merges.extend(items),
            _ => return Some("<< needs a map, or a list of maps".into()),
        }
        None
    }
}

/// A map's own keys, then those of its merges that it hasn't: the first merge wins.
fn merged(map: OpenMap) -> Vec<Entry> {
    let OpenMap { mut entries, merges, .. } = map;
    if merges.is_empty() {
        return entries;
    }
    let mut seen: HashSet<String> = entries.iter().map(|e| e.key.clone()).collect();
    for node in merges {
        if let Value::Map(more) = node.value {
            entries.extend(more.into_iter().filter(|e| seen.insert(e.key.clone())));
        }
    }
    entries
}
