//! What a machine looks like, as far as an agent could have changed it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::{Isolated, run};

/// Lines, each a fact: `link eth0 …`, `mount /proc …`, `cgroup memory/…`, `nft …`, `process …`, `file …`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// Looks at the box, the cgroups named `cgroup_parent` and the files of pods below `root`. The agent is no part of it, nor are
    /// the programs that the harness runs: processes are counted that came from a pod.
    pub fn of(inside: &Isolated, cgroup_parent: &str, root: &Path) -> Self {
        let mut facts = BTreeSet::new();
        let mut add = |kind: &str, lines: Vec<String>| facts.extend(lines.into_iter().map(|line| format!("{kind} {line}")));
        add("link", lines_of(inside, "ip", &["-oneline", "link"], without_numbers));
        add("address", lines_of(inside, "ip", &["-oneline", "address"], without_numbers));
        add("route", lines_of(inside, "ip", &["route", "show", "table", "all"], str::to_string));
        add("nft", lines_of(inside, "nft", &["list", "ruleset"], |line| line.trim().to_string()));
        add("mount", lines_of(inside, "cat", &["/proc/self/mounts"], str::to_string));
        add("ipc", lines_of(inside, "ipcs", &["-m"], str::to_string));
        add("process", processes(inside));
        add("cgroup", cgroups(cgroup_parent).iter().map(|path| path.display().to_string()).collect());
        for folder in ["run/nodeagent/pods", "run/nodeagent/net", "var/lib/nodeagent/pods", "var/log/pods"] {
            add("file", below(&root.join(folder)).iter().map(|path| path.display().to_string()).collect());
        }
        Self(facts)
    }

    /// What came and what went since `before`, a line each; empty: the machine is as it was.
    pub fn since(&self, before: &Self) -> Vec<String> {
        let came = self.0.difference(&before.0).map(|fact| format!("+ {fact}"));
        let went = before.0.difference(&self.0).map(|fact| format!("- {fact}"));
        came.chain(went).collect()
    }

    /// The facts of one kind, such as `process`.
    pub fn facts(&self, kind: &str) -> Vec<&str> {
        self.0.iter().filter_map(|fact| fact.strip_prefix(kind)?.strip_prefix(' ')).collect()
    }
}

fn lines_of(inside: &Isolated, program: &str, words: &[&str], as_fact: fn(&str) -> String) -> Vec<String> {
    run(inside.command(program).args(words)).ok().lines().filter(|line| !line.trim().is_empty()).map(as_fact).collect()
}

/// Interface numbers, peers' numbers and lifetimes differ from look to look.
fn without_numbers(line: &str) -> String {
    let words = line.split_once(": ").map_or(line, |(_, rest)| rest);
    words.split_whitespace().filter(|word| !word.ends_with("sec")).collect::<Vec<_>>().join(" ")
}

/// What runs in the box, but PID 1, the agent, the registry and what entered to look.
fn processes(inside: &Isolated) -> Vec<String> {
    let listing = run(inside.command("ps").args(["-e", "-o", "pid=,comm=,args="])).ok();
    let ours = ["demo", "ps", "nsenter", "docker-registry"];
    let mut found = Vec::new();
    for line in listing.lines() {
        let mut words = line.split_whitespace();
        let (pid, name) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let arguments = words.collect::<Vec<_>>().join(" ");
        // With the holder that it keeps for the next pod.
        let is_agent = name == "nodeagent" && arguments.contains("--manifests") || arguments.starts_with("podholder (spare)");
        let is_ours = ours.contains(&name) && !in_a_pod(inside, pid);
        if pid != "1" && !is_agent && !is_ours {
            found.push(format!("{name} {arguments}"));
        }
    }
    found
}

/// A container's process is in another PID namespace than the box.
fn in_a_pod(inside: &Isolated, pid: &str) -> bool {
    let namespace = |pid: &str| run(inside.command("readlink").arg(format!("/proc/{pid}/ns/pid"))).stdout;
    let theirs = namespace(pid);
    !theirs.is_empty() && theirs != namespace("1")
}

/// Every cgroup at or below the parent, in every hierarchy.
pub(crate) fn cgroups(parent: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        let top = hierarchy.path().join(parent);
        if top.is_dir() {
            found.extend(folders_below(&top));
            found.push(top);
        }
    }
    let unified = Path::new("/sys/fs/cgroup").join(parent);
    if unified.is_dir() {
        found.extend(folders_below(&unified));
        found.push(unified);
    }
    found
}

/// Deepest first.
fn folders_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(folders_below(&entry.path()));
            found.push(entry.path());
        }
    }
    found
}

fn below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(below(&entry.path()));
        }
        found.push(entry.path());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_looks_at_a_quiet_machine_are_equal_and_a_change_shows() {
        let box_ = Isolated::machine();
        let folder = tempfile::tempdir().unwrap();
        let look = || Snapshot::of(&box_, "nodeagent-e2e-nobody", folder.path());
        let before = look();
        assert_eq!(look().since(&before), Vec::<String>::new());
        run(box_.command("ip").args(["link", "add", "br9", "type", "bridge"])).ok();
        run(box_.command("nft").args(["add", "table", "inet", "left"])).ok();
        std::fs::create_dir_all(folder.path().join("var/log/pods/x")).unwrap();
        let _sleeper = crate::Running::start(box_.command("sleep").arg("1000"));
        let changes = crate::eventually("the sleeper is seen", || {
            let changes = look().since(&before);
            if changes.iter().any(|change| change.contains("+ process sleep")) { Ok(changes) } else { Err(changes.join("\n")) }
        });
        for expected in ["+ link br9", "+ nft table inet left", "+ file "] {
            assert!(changes.iter().any(|change| change.starts_with(expected)), "{expected} in {changes:#?}");
        }
    }
}
