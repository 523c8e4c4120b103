//! iptables' tables of the old kind, by getsockopt(2): linux/netfilter_ipv4/ip_tables.h, linux/netfilter_ipv6/ip6_tables.h.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use super::check;

/// IPT_SO_GET_INFO and IPT_SO_GET_ENTRIES; the same numbers for IPv6.
const GET_INFO: i32 = 64;
const GET_ENTRIES: i32 = 65;

/// Whose tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `iptables`
    V4,
    /// `ip6tables`
    V6,
}

/// About a table of the calling thread's network namespace. `answer` is a `struct ipt_getinfo` with the table's name in it, and is filled.
/// A table that isn't there is made.
///
/// # Errors
/// The kernel's; without CAP_NET_ADMIN there is no answer.
pub fn info(family: Family, answer: &mut [u8]) -> io::Result<()> {
    ask(family, GET_INFO, answer)
}

/// A table's rules. `answer` is a `struct ipt_get_entries` with the table's name and the size that [`info`] told, and as many bytes behind it.
///
/// # Errors
/// The kernel's; `EAGAIN` when the size is another by now.
pub fn entries(family: Family, answer: &mut [u8]) -> io::Result<()> {
    ask(family, GET_ENTRIES, answer)
}

fn ask(family: Family, question: i32, answer: &mut [u8]) -> io::Result<()> {
    let (domain, level) = match family {
        Family::V4 => (libc::AF_INET, libc::SOL_IP),
        Family::V6 => (libc::AF_INET6, libc::SOL_IPV6),
    };
    // SAFETY: takes integers.
    let socket = check(i64::from(unsafe { libc::socket(domain, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) }))?;
    // SAFETY: the kernel has just made this descriptor for us.
    let socket = unsafe { OwnedFd::from_raw_fd(socket as i32) };
    let mut length = answer.len() as libc::socklen_t;
    // SAFETY: for these two questions the kernel reads and writes at most `length` bytes of `answer`, which has as many, and refuses another
    // length than what is asked for has; both live until the call returns.
    check(i64::from(unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, question, answer.as_mut_ptr().cast(), ptr::from_mut(&mut length))
    }))?;
    Ok(())
}
