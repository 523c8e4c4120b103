//! The agent's own life: what it takes, and how fast another one follows. podman has no such thing.

use super::Bench;
use crate::report::Row;
use crate::side::{Pods, Side};

/// kill -9 under 100 pods.
pub fn adoption(bench: &mut Bench<'_>) {
    const TIMES: usize = 10;
    let Some(us) = &mut bench.us else { return };
    let mut made = Row::new("agent's RSS, 100 pods made by it", "MB").budget(Some(20.0));
    let mut adopted = Row::new("agent's RSS, 100 pods adopted", "MB").budget(Some(20.0));
    let mut restart = Row::milliseconds("agent killed, 100 pods: exec → all adopted, none restarted").budget(Some(100.0));
    let pods = Pods::new("adopt", 100, 1);
    us.start(&pods);
    made.add("us", us.agent_memory() as f64 / 1e6);
    for _ in 0..TIMES {
        restart.add_time("us", us.restart(&pods));
        adopted.add("us", us.agent_memory() as f64 / 1e6);
    }
    us.stop(&pods);
    for row in [made, adopted, restart] {
        bench.report.add(row);
    }
}
