//! One more process in a running container, from fork to exec.

use std::convert::Infallible;
use std::os::fd::AsFd;

use podholder::protocol::{Fault, Process, Stage};
use podholder::sys::{self, ns};
use rustix::fs::{CWD, Mode, OFlags};

use crate::birth::{Birth, When};
use crate::child::Parts;
use crate::clock::Steps;
use crate::container::paths::Root;
use crate::container::{become_process, credentials, limits, terminal};
use crate::fault::{OrFault, refused};

/// What the child does. Its PID namespace is the container's by birth, first or last; NET, IPC and UTS are the holder's own; the rest is
/// joined here, through the container's pidfd, which is the one descriptor that it keeps.
pub fn init(process: &Process, in_user_ns: bool, when: When, parts: Parts) -> Result<Infallible, Fault> {
    let Parts { status, kept } = parts;
    let Some(container) = kept.first() else { return Err(refused(Stage::Namespace, "", "a descriptor is missing")) };
    let steps = Steps::start();
    rustix::process::umask(Mode::empty());
    limits::before_user_namespace(process)?;
    let label = credentials::Label::open(process)?;
    let birth = match when {
        When::First => Birth::Done,
        When::Last => Birth::prepare(container.as_fd())?,
    };
    let user = if in_user_ns { ns::USER } else { 0 };
    sys::setns(container.as_fd(), ns::MNT | ns::CGROUP | user).or_fault(Stage::Namespace, "mnt, cgroup, user")?;
    if in_user_ns {
        sys::set_ids(0, 0, &[]).or_fault(Stage::Namespace, "user")?;
        credentials::stay_private().or_fault(Stage::Namespace, "user")?;
    }
    status.die_with_holder().or_fault(Stage::Namespace, "")?;
    let slash = rustix::fs::openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let root = Root::new(slash.or_fault(Stage::Namespace, "/")?);
    let terminal = process.tty.then(|| terminal::open(&root, process, &status)).transpose()?;
    become_process(process, &root, label, terminal, (status, birth), steps)
}
