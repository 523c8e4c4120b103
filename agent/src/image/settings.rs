//! What an image store needs to know about its machine. Everything has a default; the agent's configuration overrides it.

use std::fmt;
use std::path::{Path, PathBuf};

/// Where things are, and how much is too much.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The store's directory, made where it isn't there.
    pub root: PathBuf,
    /// registries.conf files, later ones over earlier ones; a directory stands for its `*.conf` in their order. What isn't
    /// there is skipped.
    pub registries_conf: Vec<PathBuf>,
    /// Docker's config.json or containers' auth.json, the first that has a login wins. What isn't there is skipped.
    pub auth_files: Vec<PathBuf>,
    /// Directories with one directory of `*.crt`, `*.cert`, `*.key` per registry's host and port.
    pub certs_dirs: Vec<PathBuf>,
    /// Which variant of an image to take.
    pub platform: Platform,
    /// Layers that are fetched and unpacked at the same time, over all pulls.
    pub parallel_layers: usize,
    /// How much is too much.
    pub limits: Limits,
}

/// Bounds for what registries and images can make us do.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of one manifest or index: the registries' own limit.
    pub manifest: u64,
    /// Bytes of one image configuration.
    pub config: u64,
    /// Layers of one image; overlayfs stacks 500.
    pub layers: usize,
    /// Entries of one layer.
    pub entries: u64,
    /// Bytes of one layer, unpacked.
    pub layer_bytes: u64,
    /// Bytes that stay free on the disk.
    pub reserve: u64,
    /// Tries for one request.
    pub attempts: u32,
    /// The wait before the second try; doubles after each.
    pub backoff: std::time::Duration,
    /// How long a connection may be silent.
    pub silence: std::time::Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            manifest: 4 << 20,
            config: 8 << 20,
            layers: 499,
            entries: 4_000_000,
            layer_bytes: 1 << 40,
            reserve: 64 << 20,
            attempts: 5,
            backoff: std::time::Duration::from_millis(250),
            silence: std::time::Duration::from_secs(60),
        }
    }
}

impl Settings {
    /// A store at `root` on this machine, with the places where containers' tools and Docker keep their settings.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        let etc = Path::new("/etc/containers");
        let mut auth_files = vec![PathBuf::from("/run/containers/0/auth.json")];
        let docker = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
        let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".docker"));
        auth_files.extend(docker.or(home).map(|dir| dir.join("config.json")));
        Self {
            root: root.into(),
            registries_conf: vec![etc.join("registries.conf"), etc.join("registries.conf.d")],
            auth_files,
            certs_dirs: vec![etc.join("certs.d"), PathBuf::from("/etc/docker/certs.d")],
            platform: Platform::host(),
            parallel_layers: 3,
            limits: Limits::default(),
        }
    }
}

/// Operating system, processor and its variant, in Go's words, as manifests have them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// `v8`, `v7`, … where it matters.
    pub variant: Option<String>,
}

impl Platform {
    /// This machine.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        Self { os: std::env::consts::OS.into(), architecture: architecture.into(), variant: variant.map(str::to_owned) }
    }

    /// How well an image for `other` runs here: None if it doesn't, and the lowest number is the best.
    pub(super) fn rank(&self, other: &Self) -> Option<u32> {
        if self.os != other.os || self.architecture != other.architecture {
            return None;
        }
        let number = |variant: &str| variant.trim_start_matches('v').parse::<u32>().ok();
        match (self.variant.as_deref(), other.variant.as_deref()) {
            (mine, theirs) if mine == theirs => Some(0),
            (_, None) => Some(1),
            // An older arm runs on a newer one; v1 of amd64 is every amd64.
            (Some(mine), Some(theirs)) => Some(number(mine)?.checked_sub(number(theirs)?)? + 1),
            (None, Some(theirs)) => (number(theirs)? == 1).then_some(1),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}
