//! The pod's holder: one process a pod, one thread, one loop. Started by the agent; see ARCHITECTURE.md, "The holder".
#![forbid(unsafe_code)]

mod birth;
mod calls;
mod cgroups;
mod child;
mod clock;
mod connection;
mod container;
mod exec;
mod fault;
mod output;
mod pod_container;
mod poll;
mod sandbox;
mod server;
mod shm;
mod task;

use std::io;
use std::process::ExitCode;

use podholder::protocol::FIRST_CONNECTION_FD;
use podholder::sys;

fn main() -> ExitCode {
    match hold() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("podholder: {e}");
            ExitCode::FAILURE
        }
    }
}

fn hold() -> io::Result<()> {
    let Some(first) = sys::inherited(FIRST_CONNECTION_FD) else {
        return Err(io::Error::other(format!("started by nodeagent only: descriptor {FIRST_CONNECTION_FD} is not a connection")));
    };
    sys::close_from(FIRST_CONNECTION_FD + 1)?;
    sys::set_not_dumpable()?;
    // Only the agent ends a pod. A terminal that closes, or a service manager that stops the agent, does not.
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGUSR1, libc::SIGUSR2, libc::SIGPIPE] {
        sys::ignore_signal(signal);
    }
    std::env::set_current_dir("/")?;
    server::Holder::new(first)?.run()
}
