//! The other side of CNI: what a runtime does with plugins that others wrote. This is the only place where programs are executed for a
//! pod's network. It blocks, needs no async runtime, and belongs to one runtime: what is in its cache, it may undo.
//!
//! | module | what |
//! |---|---|
//! | `conflist` | which networks there are, as files say |
//! | `request` | what a plugin is told, what its answer means: pure |
//! | `execute` | one plugin as a process |
//! | `cache` | what was done, for DEL, CHECK, GC and the life after a crash |
//!
//! # Guarantees
//! - An ADD that fails is undone by DEL at once; where that fails too, the next [`Client::del`] or [`Client::retain`] goes on with it.
//! - DEL uses the configuration and result of the ADD, also when the file has changed or gone, and goes through all plugins past errors.
//! - A plugin that hangs is killed after [`Settings::patience`].

mod cache;
mod conflist;
mod error;
mod execute;
mod request;

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use serde_json::{Map, Value};

use self::{
    cache::Cache,
    request::{Request, Verb, environment, input},
};
pub use self::{
    cache::Entry,
    conflist::{Conflist, Folder, Plugin},
    error::{Error, Failure},
    request::Attached,
};
use super::config::Version;

/// Where everything is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Network configurations: `/etc/cni/net.d`.
    pub conf_dir: PathBuf,
    /// Plugins, the first folder that has one counts: `/opt/cni/bin`.
    pub bin_dirs: Vec<PathBuf>,
    /// This runtime's own; `results` is made below it.
    pub cache_dir: PathBuf,
    /// How long one plugin may take.
    pub patience: Duration,
}

/// A container that is to be attached.
#[derive(Debug, Clone, Default)]
pub struct Attachment {
    /// `CNI_CONTAINERID`: begins with a letter or digit, then has those, `-`, `_`, `.`.
    pub container: String,
    /// `CNI_IFNAME`.
    pub interface: String,
    /// `CNI_NETNS`. Plugins may keep it: it should lead there until DEL has been done.
    pub netns: PathBuf,
    /// `CNI_ARGS`.
    pub args: Vec<(String, String)>,
    /// What plugins with a capability of that name are told.
    pub capabilities: Map<String, Value>,
}

/// See the module's page.
#[derive(Debug)]
pub struct Client {
    settings: Settings,
    cache: Cache,
    /// What plugins have said that they speak; by their file, so that a new version is asked anew.
    spoken: Mutex<HashMap<PluginFile, Vec<String>>>,
}

/// A plugin's program: its path, inode, and when it was changed, in seconds and nanoseconds.
type PluginFile = (PathBuf, u64, i64, i64);

impl Client {
    /// Over an existing cache, or none.
    pub fn open(settings: Settings) -> Result<Client, Error> {
        let cache = Cache::open(&settings.cache_dir)?;
        Ok(Client { settings, cache, spoken: Mutex::default() })
    }

    /// Where everything is.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The networks that there are.
    pub fn folder(&self) -> Folder {
        Folder { dir: self.settings.conf_dir.clone() }
    }

    /// Attaches a container: ADD of each plugin, each told what the one before did. Left-overs of an earlier try go first.
    pub fn add(&self, list: &Conflist, attachment: &Attachment) -> Result<Attached, Error> {
        let Attachment { container, interface, netns, args, capabilities } = attachment;
        request::check_names(container, interface).map_err(|(field, problem)| Error::config(&list.file, field, problem))?;
        for entry in self.cache.of(container)? {
            if entry.network_name == list.name && entry.if_name == *interface {
                self.undo(&entry)?;
            }
        }
        let version = self.agree(list)?;
        let netns = netns.display().to_string();
        let mut entry = Entry::new(list, version.name(), (container, interface), &netns, args.clone(), capabilities.clone());
        self.cache.write(&entry)?;
        match self.add_each(list, version, &mut entry) {
            Ok(attached) => {
                self.cache.write(&entry)?;
                Ok(attached)
            }
            Err(error) => {
                if let Err(left) = self.undo(&entry) {
                    tracing::warn!(container, network = list.name, %left, "a failed CNI ADD could not be undone yet");
                }
                Err(error)
            }
        }
    }

    fn add_each(&self, list: &Conflist, version: Version, entry: &mut Entry) -> Result<Attached, Error> {
        let mut attached = Attached::default();
        for index in 0..list.plugins.len() {
            let answer = self.call(&Request::new(list, index, version, Verb::Add).of(entry))?;
            let result = request::result(&answer.output, version)
                .and_then(|value| Ok((request::attached(&value, &entry.if_name)?, value)))
                .map_err(|(problem, failure)| {
                    let garbage = || Failure::Garbage { problem, said: answer.excerpt() };
                    self.failed(list, index, Verb::Add, failure.unwrap_or_else(garbage))
                })?;
            attached = result.0;
            entry.result = Some(result.1);
        }
        if attached.ips.is_empty() && entry.if_name == DEFAULT_INTERFACE {
            let problem = format!("the plugins gave {} no address: is an ipam block missing?", entry.if_name);
            return Err(Error::config(&list.file, "plugins", problem));
        }
        Ok(attached)
    }

    /// Takes back all that a container has, in reverse. One that has nothing is none to take from.
    pub fn del(&self, container: &str) -> Result<(), Error> {
        let entries = self.cache.of(container)?;
        Error::all(entries.iter().rev().filter_map(|entry| self.undo(entry).err()).collect())
    }

    /// DEL of each plugin, in reverse, past errors.
    fn undo(&self, entry: &Entry) -> Result<(), Error> {
        let list = entry.conflist()?;
        let version = match Version::named(&entry.version) {
            Some(version) => version,
            None => self.agree(&list)?,
        };
        let mut errors = Vec::new();
        for index in (0..list.plugins.len()).rev() {
            match self.call(&Request::new(&list, index, version, Verb::Del).of(entry)) {
                Ok(_) => {}
                Err(error) => errors.push(error),
            }
        }
        if errors.is_empty() { self.cache.remove(entry) } else { Error::all(errors) }
    }

    /// CHECK of each plugin for all that a container has: whether it is as ADD left it. Networks whose version has no CHECK, or that don't want
    /// it, are as they should be.
    pub fn check(&self, container: &str) -> Result<(), Error> {
        for entry in self.cache.of(container)? {
            let list = entry.conflist()?;
            let Some(version) = Version::named(&entry.version).filter(|version| *version >= Version::V0_4) else { continue };
            if !list.check || entry.result.is_none() {
                continue;
            }
            for index in 0..list.plugins.len() {
                self.call(&Request::new(&list, index, version, Verb::Check).of(&entry))?;
            }
        }
        Ok(())
    }

    /// Undoes what belongs to none of these containers.
    pub fn retain(&self, live: &HashSet<&str>) -> Result<(), Error> {
        let all = self.cache.all()?;
        let dead = all.iter().rev().filter(|entry| !live.contains(entry.container_id.as_str()));
        Error::all(dead.filter_map(|entry| self.undo(entry).err()).collect())
    }

    /// GC: tells the plugins of a network which attachments there are, so that they can free all else, also what nobody knows of any more. The
    /// network must be this runtime's alone.
    pub fn gc(&self, list: &Conflist) -> Result<(), Error> {
        let version = self.agree(list)?;
        if version < Version::V1_1 || !list.gc {
            return Ok(());
        }
        let all = self.cache.all()?;
        let valid: Vec<Value> = all
            .iter()
            .filter(|entry| entry.network_name == list.name)
            .map(|entry| serde_json::json!({"containerID": entry.container_id, "ifname": entry.if_name}))
            .collect();
        let valid = Value::Array(valid);
        let each = |index| self.call(&Request { valid: Some(&valid), ..Request::new(list, index, version, Verb::Gc) }).err();
        Error::all((0..list.plugins.len()).filter_map(each).collect())
    }

    /// Whether an ADD could succeed: the plugins are there, speak a common version and, from 1.1.0 on, say so themselves.
    pub fn status(&self, list: &Conflist) -> Result<(), Error> {
        let version = self.agree(list)?;
        if version >= Version::V1_1 {
            for index in 0..list.plugins.len() {
                self.call(&Request::new(list, index, version, Verb::Status))?;
            }
        }
        Ok(())
    }

    /// What is attached.
    pub fn attachments(&self) -> Result<Vec<Entry>, Error> {
        self.cache.all()
    }

    /// The newest version that the list allows and that all of its plugins speak.
    fn agree(&self, list: &Conflist) -> Result<Version, Error> {
        let mut spoken = Vec::new();
        for (index, plugin) in list.plugins.iter().enumerate() {
            spoken.push((plugin.kind.as_str(), self.spoken(list, index)?));
        }
        request::agree(&list.versions, &spoken).map_err(|problem| Error::config(&list.file, "cniVersion", problem))
    }

    fn spoken(&self, list: &Conflist, index: usize) -> Result<Vec<String>, Error> {
        let program = self.find(list, index)?;
        let meta = fs::metadata(&program).map_err(error::io("look at", &program))?;
        let key = (program, meta.ino(), meta.mtime(), meta.mtime_nsec());
        let lock = || self.spoken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lock().get(&key) {
            return Ok(known.clone());
        }
        // The oldest that we speak: every plugin knows what it means.
        let answer = self.call(&Request::new(list, index, Version::V0_3_1, Verb::Version))?;
        let versions = request::versions(&answer.output)
            .map_err(|problem| self.failed(list, index, Verb::Version, Failure::Garbage { problem, said: answer.excerpt() }))?;
        lock().insert(key, versions.clone());
        Ok(versions)
    }

    /// Executes one plugin.
    fn call(&self, request: &Request<'_>) -> Result<execute::Said, Error> {
        let Request { list, index, verb, .. } = *request;
        let program = self.find(list, index)?;
        let path = std::env::join_paths(&self.settings.bin_dirs).unwrap_or_default();
        let variables = environment(request, &path.to_string_lossy());
        let document = input(request);
        let said = execute::execute(&program, &variables, document.to_string().as_bytes(), self.settings.patience);
        let said = said.map_err(|failure| self.failed(list, index, verb, failure))?;
        if said.status.success() {
            return Ok(said);
        }
        let failure = match request::complaint(&said.output) {
            Some(complaint) => Failure::Refused(complaint),
            None => Failure::Died { status: said.status, said: said.excerpt() },
        };
        Err(self.failed(list, index, verb, failure))
    }

    fn failed(&self, list: &Conflist, index: usize, verb: Verb, failure: Failure) -> Error {
        let kind = list.plugins.get(index).map(|plugin| plugin.kind.clone()).unwrap_or_default();
        let plugin = self.find(list, index).unwrap_or_else(|_| kind.into());
        Error::Plugin { file: list.file.clone(), index, plugin, verb: verb.name(), failure: Box::new(failure) }
    }

    fn find(&self, list: &Conflist, index: usize) -> Result<PathBuf, Error> {
        let kind = list.plugins.get(index).map(|plugin| plugin.kind.as_str()).unwrap_or_default();
        let dirs = &self.settings.bin_dirs;
        let found = dirs.iter().map(|dir| dir.join(kind)).find(|path| is_file(path));
        found.ok_or_else(|| {
            let dirs: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
            let problem = format!("there is no plugin {kind:?} in {}: install it there", dirs.join(", "));
            Error::config(&list.file, format!("plugins[{index}].type"), problem)
        })
    }
}

/// The interface by which a pod is known: it must have an address.
const DEFAULT_INTERFACE: &str = "eth0";

fn is_file(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file())
}

/// Whether a path leads to a namespace now. A bind mount that went with a reboot leaves an ordinary file, into which no plugin should go.
pub fn is_namespace(path: &Path) -> io::Result<bool> {
    const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;
    match rustix::fs::statfs(path) {
        Ok(stat) => Ok(stat.f_type == NSFS_MAGIC),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}
