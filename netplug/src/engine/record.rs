//! The rules for the process after, in a file beside the leases. A change appends its lines, so that keeping it costs as much as changed,
//! however many rules there are; now and then the file is written anew. Lines count in their order; a crash may cut the last one
//! short, and then it doesn't. On a tmpfs: no fsync.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet},
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::rules::Rules;
use crate::{
    cidr::Cidr,
    policy::Policy,
    service::Service,
    settings::Protocol,
    whole::{self, Outlives},
};

/// The file may be twice as long as what counts in it, and this much more.
const SLACK: u64 = 64 * 1024;

/// One line.
#[derive(Debug, Serialize, Deserialize)]
enum Line<'a> {
    Ranges(Cow<'a, [Cidr]>),
    /// In place of one of the same name and protocol.
    Service(Cow<'a, Service>),
    NoService(Cow<'a, str>, Protocol),
    /// In place of one of the same name.
    Policy(Cow<'a, Policy>),
    NoPolicy(Cow<'a, str>),
}

/// See the module's page.
#[derive(Debug)]
pub(super) struct Record {
    path: PathBuf,
    /// None: the next time all of it is written.
    file: Option<File>,
    length: u64,
    /// What all of it took the last time.
    whole: u64,
    /// Lines that aren't in the file yet.
    pending: Vec<u8>,
    changed: bool,
}

impl Record {
    pub(super) fn new(dir: &Path) -> Record {
        Record { path: dir.join("services.rules"), file: None, length: 0, whole: 0, pending: Vec::new(), changed: false }
    }

    /// What the process before had.
    pub(super) fn read(&self) -> io::Result<Rules> {
        match fs::read(&self.path) {
            Ok(text) => Ok(self.parse(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Rules::default()),
            Err(error) => Err(error),
        }
    }

    fn parse(&self, text: &[u8]) -> Rules {
        let mut rules = Rules::default();
        let (mut services, mut policies) = (BTreeMap::new(), BTreeMap::new());
        for line in text.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n")) {
            match serde_json::from_slice(line) {
                Ok(Line::Ranges(ranges)) => rules.service_ranges = ranges.into_owned(),
                Ok(Line::Service(service)) => {
                    let service = service.into_owned();
                    services.insert((service.name.clone(), service.protocol), Arc::new(service));
                }
                Ok(Line::NoService(name, protocol)) => drop(services.remove(&(name.into_owned(), protocol))),
                Ok(Line::Policy(policy)) => {
                    let policy = policy.into_owned();
                    policies.insert(policy.name.clone(), Arc::new(policy));
                }
                Ok(Line::NoPolicy(name)) => drop(policies.remove(&*name)),
                // Another version's, or damaged: who holds the rules tells them again.
                Err(error) => tracing::warn!(file = %self.path.display(), %error, "a rule of the process before can't be read"),
            }
        }
        rules.services = services.into_values().collect();
        rules.policies = policies.into_values().collect();
        rules
    }

    /// Services that went and came, one that changed among both.
    pub(super) fn services(&mut self, gone: &[Arc<Service>], come: &[Arc<Service>]) {
        let staying: HashSet<_> = come.iter().map(|service| (&service.name, service.protocol)).collect();
        for service in gone.iter().filter(|service| !staying.contains(&(&service.name, service.protocol))) {
            self.push(&Line::NoService(Cow::Borrowed(&service.name), service.protocol));
        }
        for service in come {
            self.push(&Line::Service(Cow::Borrowed(service)));
        }
    }

    pub(super) fn ranges(&mut self, ranges: &[Cidr]) {
        self.push(&Line::Ranges(Cow::Borrowed(ranges)));
    }

    /// As [`Record::services`].
    pub(super) fn policies(&mut self, gone: &[Arc<Policy>], come: &[Arc<Policy>]) {
        let staying: HashSet<_> = come.iter().map(|policy| &policy.name).collect();
        for policy in gone.iter().filter(|policy| !staying.contains(&policy.name)) {
            self.push(&Line::NoPolicy(Cow::Borrowed(&policy.name)));
        }
        for policy in come {
            self.push(&Line::Policy(Cow::Borrowed(policy)));
        }
    }

    fn push(&mut self, line: &Line<'_>) {
        self.changed = true;
        if self.file.is_some() {
            append(&mut self.pending, line);
        }
    }

    /// What was told last is what was read: there is nothing to keep.
    pub(super) fn stands(&mut self) {
        self.changed = false;
    }

    /// Brings the file up to date.
    pub(super) fn keep(&mut self, rules: &Rules) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let kept = match &mut self.file {
            Some(file) if self.length + (self.pending.len() as u64) < 2 * self.whole + SLACK => {
                self.length += self.pending.len() as u64;
                file.write_all(&self.pending)
            }
            _ => self.write_whole(rules),
        };
        self.pending.clear();
        if let Err(error) = kept {
            self.file = None;
            tracing::warn!(file = %self.path.display(), %error, "the rules could not be kept");
        }
    }

    fn write_whole(&mut self, rules: &Rules) -> io::Result<()> {
        let mut text = Vec::new();
        append(&mut text, &Line::Ranges(Cow::Borrowed(&rules.service_ranges)));
        rules.policies.iter().for_each(|policy| append(&mut text, &Line::Policy(Cow::Borrowed(policy))));
        rules.services.iter().for_each(|service| append(&mut text, &Line::Service(Cow::Borrowed(service))));
        whole::write(&self.path, &text, 0o644, Outlives::Process)?;
        self.file = Some(File::options().append(true).open(&self.path)?);
        self.length = text.len() as u64;
        self.whole = self.length;
        Ok(())
    }
}

fn append(text: &mut Vec<u8>, line: &Line<'_>) {
    let start = text.len();
    match serde_json::to_writer(&mut *text, line) {
        Ok(()) => text.push(b'\n'),
        // Nothing of ours can't be written as JSON; half a line would spoil the next.
        Err(error) => {
            text.truncate(start);
            tracing::warn!(%error, "a rule could not be kept");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    fn service(name: &str, endpoints: u8) -> Arc<Service> {
        Arc::new(Service {
            name: name.into(),
            protocol: Protocol::Tcp,
            port: 80,
            addresses: vec!["10.96.0.1".parse().unwrap()],
            node_port: None,
            endpoints: (0..endpoints).map(|n| ([10, 88, 0, n], 80).into()).collect(),
            affinity: None,
        })
    }

    /// The states that were kept, one after the other, and the file of the last.
    fn history(dir: &Path) -> (Vec<Rules>, Vec<u8>) {
        let mut record = Record::new(dir);
        let mut rules = Rules { service_ranges: vec!["10.96.0.0/16".parse().unwrap()], ..Rules::default() };
        let mut states = vec![rules.clone()];
        record.ranges(&rules.service_ranges);
        record.keep(&rules);
        for (gone, come) in [(None, Some(("a", 1))), (None, Some(("b", 2))), (Some("a"), Some(("a", 3))), (Some("b"), None)] {
            let gone: Vec<_> = rules.services.iter().filter(|s| Some(s.name.as_str()) == gone).cloned().collect();
            rules.services.retain(|service| !gone.contains(service));
            let come: Vec<_> = come.into_iter().map(|(name, endpoints)| service(name, endpoints)).collect();
            rules.services.extend(come.iter().cloned());
            rules.services.sort_by(|a, b| a.name.cmp(&b.name));
            record.services(&gone, &come);
            record.keep(&rules);
            states.push(rules.clone());
        }
        (states, fs::read(&record.path).unwrap())
    }

    #[test]
    fn the_next_process_has_the_last_state() {
        let dir = tempfile::tempdir().unwrap();
        let (states, _) = history(dir.path());
        let mut next = Record::new(dir.path());
        assert_eq!(next.read().unwrap(), *states.last().unwrap());
        // It begins the file anew, and so does one that grows without end.
        let (one, other) = (service("a", 1), service("a", 2));
        for round in 0..2_000 {
            let (gone, come) = if round % 2 == 0 { (&one, &other) } else { (&other, &one) };
            next.services(std::slice::from_ref(gone), std::slice::from_ref(come));
            next.keep(&Rules { services: vec![come.clone()], ..states[0].clone() });
        }
        assert_eq!(next.read().unwrap(), Rules { services: vec![one], ..states[0].clone() });
        assert!(fs::metadata(&next.path).unwrap().len() < 2 * SLACK);
    }

    #[test]
    fn wherever_a_write_is_cut_off_the_state_is_one_that_was() {
        let dir = tempfile::tempdir().unwrap();
        let (mut states, text) = history(dir.path());
        states.insert(0, Rules::default());
        let record = Record::new(dir.path());
        let mut reached = 0;
        for length in 0..=text.len() {
            let read = record.parse(&text[..length]);
            let state = states.iter().position(|state| *state == read).unwrap_or_else(|| panic!("at {length}: {read:?}"));
            assert!(state == reached || state == reached + 1, "at {length}: {state} after {reached}");
            reached = state;
        }
        assert_eq!(reached, states.len() - 1);
        assert!(record.parse(b"{\"services\":[]}").services.is_empty(), "another version's");
    }
}
