//! The command: its environment, its working directory, where it is, and exec.

use std::convert::Infallible;
use std::ffi::CString;
use std::path::{Path, PathBuf};

use podholder::protocol::{Fault, Process, Stage};
use podholder::sys;
use rustix::fs::{Access, AtFlags, CWD, FileType, OFlags};

use super::paths::{Kind, Root};
use super::shown;
use crate::fault::{OrFault, kernel, refused};

/// Where a command is looked for when the environment has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The process's environment with HOME.
pub fn environment(process: &Process, home: &str) -> Vec<String> {
    let mut env = process.env.clone();
    if !env.iter().any(|e| e.starts_with("HOME=")) {
        env.push(format!("HOME={home}"));
    }
    env
}

/// Makes `cwd` the working directory. Never through a magic link: /proc/self/fd/N would lead out of the container.
pub fn enter_working_directory(root: &Root, cwd: &Path) -> Result<(), Fault> {
    let cwd = if cwd.as_os_str().is_empty() { Path::new("/") } else { cwd };
    let fault = |e| kernel(Stage::WorkingDir, shown(cwd), e);
    let dir = match root.open(cwd, OFlags::PATH | OFlags::DIRECTORY) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            root.make(cwd, Kind::Directory).map_err(fault)?;
            root.open(cwd, OFlags::PATH | OFlags::DIRECTORY).map_err(fault)?
        }
        dir => dir.map_err(fault)?,
    };
    rustix::process::fchdir(dir).or_fault(Stage::WorkingDir, shown(cwd))
}

/// argv\[0\], or the first of PATH's directories that has it and lets this user execute it.
pub fn find(process: &Process) -> Result<PathBuf, Fault> {
    let Some(name) = process.argv.first().filter(|n| !n.is_empty()) else {
        return Err(Fault { errno: libc::ENOENT, ..refused(Stage::Exec, "", "the command is empty") });
    };
    if name.contains('/') {
        return executable(Path::new(name)).map(|()| name.into()).map_err(|e| kernel(Stage::Exec, name, e));
    }
    let path = process.env.iter().rev().find_map(|e| e.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    let mut denied = false;
    for dir in path.split(':') {
        let candidate = Path::new(if dir.is_empty() { "." } else { dir }).join(name);
        match executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(e) => denied |= e.kind() == std::io::ErrorKind::PermissionDenied,
        }
    }
    let errno = if denied { libc::EACCES } else { libc::ENOENT };
    Err(Fault { stage: Stage::Exec, subject: name.clone(), errno, detail: format!("looked for in {path}") })
}

fn executable(path: &Path) -> std::io::Result<()> {
    let stat = rustix::fs::stat(path)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(std::io::Error::from_raw_os_error(libc::EACCES));
    }
    Ok(rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)?)
}

/// Becomes the command.
pub fn execute(path: &Path, process: &Process, env: &[String]) -> Result<Infallible, Fault> {
    let c_strings = |strings: &[String]| strings.iter().map(|s| CString::new(s.as_str())).collect::<Result<Vec<_>, _>>();
    let fault = |_| refused(Stage::Exec, path.display(), "a zero byte in the command or its environment");
    let (argv, env) = (c_strings(&process.argv).map_err(fault)?, c_strings(env).map_err(fault)?);
    let c_path = CString::new(path.as_os_str().as_encoded_bytes()).map_err(fault)?;
    let mut fault = kernel(Stage::Exec, path.display(), sys::execve(&c_path, &argv, &env));
    if fault.errno == libc::ENOENT {
        // The file itself was there a moment ago.
        fault.detail = "its interpreter or loader isn't there".to_owned();
    }
    Err(fault)
}
