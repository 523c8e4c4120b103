//! What a running container is for the kernel: for people who ask, read from /proc at that moment.

use std::fs;
use std::path::PathBuf;

/// A container's processes, namespaces and mounts.
#[derive(Debug, Clone, Default, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Inspection {
    /// By the names of /proc/PID/ns, such as `net`: the inode that tells two apart.
    pub namespaces: Vec<(String, u64)>,
    /// All processes of the cgroup.
    pub processes: Vec<ProcessInfo>,
    /// Lines of /proc/PID/mountinfo.
    pub mounts: Vec<String>,
}

/// One process.
#[derive(Debug, Clone, Default, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessInfo {
    /// On the host.
    pub host_pid: i32,
    /// In the container, and in each namespace between; the container's last.
    pub container_pids: Vec<i32>,
    /// As `ps` shows it.
    pub command: String,
    /// Proportional set size in bytes: shared pages divided among those who share them.
    pub pss: u64,
    /// Real user ID on the host.
    pub uid: u32,
}

/// Of the container whose first process is `pid`, and whose cgroup holds `all`.
pub fn inspect(pid: i32, all: &[i32]) -> Inspection {
    Inspection {
        namespaces: namespaces(pid),
        processes: all.iter().filter_map(|pid| process(*pid)).collect(),
        mounts: mounts(pid),
    }
}

/// Inodes of the namespaces of a process, by name. Empty when it's gone.
pub fn namespaces(pid: i32) -> Vec<(String, u64)> {
    let names = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];
    let inode = |name: &&str| {
        let link = fs::read_link(format!("/proc/{pid}/ns/{name}")).ok()?;
        let number = link.to_str()?.split(['[', ']']).nth(1)?.parse().ok()?;
        Some(((*name).to_owned(), number))
    };
    names.iter().filter_map(inode).collect()
}

/// `None` when it has ended meanwhile.
pub fn process(pid: i32) -> Option<ProcessInfo> {
    let dir = PathBuf::from(format!("/proc/{pid}"));
    let status = fs::read_to_string(dir.join("status")).ok()?;
    let line = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
    let numbers = |name: &str| line(name).unwrap_or_default().split_whitespace().filter_map(|n| n.parse::<i64>().ok());
    // What a process calls itself is its own affair: control characters don't reach a terminal.
    let raw = fs::read(dir.join("cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&raw).trim_end_matches('\0').replace('\0', " ");
    let command: String = text.chars().take(4096).map(|c| if c.is_control() { '?' } else { c }).collect();
    let name = line("Name").unwrap_or_default().trim();
    Some(ProcessInfo {
        host_pid: pid,
        container_pids: numbers("NSpid").skip(1).filter_map(|n| i32::try_from(n).ok()).collect(),
        command: if command.is_empty() { format!("[{name}]") } else { command },
        pss: pss(pid),
        uid: numbers("Uid").next().and_then(|n| u32::try_from(n).ok()).unwrap_or_default(),
    })
}

/// Proportional set size in bytes; 0 when it can't be read.
pub fn pss(pid: i32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let kilobytes = rollup.lines().find_map(|l| l.strip_prefix("Pss:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kilobytes.unwrap_or_default() * 1024
}

fn mounts(pid: i32) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}
