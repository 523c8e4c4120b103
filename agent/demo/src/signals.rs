//! PID 1 of a PID namespace gets no signal that it has no handler for, and inherits every orphan: so one thread waits for the
//! signals that mean the end, and reaps.

use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Whether SIGTERM ends the process.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Term {
    /// As it should.
    Ends,
    /// Like a program that ignores it.
    Ignored,
}

/// Handles signals from now on. Called before any other thread is made, so that all threads inherit the mask.
pub fn handle(term: Term) -> Result<(), String> {
    use Signal::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
    let signals = SigSet::from_iter([SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2, SIGCHLD]);
    signals.thread_block().map_err(|e| format!("block signals: {e}"))?;
    std::thread::spawn(move || {
        while let Ok(signal) = signals.wait() {
            match signal {
                SIGCHLD => reap(),
                SIGTERM if term == Term::Ignored => println!("SIGTERM, and nothing happens"),
                _ => {
                    println!("{signal}: bye");
                    std::process::exit(0);
                }
            }
        }
    });
    Ok(())
}

fn reap() {
    while matches!(waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)), Ok(status) if status != WaitStatus::StillAlive) {}
}

/// Sleeps until a signal ends the process.
pub fn forever() -> ! {
    loop {
        std::thread::park();
    }
}
