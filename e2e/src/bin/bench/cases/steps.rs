//! Where the time of our start goes, as `nodeagent explain` tells it.

use super::Bench;
use crate::report::{Step, quantile};
use crate::side::{Pods, Side};

/// Medians over many starts of a pod of two.
pub fn of_a_start(bench: &mut Bench<'_>) {
    let Some(us) = &mut bench.us else { return };
    let pods = Pods::new("steps", 1, 2);
    let mut seen: Vec<(String, Vec<f64>, Vec<f64>)> = Vec::new();
    for _ in 0..if bench.quick { 4 } else { 20 } {
        us.start(&pods);
        for explanation in us.steps(&pods) {
            for step in explanation["steps"].as_array().into_iter().flatten() {
                let own = step["name"].as_str().unwrap_or_default();
                let name = step["container"].as_str().map_or(own.to_string(), |container| format!("{container}: {own}"));
                let number = |field: &str| step[field].as_f64().unwrap_or_default();
                let at = seen.iter().position(|(known, ..)| *known == name).unwrap_or_else(|| {
                    seen.push((name, Vec::new(), Vec::new()));
                    seen.len() - 1
                });
                seen[at].1.push(number("started"));
                seen[at].2.push(number("micros"));
            }
        }
        us.stop(&pods);
    }
    let median = |samples: &[f64]| quantile(samples, 0.5).unwrap_or_default();
    let mut steps: Vec<Step> =
        seen.into_iter().map(|(name, at, took)| Step { name, at: median(&at), took: median(&took) }).collect();
    steps.sort_by(|a, b| a.at.total_cmp(&b.at));
    bench.report.add_steps(steps);
}
