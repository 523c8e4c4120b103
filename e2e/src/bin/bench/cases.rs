//! What is measured, in the order of the table.

use std::time::{Duration, Instant};

use crate::nodeagent::Nodeagent;
use crate::podman::Podman;
use crate::report::{Report, Row};
use crate::side::{self, Side};

/// A part of the table.
struct Part {
    name: &'static str,
    run: fn(&mut Sides, &mut Report),
}

const PARTS: [Part; 5] = [
    Part { name: "start", run: start_and_stop },
    Part { name: "many", run: fifty_at_once },
    Part { name: "idle", run: idle },
    Part { name: "restart", run: restart },
    Part { name: "pull", run: pull },
];

/// The parts' names.
pub fn names() -> Vec<&'static str> {
    PARTS.iter().map(|part| part.name).collect()
}

struct Sides {
    us: Option<Nodeagent>,
    podman: Option<Podman>,
}

impl Sides {
    fn each(&mut self) -> Vec<&mut dyn Side> {
        let us = self.us.iter_mut().map(|side| -> &mut dyn Side { side });
        us.chain(self.podman.iter_mut().map(|side| -> &mut dyn Side { side })).collect()
    }
}

/// Runs the chosen parts, all if none is named, on the chosen sides, both if none is named.
pub fn run(chosen: &[String], report: &mut Report) {
    let picks = |name: &str| chosen.iter().any(|word| word == name);
    let one_side = picks("us") || picks("podman");
    let all_parts = !PARTS.iter().any(|part| picks(part.name));
    let mut sides =
        Sides { us: (!one_side || picks("us")).then(Nodeagent::new), podman: (!one_side || picks("podman")).then(Podman::new) };
    for part in &PARTS {
        if all_parts || picks(part.name) {
            eprintln!("{} …", part.name);
            (part.run)(&mut sides, report);
        }
    }
}

fn start_and_stop(sides: &mut Sides, report: &mut Report) {
    for (containers, start_budget, stop_budget) in [(1, None, None), (2, Some(10.0), Some(20.0)), (10, None, None)] {
        let mut start = Row::milliseconds(&format!("pod of {containers}: start"), start_budget);
        let mut stop = Row::milliseconds(&format!("pod of {containers}: stop"), stop_budget);
        let yaml = side::yaml(1, containers);
        for side in sides.each() {
            let times = if side.name() == "us" { 20 } else { 5 };
            // The first one of each fills caches.
            side.start(&yaml, containers);
            side.stop();
            for _ in 0..times {
                start.add(side.name(), millis(side.start(&yaml, containers)));
                stop.add(side.name(), millis(side.stop()));
            }
        }
        report.add(start);
        report.add(stop);
    }
}

fn fifty_at_once(sides: &mut Sides, report: &mut Report) {
    const PODS: usize = 50;
    let mut start = Row::milliseconds("50 pods of 2 at once: start", Some(500.0));
    let mut memory = Row::new("memory a pod beside the user's (PSS)", "kB", Some(100.0));
    let mut stop = Row::milliseconds("50 pods of 2: stop", None);
    for side in sides.each() {
        start.add(side.name(), millis(side.start(&side::yaml(PODS, 2), PODS * 2)));
        memory.add(side.name(), side.memory_beside() as f64 / PODS as f64 / 1000.0);
        stop.add(side.name(), millis(side.stop()));
    }
    report.add(start);
    report.add(memory);
    report.add(stop);
}

/// The kubelet's default of 110 pods a node makes 100 a full one; podman gets 20, for its start takes long and its cost is by pod.
fn idle(sides: &mut Sides, report: &mut Report) {
    const WATCH: Duration = Duration::from_secs(20);
    let mut processor = Row::new("idle pods (us 100, podman 20): processor", "% of a core", Some(0.1));
    for side in sides.each() {
        let pods = if side.name() == "us" { 100 } else { 20 };
        side.start(&side::yaml(pods, 1), pods);
        std::thread::sleep(Duration::from_secs(5));
        let (began, used) = (Instant::now(), side.processor());
        std::thread::sleep(WATCH);
        let share = (side.processor() - used).as_secs_f64() / began.elapsed().as_secs_f64();
        processor.add(side.name(), share * 100.0);
        side.stop();
    }
    report.add(processor);
}

fn restart(sides: &mut Sides, report: &mut Report) {
    const PODS: usize = 100;
    let Some(us) = &mut sides.us else { return };
    let mut memory = Row::new("agent's RSS, 100 pods", "MB", Some(20.0));
    let mut restart = Row::milliseconds("agent killed, 100 pods: all known again", Some(100.0));
    us.start(&side::yaml(PODS, 1), PODS);
    memory.add("us", us.agent_memory() as f64 / 1e6);
    for _ in 0..5 {
        restart.add("us", millis(us.restart(PODS)));
    }
    memory.add("us", us.agent_memory() as f64 / 1e6);
    us.stop();
    report.add(memory);
    report.add(restart);
}

fn pull(sides: &mut Sides, report: &mut Report) {
    for image in ["library/debian:12", "library/nginx:1", "library/redis:7"] {
        let mut row = Row::milliseconds(&format!("pull and unpack {image}"), None);
        for side in sides.each() {
            let reference = if side.name() == "us" { format!("docker.io/{image}") } else { image.to_string() };
            for _ in 0..5 {
                row.add(side.name(), millis(side.pull(&reference)));
            }
        }
        report.add(row);
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
