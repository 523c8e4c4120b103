//! System calls that no safe crate offers. The only module with `unsafe` in it.
//!
//! Each function is sound for every argument; what it does to the process that calls it is the caller's affair and said there.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

pub mod bpf;
pub mod xtables;

/// `CLONE_*` for [`clone3`], [`unshare`] and [`setns`].
pub mod ns {
    /// Mounts.
    pub const MNT: u64 = libc::CLONE_NEWNS as u64;
    /// Hostname and NIS domain name.
    pub const UTS: u64 = libc::CLONE_NEWUTS as u64;
    /// System V IPC and POSIX message queues.
    pub const IPC: u64 = libc::CLONE_NEWIPC as u64;
    /// Users and capabilities.
    pub const USER: u64 = libc::CLONE_NEWUSER as u64;
    /// Processes.
    pub const PID: u64 = libc::CLONE_NEWPID as u64;
    /// Network.
    pub const NET: u64 = libc::CLONE_NEWNET as u64;
    /// The root of the cgroup tree.
    pub const CGROUP: u64 = libc::CLONE_NEWCGROUP as u64;
    /// Not a namespace: the new process is a sibling of its maker ([`super::clone3`]).
    pub const PARENT: u64 = libc::CLONE_PARENT as u64;
}

/// Which side of a [`clone3`] this is.
#[derive(Debug)]
pub enum Fork {
    /// The maker.
    Parent {
        /// The new process in the maker's PID namespace.
        pid: i32,
        /// And by descriptor (CLOEXEC).
        pidfd: OwnedFd,
    },
    /// The new process.
    Child,
}

#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

fn check(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// fork(2) with namespaces and a pidfd; `cgroup` (a cgroup v2 directory) is the one that the child is born in.
///
/// # Errors
/// The kernel's; `EDEADLK` when the caller has more than one thread: the child of such a process could wait for ever for a lock
/// that another thread held.
pub fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Fork> {
    const CLONE_PIDFD: u64 = libc::CLONE_PIDFD as u64;
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    OneThread::check()?;
    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs {
        flags: flags | CLONE_PIDFD,
        pidfd: ptr::from_mut(&mut pidfd) as u64,
        // With CLONE_PARENT the kernel takes the maker's own.
        exit_signal: if flags & ns::PARENT == 0 { libc::SIGCHLD as u64 } else { 0 },
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: `args` is a clone_args of the size given, without CLONE_VM and with no stack, so the child runs on a copy of this
    // one, as after fork; this is the only thread, so no lock is held by one that the child lacks.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, ptr::from_ref(&args), size_of::<CloneArgs>()) })?;
    if pid == 0 {
        return Ok(Fork::Child);
    }
    // SAFETY: the kernel has just put a new descriptor there, and nobody else knows it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Fork::Parent { pid: pid as i32, pidfd })
}

/// Says that the process has one thread. Whoever has it makes no more of them.
#[derive(Debug)]
pub struct OneThread(());

impl OneThread {
    /// Needs a /proc in which this process is.
    ///
    /// # Errors
    /// `EDEADLK` when there are more threads than the caller's: the child of such a process could wait for ever for a lock that
    /// another thread held.
    pub fn check() -> io::Result<Self> {
        // One link for `.`, one for `..`, one a thread.
        if rustix::fs::stat("/proc/self/task")?.st_nlink > 3 {
            return Err(io::Error::from_raw_os_error(libc::EDEADLK));
        }
        Ok(Self(()))
    }
}

/// fork(2), but the child is a sibling of this process, and it comes with a pidfd. By clone(2), which seccomp filters allow that make
/// clone3(2) look as if it weren't there.
///
/// # Errors
/// The kernel's, or the seccomp filter's.
pub fn clone_sibling(_: &OneThread) -> io::Result<Fork> {
    let mut pidfd: RawFd = -1;
    let flags = libc::CLONE_PARENT | libc::CLONE_PIDFD;
    // SAFETY: without CLONE_VM and with no stack, the child runs on a copy of this one, as after fork; this is the only thread, as the
    // argument says. On all of our architectures the third argument is where the kernel puts the pidfd, which lives until then.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone, flags, 0, ptr::from_mut(&mut pidfd), 0, 0) })?;
    if pid == 0 {
        return Ok(Fork::Child);
    }
    // SAFETY: the kernel has just put a new descriptor there, and nobody else knows it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Fork::Parent { pid: pid as i32, pidfd })
}

/// unshare(2) for the calling thread. `flags`: of [`ns`].
pub fn unshare(flags: u64) -> io::Result<()> {
    // SAFETY: takes an integer; CLONE_FILES and CLONE_VM, which would need care, are masked out.
    check(unsafe { libc::syscall(libc::SYS_unshare, flags & !(libc::CLONE_FILES as u64 | libc::CLONE_VM as u64)) })?;
    Ok(())
}

/// setns(2) for the calling thread: `fd` is a namespace, or a pidfd with any of [`ns`] joined in `flags`.
pub fn setns(fd: BorrowedFd<'_>, flags: u64) -> io::Result<()> {
    // SAFETY: takes a live descriptor and an integer.
    check(unsafe { libc::syscall(libc::SYS_setns, fd.as_raw_fd(), flags) })?;
    Ok(())
}

/// What [`mount_setattr`] changes.
#[derive(Debug, Clone, Copy, Default)]
pub struct MountAttributes<'a> {
    /// `MOUNT_ATTR_*` to set; see [`attr`].
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub clear: u64,
    /// `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`, or 0 to leave it.
    pub propagation: u64,
    /// Map owners as this USER namespace does (sets `MOUNT_ATTR_IDMAP`).
    pub user_namespace: Option<BorrowedFd<'a>>,
}

/// `MOUNT_ATTR_*` and `MS_*` for [`MountAttributes`].
pub mod attr {
    /// Read-only.
    pub const RDONLY: u64 = 0x1;
    /// Set-user-ID bits and file capabilities don't count.
    pub const NOSUID: u64 = 0x2;
    /// Device nodes can't be opened.
    pub const NODEV: u64 = 0x4;
    /// Nothing can be executed.
    pub const NOEXEC: u64 = 0x8;
    /// Propagation: none.
    pub const PRIVATE: u64 = libc::MS_PRIVATE;
    /// Propagation: from the host only.
    pub const SLAVE: u64 = libc::MS_SLAVE;
    /// Propagation: both ways.
    pub const SHARED: u64 = libc::MS_SHARED;
}

/// mount_setattr(2) on the mount that `fd` is the root of, and, if `recursive`, on all below it.
pub fn mount_setattr(fd: BorrowedFd<'_>, recursive: bool, attributes: MountAttributes<'_>) -> io::Result<()> {
    const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
    let mut raw = [attributes.set, attributes.clear, attributes.propagation, 0u64];
    if let Some(user) = attributes.user_namespace {
        raw[0] |= MOUNT_ATTR_IDMAP;
        raw[3] = user.as_raw_fd() as u64;
    }
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: `raw` has the layout and size of struct mount_attr: four u64 (set, clear, propagation, userns_fd).
    check(unsafe {
        libc::syscall(libc::SYS_mount_setattr, fd.as_raw_fd(), c"".as_ptr(), flags, raw.as_ptr(), size_of_val(&raw))
    })?;
    Ok(())
}

/// Loads a classic BPF program, `struct sock_filter`s in memory order, for this thread. `flags`: `SECCOMP_FILTER_FLAG_*`.
///
/// # Errors
/// The kernel's; `EINVAL` also for a length that isn't a whole number of instructions or is over 65535 of them.
pub fn seccomp(program: &[u8], flags: u32) -> io::Result<()> {
    const INSTRUCTION: usize = size_of::<libc::sock_filter>();
    let count = program.len() / INSTRUCTION;
    if !program.len().is_multiple_of(INSTRUCTION) || count == 0 || count > usize::from(u16::MAX) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let instructions: Vec<libc::sock_filter> = program
        .chunks_exact(INSTRUCTION)
        .map(|c| libc::sock_filter {
            code: u16::from_ne_bytes([c[0], c[1]]),
            jt: c[2],
            jf: c[3],
            k: u32::from_ne_bytes([c[4], c[5], c[6], c[7]]),
        })
        .collect();
    let program = libc::sock_fprog { len: count as u16, filter: instructions.as_ptr().cast_mut() };
    // SAFETY: `program` points at `count` instructions that live until the call returns; the kernel only reads them.
    check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, libc::c_ulong::from(flags), ptr::from_ref(&program))
    })?;
    Ok(())
}

fn prctl(option: i32, a: u64, b: u64) -> io::Result<i64> {
    // SAFETY: used below only with options whose arguments are integers.
    check(unsafe { libc::syscall(libc::SYS_prctl, option, a, b, 0u64, 0u64) })
}

/// The signal that the kernel sends to this process when its parent dies. Credentials that change and set-user-ID programs clear it.
pub fn die_with_parent(signal: i32) -> io::Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, signal as u64, 0).map(drop)
}

/// Nobody below CAP_SYS_PTRACE may look into this process through /proc, nor trace it. exec resets it.
pub fn set_not_dumpable() -> io::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 0, 0).map(drop)
}

/// exec never again gives this process more than it has.
pub fn set_no_new_privs() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map(drop)
}

/// Whether the permitted capabilities outlive a change from root to another user. exec resets it.
pub fn keep_capabilities(keep: bool) -> io::Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, u64::from(keep), 0).map(drop)
}

/// Takes a capability out of the bounding set. `EINVAL`: the kernel doesn't know it.
pub fn drop_bounding(capability: u32) -> io::Result<()> {
    prctl(libc::PR_CAPBSET_DROP, u64::from(capability), 0).map(drop)
}

/// Empties the ambient set.
pub fn clear_ambient() -> io::Result<()> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0).map(drop)
}

/// Puts a capability that is permitted and inheritable in the ambient set.
pub fn raise_ambient(capability: u32) -> io::Result<()> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, u64::from(capability)).map(drop)
}

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// capget(2) of this thread: effective, permitted, inheritable.
pub fn capabilities() -> io::Result<[u64; 3]> {
    let header = [CAPABILITY_VERSION_3, 0];
    let mut data = [0u32; 6];
    // SAFETY: version 3 reads a header of two u32 and writes two times three u32.
    check(unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), data.as_mut_ptr()) })?;
    Ok([0, 1, 2].map(|i| u64::from(data[i]) | u64::from(data[i + 3]) << 32))
}

/// capset(2) of this thread.
pub fn set_capabilities(effective: u64, permitted: u64, inheritable: u64) -> io::Result<()> {
    let header = [CAPABILITY_VERSION_3, 0];
    let low = [effective, permitted, inheritable].map(|s| s as u32);
    let high = [effective, permitted, inheritable].map(|s| (s >> 32) as u32);
    let data = [low, high];
    // SAFETY: version 3 reads a header of two u32 and two times three u32.
    check(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) })?;
    Ok(())
}

/// The real, effective and saved user and group of this thread, and its groups: groups first, user last, while there is the right.
pub fn set_ids(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    // SAFETY: `groups` is as long as is said.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })?;
    // SAFETY: takes integers.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })?;
    // SAFETY: takes integers.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) })?;
    Ok(())
}

/// getrlimit(2) by number: soft, hard.
pub fn rlimit(resource: u32) -> io::Result<(u64, u64)> {
    let mut old = [0u64; 2];
    // SAFETY: the kernel writes a struct rlimit64, two u64, to `old`; a null pointer says that nothing is to be set.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, ptr::null::<u64>(), old.as_mut_ptr()) })?;
    Ok((old[0], old[1]))
}

/// setrlimit(2) by number.
pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let new = [soft, hard];
    // SAFETY: the kernel reads a struct rlimit64, two u64, from `new`.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, new.as_ptr(), ptr::null_mut::<u64>()) })?;
    Ok(())
}

/// A session keyring of this process's own, so that it doesn't share its maker's.
pub fn new_session_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: u64 = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, ptr::null::<u8>()) })?;
    Ok(())
}

/// Every signal unblocked and with its default action, as a program expects to find them.
pub fn reset_signals() {
    // What the kernel itself takes (libc refuses to touch the two signals that it uses for threads, and a shell may have been
    // started with them ignored): handler, flags, restorer, mask.
    let default = [0u64; 4];
    for signal in 1..=64 {
        // SAFETY: all zero is SIG_DFL with no flags and an empty mask of 8 bytes; numbers that can't be changed give an error. The
        // handlers that are replaced belong to nobody: std's are for SIGSEGV and SIGBUS alone and only tell of stack overflows.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), ptr::null_mut::<u64>(), 8) };
    }
    let none = 0u64;
    // SAFETY: a mask of 8 bytes with no signal in it.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, ptr::from_ref(&none), ptr::null_mut::<u64>(), 8) };
}

/// Makes the allocator keep little of what is freed: one arena for all threads, and the top of the heap given back early. The
/// default arenas, one a thread, cost an agent that pulled images tens of megabytes.
#[cfg(target_env = "gnu")]
pub fn keep_little_memory() {
    // SAFETY: mallopt takes numbers and changes numbers; called before there are threads. A refusal changes nothing.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 128 * 1024);
    }
}

/// Gives the kernel every whole page that the allocator keeps between what is in use. Takes about a millisecond for each ten
/// megabytes, in which nobody else gets memory.
#[cfg(target_env = "gnu")]
pub fn give_memory_back() {
    // SAFETY: takes a number; what is in use isn't touched.
    unsafe { libc::malloc_trim(0) };
}

/// Lets go of the pages of this program's own file that can't have been changed, code and constants. Those that are needed again
/// come back from the page cache, sixteen at a time and without a disk; the others the kernel may now reuse when memory is scarce.
#[cfg(target_env = "gnu")]
pub fn let_go_of_program() {
    unsafe extern "C" fn segments(info: *mut libc::dl_phdr_info, _: usize, _: *mut libc::c_void) -> libc::c_int {
        // SAFETY: the loader gives a valid description, and as many headers as it says, for as long as this call.
        let (base, headers) = unsafe {
            let info = &*info;
            (info.dlpi_addr, std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()))
        };
        let page = rustix::param::page_size() as u64 - 1;
        for header in headers.iter().filter(|h| h.p_type == libc::PT_LOAD && h.p_flags & libc::PF_W == 0) {
            let (start, end) = ((base + header.p_vaddr) & !page, (base + header.p_vaddr + header.p_memsz + page) & !page);
            // SAFETY: a segment that is never writable holds what its file holds: what is dropped is read again. What the loader
            // writes (relocations, also those protected afterwards) lies in writable segments.
            unsafe {
                libc::madvise(ptr::with_exposed_provenance_mut(start as usize), (end - start) as usize, libc::MADV_DONTNEED)
            };
        }
        // The program itself comes first. Its libraries' pages are other processes' too.
        1
    }
    // SAFETY: the callback keeps nothing, and can't unwind.
    unsafe { libc::dl_iterate_phdr(Some(segments), ptr::null_mut()) };
}

/// Other C libraries keep little by themselves.
#[cfg(not(target_env = "gnu"))]
pub fn keep_little_memory() {}

/// As above.
#[cfg(not(target_env = "gnu"))]
pub fn let_go_of_program() {}

/// Other C libraries keep little by themselves.
#[cfg(not(target_env = "gnu"))]
pub fn give_memory_back() {}

/// This signal does nothing from now on. Of SIGCHLD: children that end are gone without a wait.
pub fn ignore_signal(signal: i32) {
    // SAFETY: SIG_IGN is a valid disposition, and a wrong number changes nothing.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// A descriptor that is readable whenever a child has ended, and SIGCHLD blocked, which it takes the place of. See [`drain`].
pub fn child_events() -> io::Result<OwnedFd> {
    let mask = 1u64 << (libc::SIGCHLD - 1);
    let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
    // SAFETY: the kernel reads a mask of 8 bytes; a null pointer says that the old one isn't wanted.
    check(unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_BLOCK, ptr::from_ref(&mask), ptr::null_mut::<u64>(), 8) })?;
    // SAFETY: -1 asks for a new descriptor; the kernel reads a mask of 8 bytes.
    let fd = check(unsafe { libc::syscall(libc::SYS_signalfd4, -1, ptr::from_ref(&mask), 8, flags) })?;
    // SAFETY: it is new, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Reads a descriptor that doesn't block until nothing is left, for nothing but that.
pub fn drain(fd: BorrowedFd<'_>) {
    let mut rest = [0u8; 512];
    while rustix::io::read(fd, &mut rest).is_ok_and(|length| length > 0) {}
}

/// A child of this process, or a thread that it traces, that has ended and was not waited for. It stays so.
pub fn ended_child() -> io::Result<Option<i32>> {
    wait(libc::P_ALL, 0, libc::WNOWAIT)
}

/// Waits for one that [`ended_child`] told of: it's gone then.
pub fn forget_child(pid: i32) -> io::Result<()> {
    wait(libc::P_PID, pid, 0).map(drop)
}

/// waitid(2) for an end, without waiting, of whatever kind of child.
fn wait(kind: libc::idtype_t, id: i32, flags: i32) -> io::Result<Option<i32>> {
    // What the kernel leaves alone if there is nothing to tell.
    // SAFETY: siginfo_t is plain data, for which all zero is a value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = flags | libc::WEXITED | libc::WNOHANG | libc::__WALL;
    // SAFETY: the kernel writes one siginfo_t to `info`; a null pointer says that the use of resources isn't wanted.
    let result =
        check(unsafe { libc::syscall(libc::SYS_waitid, kind, id, ptr::from_mut(&mut info), flags, ptr::null_mut::<u8>()) });
    match result {
        Err(e) if e.raw_os_error() == Some(libc::ECHILD) => Ok(None),
        // SAFETY: after waitid the fields are those of SIGCHLD, or all zero.
        result => result.map(|_| Some(unsafe { info.si_pid() }).filter(|pid| *pid != 0)),
    }
}

/// Waits for a signal, for ever.
pub fn pause() {
    // SAFETY: takes nothing.
    unsafe { libc::pause() };
}

/// pidfd_send_signal(2) with any number, real-time signals included.
pub fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: takes a live descriptor, integers and a null siginfo, which means kill(2)'s.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, ptr::null::<u8>(), 0) })?;
    Ok(())
}

/// Makes `fds` the descriptors 0, 1, 2 … of this process and closes every other. Those from 3 on are returned and CLOEXEC.
///
/// For a process that was just forked and never goes back to its maker's code: every descriptor that it knew is gone.
pub fn keep_only(fds: &[BorrowedFd<'_>]) -> io::Result<Vec<OwnedFd>> {
    let count = fds.len() as RawFd;
    let mut high = Vec::with_capacity(fds.len());
    for fd in fds {
        // SAFETY: takes a live descriptor and integers.
        high.push(check(i64::from(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, count) }))? as RawFd);
    }
    for (number, fd) in high.iter().enumerate() {
        let flags = if number < 3 { 0 } else { libc::O_CLOEXEC };
        // SAFETY: takes descriptors and integers. All that is overwritten belongs to code that never runs again in this process.
        check(i64::from(unsafe { libc::dup3(*fd, number as RawFd, flags) }))?;
    }
    close_from(count)?;
    // SAFETY: these numbers were made just above, and nobody else owns them.
    Ok((3..count).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect())
}

/// Closes every descriptor from `first` on. For a process that begins, or is about to exec: nothing may use one of them again.
pub fn close_from(first: RawFd) -> io::Result<()> {
    // SAFETY: takes integers; that nobody uses those descriptors again is the contract.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) })?;
    Ok(())
}

/// The descriptor that this process was started with under that number, made CLOEXEC; none if it isn't open. Take each but once.
pub fn inherited(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: takes integers.
    let found = unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    // SAFETY: it is open, and by the contract nobody else owns it.
    (found == 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What tells a socket's network namespace from all others that there are or were since the machine started: `SO_NETNS_COOKIE` (Linux 5.14).
pub fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let (mut cookie, mut length) = (0_u64, size_of::<u64>() as libc::socklen_t);
    // SAFETY: the kernel writes at most `length` bytes to `cookie`, which has as many; both live until the call returns.
    check(i64::from(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            ptr::from_mut(&mut cookie).cast(),
            ptr::from_mut(&mut length),
        )
    }))?;
    Ok(cookie)
}

/// execve(2). Returns only when it failed.
pub fn execve(path: &CStr, argv: &[CString], env: &[CString]) -> io::Error {
    let list = |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect::<Vec<_>>();
    let (argv, env) = (list(argv), list(env));
    // SAFETY: both lists end with a null and point at strings that live until the call is over.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Ends the process at once: no destructors, no buffers flushed. What a forked child that can't go on has to do.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: takes an integer, doesn't return.
    unsafe { libc::_exit(code) }
}

/// What the process list shows. Uses the room that the process was started with (its arguments and environment) and cuts the rest.
pub fn set_title(title: &str) -> io::Result<()> {
    let bad = || io::Error::from(io::ErrorKind::InvalidData);
    let name = CString::new(title.split(' ').next().unwrap_or_default())?;
    // SAFETY: reads a string that ends with a zero; the kernel takes its first 15 bytes.
    check(unsafe { libc::syscall(libc::SYS_prctl, libc::PR_SET_NAME, name.as_ptr()) })?;
    // proc_pid_stat(5): fields 48 to 51 are arg_start, arg_end, env_start and env_end; the second may hold blanks but ends with `)`.
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit_once(')').ok_or_else(bad)?.1.split_ascii_whitespace().collect();
    let address = |field: usize| fields.get(field - 3).and_then(|f| f.parse::<usize>().ok()).ok_or_else(bad);
    let (start, arg_end, env_start, env_end) = (address(48)?, address(49)?, address(50)?, address(51)?);
    let end = if env_start == arg_end && env_end > env_start { env_end } else { arg_end };
    let Some(room) = end.checked_sub(start).filter(|room| start != 0 && *room > 1) else { return Ok(()) };
    let text = &title.as_bytes()[..title.len().min(room - 1)];
    // SAFETY: the kernel put the arguments and the environment there, on this process's stack, writable; `text` and the zeroes
    // together fill exactly that room. Nobody may hold them as strings: this is called at the start, by the only thread, and
    // std::env copies what it gives out.
    unsafe {
        let to = ptr::with_exposed_provenance_mut::<u8>(start);
        ptr::copy_nonoverlapping(text.as_ptr(), to, text.len());
        ptr::write_bytes(to.add(text.len()), 0, room - text.len());
    }
    Ok(())
}
