//! What a group uses, read from the kernel when somebody asks.

use std::fs;
use std::path::Path;

use super::layout::{Controller, Hierarchy, Layout, Version};

/// A moment's usage. What the machine's controllers don't tell is zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// CPU time used since the group's beginning, in nanoseconds.
    pub cpu_nanos: u64,
    /// All memory accounted, in bytes.
    pub memory_bytes: u64,
    /// Less the page cache that is easily dropped: what the kubelet evicts by.
    pub working_set_bytes: u64,
    /// Anonymous memory.
    pub rss_bytes: u64,
    /// Major page faults.
    pub major_faults: u64,
    /// Page faults.
    pub faults: u64,
    /// Processes and threads.
    pub pids: u64,
}

pub fn read(layout: &Layout, relative: &Path) -> Stats {
    let mut stats = Stats { cpu_nanos: cpu(layout, relative), ..Stats::default() };
    if let Some((_, dir)) = place(layout, relative, Controller::Pids) {
        stats.pids = number(&dir, "pids.current");
    }
    let Some((h, dir)) = place(layout, relative, Controller::Memory) else { return stats };
    let [usage, inactive, rss, faults, major] = match h.version {
        Version::V1 => ["memory.usage_in_bytes", "total_inactive_file", "total_rss", "total_pgfault", "total_pgmajfault"],
        Version::V2 => ["memory.current", "inactive_file", "anon", "pgfault", "pgmajfault"],
    };
    let detail = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
    stats.memory_bytes = number(&dir, usage);
    stats.working_set_bytes = stats.memory_bytes.saturating_sub(field(&detail, inactive));
    stats.rss_bytes = field(&detail, rss);
    stats.faults = field(&detail, faults);
    stats.major_faults = field(&detail, major);
    stats
}

fn cpu(layout: &Layout, relative: &Path) -> u64 {
    let v1 = place(layout, relative, Controller::CpuAcct).filter(|(h, _)| h.version == Version::V1);
    match (v1, layout.unified()) {
        (Some((_, dir)), _) => number(&dir, "cpuacct.usage"),
        (None, Some(unified)) => {
            let text = fs::read_to_string(unified.mount.join(relative).join("cpu.stat")).unwrap_or_default();
            field(&text, "usage_usec").saturating_mul(1000)
        }
        (None, None) => 0,
    }
}

pub fn oom_kills(layout: &Layout, relative: &Path) -> u64 {
    let Some((h, dir)) = place(layout, relative, Controller::Memory) else { return 0 };
    let file = match h.version {
        Version::V1 => "memory.oom_control",
        Version::V2 => "memory.events",
    };
    field(&fs::read_to_string(dir.join(file)).unwrap_or_default(), "oom_kill")
}

pub(super) fn place<'a>(
    layout: &'a Layout,
    relative: &Path,
    controller: Controller,
) -> Option<(&'a Hierarchy, std::path::PathBuf)> {
    layout.of(controller).map(|h| (h, h.mount.join(relative)))
}

pub(super) fn number(dir: &Path, file: &str) -> u64 {
    fs::read_to_string(dir.join(file)).ok().and_then(|text| text.trim().parse().ok()).unwrap_or_default()
}

/// The value in a file of `name value` lines.
pub(super) fn field(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.and_then(|v| v.trim().parse().ok()).unwrap_or_default()
}
