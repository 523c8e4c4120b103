//! Where both sides keep what they have: a file system of their own, with a tmpfs for what is in /run on a machine. On the machine's disk
//! it is felt at each new file what others have deleted lately (ext4 without a journal passes by the inodes of the last minute, one by
//! one), and how freed blocks are given back.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Names the file system's folder to the bench that runs on it.
const MARK: &str = "NODEAGENT_BENCH_DISK";
/// Sparse: what isn't written takes no room.
const SIZE: u64 = 16 << 30;

/// Whether this process runs on it.
pub fn is_mounted() -> bool {
    std::env::var_os(MARK).is_some()
}

/// Runs this program again, on such a file system. It goes with the mount namespace, and that with the program.
pub fn run_on_one(words: &[String]) -> ExitCode {
    let folder = tempfile::Builder::new().prefix("nodeagent-bench-").tempdir().expect("a temporary folder");
    let (image, disk) = (folder.path().join("disk.img"), folder.path().join("disk"));
    std::fs::create_dir(&disk).expect("the folder can be written");
    std::fs::File::create(&image).and_then(|file| file.set_len(SIZE)).expect("the folder can be written");
    e2e::run(Command::new("mkfs.ext4").arg("-q").arg(&image)).ok();
    let script = "mount -o loop \"$0\" \"$1\" && mkdir -p \"$1/run\" && mount -t tmpfs run \"$1/run\" && shift && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]).arg(&image).arg(&disk).arg(std::env::current_exe().expect("its own path"));
    let status = command.args(words).env(MARK, &disk).env("TMPDIR", &disk).status().expect("unshare and sh are there");
    ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1))
}

/// Puts a node's /run where a machine's is: in memory.
pub fn run_in_memory(root: &Path) {
    let Some(disk) = std::env::var_os(MARK).map(PathBuf::from) else { return };
    let place = tempfile::Builder::new().prefix("run-").tempdir_in(disk.join("run")).expect("a tmpfs").keep();
    std::os::unix::fs::symlink(place, root.join("run")).expect("the folder can be written");
}
