//! Which device nodes a container may open. Root in a container has CAP_MKNOD by default, so a node for the host's disk is one
//! mknod away: opening it must fail. On v1 one group with the default rules is enough for all containers, but for those with devices
//! of their own (CDI); on v2 each container's group gets a BPF program.

use std::borrow::Cow;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use podholder::sys::bpf::{self, ProgramType};
use rustix::fs::{Mode, OFlags};

use super::layout::{Controller, Layout};
use super::{CgroupError, device_program, failed, make_dir, remove_tree, write};

/// Which nodes may be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceRules {
    /// null, zero, full, random, urandom, tty, ptmx and ptys; any node may be made, but not opened.
    Default,
    /// All: a privileged container, or the holder.
    Unlimited,
}

/// One node that may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// `c` or `b`.
    pub kind: char,
    /// Unset: any.
    pub major: Option<u32>,
    /// Unset: any.
    pub minor: Option<u32>,
    /// Of `r`, `w` and `m` (mknod).
    pub access: Cow<'static, str>,
}

impl Rule {
    const fn new(kind: char, major: Option<u32>, minor: Option<u32>, access: &'static str) -> Self {
        Self { kind, major, minor, access: Cow::Borrowed(access) }
    }

    /// `type major:minor access`, as devices.allow takes it.
    fn line(&self) -> String {
        let number = |n: Option<u32>| n.map_or_else(|| "*".to_owned(), |n| n.to_string());
        format!("{} {}:{} {}", self.kind, number(self.major), number(self.minor), self.access)
    }
}

/// Making a node harms nobody; images' archives have some.
const ALLOWED: [Rule; 10] = [
    Rule::new('c', None, None, "m"),
    Rule::new('b', None, None, "m"),
    Rule::new('c', Some(1), Some(3), "rwm"),
    Rule::new('c', Some(1), Some(5), "rwm"),
    Rule::new('c', Some(1), Some(7), "rwm"),
    Rule::new('c', Some(1), Some(8), "rwm"),
    Rule::new('c', Some(1), Some(9), "rwm"),
    Rule::new('c', Some(5), Some(0), "rwm"),
    Rule::new('c', Some(5), Some(2), "rwm"),
    Rule::new('c', Some(136), None, "rwm"),
];

/// Makes the group with the default rules, if this machine has v1's controller.
pub fn prepare(layout: &Layout, parent: &Path) -> Result<(), CgroupError> {
    let Some(dir) = shared(layout, parent) else { return Ok(()) };
    confine(&dir, &ALLOWED)
}

fn confine(dir: &Path, rules: &[Rule]) -> Result<(), CgroupError> {
    make_dir(dir)?;
    write(&dir.join("devices.deny"), "a")?;
    rules.iter().try_for_each(|rule| write(&dir.join("devices.allow"), &rule.line()))
}

fn v1(layout: &Layout) -> Option<&Path> {
    let hierarchy = layout.of(Controller::Devices).filter(|h| h.controllers == [Controller::Devices])?;
    Some(&hierarchy.mount)
}

fn shared(layout: &Layout, parent: &Path) -> Option<PathBuf> {
    Some(v1(layout)?.join(parent).join("default"))
}

/// Where a container with devices of its own is on v1.
fn own(layout: &Layout, relative: &Path) -> Option<PathBuf> {
    Some(v1(layout)?.join(relative))
}

/// Lets a container that is about to start open the default nodes and these. Before it joins.
pub fn restrict(layout: &Layout, relative: &Path, extra: &[Rule]) -> Result<(), CgroupError> {
    if v1(layout).is_some() {
        let own = own(layout, relative).filter(|_| !extra.is_empty());
        return own.map_or(Ok(()), |dir| confine(&dir, &[&ALLOWED, extra].concat()));
    }
    let Some(unified) = layout.unified() else { return Ok(()) };
    let dir = unified.mount.join(relative);
    make_dir(&dir)?;
    attach(&dir, extra).map_err(|error| failed("attach the device program to", &dir, error))
}

/// v2: the kernel asks the program at every open and mknod. It ends with the group.
fn attach(dir: &Path, extra: &[Rule]) -> std::io::Result<()> {
    let group = rustix::fs::open(dir, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    if extra.is_empty() {
        // The usual one is loaded once.
        static USUAL: OnceLock<OwnedFd> = OnceLock::new();
        let usual = if let Some(usual) = USUAL.get() {
            usual
        } else {
            let made = load(&ALLOWED)?;
            USUAL.get_or_init(|| made)
        };
        return bpf::attach(group.as_fd(), ProgramType::CgroupDevice, usual.as_fd(), None);
    }
    let program = load(&[&ALLOWED, extra].concat())?;
    bpf::attach(group.as_fd(), ProgramType::CgroupDevice, program.as_fd(), None)
}

fn load(rules: &[Rule]) -> std::io::Result<OwnedFd> {
    bpf::load(ProgramType::CgroupDevice, "devices", &device_program::compile(rules))
}

/// The group of v1 that a container joins.
pub fn group(layout: &Layout, parent: &Path, relative: &Path, rules: DeviceRules) -> Option<PathBuf> {
    match rules {
        DeviceRules::Default => own(layout, relative).filter(|dir| dir.exists()).or_else(|| shared(layout, parent)),
        DeviceRules::Unlimited => None,
    }
}

/// Removes a container's own group, or a pod's with all below.
pub fn remove_own(layout: &Layout, relative: &Path) -> Result<(), CgroupError> {
    own(layout, relative).as_deref().map_or(Ok(()), remove_tree)
}

/// Removes what [`prepare`] made.
pub fn remove(layout: &Layout, parent: &Path) -> Result<(), CgroupError> {
    v1(layout).map_or(Ok(()), |mount| remove_tree(&mount.join(parent)))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::super::layout::Version;
    use super::*;

    /// Removes a group, also after a failure.
    struct Made(PathBuf);

    impl Drop for Made {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir(&self.0);
        }
    }

    /// What a shell says that lives in the group.
    fn inside(dir: &Path, script: &str) -> String {
        let script = format!("echo $$ > {}/cgroup.procs && {{ {script}; }} 2>&1", dir.display());
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[test]
    fn the_program_of_v2_lets_the_usual_nodes_pass_and_no_others() {
        let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mut layout = Layout::parse(&mountinfo, |_| String::new());
        // As on a machine with v2 alone.
        layout.hierarchies.retain(|h| h.version == Version::V2);
        let mount = layout.unified().expect("a cgroup2 mount: needed for this test").mount.clone();
        let relative = PathBuf::from(format!("nodeagent-devices-{}", std::process::id()));
        let dir = Made(mount.join(&relative));
        restrict(&layout, &relative, &[]).unwrap();
        assert_eq!(inside(&dir.0, "head -c 1 /dev/zero | wc -c; echo fine > /dev/null; echo so far"), "1\nso far\n");
        assert!(inside(&dir.0, "head -c 1 /dev/kmsg").contains("not permitted"));

        let with = Made(mount.join(&relative).with_extension("kmsg"));
        let kmsg = Rule::new('c', Some(1), Some(11), "r");
        restrict(&layout, &relative.with_extension("kmsg"), &[kmsg]).unwrap();
        assert!(!inside(&with.0, "head -c 1 /dev/kmsg").contains("not permitted"));
        assert!(inside(&with.0, "echo x > /dev/kmsg").contains("not permitted"));
    }
}
