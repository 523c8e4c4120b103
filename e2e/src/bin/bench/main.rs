//! `make bench`: the same YAML under us and under podman kube play, in one run, on one machine. Numbers, no pass or fail: a table
//! with ratios and budgets, and target/bench.json.
#![forbid(unsafe_code)]
// A benchmark that can't measure has nothing to return: it says why and ends.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cases;
mod nodeagent;
mod podman;
mod report;
mod side;

use std::process::ExitCode;

use report::Report;

fn main() -> ExitCode {
    let mut words = std::env::args();
    // podman calls this program by the name that its containers.conf has for its runtime.
    if words.next().is_some_and(|name| name.ends_with(podman::RUNTIME)) {
        return podman::without_rlimits(&words.collect::<Vec<_>>());
    }
    let chosen: Vec<String> = words.collect();
    if chosen.iter().any(|word| word.starts_with('-')) {
        println!("Usage: bench [us|podman] [PART...]\nParts: {}", cases::names().join(" "));
        return ExitCode::SUCCESS;
    }
    let mut report = Report::new();
    cases::run(&chosen, &mut report);
    println!("\n{report}");
    let path = e2e::workspace().join("target/bench.json");
    std::fs::write(&path, report.json()).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    println!("Written to {}", path.display());
    ExitCode::SUCCESS
}
