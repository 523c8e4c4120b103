//! The agent's own life: what it takes, and how fast another one follows. podman has no such thing.

use super::Bench;
use crate::report::Row;
use crate::side::{Pods, Side};

/// After a burst the agent gives memory back.
const SETTLED: std::time::Duration = std::time::Duration::from_secs(5);

/// kill -9 under 100 pods.
pub fn adoption(bench: &mut Bench<'_>) {
    const TIMES: usize = 10;
    let Some(us) = &mut bench.us else { return };
    let mut burst = Row::new("agent's RSS, when it has just made 100 pods", "MB");
    let mut made = Row::new("agent's RSS, 100 pods made by it, 5 s later", "MB").budget(Some(20.0));
    let mut adopted = Row::new("agent's RSS, 100 pods adopted, 5 s later", "MB").budget(Some(20.0));
    let mut restart = Row::milliseconds("agent killed, 100 pods: exec → all adopted, none restarted").budget(Some(100.0));
    let pods = Pods::new("adopt", 100, 1);
    us.start(&pods);
    burst.add("us", us.agent_memory() as f64 / 1e6);
    std::thread::sleep(SETTLED);
    made.add("us", us.agent_memory() as f64 / 1e6);
    for _ in 0..TIMES {
        restart.add_time("us", us.restart(&pods));
    }
    std::thread::sleep(SETTLED);
    adopted.add("us", us.agent_memory() as f64 / 1e6);
    us.stop(&pods);
    for row in [burst, made, adopted, restart] {
        bench.report.add(row);
    }
}
