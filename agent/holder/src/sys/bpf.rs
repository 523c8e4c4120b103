//! eBPF: programs that are assembled here, maps that they read, and where they are attached. linux/bpf.h is the reference.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use super::check;

const BPF_MAP_CREATE: u32 = 0;
const BPF_MAP_LOOKUP_ELEM: u32 = 1;
const BPF_MAP_UPDATE_ELEM: u32 = 2;
const BPF_MAP_DELETE_ELEM: u32 = 3;
const BPF_MAP_GET_NEXT_KEY: u32 = 4;
const BPF_PROG_LOAD: u32 = 5;
const BPF_PROG_ATTACH: u32 = 8;
const BPF_PROG_DETACH: u32 = 9;
const BPF_PROG_GET_FD_BY_ID: u32 = 13;
const BPF_MAP_GET_FD_BY_ID: u32 = 14;
const BPF_OBJ_GET_INFO_BY_FD: u32 = 15;
const BPF_PROG_QUERY: u32 = 16;
const BPF_BTF_LOAD: u32 = 18;

const BPF_MAP_TYPE_HASH: u32 = 1;
const BPF_MAP_TYPE_SK_STORAGE: u32 = 24;
const BPF_F_ALLOW_MULTI: u32 = 2;
const BPF_F_REPLACE: u32 = 4;

/// As long as the kernel lets a program's name be, with its NUL.
const NAME: usize = 16;
/// More maps than a program of ours has, and more programs than a cgroup can (`BPF_CGROUP_MAX_PROGS`).
const MOST: usize = 64;

/// What a program is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgramType {
    /// It decides about packets of a network device: `BPF_PROG_TYPE_SCHED_CLS`.
    Packets,
    /// It decides which devices a cgroup's processes may open: `BPF_PROG_TYPE_CGROUP_DEVICE`.
    CgroupDevice,
    /// It sees, and changes, addresses that a cgroup's sockets are given or give: `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`.
    CgroupAddress(Moment),
}

/// When a program of [`ProgramType::CgroupAddress`] is asked. The numbers are those of `enum bpf_attach_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// connect() of an IPv4 socket.
    Connect4 = 10,
    /// connect() of an IPv6 socket.
    Connect6 = 11,
    /// getpeername() of an IPv4 socket.
    PeerName4 = 29,
    /// getpeername() of an IPv6 socket.
    PeerName6 = 30,
}

impl ProgramType {
    fn number(self) -> u32 {
        match self {
            ProgramType::Packets => 3,
            ProgramType::CgroupDevice => 15,
            ProgramType::CgroupAddress(_) => 18,
        }
    }

    /// `enum bpf_attach_type`, as a cgroup takes it; 0 for what is attached elsewhere.
    fn attachment(self) -> u32 {
        match self {
            ProgramType::Packets => 0,
            ProgramType::CgroupDevice => 6,
            ProgramType::CgroupAddress(moment) => moment as u32,
        }
    }
}

fn invalid() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}

/// A name as the kernel takes it: what is too long is cut.
fn named(name: &str) -> [u8; NAME] {
    let mut field = [0; NAME];
    field.iter_mut().zip(name.bytes().take(NAME - 1)).for_each(|(to, from)| *to = from);
    field
}

/// Loads a program: eBPF instructions of 8 bytes each, in memory order. It does nothing until it is attached. Needs CAP_BPF and
/// CAP_NET_ADMIN, or CAP_SYS_ADMIN. `name`: at most 15 letters, digits, `_` and `.`, for people.
///
/// # Errors
/// The kernel's; `EINVAL` and `EACCES` also for a program that its verifier refuses.
pub fn load(kind: ProgramType, name: &str, program: &[u8]) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Load {
        prog_type: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
        name: [u8; NAME],
        ifindex: u32,
        attachment: u32,
    }
    if !program.len().is_multiple_of(8) {
        return Err(invalid());
    }
    let count = u32::try_from(program.len() / 8).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
    let load = Load {
        prog_type: kind.number(),
        count,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: named(name),
        ifindex: 0,
        attachment: kind.attachment(),
    };
    // SAFETY: `load` and what it points at live until the call returns; the kernel only reads them, `count` instructions and the
    // licence up to its NUL.
    let fd = check(unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, ptr::from_ref(&load), size_of::<Load>()) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Lets a program for cgroups decide, beside those that are there or in place of one, about what processes of a cgroup (v2) and of those below it
/// do. It stays as long as the cgroup.
///
/// # Errors
/// The kernel's.
pub fn attach(
    cgroup: BorrowedFd<'_>,
    kind: ProgramType,
    program: BorrowedFd<'_>,
    replaced: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let flags = BPF_F_ALLOW_MULTI | replaced.map_or(0, |_| BPF_F_REPLACE);
    let replaced = replaced.map_or(0, |program| program.as_raw_fd() as u32);
    order(BPF_PROG_ATTACH, &[cgroup.as_raw_fd() as u32, program.as_raw_fd() as u32, kind.attachment(), flags, replaced])
}

/// Takes it away again.
///
/// # Errors
/// The kernel's: `ENOENT` where it isn't.
pub fn detach(cgroup: BorrowedFd<'_>, kind: ProgramType, program: BorrowedFd<'_>) -> io::Result<()> {
    order(BPF_PROG_DETACH, &[cgroup.as_raw_fd() as u32, program.as_raw_fd() as u32, kind.attachment()])
}

/// A command whose attributes are numbers alone.
fn order(command: u32, attributes: &[u32]) -> io::Result<()> {
    // SAFETY: `attributes` lives until the call returns; the kernel only reads it.
    check(unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes)) })?;
    Ok(())
}

/// The programs of one kind that were attached to this very cgroup.
///
/// # Errors
/// The kernel's.
pub fn attached(cgroup: BorrowedFd<'_>, kind: ProgramType) -> io::Result<Vec<OwnedFd>> {
    #[repr(C)]
    struct Query {
        target: u32,
        attachment: u32,
        query_flags: u32,
        attach_flags: u32,
        programs: u64,
        /// In and out.
        count: u32,
        unused: u32,
        attach_flags_of_each: u64,
        links: u64,
        link_flags: u64,
        /// Written by the kernel (Linux 6.17), some of which don't look whether there is room.
        revision: u64,
    }
    let mut ids = [0_u32; MOST];
    let mut query = Query {
        target: cgroup.as_raw_fd() as u32,
        attachment: kind.attachment(),
        query_flags: 0,
        attach_flags: 0,
        programs: ids.as_mut_ptr() as u64,
        count: MOST as u32,
        unused: 0,
        attach_flags_of_each: 0,
        links: 0,
        link_flags: 0,
        revision: 0,
    };
    // SAFETY: `query` and `ids`, which has room for as many numbers as it says, live until the call returns; the kernel writes into both.
    check(unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, ptr::from_mut(&mut query), size_of::<Query>()) })?;
    ids.into_iter().take(query.count as usize).filter_map(|id| program(id).transpose()).collect()
}

/// A program by its number; none: it is gone. Needs CAP_SYS_ADMIN.
///
/// # Errors
/// The kernel's.
pub fn program(id: u32) -> io::Result<Option<OwnedFd>> {
    open(BPF_PROG_GET_FD_BY_ID, id)
}

/// A program or a map by its number; none: it is gone.
fn open(command: u32, id: u32) -> io::Result<Option<OwnedFd>> {
    let attributes = [id, 0, 0];
    // SAFETY: `attributes` lives until the call returns; the kernel only reads it.
    let opened = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(&attributes)) };
    match check(opened) {
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(fd) => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The beginning of `struct bpf_prog_info`: the kernel fills in as much as there is room.
#[repr(C)]
#[derive(Default)]
struct ProgramInfo {
    kind: u32,
    id: u32,
    tag: u64,
    jited_len: u32,
    xlated_len: u32,
    jited: u64,
    xlated: u64,
    load_time: u64,
    created_by_uid: u32,
    map_count: u32,
    /// Where it writes as many numbers as `map_count` says.
    maps: u64,
    name: [u8; NAME],
}

/// Of `struct bpf_map_info`.
#[repr(C)]
#[derive(Default)]
struct MapInfo {
    kind: u32,
    id: u32,
    key: u32,
    value: u32,
    entries: u32,
}

/// What the kernel tells of an object.
///
/// # Safety
/// `T` is the beginning of the structure for such objects, of integers alone, and what it points at has room for what it says.
unsafe fn inform<T>(object: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    #[repr(C)]
    struct Ask {
        fd: u32,
        length: u32,
        info: u64,
    }
    let ask = Ask { fd: object.as_raw_fd() as u32, length: size_of::<T>() as u32, info: ptr::from_mut(info) as u64 };
    // SAFETY: `ask` and `info` live until the call returns; the kernel writes no more than `length` bytes into the latter. The rest is
    // what the caller promises.
    check(unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, ptr::from_ref(&ask), size_of::<Ask>()) })?;
    Ok(())
}

/// The kernel's digest of a program's instructions, less which maps they name.
///
/// # Errors
/// The kernel's.
pub fn tag_of(program: BorrowedFd<'_>) -> io::Result<u64> {
    let mut info = ProgramInfo::default();
    // SAFETY: it says that none of its buffers has any room.
    unsafe { inform(program, &mut info) }?;
    Ok(info.tag)
}

/// A program's name.
///
/// # Errors
/// The kernel's.
pub fn name_of(program: BorrowedFd<'_>) -> io::Result<String> {
    let mut info = ProgramInfo::default();
    // SAFETY: it says that none of its buffers has any room.
    unsafe { inform(program, &mut info) }?;
    Ok(info.name.iter().take_while(|byte| **byte != 0).map(|byte| char::from(*byte)).collect())
}

/// The hash maps of a program, in the order in which it has them.
///
/// # Errors
/// The kernel's.
pub fn maps_of(program: BorrowedFd<'_>) -> io::Result<Vec<Map>> {
    let mut ids = [0_u32; MOST];
    let mut info = ProgramInfo { map_count: MOST as u32, maps: ids.as_mut_ptr() as u64, ..ProgramInfo::default() };
    // SAFETY: `ids` has room for as many numbers as it says, and lives until the call returns.
    unsafe { inform(program, &mut info) }?;
    let mut maps = Vec::new();
    for id in ids.into_iter().take(info.map_count as usize) {
        let Some(fd) = open(BPF_MAP_GET_FD_BY_ID, id)? else { continue };
        let mut info = MapInfo::default();
        // SAFETY: nothing in it is a pointer.
        unsafe { inform(fd.as_fd(), &mut info) }?;
        if info.kind == BPF_MAP_TYPE_HASH {
            maps.push(Map { fd, key: info.key as usize, value: info.value as usize, entries: info.entries });
        }
    }
    Ok(maps)
}

/// A hash map that programs look into.
#[derive(Debug)]
pub struct Map {
    fd: OwnedFd,
    key: usize,
    value: usize,
    entries: u32,
}

/// What a map is made of.
#[derive(Default)]
#[repr(C)]
struct Create {
    map_type: u32,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
    inner: u32,
    numa_node: u32,
    name: [u8; NAME],
    ifindex: u32,
    btf: u32,
    btf_key: u32,
    btf_value: u32,
}

const BPF_F_NO_PREALLOC: u32 = 1;

impl Map {
    /// With keys and values of so many bytes, and room for so many of them, each of which costs 16 bytes before it is there. `name`: as that
    /// of a program.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(name: &str, key: usize, value: usize, entries: u32) -> io::Result<Map> {
        let size = |bytes: usize| u32::try_from(bytes).map_err(|_| invalid());
        let create = Create {
            map_type: BPF_MAP_TYPE_HASH,
            key: size(key)?,
            value: size(value)?,
            entries,
            flags: BPF_F_NO_PREALLOC,
            name: named(name),
            ..Create::default()
        };
        Ok(Map { fd: create.make()?, key, value, entries })
    }

    /// What programs keep of a socket, so many bytes (a multiple of 4): it goes when the socket does. For programs alone.
    ///
    /// # Errors
    /// The kernel's.
    pub fn of_sockets(name: &str, value: usize) -> io::Result<Map> {
        const KEY: usize = 4;
        let words = u32::try_from(value / 4).ok().filter(|words| *words as usize * 4 == value).ok_or_else(invalid)?;
        // The kernel wants it described in its type format (BTF).
        let types = load_types(&words_as_types(words))?;
        let create = Create {
            map_type: BPF_MAP_TYPE_SK_STORAGE,
            key: KEY as u32,
            value: words * 4,
            flags: BPF_F_NO_PREALLOC,
            name: named(name),
            btf: types.as_raw_fd() as u32,
            btf_key: 1,
            btf_value: 2,
            ..Create::default()
        };
        Ok(Map { fd: create.make()?, key: KEY, value, entries: 0 })
    }

    /// Of its keys, in bytes.
    pub fn key_size(&self) -> usize {
        self.key
    }

    /// Of its values, in bytes.
    pub fn value_size(&self) -> usize {
        self.value
    }

    /// Puts a value in place of what the key had.
    ///
    /// # Errors
    /// `EINVAL` where key or value are of another length than the map's; else the kernel's: `E2BIG` when it is full.
    pub fn put(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        if value.len() != self.value {
            return Err(invalid());
        }
        self.element(BPF_MAP_UPDATE_ELEM, key, value.as_ptr() as u64)
    }

    /// What a key has.
    ///
    /// # Errors
    /// `EINVAL` where the key is of another length than the map's; else the kernel's.
    pub fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut value = vec![0; self.value];
        match self.element(BPF_MAP_LOOKUP_ELEM, key, value.as_mut_ptr() as u64) {
            Ok(()) => Ok(Some(value)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes a key out. One that isn't there is out already.
    ///
    /// # Errors
    /// `EINVAL` where the key is of another length than the map's; else the kernel's.
    pub fn remove(&self, key: &[u8]) -> io::Result<()> {
        match self.element(BPF_MAP_DELETE_ELEM, key, 0) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            outcome => outcome,
        }
    }

    /// All keys. What comes and goes meanwhile may be among them or not, and a key may be there twice.
    ///
    /// # Errors
    /// The kernel's.
    pub fn keys(&self) -> io::Result<Vec<Vec<u8>>> {
        let mut keys: Vec<Vec<u8>> = Vec::new();
        // Who asks behind a key that is gone begins anew: there is an end to it all the same.
        while keys.len() < 2 * self.entries as usize {
            let mut next = vec![0; self.key];
            let before = keys.last().map_or(0, |key| key.as_ptr() as u64);
            let element = self.attributes(before, next.as_mut_ptr() as u64);
            // SAFETY: `element` and the keys that it points at, as long as the map's, live until the call returns; the kernel reads the one
            // (or none) and writes the other.
            match check(unsafe {
                libc::syscall(libc::SYS_bpf, BPF_MAP_GET_NEXT_KEY, ptr::from_ref(&element), size_of::<Element>())
            }) {
                Ok(_) => keys.push(next),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(keys)
    }

    /// `value`: the address of as many bytes as the map's values have, which nobody else looks at meanwhile, or 0 for a command that takes none.
    fn element(&self, command: u32, key: &[u8], value: u64) -> io::Result<()> {
        if key.len() != self.key {
            return Err(invalid());
        }
        let element = self.attributes(key.as_ptr() as u64, value);
        // SAFETY: `element` and what it points at live until the call returns, and are as long as the map's key and value; the kernel reads
        // them, or writes the value.
        check(unsafe { libc::syscall(libc::SYS_bpf, command, ptr::from_ref(&element), size_of::<Element>()) })?;
        Ok(())
    }

    fn attributes(&self, key: u64, value: u64) -> Element {
        Element { map: self.fd.as_raw_fd() as u32, unused: 0, key, value, flags: 0 }
    }
}

impl Create {
    fn make(&self) -> io::Result<OwnedFd> {
        // SAFETY: `self` lives until the call returns; the kernel only reads it.
        let fd = check(unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_CREATE, ptr::from_ref(self), size_of::<Create>()) })?;
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
    }
}

/// Two types, as the kernel's Documentation/bpf/btf.rst has them: 1 is a number of 32 bits, 2 an array of so many of them.
fn words_as_types(words: u32) -> Vec<u8> {
    const MAGIC_AND_VERSION: u32 = 0x0001_eb9f;
    const HEADER: u32 = 24;
    const INTEGER: u32 = 1 << 24;
    const ARRAY: u32 = 3 << 24;
    let types = [1, INTEGER, 4, 32, 0, ARRAY, 0, 1, 1, words];
    let names = b"\0u32\0\0\0\0";
    let length = size_of_val(&types) as u32;
    let header = [MAGIC_AND_VERSION, HEADER, 0, length, length, names.len() as u32];
    header.into_iter().chain(types).flat_map(u32::to_ne_bytes).chain(names.iter().copied()).collect()
}

fn load_types(types: &[u8]) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Load {
        types: u64,
        log: u64,
        size: u32,
        log_size: u32,
        log_level: u32,
        unused: u32,
    }
    let size = u32::try_from(types.len()).map_err(|_| invalid())?;
    let load = Load { types: types.as_ptr() as u64, log: 0, size, log_size: 0, log_level: 0, unused: 0 };
    // SAFETY: `load` and `types` live until the call returns; the kernel only reads them, `size` bytes of the latter.
    let fd = check(unsafe { libc::syscall(libc::SYS_bpf, BPF_BTF_LOAD, ptr::from_ref(&load), size_of::<Load>()) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Of commands about one element.
#[repr(C)]
struct Element {
    map: u32,
    unused: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
