//! How soon a container sees what was edited. Ours alone: podman follows no file.

use super::Bench;
use crate::report::{Row, quantile};

/// Beside one other file and beside 500.
pub fn seen(bench: &mut Bench<'_>) {
    let Some(us) = &bench.us else { return };
    let edits = if bench.quick { 50 } else { 300 };
    let mut medians = Vec::new();
    let mut rows = Vec::new();
    for files in [1, 500] {
        let times: Vec<f64> = us.edits(files, edits).iter().map(std::time::Duration::as_secs_f64).collect();
        let mut row = Row::milliseconds(format!("ConfigMap's edit → seen in the container, beside {files} files"));
        times.iter().for_each(|time| row.add("us", time * 1000.0));
        let mut longest = Row::milliseconds(format!("the same, p99, beside {files} files")).budget(Some(100.0));
        quantile(&times, 0.99).into_iter().for_each(|time| longest.add("us", time * 1000.0));
        medians.extend(quantile(&times, 0.5));
        rows.extend([row, longest]);
    }
    let mut flat = Row::new("an edit beside 500 files / beside 1", "×").budget(Some(1.2));
    if let [few, many] = medians[..] {
        flat.add("us", many / few);
    }
    rows.push(flat);
    rows.into_iter().for_each(|row| bench.report.add(row));
}
