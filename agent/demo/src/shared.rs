//! System V shared memory: what an IPC namespace keeps apart. Only this file has `unsafe`: no crate wraps shmget and shmat.

use std::io;
use std::sync::atomic::AtomicU64;

/// Numbers that all processes of an IPC namespace share, by key.
pub type Segment = [AtomicU64; 8];

/// The demo page's key.
pub const KEY: i32 = 0x6e6f_6465;
/// Where the server counts its pages in the [`KEY`] segment.
pub const PAGES: usize = 0;
/// Where the client counts its calls.
pub const CALLS: usize = 1;

/// The segment, made if it isn't there.
pub fn make(key: i32) -> io::Result<&'static Segment> {
    attach(key, libc::IPC_CREAT | 0o666)
}

/// The segment, or `NotFound`.
pub fn find(key: i32) -> io::Result<&'static Segment> {
    attach(key, 0)
}

fn attach(key: i32, flags: i32) -> io::Result<&'static Segment> {
    // SAFETY: shmget takes no pointer.
    let id = unsafe { libc::shmget(key, size_of::<Segment>(), flags) };
    if id < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a null address lets the kernel choose where to map.
    let address = unsafe { libc::shmat(id, std::ptr::null(), 0) };
    // shmat's error is the pointer -1.
    if address.addr() == usize::MAX {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping is page aligned, at least as long as a Segment (shmget refuses a shorter one), zeroed by the kernel when
    // new, never detached, and only touched by atomics, for which any bits are a value.
    Ok(unsafe { &*address.cast::<Segment>() })
}
