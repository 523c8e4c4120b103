//! What is measured, in the order of the table.

mod edits;
mod exec;
mod output;
mod probes;
mod pull;
mod ready;
mod restart;
mod scale;
mod standing;
mod start;
mod steps;

use crate::nodeagent::Nodeagent;
use crate::podman::Podman;
use crate::report::Report;
use crate::side::Side;

/// A part of the table.
struct Part {
    name: &'static str,
    what: &'static str,
    run: fn(&mut Bench<'_>),
}

const PARTS: [Part; 12] = [
    Part { name: "start", what: "one pod of 1, 2 and 10 containers: start and stop", run: start::one },
    Part { name: "many", what: "50 pods at once, and their memory", run: start::many },
    Part { name: "exec", what: "the command line's exec", run: exec::latency },
    Part { name: "output", what: "a container that writes as fast as it can", run: output::written },
    Part { name: "pull", what: "images from a loopback registry, also by skopeo copy", run: pull::images },
    Part { name: "idle", what: "processor time of pods that do nothing", run: standing::idle },
    Part { name: "probes", what: "processor time of a probe a second in each of many pods", run: probes::each_second },
    Part { name: "restart", what: "the agent killed under 100 pods", run: restart::adoption },
    Part {
        name: "edits",
        what: "a ConfigMap's edit until a container sees it, beside few and beside many files",
        run: edits::seen,
    },
    Part { name: "ready", what: "a Service's endpoint ready and unready until connections notice", run: ready::taken },
    Part { name: "scale", what: "one more pod beside 10 and beside 500", run: scale::one_more },
    Part { name: "steps", what: "where the time of our start goes", run: steps::of_a_start },
];

/// What the command line asks for.
pub struct Choice {
    us: bool,
    podman: bool,
    parts: Vec<&'static Part>,
    /// A fifth of the rounds.
    quick: bool,
}

impl Choice {
    /// Names of parts (none: all), of sides (none: both), and `quick`. An `Err` says how it is used.
    pub fn of(words: &[String]) -> Result<Self, String> {
        // Starts and stops are measured together.
        let words: Vec<&str> = words.iter().map(|word| if word == "stop" { "start" } else { word.as_str() }).collect();
        let given = |name: &str| words.contains(&name);
        let known = |word: &str| ["us", "podman", "quick"].contains(&word) || PARTS.iter().any(|part| part.name == word);
        if let Some(unknown) = words.iter().find(|word| !known(word)) {
            let parts: Vec<String> = PARTS.iter().map(|part| format!("  {:8} {}", part.name, part.what)).collect();
            return Err(format!("{unknown}: no such part\n\nUsage: bench [us|podman] [quick] [PART...]\n{}", parts.join("\n")));
        }
        let all = !PARTS.iter().any(|part| given(part.name));
        let parts: Vec<&'static Part> = PARTS.iter().filter(|part| all || given(part.name)).collect();
        Ok(Self { us: !given("podman") || given("us"), podman: !given("us") || given("podman"), parts, quick: given("quick") })
    }
}

/// Both sides, and what was found.
struct Bench<'a> {
    us: Option<Nodeagent>,
    podman: Option<Podman>,
    report: &'a mut Report,
    quick: bool,
}

/// Runs the chosen parts on the chosen sides.
pub fn run(choice: &Choice, report: &mut Report) {
    // podman's wants hugetlb as a hierarchy of v1, which can't be had once an agent uses it on v2.
    let podman = choice.podman.then(Podman::new);
    let us = choice.us.then(Nodeagent::new);
    let mut bench = Bench { us, podman, report, quick: choice.quick };
    for part in &choice.parts {
        eprintln!("{}: {} …", part.name, part.what);
        (part.run)(&mut bench);
    }
}

impl Bench<'_> {
    fn sides(&mut self) -> impl Iterator<Item = &mut dyn Side> {
        let us = self.us.iter_mut().map(|side| -> &mut dyn Side { side });
        us.chain(self.podman.iter_mut().map(|side| -> &mut dyn Side { side }))
    }

    /// Both sides take turns, so that what the machine does besides touches both alike. The first round fills caches and isn't
    /// counted.
    fn rounds(&mut self, number: usize, mut turn: impl FnMut(&mut dyn Side, Counts)) {
        let number = if self.quick { number.div_ceil(5) } else { number };
        for round in 0..=number {
            let counts = if round == 0 { Counts::No } else { Counts::Yes };
            self.sides().for_each(|side| {
                std::thread::sleep(REST);
                turn(side, counts);
            });
        }
    }
}

/// Before each turn: what the turn before left to be done in the background is not this one's.
const REST: std::time::Duration = std::time::Duration::from_millis(500);

/// Whether a round does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Counts {
    Yes,
    No,
}
