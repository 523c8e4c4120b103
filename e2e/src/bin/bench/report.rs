//! The table and its JSON.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Value, json};

/// All rows, and the machine that they were measured on.
pub struct Report {
    machine: Value,
    rows: Vec<Row>,
    steps: Vec<Step>,
}

/// One step of a start of ours, in microseconds.
pub struct Step {
    pub name: String,
    /// Since the agent saw the pod.
    pub at: f64,
    pub took: f64,
}

/// One thing measured, on both sides.
pub struct Row {
    what: String,
    unit: &'static str,
    /// The other side's command.
    against: &'static str,
    budget: Option<f64>,
    samples: BTreeMap<&'static str, Vec<f64>>,
}

impl Row {
    pub fn new(what: impl Into<String>, unit: &'static str) -> Self {
        Self { what: what.into(), unit, against: "kube play", budget: None, samples: BTreeMap::new() }
    }

    pub fn milliseconds(what: impl Into<String>) -> Self {
        Self::new(what, "ms")
    }

    pub fn budget(mut self, budget: Option<f64>) -> Self {
        self.budget = budget;
        self
    }

    pub fn against(mut self, command: &'static str) -> Self {
        self.against = command;
        self
    }

    pub fn add(&mut self, side: &'static str, value: f64) {
        self.samples.entry(side).or_default().push(value);
    }

    pub fn add_time(&mut self, side: &'static str, time: std::time::Duration) {
        self.add(side, time.as_secs_f64() * 1000.0);
    }

    fn quantile(&self, side: &str, share: f64) -> Option<f64> {
        quantile(self.samples.get(side)?, share)
    }

    fn median(&self, side: &str) -> Option<f64> {
        self.quantile(side, 0.5)
    }

    fn p90(&self, side: &str) -> Option<f64> {
        self.quantile(side, 0.9)
    }

    /// How many times ours the other's is.
    fn ratio(&self) -> Option<f64> {
        Some(self.median("podman")? / self.median("us")?).filter(|ratio| ratio.is_finite() && *ratio > 0.0)
    }

    fn json(&self) -> Value {
        let side = |(name, values): (&&'static str, &Vec<f64>)| {
            let numbers = json!({"median": self.median(name), "p90": self.p90(name), "samples": values});
            ((*name).to_string(), numbers)
        };
        let sides: serde_json::Map<String, Value> = self.samples.iter().map(side).collect();
        json!({
            "what": self.what, "unit": self.unit, "against": self.against, "budget": self.budget, "ratio": self.ratio(),
            "sides": sides,
        })
    }
}

impl Report {
    pub fn new(machine: Value) -> Self {
        Self { machine, rows: Vec::new(), steps: Vec::new() }
    }

    pub fn add(&mut self, row: Row) {
        eprintln!("  {row}");
        self.rows.push(row);
    }

    pub fn add_steps(&mut self, steps: Vec<Step>) {
        self.steps.extend(steps);
    }

    pub fn json(&self) -> String {
        let rows: Vec<Value> = self.rows.iter().map(Row::json).collect();
        let steps: Vec<Value> =
            self.steps.iter().map(|step| json!({"step": step.name, "at": step.at, "took": step.took})).collect();
        format!("{:#}\n", json!({"machine": self.machine, "rows": rows, "steps in microseconds": steps}))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in self.machine.as_object().into_iter().flatten() {
            writeln!(f, "{name}: {}", value.as_str().unwrap_or_default())?;
        }
        writeln!(f, "\n| what | | budget | us: median | p90 | podman: median | p90 | ratio | podman's command |")?;
        writeln!(f, "|---|---|---|---|---|---|---|---|---|")?;
        self.rows.iter().try_for_each(|row| writeln!(f, "{row}"))?;
        if !self.steps.is_empty() {
            writeln!(f, "\n| a start of ours: at µs (median) | took µs | step |\n|---|---|---|")?;
        }
        self.steps.iter().try_for_each(|Step { name, at, took }| writeln!(f, "| {at:.0} | {took:.0} | {name} |"))
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ratio = self.ratio().map_or("–".into(), |ratio| format!("{} ×", rounded(ratio)));
        let against = if self.samples.contains_key("podman") { self.against } else { "–" };
        let numbers = |side| [self.median(side), self.p90(side)].map(cell);
        let ([us, us90], [other, other90]) = (numbers("us"), numbers("podman"));
        let Self { what, unit, .. } = self;
        write!(f, "| {what} | {unit} | {} | {us} | {us90} | {other} | {other90} | {ratio} | {against} |", cell(self.budget))
    }
}

/// The value that this share of the samples doesn't exceed.
pub fn quantile(samples: &[f64], share: f64) -> Option<f64> {
    let mut values = samples.to_vec();
    values.sort_by(f64::total_cmp);
    let rank = (share * values.len() as f64).ceil() as usize;
    values.get(rank.saturating_sub(1)).copied()
}

fn cell(number: Option<f64>) -> String {
    number.map_or("–".into(), rounded)
}

/// Three digits.
fn rounded(number: f64) -> String {
    match number {
        number if number >= 100.0 => format!("{number:.0}"),
        number if number >= 10.0 => format!("{number:.1}"),
        number if number >= 1.0 => format!("{number:.2}"),
        number => format!("{number:.3}"),
    }
}
