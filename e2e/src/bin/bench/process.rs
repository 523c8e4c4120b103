//! Processes as /proc shows them: who they are, what they hold, what they have used.

use std::time::Duration;

use nix::time::ClockId;
use nix::unistd::Pid;

/// A process below a box's PID 1.
#[derive(Debug)]
pub struct Process {
    pub pid: i32,
    pub arguments: String,
}

/// A process and all that came from it, their orphans' heir being its PID namespace's first.
pub fn tree(ancestor: i32) -> Vec<Process> {
    let mut found = Vec::new();
    let mut waiting = vec![ancestor];
    while let Some(pid) = waiting.pop() {
        for task in tasks(pid) {
            let children = std::fs::read_to_string(format!("{task}/children")).unwrap_or_default();
            waiting.extend(children.split_whitespace().filter_map(|word| word.parse::<i32>().ok()));
        }
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        found.push(Process { pid, arguments: String::from_utf8_lossy(&arguments).replace('\0', " ") });
    }
    found
}

/// PSS in bytes: what is shared counts by parts.
pub fn proportional_memory(pid: i32) -> u64 {
    field(&format!("/proc/{pid}/smaps_rollup"), "Pss:") * 1024
}

/// RSS in bytes.
pub fn resident_memory(pid: i32) -> u64 {
    field(&format!("/proc/{pid}/status"), "VmRSS:") * 1024
}

/// Processor time of all its threads so far, those that have ended too, to the nanosecond: /proc's ticks of 10 ms are too coarse
/// for what idles.
pub fn processor_time(pid: i32) -> Duration {
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid)).and_then(ClockId::now);
    clock.map(Duration::from).unwrap_or_default()
}

fn tasks(pid: i32) -> Vec<String> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    entries.map(|entry| entry.path().display().to_string()).collect()
}

/// A number of kB.
fn field(path: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    value.and_then(|value| value.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
