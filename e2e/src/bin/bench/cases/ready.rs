//! How soon a Service follows its endpoint: from the probe's answer until connections are what it says. Ours alone: podman has no Services.

use super::Bench;
use crate::report::Row;

/// Beside 10 and beside 1,000 other Services.
pub fn taken(bench: &mut Bench<'_>) {
    let Some(us) = &bench.us else { return };
    let flips = if bench.quick { 8 } else { 30 };
    for services in [10, 1000] {
        let [ready, unready] = us.flips(services, flips);
        for (what, times) in [("ready → a Service leads there", ready), ("unready → none does", unready)] {
            let mut row = Row::milliseconds(format!("{what}, beside {services} Services")).budget(Some(10.0));
            times.into_iter().for_each(|time| row.add_time("us", time));
            bench.report.add(row);
        }
    }
}
