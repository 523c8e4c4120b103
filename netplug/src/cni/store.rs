//! Which addresses are reserved, in the files of the plugin host-local: one a reservation, named by the address, so that a node may go
//! from one plugin to the other and back without giving an address twice. Whoever uses it holds the lock.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write},
    net::IpAddr,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

use super::answer::Complaint;
use crate::{
    Range,
    ipam::Refusal,
    whole::{self, Outlives},
};

/// The reservations of one network, locked until it is dropped.
#[derive(Debug)]
pub(crate) struct Store {
    dir: PathBuf,
    /// Whose ADD is going on. It lives from before the reservation until the lease is written, so whoever finds it finds a crash.
    intent: PathBuf,
    _lock: File,
}

impl Store {
    /// `state`: where the leases are. Frees what somebody who crashed had reserved.
    pub(crate) fn open(dir: &Path, state: &Path) -> Result<Store, Complaint> {
        fs::create_dir_all(dir).map_err(|error| io("create", dir, &error))?;
        let path = dir.join("lock");
        let lock = File::options().create(true).append(true).open(&path).map_err(|error| io("open", &path, &error))?;
        while let Err(errno) = flock(&lock, FlockOperation::LockExclusive) {
            if errno != rustix::io::Errno::INTR {
                return Err(io("lock", &path, &errno.into()));
            }
        }
        let store = Store { dir: dir.to_owned(), intent: state.join("intent"), _lock: lock };
        if let Ok(line) = fs::read_to_string(&store.intent) {
            store.clean_up(&line, state)?;
        }
        Ok(store)
    }

    /// A crash that is found is the last one's: the lock admits one at a time.
    fn clean_up(&self, line: &str, state: &Path) -> Result<(), Complaint> {
        if let Some((container, ifname)) = line.split_once("\r\n") {
            let owner = Owner { container, ifname };
            if !state.join(format!("{}.lease", owner.uid())).exists() {
                // An empty one was made, and not written any more.
                self.retain(|found| !found.is_empty() && !owner.is(found))?;
            }
        }
        self.settle()
    }

    /// To be said before anything is reserved.
    pub(crate) fn intend(&self, owner: &Owner<'_>) -> Result<(), Complaint> {
        // Whole or not at all: a name that is cut off would be another's.
        let line = owner.line();
        whole::write(&self.intent, line.as_ref(), 0o644, Outlives::Process).map_err(|error| io("write", &self.intent, &error))
    }

    /// The lease is written, or the reservation given back.
    pub(crate) fn settle(&self) -> Result<(), Complaint> {
        match fs::remove_file(&self.intent) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(io("remove", &self.intent, &error)),
            _ => Ok(()),
        }
    }

    /// Reserves the address that is asked for, or the next after the one given last.
    pub(crate) fn reserve(
        &self,
        set: usize,
        ranges: &[Range],
        fixed: Option<IpAddr>,
        owner: &Owner<'_>,
    ) -> Result<IpAddr, Complaint> {
        if let Some(ip) = fixed {
            let taken = || Complaint::new(Complaint::FULL, "no address", Refusal::Taken(ip).to_string());
            return if self.take(ip, owner)? { Ok(ip) } else { Err(taken()) };
        }
        let last = self.dir.join(format!("last_reserved_ip.{set}"));
        let after = fs::read_to_string(&last).ok().and_then(|text| text.trim().parse::<IpAddr>().ok());
        let begin = after.and_then(|ip| ranges.iter().position(|range| range.subnet.contains(ip))).unwrap_or(0);
        for turn in 0..=ranges.len() {
            let range = &ranges[(begin + turn) % ranges.len()];
            // The first range is passed twice: from the last address on, and from its beginning.
            let from = if turn == 0 { after.and_then(|ip| range.subnet.offset(ip)).map_or(0, |offset| offset + 1) } else { 0 };
            if let Some(ip) = self.next(range, from, owner)? {
                fs::write(&last, ip.to_string()).map_err(|error| io("write", &last, &error))?;
                return Ok(ip);
            }
        }
        let capacity = |range: &Range| crate::ipam::Pool::new(range, std::time::Duration::ZERO).capacity();
        let full: Vec<String> =
            ranges.iter().map(|range| Refusal::Full { subnet: range.subnet, capacity: capacity(range) }.to_string()).collect();
        Err(Complaint::new(Complaint::FULL, "no address", full.join("; ")))
    }

    fn next(&self, range: &Range, from: u128, owner: &Owner<'_>) -> Result<Option<IpAddr>, Complaint> {
        let end = range.subnet.last_offset() + u128::from(!range.subnet.is_v4());
        let mut offset = from.max(1);
        while offset < end {
            let ip = range.subnet.at(offset);
            if let Some(span) = range.exclude.iter().find(|span| (span.first..=span.last).contains(&ip)) {
                offset = range.subnet.offset(span.last).unwrap_or(end) + 1;
                continue;
            }
            if ip != range.gateway() && self.take(ip, owner)? {
                return Ok(Some(ip));
            }
            offset += 1;
        }
        Ok(None)
    }

    fn take(&self, ip: IpAddr, owner: &Owner<'_>) -> Result<bool, Complaint> {
        let path = self.dir.join(ip.to_string());
        match File::options().write(true).create_new(true).open(&path) {
            Ok(mut file) => {
                file.write_all(owner.line().as_bytes()).map_err(|error| io("write", &path, &error))?;
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(fs::read(&path).is_ok_and(|found| owner.is(&found))),
            Err(error) => Err(io("create", &path, &error)),
        }
    }

    /// Frees these addresses as far as they are the owner's.
    pub(crate) fn free(&self, ips: &[IpAddr], owner: &Owner<'_>) -> Result<(), Complaint> {
        for path in ips.iter().map(|ip| self.dir.join(ip.to_string())) {
            if fs::read(&path).is_ok_and(|found| owner.is(&found)) {
                fs::remove_file(&path).map_err(|error| io("remove", &path, &error))?;
            }
        }
        Ok(())
    }

    /// Frees whatever of the reservations is not kept; that of whoever crashed between two files as well.
    pub(crate) fn retain(&self, keep: impl Fn(&[u8]) -> bool) -> Result<(), Complaint> {
        for entry in fs::read_dir(&self.dir).map_err(|error| io("read", &self.dir, &error))?.flatten() {
            let path = entry.path();
            let is_address = entry.file_name().to_str().is_some_and(|name| name.parse::<IpAddr>().is_ok());
            if is_address && !fs::read(&path).is_ok_and(|found| keep(&found)) {
                fs::remove_file(&path).map_err(|error| io("remove", &path, &error))?;
            }
        }
        Ok(())
    }

    /// Whether there is an address of that range that nobody has.
    pub(crate) fn has_room(&self, ranges: &[Range]) -> Result<bool, Complaint> {
        let entries = fs::read_dir(&self.dir).map_err(|error| io("read", &self.dir, &error))?.flatten();
        let taken = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<IpAddr>().ok());
        let taken = taken.filter(|ip| ranges.iter().any(|range| range.subnet.contains(*ip))).count() as u128;
        let pools = ranges.iter().map(|range| crate::ipam::Pool::new(range, std::time::Duration::ZERO));
        Ok(taken < pools.map(|pool| pool.capacity()).fold(0, u128::saturating_add))
    }
}

/// Whose a reservation is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner<'a> {
    pub container: &'a str,
    pub ifname: &'a str,
}

impl Owner<'_> {
    /// By which the library knows the pod.
    pub(crate) fn uid(&self) -> String {
        format!("{}.{}", self.container, self.ifname)
    }

    pub(crate) fn line(&self) -> String {
        format!("{}\r\n{}", self.container, self.ifname)
    }

    /// Whether a reservation is this one's; old versions of host-local wrote no interface.
    pub(crate) fn is(&self, found: &[u8]) -> bool {
        let found = String::from_utf8_lossy(found);
        let found = found.trim();
        found == self.line() || found == self.container
    }
}

fn io(action: &str, path: &Path, error: &io::Error) -> Complaint {
    Complaint::new(Complaint::IO, "I/O failure", format!("{action} {}: {error}", path.display()))
}
