//! What tells this node from another that was given the same name: a random number that lives as long as /var/lib/nodeagent.

use std::io;
use std::path::Path;

use super::DaemonError;
use crate::{durable, random};

/// The number, made at the first start.
pub fn of(lib: &Path) -> Result<String, DaemonError> {
    let path = lib.join("instance");
    read_or_make(&path).map_err(|source| DaemonError::Instance { path, source })
}

fn read_or_make(path: &Path) -> io::Result<String> {
    match std::fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let text = random::hex::<16>()?;
    path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
    durable::write(path, text.as_bytes())?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_same_as_long_as_the_folder_lives() {
        let folder = tempfile::tempdir().unwrap();
        let first = of(folder.path()).unwrap();
        assert_eq!(first.len(), 32);
        assert_eq!(of(folder.path()).unwrap(), first);
        assert_ne!(of(&folder.path().join("other")).unwrap(), first);
    }
}
