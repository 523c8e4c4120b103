//! What is wrong with a file, told so that an editor can jump there: `web.yaml:12:5: spec.containers[0].image: Required value`.

use std::fmt;
use std::path::PathBuf;

/// A line and a column of a text, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position {
    /// From 1; 0 where no line can be named (the file can't be read at all).
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
}

/// Something wrong at a place of a text, before it is known which file the text is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub at: Position,
    /// The field's path, such as `spec.containers[0].image`; empty where no field is meant.
    pub field: String,
    /// What is wrong, and where it helps what would be right.
    pub message: String,
}

impl Problem {
    /// A problem of the text itself, of no field.
    pub fn text(at: Position, message: impl Into<String>) -> Self {
        Self { at, field: String::new(), message: message.into() }
    }

    /// The same, with the file's name.
    pub fn of(self, file: PathBuf) -> FileError {
        FileError { file, line: self.at.line, column: self.at.column, field: self.field, message: self.message }
    }
}

/// Something wrong in a file (or with it).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct FileError {
    /// The file as it was named to us, `-` for standard input.
    pub file: PathBuf,
    /// From 1; 0 where the whole file is meant.
    pub line: usize,
    /// From 1; 0 where the whole file is meant.
    pub column: usize,
    /// The field's path, such as `spec.containers[0].image`; empty where no field is meant.
    pub field: String,
    /// What is wrong, and where it helps what would be right.
    pub message: String,
}

impl FileError {
    /// An error that concerns the whole file.
    pub fn whole(file: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        Self { file: file.into(), line: 0, column: 0, field: String::new(), message: message.into() }
    }
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if self.line > 0 {
            write!(f, "{}:{}:", self.line, self.column)?;
        }
        if !self.field.is_empty() {
            write!(f, " {}:", self.field)?;
        }
        write!(f, " {}", self.message)
    }
}
