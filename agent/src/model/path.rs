//! Field paths, as the API server writes them: `spec.containers[0].resources.limits[cpu]`. They cost nothing until one is shown.

use std::fmt;

use super::error::Position;
use super::yaml::Node;

/// A place in an object; knows its parent by reference, so walking makes no strings.
#[derive(Debug, Clone, Copy)]
pub struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Step<'a> {
    Root,
    Child(&'a str),
    Key(&'a str),
    Index(usize),
}

impl<'a> Path<'a> {
    /// The object itself.
    pub const ROOT: Path<'static> = Path { parent: None, step: Step::Root };

    /// A field of a structure.
    #[must_use]
    pub fn child(&'a self, name: &'a str) -> Path<'a> {
        Path { parent: Some(self), step: Step::Child(name) }
    }

    /// An entry of a map whose keys are data.
    #[must_use]
    pub fn key(&'a self, key: &'a str) -> Path<'a> {
        Path { parent: Some(self), step: Step::Key(key) }
    }

    /// An element of a list, from 0.
    #[must_use]
    pub fn index(&'a self, index: usize) -> Path<'a> {
        Path { parent: Some(self), step: Step::Index(index) }
    }

    /// Where this is in the text; where it isn't there, where its nearest ancestor is.
    pub fn position(&self, root: &Node) -> Position {
        self.find(root).1
    }

    /// The value in the text, if it is there.
    pub fn node<'n>(&self, root: &'n Node) -> Option<&'n Node> {
        self.find(root).0
    }

    fn find<'n>(&self, root: &'n Node) -> (Option<&'n Node>, Position) {
        let Some(parent) = self.parent else { return (Some(root), root.at) };
        let (node, at) = parent.find(root);
        let Some(node) = node else { return (None, at) };
        let (found, found_at) = match self.step {
            Step::Root => (Some(node), Some(node.at)),
            Step::Child(name) | Step::Key(name) => node.entry(name).map(|e| (&e.value, e.at)).unzip(),
            Step::Index(index) => node.item(index).map(|n| (n, n.at)).unzip(),
        };
        (found, found_at.unwrap_or(at))
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(parent) = self.parent else { return Ok(()) };
        parent.fmt(f)?;
        match self.step {
            Step::Root => Ok(()),
            Step::Child(name) if parent.parent.is_none() => f.write_str(name),
            Step::Child(name) => write!(f, ".{name}"),
            Step::Key(key) => write!(f, "[{key}]"),
            Step::Index(index) => write!(f, "[{index}]"),
        }
    }
}
