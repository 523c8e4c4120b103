//! Tables: how the server answers `as=Table`, and how the command line prints them, as kubectl does. Pure.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A column as a server declares it.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// As in a sentence; printed in capitals.
    pub name: &'static str,
    /// `string`, `integer` or `date`.
    pub kind: &'static str,
    /// 0: always shown; 1: with `-o wide`.
    pub priority: u8,
}

/// A string column that is always shown.
pub const fn column(name: &'static str) -> Column {
    Column { name, kind: "string", priority: 0 }
}

/// A string column of `-o wide`.
pub const fn wide(name: &'static str) -> Column {
    Column { name, kind: "string", priority: 1 }
}

impl Column {
    /// The declaration in a Table.
    pub fn definition(&self) -> Value {
        let format = if self.name == "Name" { "name" } else { "" };
        json!({ "name": self.name, "type": self.kind, "format": format, "description": "", "priority": self.priority })
    }
}

/// A Table as a client reads it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Table {
    /// What the cells are.
    pub column_definitions: Vec<Definition>,
    /// One an object.
    pub rows: Vec<Row>,
    /// resourceVersion and continue.
    pub metadata: Value,
}

/// A column as a client reads it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Definition {
    /// As in a sentence.
    pub name: String,
    /// 0: always shown.
    pub priority: u8,
}

/// A row as a client reads it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Row {
    /// One a column.
    pub cells: Vec<Value>,
    /// The object, or its metadata.
    pub object: Value,
}

/// What of a table is shown.
#[derive(Debug, Clone, Copy, Default)]
pub struct Look {
    /// The columns of `-o wide`.
    pub wide: bool,
    /// A first column NAMESPACE.
    pub namespaces: bool,
    /// No line with the columns' names.
    pub headless: bool,
    /// A last column LABELS.
    pub labels: bool,
}

/// Turns tables into lines; remembers what it has printed, for `-w`: the header comes once and columns never get narrower.
#[derive(Debug, Default)]
pub struct Printer {
    look: Look,
    columns: Vec<Definition>,
    widths: Vec<usize>,
}

impl Printer {
    /// For tables of one kind.
    pub fn new(look: Look) -> Self {
        Self { look, ..Self::default() }
    }

    /// The lines for this table, each with its end. The first has the columns' names.
    pub fn print(&mut self, table: &Table) -> String {
        let mut lines = Vec::new();
        // The events of a watch leave the definitions out after the first.
        if self.columns.is_empty() {
            self.columns.clone_from(&table.column_definitions);
            if !self.look.headless {
                lines.push(self.header());
            }
        }
        lines.extend(table.rows.iter().map(|row| self.cells(row)));
        for line in &lines {
            self.widths.resize(self.widths.len().max(line.len()), 0);
            for (width, cell) in self.widths.iter_mut().zip(line) {
                *width = (*width).max(cell.chars().count());
            }
        }
        lines.iter().map(|line| self.line(line)).collect()
    }

    fn header(&self) -> Vec<String> {
        let shown = self.columns.iter().filter(|c| self.shows(c)).map(|c| c.name.to_uppercase());
        let labels = self.look.labels.then(|| "LABELS".to_owned());
        self.look.namespaces.then(|| "NAMESPACE".to_owned()).into_iter().chain(shown).chain(labels).collect()
    }

    fn cells(&self, row: &Row) -> Vec<String> {
        let namespace = self.look.namespaces.then(|| text(&row.object["metadata"]["namespace"]));
        let shown = self.columns.iter().zip(&row.cells).filter(|(c, _)| self.shows(c)).map(|(_, cell)| text(cell));
        let labels = self.look.labels.then(|| labels(&row.object["metadata"]["labels"]));
        namespace.into_iter().chain(shown).chain(labels).collect()
    }

    fn shows(&self, column: &Definition) -> bool {
        self.look.wide || column.priority == 0
    }

    fn line(&self, cells: &[String]) -> String {
        let mut line = String::new();
        for (index, cell) in cells.iter().enumerate() {
            line.push_str(cell);
            if index + 1 < cells.len() {
                // Three spaces between columns, none narrower than six: kubectl's look.
                let width = (self.widths[index] + 3).max(6);
                line.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.chars().count())));
            }
        }
        line.push('\n');
        line
    }
}

/// A cell on one line: what a container wrote into a message must not move the terminal's cursor.
fn text(cell: &Value) -> String {
    let raw = match cell {
        Value::Null => "<none>".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let first = raw.split(['\n', '\r', '\u{c}']).next().unwrap_or_default();
    let cut = first.len() < raw.trim_end().len();
    let clean: String = first.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if cut { clean + "..." } else { clean }
}

fn labels(object: &Value) -> String {
    let pairs = object.as_object().into_iter().flatten().map(|(key, value)| format!("{key}={}", text(value)));
    let joined = pairs.collect::<Vec<_>>().join(",");
    if joined.is_empty() { "<none>".to_owned() } else { joined }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[(&str, Value)]) -> Table {
        let definition = |name: &str, priority| Definition { name: name.into(), priority };
        Table {
            column_definitions: vec![definition("Name", 0), definition("Restarts", 0), definition("IP", 1)],
            rows: rows
                .iter()
                .map(|(name, restarts)| Row {
                    cells: vec![json!(name), restarts.clone(), json!("10.1.0.2")],
                    object: json!({ "metadata": { "namespace": "default", "labels": { "app": "web" } } }),
                })
                .collect(),
            metadata: Value::Null,
        }
    }

    #[test]
    fn columns_are_padded_and_the_last_is_not() {
        let printed = Printer::new(Look::default()).print(&table(&[("web", json!(0)), ("a-long-name", json!("3 (5m ago)"))]));
        assert_eq!(printed, "NAME          RESTARTS\nweb           0\na-long-name   3 (5m ago)\n");
    }

    #[test]
    fn wide_with_namespace_and_labels() {
        let look = Look { wide: true, namespaces: true, labels: true, ..Look::default() };
        let printed = Printer::new(look).print(&table(&[("web", json!(0))]));
        assert_eq!(
            printed,
            "NAMESPACE   NAME   RESTARTS   IP         LABELS\ndefault     web    0          10.1.0.2   app=web\n"
        );
    }

    #[test]
    fn a_watch_has_one_header_and_keeps_its_widths() {
        let mut printer = Printer::new(Look::default());
        printer.print(&table(&[("a-long-name", json!(0))]));
        assert_eq!(printer.print(&table(&[("b", json!(1))])), "b             1\n");
    }

    #[test]
    fn hostile_cells_stay_on_their_line() {
        let printed = Printer::new(Look { headless: true, ..Look::default() }).print(&table(&[("a\u{1b}[2Jb\nc", json!(0))]));
        assert_eq!(printed, "a [2Jb...   0\n");
    }
}
