//! The machine's device nodes, for privileged containers.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use podholder::protocol::Device;

/// Folders of /dev that belong to each container itself.
const OWN: [&str; 4] = ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/fd"];

/// All nodes below /dev. The console and ptmx are each container's own.
pub fn of_host() -> Vec<Device> {
    let mut found = Vec::new();
    walk(Path::new("/dev"), 0, &mut found);
    found.retain(|device| !["/dev/ptmx", "/dev/console"].iter().any(|own| device.path == Path::new(own)));
    found
}

fn walk(dir: &Path, depth: u32, found: &mut Vec<Device>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(metadata) = entry.metadata() else { continue };
        let kind = metadata.file_type();
        if kind.is_dir() && depth < 8 && !OWN.iter().any(|own| path == Path::new(own)) {
            walk(&path, depth + 1, found);
        } else if kind.is_char_device() || kind.is_block_device() {
            let number = metadata.rdev();
            found.push(Device {
                path,
                kind: if kind.is_block_device() { 'b' } else { 'c' },
                major: rustix::fs::major(number),
                minor: rustix::fs::minor(number),
                mode: metadata.mode() & 0o7777,
                uid: metadata.uid(),
                gid: metadata.gid(),
            });
        }
    }
}
