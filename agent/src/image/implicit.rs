//! Directories that a layer has without describing them. Builders that write single files leave their directories out; laid
//! out apart from the layers below, such a directory gets default attributes, and overlayfs would show those: /tmp of 1777
//! would turn 0755. One more layer of nothing but these directories, on top, gives them back what the lower layers said.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use podholder::beneath;
use rustix::fs::{Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::digest::Digest;
use super::error::{Error, Result};
use super::images::Inner;
use super::tree;
use super::unpack::Unpacked;

/// What a directory is besides its entries.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Attributes {
    uid: u32,
    gid: u32,
    mode: u32,
    mtime: (i64, u32),
    xattrs: BTreeMap<CString, Vec<u8>>,
}

/// A layer's directory, and the paths in it that it doesn't describe.
struct Level {
    dir: OwnedFd,
    implicit: BTreeSet<String>,
}

/// What one layer has at a path.
enum Seen {
    Nothing,
    /// Something that hides the layers below: another kind of file, a whiteout, an opaque parent.
    Hidden,
    Directory(OwnedFd),
}

impl Inner {
    /// The layer to put on top of these (lowest first), if one is needed. It is laid out and in `layers`; the caller holds it. Blocks.
    pub(super) fn implicit_directories(&self, layers: &[Digest]) -> Result<Option<Digest>> {
        let mut levels = Vec::new();
        for layer in layers {
            let path = self.store.layer_path(layer);
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let dir = rustix::fs::open(&path, flags, Mode::empty()).map_err(|errno| Error::io("open", &path, errno))?;
            let implicit = self.layer(layer).unwrap_or_default().implicit.into_iter().collect();
            levels.push(Level { dir, implicit });
        }
        let fail = |errno: Errno| Error::io("restore directories of the layers in", self.store.root(), errno);
        let directories = plan(&levels).map_err(fail)?;
        if directories.is_empty() {
            return Ok(None);
        }
        let id = Digest::of(format!("{directories:?}").as_bytes());
        self.hold(&id);
        let made = match self.layer(&id) {
            Some(_) => Ok(()),
            None => self.store.stage().and_then(|staging| {
                build(staging.root(), &directories).map_err(fail)?;
                self.publish_layer(&staging, &id, Unpacked::default()).map(drop)
            }),
        };
        made.inspect_err(|_| self.release(&id))?;
        Ok(Some(id))
    }
}

/// The directories to restore with all their parents, by path; the root is "".
fn plan(levels: &[Level]) -> rustix::io::Result<BTreeMap<String, Attributes>> {
    let candidates: BTreeSet<&String> = levels.iter().flat_map(|level| &level.implicit).collect();
    let mut directories = BTreeMap::new();
    for path in candidates {
        if let Some((attributes, true)) = visible(levels, path)? {
            directories.insert(path.clone(), attributes);
        }
    }
    let parents: BTreeSet<String> = directories.keys().flat_map(|path| parents(path)).collect();
    for path in parents {
        if !directories.contains_key(&path)
            && let Some((attributes, _)) = visible(levels, &path)?
        {
            directories.insert(path, attributes);
        }
    }
    Ok(directories)
}

fn parents(path: &str) -> Vec<String> {
    let ends = path.match_indices('/').map(|(at, _)| at);
    std::iter::once(0).chain(ends).map(|end| path[..end].to_owned()).collect()
}

/// A directory's attributes as the topmost layer that describes it has them, and whether a layer above has it undescribed.
fn visible(levels: &[Level], path: &str) -> rustix::io::Result<Option<(Attributes, bool)>> {
    let mut undescribed = None;
    for level in levels.iter().rev() {
        match look(level, path)? {
            Seen::Nothing => {}
            Seen::Hidden => break,
            Seen::Directory(dir) => {
                let attributes = attributes(&dir)?;
                if !level.implicit.contains(path) {
                    return Ok(Some((attributes, undescribed.is_some())));
                }
                undescribed.get_or_insert(attributes);
                if is_opaque(&dir) {
                    break;
                }
            }
        }
    }
    // Nobody describes it: the default stays.
    Ok(undescribed.map(|attributes| (attributes, false)))
}

fn look(level: &Level, path: &str) -> rustix::io::Result<Seen> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let open = |path: &str| beneath::open(&level.dir, path, flags, resolve);
    match open(path) {
        Ok(dir) => Ok(Seen::Directory(dir)),
        Err(Errno::NOTDIR | Errno::LOOP) => Ok(Seen::Hidden),
        Err(Errno::NOENT) => {
            let hidden = parents(path).iter().filter_map(|parent| open(parent).ok()).any(|parent| is_opaque(&parent));
            Ok(if hidden { Seen::Hidden } else { Seen::Nothing })
        }
        Err(errno) => Err(errno),
    }
}

fn is_opaque(dir: &OwnedFd) -> bool {
    let mut value = [0_u8; 1];
    rustix::fs::fgetxattr(dir, "trusted.overlay.opaque", &mut value[..]).is_ok() && value == *b"y"
}

fn attributes(dir: &OwnedFd) -> rustix::io::Result<Attributes> {
    let stat = rustix::fs::fstat(dir)?;
    let mut names = vec![0; 64 * 1024];
    let length = match rustix::fs::flistxattr(dir, names.as_mut_slice()) {
        Err(Errno::OPNOTSUPP) => 0,
        other => other?,
    };
    let mut xattrs = BTreeMap::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let Ok(name) = CString::new(name) else { continue };
        if name.to_bytes().starts_with(b"trusted.") {
            continue;
        }
        let mut value = vec![0; 64 * 1024];
        let length = rustix::fs::fgetxattr(dir, &name, value.as_mut_slice())?;
        value.truncate(length);
        xattrs.insert(name, value);
    }
    Ok(Attributes {
        uid: stat.st_uid,
        gid: stat.st_gid,
        mode: stat.st_mode & 0o7777,
        mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or_default()),
        xattrs,
    })
}

/// Makes the directories: parents sort before their children, so times are set the other way round.
fn build(root: std::os::fd::BorrowedFd<'_>, directories: &BTreeMap<String, Attributes>) -> rustix::io::Result<()> {
    let open = |path: &str| {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        beneath::open(root, path, OFlags::RDONLY | OFlags::DIRECTORY, resolve)
    };
    for (path, attributes) in directories {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let dir = if path.is_empty() {
            open("")?
        } else {
            let parent = open(parent)?;
            rustix::fs::mkdirat(&parent, name, Mode::RWXU)?;
            tree::open_dir(parent.as_fd(), name)?
        };
        rustix::fs::fchown(&dir, Some(Uid::from_raw(attributes.uid)), Some(Gid::from_raw(attributes.gid)))?;
        rustix::fs::fchmod(&dir, Mode::from_raw_mode(attributes.mode))?;
        for (name, value) in &attributes.xattrs {
            rustix::fs::fsetxattr(&dir, name, value, XattrFlags::empty())?;
        }
    }
    for (path, attributes) in directories.iter().rev() {
        let time = Timespec { tv_sec: attributes.mtime.0, tv_nsec: i64::from(attributes.mtime.1) };
        rustix::fs::futimens(open(path)?, &Timestamps { last_access: time, last_modification: time })?;
    }
    Ok(())
}
