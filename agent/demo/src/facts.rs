//! What this container can see of itself, by the five questions that the page answers. Reads /proc and asks the kernel; a fact
//! that can't be had says why in its place.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;

use nix::ifaddrs::getifaddrs;

use crate::shared;

/// One question and what answers it.
pub struct Section {
    /// The question.
    pub question: &'static str,
    /// Name and value.
    pub facts: Vec<(String, String)>,
}

/// All that the page shows.
pub fn sections() -> Vec<Section> {
    let section = |question, facts: Vec<(&str, String)>| Section {
        question,
        facts: facts.into_iter().map(|(name, value)| (name.to_string(), value)).collect(),
    };
    vec![
        section(
            "Own file systems?",
            vec![("mount namespace", namespace("mnt")), ("root", root_mount()), ("mounts", mounts().len().to_string())],
        ),
        section(
            "Processes, IPC?",
            vec![
                ("pid namespace", namespace("pid")),
                ("ipc namespace", namespace("ipc")),
                ("own pid", std::process::id().to_string()),
                ("processes", processes().join(", ")),
                ("shared memory", counters()),
            ],
        ),
        section("IP and ports?", vec![("net namespace", namespace("net")), ("addresses", addresses().join(", "))]),
        section("Same hostnames?", vec![("uts namespace", namespace("uts")), ("hostname", hostname())]),
        section(
            "Root, account clashes?",
            vec![
                ("user namespace", namespace("user")),
                ("user", identity()),
                ("user 0 is outside", outside_root()),
                ("capabilities", status_field("CapEff")),
            ],
        ),
        Section { question: "Environment", facts: environment() },
    ]
}

/// `uts:[4026531838]` → `4026531838`.
pub fn namespace(kind: &str) -> String {
    match fs::read_link(format!("/proc/self/ns/{kind}")) {
        Ok(link) => link.to_string_lossy().trim_start_matches(|c: char| !c.is_ascii_digit()).trim_end_matches(']').to_string(),
        Err(error) => error.to_string(),
    }
}

pub fn hostname() -> String {
    nix::unistd::gethostname().map_or_else(|e| e.to_string(), |name| name.to_string_lossy().into_owned())
}

/// `TARGET TYPE OPTIONS` of each mount, in /proc's order.
pub fn mounts() -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    text.lines()
        .map(|line| {
            let mut fields = line.split(' ').skip(1);
            let mut next = || fields.next().unwrap_or("?");
            format!("{} {} {}", next(), next(), next())
        })
        .collect()
}

fn root_mount() -> String {
    mounts().iter().rev().find_map(|mount| mount.strip_prefix("/ ")).map_or_else(|| "?".into(), |rest| first_words(rest, 1))
}

fn first_words(text: &str, count: usize) -> String {
    text.split_whitespace().take(count).collect::<Vec<_>>().join(" ")
}

/// `PID COMMAND` of every process that /proc shows.
pub fn processes() -> Vec<String> {
    let mut found: Vec<(u32, String)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .map(|pid: u32| (pid, command_line(pid)))
        .collect();
    found.sort_unstable();
    found.into_iter().map(|(pid, command)| format!("{pid} {command}")).collect()
}

fn command_line(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes).replace('\0', " ");
    if text.is_empty() { "?".into() } else { text.trim_end().to_string() }
}

/// `INTERFACE ADDRESS` of each address.
pub fn addresses() -> Vec<String> {
    let Ok(all) = getifaddrs() else { return vec!["?".into()] };
    all.filter_map(|interface| {
        let address = interface.address?;
        let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => IpAddr::V4(v4.ip()),
            (_, Some(v6)) => IpAddr::V6(v6.ip()),
            _ => return None,
        };
        Some(format!("{} {ip}", interface.interface_name))
    })
    .collect()
}

fn counters() -> String {
    match shared::make(shared::KEY) {
        Ok(segment) => format!(
            "{} pages served, {} calls counted by the other container",
            segment[shared::PAGES].load(Relaxed),
            segment[shared::CALLS].load(Relaxed)
        ),
        Err(error) => error.to_string(),
    }
}

/// As id(1) says it, with numbers only.
pub fn identity() -> String {
    let groups: Vec<String> = nix::unistd::getgroups().unwrap_or_default().iter().map(ToString::to_string).collect();
    format!("uid={} gid={} groups={}", nix::unistd::geteuid(), nix::unistd::getegid(), groups.join(","))
}

fn outside_root() -> String {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let first = map.lines().next().unwrap_or_default().split_whitespace().collect::<Vec<_>>();
    match first[..] {
        ["0", outside, count] => format!("user {outside} ({count} mapped)"),
        _ => map.trim().to_string(),
    }
}

fn status_field(name: &str) -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or("?");
    value.trim().to_string()
}

/// Sorted, so that two looks compare.
pub fn environment() -> Vec<(String, String)> {
    let mut all: Vec<_> = std::env::vars_os()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
        .collect();
    all.sort();
    all
}

/// Owner, mode and size of a file, as numbers.
pub fn owner(path: &Path) -> std::io::Result<String> {
    use std::os::unix::fs::MetadataExt;
    let meta = fs::symlink_metadata(path)?;
    Ok(format!("{}:{} {:o} {}", meta.uid(), meta.gid(), meta.mode() & 0o7777, meta.len()))
}
