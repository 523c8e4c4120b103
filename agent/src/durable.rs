//! Files that only root reads and that no crash leaves half-written.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use netplug::whole::{self, Outlives};

/// Writes a file with mode 0600, whole or not at all, also over a loss of power.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    whole::write(path, bytes, 0o600, Outlives::Power)
}

/// Makes a folder, and those above it, that only root enters.
pub fn private_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// What was renamed and removed in a folder stays so.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_written_replaces_what_was_there_and_is_for_root_alone() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("a/b");
        private_folder(&inner).unwrap();
        let path = inner.join("key.pem");
        fs::write(&path, "old").unwrap();
        fs::write(inner.join(".key.pem.new"), "what a crash left").unwrap();
        write(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&inner)), (0o600, 0o700));
        assert_eq!(fs::read_dir(&inner).unwrap().count(), 1);
    }
}
