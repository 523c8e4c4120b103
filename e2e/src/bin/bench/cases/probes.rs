//! What probes cost: the agent's and the holders' processor time; where commands are run, all that the pods' cgroups used.

use std::time::{Duration, Instant};

use super::Bench;
use crate::nodeagent::Nodeagent;
use crate::report::Row;
use crate::side::Side;

const WATCH: Duration = Duration::from_secs(20);
const SETTLE: Duration = Duration::from_secs(5);

/// A liveness probe a second: 100 pods asked over HTTP, 20 by a command. Ours alone: podman has a process a check.
pub fn each_second(bench: &mut Bench<'_>) {
    let Some(us) = &mut bench.us else { return };
    let rows = [
        ("100 pods, an HTTP probe a second: processor", 100, "httpGet: {path: /healthz, port: 8080}", "serve --quiet", 3.0),
        ("20 pods, an exec probe a second: processor", 20, "exec: {command: [/demo, echo, alive]}", "sleep", 5.0),
    ];
    for (what, count, handler, words, budget) in rows {
        let mut row = Row::new(what, "% of a core").budget(Some(budget)).against("none");
        row.add("us", share(us, count, handler, words) * 100.0);
        bench.report.add(row);
    }
}

/// The server's own time isn't the probe's; a command's is.
fn used(us: &Nodeagent, words: &str) -> Duration {
    if words.starts_with("serve") { us.processor() } else { us.processor_of_agent() + us.processor_of_pods() }
}

fn share(us: &mut Nodeagent, count: usize, handler: &str, words: &str) -> f64 {
    let probe = format!("imagePullPolicy: Never\nlivenessProbe: {{{handler}, periodSeconds: 1}}");
    let pods = (0..count).map(|number| e2e::pod(&format!("probed-{number}")).runs_with("c0", words, &probe).yaml());
    us.apply("probed.yaml", &pods.collect::<Vec<_>>().join("---\n"), count);
    std::thread::sleep(SETTLE);
    let (began, before) = (Instant::now(), used(us, words));
    std::thread::sleep(WATCH);
    let share = used(us, words).saturating_sub(before).as_secs_f64() / began.elapsed().as_secs_f64();
    us.withdraw("probed.yaml");
    share
}
