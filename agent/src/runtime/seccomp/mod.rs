//! Seccomp: profiles compiled to BPF, once for each set of capabilities. The default profile is data, `default.json`.
//! No libseccomp: its rules are few, and a filter is made in microseconds here.

mod abi;
mod compile;
mod profile;

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, PoisonError};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

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
    defaults: Mutex<HashMap<u64, Filter>>,
}

impl Filters {
    /// `folder` has the profiles of `seccompProfile: {type: Localhost}`.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, defaults: Mutex::default() }
    }

    /// The filter that a container needs.
    pub fn get(&self, need: &SeccompNeed<'_>) -> Result<Filter, ConfigError> {
        match *need {
            SeccompNeed::Default { capabilities } => {
                let mut defaults = self.defaults.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(filter) = defaults.get(&capabilities) {
                    return Ok(filter.clone());
                }
                let filter = filter(default_profile()?, capabilities)?;
                defaults.insert(capabilities, filter.clone());
                Ok(filter)
            }
            SeccompNeed::Localhost { file, capabilities } => filter(&self.read(file)?, capabilities),
        }
    }

    fn read(&self, file: &str) -> Result<Profile, ConfigError> {
        let path = self.folder.join(beneath(file)?);
        let failed =
            |error: std::io::Error| ConfigError::new(format!("cannot load seccomp profile \"{}\": {error}", path.display()));
        if fs::metadata(&path).map_err(failed)?.len() > MAX_PROFILE {
            return Err(ConfigError::new(format!("seccomp profile {}: larger than {} MiB", path.display(), MAX_PROFILE >> 20)));
        }
        Profile::parse(&fs::read(&path).map_err(failed)?, file)
    }
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
