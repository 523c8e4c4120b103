//! How fast a container's output is taken from it.

use super::{Bench, Counts};
use crate::report::Row;

const BYTES: usize = 200_000_000;

/// One that writes as fast as it can; its log is rotated as it is by default.
pub fn written(bench: &mut Bench<'_>) {
    let what = "200 MB of output in lines of 100 bytes: until the log has taken it";
    let mut row = Row::milliseconds(what).budget(Some(1000.0)).against("conmon, k8s-file");
    bench.rounds(5, |side, counts| {
        let took = side.output(BYTES);
        if counts == Counts::Yes {
            row.add_time(side.name(), took);
        }
    });
    bench.report.add(row);
}
