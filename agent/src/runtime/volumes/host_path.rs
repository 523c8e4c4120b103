//! hostPath: a place of the node, checked against what the pod says that it is.

use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use k8s_openapi::api::core::v1::HostPathVolumeSource;

use crate::runtime::error::{Cause, ConfigError, file};

/// <https://kubernetes.io/docs/concepts/storage/volumes/#hostpath-volume-types>
pub fn check(source: &HostPathVolumeSource) -> Result<(), Cause> {
    let path = Path::new(&source.path);
    let kind = source.type_.as_deref().unwrap_or_default();
    let found = fs::metadata(path);
    let missing = found.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound);
    match kind {
        "" | "DirectoryOrCreate" if missing => return fs::create_dir_all(path).map_err(file("make", path)),
        "FileOrCreate" if missing => {
            return fs::OpenOptions::new().append(true).create(true).open(path).map(drop).map_err(file("make", path));
        }
        _ => {}
    }
    let found = found.map_err(file("hostPath type check failed:", path))?.file_type();
    let (right, wanted) = match kind {
        "" => (true, ""),
        "Directory" | "DirectoryOrCreate" => (found.is_dir(), "a directory"),
        "File" | "FileOrCreate" => (found.is_file(), "a file"),
        "Socket" => (found.is_socket(), "a socket"),
        "CharDevice" => (found.is_char_device(), "a character device"),
        "BlockDevice" => (found.is_block_device(), "a block device"),
        other => return Err(ConfigError::new(format!("hostPath: unknown type \"{other}\"")).into()),
    };
    if right {
        Ok(())
    } else {
        Err(ConfigError::new(format!("hostPath type check failed: {} is not {wanted}", source.path)).into())
    }
}
