//! The table and its JSON.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Value, json};

/// All rows, and the machine that they were measured on.
pub struct Report {
    machine: Value,
    rows: Vec<Row>,
}

/// One thing measured, on both sides.
pub struct Row {
    what: String,
    unit: &'static str,
    budget: Option<f64>,
    samples: BTreeMap<&'static str, Vec<f64>>,
}

impl Row {
    pub fn new(what: &str, unit: &'static str, budget: Option<f64>) -> Self {
        Self { what: what.into(), unit, budget, samples: BTreeMap::new() }
    }

    pub fn milliseconds(what: &str, budget: Option<f64>) -> Self {
        Self::new(what, "ms", budget)
    }

    pub fn add(&mut self, side: &'static str, value: f64) {
        self.samples.entry(side).or_default().push(value);
    }

    fn sorted(&self, side: &str) -> Vec<f64> {
        let mut values = self.samples.get(side).cloned().unwrap_or_default();
        values.sort_by(f64::total_cmp);
        values
    }

    fn median(&self, side: &str) -> Option<f64> {
        let values = self.sorted(side);
        values.get(values.len() / 2).copied()
    }

    fn json(&self) -> Value {
        let side = |name: &&'static str| {
            let values = self.sorted(name);
            json!({"median": self.median(name), "min": values.first(), "max": values.last(), "samples": values.len()})
        };
        let sides: serde_json::Map<String, Value> = self.samples.keys().map(|name| ((*name).to_string(), side(name))).collect();
        json!({"what": self.what, "unit": self.unit, "budget": self.budget, "ratio": self.ratio(), "sides": sides})
    }

    /// How many times ours podman's is.
    fn ratio(&self) -> Option<f64> {
        Some(self.median("podman")? / self.median("us")?.max(1e-9))
    }
}

impl Report {
    pub fn new() -> Self {
        Self { machine: machine(), rows: Vec::new() }
    }

    pub fn add(&mut self, row: Row) {
        eprintln!("  {}", line(&row));
        self.rows.push(row);
    }

    pub fn json(&self) -> String {
        let rows: Vec<Value> = self.rows.iter().map(Row::json).collect();
        format!("{:#}\n", json!({"machine": self.machine, "rows": rows}))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in self.machine.as_object().into_iter().flatten() {
            writeln!(f, "{name}: {}", value.as_str().unwrap_or_default())?;
        }
        writeln!(f, "\n| what (median) | us | podman kube play | ratio | budget |\n|---|---|---|---|---|")?;
        self.rows.iter().try_for_each(|row| writeln!(f, "{}", line(row)))
    }
}

fn line(row: &Row) -> String {
    let value = |number: Option<f64>| number.map_or("–".into(), |number| format!("{} {}", rounded(number), row.unit));
    let ratio =
        row.ratio().filter(|ratio| ratio.is_finite() && *ratio < 1e6).map_or("–".into(), |ratio| format!("{ratio:.1} ×"));
    format!("| {} | {} | {} | {ratio} | {} |", row.what, value(row.median("us")), value(row.median("podman")), value(row.budget))
}

fn rounded(number: f64) -> String {
    match number {
        number if number >= 100.0 => format!("{number:.0}"),
        number if number >= 10.0 => format!("{number:.1}"),
        number => format!("{number:.2}"),
    }
}

fn machine() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map(|(_, value)| value.trim().to_string()).unwrap_or_default()
    };
    let cpuinfo = read("/proc/cpuinfo");
    let version = |program: &str| {
        let output = e2e::run(std::process::Command::new(program).arg("--version"));
        output.stdout.lines().next().unwrap_or_default().to_string()
    };
    json!({
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "processor": format!("{} × {}", cpuinfo.matches("processor\t").count(), field(&cpuinfo, "model name")),
        "memory": field(&read("/proc/meminfo"), "MemTotal"),
        "other side": format!("{}, {}", version("podman"), version("crun")),
    })
}
