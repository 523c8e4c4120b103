//! What the plugin says: results and errors as the specification has them, in the version that was asked for.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::config::Version;
use crate::{Error, links::RouteOptions};

/// An error as the runtime reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    /// See the specification's table; ours begin at 100.
    pub code: u32,
    /// What is wrong.
    pub msg: String,
    /// What was tried, and what to do.
    pub details: String,
}

impl Complaint {
    pub(crate) const INCOMPATIBLE_VERSION: u32 = 1;
    pub(crate) const UNSUPPORTED_FIELD: u32 = 2;
    pub(crate) const INVALID_ENVIRONMENT: u32 = 4;
    pub(crate) const IO: u32 = 5;
    pub(crate) const DECODE: u32 = 6;
    pub(crate) const INVALID_CONFIG: u32 = 7;
    pub(crate) const NOT_AVAILABLE: u32 = 50;
    pub(crate) const FAILED: u32 = 100;
    pub(crate) const FULL: u32 = 101;
    pub(crate) const CHECK: u32 = 102;

    pub(crate) fn new(code: u32, msg: impl Into<String>, details: impl Into<String>) -> Complaint {
        Complaint { code, msg: msg.into(), details: details.into() }
    }

    pub(crate) fn to_json(&self, version: &str) -> Value {
        json!({ "cniVersion": version, "code": self.code, "msg": self.msg, "details": self.details })
    }
}

impl From<Error> for Complaint {
    fn from(error: Error) -> Complaint {
        let details = error.to_string();
        match &error {
            Error::Settings { .. } | Error::Overlap { .. } | Error::BridgeTaken { .. } => {
                Complaint::new(Complaint::INVALID_CONFIG, "invalid network config", details)
            }
            Error::Address { .. } => Complaint::new(Complaint::FULL, "no address", details),
            Error::State { .. } => Complaint::new(Complaint::IO, "I/O failure", details),
            _ => Complaint::new(Complaint::FAILED, "the pod could not be wired", details),
        }
    }
}

/// A result, of this plugin or of one before.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Outcome {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<Ip>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    pub dns: Dns,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Interface {
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// What plugins before us say, such as `socketPath` and `pciID`.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Ip {
    /// Until 0.4.0: `4` or `6`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// With prefix.
    pub address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Index of the interface in the result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Route {
    pub dst: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// Since 1.1.0.
    #[serde(flatten)]
    pub options: RouteOptions,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Dns {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Outcome {
    /// Behind what an earlier plugin of the chain did; whose indices stay as they are.
    pub(crate) fn after(mut self, earlier: Outcome) -> Outcome {
        let shift = earlier.interfaces.len();
        for ip in &mut self.ips {
            ip.interface = ip.interface.map(|index| index + shift);
        }
        Outcome {
            interfaces: earlier.interfaces.into_iter().chain(self.interfaces).collect(),
            ips: earlier.ips.into_iter().chain(self.ips).collect(),
            routes: earlier.routes.into_iter().chain(self.routes).collect(),
            dns: if self.dns == Dns::default() { earlier.dns } else { self.dns },
        }
    }

    pub(crate) fn into_json(mut self, version: Version) -> Value {
        for ip in &mut self.ips {
            let family = if ip.address.contains(':') { "6" } else { "4" };
            ip.version = (version < Version::V1_0).then(|| family.into());
        }
        if version < Version::V1_1 {
            self.interfaces.iter_mut().for_each(|interface| interface.mtu = None);
            self.routes.iter_mut().for_each(|route| route.options = RouteOptions::default());
        }
        let mut value = serde_json::to_value(self).unwrap_or_default();
        if let Some(object) = value.as_object_mut() {
            object.insert("cniVersion".into(), version.name().into());
        }
        value
    }
}
