//! OCI seccomp profiles, compiled to classic BPF.
use super::error::ConfigError;
use super::recipe::SeccompNeed;
use std::path::PathBuf;
/// Compiled filters.
#[derive(Debug)]
pub struct Filters {
    _root: PathBuf,
}
impl Filters {
    pub fn new(root: PathBuf) -> Self {
        Self { _root: root }
    }
    pub fn get(&self, _need: &SeccompNeed<'_>) -> Result<String, ConfigError> {
        Ok(String::new())
    }
}
