//! Why a holder didn't do what it was asked, as a sentence. The parts stay data: stage, path and errno.

use std::io;
use std::time::Duration;

use nix::errno::Errno;
use podholder::protocol::{Fault, Stage};

/// A call that came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The holder says no, and why.
    #[error("{}", sentence(.0))]
    Fault(Fault),
    /// No answer in time. The holder may still do what it was asked: look at its state.
    #[error("the pod's holder (PID {pid}) gave no answer to `{request}` within {} s: a disk or network mount that hangs?", .after.as_secs())]
    Timeout {
        /// What was asked.
        request: &'static str,
        /// The holder.
        pid: i32,
        /// How long it was waited for.
        after: Duration,
    },
    /// The holder died, or ended the connection.
    #[error("the pod's holder (PID {0}) is gone")]
    Gone(i32),
    /// The connection doesn't work.
    #[error("speaking with the pod's holder: {0}")]
    Io(#[from] io::Error),
    /// An answer of the wrong kind or with too few descriptors.
    #[error("the pod's holder gave an answer to `{0}` that doesn't fit: is it of another version?")]
    Unexpected(&'static str),
}

impl CallError {
    /// The holder's own words, where it had any.
    pub fn fault(&self) -> Option<&Fault> {
        match self {
            Self::Fault(fault) => Some(fault),
            _ => None,
        }
    }

    /// 127 when the command isn't there, 126 when it can't be executed, else 128: what Kubernetes shows with StartError.
    pub fn exit_code(&self) -> i32 {
        match self.fault() {
            Some(Fault { stage: Stage::Exec, errno, .. }) if *errno == Errno::ENOENT as i32 => 127,
            Some(Fault { stage: Stage::Exec, .. }) => 126,
            _ => 128,
        }
    }
}

/// `mount config at /etc/app: No such file or directory`.
pub fn sentence(fault: &Fault) -> String {
    let mut said = what(fault.stage).to_owned();
    if !fault.subject.is_empty() {
        said.push(' ');
        said.push_str(&fault.subject);
    }
    if fault.errno != 0 {
        said.push_str(": ");
        said.push_str(Errno::from_raw(fault.errno).desc());
    }
    if !fault.detail.is_empty() {
        said.push_str(if fault.errno == 0 { ": " } else { " — " });
        said.push_str(&fault.detail);
    }
    if let Some(hint) = hint(fault) {
        said.push_str(" (");
        said.push_str(hint);
        said.push(')');
    }
    said
}

fn what(stage: Stage) -> &'static str {
    match stage {
        Stage::Protocol => "request",
        Stage::Namespace => "namespace",
        Stage::IdMap => "ID map",
        Stage::Sysctl => "sysctl",
        Stage::Listen => "listen on",
        Stage::Fork => "new process",
        Stage::Log => "log",
        Stage::Cgroup => "cgroup",
        Stage::Rootfs => "root file system",
        Stage::Mount => "mount",
        Stage::Device => "device",
        Stage::PivotRoot => "change of root",
        Stage::Mask => "mask",
        Stage::Terminal => "terminal",
        Stage::User => "user",
        Stage::WorkingDir => "working directory",
        Stage::Limits => "limits",
        Stage::Credentials => "credentials",
        Stage::Label => "security label",
        Stage::Seccomp => "seccomp filter",
        Stage::Exec => "exec",
    }
}

/// What to do, where the kernel's word alone doesn't say it.
fn hint(fault: &Fault) -> Option<&'static str> {
    Some(match (fault.stage, Errno::from_raw(fault.errno)) {
        (Stage::Exec, Errno::ENOENT) => "is it in the image, with its interpreter or dynamic loader? else set `command`",
        (Stage::Exec, Errno::EACCES) => "is it executable for this user?",
        (Stage::Exec, Errno::ENOEXEC) => {
            "is it a program of this machine's architecture, or a script with `#!` on its first line?"
        }
        (Stage::Fork, Errno::EAGAIN) => "the PID limit of the pod, of the node or of the user is reached",
        (Stage::Namespace, Errno::ENOSPC) => "see /proc/sys/user/max_*_namespaces",
        (Stage::Namespace, Errno::EPERM) => "the agent must be root, with CAP_SYS_ADMIN",
        (Stage::IdMap, Errno::EPERM) => "the agent needs CAP_SETUID and CAP_SETGID over the range",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn fault(stage: Stage, subject: &str, errno: i32, detail: &str) -> Fault {
        Fault { stage, subject: subject.into(), errno, detail: detail.into() }
    }

    #[rstest]
    #[case(fault(Stage::Mount, "config at /etc/app", 2, ""), "mount config at /etc/app: No such file or directory", 128)]
    #[case(fault(Stage::User, "bob", 0, "no such user"), "user bob: no such user", 128)]
    #[case(fault(Stage::Seccomp, "", 22, ""), "seccomp filter: Invalid argument", 128)]
    #[case(fault(Stage::Exec, "nope", 8, ""), "exec nope: Exec format error", 126)]
    #[case(fault(Stage::Exec, "nope", 13, ""), "exec nope: Permission denied", 126)]
    #[case(fault(Stage::Exec, "nope", 2, ""), "exec nope: No such file or directory", 127)]
    fn faults_read_as_sentences(#[case] fault: Fault, #[case] begins: &str, #[case] code: i32) {
        let error = CallError::Fault(fault);
        assert!(error.to_string().starts_with(begins), "{error}");
        assert_eq!(error.exit_code(), code);
    }
}
