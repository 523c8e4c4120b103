//! The library as a CNI plugin: one process a request, which reads its environment and standard input and says one JSON document.
//!
//! It takes the configuration of the plugins `bridge` + `host-local` + `portmap` in one: `ranges`, `routes`, `dataDir`, `ipMasq`,
//! `isDefaultGateway` and the capabilities `portMappings` and `ips` mean the same. Nothing that it does for one pod reads what belongs to
//! others, but for one case: when the nftables table has to be made anew.
//!
//! [`client`] is the other side: a runtime that executes other people's plugins.

mod answer;
pub mod client;
mod config;
mod store;
mod verbs;

use serde_json::{Value, json};

pub use self::answer::Complaint;
use self::config::{Config, Version};

/// What the runtime asks.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// `CNI_COMMAND`
    pub command: String,
    /// `CNI_CONTAINERID`
    pub container: String,
    /// `CNI_NETNS`
    pub netns: String,
    /// `CNI_IFNAME`
    pub ifname: String,
    /// `CNI_ARGS`
    pub args: String,
    /// Standard input.
    pub input: Vec<u8>,
}

/// Does what is asked, in the network namespace of the calling thread. The document for standard output, none where the
/// specification has none; a complaint is said there too, and the process then ends with 1.
pub fn run(request: &Request) -> Result<Option<Value>, Value> {
    let asked = serde_json::from_slice::<Value>(&request.input).ok();
    let asked = asked.as_ref().and_then(|config| config.get("cniVersion")).and_then(Value::as_str).unwrap_or("1.1.0");
    answer(request, asked).map_err(|complaint| complaint.to_json(asked))
}

fn answer(request: &Request, asked: &str) -> Result<Option<Value>, Complaint> {
    if request.command == "VERSION" {
        let all = Version::ALL.map(Version::name);
        return Ok(Some(json!({ "cniVersion": asked, "supportedVersions": all })));
    }
    let version = Version::parse(asked)?;
    let needed = match request.command.as_str() {
        "ADD" | "DEL" => Version::V0_3_1,
        "CHECK" => Version::V0_4,
        "GC" | "STATUS" => Version::V1_1,
        other => {
            let problem = format!("CNI_COMMAND: {other:?} is none of ADD, DEL, CHECK, GC, STATUS, VERSION");
            return Err(Complaint::new(Complaint::INVALID_ENVIRONMENT, "invalid environment", problem));
        }
    };
    if version < needed {
        let problem = format!("{} came with version {}; the config says cniVersion {asked}", request.command, needed.name());
        return Err(Complaint::new(Complaint::INCOMPATIBLE_VERSION, "incompatible CNI version", problem));
    }
    let config = Config::read(&request.input)?;
    match request.command.as_str() {
        "ADD" => Ok(Some(verbs::add(request, &config)?.into_json(version))),
        "DEL" => verbs::delete(request, &config).map(|()| None),
        "CHECK" => verbs::check(request, &config).map(|()| None),
        "GC" => verbs::collect(&config).map(|()| None),
        _ => verbs::status(&config).map(|()| None),
    }
}
