//! What is measured, whoever runs the pods.

use std::time::Duration;

/// One of the two that run pods.
pub trait Side {
    /// `us` or `podman`.
    fn name(&self) -> &'static str;
    /// Has these pods' file made real, and returns how long it took until the last command ran. Each container's program prints
    /// the time at which it began: that is the measure, not when somebody looked.
    fn start(&mut self, yaml: &str, containers: usize) -> Duration;
    /// Takes all away; returns how long it took until nothing was left.
    fn stop(&mut self) -> Duration;
    /// Bytes (PSS) of all processes that pods need beside the user's own, the agent not counted.
    fn memory_beside(&self) -> u64;
    /// Processor time that all of its processes have used so far, the user's not counted.
    fn processor(&self) -> Duration;
    /// Gets and unpacks an image that isn't there.
    fn pull(&mut self, image: &str) -> Duration;
}

/// `pods` pods, each with `containers` containers that print when they began.
pub fn yaml(pods: usize, containers: usize) -> String {
    let one = |number: usize| {
        let pod = e2e::pod(&format!("bench-{number}"));
        let container = |pod: e2e::Manifest, index| pod.runs_with(&format!("c{index}"), "stamp", "imagePullPolicy: Never");
        (0..containers).fold(pod, container).yaml()
    };
    (0..pods).map(one).collect::<Vec<_>>().join("---\n")
}

/// Unix time in nanoseconds.
pub fn now() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("the clock is past 1970").as_nanos()
}

/// From then to the latest of the stamps.
pub fn until_last(then: u128, stamps: &[u128]) -> Duration {
    let last = stamps.iter().max().expect("a pod has containers");
    Duration::from_nanos(last.saturating_sub(then) as u64)
}

/// A process below the box's PID 1.
#[derive(Debug)]
pub struct Process {
    pub pid: i32,
    pub arguments: String,
}

/// Every process whose PID namespace is the given one or was made below it, told by a common ancestor.
pub fn descendants(ancestor: i32) -> Vec<Process> {
    let mut found = Vec::new();
    let mut waiting = vec![ancestor];
    while let Some(pid) = waiting.pop() {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        for task in tasks {
            let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            waiting.extend(children.split_whitespace().filter_map(|word| word.parse::<i32>().ok()));
        }
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        found.push(Process { pid, arguments: String::from_utf8_lossy(&arguments).replace('\0', " ") });
    }
    found
}

/// PSS in bytes.
pub fn proportional_memory(pid: i32) -> u64 {
    field(&format!("/proc/{pid}/smaps_rollup"), "Pss:") * 1024
}

/// RSS in bytes.
pub fn resident_memory(pid: i32) -> u64 {
    field(&format!("/proc/{pid}/status"), "VmRSS:") * 1024
}

fn field(path: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    value.and_then(|value| value.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// User and system time of a process and of the children that it has waited for.
pub fn processor_time(pid: i32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    // proc(5): utime, stime, cutime, cstime are fields 14 to 17, in ticks of 10 ms.
    let ticks: u64 = after_name.split(' ').skip(11).take(4).filter_map(|word| word.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}
