//! What must be known over a restart: one file a tree, below the agent's durable folder. Each is whole or not there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::durable;

/// All that is kept.
pub fn read_all(folder: &Path) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let listed = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed?,
    };
    let mut found = Vec::new();
    for entry in listed {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "json") {
            let bytes = fs::read(&path)?;
            found.push((path, bytes));
        }
    }
    Ok(found)
}

/// Durable when this returns; or removed.
pub fn write(folder: &Path, uid: &str, bytes: Option<&[u8]>) -> io::Result<()> {
    let path = folder.join(format!("{uid}.json"));
    let Some(bytes) = bytes else {
        return match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
    };
    fs::create_dir_all(folder)?;
    durable::write(&path, bytes)
}
