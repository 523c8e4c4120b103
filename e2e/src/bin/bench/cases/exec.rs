//! The command line's exec, as its user waits for it.

use super::{Bench, Counts};
use crate::report::Row;
use crate::side::Pods;

/// A static program that says a word.
pub fn latency(bench: &mut Bench<'_>) {
    let mut row = Row::milliseconds("exec of a static program by the CLI").budget(Some(5.0)).against("exec");
    let pods = Pods::new("exec", 1, 1);
    for side in bench.sides() {
        side.start(&pods);
    }
    bench.rounds(30, |side, counts| {
        let took = side.exec(&pods, &["/demo", "echo", "hello"]);
        if counts == Counts::Yes {
            row.add_time(side.name(), took);
        }
    });
    for side in bench.sides() {
        side.stop(&pods);
    }
    bench.report.add(row);
}
