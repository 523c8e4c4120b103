//! What pods hold, kept in small files so that a crash at any write loses nothing: one file a pod, made by rename, renamed
//! again when the pod goes (so that a new process knows how long the address has rested). The directory is on a tmpfs: no
//! fsync. Where somebody put it on a disk, a loss of power may leave files with nothing in them: they are set aside. It knows nothing of
//! links or rules.

use std::{
    collections::VecDeque,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use crate::{
    bandwidth::Bandwidth,
    error::Error,
    links::mac_of,
    settings::Port,
    whole::{self, Outlives},
};

/// What one pod holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The pod's UID.
    pub uid: String,
    /// `namespace/name`, for people.
    pub pod: String,
    /// One a family, IPv4 first.
    pub ips: Vec<IpAddr>,
    /// The host's end of the veth.
    pub host_if: String,
    /// Its host ports.
    #[serde(default)]
    pub ports: Vec<Port>,
    /// How fast it may be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// The MAC of its interface, where it isn't that of its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<[u8; 6]>,
}

impl Lease {
    /// Of the pod's interface.
    pub(crate) fn mac(&self) -> [u8; 6] {
        self.mac.or_else(|| self.ips.first().map(|ip| mac_of(*ip))).unwrap_or_default()
    }
}

/// The directory.
#[derive(Debug)]
pub(crate) struct LeaseDir {
    dir: PathBuf,
    released: u64,
    /// How long addresses rest.
    reuse_after: Duration,
    /// Files of addresses that rest, and since when; the longest first.
    resting: VecDeque<(SystemTime, PathBuf)>,
}

/// What a new process finds.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub leases: Vec<Lease>,
    /// Addresses given back, and how long ago; the longest ago first.
    pub resting: Vec<(IpAddr, Duration)>,
}

const LEASE: &str = "lease";
const RELEASED: &str = "released";
const BROKEN: &str = "broken";

impl LeaseDir {
    pub(crate) fn open(dir: &Path) -> Result<LeaseDir, Error> {
        fs::create_dir_all(dir).map_err(state("create the lease directory", dir))?;
        Ok(LeaseDir { dir: dir.to_owned(), released: 0, reuse_after: Duration::ZERO, resting: VecDeque::new() })
    }

    /// Reads all, and removes what a crash left half-written and what has rested long enough.
    pub(crate) fn load(&mut self, reuse_after: Duration) -> Result<Found, Error> {
        let mut found = Found::default();
        let (now, mut resting) = (SystemTime::now(), Vec::new());
        self.reuse_after = reuse_after;
        for entry in fs::read_dir(&self.dir).map_err(state("read the lease directory", &self.dir))? {
            let path = entry.map_err(state("read the lease directory", &self.dir))?.path();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some(LEASE) => found.leases.extend(read(&path)?),
                Some(RELEASED) => match age(&path, now) {
                    Ok(age) if age < reuse_after => {
                        found.resting.extend(read(&path)?.into_iter().flat_map(|lease| lease.ips).map(|ip| (ip, age)));
                        resting.push((now.checked_sub(age).unwrap_or(now), path));
                    }
                    _ => remove(&path)?,
                },
                Some("new") => remove(&path)?,
                _ => {}
            }
        }
        found.leases.sort_by(|a, b| a.uid.cmp(&b.uid));
        found.resting.sort_by_key(|(_, age)| std::cmp::Reverse(*age));
        resting.sort();
        self.resting = resting.into();
        Ok(found)
    }

    /// One pod's lease.
    pub(crate) fn load_one(&self, uid: &str) -> Result<Option<Lease>, Error> {
        let path = self.path(uid);
        let exists = path.try_exists().map_err(state("look for the lease", &path))?;
        if exists { read(&path) } else { Ok(None) }
    }

    pub(crate) fn write(&self, lease: &Lease) -> Result<(), Error> {
        let path = self.path(&lease.uid);
        let body = serde_json::to_vec(lease).map_err(|error| state("write the lease", &path)(error.into()))?;
        whole::write(&path, &body, 0o644, Outlives::Process).map_err(state("write the lease", &path))
    }

    /// The lease ends; its addresses rest from now on. The time is the file's ctime: that of the rename.
    pub(crate) fn release(&mut self, uid: &str) -> Result<(), Error> {
        let path = self.path(uid);
        loop {
            self.released += 1;
            let rested = self.dir.join(format!("{}.{RELEASED}", self.released));
            match rustix::fs::renameat_with(rustix::fs::CWD, &path, rustix::fs::CWD, &rested, rustix::fs::RenameFlags::NOREPLACE)
            {
                Ok(()) => {
                    self.rests(rested);
                    return Ok(());
                }
                Err(rustix::io::Errno::NOENT) => return Ok(()),
                Err(rustix::io::Errno::EXIST) => {}
                Err(errno) => return Err(state("release the lease", &path)(errno.into())),
            }
        }
    }

    /// One more file of an address that rests; those that have rested long enough go.
    fn rests(&mut self, file: PathBuf) {
        let now = SystemTime::now();
        self.resting.push_back((now, file));
        while let Some((since, file)) = self.resting.front() {
            if now.duration_since(*since).unwrap_or_default() < self.reuse_after {
                break;
            }
            // Who can't remove it now does so when it reads the directory again.
            let _ = fs::remove_file(file);
            self.resting.pop_front();
        }
    }

    /// Forgets a lease that nobody has seen.
    pub(crate) fn forget(&self, uid: &str) -> Result<(), Error> {
        remove(&self.path(uid))
    }

    /// Removes every file of ours, and the directory if nothing else is in it.
    pub(crate) fn destroy(&self) -> Result<(), Error> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(state("read the lease directory", &self.dir)(error)),
        };
        for entry in entries {
            let path = entry.map_err(state("read the lease directory", &self.dir))?.path();
            if matches!(path.extension().and_then(|e| e.to_str()), Some(LEASE | RELEASED | BROKEN | "new" | "rules")) {
                remove(&path)?;
            }
        }
        match fs::remove_dir(&self.dir) {
            Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
                Err(state("remove the lease directory", &self.dir)(error))
            }
            _ => Ok(()),
        }
    }

    /// Whether no pod has a lease.
    pub(crate) fn is_empty(&self) -> Result<bool, Error> {
        let mut entries = fs::read_dir(&self.dir).map_err(state("read the lease directory", &self.dir))?;
        Ok(!entries.any(|entry| entry.is_ok_and(|entry| entry.path().extension().is_some_and(|kind| kind == LEASE))))
    }

    /// Assumes a UID that [`check_uid`] accepts.
    fn path(&self, uid: &str) -> PathBuf {
        self.dir.join(format!("{uid}.{LEASE}"))
    }
}

/// A UID becomes a file's name, and a manifest may choose it.
pub(crate) fn check_uid(uid: &str) -> Result<(), String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if uid.is_empty() || uid.len() > 128 || uid.starts_with('.') || !uid.bytes().all(allowed) {
        return Err(format!("UID {uid:?} must have 1 to 128 letters, digits, - _ . and not begin with ."));
    }
    Ok(())
}

/// None: what is there is no whole text. Nobody can say what it was, and a pod that still runs tells its addresses when it is attached again.
fn read(path: &Path) -> Result<Option<Lease>, Error> {
    let body = fs::read(path).map_err(state("read the lease", path))?;
    match serde_json::from_slice(&body) {
        Ok(lease) => Ok(Some(lease)),
        Err(error) if error.is_data() => Err(state("read the lease", path)(error.into())),
        Err(error) => set_aside(path, &error).map(|()| None),
    }
}

fn set_aside(path: &Path, problem: &serde_json::Error) -> Result<(), Error> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(format!(".{BROKEN}"));
    let aside = PathBuf::from(aside);
    fs::rename(path, &aside).map_err(state("set the broken lease aside", path))?;
    tracing::warn!(lease = %path.display(), %problem, aside = %aside.display(), "a pod's lease is broken and set aside");
    Ok(())
}

fn age(path: &Path, now: SystemTime) -> io::Result<Duration> {
    use std::os::unix::fs::MetadataExt;
    let meta = fs::metadata(path)?;
    let changed = Duration::new(meta.ctime().max(0) as u64, meta.ctime_nsec() as u32);
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Ok(now.saturating_sub(changed))
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(state("remove", path)(error)),
        _ => Ok(()),
    }
}

fn state(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::State { action, path, source }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::{Lease, LeaseDir};

    fn lease(uid: &str) -> Lease {
        let ips = vec!["10.88.0.2".parse().unwrap()];
        let (pod, host_if) = (format!("default/{uid}"), "veth0".into());
        Lease { uid: uid.into(), pod, ips, host_if, ports: Vec::new(), bandwidth: None, mac: None }
    }

    fn files(folder: &std::path::Path) -> usize {
        std::fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn what_has_rested_long_enough_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let mut leases = LeaseDir::open(folder.path()).unwrap();
        leases.load(Duration::from_secs(3600)).unwrap();
        for uid in ["a", "b"] {
            leases.write(&lease(uid)).unwrap();
            leases.release(uid).unwrap();
        }
        assert_eq!(files(folder.path()), 2, "they rest");
        // Those that an agent before this one released are looked after, too.
        let mut leases = LeaseDir::open(folder.path()).unwrap();
        assert_eq!(leases.load(Duration::from_secs(3600)).unwrap().resting.len(), 2);
        leases.reuse_after = Duration::ZERO;
        for number in 0..100 {
            leases.write(&lease(&number.to_string())).unwrap();
            leases.release(&number.to_string()).unwrap();
        }
        assert_eq!(files(folder.path()), 0);
    }
}
