//! Files that are replaced as a whole: whoever reads finds the old text or the new one, whatever happens in between.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What the new text outlives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outlives {
    /// The process that wrote it.
    Process,
    /// A loss of power: it is on the disk when [`write`] returns. Takes as long as the disk does.
    Power,
}

/// Replaces the file, or makes it, with these rights (the umask takes some away). Its folder is there, and nobody else writes in it under
/// the file's name.
///
/// # Errors
/// The kernel's, about the file or the one that is written first, `.NAME.new` beside it. The old text stays then.
pub fn write(path: &Path, text: &[u8], mode: u32, outlives: Outlives) -> io::Result<()> {
    let new = beside(path)?;
    let mut file = create(&new, mode)?;
    let written = file.write_all(text).and_then(|()| match outlives {
        Outlives::Process => Ok(()),
        Outlives::Power => file.sync_data(),
    });
    if let Err(error) = written.and_then(|()| fs::rename(&new, path)) {
        // What is half there takes room, perhaps of a disk that has none.
        let _ = fs::remove_file(&new);
        return Err(error);
    }
    if outlives == Outlives::Process {
        return Ok(());
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

fn beside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut new = std::ffi::OsString::from(".");
    new.push(name);
    new.push(".new");
    Ok(path.with_file_name(new))
}

/// What a crash left under that name goes first: it may have other rights, or be another's link.
fn create(new: &Path, mode: u32) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(mode);
    match options.open(new) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(new)?;
            options.open(new)
        }
        opened => opened,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn the_old_text_or_the_new_one_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        for (text, outlives) in [("one", Outlives::Process), ("two", Outlives::Power)] {
            write(&path, text.as_bytes(), 0o600, outlives).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        // What a crash left, with rights of its own; or what another put there.
        let (new, others) = (dir.path().join(".state.json.new"), dir.path().join("others"));
        fs::write(&new, "half").unwrap();
        write(&path, b"three", 0o600, Outlives::Process).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&others, "theirs").unwrap();
        symlink(&others, &new).unwrap();
        write(&path, b"four", 0o600, Outlives::Process).unwrap();
        assert_eq!(
            (fs::read_to_string(&path).unwrap().as_str(), fs::read_to_string(&others).unwrap().as_str()),
            ("four", "theirs")
        );
        // One that can't be replaced stays, and nothing beside it.
        fs::create_dir(dir.path().join("folder")).unwrap();
        write(&dir.path().join("folder"), b"x", 0o600, Outlives::Process).unwrap_err();
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["folder", "others", "state.json"]);
    }
}
