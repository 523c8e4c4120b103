//! The machine's hierarchies of cgroups, and the groups in them that processes are put into.
//!
//! It takes the kernel 20 µs to walk a path as long as a container's in one of them, and a start has use for each of up to eight
//! several times. So the folders that containers' groups are in are opened once in a holder's life, and each group once for all.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use podholder::protocol::{Fault, Stage};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::fault::{OrFault, kernel};

/// What a hybrid machine's v2 is called, and here the whole of v2.
pub const UNIFIED: &str = "unified";

/// One that is mounted.
#[derive(Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// The name that it has on this machine (`cpu,cpuacct`, `memory`, …); of v2 [`UNIFIED`].
    pub name: String,
    pub mount_point: PathBuf,
}

impl Hierarchy {
    pub fn is_unified(&self) -> bool {
        self.name == UNIFIED
    }
}

/// A group, open.
pub struct Group {
    pub path: PathBuf,
    pub folder: OwnedFd,
    pub hierarchy: Rc<Hierarchy>,
}

/// What a group is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To join it.
    Join,
    /// To show it, too: a mount of its own, that isn't attached anywhere yet.
    Show,
}

/// All hierarchies, and the folders that were used before.
#[derive(Default)]
pub struct Hierarchies {
    /// As they are mounted; empty until somebody asks.
    mounted: Vec<Rc<Hierarchy>>,
    folders: BTreeMap<PathBuf, OwnedFd>,
}

impl Hierarchies {
    /// Looks where they are, ahead of the first group that is opened.
    pub fn find(&mut self) -> Result<(), Fault> {
        let path = "/proc/self/mountinfo";
        let text = std::fs::read_to_string(path).or_fault(Stage::Cgroup, path)?;
        self.mounted = hierarchies(&text).map(Rc::new).collect();
        Ok(())
    }

    /// Opens groups, in their order.
    pub fn open(&mut self, paths: &[PathBuf], purpose: Purpose) -> Result<Vec<Group>, Fault> {
        if self.mounted.is_empty() && !paths.is_empty() {
            self.find()?;
        }
        paths.iter().map(|path| self.open_one(path, purpose)).collect()
    }

    /// The same, and remembers them: a pod's own are what its containers' are in.
    pub fn open_parents(&mut self, paths: &[PathBuf]) -> Result<Vec<Group>, Fault> {
        let groups = self.open(paths, Purpose::Join)?;
        for group in &groups {
            self.folders.insert(group.path.clone(), group.folder.try_clone().or_fault(Stage::Cgroup, group.path.display())?);
        }
        Ok(groups)
    }

    fn open_one(&mut self, path: &Path, purpose: Purpose) -> Result<Group, Fault> {
        let fault = |e| kernel(Stage::Cgroup, path.display(), e);
        let hierarchy = self.of(path).ok_or_else(|| fault(rustix::io::Errno::NOENT))?;
        // v2 alone is shown by a mount of the whole, of which a cgroup namespace shows the right part; beside v1 it isn't shown.
        let purpose = if hierarchy.is_unified() { Purpose::Join } else { purpose };
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(fault(rustix::io::Errno::INVAL));
        };
        if !self.folders.contains_key(parent) {
            self.folders.insert(parent.to_owned(), folder(CWD, parent).map_err(fault)?);
        }
        let known = self.folders.get(parent).map(|parent| open(parent, Path::new(name), purpose));
        let opened = if let Some(Ok(opened)) = known {
            Ok(opened)
        } else {
            // The folder was removed and made again.
            self.folders.remove(parent);
            open(CWD, path, purpose)
        };
        Ok(Group { path: path.to_owned(), folder: opened.map_err(fault)?, hierarchy })
    }

    /// The hierarchy that a path is in: the last that was mounted, of the deepest.
    fn of(&self, path: &Path) -> Option<Rc<Hierarchy>> {
        let around = self.mounted.iter().filter(|h| path.starts_with(&h.mount_point));
        around.max_by_key(|h| h.mount_point.as_os_str().len()).cloned()
    }
}

fn open(dir: impl AsFd, path: &Path, purpose: Purpose) -> rustix::io::Result<OwnedFd> {
    match purpose {
        Purpose::Join => folder(dir, path),
        Purpose::Show => open_tree(dir, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC),
    }
}

fn folder(dir: impl AsFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(dir, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Of proc(5)'s mountinfo: `36 35 98:0 /root /mount\040point options tags - type source options`.
fn hierarchies(mountinfo: &str) -> impl Iterator<Item = Hierarchy> {
    mountinfo.lines().filter_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mount_point = PathBuf::from(mount.split(' ').nth(4)?.replace("\\040", " "));
        let name = match file_system.split(' ').next()? {
            "cgroup" => mount_point.file_name()?.to_string_lossy().into_owned(),
            "cgroup2" => UNIFIED.to_owned(),
            _ => return None,
        };
        Some(Hierarchy { name, mount_point })
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_and_told_apart() {
        let text = "\
24 1 0:22 / /sys rw,nosuid shared:7 - sysfs sysfs rw
30 24 0:26 / /sys/fs/cgroup ro shared:9 - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw
33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:15 - cgroup cgroup rw,cpu,cpuacct
34 30 0:30 /docker /a\\040b/memory rw master:1 shared:16 - cgroup cgroup rw,memory
";
        let mounted = hierarchies(text).map(Rc::new).collect();
        let hierarchies = Hierarchies { mounted, ..Hierarchies::default() };
        let of = |path: &str| hierarchies.of(Path::new(path)).map(|h| h.name.clone());
        assert_eq!(of("/sys/fs/cgroup/unified/pod").as_deref(), Some("unified"));
        assert_eq!(of("/sys/fs/cgroup/cpu,cpuacct").as_deref(), Some("cpu,cpuacct"));
        assert_eq!(of("/a b/memory/x/y").as_deref(), Some("memory"));
        assert_eq!(of("/sys/fs/cgroup/unifiedly"), None);
    }

    #[test]
    fn the_root_of_v2_alone_is_one_too() {
        let mounted: Vec<Hierarchy> = hierarchies("31 30 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n").collect();
        assert_eq!(mounted, [Hierarchy { name: UNIFIED.into(), mount_point: "/sys/fs/cgroup".into() }]);
        assert!(mounted[0].is_unified());
    }

    #[test]
    fn a_group_is_found_again_when_its_folder_was_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let mounted = vec![Rc::new(Hierarchy { name: "any".into(), mount_point: dir.path().into() })];
        let mut hierarchies = Hierarchies { mounted, ..Hierarchies::default() };
        let path = dir.path().join("pod/container");
        for _ in 0..2 {
            std::fs::create_dir_all(&path).unwrap();
            assert_eq!(hierarchies.open(std::slice::from_ref(&path), Purpose::Join).unwrap().len(), 1);
            std::fs::remove_dir_all(dir.path().join("pod")).unwrap();
        }
        let fault = hierarchies.open(std::slice::from_ref(&path), Purpose::Join).err().unwrap();
        assert_eq!((fault.errno, fault.stage), (libc::ENOENT, Stage::Cgroup));
    }
}
