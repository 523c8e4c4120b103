//! Turns errors into [`Fault`]s: which stage, on what, and what the kernel said.

use std::fmt::Display;
use std::io;

use podholder::protocol::{Fault, Stage};

/// Adds the stage and its subject to an error.
pub trait OrFault<T> {
    /// `subject`: a path, a capability, a user's name; empty when there is no such thing.
    fn or_fault(self, stage: Stage, subject: impl Display) -> Result<T, Fault>;
}

impl<T, E: Into<io::Error>> OrFault<T> for Result<T, E> {
    fn or_fault(self, stage: Stage, subject: impl Display) -> Result<T, Fault> {
        self.map_err(|e| kernel(stage, subject, e))
    }
}

/// The kernel said no.
pub fn kernel(stage: Stage, subject: impl Display, error: impl Into<io::Error>) -> Fault {
    let error = error.into();
    let errno = error.raw_os_error().unwrap_or(0);
    let detail = if errno == 0 { error.to_string() } else { String::new() };
    Fault { stage, subject: subject.to_string(), errno, detail }
}

/// We say no ourselves.
pub fn refused(stage: Stage, subject: impl Display, detail: impl Display) -> Fault {
    Fault { stage, subject: subject.to_string(), errno: 0, detail: detail.to_string() }
}
