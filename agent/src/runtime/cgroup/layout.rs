//! Where this machine's cgroup hierarchies are mounted: v1, v2, or both (hybrid). Pure, from /proc/self/mountinfo.

use std::path::{Path, PathBuf};

/// What a hierarchy does for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Controller {
    /// CPU time by weight and by quota.
    Cpu,
    /// CPU time used (v1; v2's `Cpu` counts as well).
    CpuAcct,
    /// Memory.
    Memory,
    /// Number of processes.
    Pids,
    /// Huge pages.
    Hugetlb,
    /// Which device nodes may be opened (v1; v2 has a BPF program for it).
    Devices,
    /// Stops all processes at once (v1; v2 has it everywhere).
    Freezer,
}

impl Controller {
    /// All, with their names in v1's mount options.
    pub const ALL: [(Self, &'static str); 7] = [
        (Self::Cpu, "cpu"),
        (Self::CpuAcct, "cpuacct"),
        (Self::Memory, "memory"),
        (Self::Pids, "pids"),
        (Self::Hugetlb, "hugetlb"),
        (Self::Devices, "devices"),
        (Self::Freezer, "freezer"),
    ];
}

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where.
    pub mount: PathBuf,
    /// What it controls; of v2, filled in from `cgroup.controllers`.
    pub controllers: Vec<Controller>,
    /// Which kind.
    pub version: Version,
}

/// Of a hierarchy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// One of many, each with its controllers.
    V1,
    /// The unified one. In a hybrid machine it controls nothing, but it can kill a whole group at once.
    V2,
}

/// All hierarchies that matter to us, each once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    /// In a fixed order: the unified one first.
    pub hierarchies: Vec<Hierarchy>,
}

impl Layout {
    /// Reads a mountinfo. `controllers_of` gives the text of a v2 mount's `cgroup.controllers`.
    pub fn parse(mountinfo: &str, controllers_of: impl Fn(&Path) -> String) -> Self {
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        for found in mountinfo.lines().filter_map(|line| parse_line(line, &controllers_of)) {
            // The same hierarchy may be mounted at many places: the first is as good as any.
            let known = |h: &Hierarchy| h.version == found.version && h.controllers == found.controllers;
            if !hierarchies.iter().any(known) {
                hierarchies.push(found);
            }
        }
        let can_kill = hierarchies.iter().any(|h| h.version == Version::V2);
        if can_kill {
            // The freezer is only for killing: what the unified hierarchy does in one write.
            hierarchies.retain(|h| h.controllers != [Controller::Freezer]);
        }
        hierarchies.sort_by_key(|h| (h.version == Version::V1, h.mount.clone()));
        Self { hierarchies }
    }

    /// The hierarchy that has a controller.
    pub fn of(&self, controller: Controller) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|h| h.controllers.contains(&controller))
    }

    /// The unified hierarchy.
    pub fn unified(&self) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|h| h.version == Version::V2)
    }

    /// The one by which a group's processes are listed and killed.
    pub fn census(&self) -> Option<&Hierarchy> {
        self.unified().or_else(|| self.of(Controller::Freezer)).or_else(|| self.of(Controller::Pids)).or(self.hierarchies.first())
    }

    /// What a Kubernetes pod wants and this machine lacks, for a warning.
    pub fn missing(&self) -> Vec<&'static str> {
        let wanted = [(Controller::Cpu, "cpu"), (Controller::Memory, "memory"), (Controller::Pids, "pids")];
        wanted.into_iter().filter(|(c, _)| self.of(*c).is_none()).map(|(_, name)| name).collect()
    }
}

/// proc_pid_mountinfo(5): `ID PARENT MAJ:MIN ROOT MOUNT OPTIONS [TAGS…] - TYPE SOURCE SUPER`.
fn parse_line(line: &str, controllers_of: &impl Fn(&Path) -> String) -> Option<Hierarchy> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mount = PathBuf::from(unescape(mount.split(' ').nth(4)?));
    let mut fields = file_system.split(' ');
    let (kind, _, options) = (fields.next()?, fields.next()?, fields.next()?);
    let named = |list: &mut dyn Iterator<Item = &str>| -> Vec<Controller> {
        let names: Vec<&str> = list.collect();
        Controller::ALL.into_iter().filter(|(_, name)| names.contains(name)).map(|(c, _)| c).collect()
    };
    match kind {
        "cgroup" => {
            let controllers = named(&mut options.split(','));
            (!controllers.is_empty()).then_some(Hierarchy { mount, controllers, version: Version::V1 })
        }
        "cgroup2" => {
            let controllers = named(&mut controllers_of(&mount).split_whitespace());
            Some(Hierarchy { mount, controllers, version: Version::V2 })
        }
        _ => None,
    }
}

/// mountinfo writes blank, tab, newline and backslash as `\ooo`.
pub fn unescape(field: &str) -> String {
    let mut parts = field.split('\\');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        if let (Some(code), Some(rest)) = (part.get(..3).and_then(|code| u8::from_str_radix(code, 8).ok()), part.get(3..)) {
            plain.push(char::from(code));
            plain.push_str(rest);
        } else {
            plain.push('\\');
            plain.push_str(part);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:4 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/devices rw,relatime - cgroup cgroup rw,devices
37 31 0:34 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer
39 31 0:36 / /sys/fs/cgroup/my\\040pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
50 31 0:32 / /elsewhere/memory rw,relatime - cgroup cgroup rw,memory
";

    #[test]
    fn hybrid_has_each_hierarchy_once_and_kills_by_the_unified_one() {
        let layout = Layout::parse(HYBRID, |_| String::new());
        let mounts: Vec<_> = layout.hierarchies.iter().map(|h| h.mount.to_str().unwrap()).collect();
        assert_eq!(
            mounts,
            [
                "/sys/fs/cgroup/unified",
                "/sys/fs/cgroup/cpu,cpuacct",
                "/sys/fs/cgroup/devices",
                "/sys/fs/cgroup/memory",
                "/sys/fs/cgroup/my pids"
            ]
        );
        assert_eq!(layout.census().unwrap().version, Version::V2);
        assert!(layout.missing().is_empty());
    }

    #[test]
    fn pure_v1_kills_by_the_freezer() {
        let without: String = HYBRID.lines().filter(|l| !l.contains("cgroup2")).map(|l| format!("{l}\n")).collect();
        let layout = Layout::parse(&without, |_| String::new());
        assert_eq!(layout.census().unwrap().controllers, [Controller::Freezer]);
    }

    #[test]
    fn v2_names_what_it_lacks() {
        let layout =
            Layout::parse("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate", |_| "cpuset cpu io memory".into());
        assert_eq!(layout.hierarchies.len(), 1);
        assert_eq!(layout.missing(), ["pids"]);
    }
}
