//! A seccomp profile as JSON, in the form of the OCI runtime specification or of containers' and Docker's own (archMap, includes,
//! excludes): <https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#seccomp>. Pure.

use serde::Deserialize;

use super::abi::Abi;
use crate::runtime::error::ConfigError;
use crate::runtime::recipe::capabilities;

/// The file. Fields of other tools (`errno` names, comments) don't change what it means.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Profile {
    default_action: String,
    #[serde(default)]
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default)]
    arch_map: Vec<ArchMap>,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(default)]
    syscalls: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    name: Option<String>,
    action: String,
    #[serde(default)]
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Arg>>,
    #[serde(default)]
    includes: Option<When>,
    #[serde(default)]
    excludes: Option<When>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct When {
    #[serde(default)]
    caps: Vec<String>,
    #[serde(default)]
    arches: Vec<String>,
    #[serde(default)]
    min_kernel: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Arg {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

/// What a filter answers: `SECCOMP_RET_*` with its data.
pub type Action = u32;

/// A test of an argument, 64 bits wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    /// 0..=5.
    pub index: u32,
    /// How.
    pub compare: Compare,
}

/// Of an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Compare {
    Equal(u64),
    NotEqual(u64),
    Greater(u64),
    GreaterOrEqual(u64),
    Less(u64),
    LessOrEqual(u64),
    /// `arg & mask == value`.
    Masked {
        mask: u64,
        value: u64,
    },
}

/// For one system call: if all conditions hold, this action. The first rule that holds decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// By name: numbers follow from the ABI.
    pub name: String,
    /// All must hold; empty: always.
    pub conditions: Vec<Condition>,
    /// What then.
    pub action: Action,
}

/// A profile for one kernel, machine and set of capabilities: nothing left to decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Where no rule holds.
    pub default: Action,
    /// The ABIs by which system calls may be made; the machine's own first.
    pub abis: Vec<Abi>,
    /// In the profile's order.
    pub rules: Vec<Rule>,
    /// Of seccomp(2).
    pub flags: u32,
}

/// What a profile's conditions look at.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// Its own ABI.
    pub native: Abi,
    /// Major and minor.
    pub kernel: (u32, u32),
}

const KILL_PROCESS: Action = 0x8000_0000;
const KILL_THREAD: Action = 0;
const TRAP: Action = 0x0003_0000;
pub const ERRNO: Action = 0x0005_0000;
const LOG: Action = 0x7ffc_0000;
pub const ALLOW: Action = 0x7fff_0000;
const EPERM: u32 = 1;

impl Profile {
    /// Reads the JSON text. `name` is for the error.
    pub fn parse(text: &[u8], name: &str) -> Result<Self, ConfigError> {
        serde_json::from_slice(text).map_err(|error| ConfigError::new(format!("seccomp profile {name}: {error}")))
    }

    /// Applies includes and excludes.
    pub fn policy(&self, machine: Machine, capability_set: u64) -> Result<Policy, ConfigError> {
        let mut rules = Vec::new();
        for entry in self.syscalls.iter().filter(|entry| entry.applies(machine, capability_set)) {
            let action = action(&entry.action, entry.errno_ret)?;
            for conditions in entry.alternatives()? {
                let names = entry.names.iter().chain(&entry.name);
                rules.extend(names.map(|name| Rule { name: name.clone(), conditions: conditions.clone(), action }));
            }
        }
        let default = action(&self.default_action, self.default_errno_ret)?;
        Ok(Policy { default, abis: self.abis(machine.native), rules, flags: self.flags()? })
    }

    /// The machine's own ABI, and those beside it that the profile names.
    fn abis(&self, native: Abi) -> Vec<Abi> {
        let mapped = self.arch_map.iter().filter(|map| Abi::by_profile_name(&map.architecture) == Some(native));
        let subs = mapped.flat_map(|map| map.sub_architectures.iter().flatten()).chain(&self.architectures);
        let mut abis = vec![native];
        for abi in subs.filter_map(|name| Abi::by_profile_name(name)) {
            if native.runs(abi) && !abis.contains(&abi) {
                abis.push(abi);
            }
        }
        abis
    }

    fn flags(&self) -> Result<u32, ConfigError> {
        self.flags.iter().try_fold(0, |flags, name| match name.as_str() {
            // The loader is single-threaded: there is no other thread to synchronize.
            "SECCOMP_FILTER_FLAG_TSYNC" => Ok(flags),
            "SECCOMP_FILTER_FLAG_LOG" => Ok(flags | 2),
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => Ok(flags | 4),
            other => Err(ConfigError::new(format!("seccomp profile: flag {other} is not known to this agent"))),
        })
    }
}

impl Entry {
    fn applies(&self, machine: Machine, set: u64) -> bool {
        let arch = |when: &When| when.arches.iter().any(|name| machine.native.is_called(name));
        let newer = |when: &When| when.min_kernel.as_deref().is_none_or(|least| machine.kernel >= version(least));
        let included = self.includes.as_ref().is_none_or(|when| {
            (when.arches.is_empty() || arch(when)) && when.caps.iter().all(|cap| capabilities::has(set, cap)) && newer(when)
        });
        let excluded = self.excludes.as_ref().is_some_and(|when| {
            arch(when) || when.caps.iter().any(|cap| capabilities::has(set, cap)) || (when.min_kernel.is_some() && newer(when))
        });
        included && !excluded
    }

    /// Conditions of different arguments must all hold; several of the same argument are alternatives, as in runc.
    fn alternatives(&self) -> Result<Vec<Vec<Condition>>, ConfigError> {
        let args = self.args.as_deref().unwrap_or_default();
        let conditions = args.iter().map(Arg::condition).collect::<Result<Vec<_>, _>>()?;
        let repeated = conditions.iter().enumerate().any(|(n, c)| conditions.iter().skip(n + 1).any(|d| d.index == c.index));
        Ok(if repeated { conditions.into_iter().map(|condition| vec![condition]).collect() } else { vec![conditions] })
    }
}

impl Arg {
    fn condition(&self) -> Result<Condition, ConfigError> {
        let compare = match self.op.as_str() {
            "SCMP_CMP_EQ" => Compare::Equal(self.value),
            "SCMP_CMP_NE" => Compare::NotEqual(self.value),
            "SCMP_CMP_GT" => Compare::Greater(self.value),
            "SCMP_CMP_GE" => Compare::GreaterOrEqual(self.value),
            "SCMP_CMP_LT" => Compare::Less(self.value),
            "SCMP_CMP_LE" => Compare::LessOrEqual(self.value),
            "SCMP_CMP_MASKED_EQ" => Compare::Masked { mask: self.value, value: self.value_two },
            other => return Err(ConfigError::new(format!("seccomp profile: unknown operator {other}"))),
        };
        if self.index > 5 {
            return Err(ConfigError::new(format!("seccomp profile: a system call has no argument {}", self.index)));
        }
        Ok(Condition { index: self.index, compare })
    }
}

fn action(name: &str, errno: Option<u32>) -> Result<Action, ConfigError> {
    match name {
        "SCMP_ACT_ALLOW" => Ok(ALLOW),
        "SCMP_ACT_ERRNO" => Ok(ERRNO | errno.unwrap_or(EPERM) & 0xffff),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Ok(KILL_THREAD),
        "SCMP_ACT_KILL_PROCESS" => Ok(KILL_PROCESS),
        "SCMP_ACT_TRAP" => Ok(TRAP),
        "SCMP_ACT_LOG" => Ok(LOG),
        "SCMP_ACT_TRACE" => Err(ConfigError::new(
            "seccomp profile: SCMP_ACT_TRACE needs a tracer, and containers here have none: use SCMP_ACT_LOG to find out what a program calls",
        )),
        "SCMP_ACT_NOTIFY" => Err(ConfigError::new(
            "seccomp profile: SCMP_ACT_NOTIFY needs an agent at listenerPath that decides each call, which this node doesn't run",
        )),
        other => Err(ConfigError::new(format!("seccomp profile: unknown action {other}"))),
    }
}

/// `6.18` of `6.18.4-amd64`.
pub fn version(text: &str) -> (u32, u32) {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or_default());
    (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default())
}
