//! Lays a layer's entries out below a directory, as overlayfs wants a lower layer: whiteouts become 0/0 devices, opaque
//! directories get their xattr. Everything happens relative to the root's descriptor: a path resolves inside the root
//! (openat2 RESOLVE_IN_ROOT), whatever links the layer made before, so no entry can name anything outside.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use podholder::beneath;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::tarball::{Entries, Entry, Kind, Sparse, TarError};
use super::tree;

/// What a path and a link's target may have; the kernel's PATH_MAX and NAME_MAX.
const PATH_LIMIT: usize = 4095;
const NAME_LIMIT: usize = 255;
/// Symbolic links followed in one path, as the kernel counts.
const LINKS_LIMIT: usize = 40;
const BUFFER: usize = 256 * 1024;
/// How many bytes may be written before the free space is looked at again.
const SPACE_CHECK: u64 = 32 << 20;

/// What one layer may use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Files, directories, links.
    pub entries: u64,
    /// Bytes of files' contents.
    pub bytes: u64,
    /// Free bytes that must remain on the disk.
    pub reserve: u64,
}

/// What became of a layer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Unpacked {
    /// Bytes of files' contents.
    pub bytes: u64,
    /// Entries of the archive.
    pub entries: u64,
    /// Directories that the layer has, but doesn't describe: their attributes are those of the layers below.
    pub implicit: Vec<String>,
}

/// Why a layer can't be laid out.
#[derive(Debug)]
pub(super) enum Fault {
    /// The source's error.
    Read(io::Error),
    /// The disk is full, or nearly.
    NoSpace,
    /// An entry that breaks the rules.
    Entry { entry: String, why: String },
}

impl Fault {
    fn at(path: &[u8], why: impl Into<String>) -> Self {
        let entry = String::from_utf8_lossy(&path[..path.len().min(300)]).into_owned();
        Self::Entry { entry, why: why.into() }
    }

    fn kernel(path: &[u8], what: &str, errno: Errno) -> Self {
        match errno {
            Errno::NOSPC | Errno::DQUOT => Self::NoSpace,
            other => Self::at(path, format!("{what}: {}", io::Error::from(other))),
        }
    }
}

/// Lays out all entries below `root`. `trash` is an empty directory on the same disk, outside of the root.
pub(super) fn unpack(reader: impl Read, root: BorrowedFd<'_>, trash: BorrowedFd<'_>, bounds: Bounds) -> Result<Unpacked, Fault> {
    let mut unpacker = Unpacker {
        root,
        trash,
        bounds,
        parent: None,
        times: BTreeMap::new(),
        implicit: BTreeSet::new(),
        done: Unpacked::default(),
        unchecked: 0,
        buffer: vec![0; BUFFER],
    };
    let mut entries = Entries::new(reader);
    loop {
        let entry = match entries.next() {
            Ok(Some(entry)) => entry,
            Ok(None) => break,
            Err(error) => return Err(unpacker.archive_fault(error)),
        };
        unpacker.entry(&entry, &mut entries)?;
    }
    unpacker.finish()?;
    // What comes after the end belongs to the digest all the same: the caller reads it.
    Ok(unpacker.done)
}

struct Unpacker<'a> {
    root: BorrowedFd<'a>,
    trash: BorrowedFd<'a>,
    bounds: Bounds,
    /// The last parent: entries come directory by directory.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// Directories' times, set at the end because every entry made inside changes them.
    times: BTreeMap<Vec<u8>, (i64, u32)>,
    implicit: BTreeSet<Vec<u8>>,
    done: Unpacked,
    unchecked: u64,
    buffer: Vec<u8>,
}

impl Unpacker<'_> {
    fn archive_fault(&self, error: TarError) -> Fault {
        match error {
            TarError::Read(error) => Fault::Read(error),
            TarError::Format(why) => Fault::at(format!("entry {} of the archive", self.done.entries + 1).as_bytes(), why),
        }
    }

    fn entry<R: Read>(&mut self, entry: &Entry, entries: &mut Entries<R>) -> Result<(), Fault> {
        self.done.entries += 1;
        if self.done.entries > self.bounds.entries {
            return Err(Fault::at(&entry.path, format!("the layer has more than {} entries", self.bounds.entries)));
        }
        let path = clean(&entry.path).map_err(|why| Fault::at(&entry.path, why))?;
        let Some((dir, name)) = split(&path) else { return self.root_entry(entry) };
        let parent = self.parent(dir, &path)?;
        let result = match name.strip_prefix(b".wh.") {
            Some(hidden) => Self::whiteout(parent.as_fd(), &path, hidden),
            None => self.make(parent.as_fd(), &path, name, entry, entries),
        };
        self.parent = Some((dir.to_vec(), parent));
        result
    }

    /// The entry `./`: the attributes of the root itself.
    fn root_entry(&mut self, entry: &Entry) -> Result<(), Fault> {
        if entry.kind != Kind::Directory {
            return Err(Fault::at(&entry.path, "it would replace the root directory"));
        }
        let root = open_beneath(self.root, b"", OFlags::empty()).map_err(|errno| Fault::kernel(&entry.path, "open", errno))?;
        attributes(root.as_fd(), b".", entry)?;
        self.times.insert(Vec::new(), entry.mtime);
        Ok(())
    }

    /// The directory that an entry goes into, made where the archive didn't care to.
    fn parent(&mut self, dir: &[u8], path: &[u8]) -> Result<OwnedFd, Fault> {
        match self.parent.take() {
            Some((known, fd)) if known == dir => return Ok(fd),
            _ => {}
        }
        match open_beneath(self.root, dir, OFlags::empty()) {
            Ok(fd) => Ok(fd),
            // What isn't a directory may be our own whiteout.
            Err(Errno::NOENT | Errno::NOTDIR) => self.make_parents(dir, path),
            Err(errno) => Err(Fault::kernel(path, "open its directory", errno)),
        }
    }

    /// Walks component by component, as the kernel would inside the root, and makes what isn't there.
    fn make_parents(&mut self, dir: &[u8], path: &[u8]) -> Result<OwnedFd, Fault> {
        let fault = |what: &str, errno| Fault::kernel(path, what, errno);
        let mut todo: Vec<Vec<u8>> = components(dir).rev().map(<[u8]>::to_vec).collect();
        let mut at: Vec<Vec<u8>> = Vec::new();
        let mut links = 0;
        while let Some(name) = todo.pop() {
            if name == b".." {
                at.pop();
                continue;
            }
            let here =
                open_beneath(self.root, &joined(&at), OFlags::empty()).map_err(|errno| fault("open its directory", errno))?;
            let kind = match rustix::fs::statat(&here, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if stat.st_rdev == 0 && FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice => {
                    // Our own whiteout: the directory starts anew, and nothing of the layers below shows through.
                    rustix::fs::unlinkat(&here, name.as_slice(), AtFlags::empty())
                        .map_err(|errno| fault("replace a whiteout", errno))?;
                    self.make_implicit(here.as_fd(), &at, &name).map_err(|errno| fault("make its directory", errno))?;
                    let made =
                        tree::open_dir(here.as_fd(), name.as_slice()).map_err(|errno| fault("open its directory", errno))?;
                    set_opaque(made.as_fd()).map_err(|errno| fault("mark its directory opaque", errno))?;
                    FileType::Directory
                }
                Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                Err(Errno::NOENT) => {
                    self.make_implicit(here.as_fd(), &at, &name).map_err(|errno| fault("make its directory", errno))?;
                    FileType::Directory
                }
                Err(errno) => return Err(fault("look at its directory", errno)),
            };
            match kind {
                FileType::Directory => at.push(name),
                FileType::Symlink => {
                    links += 1;
                    if links > LINKS_LIMIT {
                        return Err(fault("follow its directory", Errno::LOOP));
                    }
                    let target = rustix::fs::readlinkat(&here, name.as_slice(), Vec::new())
                        .map_err(|errno| fault("read a link to its directory", errno))?
                        .into_bytes();
                    if target.starts_with(b"/") {
                        at.clear();
                    }
                    todo.extend(components(&target).rev().map(<[u8]>::to_vec));
                }
                _ => return Err(fault("make its directory", Errno::NOTDIR)),
            }
        }
        open_beneath(self.root, &joined(&at), OFlags::empty()).map_err(|errno| fault("open its directory", errno))
    }

    fn make_implicit(&mut self, here: BorrowedFd<'_>, at: &[Vec<u8>], name: &[u8]) -> rustix::io::Result<()> {
        rustix::fs::mkdirat(here, name, Mode::from_raw_mode(0o755))?;
        let mut path = at.to_vec();
        path.push(name.to_vec());
        self.implicit.insert(joined(&path));
        Ok(())
    }

    /// `.wh.NAME` hides NAME of the layers below, `.wh..wh..opq` all that the layers below have in this directory.
    fn whiteout(parent: BorrowedFd<'_>, path: &[u8], hidden: &[u8]) -> Result<(), Fault> {
        let fault = |errno| Fault::kernel(path, "make a whiteout", errno);
        match hidden {
            b".wh..opq" => return set_opaque(parent).map_err(fault),
            b"" | b"." | b".." => return Err(Fault::at(path, "a whiteout that names nothing")),
            // aufs's own notes, that old Docker left in layers.
            name if name.starts_with(b".wh.") => return Ok(()),
            _ => {}
        }
        match rustix::fs::statat(parent, hidden, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => rustix::fs::mknodat(parent, hidden, FileType::CharacterDevice, Mode::empty(), 0).map_err(fault),
            // This layer has it anew. A directory would let the lower one's content show through; anything else hides it.
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                let dir = tree::open_dir(parent, hidden).map_err(fault)?;
                set_opaque(dir.as_fd()).map_err(fault)
            }
            Ok(_) => Ok(()),
            Err(errno) => Err(fault(errno)),
        }
    }

    fn make<R: Read>(
        &mut self,
        parent: BorrowedFd<'_>,
        path: &[u8],
        name: &[u8],
        entry: &Entry,
        entries: &mut Entries<R>,
    ) -> Result<(), Fault> {
        self.implicit.remove(path);
        match entry.kind {
            Kind::Directory => self.directory(parent, path, name, entry),
            Kind::Hardlink => self.hardlink(parent, path, name, entry),
            Kind::File => {
                self.file(parent, path, name, entry, entries)?;
                Ok(())
            }
            Kind::Symlink | Kind::Char | Kind::Block | Kind::Fifo => self.special(parent, path, name, entry),
        }
    }

    /// Takes away what an earlier entry put at this name.
    fn replace(&mut self, parent: BorrowedFd<'_>, path: &[u8], name: &[u8]) -> Result<(), Fault> {
        tree::remove(parent, name, self.trash).map_err(|errno| Fault::kernel(path, "replace an earlier entry", errno))
    }

    fn directory(&mut self, parent: BorrowedFd<'_>, path: &[u8], name: &[u8], entry: &Entry) -> Result<(), Fault> {
        let fault = |errno| Fault::kernel(path, "make a directory", errno);
        let mut after_whiteout = false;
        if let Err(errno) = rustix::fs::mkdirat(parent, name, Mode::RWXU) {
            if errno != Errno::EXIST {
                return Err(fault(errno));
            }
            let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(fault)?;
            let kind = FileType::from_raw_mode(stat.st_mode);
            if kind != FileType::Directory {
                after_whiteout = kind == FileType::CharacterDevice && stat.st_rdev == 0;
                self.replace(parent, path, name)?;
                rustix::fs::mkdirat(parent, name, Mode::RWXU).map_err(fault)?;
            }
        }
        let dir = tree::open_dir(parent, name).map_err(fault)?;
        if after_whiteout {
            set_opaque(dir.as_fd()).map_err(fault)?;
        }
        attributes(dir.as_fd(), path, entry)?;
        self.times.insert(path.to_vec(), entry.mtime);
        Ok(())
    }

    fn file<R: Read>(
        &mut self,
        parent: BorrowedFd<'_>,
        path: &[u8],
        name: &[u8],
        entry: &Entry,
        entries: &mut Entries<R>,
    ) -> Result<(), Fault> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let create = || rustix::fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR);
        let file = match create() {
            Err(Errno::EXIST) => {
                self.replace(parent, path, name)?;
                create()
            }
            other => other,
        };
        let file = file.map_err(|errno| Fault::kernel(path, "make a file", errno))?;
        let size = entry.sparse.as_ref().map_or(entry.size, |sparse| sparse.real_size.max(entry.size));
        self.done.bytes = self.done.bytes.saturating_add(size);
        if self.done.bytes > self.bounds.bytes {
            return Err(Fault::at(path, format!("the layer has more than {} bytes of files", self.bounds.bytes)));
        }
        match &entry.sparse {
            None => self.copy(&file, path, entries, entry.size)?,
            Some(sparse) => self.copy_sparse(&file, path, entries, sparse)?,
        }
        attributes(file.as_fd(), path, entry)?;
        let times = timestamps(entry.mtime);
        rustix::fs::futimens(&file, &times).map_err(|errno| Fault::kernel(path, "set the time of", errno))
    }

    fn copy<R: Read>(&mut self, file: &OwnedFd, path: &[u8], entries: &mut Entries<R>, mut left: u64) -> Result<(), Fault> {
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            let read = entries.read_data(&mut self.buffer[..most]).map_err(Fault::Read)?;
            if read == 0 {
                return Err(Fault::at(path, "its data is shorter than its size"));
            }
            left -= read as u64;
            self.check_space(read as u64)?;
            let mut rest = &self.buffer[..read];
            while !rest.is_empty() {
                match rustix::io::write(file, rest) {
                    Ok(written) => rest = &rest[written..],
                    Err(Errno::INTR) => {}
                    Err(errno) => return Err(Fault::kernel(path, "write", errno)),
                }
            }
        }
        Ok(())
    }

    fn copy_sparse<R: Read>(
        &mut self,
        file: &OwnedFd,
        path: &[u8],
        entries: &mut Entries<R>,
        sparse: &Sparse,
    ) -> Result<(), Fault> {
        let fault = |errno| Fault::kernel(path, "write a sparse file", errno);
        rustix::fs::ftruncate(file, sparse.real_size).map_err(fault)?;
        for (offset, length) in &sparse.pieces {
            rustix::fs::seek(file, rustix::fs::SeekFrom::Start(*offset)).map_err(fault)?;
            self.copy(file, path, entries, *length)?;
        }
        Ok(())
    }

    fn check_space(&mut self, written: u64) -> Result<(), Fault> {
        self.unchecked += written;
        if self.unchecked < SPACE_CHECK {
            return Ok(());
        }
        self.unchecked = 0;
        match rustix::fs::fstatvfs(self.root) {
            Ok(disk) if disk.f_bavail.saturating_mul(disk.f_frsize) < self.bounds.reserve => Err(Fault::NoSpace),
            _ => Ok(()),
        }
    }

    /// The target must be an earlier file of this layer: it resolves inside the root, and its last component isn't followed.
    fn hardlink(&mut self, parent: BorrowedFd<'_>, path: &[u8], name: &[u8], entry: &Entry) -> Result<(), Fault> {
        let target = clean(&entry.link).map_err(|why| Fault::at(path, format!("hard link: {why}")))?;
        let text = String::from_utf8_lossy(&target).into_owned();
        let fault = |errno| Fault::kernel(path, &format!("hard link to {text:?}"), errno);
        let (dir, last) = split(&target).ok_or_else(|| Fault::at(path, "hard link to the root directory"))?;
        let target_dir = open_beneath(self.root, dir, OFlags::empty()).map_err(fault)?;
        let there = rustix::fs::statat(&target_dir, last, AtFlags::SYMLINK_NOFOLLOW).map_err(fault)?;
        if FileType::from_raw_mode(there.st_mode) == FileType::Directory {
            return Err(Fault::at(path, format!("hard link to {text:?}, which is a directory")));
        }
        match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            // A link to itself, perhaps by another path: removing it first would lose it.
            Ok(here) if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino) => return Ok(()),
            Ok(_) => self.replace(parent, path, name)?,
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(fault(errno)),
        }
        rustix::fs::linkat(&target_dir, last, parent, name, AtFlags::empty()).map_err(fault)
    }

    fn special(&mut self, parent: BorrowedFd<'_>, path: &[u8], name: &[u8], entry: &Entry) -> Result<(), Fault> {
        match Self::make_special(parent, name, entry) {
            Err(Errno::EXIST) => {
                self.replace(parent, path, name)?;
                Self::make_special(parent, name, entry)
            }
            other => other,
        }
        .map_err(|errno| Fault::kernel(path, "make a link, pipe or device", errno))?;
        let (uid, gid) = owner(entry, path)?;
        let fault = |errno| Fault::kernel(path, "set the attributes of", errno);
        rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(fault)?;
        if entry.kind != Kind::Symlink {
            // Not a link: it was made just now, and nobody else is in here.
            rustix::fs::chmodat(parent, name, Mode::from_raw_mode(entry.mode), AtFlags::empty()).map_err(fault)?;
        }
        for (key, value) in kept_xattrs(entry) {
            // No call sets an attribute relative to a directory; the descriptor's own link in /proc is as good.
            let mut link = format!("/proc/self/fd/{}/", parent.as_raw_fd()).into_bytes();
            link.extend_from_slice(name);
            tolerate(rustix::fs::lsetxattr(link, key, value, XattrFlags::empty())).map_err(fault)?;
        }
        let times = timestamps(entry.mtime);
        rustix::fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(fault)
    }

    fn make_special(parent: BorrowedFd<'_>, name: &[u8], entry: &Entry) -> rustix::io::Result<()> {
        let kind = match entry.kind {
            Kind::Symlink => {
                if entry.link.is_empty() || entry.link.len() > PATH_LIMIT {
                    return Err(Errno::NAMETOOLONG);
                }
                return rustix::fs::symlinkat(entry.link.as_slice(), parent, name);
            }
            Kind::Char => FileType::CharacterDevice,
            Kind::Block => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        let device = rustix::fs::makedev(entry.device.0, entry.device.1);
        rustix::fs::mknodat(parent, name, kind, Mode::RUSR | Mode::WUSR, device)
    }

    fn finish(&mut self) -> Result<(), Fault> {
        for (path, mtime) in std::mem::take(&mut self.times).into_iter().rev() {
            match open_beneath(self.root, &path, OFlags::NOFOLLOW) {
                Ok(dir) => {
                    let times = timestamps(mtime);
                    rustix::fs::futimens(&dir, &times).map_err(|errno| Fault::kernel(&path, "set the time of", errno))?;
                }
                // A later entry replaced it.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(errno) => return Err(Fault::kernel(&path, "open", errno)),
            }
        }
        let implicit = std::mem::take(&mut self.implicit).into_iter();
        // A name that isn't text keeps the defaults: it can't be written into the index.
        self.done.implicit = implicit.filter_map(|path| String::from_utf8(path).ok()).collect();
        Ok(())
    }
}

/// Owner, mode, xattrs, in this order: changing the owner clears set-user-ID and capabilities.
fn attributes(fd: BorrowedFd<'_>, path: &[u8], entry: &Entry) -> Result<(), Fault> {
    let (uid, gid) = owner(entry, path)?;
    let fault = |errno| Fault::kernel(path, "set the attributes of", errno);
    rustix::fs::fchown(fd, Some(uid), Some(gid)).map_err(fault)?;
    rustix::fs::fchmod(fd, Mode::from_raw_mode(entry.mode)).map_err(fault)?;
    for (key, value) in kept_xattrs(entry) {
        tolerate(rustix::fs::fsetxattr(fd, key, value, XattrFlags::empty())).map_err(fault)?;
    }
    Ok(())
}

fn owner(entry: &Entry, path: &[u8]) -> Result<(Uid, Gid), Fault> {
    // -1 means "leave as it is" to the kernel.
    let id = |number: u64| u32::try_from(number).ok().filter(|id| *id != u32::MAX);
    match (id(entry.uid), id(entry.gid)) {
        (Some(uid), Some(gid)) => Ok((Uid::from_raw(uid), Gid::from_raw(gid))),
        _ => Err(Fault::at(path, format!("owner {}:{} is out of range", entry.uid, entry.gid))),
    }
}

/// What a layer may say about its files. `trusted.*` and `user.overlay.*` steer overlayfs itself, other `security.*` the
/// host's own policy: those are the host's to set.
fn kept_xattrs(entry: &Entry) -> impl Iterator<Item = (&[u8], &[u8])> {
    entry.xattrs.iter().map(|(key, value)| (key.as_slice(), value.as_slice())).filter(|(key, _)| {
        let kept = *key == b"security.capability"
            || key.starts_with(b"system.posix_acl_")
            || (key.starts_with(b"user.") && !key.starts_with(b"user.overlay."));
        if !kept {
            tracing::debug!(entry = %entry.path.escape_ascii(), xattr = %key.escape_ascii(), "attribute of an image left out");
        }
        kept
    })
}

/// File systems without extended attributes, and `user.*` on what isn't a file, lose them as they do in a copy.
fn tolerate(result: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match result {
        Err(Errno::OPNOTSUPP | Errno::PERM) => Ok(()),
        other => other,
    }
}

fn set_opaque(dir: BorrowedFd<'_>) -> rustix::io::Result<()> {
    rustix::fs::fsetxattr(dir, "trusted.overlay.opaque", b"y", XattrFlags::empty())
}

fn timestamps((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    // What no file system can hold becomes what every one can.
    let seconds = seconds.clamp(i64::from(i32::MIN), 1 << 33);
    let time = Timespec { tv_sec: seconds, tv_nsec: i64::from(nanoseconds) };
    Timestamps { last_access: time, last_modification: time }
}

fn open_beneath(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | flags;
    beneath::open(root, path, flags, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

/// An entry's path without `/` at its ends, `//` and `.`; an absolute one is taken from the layer's root, as every tool does.
fn clean(path: &[u8]) -> Result<Vec<u8>, String> {
    if path.len() > PATH_LIMIT {
        return Err(format!("its path has {} bytes, more than {PATH_LIMIT}", path.len()));
    }
    if path.is_empty() {
        return Err("it has no name".into());
    }
    if path.contains(&0) {
        return Err("its path has a NUL byte".into());
    }
    let mut clean = Vec::with_capacity(path.len());
    for component in components(path) {
        if component == b".." {
            return Err("its path has `..`".into());
        }
        if component.len() > NAME_LIMIT {
            return Err(format!("a name in its path has {} bytes, more than {NAME_LIMIT}", component.len()));
        }
        if !clean.is_empty() {
            clean.push(b'/');
        }
        clean.extend_from_slice(component);
    }
    Ok(clean)
}

fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|component| !matches!(*component, b"" | b"."))
}

fn joined(components: &[Vec<u8>]) -> Vec<u8> {
    components.join(&b'/')
}

/// Directory and name; None for the root.
fn split(clean: &[u8]) -> Option<(&[u8], &[u8])> {
    match clean.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => Some((&clean[..slash], &clean[slash + 1..])),
        None if clean.is_empty() => None,
        None => Some((b"", clean)),
    }
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
