//! Logs: nothing is lost, whatever the size, the disk and the end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use podholder::protocol::*;
use std::io::{BufRead, BufReader};
use support::*;

#[test]
fn partial_and_long_lines() {
    let mut pod = Pod::new();
    let recipe = pod.shell("app", "head -c 40000 /dev/zero | tr '\\0' x; echo; printf 'no end'");
    let ran = pod.run(&recipe);
    assert_eq!(ran.stdout, format!("{}\nno end", "x".repeat(40_000)));
    let log = log_of(&recipe);
    let tags: Vec<&str> = log.lines().map(|l| l.split(' ').nth(2).unwrap()).collect();
    assert_eq!(tags, ["P", "P", "F", "P"]);
    let time = log.split(' ').next().unwrap();
    assert!(time.len() == 30 && time.ends_with('Z') && time.as_bytes()[10] == b'T', "{time}");
}

#[test]
fn no_byte_of_a_hundred_megabytes_is_lost() {
    let mut pod = Pod::new();
    let recipe = pod.shell("app", "awk 'BEGIN { for (n = 1; n <= 1000000; n++) printf \"%099d\\n\", n }'");
    pod.start(&recipe).unwrap();
    // The agent is killed in the middle of it.
    pod.disconnect();
    pod.reconnect();
    eventually("it ended", || pod.state().containers[0].exit.is_some());
    let file = BufReader::new(std::fs::File::open(&recipe.log.as_ref().unwrap().path).unwrap());
    let mut expected = 0u64;
    for line in file.lines() {
        expected += 1;
        assert_eq!(line.unwrap()[40..].parse::<u64>().unwrap(), expected);
    }
    assert_eq!(expected, 1_000_000);
}

#[test]
fn rotation_bounds_the_disk_and_keeps_the_newest() {
    let mut pod = Pod::new();
    let mut recipe = pod.shell("app", "seq 1 200000");
    let log = recipe.log.as_mut().unwrap();
    (log.max_size, log.max_files) = (1 << 20, 3);
    let folder = log.path.parent().unwrap().to_owned();
    pod.start(&recipe).unwrap();
    pod.exit_of(&recipe.id);
    let mut names: Vec<String> = std::fs::read_dir(folder.clone())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| n.starts_with("0.log"))
        .collect();
    names.sort();
    assert_eq!(names.len(), 3, "{names:?}");
    assert_eq!(names[0], "0.log");
    // The rotated ones in order, then the current: the end of the output without a gap.
    names.rotate_left(1);
    let all: String = names.iter().map(|n| std::fs::read_to_string(folder.join(n)).unwrap()).collect();
    let numbers: Vec<u64> = text(&all, "stdout").lines().map(|l| l.parse().unwrap()).collect();
    assert_eq!(*numbers.last().unwrap(), 200_000);
    assert!(numbers.windows(2).all(|w| w[1] == w[0] + 1));
    assert!(numbers.len() > 30_000);
}

/// A tmpfs of a megabyte in a mount namespace where the holder is, is what a full disk is here: the log is on it.
#[test]
fn a_full_disk_loses_nothing_and_holds_the_writer_up() {
    let mut pod = Pod::new();
    let disk = tempfile::tempdir().unwrap();
    let _mounted = SmallDisk::mount(disk.path());
    std::fs::write(disk.path().join("ballast"), vec![0; 900 * 1024]).unwrap();
    let mut recipe = pod.shell("app", "seq 1 60000; echo end >&2");
    recipe.log.as_mut().unwrap().path = disk.path().join("0.log");
    // 60000 lines are 2.6 MB in the log: too many for the disk even without the ballast.
    (recipe.log.as_mut().unwrap().max_size, recipe.log.as_mut().unwrap().max_files) = (300 * 1024, 2);
    pod.start(&recipe).unwrap();
    let mut seen = Vec::new();
    pod.exit_of(&recipe.id);
    std::fs::remove_file(disk.path().join("ballast")).unwrap();
    eventually("the last line is written", || {
        seen = std::fs::read(disk.path().join("0.log")).unwrap_or_default();
        String::from_utf8_lossy(&seen).contains("60000")
    });
    let state = pod.state();
    assert_eq!(state.containers[0].exit.unwrap().code, 0);
}

/// A mount of the test's, gone with it.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(path: &std::path::Path) -> Self {
        use rustix::mount::{MountFlags, mount};
        mount("tmpfs", path, "tmpfs", MountFlags::empty(), Some(c"size=1m")).unwrap();
        Self(path.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn the_output_of_a_process_in_the_background_does_not_delay_the_end() {
    let mut pod = Pod::new();
    let mut recipe = pod.shell("app", "sh -c 'while true; do echo noise; done' & echo mine; exit 0");
    recipe.pid = PidNamespace::Host;
    let pid = pod.start(&recipe).unwrap();
    assert_eq!(pod.exit_of(&recipe.id).code, 0);
    assert!(log_of(&recipe).contains("F mine"));
    // The session is the container's.
    let _ = rustix::process::kill_process_group(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL);
}
