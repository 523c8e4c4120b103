//! Times a program from within a box, so that entering the box isn't part of what is measured.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

/// The name by which this program is called to be one.
pub const NAME: &str = "stopwatch";

/// When a program was started, and how long until it had ended.
#[derive(Debug, Clone, Copy)]
pub struct Lap {
    /// Unix time in nanoseconds.
    pub began: u128,
    pub took: Duration,
}

/// Puts the stopwatch into a folder; returns the path by which to call it.
pub fn put(folder: &Path) -> PathBuf {
    let path = folder.join(NAME);
    std::os::unix::fs::symlink(std::env::current_exe().expect("a program has a path"), &path).expect("the folder can be written");
    path
}

/// Runs a command that begins with the stopwatch; the program behind it must not fail.
pub fn lap(command: &mut Command) -> Lap {
    let output = e2e::run(command).ok();
    let numbers: Vec<u128> = output.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [began, nanoseconds] = numbers[..] else { panic!("the stopwatch said {output:?}") };
    Lap { began, took: Duration::from_nanos(nanoseconds as u64) }
}

/// Inside: runs the program, then prints both numbers.
pub fn time(words: &[String]) -> ExitCode {
    let (program, arguments) = words.split_first().expect("a program");
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
    let (began, clock) = (crate::side::now(), std::time::Instant::now());
    let status = command.status().unwrap_or_else(|e| panic!("{program}: {e}"));
    println!("{began} {}", clock.elapsed().as_nanos());
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}
