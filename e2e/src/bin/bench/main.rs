//! `make bench`: the same YAML under us and under podman kube play, in one run, on one machine. Numbers, no pass or fail: a table
//! with ratios and budgets, and target/bench.json.
#![forbid(unsafe_code)]
// A benchmark that can't measure has nothing to return: it says why and ends.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cases;
mod disk;
mod machine;
mod nodeagent;
mod podman;
mod priority;
mod process;
mod readiness;
mod report;
mod side;
mod stopwatch;
mod wrapper;

use std::process::ExitCode;

use cases::Choice;
use report::Report;

fn main() -> ExitCode {
    let mut words = std::env::args();
    let name = words.next().unwrap_or_default();
    let words: Vec<String> = words.collect();
    // The same program by other names: what is to run inside the boxes.
    if name.ends_with(wrapper::NAME) {
        return wrapper::without_rlimits(&words);
    }
    if name.ends_with(stopwatch::NAME) {
        return stopwatch::time(&words);
    }
    match Choice::of(&words) {
        Ok(_) if !disk::is_mounted() => disk::run_on_one(&words),
        Ok(choice) => bench(&choice),
        Err(usage) => {
            eprintln!("{usage}");
            ExitCode::from(2)
        }
    }
}

fn bench(choice: &Choice) -> ExitCode {
    priority::raise();
    let mut report = Report::new(machine::facts());
    cases::run(choice, &mut report);
    println!("\n{report}");
    let path = e2e::workspace().join("target/bench.json");
    std::fs::write(&path, report.json()).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    println!("Written to {}", path.display());
    ExitCode::SUCCESS
}
