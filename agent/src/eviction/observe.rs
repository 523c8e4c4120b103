//! How the machine stands, from the kernel's own files.

use std::path::Path;

use super::{Observation, Signal};

/// All signals that can be read. `lib` holds volumes, `images` the images.
pub fn observe(lib: &Path, images: &Path) -> Vec<Observation> {
    let mut all = Vec::with_capacity(Signal::ALL.len());
    all.extend(memory(&read("/proc/meminfo")));
    all.extend(disk(lib, Signal::NodefsAvailable, Signal::NodefsInodesFree));
    all.extend(disk(images, Signal::ImagefsAvailable, Signal::ImagefsInodesFree));
    all.extend(processes(&read("/proc/loadavg"), &read("/proc/sys/kernel/pid_max"), &read("/proc/sys/kernel/threads-max")));
    all
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Capacity less the working set, as the kubelet counts: page cache that was not used lately is free.
fn memory(meminfo: &str) -> Option<Observation> {
    let field = |name: &str| {
        let value = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        value.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
    };
    let available = field("MemFree")?.saturating_add(field("Inactive(file)")?);
    Some(Observation { signal: Signal::MemoryAvailable, available, capacity: field("MemTotal")? })
}

fn disk(path: &Path, bytes: Signal, inodes: Signal) -> Vec<Observation> {
    let nearest = path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let Ok(stat) = rustix::fs::statvfs(nearest) else { return Vec::new() };
    let size = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    let mut all = vec![Observation { signal: bytes, available: size(stat.f_bavail), capacity: size(stat.f_blocks) }];
    // btrfs and others make inodes as they need them, and say 0.
    if stat.f_files > 0 {
        all.push(Observation { signal: inodes, available: stat.f_favail, capacity: stat.f_files });
    }
    all
}

/// loadavg's fourth field is `RUNNING/ALL`.
fn processes(loadavg: &str, pid_max: &str, threads_max: &str) -> Option<Observation> {
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let running = number(loadavg.split_whitespace().nth(3)?.split_once('/')?.1)?;
    let capacity = number(pid_max)?.min(number(threads_max).unwrap_or(u64::MAX));
    Some(Observation { signal: Signal::PidAvailable, available: capacity.saturating_sub(running), capacity })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_free_or_easily_freed() {
        let text = "MemTotal:       1000 kB\nMemFree:         100 kB\nInactive:        999 kB\nInactive(file):   50 kB\n";
        let expected = Observation { signal: Signal::MemoryAvailable, available: 150 << 10, capacity: 1000 << 10 };
        assert_eq!(memory(text), Some(expected));
        assert_eq!(memory(""), None);
    }

    #[test]
    fn processes_are_counted_against_the_smaller_limit() {
        let seen = processes("0.1 0.2 0.3 2/300 4711\n", "32768\n", "1000\n").unwrap();
        assert_eq!((seen.available, seen.capacity), (700, 1000));
    }

    #[test]
    fn this_machine_tells_all() {
        assert_eq!(observe(Path::new("/tmp/not/there"), Path::new("/tmp")).len(), Signal::ALL.len());
    }
}
