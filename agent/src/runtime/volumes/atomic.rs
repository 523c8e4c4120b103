//! Writes a folder of files so that a reader sees all of one version or all of another, in the layout that Kubernetes gives its volumes:
//! `FILE -> ..data/FILE`, `..data -> ..TIME`, `..TIME/FILE`. A new version is one rename of `..data`.
//!
//! # Assumptions
//! Nobody but the agent writes to the folder: containers have it read-only.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use super::payload::{File, Payload};

/// The link that changes.
const DATA: &str = "..data";
/// What it is renamed from.
const NEW_DATA: &str = "..data_tmp";

/// Makes the folder hold exactly these files. Whether anything had to be written.
pub fn write(dir: &Path, payload: &Payload, gid: Option<u32>) -> io::Result<bool> {
    let current = fs::read_link(dir.join(DATA)).ok();
    if let Some(current) = &current
        && holds(&dir.join(current), payload)
    {
        // A crash may have come between the rename and this.
        link_names(dir, payload)?;
        return Ok(false);
    }
    let version = new_version(dir, gid)?;
    if let Err(error) = fill(dir, &version, payload, gid) {
        // On a full disk each try would leave its part. What is there goes on to be read.
        let _ = fs::remove_dir_all(dir.join(&version));
        return Err(error);
    }
    link_names(dir, payload)?;
    clean(dir, &version)?;
    Ok(true)
}

/// Writes a version and makes it the one that is read: on an error it isn't.
fn fill(dir: &Path, version: &Path, payload: &Payload, gid: Option<u32>) -> io::Result<()> {
    for (path, file) in payload {
        write_file(&dir.join(version), Path::new(path), file, gid)?;
    }
    let new = dir.join(NEW_DATA);
    remove(&new)?;
    symlink(version, &new)?;
    fs::rename(&new, dir.join(DATA))
}

/// Whether a version has these files, with these bytes and rights, and no others.
fn holds(version: &Path, payload: &Payload) -> bool {
    let mut found = BTreeSet::new();
    if files_below(version, Path::new(""), &mut found).is_err() || found.len() != payload.len() {
        return false;
    }
    payload.iter().all(|(path, file)| {
        let path = version.join(path);
        let rights = fs::symlink_metadata(&path).is_ok_and(|meta| {
            meta.is_file() && meta.permissions().mode() & 0o7777 == file.mode && meta.uid() == file.uid.unwrap_or(0)
        });
        rights && fs::read(&path).is_ok_and(|data| data == file.data)
    })
}

fn files_below(top: &Path, below: &Path, found: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(top.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            files_below(top, &path, found)?;
        } else {
            found.insert(path);
        }
    }
    Ok(())
}

/// A folder that isn't there yet, named by the time, as Kubernetes'.
fn new_version(dir: &Path, gid: Option<u32>) -> io::Result<PathBuf> {
    let mut time = jiff::Timestamp::now();
    loop {
        let name = PathBuf::from(time.strftime("..%Y_%m_%d_%H_%M_%S.%9f").to_string());
        match make_dir(&dir.join(&name), gid) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                time = time.checked_add(jiff::Span::new().nanoseconds(1)).map_err(io::Error::other)?;
            }
            made => return made.map(|()| name),
        }
    }
}

/// Readable by all, whatever the agent's umask is: the files have their own rights.
fn make_dir(path: &Path, gid: Option<u32>) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o755).create(path)?;
    let mode = if gid.is_some() { 0o2775 } else { 0o755 };
    std::os::unix::fs::chown(path, None, gid)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn write_file(version: &Path, path: &Path, file: &File, gid: Option<u32>) -> io::Result<()> {
    let mut at = version.to_path_buf();
    for part in path.parent().into_iter().flat_map(Path::components) {
        at.push(part);
        match make_dir(&at, gid) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
    }
    let path = version.join(path);
    // Nobody may read it before its rights are what they shall be.
    let mut opened = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    opened.write_all(&file.data)?;
    std::os::unix::fs::fchown(&opened, file.uid, gid)?;
    opened.set_permissions(fs::Permissions::from_mode(file.mode))
}

/// The names by which the files are found: a link for each first path component.
fn link_names(dir: &Path, payload: &Payload) -> io::Result<()> {
    let wanted: BTreeSet<&str> = payload.keys().filter_map(|path| path.split('/').next()).collect();
    for name in &wanted {
        let (link, target) = (dir.join(name), Path::new(DATA).join(name));
        if fs::read_link(&link).ok().as_ref() != Some(&target) {
            remove(&link)?;
            symlink(&target, &link)?;
        }
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let ours = entry.file_type()?.is_symlink() && !name.as_encoded_bytes().starts_with(b"..");
        if ours && !name.to_str().is_some_and(|name| wanted.contains(name)) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes versions that nobody reads any more; a process that has a file of one open keeps that file.
fn clean(dir: &Path, current: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if entry.file_type()?.is_dir() && name.as_encoded_bytes().starts_with(b"..") && name != current.as_os_str() {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str, u32)]) -> Payload {
        let file = |data: &str, mode| File { data: data.into(), mode, uid: None };
        files.iter().map(|(path, data, mode)| ((*path).to_owned(), file(data, *mode))).collect()
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_layout_is_kubernetes() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        assert!(write(at, &payload(&[("a", "1", 0o640), ("sub/b", "2", 0o400)]), None).unwrap());
        assert_eq!(fs::read_link(at.join("a")).unwrap(), Path::new("..data/a"));
        assert_eq!(fs::read_link(at.join("sub")).unwrap(), Path::new("..data/sub"));
        assert_eq!(fs::read_to_string(at.join("sub/b")).unwrap(), "2");
        assert_eq!(fs::metadata(at.join("a")).unwrap().permissions().mode() & 0o7777, 0o640);
        let version = fs::read_link(at.join("..data")).unwrap();
        assert!(version.to_str().unwrap().starts_with("..20"), "{version:?}");
        assert_eq!(names(at).len(), 4);
    }

    #[test]
    fn a_new_version_is_one_rename_and_the_old_one_goes() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        write(at, &payload(&[("a", "1", 0o644), ("b", "1", 0o644)]), None).unwrap();
        let first = fs::read_link(at.join("..data")).unwrap();
        assert!(!write(at, &payload(&[("a", "1", 0o644), ("b", "1", 0o644)]), None).unwrap(), "the same is not written again");
        assert_eq!(fs::read_link(at.join("..data")).unwrap(), first);
        assert!(write(at, &payload(&[("a", "2", 0o644), ("c/d", "3", 0o644)]), None).unwrap());
        assert_eq!(fs::read_to_string(at.join("a")).unwrap(), "2");
        let version = fs::read_link(at.join("..data")).unwrap().into_os_string().into_string().unwrap();
        let mut expected = vec![version, "..data".into(), "a".into(), "c".into()];
        expected.sort();
        assert_eq!(names(at), expected);
        assert!(write(at, &payload(&[("a", "2", 0o600), ("c/d", "3", 0o644)]), None).unwrap(), "rights are part of it");
        assert!(write(at, &payload(&[]), None).unwrap());
        assert_eq!(names(at).len(), 2);
    }

    #[test]
    fn a_version_that_cannot_be_written_leaves_the_last_one_and_nothing_half_made() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        write(at, &payload(&[("a", "1", 0o644)]), None).unwrap();
        let before = names(at);
        // The second file can't be: a name longer than the kernel takes, as a disk that is full after the first.
        let long = "b".repeat(300);
        for _ in 0..3 {
            assert!(write(at, &payload(&[("a", "2", 0o644), (&long, "2", 0o644)]), None).is_err());
        }
        assert_eq!(names(at), before);
        assert_eq!(fs::read_to_string(at.join("a")).unwrap(), "1");
    }

    #[test]
    fn what_a_crash_left_is_mended() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        let wanted = payload(&[("a", "1", 0o644)]);
        write(at, &wanted, None).unwrap();
        fs::remove_file(at.join("a")).unwrap();
        fs::create_dir(at.join("..1999")).unwrap();
        symlink("nowhere", at.join("..data_tmp")).unwrap();
        write(at, &wanted, None).unwrap();
        assert_eq!(fs::read_to_string(at.join("a")).unwrap(), "1");
        write(at, &payload(&[("a", "2", 0o644)]), None).unwrap();
        assert_eq!(names(at).len(), 3, "{:?}", names(at));
    }
}
