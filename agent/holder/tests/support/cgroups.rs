//! cgroups of a test's own.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// Own cgroups below the test's, removed at the end.
pub struct Cgroups(pub Vec<PathBuf>);

impl Cgroups {
    pub fn make(name: &str) -> Self {
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let found: Vec<PathBuf> = own
            .lines()
            .filter_map(|line| {
                let mut fields = line.splitn(3, ':').skip(1);
                let (controllers, path) = (fields.next()?, fields.next()?);
                let mount = match controllers.trim_start_matches("name=") {
                    "" if Path::new("/sys/fs/cgroup/unified").exists() => "/sys/fs/cgroup/unified",
                    "" => "/sys/fs/cgroup",
                    "pids" => "/sys/fs/cgroup/pids",
                    "memory" => "/sys/fs/cgroup/memory",
                    _ => return None,
                };
                let own = Path::new(mount).join(path.trim_start_matches('/'));
                if controllers.is_empty() {
                    // Of v2; refused where v1 has it, and then the group of v1 is in the list.
                    let _ = std::fs::write(own.join("cgroup.subtree_control"), "+pids");
                }
                let dir = own.join(format!("podholder-{name}-{}", std::process::id()));
                std::fs::create_dir(&dir).unwrap();
                Some(dir)
            })
            .collect();
        assert!(!found.is_empty(), "no cgroup hierarchy is mounted below /sys/fs/cgroup");
        Self(found)
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for dir in &self.0 {
            for _ in 0..500 {
                if std::fs::remove_dir(dir).is_ok() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}
