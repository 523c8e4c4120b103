//! Network configurations as administrators and add-ons write them: a folder of lists (`.conflist`) or single plugins (`.conf`, `.json`),
//! of which the first by name counts. Nothing is executed here.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use super::error::{self, Error};
use crate::cni::config::Version;

/// A network: plugins, one after the other.
#[derive(Debug, Clone)]
pub struct Conflist {
    /// Where it was read.
    pub file: PathBuf,
    /// Its name.
    pub name: String,
    /// In this order; never empty.
    pub plugins: Vec<Plugin>,
    /// The versions that it allows, ascending; never empty.
    pub(super) versions: Vec<Version>,
    /// Whether CHECK is welcome.
    pub(super) check: bool,
    /// Whether GC is welcome.
    pub(super) gc: bool,
    /// Whole, as it goes into the cache.
    pub(super) body: Value,
}

/// One plugin of a network.
#[derive(Debug, Clone)]
pub struct Plugin {
    /// The program's name.
    pub kind: String,
    /// What it wants to be told: `portMappings`, `bandwidth` …
    pub capabilities: BTreeSet<String>,
    /// Its part of the configuration.
    pub(super) body: Map<String, Value>,
}

impl Conflist {
    /// Reads a configuration; a single plugin is a list of one.
    pub fn parse(file: &Path, text: &[u8]) -> Result<Conflist, Error> {
        let body: Value = serde_json::from_slice(text).map_err(|error| {
            let place = format!("line {}, column {}", error.line(), error.column());
            Error::config(file, place, format!("is no JSON: {}", reason(&error)))
        })?;
        Conflist::of(file, body)
    }

    /// The same of what was parsed before.
    pub(super) fn of(file: &Path, body: Value) -> Result<Conflist, Error> {
        let wrong = |field: &str, problem: String| Error::config(file, field, problem);
        let Some(object) = body.as_object() else { return Err(wrong("(whole file)", "must be a JSON object".into())) };
        let name = match object.get("name") {
            Some(Value::String(name)) => name.clone(),
            Some(other) => return Err(wrong("name", format!("must be a string, not {other}"))),
            None => return Err(wrong("name", "is missing".into())),
        };
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if !name.starts_with(|first: char| first.is_ascii_alphanumeric()) || !name.bytes().all(allowed) {
            return Err(wrong("name", format!("{name:?} must begin with a letter or digit, then have those, - _ .")));
        }
        let plugins = match object.get("plugins") {
            None if object.contains_key("type") => vec![Plugin::of(object).map_err(|(field, problem)| wrong(&field, problem))?],
            None => return Err(wrong("plugins", "is missing: a list has plugins, a single plugin has a type".into())),
            Some(Value::Array(plugins)) if !plugins.is_empty() => {
                let read = |(index, plugin): (usize, &Value)| {
                    let field = format!("plugins[{index}]");
                    let plugin = plugin.as_object().ok_or_else(|| wrong(&field, "must be a JSON object".into()))?;
                    Plugin::of(plugin).map_err(|(inner, problem)| wrong(&format!("{field}.{inner}"), problem))
                };
                plugins.iter().enumerate().map(read).collect::<Result<_, _>>()?
            }
            Some(Value::Array(_)) => return Err(wrong("plugins", "is empty".into())),
            Some(other) => return Err(wrong("plugins", format!("must be a list, not {other}"))),
        };
        let versions = versions(object).map_err(|(field, problem)| wrong(&field, problem))?;
        let unless = |field: &str| flag(object, field).map(|disabled| !disabled).map_err(|problem| wrong(field, problem));
        let (check, gc) = (unless("disableCheck")?, unless("disableGC")?);
        Ok(Conflist { file: file.to_owned(), name, plugins, versions, check, gc, body })
    }

    /// Whether any of its plugins wants to be told that.
    pub fn has_capability(&self, name: &str) -> bool {
        self.plugins.iter().any(|plugin| plugin.capabilities.contains(name))
    }

    /// Adds the plugins that add-ons put into the folder of the network's name, unless it says that it wants none.
    fn with_loaded(self, dir: &Path) -> Result<Conflist, Error> {
        let Conflist { file, name, mut body, .. } = self;
        let Some(object) = body.as_object_mut() else { return Conflist::of(&file, body) };
        let inlined = flag(object, "loadOnlyInlinedPlugins");
        if inlined.map_err(|problem| Error::config(&file, "loadOnlyInlinedPlugins", problem))? {
            return Conflist::of(&file, body);
        }
        for path in files(&dir.join(&name), &["conf"])? {
            let text = fs::read(&path).map_err(error::io("read", &path))?;
            let loaded = Conflist::parse(&path, &text)?;
            if let Some(Value::Array(plugins)) = object.get_mut("plugins") {
                plugins.extend(loaded.plugins.into_iter().map(|plugin| plugin.body.into()));
            }
        }
        Conflist::of(&file, body)
    }
}

impl Plugin {
    fn of(body: &Map<String, Value>) -> Result<Plugin, (String, String)> {
        let wrong = |field: &str, problem: String| (field.to_owned(), problem);
        let kind = match body.get("type") {
            // Looked for in the folders of plugins: it must not lead out of them.
            Some(Value::String(kind)) if kind.is_empty() || kind.contains(['/', '\0']) || matches!(kind.as_str(), "." | "..") => {
                return Err(wrong("type", format!("{kind:?} is no name of a program")));
            }
            Some(Value::String(kind)) => kind.clone(),
            Some(other) => return Err(wrong("type", format!("must be a string, not {other}"))),
            None => return Err(wrong("type", "is missing: it names the plugin's program".into())),
        };
        let mut capabilities = BTreeSet::new();
        match body.get("capabilities") {
            None | Some(Value::Null) => {}
            Some(Value::Object(declared)) => {
                for (name, has) in declared {
                    match has {
                        Value::Bool(true) => drop(capabilities.insert(name.clone())),
                        Value::Bool(false) => {}
                        other => {
                            return Err(wrong(&format!("capabilities.{name}"), format!("must be true or false, not {other}")));
                        }
                    }
                }
            }
            Some(other) => return Err(wrong("capabilities", format!("must be an object, not {other}"))),
        }
        Ok(Plugin { kind, capabilities, body: body.clone() })
    }
}

/// What the list allows, of what we speak.
fn versions(list: &Map<String, Value>) -> Result<Vec<Version>, (String, String)> {
    let mut named: Vec<(String, &Value)> = Vec::new();
    named.extend(list.get("cniVersion").map(|version| ("cniVersion".to_owned(), version)));
    match list.get("cniVersions") {
        None => {}
        Some(Value::Array(versions)) => {
            named.extend(versions.iter().enumerate().map(|(index, version)| (format!("cniVersions[{index}]"), version)));
        }
        Some(other) => return Err(("cniVersions".into(), format!("must be a list, not {other}"))),
    }
    let mut known = BTreeSet::new();
    for (field, version) in &named {
        let Value::String(name) = version else { return Err((field.clone(), format!("must be a string, not {version}"))) };
        known.extend(Version::named(name));
    }
    if known.is_empty() {
        let all = Version::ALL.map(Version::name).join(", ");
        let found: Vec<String> = named.iter().map(|(_, version)| version.to_string()).collect();
        let found = if found.is_empty() { "is missing".into() } else { format!("{} is none that we speak", found.join(", ")) };
        return Err(("cniVersion".into(), format!("{found}: write one of {all}")));
    }
    Ok(known.into_iter().collect())
}

/// A boolean, which older add-ons write as a string.
fn flag(list: &Map<String, Value>, field: &str) -> Result<bool, String> {
    match list.get(field) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(Value::String(word)) if word.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(word)) if word.eq_ignore_ascii_case("false") => Ok(false),
        Some(other) => Err(format!("must be true or false, not {other}")),
    }
}

/// What serde_json says, less the place, which is told before.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.clone(), |(reason, _)| reason.to_owned())
}

const ENDINGS: [&str; 3] = ["conflist", "conf", "json"];

/// The folder of network configurations.
#[derive(Debug, Clone)]
pub struct Folder {
    /// Where.
    pub dir: PathBuf,
}

impl Folder {
    /// The first network by file name. A broken one is an error, not skipped: the next might be anybody's.
    pub fn first(&self) -> Result<Conflist, Error> {
        let all = files(&self.dir, &ENDINGS)?;
        let path = all.first().ok_or_else(|| Error::NoNetwork { dir: self.dir.clone() })?;
        self.read(path)
    }

    /// Whether anything is there, good or broken.
    pub fn has_any(&self) -> bool {
        files(&self.dir, &ENDINGS).is_ok_and(|all| !all.is_empty())
    }

    /// The network of that name.
    pub fn named(&self, name: &str) -> Result<Conflist, Error> {
        let mut there = Vec::new();
        for path in files(&self.dir, &ENDINGS)? {
            match self.read(&path) {
                Ok(list) if list.name == name => return Ok(list),
                Ok(list) => there.push(format!("{:?}", list.name)),
                Err(error) => there.push(error.to_string()),
            }
        }
        let there = if there.is_empty() { "it is empty".into() } else { format!("it has {}", there.join(", ")) };
        Err(Error::Unknown { name: name.into(), dir: self.dir.clone(), there })
    }

    fn read(&self, path: &Path) -> Result<Conflist, Error> {
        let text = fs::read(path).map_err(error::io("read", path))?;
        Conflist::parse(path, &text)?.with_loaded(&self.dir)
    }
}

/// The files with one of these endings, by name. None in a folder that isn't there.
fn files(dir: &Path, endings: &[&str]) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(Vec::new()),
        Err(source) => return Err(error::io("read the folder", dir)(source)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(error::io("read the folder", dir))?.path();
        let fits = path.extension().is_some_and(|ending| endings.iter().any(|wanted| ending == *wanted));
        // Through a link too: that is how a mounted ConfigMap looks.
        if fits && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn parse(text: &str) -> Result<Conflist, String> {
        Conflist::parse(Path::new("/etc/cni/net.d/10-a.conflist"), text.as_bytes()).map_err(|error| error.to_string())
    }

    #[rstest]
    #[case::cut_off(r#"{"name": "a","#, "line 1, column 13: is no JSON: EOF while parsing a value")]
    #[case::no_object("[]", "(whole file): must be a JSON object")]
    #[case::no_name(r#"{"plugins": []}"#, "name: is missing")]
    #[case::name_leads_out(r#"{"name": "../a", "plugins": []}"#, "name: \"../a\" must begin with")]
    #[case::no_plugins(r#"{"name": "a", "cniVersion": "1.0.0"}"#, "plugins: is missing")]
    #[case::empty(r#"{"name": "a", "plugins": []}"#, "plugins: is empty")]
    #[case::no_type(r#"{"name": "a", "plugins": [{"type": "bridge"}, {}]}"#, "plugins[1].type: is missing")]
    #[case::type_leads_out(
        r#"{"name": "a", "plugins": [{"type": "../sh"}]}"#,
        "plugins[0].type: \"../sh\" is no name of a program"
    )]
    #[case::capability(
        r#"{"name": "a", "plugins": [{"type": "b", "capabilities": {"ips": "yes"}}]}"#,
        "plugins[0].capabilities.ips: must be true or false, not \"yes\""
    )]
    #[case::no_version(
        r#"{"name": "a", "plugins": [{"type": "b"}]}"#,
        "cniVersion: is missing: write one of 0.3.1, 0.4.0, 1.0.0, 1.1.0"
    )]
    #[case::other_version(
        r#"{"name": "a", "cniVersion": "2.0.0", "plugins": [{"type": "b"}]}"#,
        "cniVersion: \"2.0.0\" is none that we speak: write one of"
    )]
    #[case::flag(
        r#"{"name": "a", "cniVersion": "1.0.0", "disableCheck": 1, "plugins": [{"type": "b"}]}"#,
        "disableCheck: must be true or false"
    )]
    fn what_is_wrong_is_named(#[case] text: &str, #[case] words: &str) {
        let error = parse(text).unwrap_err();
        assert!(error.starts_with(&format!("/etc/cni/net.d/10-a.conflist: {words}")), "{error}");
    }

    #[test]
    fn a_list_and_a_single_plugin() {
        let list = parse(
            r#"{"name": "a", "cniVersion": "0.4.0", "cniVersions": ["0.3.1", "1.1.0", "9.0.0"], "disableGC": "true",
                "plugins": [{"type": "bridge"}, {"type": "portmap", "capabilities": {"portMappings": true, "ips": false}}]}"#,
        );
        let list = list.unwrap();
        assert_eq!(list.versions, [Version::V0_3_1, Version::V0_4, Version::V1_1]);
        assert!(list.has_capability("portMappings") && !list.has_capability("ips") && list.check && !list.gc);
        let single = parse(r#"{"name": "a", "cniVersion": "1.0.0", "type": "bridge", "mtu": 1400}"#).unwrap();
        assert_eq!((single.plugins.len(), &single.plugins[0].body["mtu"]), (1, &1400.into()));
    }

    #[test]
    fn the_first_by_name_counts_and_loaded_plugins_follow() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder { dir: dir.path().join("net.d") };
        assert!(folder.first().unwrap_err().to_string().starts_with("no CNI network configuration in "));
        fs::create_dir_all(folder.dir.join("a")).unwrap();
        let put = |name: &str, text: &str| fs::write(folder.dir.join(name), text).unwrap();
        put("README", "no network");
        put("20-b.conf", r#"{"name": "b", "cniVersion": "1.0.0", "type": "ptp"}"#);
        put("10-a.conflist", r#"{"name": "a", "cniVersion": "1.0.0", "plugins": [{"type": "bridge"}]}"#);
        put("a/5-tuning.conf", r#"{"name": "a", "cniVersion": "1.0.0", "type": "tuning"}"#);
        let kinds = |list: Conflist| list.plugins.into_iter().map(|plugin| plugin.kind).collect::<Vec<_>>();
        assert_eq!(kinds(folder.first().unwrap()), ["bridge", "tuning"]);
        assert_eq!(kinds(folder.named("b").unwrap()), ["ptp"]);
        assert_eq!(folder.named("c").unwrap_err().to_string().split_once(": ").unwrap().1, "it has \"a\", \"b\"");
        put("00-broken.conflist", "{");
        assert!(folder.first().unwrap_err().to_string().contains("00-broken.conflist: line 1, column 1: is no JSON"));
        assert_eq!(kinds(folder.named("b").unwrap()), ["ptp"], "by name, a broken neighbour is no hindrance");
    }

    proptest! {
        #[test]
        fn nothing_panics(text in ".{0,200}", at in 0usize..150) {
            let good = r#"{"name": "a", "cniVersion": "1.0.0", "plugins": [{"type": "b", "capabilities": {"ips": true}}]}"#;
            let cut = at.min(good.len());
            let _ = parse(&text);
            let _ = parse(&format!("{}{text}{}", &good[..cut], &good[cut..]));
        }
    }
}
