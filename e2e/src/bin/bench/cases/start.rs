//! Pods' starts and stops, alone and many at once.

use super::{Bench, Counts};
use crate::report::Row;
use crate::side::Pods;

/// One pod of 1, 2 and 10 containers.
pub fn one(bench: &mut Bench<'_>) {
    for (containers, rounds, start_budget, stop_budget) in
        [(1, 20, None, None), (2, 20, Some(10.0), Some(20.0)), (10, 10, None, None)]
    {
        let mut start = Row::milliseconds(format!("pod of {containers}: start")).budget(start_budget);
        let mut stop = Row::milliseconds(format!("pod of {containers}: stop")).budget(stop_budget).against("pod stop, pod rm");
        let pods = Pods::new("one", 1, containers);
        bench.rounds(rounds, |side, counts| {
            let (started, stopped) = (side.start(&pods), side.stop(&pods));
            if counts == Counts::Yes {
                start.add_time(side.name(), started);
                stop.add_time(side.name(), stopped);
            }
        });
        bench.report.add(start);
        bench.report.add(stop);
    }
}

/// 50 pods of two containers in one file.
pub fn many(bench: &mut Bench<'_>) {
    const PODS: usize = 50;
    let mut start = Row::milliseconds("50 pods of 2 at once: start").budget(Some(500.0));
    let mut memory = Row::new("memory a pod beside the user's (PSS)", "kB").budget(Some(100.0)).against("conmon, catatonit");
    let mut stop = Row::milliseconds("50 pods of 2 at once: stop").against("pod stop, pod rm");
    let pods = Pods::new("many", PODS, 2);
    bench.rounds(3, |side, counts| {
        // Twelve seconds and more on the other side: caches are warm from the first of them.
        if counts == Counts::No && side.name() == "podman" {
            return;
        }
        let started = side.start(&pods);
        let beside = side.memory_beside();
        let stopped = side.stop(&pods);
        if counts == Counts::Yes {
            start.add_time(side.name(), started);
            memory.add(side.name(), beside as f64 / PODS as f64 / 1000.0);
            stop.add_time(side.name(), stopped);
        }
    });
    bench.report.add(start);
    bench.report.add(memory);
    bench.report.add(stop);
}
