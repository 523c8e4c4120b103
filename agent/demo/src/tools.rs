//! What one types into a container that has no shell: each a few lines.

use std::fs::{self, OpenOptions};
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::str::FromStr;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::signals::{self, Term};
use crate::{argument, facts, shared};

/// Runs the tool of that name.
pub fn run(command: &str, words: &[&str]) -> Result<(), String> {
    match command {
        "sleep" => sleep(words.first().copied()),
        "stubborn" => {
            signals::handle(Term::Ignored)?;
            signals::forever()
        }
        "stamp" => stamp(),
        "echo" => say(&words.join(" ")),
        "cat" => copy_input(),
        "env" => facts::environment().iter().try_for_each(|(name, value)| say(&format!("{name}={value}"))),
        "id" => say(&facts::identity()),
        "ps" => lines(&facts::processes()),
        "mounts" => lines(&facts::mounts()),
        "addresses" => lines(&facts::addresses()),
        "namespace" => say(&facts::namespace(argument(words, 0, "KIND")?)),
        "tty" => say(if std::io::stdin().is_terminal() { "a terminal" } else { "not a terminal" }),
        "read" => read(argument(words, 0, "FILE")?),
        "write" => put(argument(words, 0, "FILE")?, argument(words, 1, "TEXT")?, OpenOptions::new().truncate(true)),
        "append" => put(argument(words, 0, "FILE")?, argument(words, 1, "TEXT")?, OpenOptions::new().append(true)),
        "follow" => follow(argument(words, 0, "FILE")?),
        "list" => list(words.first().copied().unwrap_or(".")),
        "await" => {
            wait_for(Path::new(argument(words, 0, "FILE")?));
            Ok(())
        }
        "fail-until" => fail_until(Path::new(argument(words, 0, "FILE")?), argument(words, 1, "a number")?),
        "own" => say(&on(argument(words, 0, "FILE")?, facts::owner(Path::new(words[0])))?),
        "mount-tmpfs" => mount_tmpfs(argument(words, 0, "DIRECTORY")?),
        "hostname" => hostname(words.first().copied()),
        "hold-shm" => hold_shared(key(words)?, argument(words, 1, "VALUE")?),
        "read-shm" => read_shared(key(words)?),
        "kill" => send(argument(words, 0, "PID")?, words.get(1).copied().unwrap_or("SIGTERM")),
        "fork" => orphans(argument(words, 0, "a number")?),
        "orphan" => on("fork", again(&["exit", "0"])).map(drop),
        "eat" => eat(argument(words, 0, "MEBIBYTES")?),
        "line" => line(argument(words, 0, "BYTES")?),
        "spam" => spam(argument(words, 0, "BYTES")?, words.get(1).copied()),
        other => Err(format!("no command {other:?}; see demo help")),
    }
}

/// `500ms`, `2s`, `2` (seconds), `1m`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        other => return Err(format!("{text}: no unit {other:?}; there are ms, s, m and h")),
    };
    let number: f64 = digits.parse().map_err(|e| format!("{text}: {e}"))?;
    Duration::try_from_secs_f64(number * unit).map_err(|e| format!("{text}: {e}"))
}

/// Prints 1, 2, 3 …, or appends them to the file of that name.
pub fn count(every: Duration, into: Option<&str>) -> Result<(), String> {
    signals::handle(Term::Ends)?;
    for number in 1_u64.. {
        match into {
            Some(path) => put(path, &number.to_string(), OpenOptions::new().append(true))?,
            None => say(&number.to_string())?,
        }
        thread::sleep(every);
    }
    Ok(())
}

/// Waits for a file that isn't there yet.
fn follow(path: &str) -> Result<(), String> {
    const EVERY: Duration = Duration::from_millis(50);
    signals::handle(Term::Ends)?;
    let mut file = loop {
        match fs::File::open(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => thread::sleep(EVERY),
            opened => break on(path, opened)?,
        }
    };
    loop {
        on(path, std::io::copy(&mut file, &mut std::io::stdout()))?;
        thread::sleep(EVERY);
    }
}

fn sleep(how_long: Option<&str>) -> Result<(), String> {
    signals::handle(Term::Ends)?;
    match how_long {
        None | Some("inf" | "infinity") => signals::forever(),
        Some(text) => thread::sleep(duration(text)?),
    }
    Ok(())
}

fn wait_for(file: &Path) {
    while !file.exists() {
        thread::sleep(Duration::from_millis(20));
    }
}

/// A program whose fault another has to mend.
fn fail_until(file: &Path, code: &str) -> Result<(), String> {
    let code: u8 = code.parse().map_err(|e| format!("{code}: {e}"))?;
    if !file.exists() {
        std::process::exit(code.into());
    }
    sleep(None)
}

/// Every page is written to: what is only promised counts for nothing.
fn eat(mebibytes: &str) -> Result<(), String> {
    signals::handle(Term::Ends)?;
    let count: usize = mebibytes.parse().map_err(|e| format!("eat {mebibytes}: {e}"))?;
    let mut held = Vec::new();
    for number in 0..count {
        held.push(vec![1 | (number as u8); 1 << 20]);
    }
    say(&format!("holds {} MiB", held.len()))?;
    signals::forever()
}

fn stamp() -> Result<(), String> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_err(|e| e.to_string())?;
    say(&now.as_nanos().to_string())?;
    signals::handle(Term::Ends)?;
    signals::forever()
}

fn say(text: &str) -> Result<(), String> {
    writeln!(std::io::stdout(), "{text}").map_err(|e| format!("write: {e}"))
}

fn lines(all: &[String]) -> Result<(), String> {
    all.iter().try_for_each(|line| say(line))
}

fn on<T>(what: &str, result: std::io::Result<T>) -> Result<T, String> {
    result.map_err(|e| format!("{what}: {e}"))
}

fn copy_input() -> Result<(), String> {
    on("copy", std::io::copy(&mut std::io::stdin(), &mut std::io::stdout())).map(drop)
}

fn read(path: &str) -> Result<(), String> {
    let mut file = on(path, fs::File::open(path))?;
    on(path, std::io::copy(&mut file, &mut std::io::stdout())).map(drop)
}

fn put(path: &str, text: &str, how: &mut OpenOptions) -> Result<(), String> {
    let mut file = on(path, how.create(true).write(true).open(path))?;
    on(path, writeln!(file, "{text}"))
}

fn list(path: &str) -> Result<(), String> {
    let mut names: Vec<String> =
        on(path, fs::read_dir(path))?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    lines(&names)
}

fn mount_tmpfs(path: &str) -> Result<(), String> {
    on(path, fs::create_dir_all(path))?;
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), None::<&str>).map_err(|e| format!("mount on {path}: {e}"))
}

fn hostname(name: Option<&str>) -> Result<(), String> {
    match name {
        None => say(&facts::hostname()),
        Some(name) => nix::unistd::sethostname(name).map_err(|e| format!("sethostname {name}: {e}")),
    }
}

fn key(words: &[&str]) -> Result<i32, String> {
    let text = argument(words, 0, "KEY")?;
    text.parse().map_err(|e| format!("key {text}: {e}"))
}

/// The segment outlives this process: it ends with the IPC namespace.
fn hold_shared(key: i32, value: &str) -> Result<(), String> {
    let value = value.parse().map_err(|e| format!("value {value}: {e}"))?;
    on(&format!("shared memory {key}"), shared::make(key))?[0].store(value, Relaxed);
    Ok(())
}

fn read_shared(key: i32) -> Result<(), String> {
    let segment = on(&format!("shared memory {key}"), shared::find(key))?;
    say(&segment[0].load(Relaxed).to_string())
}

fn send(pid: &str, signal: &str) -> Result<(), String> {
    let target = pid.parse().map_err(|e| format!("pid {pid}: {e}"))?;
    let signal = Signal::from_str(signal).map_err(|e| format!("{signal}: {e}"))?;
    kill(Pid::from_raw(target), signal).map_err(|e| format!("kill {pid} {signal}: {e}"))
}

/// A child's own child loses its parent at once and becomes PID 1's to reap.
fn orphans(number: &str) -> Result<(), String> {
    let number: u32 = number.parse().map_err(|e| format!("{number}: {e}"))?;
    for _ in 0..number {
        on("wait", on("fork", again(&["orphan"]))?.wait())?;
    }
    Ok(())
}

/// This program once more.
fn again(words: &[&str]) -> std::io::Result<std::process::Child> {
    std::process::Command::new("/proc/self/exe").args(words).spawn()
}

/// One line of that many bytes.
fn line(bytes: &str) -> Result<(), String> {
    let length: usize = bytes.parse().map_err(|e| format!("{bytes}: {e}"))?;
    say(&"y".repeat(length.saturating_sub(1)))
}

/// Lines of 100 bytes that carry their number, so that a lost or doubled one shows. In blocks and little else: who takes them is to be
/// the slower. With `timed`, a last line says how many nanoseconds it took to be rid of them.
fn spam(bytes: &str, timed: Option<&str>) -> Result<(), String> {
    const LINE: u64 = 100;
    const BLOCK: usize = 640;
    let total: u64 = bytes.parse().map_err(|e| format!("{bytes}: {e}"))?;
    let mut block = format!("{:012} {:x<86}\n", 0, "").repeat(BLOCK).into_bytes();
    let began = Instant::now();
    let mut numbers = (0..total / LINE).peekable();
    while numbers.peek().is_some() {
        let mut length = 0;
        for (line, number) in block.chunks_exact_mut(LINE as usize).zip(&mut numbers) {
            write_digits(&mut line[..12], number);
            length += line.len();
        }
        on("write", std::io::stdout().write_all(&block[..length]))?;
    }
    if timed == Some("timed") { say(&began.elapsed().as_nanos().to_string()) } else { Ok(()) }
}

fn write_digits(text: &mut [u8], mut number: u64) {
    for digit in text.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_units() {
        let cases = [("500ms", 500), ("2s", 2000), ("2", 2000), ("0.5s", 500), ("1m", 60_000)];
        for (text, millis) in cases {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for wrong in ["", "s", "1d", "-1s", "1e400"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
