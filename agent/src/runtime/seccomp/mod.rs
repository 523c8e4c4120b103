//! Seccomp: profiles compiled to BPF, once for each set of capabilities. The default profile is data, `default.json`.
//! No libseccomp: its rules are few, and a filter is made in microseconds here.

mod abi;
mod compile;
mod profile;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use podholder::beneath;
use rustix::fs::{Mode, OFlags, ResolveFlags};

use self::abi::Abi;
use self::profile::{Machine, Profile, version};
use super::error::ConfigError;
use super::recipe::SeccompNeed;
use super::recipe::mounts::beneath;

/// What containers get without asking.
const DEFAULT: &str = include_str!("default.json");
/// Profiles of users: far above any real one.
const MAX_PROFILE: u64 = 4 << 20;

/// A filter as a recipe carries it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// `struct sock_filter`s in memory order, base64; empty: none.
    pub program: String,
    /// Of seccomp(2).
    pub flags: u32,
}

/// Makes filters and keeps those of the default profile.
#[derive(Debug)]
pub struct Filters {
    folder: PathBuf,
    /// The node's own, instead of the built-in one.
    default: Option<Profile>,
    defaults: Mutex<HashMap<u64, Filter>>,
}

impl Filters {
    /// `folder` has the profiles of `seccompProfile: {type: Localhost}`; `default` is the file of the node's own `RuntimeDefault`.
    pub fn new(folder: PathBuf, default: Option<&Path>) -> Result<Self, ConfigError> {
        let default = default.map(|path| read(File::open(path), path)).transpose()?;
        Ok(Self { folder, default, defaults: Mutex::default() })
    }

    /// The filter that a container needs.
    pub fn get(&self, need: &SeccompNeed<'_>) -> Result<Filter, ConfigError> {
        match *need {
            SeccompNeed::Default { capabilities } => {
                let mut defaults = self.defaults.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(filter) = defaults.get(&capabilities) {
                    return Ok(filter.clone());
                }
                let profile = match &self.default {
                    Some(own) => own,
                    None => default_profile()?,
                };
                let filter = filter(profile, capabilities)?;
                defaults.insert(capabilities, filter.clone());
                Ok(filter)
            }
            SeccompNeed::Localhost { file, capabilities } => filter(&self.localhost(file)?, capabilities),
        }
    }

    /// A pod's author names the file: no link leads out of the folder, whoever made it.
    fn localhost(&self, file: &str) -> Result<Profile, ConfigError> {
        let inside = beneath(file)?;
        let path = self.folder.join(&inside);
        let opened = rustix::fs::open(&self.folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).and_then(
            |folder| {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK;
                let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
                beneath::open(folder, &inside, flags, resolve)
            },
        );
        read(opened.map(File::from).map_err(io::Error::from), &path)
    }
}

/// A profile of an open file, which may be anything.
fn read(opened: io::Result<File>, path: &Path) -> Result<Profile, ConfigError> {
    let failed = |error: io::Error| ConfigError::new(format!("cannot load seccomp profile \"{}\": {error}", path.display()));
    let file = opened.map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(ConfigError::new(format!("cannot load seccomp profile \"{}\": not a file", path.display())));
    }
    let mut text = Vec::new();
    file.take(MAX_PROFILE + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_PROFILE {
        return Err(ConfigError::new(format!("seccomp profile {}: larger than {} MiB", path.display(), MAX_PROFILE >> 20)));
    }
    Profile::parse(&text, &path.display().to_string())
}

fn default_profile() -> Result<&'static Profile, ConfigError> {
    static PROFILE: LazyLock<Result<Profile, ConfigError>> =
        LazyLock::new(|| Profile::parse(DEFAULT.as_bytes(), "RuntimeDefault"));
    PROFILE.as_ref().map_err(Clone::clone)
}

fn filter(profile: &Profile, capabilities: u64) -> Result<Filter, ConfigError> {
    let native = Abi::native().ok_or_else(|| {
        ConfigError::new(format!("seccomp: this agent has no table of system calls for {}", std::env::consts::ARCH))
    })?;
    let kernel = version(&rustix::system::uname().release().to_string_lossy());
    let policy = profile.policy(Machine { native, kernel }, capabilities)?;
    let program = compile::compile(&policy)?;
    Ok(Filter { program: BASE64_STANDARD.encode(compile::bytes(&program)), flags: policy.flags })
}

#[cfg(test)]
mod tests;
