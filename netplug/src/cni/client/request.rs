//! What a plugin is told and what its answers mean. Pure: the specification in tables.

use std::{net::IpAddr, path::Path};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{cache::Entry, conflist::Conflist, error::Failure, is_namespace};
use crate::cni::{
    answer::{Complaint, Outcome},
    config::Version,
};

/// IFNAMSIZ less the NUL.
const LINK_NAME_MAX: usize = 15;

/// `CNI_COMMAND`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Verb {
    pub(super) fn name(self) -> &'static str {
        match self {
            Verb::Add => "ADD",
            Verb::Del => "DEL",
            Verb::Check => "CHECK",
            Verb::Gc => "GC",
            Verb::Status => "STATUS",
            Verb::Version => "VERSION",
        }
    }
}

/// What a container gets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attached {
    /// Of its interface, IPv4 first.
    pub ips: Vec<IpAddr>,
    /// The MAC of its interface, as the plugin writes it; empty where it has none.
    pub mac: String,
    /// The default route's next hops, where the plugins tell them.
    pub gateways: Vec<IpAddr>,
}

/// A container's ID and an interface's name become parts of a file's name and of the kernel's.
pub(super) fn check_names(container: &str, interface: &str) -> Result<(), (&'static str, String)> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if !container.starts_with(|first: char| first.is_ascii_alphanumeric()) || !container.bytes().all(allowed) {
        return Err(("CNI_CONTAINERID", format!("{container:?} must begin with a letter or digit, then have those, - _ .")));
    }
    let unfit = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    if interface.is_empty() || interface.len() > LINK_NAME_MAX || matches!(interface, "." | "..") || interface.contains(unfit) {
        return Err(("CNI_IFNAME", format!("{interface:?} is no name of an interface")));
    }
    Ok(())
}

/// What one plugin of a list is to do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'a> {
    pub list: &'a Conflist,
    /// Which plugin of it.
    pub index: usize,
    pub version: Version,
    pub verb: Verb,
    /// For which attachment, if for one.
    pub entry: Option<&'a Entry>,
    /// Attachments that live, for GC.
    pub valid: Option<&'a Value>,
}

impl<'a> Request<'a> {
    pub(super) fn new(list: &'a Conflist, index: usize, version: Version, verb: Verb) -> Request<'a> {
        Request { list, index, version, verb, entry: None, valid: None }
    }

    pub(super) fn of(self, entry: &'a Entry) -> Request<'a> {
        Request { entry: Some(entry), ..self }
    }
}

/// The variables beside our own.
pub(super) fn environment(request: &Request<'_>, path: &str) -> Vec<(&'static str, String)> {
    let Request { verb, entry, .. } = *request;
    let netns = |entry: &Entry| match verb {
        // Gone with a reboot, or dead: the plugins then free what is outside. A path that leads to something else now is worse than none.
        Verb::Del if !is_namespace(Path::new(&entry.netns)).unwrap_or(false) => String::new(),
        _ => entry.netns.clone(),
    };
    let args = |entry: &Entry| entry.cni_args.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(";");
    vec![
        ("CNI_COMMAND", verb.name().into()),
        ("CNI_CONTAINERID", entry.map(|entry| entry.container_id.clone()).unwrap_or_default()),
        ("CNI_NETNS", entry.map(netns).unwrap_or_default()),
        ("CNI_IFNAME", entry.map(|entry| entry.if_name.clone()).unwrap_or_default()),
        ("CNI_ARGS", entry.map(args).unwrap_or_default()),
        ("CNI_PATH", path.into()),
    ]
}

/// Standard input: the plugin's part of the list with the network's name, the version, what came before, and what it has capabilities for.
pub(super) fn input(request: &Request<'_>) -> Value {
    let Request { list, index, version, verb, entry, valid } = *request;
    if verb == Verb::Version {
        return json!({"cniVersion": version.name()});
    }
    let Some(plugin) = list.plugins.get(index) else { return Value::Null };
    let mut body = plugin.body.clone();
    body.insert("name".into(), list.name.clone().into());
    body.insert("cniVersion".into(), version.name().into());
    if let Some(entry) = entry {
        // DEL is told since 0.4.0.
        let told = verb != Verb::Del || version >= Version::V0_4;
        if let Some(result) = entry.result.clone().filter(|_| told) {
            body.insert("prevResult".into(), result);
        }
        let wants = |name: &&String| plugin.capabilities.contains(*name);
        let runtime: Map<String, Value> = entry
            .capability_args
            .keys()
            .filter(wants)
            .filter_map(|name| Some((name.clone(), entry.capability_args.get(name)?.clone())))
            .collect();
        if !runtime.is_empty() {
            body.insert("runtimeConfig".into(), runtime.into());
        }
    }
    if let Some(valid) = valid {
        // The second is the name that the specification's first edition had.
        for name in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
            body.insert(name.into(), valid.clone());
        }
    }
    body.into()
}

/// What VERSION answers.
pub(super) fn versions(output: &[u8]) -> Result<Vec<String>, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Versions {
        supported_versions: Vec<String>,
    }
    serde_json::from_slice::<Versions>(output).map(|versions| versions.supported_versions).map_err(|error| error.to_string())
}

/// The newest of these versions that all plugins speak.
pub(super) fn agree(allowed: &[Version], plugins: &[(&str, Vec<String>)]) -> Result<Version, String> {
    let speaks = |spoken: &[String], version: Version| spoken.iter().any(|name| name == version.name());
    let common = |version: &&Version| plugins.iter().all(|(_, spoken)| speaks(spoken, **version));
    if let Some(version) = allowed.iter().rev().find(common) {
        return Ok(*version);
    }
    let newest = allowed.last().copied().unwrap_or(Version::V0_3_1);
    let silent: Vec<String> = plugins
        .iter()
        .filter(|(_, spoken)| !speaks(spoken, newest))
        .map(|(kind, spoken)| format!("{kind} (which speaks {})", spoken.join(", ")))
        .collect();
    Err(format!("{} is not spoken by {}: write a version that all plugins of the list speak", newest.name(), silent.join(", ")))
}

/// What ADD answers, as a result of that version; what else it is, if a failure has a name for it.
pub(super) fn result(output: &[u8], version: Version) -> Result<Value, (String, Option<Failure>)> {
    let mut value: Value = serde_json::from_slice(output).map_err(|error| (error.to_string(), None))?;
    let Some(object) = value.as_object_mut() else { return Err(("is no JSON object".into(), None)) };
    match object.get("cniVersion").and_then(Value::as_str) {
        Some(found) if found == version.name() => {}
        // Some plugins leave it out; then it is what they were asked in.
        None | Some("") => drop(object.insert("cniVersion".into(), version.name().into())),
        Some(found) => {
            let found = found.to_owned();
            return Err((String::new(), Some(Failure::Version { asked: version.name(), found })));
        }
    }
    Ok(value)
}

/// What a result says of the container's interface.
pub(super) fn attached(result: &Value, interface: &str) -> Result<Attached, (String, Option<Failure>)> {
    let outcome: Outcome = serde_json::from_value(result.clone()).map_err(|error| (error.to_string(), None))?;
    let inside = |index: usize| {
        outcome.interfaces.get(index).is_some_and(|link| link.sandbox.as_deref().is_some_and(|path| !path.is_empty()))
    };
    let mut attached = Attached::default();
    for (number, ip) in outcome.ips.iter().enumerate() {
        let text = ip.address.split_once('/').map_or(ip.address.as_str(), |(ip, _)| ip);
        let address = text.parse().map_err(|_| (format!("ips[{number}].address: {:?} is no address", ip.address), None))?;
        if ip.interface.is_none_or(inside) {
            attached.ips.push(address);
            attached.gateways.extend(ip.gateway);
        }
    }
    attached.ips.sort_by_key(|ip| !ip.is_ipv4());
    let mine = outcome.interfaces.iter().find(|link| link.name == interface && link.sandbox.is_some());
    attached.mac = mine.map(|link| link.mac.clone()).unwrap_or_default();
    Ok(attached)
}

/// An error document; some plugins write no details.
pub(super) fn complaint(output: &[u8]) -> Option<Complaint> {
    #[derive(Deserialize)]
    struct Document {
        code: u32,
        msg: String,
        #[serde(default)]
        details: String,
    }
    let Document { code, msg, details } = serde_json::from_slice(output).ok()?;
    Some(Complaint { code, msg, details })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use rstest::rstest;

    use super::*;

    fn list() -> Conflist {
        let text = json!({"name": "net", "cniVersion": "1.0.0", "plugins": [
            {"type": "bridge", "capabilities": {"ips": true}},
            {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}]});
        Conflist::parse(Path::new("x.conflist"), text.to_string().as_bytes()).unwrap()
    }

    fn entry(result: Option<Value>) -> Entry {
        let capabilities = json!({"ips": ["10.0.0.7/24"], "portMappings": [], "mac": "02:00:00:00:00:01"});
        let args = vec![("IgnoreUnknown".into(), "1".into()), ("K8S_POD_NAME".into(), "web".into())];
        let mut entry =
            Entry::new(&list(), "1.0.0", ("pod", "eth0"), "/proc/self/ns/net", args, capabilities.as_object().unwrap().clone());
        entry.result = result;
        entry
    }

    #[test]
    fn a_plugin_is_told_what_it_can_do_with() {
        let (list, entry) = (list(), entry(Some(json!({"ips": []}))));
        let told = |index, verb, version| input(&Request::new(&list, index, version, verb).of(&entry));
        assert_eq!(
            told(1, Verb::Add, Version::V1_0),
            json!({"name": "net", "cniVersion": "1.0.0", "type": "portmap", "capabilities": {"portMappings": true}, "snat": true,
                "prevResult": {"ips": []}, "runtimeConfig": {"portMappings": []}})
        );
        assert_eq!(told(0, Verb::Del, Version::V0_3_1).get("prevResult"), None);
        assert!(told(0, Verb::Del, Version::V0_4).get("prevResult").is_some());
        assert_eq!(told(0, Verb::Add, Version::V1_0)["runtimeConfig"], json!({"ips": ["10.0.0.7/24"]}));
    }

    #[test]
    fn its_environment() {
        let list = list();
        let request = |verb| Request::new(&list, 0, Version::V1_0, verb);
        let said = environment(&request(Verb::Add).of(&entry(None)), "/opt/cni/bin");
        let expected = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "pod"),
            ("CNI_NETNS", "/proc/self/ns/net"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=web"),
            ("CNI_PATH", "/opt/cni/bin"),
        ];
        assert_eq!(said, expected.map(|(name, value)| (name, value.to_owned())));
        let mut gone = entry(None);
        gone.netns = "/etc/passwd".into();
        let netns = |verb, entry| environment(&request(verb).of(entry), "").remove(2).1;
        assert_eq!(netns(Verb::Del, &gone), "", "it leads somewhere else now");
        assert_eq!(netns(Verb::Del, &entry(None)), "/proc/self/ns/net");
    }

    #[rstest]
    #[case::newest(&[Version::V0_4, Version::V1_0], &["0.4.0", "1.0.0"], Ok(Version::V1_0))]
    #[case::common(&[Version::V0_4, Version::V1_1], &["0.3.1", "0.4.0", "1.0.0"], Ok(Version::V0_4))]
    #[case::none(&[Version::V1_1], &["0.4.0", "1.0.0"],
        Err("1.1.0 is not spoken by portmap (which speaks 0.4.0, 1.0.0): write a version that all plugins of the list speak".into()))]
    fn versions_are_agreed_on(#[case] allowed: &[Version], #[case] old: &[&str], #[case] expected: Result<Version, String>) {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let plugins = [("bridge", names(&["0.3.1", "0.4.0", "1.0.0", "1.1.0"])), ("portmap", names(old))];
        assert_eq!(agree(allowed, &plugins), expected);
    }

    #[rstest]
    #[case::good(r#"{"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/24"}]}"#, "[10.0.0.2]")]
    #[case::without_version(r#"{"ips": []}"#, "[]")]
    #[case::the_hosts_address_is_not_the_pods(
        r#"{"interfaces": [{"name": "cni0"}, {"name": "eth0", "sandbox": "/x"}],
            "ips": [{"address": "fd00::2/64", "interface": 1}, {"address": "10.0.0.1/24", "interface": 0}, {"address": "10.0.0.2/24", "interface": 1}]}"#,
        "[10.0.0.2, fd00::2]"
    )]
    #[case::another_version(r#"{"cniVersion": "0.2.0"}"#, "answers in CNI version 0.2.0, though it was asked in 1.0.0")]
    #[case::no_json("panic: oh", "expected value at line 1 column 1")]
    #[case::no_object("[]", "is no JSON object")]
    #[case::no_list(r#"{"ips": "10.0.0.2"}"#, "invalid type: string \"10.0.0.2\", expected a sequence")]
    #[case::no_address(r#"{"ips": [{"address": "ten"}]}"#, "ips[0].address: \"ten\" is no address")]
    fn answers(#[case] output: &str, #[case] expected: &str) {
        let result = result(output.as_bytes(), Version::V1_0).and_then(|value| attached(&value, "eth0"));
        let words = match result {
            Ok(attached) => format!("{:?}", attached.ips),
            Err((problem, failure)) => failure.map_or(problem, |failure| failure.to_string()),
        };
        assert_eq!(words, expected);
    }
}
