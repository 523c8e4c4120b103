//! Whether the 500th pod costs what the tenth did. Ours alone: podman would take minutes to get there.

use super::Bench;
use crate::report::{Row, quantile};
use crate::side::{Pods, Side};

/// One more pod of two, beside few and beside many.
pub fn one_more(bench: &mut Bench<'_>) {
    let Some(us) = &mut bench.us else { return };
    let rounds = if bench.quick { 4 } else { 20 };
    let mut medians = Vec::new();
    let mut rows = Vec::new();
    for count in [10, 500] {
        let standing = Pods::new("standing", count, 1);
        let mut all = Row::milliseconds(format!("{count} pods of 1 at once: start, a pod"));
        let mut start = Row::milliseconds(format!("one more pod of 2 beside {count}: start"));
        let mut stop = Row::milliseconds(format!("one more pod of 2 beside {count}: stop"));
        all.add("us", us.start(&standing).as_secs_f64() * 1000.0 / count as f64);
        let mut memory = Row::new(format!("{count} pods of 1: memory a pod (PSS)"), "kB");
        memory.add("us", us.memory_beside() as f64 / count as f64 / 1000.0);
        let mut agent = Row::new(format!("{count} pods of 1: agent's RSS"), "MB");
        agent.add("us", us.agent_memory() as f64 / 1e6);
        let one = Pods::new("more", 1, 2);
        let mut started = Vec::new();
        for round in 0..=rounds {
            let (starting, stopping) = (us.start(&one), us.stop(&one));
            if round > 0 {
                start.add_time("us", starting);
                stop.add_time("us", stopping);
                started.push(starting.as_secs_f64());
            }
        }
        us.stop(&standing);
        medians.extend(quantile(&started, 0.5));
        rows.extend([all, memory, agent, start, stop]);
    }
    let mut flat = Row::new("start of one more: beside 500 / beside 10", "×").budget(Some(1.2));
    if let [few, many] = medians[..] {
        flat.add("us", many / few);
    }
    rows.push(flat);
    for row in rows {
        bench.report.add(row);
    }
}
