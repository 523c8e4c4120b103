//! The pods' control groups on v1, v2 and hybrid machines, in the tree that the kubelet's cgroupfs driver makes:
//! PARENT/{burstable,besteffort}/podUID/CONTAINER, guaranteed pods straight below PARENT.
//! <https://docs.kernel.org/admin-guide/cgroup-v2.html>, <https://docs.kernel.org/admin-guide/cgroup-v1/>

mod detail;
mod device_program;
mod devices;
pub mod layout;
pub mod plan;
mod stats;

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal};

use self::layout::{Controller, Layout, Version};
use self::plan::{Kind, Limits, Plan};
use super::resources::Qos;

pub use detail::Detail;
pub use devices::{DeviceRules, Rule as DeviceRule};
pub use stats::Stats;

/// A group's file or directory didn't do what it should.
#[derive(Debug, thiserror::Error)]
#[error("cgroup: {action} {path}: {source}{hint}")]
pub struct CgroupError {
    action: &'static str,
    path: String,
    hint: &'static str,
    source: io::Error,
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> CgroupError {
    let hint = match (source.kind(), source.raw_os_error()) {
        (ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem, _) => {
            " (the agent needs root and a cgroup tree that it may write)"
        }
        (ErrorKind::ResourceBusy, _) => " (processes live in this group or right above it)",
        (_, Some(28)) => " (the kernel's limit of cgroups is reached; see cgroup.max.descendants and leaks of other programs)",
        _ => "",
    };
    CgroupError { action, path: path.display().to_string(), hint, source }
}

/// All groups of this agent.
#[derive(Debug, Clone)]
pub struct Cgroups {
    layout: Arc<Layout>,
    parent: PathBuf,
}

impl Cgroups {
    /// Finds the machine's hierarchies. `parent` is relative to their mounts, such as `nodeagent`.
    pub fn detect(parent: &str) -> Result<Self, CgroupError> {
        let path = Path::new("/proc/self/mountinfo");
        let mountinfo = fs::read_to_string(path).map_err(|e| failed("read", path, e))?;
        let controllers = |mount: &Path| fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
        let layout = Layout::parse(&mountinfo, controllers);
        if layout.hierarchies.is_empty() {
            let none = io::Error::new(ErrorKind::NotFound, "no cgroup file system is mounted");
            return Err(failed("find", Path::new("/sys/fs/cgroup"), none));
        }
        Ok(Self { layout: Arc::new(layout), parent: parent.trim_matches('/').into() })
    }

    /// Makes PARENT and the two classes, and hands controllers down to them. Once, at the agent's start; may be repeated.
    pub fn prepare(&self, all_pods: &Limits) -> Result<(), CgroupError> {
        self.delegate_from_root()?;
        self.group("", Kind::Inner).create(all_pods)?;
        self.group("besteffort", Kind::Inner).create(&Limits::class(0))?;
        self.group("burstable", Kind::Inner).create(&Limits::class(0))?;
        devices::prepare(&self.layout, &self.parent)
    }

    /// v2: each group from the root to PARENT must let its children have the controllers.
    fn delegate_from_root(&self) -> Result<(), CgroupError> {
        let Some(unified) = self.layout.unified() else { return Ok(()) };
        let Some(names) = plan::subtree_control(&unified.controllers) else { return Ok(()) };
        let mut dir = unified.mount.clone();
        for part in &self.parent {
            write(&dir.join("cgroup.subtree_control"), &names)?;
            dir.push(part);
            make_dir(&dir)?;
        }
        Ok(())
    }

    /// The one of version 2 below which all containers are, whatever controls them. It is made if it isn't there yet.
    pub fn of_all_pods(&self) -> Result<Option<PathBuf>, CgroupError> {
        let Some(unified) = self.layout.unified() else { return Ok(None) };
        let dir = unified.mount.join(&self.parent);
        make_dir(&dir)?;
        Ok(Some(dir))
    }

    /// What is missing on this machine, by name.
    pub fn missing(&self) -> Vec<&'static str> {
        self.layout.missing()
    }

    /// The hierarchies found.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Weighs burstable pods, as a class, by what they ask for together. With memory, in bytes: what burstable pods ask for, and all
    /// together; a pod's memory.min counts only as far as its parents have it.
    pub fn set_requests(&self, burstable_cpu: u64, memory: Option<(u64, u64)>) -> Result<(), CgroupError> {
        let (burstable, all) = memory.unzip();
        if all.is_some() {
            self.group("", Kind::Inner).apply(&Limits { memory_min: all, ..Limits::default() })?;
        }
        self.group("burstable", Kind::Inner).apply(&Limits { memory_min: burstable, ..Limits::class(burstable_cpu) })
    }

    /// A pod's group; it need not exist.
    pub fn pod(&self, qos: Qos, uid: &str) -> Group {
        let class = match qos {
            Qos::Guaranteed => "",
            Qos::Burstable => "burstable",
            Qos::BestEffort => "besteffort",
        };
        self.group(Path::new(class).join(format!("pod{uid}")), Kind::Inner)
    }

    /// A pod's group of whatever class, found by its directory: the way to clean up a pod whose spec is lost.
    pub fn find_pods(&self, uid: &str) -> Vec<Group> {
        let all = [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort].map(|qos| self.pod(qos, uid));
        all.into_iter().filter(|group| group.dirs().iter().any(|dir| dir.exists())).collect()
    }

    /// UIDs of all pods that have a group.
    pub fn pods(&self) -> Vec<String> {
        let Some(census) = self.layout.census() else { return Vec::new() };
        let classes = ["", "burstable", "besteffort"].map(|class| census.mount.join(&self.parent).join(class));
        let names = classes.iter().flat_map(|class| subdirectories(class)).filter_map(|dir| {
            let name = dir.file_name()?.to_str()?;
            name.strip_prefix("pod").map(str::to_owned)
        });
        names.collect()
    }

    /// Removes PARENT with all below; what is still in use stays, and is the error.
    pub async fn remove(&self) -> Result<(), CgroupError> {
        self.group("", Kind::Inner).remove().await?;
        devices::remove(&self.layout, &self.parent)
    }

    fn group(&self, below: impl AsRef<Path>, kind: Kind) -> Group {
        Group { layout: self.layout.clone(), parent: self.parent.clone(), relative: self.parent.join(below), kind }
    }
}

/// One group: a directory in each hierarchy.
#[derive(Debug, Clone)]
pub struct Group {
    layout: Arc<Layout>,
    parent: PathBuf,
    relative: PathBuf,
    kind: Kind,
}

impl Group {
    /// A group below this one, for processes.
    pub fn child(&self, name: &str) -> Self {
        Self { relative: self.relative.join(name), kind: Kind::Leaf, ..self.clone() }
    }

    /// Where the pod's holder lives. v2 allows no process in a group that hands controllers down; elsewhere the pod's own
    /// group will do, which saves a directory in each hierarchy.
    pub fn for_holder(&self) -> Self {
        if self.hands_down() { self.child("holder") } else { self.clone() }
    }

    /// What the holder joins. It moves itself, which in v2 takes the lock of all forks of the machine: 6 ms. So where v1 has the
    /// controllers, it stays out of the unified hierarchy. (Containers are born into theirs, without that lock.)
    pub fn holder_joins(&self) -> Vec<PathBuf> {
        let unified = self.layout.unified().map(|h| &h.mount).filter(|_| !self.hands_down());
        self.dirs().into_iter().filter(|dir| unified.is_none_or(|mount| !dir.starts_with(mount))).collect()
    }

    fn hands_down(&self) -> bool {
        self.layout.unified().is_some_and(|h| plan::subtree_control(&h.controllers).is_some())
    }

    /// Relative to the hierarchies' mounts, such as `/nodeagent/burstable/pod…`.
    pub fn path(&self) -> PathBuf {
        Path::new("/").join(&self.relative)
    }

    /// Its directories, one a hierarchy.
    pub fn dirs(&self) -> Vec<PathBuf> {
        let own = |h: &&layout::Hierarchy| h.controllers != [Controller::Devices];
        self.layout.hierarchies.iter().filter(own).map(|h| h.mount.join(&self.relative)).collect()
    }

    /// What a process joins: [`Self::dirs`], and the group of v1's device rules.
    pub fn joins(&self, rules: DeviceRules) -> Vec<PathBuf> {
        let mut dirs = self.dirs();
        dirs.extend(devices::group(&self.layout, &self.parent, &self.relative, rules));
        dirs
    }

    /// Lets what will join it open the default device nodes and these, and no others. Before [`Self::joins`].
    pub fn restrict_devices(&self, extra: &[DeviceRule]) -> Result<(), CgroupError> {
        devices::restrict(&self.layout, &self.relative, extra)
    }

    /// Makes it, or takes it as it is, and sets its limits. mkdir and write, nothing else.
    pub fn create(&self, limits: &Limits) -> Result<(), CgroupError> {
        let plan = plan::plan(&self.layout, &self.relative, self.kind, limits);
        for dir in &plan.dirs {
            make_dir(dir)?;
        }
        write_all(&plan)
    }

    /// Sets limits of a group that is there (resize).
    pub fn apply(&self, limits: &Limits) -> Result<(), CgroupError> {
        write_all(&plan::plan(&self.layout, &self.relative, self.kind, limits))
    }

    /// PIDs of all processes, also of the groups below.
    pub fn procs(&self) -> Vec<i32> {
        let mut found = Vec::new();
        // A hybrid machine's holders are only in v1's groups: see `holder_joins`.
        for hierarchy in self.layout.census().into_iter().chain(self.layout.of(Controller::Pids)) {
            collect_procs(&hierarchy.mount.join(&self.relative), &mut found);
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// SIGKILL to every process, also of the groups below. At once by cgroup.kill; on a machine without it, frozen first, so
    /// that none forks away.
    pub fn kill(&self) -> Result<(), CgroupError> {
        let Some(census) = self.layout.census() else { return Ok(()) };
        let dir = census.mount.join(&self.relative);
        match fs::write(dir.join("cgroup.kill"), "1") {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound && !dir.exists() => return Ok(()),
            // Linux before 5.14, and v1.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {
                return self.kill_one_by_one(census, &dir);
            }
            Err(error) => return Err(failed("write", &dir.join("cgroup.kill"), error)),
        }
        if self.kind == Kind::Inner && !self.hands_down() {
            // A holder that doesn't answer.
            self.kill_round();
        }
        Ok(())
    }

    fn kill_one_by_one(&self, census: &layout::Hierarchy, dir: &Path) -> Result<(), CgroupError> {
        let (file, freeze, thaw) = match census.version {
            Version::V1 => ("freezer.state", "FROZEN", "THAWED"),
            Version::V2 => ("cgroup.freeze", "1", "0"),
        };
        // Without a freezer a fork bomb could outrun us: then rounds, until a round finds nobody new.
        let _ = fs::write(dir.join(file), freeze);
        let mut before = Vec::new();
        for _ in 0..100 {
            let now = self.kill_round();
            if now == before {
                break;
            }
            before = now;
        }
        let thawed = fs::write(dir.join(file), thaw);
        match thawed {
            // A frozen group would stay for ever.
            Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("write", &dir.join(file), error)),
            _ => Ok(()),
        }
    }

    fn kill_round(&self) -> Vec<i32> {
        let now = self.procs();
        for pid in now.iter().filter_map(|pid| Pid::from_raw(*pid)) {
            // An error means that it has ended.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        now
    }

    /// How many times the kernel killed a process of this group, or of one below, for want of memory.
    pub fn oom_kills(&self) -> u64 {
        stats::oom_kills(&self.layout, &self.relative)
    }

    /// What it uses now.
    pub fn stats(&self) -> Stats {
        stats::read(&self.layout, &self.relative)
    }

    /// What monitoring wants to know beside [`Self::stats`].
    pub fn detail(&self) -> Detail {
        detail::read(&self.layout, &self.relative)
    }

    /// Removes it and all below. Processes that are just dying get a moment; one that hangs (D state) is the error, and the
    /// call may be repeated.
    pub async fn remove(&self) -> Result<(), CgroupError> {
        let mut pause = Duration::from_millis(1);
        loop {
            let result = self.remove_now();
            let busy = result.as_ref().is_err_and(|e| e.source.kind() == ErrorKind::ResourceBusy);
            if !busy || pause > Duration::from_secs(1) {
                return result;
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }

    fn remove_now(&self) -> Result<(), CgroupError> {
        let own_devices = devices::remove_own(&self.layout, &self.relative).err();
        let failures: Vec<_> = self.dirs().iter().filter_map(|dir| remove_tree(dir).err()).chain(own_devices).collect();
        failures.into_iter().next().map_or(Ok(()), Err)
    }
}

fn make_dir(dir: &Path) -> Result<(), CgroupError> {
    match rustix::fs::mkdir(dir, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(rustix::io::Errno::NOENT) => fs::create_dir_all(dir).map_err(|e| failed("make", dir, e)),
        Err(error) => Err(failed("make", dir, error.into())),
    }
}

fn write_all(plan: &Plan) -> Result<(), CgroupError> {
    let one = |file: &plan::Write| match write(&file.path, &file.value) {
        Err(error) if file.optional && error.source.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    };
    // v1's limit of memory may not be above that of memory and swap: which of them comes first depends on whether it grows.
    let refused: Vec<_> = plan.writes.iter().filter_map(|file| one(file).err().map(|error| (file, error))).collect();
    for (file, error) in refused {
        if error.source.kind() != ErrorKind::InvalidInput {
            return Err(error);
        }
        one(file)?;
    }
    Ok(())
}

/// One open, one write, no truncation: what the kernel's control files expect.
fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    let written = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .and_then(|file| rustix::io::write(&file, value.as_bytes()));
    written.map(drop).map_err(|e| failed("write", path, e.into()))
}

fn subdirectories(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

fn collect_procs(dir: &Path, found: &mut Vec<i32>) {
    // A group that is gone has no processes.
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    for child in subdirectories(dir) {
        collect_procs(&child, found);
    }
}

fn remove_tree(dir: &Path) -> Result<(), CgroupError> {
    match rustix::fs::rmdir(dir) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => return Ok(()),
        // It has groups below, or processes: the second rmdir tells.
        Err(rustix::io::Errno::BUSY) => {}
        Err(error) => return Err(failed("remove", dir, error.into())),
    }
    for child in subdirectories(dir) {
        remove_tree(&child)?;
    }
    match rustix::fs::rmdir(dir) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(failed("remove", dir, error.into())),
    }
}
