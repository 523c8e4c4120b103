//! What monitoring wants to know of a group beside [`Stats`](super::Stats): read when it is asked for, as it takes a dozen files.

use std::fs;
use std::path::Path;

use super::layout::{Controller, Layout, Version};
use super::stats::{field, number, place};

/// A moment's counters since the group's beginning. What the machine's controllers don't tell is zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Detail {
    /// CPU time in user mode, nanoseconds.
    pub cpu_user_nanos: u64,
    /// CPU time in the kernel, nanoseconds.
    pub cpu_system_nanos: u64,
    /// Periods of the CPU limit in which something ran.
    pub cpu_periods: u64,
    /// Those in which the limit was reached.
    pub cpu_throttled_periods: u64,
    /// For how long, nanoseconds.
    pub cpu_throttled_nanos: u64,
    /// Page cache, bytes.
    pub cache_bytes: u64,
    /// Mapped files, bytes.
    pub mapped_bytes: u64,
    /// Swapped out, bytes.
    pub swap_bytes: u64,
    /// The most that was ever in use, bytes.
    pub max_bytes: u64,
    /// How often the memory limit was reached.
    pub failures: u64,
    /// Processes killed for want of memory.
    pub oom_kills: u64,
    /// The memory limit in bytes, if there is one.
    pub memory_limit: Option<u64>,
    /// Bytes read from and written to block devices.
    pub io_bytes: (u64, u64),
    /// Reads from and writes to block devices.
    pub io_operations: (u64, u64),
}

pub fn read(layout: &Layout, relative: &Path) -> Detail {
    let mut detail = Detail::default();
    cpu(layout, relative, &mut detail);
    memory(layout, relative, &mut detail);
    io(layout, relative, &mut detail);
    detail.oom_kills = super::stats::oom_kills(layout, relative);
    detail
}

fn text(dir: &Path, file: &str) -> String {
    fs::read_to_string(dir.join(file)).unwrap_or_default()
}

fn cpu(layout: &Layout, relative: &Path, detail: &mut Detail) {
    let v1 = place(layout, relative, Controller::CpuAcct).filter(|(h, _)| h.version == Version::V1);
    if let Some((_, dir)) = v1 {
        detail.cpu_user_nanos = number(&dir, "cpuacct.usage_user");
        detail.cpu_system_nanos = number(&dir, "cpuacct.usage_sys");
    }
    let Some((h, dir)) = place(layout, relative, Controller::Cpu) else { return };
    let stat = text(&dir, "cpu.stat");
    detail.cpu_periods = field(&stat, "nr_periods");
    detail.cpu_throttled_periods = field(&stat, "nr_throttled");
    match h.version {
        Version::V1 => detail.cpu_throttled_nanos = field(&stat, "throttled_time"),
        Version::V2 => {
            detail.cpu_throttled_nanos = field(&stat, "throttled_usec").saturating_mul(1000);
            detail.cpu_user_nanos = field(&stat, "user_usec").saturating_mul(1000);
            detail.cpu_system_nanos = field(&stat, "system_usec").saturating_mul(1000);
        }
    }
}

fn memory(layout: &Layout, relative: &Path, detail: &mut Detail) {
    let Some((h, dir)) = place(layout, relative, Controller::Memory) else { return };
    let stat = text(&dir, "memory.stat");
    match h.version {
        Version::V1 => {
            detail.cache_bytes = field(&stat, "total_cache");
            detail.mapped_bytes = field(&stat, "total_mapped_file");
            detail.swap_bytes = field(&stat, "total_swap");
            detail.max_bytes = number(&dir, "memory.max_usage_in_bytes");
            detail.failures = number(&dir, "memory.failcnt");
            // Without a limit it says the largest multiple of a page.
            detail.memory_limit = Some(number(&dir, "memory.limit_in_bytes")).filter(|limit| (1..1 << 60).contains(limit));
        }
        Version::V2 => {
            detail.cache_bytes = field(&stat, "file");
            detail.mapped_bytes = field(&stat, "file_mapped");
            detail.swap_bytes = number(&dir, "memory.swap.current");
            detail.max_bytes = number(&dir, "memory.peak");
            detail.failures = field(&text(&dir, "memory.events"), "max");
            // Without a limit it says `max`.
            detail.memory_limit = text(&dir, "memory.max").trim().parse().ok();
        }
    }
}

/// v1's blkio isn't among the controllers that pods are in.
fn io(layout: &Layout, relative: &Path, detail: &mut Detail) {
    let Some(unified) = layout.unified() else { return };
    let stat = text(&unified.mount.join(relative), "io.stat");
    detail.io_bytes = (pairs(&stat, "rbytes"), pairs(&stat, "wbytes"));
    detail.io_operations = (pairs(&stat, "rios"), pairs(&stat, "wios"));
}

/// Lines of `MAJOR:MINOR name=VALUE name=VALUE…`.
fn pairs(text: &str, name: &str) -> u64 {
    let words = text.split_whitespace().filter_map(|word| word.split_once('='));
    words.filter(|(n, _)| *n == name).filter_map(|(_, value)| value.parse::<u64>().ok()).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_summed() {
        let v2 = "8:0 rbytes=5 wbytes=6 rios=1 wios=2\n8:16 rbytes=10\n";
        assert_eq!((pairs(v2, "rbytes"), pairs(v2, "wios"), pairs(v2, "none")), (15, 2, 0));
    }
}
