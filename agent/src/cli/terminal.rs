//! The user's terminal: raw while a process has it, its size, its keys, and back again whatever happens.

use std::io::{self, Read};

use bytes::Bytes;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc;

use crate::pod::node::TerminalSize;

/// Bytes of input read at a time.
const CHUNK: usize = 32 * 1024;

/// Raw mode until it is dropped.
#[derive(Debug)]
pub struct Raw(Termios);

impl Raw {
    /// Hands every key on as it is, interrupts too.
    pub fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.0);
    }
}

/// Whether standard input is a terminal.
pub fn is_terminal() -> bool {
    isatty(io::stdin())
}

/// The terminal's size, if it has one.
pub fn size() -> Option<TerminalSize> {
    let size = tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stdin())).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some(TerminalSize { rows: size.ws_row, columns: size.ws_col })
}

/// Standard input, read by a thread of its own: made non-blocking it would be so for the shell that we share it with, too.
pub fn input() -> mpsc::Receiver<Bytes> {
    let (sender, receiver) = mpsc::channel(4);
    std::thread::spawn(move || {
        let mut chunk = vec![0; CHUNK];
        let mut stdin = io::stdin().lock();
        while let Ok(length @ 1..) = stdin.read(&mut chunk) {
            if sender.blocking_send(Bytes::copy_from_slice(&chunk[..length])).is_err() {
                return;
            }
        }
    });
    receiver
}
