//! The terminal of a container or an exec, and who owns standard input and output without one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use podholder::protocol::{Fault, Process, Stage};
use rustix::fs::{OFlags, Uid};
use rustix::pty::OpenptFlags;
use rustix::stdio;
use rustix::termios::Winsize;

use super::mounts::attach_tree;
use super::paths::{Root, file_type};
use crate::birth::Birth;
use crate::child::{Report, Status};
use crate::fault::{OrFault, refused};

const PTMX: &str = "/dev/pts/ptmx";
/// DEVPTS_SUPER_MAGIC
const DEVPTS: i64 = 0x1cd1;

/// The container's side.
pub struct Terminal {
    slave: OwnedFd,
}

/// Opens a pty of the container's own devpts; the holder gets the master, and a slave to keep it alive.
pub fn open(root: &Root, process: &Process, status: &Status) -> Result<Terminal, Fault> {
    let path = root.open(Path::new(PTMX), OFlags::PATH).or_fault(Stage::Terminal, PTMX)?;
    let fs = rustix::fs::fstatfs(&path).or_fault(Stage::Terminal, PTMX)?;
    // What lies there could be any device or a FIFO: opening it for real comes after.
    if fs.f_type != DEVPTS {
        return Err(refused(Stage::Terminal, PTMX, "it is not a devpts"));
    }
    let master = root.open(Path::new(PTMX), OFlags::RDWR | OFlags::NOCTTY).or_fault(Stage::Terminal, PTMX)?;
    rustix::pty::unlockpt(&master).or_fault(Stage::Terminal, PTMX)?;
    // By ioctl: a path could be another's by now.
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).or_fault(Stage::Terminal, PTMX)?;
    if let Some((rows, columns)) = process.tty_size {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&slave, size).or_fault(Stage::Terminal, PTMX)?;
    }
    status.send(&Report::Terminal, &[master.as_fd(), slave.as_fd()]);
    Ok(Terminal { slave })
}

/// /dev/console is the terminal.
pub fn bind_console(root: &Root, terminal: &Terminal) -> Result<(), Fault> {
    use rustix::mount::{OpenTreeFlags, open_tree};
    let (_, stat) = file_type(&terminal.slave).or_fault(Stage::Terminal, "/dev/console")?;
    let name = format!("/dev/pts/{}", rustix::fs::minor(stat.st_rdev));
    let place = root.open(Path::new(&name), OFlags::PATH).or_fault(Stage::Terminal, &name)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(place, "", flags).or_fault(Stage::Terminal, &name)?;
    attach_tree(root, tree, Path::new("/dev/console"))
}

/// Makes it standard input and output, owned by `uid`, and the controlling terminal of this session, unless another process will lead that.
pub fn take(terminal: Terminal, uid: u32, birth: &Birth) -> Result<(), Fault> {
    let slave = &terminal.slave;
    rustix::fs::fchown(slave, Some(Uid::from_raw(uid)), None).or_fault(Stage::Terminal, "owner")?;
    stdio::dup2_stdin(slave).or_fault(Stage::Terminal, "stdin")?;
    stdio::dup2_stdout(slave).or_fault(Stage::Terminal, "stdout")?;
    stdio::dup2_stderr(slave).or_fault(Stage::Terminal, "stderr")?;
    if birth.namespace().is_none() { control() } else { Ok(()) }
}

/// Makes standard input, a terminal, the controlling one of this session.
pub fn control() -> Result<(), Fault> {
    rustix::process::ioctl_tiocsctty(stdio::stdin()).or_fault(Stage::Terminal, "controlling terminal")
}

/// Gives the pipes to `uid`, so that /dev/stdout and the like can be opened by it. What isn't a pipe or a socket is left alone; so
/// is what belongs to nobody in this USER namespace.
pub fn own_stdio(uid: u32) {
    use rustix::fs::FileType;
    let own = |fd: BorrowedFd<'_>| {
        if file_type(fd).is_ok_and(|(kind, stat)| kind == FileType::Fifo && stat.st_uid != uid) {
            let _ = rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), None);
        }
    };
    own(stdio::stdin());
    own(stdio::stdout());
    own(stdio::stderr());
}
