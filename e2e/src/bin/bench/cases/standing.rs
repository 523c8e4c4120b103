//! Pods that do nothing: what they cost.

use std::time::{Duration, Instant};

use super::Bench;
use crate::report::Row;
use crate::side::Pods;

const WATCH: Duration = Duration::from_secs(20);
/// Until what a start leaves to be done later is done.
const SETTLE: Duration = Duration::from_secs(5);

/// The kubelet's default of 110 pods a node makes 100 a full one. podman gets 20: its start takes long, and what it has is by pod.
pub fn idle(bench: &mut Bench<'_>) {
    let mut processor =
        Row::new("idle pods (us 100, podman 20): processor", "% of a core").budget(Some(0.1)).against("conmon, catatonit");
    for side in bench.sides() {
        let pods = Pods::new("idle", if side.name() == "us" { 100 } else { 20 }, 1);
        side.start(&pods);
        std::thread::sleep(SETTLE);
        let (began, used) = (Instant::now(), side.processor());
        std::thread::sleep(WATCH);
        let share = side.processor().saturating_sub(used).as_secs_f64() / began.elapsed().as_secs_f64();
        processor.add(side.name(), share * 100.0);
        side.stop(&pods);
    }
    bench.report.add(processor);
}
