//! Programs run, with what they said.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::thread;

/// What a program that has ended said.
#[derive(Debug, Clone)]
pub struct Output {
    /// Its words, for messages.
    pub command: String,
    /// Exit status; 128 + signal when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Standard output of a program that must not fail.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.code == 0, "{self}");
        self.stdout
    }

    /// Both outputs of a program that must fail with this status.
    #[track_caller]
    pub fn fails_with(self, code: i32) -> String {
        assert!(self.code == code, "expected status {code}: {self}");
        self.all()
    }

    /// Both outputs of a program that must fail.
    #[track_caller]
    pub fn fails(self) -> String {
        assert!(self.code != 0, "expected a failure: {self}");
        self.all()
    }

    /// Both outputs.
    pub fn all(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }

    /// `Ok` with standard output, or `Err` with all of it.
    pub fn result(self) -> Result<String, String> {
        if self.code == 0 { Ok(self.stdout) } else { Err(self.to_string()) }
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` ended with {}\n{}{}", self.command, self.code, self.stdout, self.stderr)
    }
}

/// Runs to the end with no standard input.
#[track_caller]
pub fn run(command: &mut Command) -> Output {
    feed(command, b"")
}

/// Runs to the end with this standard input.
#[track_caller]
pub fn feed(command: &mut Command, input: &[u8]) -> Output {
    let words = words(command);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{words}: {e}"));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // A program that doesn't read its input closes it: no failure.
    let feeding = thread::spawn(move || stdin.write_all(&input).ok());
    let output = child.wait_with_output().unwrap_or_else(|e| panic!("{words}: {e}"));
    feeding.join().ok();
    Output {
        command: words,
        code: code(output.status),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn words(command: &Command) -> String {
    let all: Vec<_> =
        std::iter::once(command.get_program()).chain(command.get_args()).map(|word| word.to_string_lossy()).collect();
    all.join(" ")
}

fn code(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// A program that runs beside the test, and is killed at the latest with this value.
#[derive(Debug)]
pub struct Running {
    command: String,
    child: Child,
    output: std::sync::Arc<std::sync::Mutex<String>>,
}

impl Running {
    /// Starts it; its output, both kinds, is collected.
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        let words = words(command);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{words}: {e}"));
        let output = std::sync::Arc::<std::sync::Mutex<String>>::default();
        collect(child.stdout.take().unwrap(), output.clone());
        collect(child.stderr.take().unwrap(), output.clone());
        Self { command: words, child, output }
    }

    /// What it has said so far.
    pub fn output(&self) -> String {
        self.output.lock().unwrap().clone()
    }

    /// Waits until it has said this.
    #[track_caller]
    pub fn says(&self, text: &str) {
        crate::eventually(&format!("`{}` says {text:?}", self.command), || {
            let output = self.output();
            if output.contains(text) { Ok(()) } else { Err(output) }
        });
    }

    /// Types into it.
    pub fn write(&mut self, text: &str) {
        let stdin = self.child.stdin.as_mut().expect("its standard input is open");
        stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush()).expect("it reads its standard input");
    }

    /// Closes its standard input.
    pub fn close_input(&mut self) {
        self.child.stdin.take();
    }

    /// Waits for its end and returns its status.
    #[track_caller]
    pub fn ends(&mut self) -> i32 {
        let command = self.command.clone();
        crate::eventually(&format!("`{command}` ends"), || match self.child.try_wait() {
            Ok(Some(status)) => Ok(code(status)),
            Ok(None) => Err(self.output()),
            Err(error) => Err(error.to_string()),
        })
    }

    /// Whether it hasn't ended.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Its process.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn collect(mut from: impl Read + Send + 'static, into: std::sync::Arc<std::sync::Mutex<String>>) {
    thread::spawn(move || {
        let mut buffer = [0; 16 * 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            into.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    });
}

/// curl's words for a WebSocket by hand: its frames come as they are.
pub fn websocket(protocol: Option<&str>) -> Vec<String> {
    let headers =
        ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="];
    let protocol = protocol.map(|protocol| format!("Sec-WebSocket-Protocol: {protocol}"));
    let headers = headers.map(ToOwned::to_owned).into_iter().chain(protocol);
    let words = headers.flat_map(|header| ["--header".to_owned(), header]);
    ["--http1.1", "--no-buffer", "--include"].map(ToOwned::to_owned).into_iter().chain(words).collect()
}
